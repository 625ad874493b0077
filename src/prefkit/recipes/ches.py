"""CHES: preference training can take probability from the preferred response and give it to the opposite one.

Known answer: in the model of unconstrained features the rates of change are known in closed form, so a score that is
read off hidden states can be held against them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from prefkit.diagnostics import (
    Interval,
    ches_from_sums,
    correlations,
    last_hidden_similarity,
    multi_token_rate,
    normalized_edit_distance,
)
from prefkit.objectives import PairScores, make_objective
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Plot, bars

VOCABULARY, DIM, STEPS = 40, 16, 300
BETA, LEARNING_RATE = 0.1, 0.02
SAMPLES, WORDS, WIDTH = 400, 30, 24
ANISOTROPY = 0.5
"""Norm of the mean state in units of sqrt(width). The effect depends on it: at 2 little of it is left."""

CHOSEN, REJECTED, OPPOSITE = 0, 1, 2


def displaced(generator: torch.Generator, length: int) -> dict[str, float]:
    """Train one pair of responses whose tokens look alike, and see where probability goes.

    The vectors are built to meet the condition of Theorem 4: they illustrate the mechanism, not how often it occurs.

    Args:
        generator: of the rows of all other tokens.
        length: tokens of a response; each has its own three rows of the output matrix and its own states.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u, v = torch.linalg.qr(normal(DIM, 2)).Q.T
    weights = 0.3 * normal(VOCABULARY, DIM)
    weights[[CHOSEN, REJECTED, OPPOSITE]] = torch.stack([8 * u, 8 * u + 2 * v, 4 * u - 6 * v])
    weights.requires_grad_()
    # One state before the first token, which all responses share, and one for each longer prefix of each response.
    states = [(0.6 * u - 0.3 * v).clone().requires_grad_() for _ in range(1 + 3 * (length - 1))]

    def logp(response: int) -> Tensor:
        own = [states[0], *states[1 + response * (length - 1) : 1 + (response + 1) * (length - 1)]]
        return torch.stack([(weights @ state).log_softmax(0)[response] for state in own]).sum()

    objective = make_objective({"kind": "dpo", "beta": BETA})
    with torch.no_grad():
        ref_chosen, ref_rejected = (logp(side)[None] for side in (CHOSEN, REJECTED))
        first = [float(logp(side).exp()) for side in (CHOSEN, OPPOSITE)]
    optimiser = torch.optim.SGD([weights, *states], LEARNING_RATE)
    losses = []
    for _ in range(STEPS + 1):
        loss = objective(PairScores(logp(CHOSEN)[None], logp(REJECTED)[None], ref_chosen, ref_rejected)).mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
        optimiser.step()
    with torch.no_grad():
        last = [float(logp(side).exp()) for side in (CHOSEN, OPPOSITE)]
    return {
        "chosen before": first[0],
        "chosen after": last[0],
        "opposite before": first[1],
        "opposite after": last[1],
        "loss before": losses[0],
        "loss after": losses[-1],
    }


class Samples:
    """Pairs of responses with hidden states that resemble each other more or less.

    Args:
        generator: of everything.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.weights = 0.5 * self.normal(WORDS, WIDTH)
        direction = self.normal(WIDTH)
        self.mean = ANISOTROPY * WIDTH**0.5 * direction / direction.norm()

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def one(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens of chosen and rejected response, and the states before each."""
        while True:
            sizes = torch.randint(3, 9, (2,), generator=self.generator).tolist()
            alike = float(torch.rand(1, generator=self.generator, dtype=torch.float64))
            chosen = self.mean + self.normal(sizes[0], WIDTH)
            like = alike * chosen[torch.arange(sizes[1]) % sizes[0]] + (1 - alike) * self.mean
            rejected = like + (1 - alike**2) ** 0.5 * self.normal(sizes[1], WIDTH)
            rejected[0] = chosen[0]  # the prompt's state is that of both
            ids = [
                torch.multinomial((states @ self.weights.T).softmax(1), 1, generator=self.generator).squeeze(1)
                for states in (chosen, rejected)
            ]
            if ids[0][0] != ids[1][0]:
                return ids[0], ids[1], chosen, rejected


def autodiff_rate(weights: Tensor, ids: Sequence[Tensor], states: Sequence[Tensor]) -> float:
    """The rate of the chosen response's log-probability by automatic differentiation, for l' = -1."""
    weights = weights.clone().requires_grad_()
    first, *rest = (state.clone().requires_grad_() for state in (states[0][0], *states[0][1:], *states[1][1:]))
    own = rest[: len(states[0]) - 1], rest[len(states[0]) - 1 :]
    leaves = [weights, first, *rest]

    def logp(side: int) -> Tensor:
        each = torch.stack([first, *own[side]]) @ weights.T
        return each.log_softmax(1).gather(1, ids[side][:, None]).sum()

    chosen, rejected = logp(0), logp(1)
    ours = torch.autograd.grad(chosen, leaves, retain_graph=True, materialize_grads=True)
    descent = torch.autograd.grad(chosen - rejected, leaves, materialize_grads=True)
    return sum(float((one * two).sum()) for one, two in zip(ours, descent, strict=True))


def ranked(generator: torch.Generator) -> dict[str, float]:
    """Rank correlations of each score with the rate of Theorem 6, and the formula's error."""
    samples = Samples(generator)
    rates, columns, error = [], [], 0.0
    for index in range(SAMPLES):
        ids_c, ids_r, chosen, rejected = samples.one()
        rate = float(multi_token_rate(samples.weights, ids_c, ids_r, chosen, rejected).chosen_rate)
        if index < 20:
            error = max(error, abs(rate - autodiff_rate(samples.weights, (ids_c, ids_r), (chosen, rejected))))
        rates.append(rate)
        lengths = (torch.tensor([len(ids)]) for ids in (ids_c, ids_r))
        columns.append(
            [
                float(ches_from_sums(chosen.sum(0)[None], rejected.sum(0)[None], *lengths)),
                float(last_hidden_similarity(chosen[-1:], rejected[-1:])),
                -normalized_edit_distance(ids_c.tolist(), ids_r.tolist()),
            ]
        )
    found = {
        name: correlations(np.array(columns)[:, place], rates).spearman
        for place, name in enumerate(("CHES", "last hidden", "edit distance"))
    }
    return {**found, "best baseline": min(found["last hidden"], found["edit distance"]), "error of rates": error}


def run(seed: int) -> Figures:
    """Probabilities before and after, in one token and in two, and rank correlations."""
    generator = torch.Generator().manual_seed(seed)
    figures = {f"{name}, {length}": value for length in (1, 2) for name, value in displaced(generator, length).items()}
    return {**figures, **ranked(generator), "bound of correlation": -0.25, "bound of error": 1e-8}


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Rank correlations with the rate of the chosen response's log-probability."""
    names = ("CHES", "last hidden", "edit distance")
    return bars({name: figures[name] for name in names}, title="Score against rate", x="Spearman correlation")


CLAIMS = [
    Claim(
        "one token: the preferred response loses at least 0.2 of probability on every seed",
        "chosen after, 1",
        "chosen before, 1",
        lambda after, before: bool((before - after >= 0.2).all()),
    ),
    Claim(
        "one token: the opposite one gains at least 0.3 on every seed",
        "opposite after, 1",
        "opposite before, 1",
        lambda after, before: bool((after - before >= 0.3).all()),
    ),
    Claim(
        "two tokens: the preferred response becomes less likely on every seed",
        "chosen after, 2",
        "chosen before, 2",
        lambda after, before: bool((after < before).all()),
    ),
    Claim(
        "two tokens: the opposite one becomes more likely on every seed",
        "opposite after, 2",
        "opposite before, 2",
        lambda after, before: bool((after > before).all()),
    ),
    *(
        Claim(
            f"{words}: all the while the loss falls",
            f"loss after, {length}",
            f"loss before, {length}",
            lambda after, before: bool((after < before).all()),
        )
        for length, words in ((1, "one token"), (2, "two tokens"))
    ),
    Claim(
        "CHES ranks samples by their rate: correlation of at most -0.25",
        "CHES",
        "bound of correlation",
        lambda found, bound: found.mean() <= bound.mean(),
    ),
    Claim(
        "and better than both baselines by at least 0.1",
        "CHES",
        "best baseline",
        lambda found, other: found.mean() <= other.mean() - 0.1,
    ),
    Claim(
        "the rates of Theorem 6 are those of automatic differentiation",
        "error of rates",
        "bound of error",
        lambda error, bound: bool((error < bound).all()),
    ),
]

RECIPE = Recipe(
    slug="ches",
    title="Likelihood displacement in DPO, and a score that predicts it",
    year=2024,
    paper="arXiv 2410.08847",
    parts={"objective": {"kind": "dpo", "beta": 0.1, "regularisers": [{"kind": "sft", "weight": 0.1}]}},
    experiment=Experiment(run, CLAIMS, plot, seeds=5, quick_seeds=1),
)
