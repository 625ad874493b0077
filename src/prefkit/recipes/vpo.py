"""VPO: pessimism about responses that the data do not cover keeps a policy from being optimised too far.

Known answer: a bandit with a few good responses that the data cover and many bad ones that they hardly do. DPO goes on
to raise responses that won by luck; with a value term on the chosen responses the policy stays.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prefkit.diagnostics import Interval
from prefkit.objectives import PairScores, make_objective
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.recipes.testbeds import bradley_terry, descend
from prefkit.report.plots import Curve, Plot, curves

ALPHAS = (0.0, 3.0, 10.0, 30.0)
STEPS = (25, 50, 100, 200, 400)
HEAD, TAIL = 5, 45
PAIRS = 300
BETA, LEARNING_RATE = 0.2, 0.1


def run(seed: int) -> Figures:
    """Mean true reward of the policy at several steps, for each strength of the value term."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(HEAD + TAIL, generator=generator, dtype=torch.float64)
    reward = torch.cat([1 + 0.3 * noise[:HEAD], -0.5 + 0.5 * noise[HEAD:]])
    reference = torch.cat([torch.full((HEAD,), 0.7 / HEAD), torch.full((TAIL,), 0.3 / TAIL)]).double()
    chosen, rejected = pairs(reward, reference, generator)
    figures = {"reference": float(reference @ reward)}
    for alpha in ALPHAS:
        for step, value in train(alpha, reward, reference.log(), chosen, rejected).items():
            figures[f"reward alpha={alpha:g} step {step}"] = value
    return figures


def pairs(reward: Tensor, reference: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pairs of different responses of the reference, labelled by Bradley-Terry choices on the true reward."""
    first, second = torch.multinomial(reference.expand(2, -1), PAIRS, replacement=True, generator=generator)
    first, second = first[first != second], second[first != second]
    return bradley_terry(first, second, reward, generator)


def train(alpha: float, reward: Tensor, log_ref: Tensor, chosen: Tensor, rejected: Tensor) -> dict[int, float]:
    """Mean true reward at each of `STEPS`; alpha counts as in the paper, against the likelihood summed over pairs."""
    objective = make_objective({"kind": "vpo", "beta": BETA, "alpha": alpha / len(chosen)})
    logits = log_ref.clone().requires_grad_()

    def loss() -> Tensor:
        logps = logits.log_softmax(0)
        return objective(PairScores(logps[chosen], logps[rejected], log_ref[chosen], log_ref[rejected])).mean()

    found = {}
    for step in descend([logits], loss, steps=max(STEPS), learning_rate=LEARNING_RATE):
        if step in STEPS:
            found[step] = float(logits.detach().softmax(0) @ reward)
    return found


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Mean true reward over training."""
    lines = {}
    for alpha in ALPHAS:
        line = [figures[f"reward alpha={alpha:g} step {step}"] for step in STEPS]
        name = f"VPO, alpha {alpha:g}" if alpha else "DPO"
        lines[name] = Curve(STEPS, [i.mean for i in line], [i.low for i in line], [i.high for i in line])
    return curves(lines, title="True reward in the course of training", y="mean true reward")


CLAIMS = [
    Claim(
        "DPO loses at least 0.5 of true reward from step 50 to 400",
        "reward alpha=0 step 400",
        "reward alpha=0 step 50",
        lambda late, early: late.mean() <= early.mean() - 0.5,
    ),
    Claim(
        "VPO (alpha 30) ends at least 0.5 above DPO",
        "reward alpha=30 step 400",
        "reward alpha=0 step 400",
        lambda vpo, dpo: vpo.mean() >= dpo.mean() + 0.5,
    ),
    Claim(
        "VPO (alpha 30) ends above DPO on 80% of seeds",
        "reward alpha=30 step 400",
        "reward alpha=0 step 400",
        lambda vpo, dpo: (vpo > dpo).mean() >= 0.8,
    ),
    Claim(
        "VPO (alpha 30) loses at most 0.1 from step 50 to 400",
        "reward alpha=30 step 400",
        "reward alpha=30 step 50",
        lambda late, early: late.mean() >= early.mean() - 0.1,
    ),
]

RECIPE = Recipe(
    slug="vpo",
    title="Optimism and pessimism by a value term",
    year=2024,
    paper="arXiv 2405.19320",
    parts={"objective": {"kind": "vpo", "beta": 0.1, "alpha": 0.1, "sign": -1}},
    experiment=Experiment(run, CLAIMS, plot),
)
