"""OSP: labels that say how strongly a response is preferred lead to the regularised optimum, hard labels past it.

Known answer: with a judge that follows a Bradley-Terry model, soft labels lead to pi_SFT exp(score / beta), normalised.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from prefkit.diagnostics import Interval
from prefkit.objectives import PairScores, make_objective, optimal_policy
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.recipes.testbeds import descend
from prefkit.report.plots import Plot, bars

PROMPTS, RESPONSES, SAMPLED = 20, 12, 4
BETA, STEPS, LEARNING_RATE = 0.5, 400, 0.05
METHODS = ("soft labels", "sampled labels", "hard labels")


def run(seed: int) -> Figures:
    """Distance from the optimum and from the start, and regularised value, for each kind of label."""
    generator = torch.Generator().manual_seed(seed)
    log_ref = (0.25 * torch.randn(PROMPTS, RESPONSES, generator=generator, dtype=torch.float64)).log_softmax(1)
    score = torch.randn(PROMPTS, RESPONSES, generator=generator, dtype=torch.float64)
    best = optimal_policy(score, log_ref, beta=BETA)
    figures = {"optimum KL from start": divergence(best, log_ref)}
    for method in METHODS:
        policy = train(method, score, log_ref, generator)
        figures[f"{method} KL to optimum"] = divergence(best, policy)
        figures[f"{method} KL from start"] = divergence(policy, log_ref)
        reward = float((policy.exp() * score).sum(1).mean())
        figures[f"{method} value"] = reward - BETA * divergence(policy, log_ref)
    return figures


def divergence(log_p: Tensor, log_q: Tensor) -> float:
    """KL(p, q), the mean over prompts."""
    return float((log_p.exp() * (log_p - log_q)).sum(1).mean())


def train(method: str, score: Tensor, log_ref: Tensor, generator: torch.Generator) -> Tensor:
    """A policy that judges its own responses, learns from all pairs of them, and samples anew after each update."""
    objective = make_objective({"kind": "osp", "beta": BETA})
    logits = log_ref.clone().requires_grad_()
    rows = torch.arange(PROMPTS)[:, None]
    first, second = torch.tensor(list(itertools.combinations(range(SAMPLED), 2))).T

    def loss() -> Tensor:
        logps = logits.log_softmax(1)
        drawn = torch.multinomial(logps.detach().exp(), SAMPLED, replacement=True, generator=generator)
        one, two = drawn[:, first], drawn[:, second]
        preferred = torch.sigmoid(score[rows, one] - score[rows, two])
        if method == "hard labels":
            preferred = preferred.round()
        if method == "sampled labels":
            preferred = torch.bernoulli(preferred, generator=generator)
        differ = one != two
        one, two, at = one[differ], two[differ], rows.expand_as(differ)[differ]
        scores = PairScores(
            logps[at, one], logps[at, two], log_ref[at, one], log_ref[at, two], strengths=preferred[differ]
        )
        # Equal responses are dropped, and the fewer pairs are left the less a policy moves.
        return objective(scores).sum() / differ.numel()

    for _ in descend([logits], loss, steps=STEPS, learning_rate=LEARNING_RATE):
        pass
    return logits.detach().log_softmax(1)


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Distance from the optimum."""
    return bars(
        {method: figures[f"{method} KL to optimum"] for method in METHODS},
        title="Distance from the regularised optimum",
        x="KL(optimum, policy)",
    )


CLAIMS = [
    Claim(
        "soft labels end within 0.03 of the optimum on every seed (KL)",
        "soft labels KL to optimum",
        "hard labels KL to optimum",
        lambda soft, hard: bool((soft <= 0.03).all()),
    ),
    Claim(
        "that is at most a tenth of hard labels' distance on every seed",
        "soft labels KL to optimum",
        "hard labels KL to optimum",
        lambda soft, hard: bool((soft <= hard / 10).all()),
    ),
    Claim(
        "their regularised value is higher on every seed",
        "soft labels value",
        "hard labels value",
        lambda soft, hard: bool((soft > hard).all()),
    ),
]

RECIPE = Recipe(
    slug="osp",
    title="Models that judge their own answers by degree",
    year=2024,
    paper="arXiv 2405.14103",
    parts={"objective": {"kind": "osp", "beta": 0.1, "label": "pairwise"}},
    experiment=Experiment(run, CLAIMS, plot, seeds=5, quick_seeds=2),
)
