"""InPO: alignment at the states that belong to the preferred samples needs fewer updates than at random states.

The same pairs and the same loss, once at states with random noise and once at inverted ones. That an inverted state
belongs to its sample is seen by decoding it again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prefkit.diagnostics import Interval
from prefkit.diffusion import InversionOptions, ddim_invert, sample
from prefkit.objectives import make_objective
from prefkit.recipes import ring
from prefkit.recipes.recipe import Claim, Experiment, Illustrated, Recipe
from prefkit.report.plots import Curve, Plot, curves

PAIRS, SAMPLES, BETA = 6000, 3000, 100.0
UPDATES: Mapping[str, tuple[int, ...]] = {"forward": (25, 50, 100, 200), "inverted": (25, 50, 100)}
GRIDS = (5, 10, 20)


def run(seed: int) -> Illustrated:
    """Reward and share on the manifold after some updates, and how well inverted states decode."""
    generator = torch.Generator().manual_seed(2000 + seed)
    base = ring.base(seed)
    pairs = ring.pairs_of(base, PAIRS, generator, sharpness=None)
    samples = {"base": ring.draw(base, SAMPLES, generator)}
    figures = ring.measured("base", samples["base"])
    for name, after in UPDATES.items():

        def measure(number: int, model: ring.Denoiser, name: str = name, after: tuple[int, ...] = after) -> None:
            if number in after:
                found = samples[f"{name} {number}"] = ring.draw(model, SAMPLES, generator)
                figures.update(ring.measured(f"{name} {number}", found))

        ring.align(
            base,
            pairs,
            make_objective({"kind": "dpo", "beta": BETA}),
            generator,
            updates=max(after),
            after=measure,
            latents="forward" if name == "forward" else "ddim",
            inversion=InversionOptions(steps=5),
            first_step=1,
        )
    x0, last = pairs.chosen[:1000], torch.full((1000,), ring.STEPS - 1)
    for count in GRIDS:
        state = ddim_invert(base, x0, last, ring.SCHEDULE, count=count)
        figures[f"distance {count} steps"] = distance(base, state, x0)
    noise = torch.randn(x0.shape, generator=generator)
    figures["distance random noise"] = distance(base, ring.SCHEDULE.add_noise(x0, noise, last), x0)
    figures["farthest that counts"] = 0.25
    figures["least share that counts"] = 0.80
    shown = ("base", "forward 50", "forward 200", "inverted 50")
    return Illustrated(figures, ring.pictures({name: samples[name] for name in shown}))


def distance(model: ring.Denoiser, state: torch.Tensor, x0: torch.Tensor) -> float:
    """Mean distance of decoded states from where they came from."""
    return float((sample(model, state, ring.SCHEDULE, count=50).sample - x0).norm(dim=1).mean())


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Reward over updates."""
    lines = {}
    for name, after in UPDATES.items():
        found = [figures["base reward"], *(figures[f"{name} {number} reward"] for number in after)]
        columns = ([getattr(each, what) for each in found] for what in ("mean", "low", "high"))
        lines[name] = Curve([0, *after], *columns)
    return curves(lines, title="Reward in the course of alignment", x="updates", y="mean reward")


CLAIMS = [
    Claim(
        "50 updates at inverted states: as much reward as 200 at random ones",
        "inverted 50 reward",
        "forward 200 reward",
        lambda a, b: a.mean() >= b.mean(),
    ),
    Claim(
        "50 updates: reward 0.15 above that at random states",
        "inverted 50 reward",
        "forward 50 reward",
        lambda a, b: a.mean() >= b.mean() + 0.15,
    ),
    Claim(
        "25 updates at inverted states: share on the manifold at least 0.80",
        "inverted 25 on manifold",
        "least share that counts",
        lambda a, b: a.mean() >= b.mean(),
    ),
    Claim(
        "5 inversion steps: decoded within 0.25",
        "distance 5 steps",
        "farthest that counts",
        lambda a, b: a.mean() < b.mean(),
    ),
    Claim(
        "10 inversion steps decode nearer than 5",
        "distance 10 steps",
        "distance 5 steps",
        lambda a, b: a.mean() < b.mean(),
    ),
    Claim(
        "20 inversion steps decode nearer than 10",
        "distance 20 steps",
        "distance 10 steps",
        lambda a, b: a.mean() < b.mean(),
    ),
    Claim(
        "random noise decodes farther than 1 away",
        "distance random noise",
        "distance 5 steps",
        lambda a, b: a.mean() > 1,
    ),
]

RECIPE = Recipe(
    slug="inpo",
    title="Diffusion preference optimisation along inverted trajectories",
    year=2025,
    paper="arXiv 2503.18454",
    parts={
        "objective": {"kind": "dpo", "beta": 2000.0},
        "scores": {"latents": "ddim", "inversion": {"steps": 10, "eta": 0.1}},
    },
    experiment=Experiment(run, CLAIMS, plot, seeds=3, quick_seeds=1),
)
