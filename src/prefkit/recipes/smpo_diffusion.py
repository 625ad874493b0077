"""SmPO: near ties, which teach nothing about the reward, take no part; and states are inverted with a correction.

In most pairs the second point is the first one's mirror image, of nearly the same reward but far away. Labels of people
order such pairs at random, a scorer orders them for no good reason, a smoothed label leaves them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prefkit.diagnostics import Interval
from prefkit.diffusion import InversionOptions
from prefkit.objectives import make_objective, smoothed_preference_prob, smoothing_coefficients
from prefkit.recipes import ring
from prefkit.recipes.recipe import Claim, Experiment, Illustrated, Recipe
from prefkit.report.plots import Plot, bars

PAIRS, MIRRORED, UPDATES, SAMPLES, BETA, GAMMA = 6000, 0.6, 100, 3000, 100.0, 10.0
METHODS: Mapping[str, tuple[str, bool, str]] = {
    "people, forward": ("people", False, "forward"),
    "people, inverted": ("people", False, "ddim"),
    "scorer, forward": ("scorer", False, "forward"),
    "scorer, ReNoise": ("scorer", False, "renoise"),
    "smoothed, forward": ("scorer", True, "forward"),
    "SmPO": ("scorer", True, "renoise"),
}
"""Who labels, whether labels are smoothed, and the states that are trained."""


def run(seed: int) -> Illustrated:
    """Reward and share on the manifold of every method."""
    generator = torch.Generator().manual_seed(3000 + seed)
    base = ring.base(seed)
    first, second = ring.draw(base, 2 * PAIRS, generator).chunk(2)
    mirrored = first * torch.tensor([1.0, -1.0]) + 0.02 * torch.randn(first.shape, generator=generator)
    second = torch.where(torch.rand(PAIRS, 1, generator=generator) < MIRRORED, mirrored, second)
    scores = ring.reward(first), ring.reward(second)
    low, high = float(torch.cat(scores).min()), float(torch.cat(scores).max())
    preference = smoothed_preference_prob(*scores, low, high)
    data = {
        "people": ring.labelled(first, second, generator, sharpness=1.0),
        "scorer": ring.Pairs(first, second).where(preference.winner == 1),
    }
    weight = float(smoothing_coefficients(preference.probability, GAMMA).coefficient.mean())
    samples = {"base": ring.draw(base, SAMPLES, generator)}
    figures = {**ring.measured("base", samples["base"]), "mean p": float(preference.probability.mean())}
    smoothed: dict[str, Any] = {"kind": "smpo", "beta": BETA / weight, "sensitivity": GAMMA, "score_range": high - low}
    for name, (judge, smooth, latents) in METHODS.items():
        pairs = data[judge]
        model = ring.align(
            base,
            pairs,
            make_objective(smoothed if smooth else {"kind": "dpo", "beta": BETA}),
            generator,
            updates=UPDATES,
            fields={"margins": ring.reward(pairs.chosen) - ring.reward(pairs.rejected)},
            latents=latents,
            inversion=InversionOptions(steps=5),
            first_step=1,
        )
        samples[name] = ring.draw(model, SAMPLES, generator)
        figures.update(ring.measured(name, samples[name]))
    figures["gradient of ties"] = gradient_of_ties(base, first, second, smoothed, generator)
    figures["nothing"] = 0.0
    figures["least share that counts"] = 0.65
    shown = ("base", "people, forward", "scorer, ReNoise", "SmPO")
    return Illustrated(figures, ring.pictures({name: samples[name] for name in shown}))


def gradient_of_ties(
    base: ring.Denoiser,
    first: torch.Tensor,
    second: torch.Tensor,
    config: Mapping[str, Any],
    generator: torch.Generator,
) -> float:
    """Norm of the gradient of pairs that the scorer finds equal."""
    found: list[float] = []

    def loss(model: ring.Denoiser) -> torch.Tensor:
        scores = ring.pair_scores(model, base, first[:256], second[:256], generator, margins=torch.zeros(256))
        value = make_objective(config)(scores).mean()
        gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        found.append(float(sum(gradient.norm() for gradient in gradients)))
        return value

    ring.tune(base, loss, updates=1)
    return found[0]


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Mean reward of every method."""
    shown = {name: figures[f"{name} reward"] for name in ("base", *METHODS)}
    return bars(shown, title=f"Mean reward after {UPDATES} updates", x="reward")


CLAIMS = [
    Claim(
        "reward 0.5 above people's labels at random states",
        "SmPO reward",
        "people, forward reward",
        lambda a, b: (a >= b + 0.5).all(),
    ),
    Claim(
        "reward 0.2 above the scorer's labels at inverted states",
        "SmPO reward",
        "scorer, ReNoise reward",
        lambda a, b: (a >= b + 0.2).all(),
    ),
    Claim(
        "smoothed labels at random states: reward 0.15 above people's labels",
        "smoothed, forward reward",
        "people, forward reward",
        lambda a, b: (a >= b + 0.15).all(),
    ),
    Claim(
        "share on the manifold at least 0.65",
        "SmPO on manifold",
        "least share that counts",
        lambda a, b: (a >= b).all(),
    ),
    Claim("a tie has no gradient at all", "gradient of ties", "nothing", lambda a, b: (a == b).all()),
]

RECIPE = Recipe(
    slug="smpo-diffusion",
    title="Smoothed labels for diffusion preference optimisation",
    year=2025,
    paper="arXiv 2506.02698",
    parts={
        "objective": {"kind": "smpo", "beta": 2000.0, "sensitivity": 10.0, "score_range": 0.16658},
        "scores": {"latents": "renoise", "inversion": {"steps": 9}},
    },
    experiment=Experiment(run, CLAIMS, plot, seeds=3, quick_seeds=1),
)
