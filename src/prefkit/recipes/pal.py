"""PAL: people who disagree have ideal points that few prototypes span, and a new person needs few comparisons.

Known answer: three groups of people, each with an ideal point behind an unknown linear map; what is nearer is chosen.
A second world has ideal points that depend on the prompt (variant B), and two groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefkit.diagnostics import Interval
from prefkit.preference import IdealPoints
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Curve, Plot, curves

D, GROUPS, PEOPLE, NEW = 8, 3, 45, 30
TRAINED, TESTED = 40, 60
PROTOTYPES = (1, 2, 3, 4)
FEW = (0, 1, 2, 5, 10, 20)
"""Comparisons of each new person."""


class Judged(NamedTuple):
    """Comparisons `[n, 2, D]`, whether the first is chosen, who chose, and prompts `[n, D]`."""

    options: NDArray[np.float64]
    chosen: NDArray[np.float64]
    people: list[str]
    prompts: NDArray[np.float64]


class World:
    """Groups of people with an ideal point each, or with one for each prompt."""

    def __init__(self, rng: np.random.Generator, groups: int, *, by_prompt: bool) -> None:
        self.metric = np.eye(D) + rng.normal(size=(D, D)) / np.sqrt(D)
        points = rng.normal(size=(groups, D))
        self.points = 3 * points / np.linalg.norm(points, axis=1, keepdims=True) @ self.metric
        self.maps = rng.normal(size=(groups, D, D)) * 3 / D if by_prompt else None
        self.groups = groups

    def judge(self, people: list[str], group: NDArray[np.int64], each: int, rng: np.random.Generator) -> Judged:
        """Comparisons of random options."""
        member = np.repeat(group, each)
        options, prompts = rng.normal(size=(len(member), 2, D)), rng.normal(size=(len(member), D))
        ideal = self.points[member] if self.maps is None else np.einsum("nij,nj->ni", self.maps[member], prompts)
        distance = np.linalg.norm(options @ self.metric - ideal[:, None], axis=2)
        chosen = (distance[:, 0] < distance[:, 1]).astype(float)
        return Judged(options, chosen, [person for person in people for _ in range(each)], prompts)


def run(seed: int) -> Figures:
    """Accuracy for people that were trained on, and for new ones, by the number of prototypes."""
    rng = np.random.default_rng(seed)
    figures: dict[str, float] = {}
    world = World(rng, GROUPS, by_prompt=False)
    seen, new = [f"seen {i}" for i in range(PEOPLE)], [f"new {i}" for i in range(NEW)]
    group, new_group = rng.integers(GROUPS, size=PEOPLE), rng.integers(GROUPS, size=NEW)
    train, test = world.judge(seen, group, TRAINED, rng), world.judge(seen, group, TESTED, rng)
    few, new_test = world.judge(new, new_group, max(FEW), rng), world.judge(new, new_group, TESTED, rng)
    for count in PROTOTYPES:
        model = IdealPoints(prototypes=count, seed=seed).fit(train.options, train.chosen, annotators=train.people)
        figures[f"K = {count}, seen"] = model.score(test.options, test.chosen, annotators=test.people)
        for n in FEW:
            figures[f"K = {count}, new, {n} pairs"] = _few_shot(model, few, new_test, n)
    world = World(rng, 2, by_prompt=True)
    group = rng.integers(2, size=PEOPLE)
    train, test = world.judge(seen, group, TRAINED, rng), world.judge(seen, group, TESTED, rng)
    for count in (1, 2):
        model = IdealPoints(prototypes=count, variant="B", score_type="dist", loss="hinge", seed=seed)
        model.fit(train.options, train.chosen, annotators=train.people, prompts=train.prompts)
        figures[f"by prompt, K = {count}"] = model.score(
            test.options, test.chosen, annotators=test.people, prompts=test.prompts
        )
    return figures


def _few_shot(model: IdealPoints, few: Judged, test: Judged, n: int) -> float:
    """Accuracy for new people after n comparisons of each; equal weights without any."""
    if not n:
        return model.score(test.options, test.chosen, weights=np.full(model.prototypes, 1 / model.prototypes))
    kept = np.arange(len(few.people)) % max(FEW) < n
    people = [person for person, keep in zip(few.people, kept, strict=True) if keep]
    model.fit_annotators(few.options[kept], few.chosen[kept], annotators=people)
    return model.score(test.options, test.chosen, annotators=test.people)


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Accuracy for new people over the number of their comparisons."""
    lines = {}
    for count in PROTOTYPES:
        each = [figures[f"K = {count}, new, {n} pairs"] for n in FEW]
        lines[f"K = {count}"] = Curve(FEW, [i.mean for i in each], [i.low for i in each], [i.high for i in each])
    return curves(lines, title="New people", x="comparisons of each", y="accuracy")


CLAIMS = [
    Claim(
        "three prototypes for three groups: at least 0.92, and 0.12 above one",
        "K = 3, seen",
        "K = 1, seen",
        lambda three, one: three.mean() >= 0.92 and three.mean() >= one.mean() + 0.12,
    ),
    Claim(
        "a fourth one changes at most 0.03",
        "K = 4, seen",
        "K = 3, seen",
        lambda four, three: abs(four.mean() - three.mean()) <= 0.03,
    ),
    Claim(
        "20 comparisons of a new person: within 0.03 of people that were trained on",
        "K = 3, new, 20 pairs",
        "K = 3, seen",
        lambda new, seen: abs(new.mean() - seen.mean()) <= 0.03,
    ),
    Claim(
        "and 0.08 above one comparison",
        "K = 3, new, 20 pairs",
        "K = 3, new, 1 pairs",
        lambda many, one: many.mean() >= one.mean() + 0.08,
    ),
    Claim(
        "ideal points by prompt: two prototypes for two groups are better than one on every seed",
        "by prompt, K = 2",
        "by prompt, K = 1",
        lambda two, one: bool((two > one).all()),
    ),
]

RECIPE = Recipe(
    slug="pal",
    title="Ideal points for people who disagree",
    year=2024,
    paper="arXiv 2406.08469",
    parts={
        "model": {
            "kind": "preference",
            "estimator": "ideal_points",
            "prototypes": 2,
            "variant": "A",
            "mixing": "f(Pw)",
            "score_type": "dist",
            "loss": "hinge",
            "projector": "mlp2-relu-dropout0-residual",
        }
    },
    experiment=Experiment(run, CLAIMS, plot, seeds=5, quick_seeds=1),
)
