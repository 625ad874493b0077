"""Ranking accuracy: DPO learns rewards well and rankings badly, as it rarely repairs what the reference ranks wrongly.

Known answer: in a world of eight responses a prompt the likelihood of each is known, the ideal follows from Theorem
3.1, and Theorem 4.1 says at which loss a pair is put right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefkit.diagnostics import Interval, difficulty, flip_report, idealized_ranking, ranking_accuracy, reward_accuracy
from prefkit.objectives import PairScores, make_objective
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.recipes.testbeds import minimise
from prefkit.report.plots import Plot, bars

DIM, PROMPTS, RESPONSES, TRAINED = 20, 400, 8, 200
BETA, STEPS = 0.1, 400
GAMMAS = (1.0, 0.5, 0.0)
OPINION, REWARD = 20.0, 3.0
"""Scales of the reference's logits and of the true reward: Theorem 4.1 is about references with strong opinions."""
TABLES = 50


class World(NamedTuple):
    """Prompts with their responses, the reference's parameters, and pairs with a choice of the true reward."""

    prompts: Tensor
    responses: Tensor
    reference: Tensor
    chosen: Tensor
    rejected: Tensor

    def logps(self, parameters: Tensor) -> Tensor:
        """Log-probability of each response, `[prompts, responses]`."""
        return torch.einsum("pd,de,pre->pr", self.prompts, parameters, self.responses).log_softmax(1)

    def pairs(self, logps: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of chosen and rejected responses, `[prompts]` each."""
        return tuple(logps.gather(1, side[:, None]).squeeze(1) for side in (self.chosen, self.rejected))  # type: ignore[return-value]  # two sides


def world(generator: torch.Generator) -> World:
    """A world, with Bradley-Terry choices between the first two responses of every prompt."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    prompts, responses = normal(PROMPTS, DIM), normal(PROMPTS, RESPONSES, DIM)
    reference, reward = OPINION * normal(DIM, DIM) / DIM, REWARD * normal(DIM, DIM) / DIM
    values = torch.einsum("pd,de,pre->pr", prompts, reward, responses)
    first = torch.rand(PROMPTS, generator=generator, dtype=torch.float64) < torch.sigmoid(values[:, 0] - values[:, 1])
    return World(prompts, responses, reference, (~first).long(), first.long())


def scores(policy: tuple[Tensor, Tensor], ref: tuple[Tensor, Tensor], rows: slice) -> PairScores:
    """Scores of some of the pairs."""
    return PairScores(policy[0][rows], policy[1][rows], ref[0][rows], ref[1][rows])


def train(found: World, gamma: float) -> dict[str, float]:
    """Figures at the lowest validation loss, and the number of pairs and steps that contradict Theorem 4.1."""
    trained, held_out = slice(TRAINED), slice(TRAINED, None)
    objective = make_objective({"kind": "dpo_gamma", "beta": BETA, "ref_weight": gamma})
    with torch.no_grad():
        ref = found.pairs(found.logps(found.reference))
    thresholds = difficulty(*ref, beta=BETA, gamma=gamma).loss_threshold
    parameters = found.reference.clone().requires_grad_()
    optimiser = torch.optim.RMSprop([parameters], 0.02)
    best, figures, violations = float("inf"), {}, 0
    for _ in range(STEPS + 1):
        policy = found.pairs(found.logps(parameters))
        losses = objective(scores(policy, ref, slice(None)))
        with torch.no_grad():
            right = ranking_accuracy(*policy).per_example.bool()
            violations += int(((losses <= thresholds) != right).sum())
            if float(losses[held_out].mean()) < best:
                best = float(losses[held_out].mean())
                mine = [side[trained].detach() for side in (*policy, *ref)]
                figures = {
                    "flip rate": flip_report(*mine).flip_rate,
                    "reward accuracy": float(reward_accuracy(*mine).mean),
                    "ranking accuracy": float(ranking_accuracy(*mine[:2]).mean),
                    "reference's ranking accuracy": float(ranking_accuracy(*mine[2:]).mean),
                }
        optimiser.zero_grad()
        losses[trained].mean().backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
        optimiser.step()
    return {**figures, "violations": float(violations)}


def optimum_error(generator: torch.Generator) -> float:
    """Largest distance of `idealized_ranking` from the tabular minimiser of DPO on soft labels."""
    ref = 3 * torch.randn(TABLES, 2, generator=generator, dtype=torch.float64)
    ref = ref.log_softmax(1)
    alpha = 0.05 + 0.9 * torch.rand(TABLES, generator=generator, dtype=torch.float64)
    worst = 0.0
    for beta in (0.1, 1.0, 5.0):
        objective = make_objective({"kind": "dpo", "beta": beta})

        def loss(logits: Tensor, objective: Any = objective) -> Tensor:
            policy = torch.stack([logits, torch.zeros_like(logits)], 1).log_softmax(1)
            given = PairScores(policy[:, 0], policy[:, 1], ref[:, 0], ref[:, 1])
            total: Tensor = alpha * objective(given) + (1 - alpha) * objective(given.swapped())
            return total.sum()

        found = minimise(loss, TABLES, iterations=2000, tolerance=1e-14)
        ideal = idealized_ranking(ref[:, 0], ref[:, 1], alpha, beta=beta).optimal_log_ratio
        worst = max(worst, float((found - ideal).abs().max()))
    return worst


def run(seed: int) -> Figures:
    """Flip rate and accuracies for each weight of the reference, and the checks of both theorems."""
    generator = torch.Generator().manual_seed(seed)
    found = world(generator)
    figures = {f"{name} {gamma}": value for gamma in GAMMAS for name, value in train(found, gamma).items()}
    figures["violations"] = sum(figures[f"violations {gamma}"] for gamma in GAMMAS)
    figures["optimum error"] = optimum_error(generator)
    return figures | {"none": 0.0, "bound of flips": 0.4, "bound of error": 1e-4}


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Accuracies of DPO, and the flip rate by weight of the reference."""
    shown = {
        "ranking accuracy, reference": figures["reference's ranking accuracy 1.0"],
        "ranking accuracy, DPO": figures["ranking accuracy 1.0"],
        "reward accuracy, DPO": figures["reward accuracy 1.0"],
        **{f"flip rate, γ = {gamma}": figures[f"flip rate {gamma}"] for gamma in GAMMAS},
    }
    return bars(shown, title="What DPO puts right", x="share of training pairs")


CLAIMS = [
    Claim(
        "DPO puts right at most 0.4 of what the reference ranks wrongly",
        "flip rate 1.0",
        "bound of flips",
        lambda rate, bound: rate.mean() <= bound.mean(),
    ),
    Claim(
        "its reward accuracy is at least 0.2 above its ranking accuracy",
        "reward accuracy 1.0",
        "ranking accuracy 1.0",
        lambda reward, ranking: reward.mean() - ranking.mean() >= 0.2,
    ),
    Claim(
        "with half the reference more pairs flip",
        "flip rate 0.5",
        "flip rate 1.0",
        lambda weak, strong: weak.mean() > strong.mean(),
    ),
    Claim(
        "without the reference still more",
        "flip rate 0.0",
        "flip rate 0.5",
        lambda none, weak: none.mean() > weak.mean(),
    ),
    Claim(
        "no pair at any step contradicts the threshold of Theorem 4.1",
        "violations",
        "none",
        lambda found, none: bool((found == none).all()),
    ),
    Claim(
        "the ideal of Theorem 3.1 is the tabular optimum, within 1e-4 nats",
        "optimum error",
        "bound of error",
        lambda error, bound: bool((error < bound).all()),
    ),
]

RECIPE = Recipe(
    slug="ranking-accuracy",
    title="How well aligned models rank what they were aligned on",
    year=2024,
    paper="arXiv 2405.19534",
    parts={"objective": {"kind": "dpo_gamma", "beta": 0.1, "ref_weight": 0.5}},
    experiment=Experiment(run, CLAIMS, plot, seeds=5, quick_seeds=1),
)
