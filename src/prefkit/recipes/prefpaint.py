"""PrefPaint: a reward that is fitted on few samples is trusted where it is certain, and learned from accordingly.

Inpainting in the plane: the first coordinate is known, the second is filled in. The true preference is known, so the
error of the reward, its bound and what reinforcement makes of it can be checked.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import torch
from scipy.stats import spearmanr
from torch import Tensor

from prefkit.diagnostics import Interval
from prefkit.diffusion import (
    AmplifiedPolicyGradient,
    RewardUncertainty,
    Trajectory,
    amplification,
    sample,
)
from prefkit.recipes import ring
from prefkit.recipes.recipe import Claim, Experiment, Illustrated, Recipe
from prefkit.report.plots import Plot, bars, scatter

LABELLED, NOISE, LAMBDA = 150, 0.15, 0.1
COUNT, BATCH, TRAINED, CLIP = 20, 128, 5, 0.1
K, B = 0.8, 0.7
GRID = torch.cartesian_prod(*[torch.linspace(-2, 2, 7)] * 2)
Amplified = Literal["gamma 1", "gamma 1.4", "uncertainty"]


def run(seed: int) -> Illustrated:
    """How well uncertainty tells the error, coverage of the bound, and rewards after fine-tuning."""
    generator = torch.Generator().manual_seed(6000 + seed)
    base = painter(seed)
    known = ring.points(LABELLED, generator)[:, :1]
    filled = fill(base, known, generator).sample
    features = gaussian_features(known, filled)
    fitted = RewardUncertainty(features, LAMBDA)
    weights = fitted.fit(preference(filled) + NOISE * torch.randn(LABELLED, generator=generator))

    queries = 4 * torch.rand(4000, 2, generator=generator) - 2
    z = gaussian_features(queries[:, :1], queries[:, 1:])
    error, u = (z @ weights - preference(queries[:, 1:])).abs(), fitted.norm(z)
    upper = u > u.median()
    figures = {
        "rank correlation": float(spearmanr(error, u).statistic),
        "rank correlation, released norm": float(spearmanr(error, fitted.norm(z, "released")).statistic),
        "error, certain half": float(error[~upper].mean()),
        "error, uncertain half": float(error[upper].mean()),
        "coverage": coverage(generator),
        "nothing": 0.0,
    }
    noise_seed = int(torch.randint(2**31, (1,), generator=generator))

    def tuned(how: Amplified, optimiser: type[torch.optim.Optimizer], rate: float, iterations: int) -> float:
        # The same random numbers for every factor.
        source = torch.Generator().manual_seed(noise_seed)
        model = reinforce(base, fitted, weights, how, optimiser, rate, iterations, source)
        return true_reward(model, source)

    figures["base reward"] = true_reward(base, generator)
    for how in ("gamma 1", "gamma 1.4", "uncertainty"):
        figures[f"AdamW, {how}"] = tuned(how, torch.optim.AdamW, 3e-4, 100)
        figures[f"SGD, {how}"] = tuned(how, torch.optim.SGD, 1e-3, 40)
    figures["SGD gain"] = figures["SGD, uncertainty"] - figures["SGD, gamma 1"]
    errors = scatter(
        u[:1000].numpy(), error[:1000].numpy(), title="Error of the reward", x_label="uncertainty", y_label="error"
    )
    source = torch.Generator().manual_seed(noise_seed)
    aligned = reinforce(base, fitted, weights, "uncertainty", torch.optim.AdamW, 3e-4, 100, source)
    given = ring.points(2000, source)[:, :1]
    clouds = {"base": base, "aligned": aligned}
    drawn = {name: torch.cat([given, fill(model, given, source).sample], 1) for name, model in clouds.items()}
    return Illustrated(figures, {**ring.pictures(drawn), "errors": errors})


def preference(filled: Tensor) -> Tensor:
    """What is truly preferred: a point further up."""
    return torch.tanh(filled[:, 0])


def gaussian_features(known: Tensor, filled: Tensor) -> Tensor:
    """Closeness to the points of a grid over the plane."""
    distance = torch.cdist(torch.cat([known, filled], 1), GRID)
    return torch.exp(-(distance**2) / (2 * 0.6**2))


@lru_cache(maxsize=8)
def painter(seed: int) -> ring.Denoiser:
    """A model of the second coordinate given the first; do not change it."""
    generator = torch.Generator().manual_seed(seed)
    model = ring.fresh(seed, dims=1, given=1)

    def batch() -> tuple[Tensor, Tensor]:
        x = ring.points(512, generator)
        return x[:, 1:], x[:, :1]

    ring.pretrain(model, batch, generator, updates=2500)
    return model.requires_grad_(False)


def fill(model: ring.Denoiser, known: Tensor, generator: torch.Generator) -> Trajectory:
    """Fill in the second coordinate with the stochastic sampler."""
    noise = torch.randn(len(known), 1, generator=generator)
    return sample(model, noise, ring.SCHEDULE, count=COUNT, cond=known, eta=1.0, generator=generator)


def true_reward(model: ring.Denoiser, generator: torch.Generator) -> float:
    """Mean true preference of what a model fills in."""
    return float(preference(fill(model, ring.points(4000, generator)[:, :1], generator).sample).mean())


def coverage(generator: torch.Generator, sets: int = 40) -> float:
    """Share of data sets in which the error bound holds for all queries at once, the reward being linear."""
    held = 0
    for _ in range(sets):
        points, queries = (4 * torch.rand(count, 2, generator=generator) - 2 for count in (LABELLED, 500))
        z, q = (gaussian_features(x[:, :1], x[:, 1:]).double() for x in (points, queries))
        truth = 0.2 * torch.randn(len(GRID), generator=generator, dtype=torch.float64)
        rewards = z @ truth + NOISE * torch.randn(LABELLED, generator=generator, dtype=torch.float64)
        fitted = RewardUncertainty(z, LAMBDA)
        error = (q @ (fitted.fit(rewards) - truth)).abs()
        held += bool((error <= fitted.bound(q, sigma=NOISE, S=float(truth.norm()), delta=0.05)).all())
    return held / sets


def reinforce(
    base: ring.Denoiser,
    fitted: RewardUncertainty,
    weights: Tensor,
    how: Amplified,
    optimiser: type[torch.optim.Optimizer],
    rate: float,
    iterations: int,
    generator: torch.Generator,
) -> ring.Denoiser:
    """Policy gradients on a few transitions of each run, with a factor a sample."""
    model = copy.deepcopy(base).requires_grad_(True)
    steps = optimiser(model.parameters(), lr=rate)  # type: ignore[call-arg]  # every optimiser of torch takes it

    def reward(filled: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        z = gaussian_features(known, filled)
        factors = torch.full((len(z),), 1.4 if how == "gamma 1.4" else 1.0)
        return z @ weights, amplification(fitted.norm(z), k=K, b=B) if how == "uncertainty" else factors

    loop = AmplifiedPolicyGradient(
        model, ring.SCHEDULE, reward, steps=COUNT, transitions=TRAINED, refresh=1, clip_range=CLIP
    )
    for _ in range(iterations):
        known = ring.points(BATCH, generator)[:, :1]
        for losses in loop.losses((BATCH, 1), generator, known):
            steps.zero_grad()
            losses.mean().backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
            steps.step()
    return model


def plot(figures: Mapping[str, Interval]) -> Plot:
    """True reward after fine-tuning."""
    names = ["base reward", *(name for name in figures if name.startswith(("AdamW,", "SGD,")))]
    return bars({name: figures[name] for name in names}, title="True reward after fine-tuning", x="mean of tanh(y)")


CLAIMS = [
    Claim(
        "uncertainty ranks errors, correlation at least 0.5",
        "rank correlation",
        "nothing",
        lambda a, b: (a >= 0.5).all(),
    ),
    Claim("the bound covers at least 0.95 of the data sets", "coverage", "nothing", lambda a, b: (a >= 0.95).all()),
    Claim(
        "AdamW, 100 iterations: reward 0.6 above the base",
        "AdamW, uncertainty",
        "base reward",
        lambda a, b: (a >= b + 0.6).all(),
    ),
    Claim(
        "SGD, 40 iterations: 0.03 above a factor of 1 on average",
        "SGD, uncertainty",
        "SGD, gamma 1",
        lambda a, b: (a - b).mean() >= 0.03,
    ),
    Claim(
        "SGD, 40 iterations: at most 0.02 below on any seed",
        "SGD, uncertainty",
        "SGD, gamma 1",
        lambda a, b: (a - b >= -0.02).all(),
    ),
]

RECIPE = Recipe(
    slug="prefpaint",
    title="Inpainting aligned with a reward, amplified where it is certain",
    year=2024,
    paper="arXiv 2410.21966",
    parts={
        "uncertainty": {"lam": 0.01, "norm": "released"},
        "amplification": {"k": 0.05, "b": 0.7, "lo": 1.0, "hi": 2.21},
        "loss": {"clip_range": 1e-4, "advantage_clip": 10.0, "transitions": 5, "sampler_steps": 50, "eta": 1.0},
    },
    experiment=Experiment(run, CLAIMS, plot, seeds=4, quick_seeds=1),
)
