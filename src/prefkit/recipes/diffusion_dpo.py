"""Diffusion-DPO: a denoiser that follows preferences of its own samples, without a reward model.

Known answer: the reward of a point of the ring is its first coordinate. The weaker the regularisation, the more reward;
labels drawn at random teach nothing. The same scores also serve other objectives, with their corrections and weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prefkit.diagnostics import Interval
from prefkit.objectives import make_objective
from prefkit.recipes import ring
from prefkit.recipes.recipe import Claim, Experiment, Illustrated, Recipe
from prefkit.report.plots import Plot, bars

BETAS = (20, 100, 500)
PAIRS, UPDATES, SAMPLES, FLIPS = 6000, 400, 3000, 0.3
OTHERS: Mapping[str, tuple[bool, Mapping[str, Any]]] = {
    "IPO": (False, {"kind": "ipo", "beta": 2.0}),
    "MADPO": (False, {"kind": "madpo", "beta": 20.0, "tau": 3.0}),
    "DPO, flips": (True, {"kind": "dpo", "beta": 20.0}),
    "rDPO, flips": (True, {"kind": "rdpo", "beta": 20.0, "flip_rate": FLIPS}),
    "LCPO, flips": (True, {"kind": "lcpo", "beta": 20.0, "reliability": 1 - FLIPS}),
}
"""Other objectives on the same scores: whether a share of the labels is flipped, and the objective."""


def run(seed: int) -> Illustrated:
    """Reward, modes and implicit accuracy of every method."""
    generator = torch.Generator().manual_seed(1000 + seed)
    base = ring.base(seed)
    pairs = ring.pairs_of(base, PAIRS, generator)
    samples = {"base": ring.draw(base, SAMPLES, generator)}
    figures = ring.measured("base", samples["base"])

    def add(name: str, model: ring.Denoiser, data: ring.Pairs | None = None) -> None:
        samples[name] = ring.draw(model, SAMPLES, generator)
        figures.update(ring.measured(name, samples[name]))
        figures[f"{name} wins"] = ring.wins(samples[name], samples["base"])
        if data is not None:
            # Of the labels that it has learned from.
            figures[f"{name} accuracy"] = ring.accuracy(model, base, data, generator)

    def imitate(model: ring.Denoiser) -> torch.Tensor:
        place = torch.randint(len(pairs), (256,), generator=generator)
        return ring.imitation(model, pairs.chosen[place], generator).mean()

    add("SFT", ring.tune(base, imitate, updates=UPDATES))
    for beta in BETAS:
        objective = make_objective({"kind": "dpo", "beta": float(beta)})
        add(f"DPO {beta}", ring.align(base, pairs, objective, generator, updates=UPDATES), pairs)
    coin = pairs.where(torch.rand(PAIRS, generator=generator) < 0.5)
    objective = make_objective({"kind": "dpo", "beta": 20.0})
    add("random labels", ring.align(base, coin, objective, generator, updates=UPDATES), coin)
    flipped = pairs.where(torch.rand(PAIRS, generator=generator) < FLIPS)
    for name, (noisy, config) in OTHERS.items():
        data, objective = flipped if noisy else pairs, make_objective(config)
        # A reward model's margins are log-odds: those of the choices that made the labels.
        fields = {"margins": 3 * (ring.reward(data.chosen) - ring.reward(data.rejected))}
        add(name, ring.align(base, data, objective, generator, updates=UPDATES, fields=fields), pairs)
    figures["least reward that counts"] = 0.8
    shown = ("base", "SFT", "DPO 20", "DPO 100")
    return Illustrated(figures, ring.pictures({name: samples[name] for name in shown}))


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Mean reward of every method."""
    shown = {name.removesuffix(" reward"): figures[name] for name in figures if name.endswith(" reward")}
    return bars(shown, title="Mean reward of samples after alignment", x="reward")


CLAIMS = [
    Claim("beta 20: reward at least 0.8", "DPO 20 reward", "least reward that counts", lambda a, b: (a >= b).all()),
    Claim("beta 20: reward 0.2 above SFT's", "DPO 20 reward", "SFT reward", lambda a, b: (a >= b + 0.2).all()),
    Claim("more reward at beta 20 than at 100", "DPO 20 reward", "DPO 100 reward", lambda a, b: (a > b).all()),
    Claim("more reward at beta 100 than at 500", "DPO 100 reward", "DPO 500 reward", lambda a, b: (a > b).all()),
    Claim("beta 100: all 8 modes kept", "DPO 100 modes", "base modes", lambda a, b: (a == 8).all()),
    Claim("beta 500: all 8 modes kept", "DPO 500 modes", "base modes", lambda a, b: (a == 8).all()),
    Claim(
        "beta 20: implicit accuracy at least 0.75",
        "DPO 20 accuracy",
        "random labels accuracy",
        lambda a, b: (a >= 0.75).all(),
    ),
    Claim(
        "random labels: reward within 0.2 of 0",
        "random labels reward",
        "base reward",
        lambda a, b: (abs(a) <= 0.2).all(),
    ),
    Claim(
        "random labels: accuracy between 0.45 and 0.55",
        "random labels accuracy",
        "DPO 20 accuracy",
        lambda a, b: ((a >= 0.45) & (a <= 0.55)).all(),
    ),
    Claim(
        "beta 20: share on the manifold at most 0.08 below the base",
        "DPO 20 on manifold",
        "base on manifold",
        lambda a, b: (a >= b - 0.08).all(),
    ),
]

RECIPE = Recipe(
    slug="diffusion-dpo",
    title="DPO for diffusion models, on denoising errors",
    year=2023,
    paper="arXiv 2311.12908",
    parts={"objective": {"kind": "dpo", "beta": 5000.0}, "scores": {"convention": "released", "latents": "forward"}},
    experiment=Experiment(run, CLAIMS, plot, seeds=3, quick_seeds=1),
)
