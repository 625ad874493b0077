"""rDPO: a policy trained on labels of which a known share is wrong finds the policy of the clean labels.

Known answer: in a log-linear bandit the optimal policy's parameters are those of the reward. DPO and its conservative
variant come out too timid under noise, which costs reward although both still order actions well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prefkit.diagnostics import Interval
from prefkit.objectives import make_objective
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.recipes.testbeds import LogLinearBandit, log_linear_scores, minimise
from prefkit.report.plots import Curve, Plot, curves

FLIP_RATES = (0.1, 0.2, 0.3)
PAIRS = 20_000


def run(seed: int) -> Figures:
    """Error of the parameters and expected reward of each method at each flip rate."""
    generator = torch.Generator().manual_seed(seed)
    world = LogLinearBandit.sample(generator)
    figures = {"oracle reward": world.expected_reward(world.theta)}
    for rate in FLIP_RATES:
        chosen, rejected = world.pairs(PAIRS, rate, generator)
        for kind, options in (("dpo", {}), ("cdpo", {"flip_rate": rate}), ("rdpo", {"flip_rate": rate})):
            theta = fit({"kind": kind, "beta": 1.0, **options}, chosen, rejected)
            figures[f"{kind} error {rate}"] = float((theta - world.theta).norm())
            figures[f"{kind} reward {rate}"] = world.expected_reward(theta)
        figures[f"best other reward {rate}"] = max(figures[f"dpo reward {rate}"], figures[f"cdpo reward {rate}"])
    return figures


def fit(config: Mapping[str, Any], chosen: Tensor, rejected: Tensor) -> Tensor:
    """Parameters that minimise an objective on pairs of actions."""
    objective = make_objective(config)
    return minimise(lambda theta: objective(log_linear_scores(theta, chosen, rejected)).mean(), chosen.shape[1])


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Expected reward over the flip rate."""
    lines = {
        name: Curve(
            FLIP_RATES,
            [figures[figure.format(rate)].mean for rate in FLIP_RATES],
            [figures[figure.format(rate)].low for rate in FLIP_RATES],
            [figures[figure.format(rate)].high for rate in FLIP_RATES],
        )
        for name, figure in {
            "oracle": "oracle reward",
            "rDPO": "rdpo reward {}",
            "DPO": "dpo reward {}",
            "cDPO": "cdpo reward {}",
        }.items()
    }
    return curves(lines, title="Reward after training on flipped labels", x="flip rate", y="expected reward")


CLAIMS = [
    claim
    for rate in FLIP_RATES
    for claim in (
        Claim(
            f"flips {rate}: error of the parameters below half of DPO's",
            f"rdpo error {rate}",
            f"dpo error {rate}",
            lambda rdpo, dpo: rdpo.mean() < 0.5 * dpo.mean(),
        ),
        Claim(
            f"flips {rate}: more reward than DPO and cDPO on 90% of seeds",
            f"rdpo reward {rate}",
            f"best other reward {rate}",
            lambda rdpo, others: (rdpo > others).mean() >= 0.9,
        ),
        Claim(
            f"flips {rate}: within 5% of the oracle's reward",
            f"rdpo reward {rate}",
            "oracle reward",
            lambda rdpo, oracle: abs(rdpo.mean() - oracle.mean()) <= 0.05 * oracle.mean(),
        ),
    )
]

RECIPE = Recipe(
    slug="rdpo",
    title="Robust DPO: alignment from noisy labels",
    year=2024,
    paper="arXiv 2403.00409",
    parts={"objective": {"kind": "rdpo", "beta": 0.1, "flip_rate": 0.1}},
    experiment=Experiment(run, CLAIMS, plot),
)
