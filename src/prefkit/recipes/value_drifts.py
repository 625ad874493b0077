"""Value drifts: SFT sets a model's stances early, and preference training moves them only where pairs differ in stance.

Known answer: a tabular world in which the stances of every response are known, so that value vectors are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prefkit.diagnostics import STANCES, Interval, ValueTrajectory, value_gap
from prefkit.objectives import PairScores, make_objective
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.recipes.testbeds import descend
from prefkit.report.plots import Plot, bars

TOPICS, PROMPTS, STYLES, PAIRS, SAMPLES = 6, 12, 4, 8, 20
SHAPE = (TOPICS, PROMPTS, len(STANCES), STYLES)
SFT_STANCES, SFT_STYLES = (0.25, 0.65, 0.10), (0.6, 0.2, 0.1, 0.1)
SFT_STEPS, STEPS, LEARNING_RATE = 200, 100, 0.01
LENGTH, KL_WEIGHT = 20, 1.0
SETS = ("low gap", "support", "oppose")
METHODS = ("DPO", "SimPO", "PPO")

Set = Literal["low gap", "support", "oppose"]


class Parameters(NamedTuple):
    """Logits of responses: of the topic's stances, of styles, and of each response."""

    stance: Tensor
    style: Tensor
    response: Tensor

    def logps(self) -> Tensor:
        """Log-probability of each response, `[topics, prompts, stances, styles]`."""
        logits = self.stance[:, None, :, None] + self.style + self.response
        return logits.flatten(2).log_softmax(2).view(SHAPE)

    def copied(self) -> Parameters:
        """The same, to be trained further."""
        return Parameters(*(part.detach().clone().requires_grad_() for part in self))


class Pairs(NamedTuple):
    """Stance and style of the chosen and the rejected response of each pair, `[topics, prompts, pairs]` each."""

    chosen: tuple[Tensor, Tensor]
    rejected: tuple[Tensor, Tensor]


def values(logps: Tensor) -> Tensor:
    """The value vector, exact: stances, mean over prompts and topics, `[stances]`."""
    return logps.exp().sum(3).mean((0, 1))


def at(table: Tensor, place: tuple[Tensor, Tensor]) -> Tensor:
    """Entries of a table by stance and style, `[topics * prompts * n]`."""
    stance, style = place
    return table.flatten(2).gather(2, stance * STYLES + style).flatten()


def drawn(probabilities: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Samples for each prompt from distributions `[..., choices]`, `[topics, prompts, count]`."""
    rows = probabilities.expand(TOPICS, PROMPTS, probabilities.shape[-1]).flatten(0, 1)
    found = torch.multinomial(rows, count, replacement=True, generator=generator)
    return found.view(TOPICS, PROMPTS, count)


def tuned(start: Parameters, generator: torch.Generator) -> tuple[Parameters, ValueTrajectory]:
    """Parameters after supervised fine-tuning, and the course of the values."""
    stances = drawn(torch.tensor(SFT_STANCES, dtype=torch.float64), SAMPLES, generator)
    styles = drawn(torch.tensor(SFT_STYLES, dtype=torch.float64), SAMPLES, generator)
    own, course = start.copied(), [values(start.logps())]
    for _ in descend(own, lambda: -at(own.logps(), (stances, styles)).mean(), steps=SFT_STEPS, learning_rate=0.03):
        course.append(values(own.logps()).detach())
    return own, ValueTrajectory(tuple(range(SFT_STEPS + 1)), torch.stack(course), "after SFT")


def preferences(kind: Set, sft: Tensor, generator: torch.Generator) -> Pairs:
    """Pairs without, or with, a gap in stances.

    Pairs without one have the same stance in both responses. Stances that are drawn apart and agree in the mean only
    move a model, too.
    """
    shape = (TOPICS, PROMPTS, PAIRS)
    if kind == "low gap":
        stance = drawn(sft.exp().sum(3), PAIRS, generator)
        styles = torch.randint(0, 2, shape, generator=generator), torch.randint(1, 4, shape, generator=generator)
        return Pairs((stance, styles[0]), (stance, styles[1]))
    support, oppose = torch.zeros(shape, dtype=torch.long), torch.full(shape, 2)
    sides = (support, oppose) if kind == "support" else (oppose, support)
    one, two = ((side, torch.randint(STYLES, shape, generator=generator)) for side in sides)
    return Pairs(one, two)


def aligned(method: str, sft: Parameters, pairs: Pairs) -> Tensor:
    """Log-probabilities of all responses after preference training."""
    own, before = sft.copied(), sft.logps().detach()
    if method == "PPO":
        reward = fitted_reward(pairs)

        def loss() -> Tensor:
            logps = own.logps()
            # The expected reward and the divergence are exact: there is no sampling to be clipped.
            gain = logps.exp() * (reward - KL_WEIGHT * (logps - before))
            return -gain.sum((2, 3)).mean()
    else:
        kind = {"DPO": {"kind": "dpo", "beta": 0.1}, "SimPO": {"kind": "simpo", "beta": 2.0, "gamma": 0.5}}[method]
        objective = make_objective(kind)
        lengths = torch.full((TOPICS * PROMPTS * PAIRS,), LENGTH)

        def loss() -> Tensor:
            logps = own.logps()
            chosen, rejected, ref_chosen, ref_rejected = (at(t, side) for t in (logps, before) for side in pairs)
            scores = PairScores(chosen, rejected, ref_chosen, ref_rejected, lengths, lengths)
            total: Tensor = objective(scores).mean()
            return total

    for _ in descend(own, loss, steps=STEPS, learning_rate=LEARNING_RATE):
        pass
    return own.logps().detach()


def fitted_reward(pairs: Pairs) -> Tensor:
    """Rewards of stances and styles by Bradley-Terry, `[stances, styles]`."""
    weights = [torch.zeros(size, dtype=torch.float64, requires_grad=True) for size in (len(STANCES), STYLES)]

    def loss() -> Tensor:
        chosen, rejected = (weights[0][stance] + weights[1][style] for stance, style in pairs)
        return -F.logsigmoid(chosen - rejected).mean() + 0.01 * sum((w * w).sum() for w in weights)

    for _ in descend(weights, loss, steps=150, learning_rate=0.05):
        pass
    return (weights[0][:, None] + weights[1]).detach()


def run(seed: int) -> Figures:
    """Drift of each stage, of each method on each set."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    start = Parameters(normal(0.5, TOPICS, len(STANCES)), normal(0.3, STYLES), normal(0.3, *SHAPE))
    sft, course = tuned(start, generator)
    after = sft.logps().detach()
    each = 0.5 * (after.exp().sum(3).mean(1) - start.logps().exp().sum(3).mean(1)).abs().sum(1)
    moved = course.magnitude().magnitude.abs() >= 0.02
    figures = {"SFT": float(each.mean()), "SFT drift time": float(course.drift_time()[moved].mean())}
    for kind in SETS:
        pairs = preferences(kind, after, generator)  # type: ignore[arg-type]  # the three kinds
        gaps = value_gap(*(F.one_hot(side[0].flatten(), len(STANCES)).double() for side in pairs))
        figures[f"gap of {kind}"] = float(gaps.mean_pairwise_total_variation)
        for method in METHODS:
            change = aligned(method, sft, pairs).exp().sum(3).mean(1) - after.exp().sum(3).mean(1)
            figures[f"{method}, {kind}"] = float(0.5 * change.abs().sum(1).mean())
            figures[f"{method}, {kind}, change of support"] = float(change[:, 0].mean())
    for kind in SETS[1:]:
        figures[f"least move, {kind}"] = min(
            figures[f"{method}, {kind}"] - 2.5 * figures[f"{method}, low gap"] for method in METHODS
        )
    figures["most move, low gap"] = max(figures[f"{method}, low gap"] for method in METHODS)
    figures["least support, support"] = min(figures[f"{method}, support, change of support"] for method in METHODS)
    figures["most support, oppose"] = max(figures[f"{method}, oppose, change of support"] for method in METHODS)
    return figures | {"0.2": 0.2, "0.35": 0.35, "0.1": 0.1, "0": 0.0}


def plot(figures: Mapping[str, Interval]) -> Plot:
    """How far the values moved, by stage."""
    shown = {"SFT": figures["SFT"]} | {f"{m}, {kind}": figures[f"{m}, {kind}"] for kind in SETS for m in METHODS}
    return bars(shown, title="Drift of values", x="total variation")


CLAIMS = [
    Claim("SFT moves values by at least 0.2", "SFT", "0.2", lambda drift, bound: drift.mean() >= bound.mean()),
    Claim(
        "and within the first 0.35 of its run",
        "SFT drift time",
        "0.35",
        lambda time, bound: time.mean() <= bound.mean(),
    ),
    Claim(
        "pairs without a gap in stance move them by at most 0.1, whatever the method",
        "most move, low gap",
        "0.1",
        lambda drift, bound: drift.mean() <= bound.mean(),
    ),
    *(
        Claim(
            f"pairs that {kind} move them at least 2.5 times as far, whatever the method",
            f"least move, {kind}",
            "0",
            lambda left, zero: left.mean() >= zero.mean(),
        )
        for kind in SETS[1:]
    ),
    Claim(
        "towards support, every method",
        "least support, support",
        "0",
        lambda change, zero: change.mean() > zero.mean(),
    ),
    Claim("away from it, every method", "most support, oppose", "0", lambda change, zero: change.mean() < zero.mean()),
    *(
        Claim(
            f"PPO, held to the SFT model, moves less than DPO by at least 0.02: {kind}",
            f"PPO, {kind}",
            f"DPO, {kind}",
            lambda ppo, dpo: ppo.mean() <= dpo.mean() - 0.02,
        )
        for kind in SETS[1:]
    ),
]

RECIPE = Recipe(
    slug="value-drifts",
    title="How values move in the course of post-training",
    year=2025,
    paper="arXiv 2510.26707",
    parts={"objective": {"kind": "simpo", "beta": 2.0, "gamma": 0.5}},
    experiment=Experiment(run, CLAIMS, plot, seeds=5, quick_seeds=1),
)
