"""GPM: preferences that go in circles have embeddings, and policies can be trained on them.

Known answers: three responses a prompt, each preferred to the next one round, which no reward can order; a transitive
control, where a reward is right; and a game of rock, paper and scissors whose only undominated policy is mixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from prefkit.diagnostics import Interval
from prefkit.preference import (
    GeneralPreference,
    NetworkModel,
    RewardNetwork,
    duality_gap,
    multiplicative_weights_step,
)
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Plot, bars

PROMPTS, TRAINED, FEATURES = 60, 40, 16
PAIRS, TESTED = 300, 2000
DIMENSIONS = (2, 4, 6)
GAME = ((0.0, 1.0, -2.0), (-1.0, 0.0, 1.0), (2.0, -1.0, 0.0))
"""Scores of rock, paper and scissors in which one win counts twice."""
WINNER, START = (0.25, 0.5, 0.25), (0.8, 0.1, 0.1)
STEPS = (50, 200, 800, 3200)


def models(seed: int) -> dict[str, NetworkModel]:
    """The models that are compared: one hidden layer of 32, 300 updates of Adam on all pairs."""
    return {
        "BT": RewardNetwork(seed=seed),
        **{f"GPM {dim}": GeneralPreference(dim=dim, seed=seed) for dim in DIMENSIONS},
    }


def run(seed: int) -> Figures:
    """Accuracy on cyclic and on transitive pairs, and how far the policies of the game are from the winner."""
    rng = np.random.default_rng(seed)
    options = cyclic(rng)
    weights = rng.normal(size=FEATURES)
    train, test = transitive(PAIRS, weights, rng), transitive(TESTED, weights, rng)
    figures: dict[str, float] = {"chance": 0.5}
    for name, model in models(seed).items():
        model.fit(pairs(options[:TRAINED]))
        figures[f"{name}, cyclic, trained on"] = model.score(pairs(options[:TRAINED]))
        figures[f"{name}, cyclic"] = model.score(pairs(options[TRAINED:]))
        figures[f"{name}, transitive"] = model.fit(train).score(test)
    return {**figures, **game()}


def cyclic(rng: np.random.Generator) -> NDArray[np.float64]:
    """`[prompts, 3, features]`: responses a third of a turn apart, of which each is preferred to the next."""
    phases = rng.uniform(0, 2 * np.pi, (PROMPTS, 1)) + np.arange(3) * 2 * np.pi / 3
    directions = rng.normal(size=(2, FEATURES))
    circle = np.stack([np.cos(phases), np.sin(phases)], axis=2)
    found: NDArray[np.float64] = circle @ directions + 0.1 * rng.normal(size=(PROMPTS, 3, FEATURES))
    return found


def pairs(options: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[n, 2, features]`, the preferred response first: 0 > 1, 1 > 2 and 2 > 0 of each prompt."""
    return np.concatenate([options[:, [i, (i + 1) % 3]] for i in range(3)])


def transitive(n: int, weights: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """`[n, 2, features]`, the response of the higher linear utility first."""
    options = rng.normal(size=(n, 2, FEATURES))
    order = np.argsort(-(options @ weights), axis=1)
    return np.take_along_axis(options, order[:, :, None], axis=1)


def game() -> dict[str, float]:
    """Duality gaps of the average and of the last policy after exact steps, and the distance from the winner."""
    table = torch.tensor(GAME, dtype=torch.float64)
    figures = {"bound of gap times sqrt(T)": 6.0, "bound of the gap": 0.1, "0.05": 0.05, "0.5": 0.5}
    scaled = []
    for steps in STEPS:
        policy = torch.tensor(START, dtype=torch.float64)
        total = torch.zeros_like(policy)
        for _ in range(steps):
            total += policy
            policy = multiplicative_weights_step(table, policy, eta=1 / math.sqrt(steps))
        average = total / steps
        figures[f"gap of the average, T = {steps}"] = float(duality_gap(table, average / average.sum()))
        scaled.append(figures[f"gap of the average, T = {steps}"] * math.sqrt(steps))
    figures["largest gap times sqrt(T)"] = max(scaled)
    figures["gap of the last policy"] = float(duality_gap(table, policy / policy.sum()))
    figures["distance of the average"] = float((average - torch.tensor(WINNER, dtype=torch.float64)).abs().max())
    return figures


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Held-out accuracy on cyclic pairs."""
    names = ("BT", *(f"GPM {dim}" for dim in DIMENSIONS))
    return bars(
        {name: figures[f"{name}, cyclic"] for name in names},
        title="Held-out cyclic preferences",
        x="accuracy",
        baseline=0.5,
    )


CLAIMS = [
    *(
        Claim(
            f"dimension {dim} learns cycles (at least 0.95 on new prompts), a reward does not (at most 0.65)",
            f"GPM {dim}, cyclic",
            "BT, cyclic",
            lambda gpm, bt: gpm.mean() >= 0.95 and bt.mean() <= 0.65,
        )
        for dim in DIMENSIONS
    ),
    Claim(
        "transitive preferences cost dimension 6 at most 0.06",
        "GPM 6, transitive",
        "BT, transitive",
        lambda gpm, bt: abs(gpm.mean() - bt.mean()) <= 0.06,
    ),
    Claim(
        "the gap of the average policy shrinks like 1 / sqrt(T): times sqrt(T) it is at most 6",
        "largest gap times sqrt(T)",
        "bound of gap times sqrt(T)",
        lambda gap, bound: bool((gap <= bound).all()),
    ),
    Claim(
        "after 3200 steps it is at most 0.1",
        "gap of the average, T = 3200",
        "bound of the gap",
        lambda gap, bound: bool((gap <= bound).all()),
    ),
    Claim(
        "the average policy is within 0.05 of the winner",
        "distance of the average",
        "0.05",
        lambda distance, bound: bool((distance <= bound).all()),
    ),
    Claim(
        "the last policy keeps cycling: its gap is above 0.5",
        "gap of the last policy",
        "0.5",
        lambda gap, bound: bool((gap > bound).all()),
    ),
]

RECIPE = Recipe(
    slug="gpm",
    title="Preference embeddings that can represent cycles",
    year=2024,
    paper="arXiv 2410.02197",
    parts={
        "model": {"kind": "preference", "estimator": "general_preference", "dim": 6, "gate": True, "tau": 0.1},
        "objective": {"kind": "gpo", "beta": 0.001},
    },
    experiment=Experiment(run, CLAIMS, plot, seeds=5, quick_seeds=1),
)
