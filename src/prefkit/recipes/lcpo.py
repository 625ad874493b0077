"""LCPO: labels of unknown reliability, of which the policy itself finds out how far they can be trusted.

Known answer: in a log-linear bandit the annotators' reliabilities are chosen, so estimates can be compared with them,
and the order of the true rewards is known for new prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prefkit.diagnostics import Interval
from prefkit.objectives import make_objective
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.recipes.testbeds import LogLinearBandit, log_linear_scores, minimise
from prefkit.report.plots import Plot, bars

SETTINGS = {"one annotator 0.7": (0.7,), "two annotators 0.95, 0.65": (0.95, 0.65)}
"""Reliabilities of the annotators, by the name of the setting."""

PAIRS = 4000
EPOCHS, BATCH, RATE = 15, 64, 0.05
ONE, TWO = SETTINGS


def run(seed: int) -> Figures:
    """Accuracy on new prompts, errors of the reliabilities, and calibration, in each setting."""
    generator = torch.Generator().manual_seed(seed)
    world = LogLinearBandit.sample(generator, d=10, norm=4.0, prompts=PAIRS, k=2)
    figures = {"allowed error": 0.06, "allowed accuracy": 0.94}
    for setting, reliabilities in SETTINGS.items():
        true = torch.tensor(reliabilities, dtype=torch.float64)
        annotators = torch.randint(len(true), (PAIRS,), generator=generator)
        chosen, rejected = world.pairs(PAIRS, 1 - true[annotators], generator)
        plain = train({"kind": "dpo"}, chosen, rejected, annotators, seed)[0]
        theta, found = train({"kind": "lcpo", "per_annotator": True}, chosen, rejected, annotators, seed)
        figures[f"DPO accuracy, {setting}"] = world.accuracy(plain)
        figures[f"LCPO accuracy, {setting}"] = world.accuracy(theta)
        figures[f"DPO calibration error, {setting}"] = calibration_error(world, plain)
        figures[f"LCPO calibration error, {setting}"] = calibration_error(world, theta)
        figures[f"largest error of a reliability, {setting}"] = float((found - true).abs().max())
        for place, reliability in enumerate(found.tolist()):
            figures[f"reliability {place}, {setting}"] = reliability
        figures[f"DPO accuracy at its minimum, {setting}"] = world.accuracy(converged(chosen, rejected))
    return figures


def converged(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Parameters at the minimum of the DPO loss, which small batches only come near."""
    objective = make_objective({"kind": "dpo", "beta": 1.0})
    return minimise(lambda theta: objective(log_linear_scores(theta, chosen, rejected)).mean(), chosen.shape[1])


def train(
    config: Mapping[str, Any], chosen: Tensor, rejected: Tensor, annotators: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Parameters, and the reliabilities that were estimated beside them, after training by Adam in small batches."""
    objective = make_objective({"beta": 1.0, **config})
    objective.prepare([str(name) for name in range(int(annotators.max()) + 1)])
    generator = torch.Generator().manual_seed(seed)
    theta = torch.zeros(chosen.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([theta], lr=RATE)
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(chosen), generator=generator), BATCH):
            optimiser.zero_grad()
            scores = log_linear_scores(theta, chosen[batch], rejected[batch])
            loss = objective(replace(scores, annotators=annotators[batch])).mean()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
            optimiser.step()
            objective.after_update()
    found = objective.summary().get("latent", {}).get("reliabilities", {})
    return theta.detach(), torch.tensor(list(found.values()), dtype=torch.float64)


def calibration_error(world: LogLinearBandit, theta: Tensor) -> float:
    """Mean distance of the policy's probabilities of the orders of new pairs from the true ones."""
    margin = world.actions[:, 0] - world.actions[:, 1]
    return float((torch.sigmoid(margin @ theta) - torch.sigmoid(margin @ world.theta)).abs().mean())


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Accuracy of both methods in each setting."""
    shown = {
        f"{kind}, {setting}": figures[f"{kind} accuracy, {setting}"] for setting in SETTINGS for kind in ("DPO", "LCPO")
    }
    return bars(shown, title="Order of the true rewards on new prompts", x="accuracy", baseline=0.5)


CLAIMS = [
    Claim(
        "reliability 0.7: mean accuracy at least 0.04 above DPO's",
        f"LCPO accuracy, {ONE}",
        f"DPO accuracy, {ONE}",
        lambda ours, theirs: ours.mean() - theirs.mean() >= 0.04,
    ),
    Claim(
        "reliability 0.7: accuracy at least 0.94 on every seed",
        f"LCPO accuracy, {ONE}",
        "allowed accuracy",
        lambda ours, allowed: bool((ours >= allowed).all()),
    ),
    *(
        Claim(
            f"{setting}: reliabilities within 0.06 on every seed",
            f"largest error of a reliability, {setting}",
            "allowed error",
            lambda error, allowed: bool((error <= allowed).all()),
        )
        for setting in (ONE, TWO)
    ),
    Claim(
        "two annotators: the less reliable one is ranked lower on every seed",
        f"reliability 1, {TWO}",
        f"reliability 0, {TWO}",
        lambda less, more: bool((less < more).all()),
    ),
]

RECIPE = Recipe(
    slug="lcpo",
    title="Label correctness as a latent variable, with annotator reliability",
    year=2025,
    paper="arXiv 2509.24159",
    parts={"objective": {"kind": "lcpo", "beta": 0.1, "reliability": 0.9, "ema_alpha": 0.1}},
    experiment=Experiment(run, CLAIMS, plot, seeds=5, quick_seeds=2),
)
