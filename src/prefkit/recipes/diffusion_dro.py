"""Diffusion-DRO: a model learns from a few experts' samples alone, and its own samples are what it must do better than.

The threshold is what keeps it from copying the experts: without it, or with negatives that are never drawn anew, modes
are lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prefkit.diagnostics import Interval
from prefkit.diffusion import RankedDemonstrations, select_experts
from prefkit.recipes import ring
from prefkit.recipes.recipe import Claim, Experiment, Illustrated, Recipe
from prefkit.report.plots import Plot, bars

POOL, EXPERTS, UPDATES, BATCH, RUNS, SAMPLES = 4000, 50, 300, 64, 32, 3000
METHODS: Mapping[str, tuple[float | None, bool]] = {
    "margin 0": (0.0, True),
    "DRO": (0.1, True),
    "no threshold": (None, True),
    "stale policy": (0.1, False),
}
"""Margin of the threshold, and whether the policy that gives the negatives is refreshed."""


def run(seed: int) -> Illustrated:
    """Reward, modes and wins of every method."""
    generator = torch.Generator().manual_seed(4000 + seed)
    base = ring.base(seed)
    pool = ring.draw(base, POOL, generator)
    experts = pool[select_experts(ring.reward(pool), EXPERTS)[0]]
    samples = {"base": ring.draw(base, SAMPLES, generator)}
    figures = ring.measured("base", samples["base"])

    def imitate(model: ring.Denoiser) -> torch.Tensor:
        place = torch.randint(EXPERTS, (BATCH,), generator=generator)
        return ring.imitation(model, experts[place], generator).mean()

    models: dict[str, torch.nn.Module] = {"SFT": ring.tune(base, imitate, updates=UPDATES, optimiser=torch.optim.AdamW)}
    for name, (margin, refreshed) in METHODS.items():
        models[name], figures[f"{name} active"] = rank(base, experts, margin, refreshed, generator)
    for name, model in models.items():
        samples[name] = ring.draw(model, SAMPLES, generator)
        figures.update(ring.measured(name, samples[name]))
        figures[f"{name} wins"] = ring.wins(samples[name], samples["base"])
    figures["least that counts"] = 0.7
    shown = ("base", "DRO", "SFT", "no threshold", "stale policy")
    return Illustrated(figures, ring.pictures({name: samples[name] for name in shown}))


def rank(
    base: ring.Denoiser, experts: torch.Tensor, margin: float | None, refreshed: bool, generator: torch.Generator
) -> tuple[torch.nn.Module, float]:
    """Rank experts above the policy's own samples.

    Returns:
        The moving average of the trained weights, and the share of pairs that the threshold let through.
    """
    loops: list[RankedDemonstrations] = []
    active: list[float] = []

    def draw(place: torch.Tensor) -> tuple[torch.Tensor, None]:
        return experts[torch.randint(EXPERTS, (len(place),), generator=generator)], None

    def loss(model: ring.Denoiser) -> torch.Tensor:
        if not loops:
            refresh = 1 if refreshed else None
            how: dict[str, Any] = {"margin": margin, "refresh": refresh, "buffer": RUNS, "clamp": 3.0}
            loops.append(RankedDemonstrations(model, ring.SCHEDULE, **how))
        loops[0].explore((RUNS, 2), generator)
        value = loops[0].losses(draw, BATCH, generator).mean()
        active.append(loops[0].active)
        return value

    def after(number: int, model: ring.Denoiser) -> None:
        loops[0].after_update()

    ring.tune(base, loss, updates=UPDATES, after=after, optimiser=torch.optim.AdamW)
    return loops[0].average, sum(active) / len(active)


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Reward and modes of every method."""
    names = ("base", "SFT", *METHODS)
    shown: dict[str, Any] = {f"{name}, reward": figures[f"{name} reward"] for name in names}
    shown |= {f"{name}, modes": figures[f"{name} modes"] for name in names}
    return bars(shown, title="Mean reward, and modes that are kept of 8", x="reward, modes")


CLAIMS = [
    Claim("reward at least 0.7", "DRO reward", "least that counts", lambda a, b: (a >= b).all()),
    Claim("wins at least 0.7 against the base", "DRO wins", "least that counts", lambda a, b: (a >= b).all()),
    Claim("all 8 modes kept", "DRO modes", "base modes", lambda a, b: (a == 8).all()),
    Claim("SFT keeps 3 modes at most", "SFT modes", "DRO modes", lambda a, b: (a <= 3).all()),
    Claim(
        "without a threshold 3 modes at most are kept", "no threshold modes", "DRO modes", lambda a, b: (a <= 3).all()
    ),
    Claim("more reward than with a margin of 0", "DRO reward", "margin 0 reward", lambda a, b: (a > b).all()),
    Claim("more reward without a threshold", "no threshold reward", "DRO reward", lambda a, b: (a > b).all()),
    Claim(
        "a policy that is never refreshed keeps 6 at most",
        "stale policy modes",
        "DRO modes",
        lambda a, b: (a <= 6).all(),
    ),
]

RECIPE = Recipe(
    slug="diffusion-dro",
    title="Ranking expert images above a diffusion model's own",
    year=2025,
    paper="arXiv 2510.18353",
    parts={
        "objective": {"kind": "slic", "beta": 2.0, "gamma": 0.001},
        "negatives": {"steps": 20, "guidance": 1.0, "buffer": 4, "refresh": 1},
        "average": {"decay": 0.9999},
    },
    experiment=Experiment(run, CLAIMS, plot, seeds=3, quick_seeds=1),
)
