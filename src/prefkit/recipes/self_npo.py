"""Self-NPO and Diffusion-NPO: a model of what is disliked, in the negative branch of guidance.

First on preferences: weights trained on exchanged pairs guide the base model, and an aligned one even more. Then
without any data: a poor model fine-tuned on its own truncated runs guides itself, where its own unconditional branch
would only do harm.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prefkit.diagnostics import Interval
from prefkit.diffusion import NegativeGuidance, TruncatedFineTuning, guidance_variance, sample
from prefkit.objectives import make_objective
from prefkit.recipes import ring
from prefkit.recipes.recipe import Claim, Experiment, Illustrated, Recipe
from prefkit.report.plots import Plot, bars

PAIRS, UPDATES, SAMPLES, BETA, SCALE = 6000, 600, 3000, 60.0, 2.0
SCALES = (1.25, 1.5)


def run(seed: int) -> Illustrated:
    """Rewards under guidance, and scores of a conditional model with negative branches of both kinds."""
    generator = torch.Generator().manual_seed(5000 + seed)
    base = ring.base(seed)
    pairs = ring.pairs_of(base, PAIRS, generator)
    dpo = {"kind": "dpo", "beta": BETA}
    positive = ring.align(base, pairs, make_objective(dpo), generator, updates=UPDATES)
    exchanged = ring.Pairs(pairs.rejected, pairs.chosen)
    negative = ring.align(base, exchanged, make_objective(dpo), generator, updates=UPDATES)
    models = {
        "base": base,
        "NPO": negative,
        "DPO": positive,
        "base | NPO": NegativeGuidance(base, negative, SCALE),
        "DPO | base": NegativeGuidance(positive, base, SCALE),
        "DPO | NPO": NegativeGuidance(positive, negative, SCALE),
    }
    samples, figures = {}, {}
    for name, model in models.items():
        cond = (None, None) if isinstance(model, NegativeGuidance) else None
        samples[name] = ring.draw(model, SAMPLES, generator, cond)
        figures.update(ring.measured(name, samples[name]))
    figures.update(correlations(models, samples["base"], generator))
    figures.update(without_data(seed, generator))
    shown = ("base", "NPO", "DPO", "base | NPO", "DPO | NPO")
    return Illustrated(figures, ring.pictures({name: samples[name] for name in shown}))


def correlations(
    models: Mapping[str, torch.nn.Module], x0: torch.Tensor, generator: torch.Generator
) -> dict[str, float]:
    """How alike both branches predict, and the variance that guidance with that correlation would have."""
    t = torch.randint(ring.STEPS, (len(x0),), generator=generator)
    x_t = ring.SCHEDULE.add_noise(x0, torch.randn(x0.shape, generator=generator), t)
    found = {}
    with torch.no_grad():
        for first, second in (("base", "NPO"), ("DPO", "NPO")):
            both = torch.stack([models[first](x_t, t).flatten(), models[second](x_t, t).flatten()])
            rho = float(torch.corrcoef(both)[0, 1])
            found[f"correlation {first}, {second}"] = rho
            found[f"variance {first}, {second}"] = guidance_variance(SCALE - 1, rho)
    return found


def without_data(seed: int, generator: torch.Generator) -> dict[str, float]:
    """Share of samples on the right mode, of a conditional model that was trained too little."""
    base = ring.fresh(seed, given=ring.MODES, hidden=64)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        modes = torch.randint(ring.MODES, (512,), generator=generator)
        kept = torch.rand(512, 1, generator=generator) >= 0.2
        return ring.points(512, generator, modes), one_hot(modes) * kept

    ring.pretrain(base, batch, generator, updates=700)
    base.requires_grad_(False)
    student = ring.fresh(seed, given=ring.MODES, hidden=64)
    student.load_state_dict(base.state_dict())
    loop = TruncatedFineTuning(student, ring.SCHEDULE)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=1e-3)
    for _ in range(300):
        modes = torch.randint(ring.MODES, (256,), generator=generator)
        losses = loop.losses((256, 2), generator, cond=one_hot(modes), uncond=torch.zeros(256, ring.MODES))
        optimiser.zero_grad()
        losses.mean().backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        loop.after_update()

    figures = {
        "conditional": score(base, generator),
        "student": score(student.requires_grad_(False), generator),
    }
    for scale in SCALES:
        figures[f"own branch {scale}"] = score(NegativeGuidance(base, base, scale), generator)
        figures[f"Self-NPO {scale}"] = score(NegativeGuidance(base, student, scale), generator)
    return figures


def score(model: torch.nn.Module, generator: torch.Generator) -> float:
    """Share of conditional samples within four standard deviations of the mode that was asked for."""
    modes = torch.arange(SAMPLES) % ring.MODES
    given = one_hot(modes)
    cond = (given, torch.zeros_like(given)) if isinstance(model, NegativeGuidance) else given
    noise = torch.randn(SAMPLES, 2, generator=generator)
    x = sample(model, noise, ring.SCHEDULE, cond=cond, eta=1.0, generator=generator).sample
    return float(((x - ring.CENTRES[modes]).norm(dim=1) < 4 * ring.SPREAD).double().mean())


def one_hot(modes: torch.Tensor) -> torch.Tensor:
    """The condition of a mode."""
    return torch.nn.functional.one_hot(modes, ring.MODES).float()


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Rewards with preferences, scores without data."""
    rewards = {f"{name}, reward": figures[f"{name} reward"] for name in ("base", "NPO", "DPO")}
    rewards |= {f"{name}, reward": figures[f"{name} reward"] for name in ("base | NPO", "DPO | base", "DPO | NPO")}
    scores = {name: figures[name] for name in ("conditional", "student")}
    scores |= {f"{kind} {scale}": figures[f"{kind} {scale}"] for kind in ("own branch", "Self-NPO") for scale in SCALES}
    return bars({**rewards, **scores}, title="Reward under guidance; share on the right mode", x="reward, share")


CLAIMS = [
    Claim("NPO alone: reward 0.3 below the base", "NPO reward", "base reward", lambda a, b: (a <= b - 0.3).all()),
    Claim(
        "base guided by NPO: reward 0.3 above the base",
        "base | NPO reward",
        "base reward",
        lambda a, b: (a >= b + 0.3).all(),
    ),
    Claim(
        "DPO guided by the base: 0.1 above DPO", "DPO | base reward", "DPO reward", lambda a, b: (a >= b + 0.1).all()
    ),
    Claim(
        "DPO guided by NPO: 0.08 above DPO guided by the base",
        "DPO | NPO reward",
        "DPO | base reward",
        lambda a, b: (a >= b + 0.08).all(),
    ),
    Claim("Self-NPO's student alone: 0.3 below the base", "student", "conditional", lambda a, b: (a <= b - 0.3).all()),
    Claim(
        "guided by the student: 0.03 above the conditional model",
        "Self-NPO 1.25",
        "conditional",
        lambda a, b: (a >= b + 0.03).all(),
    ),
    Claim(
        "guided by the student: 0.08 above its own empty branch",
        "Self-NPO 1.25",
        "own branch 1.25",
        lambda a, b: (a >= b + 0.08).all(),
    ),
]

RECIPE = Recipe(
    slug="self-npo",
    title="A negative diffusion model made without data",
    year=2025,
    paper="arXiv 2505.11777",
    parts={
        "negative": {"objective": {"kind": "dpo", "beta": 500.0}, "convention": "diffusers", "pairs": "exchanged"},
        "truncated": {"count": 25, "steps": 5, "guidance": -5.0, "start": "noise", "decay": 0.999, "huber_c": 0.001},
        "guidance": {"alpha": 1.0, "beta": 1.0, "scale": 7.5},
    },
    experiment=Experiment(run, CLAIMS, plot, seeds=4, quick_seeds=1),
)
