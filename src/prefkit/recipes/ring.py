"""The ring: samples in the plane and a small denoiser of them, on which the claims of diffusion methods are checked.

Eight modes on a circle and a reward that prefers the right-hand side: which modes a method keeps, how far it follows
the reward and whether its samples stay samples can all be seen at once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prefkit.diffusion import (
    InversionOptions,
    Schedule,
    denoising_error,
    linear_betas,
    noised,
    sample,
    score_of,
)
from prefkit.diffusion.noising import Latents
from prefkit.objectives import Objective, PairScores
from prefkit.report.plots import Plot, bars, histogram, panels

MODES, RADIUS, SPREAD = 8, 1.4, 0.12
STEPS = 100
SCHEDULE = Schedule.from_betas(linear_betas(STEPS, 1e-3, 0.12)).to("cpu", torch.float32)
ANGLES = 2 * math.pi * torch.arange(MODES) / MODES
CENTRES = RADIUS * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


class Denoiser(nn.Module):
    """A multilayer perceptron that predicts the noise in points.

    Args:
        dims: dimensions of a sample.
        given: dimensions of the condition; 0 for none.
        hidden: width.
    """

    def __init__(self, dims: int = 2, given: int = 0, hidden: int = 96) -> None:
        super().__init__()
        self.given = given
        self.first = nn.Linear(dims + given + 16, hidden)
        self.layers = nn.ModuleList([nn.Linear(hidden, hidden) for _ in range(2)])
        self.last = nn.Linear(hidden, dims)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Noise in `x_t` at steps `t`; without a condition it is all zeros."""
        phase = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(8) / 8)
        parts = [x_t, phase.sin(), phase.cos()]
        if self.given:
            parts.append(x_t.new_zeros(len(x_t), self.given) if cond is None else cond)
        hidden = nn.functional.silu(self.first(torch.cat(parts, 1)))
        for layer in self.layers:
            hidden = hidden + nn.functional.silu(layer(hidden))
        out: Tensor = self.last(hidden)
        return out


def points(count: int, generator: torch.Generator, modes: Int[Tensor, " n"] | None = None) -> Float[Tensor, "n 2"]:
    """Points of the ring, of random modes by default."""
    if modes is None:
        modes = torch.randint(MODES, (count,), generator=generator)
    return CENTRES[modes] + SPREAD * torch.randn(count, 2, generator=generator)


def fresh(seed: int, **shape: int) -> Denoiser:
    """An untrained denoiser."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Denoiser(**shape)


def pretrain(
    model: Denoiser,
    batch: Callable[[], tuple[Tensor, Tensor | None]],
    generator: torch.Generator,
    *,
    updates: int = 3000,
    learning_rate: float = 2e-3,
) -> None:
    """Learn the distribution that a batch is drawn from, with a learning rate that falls as a cosine."""
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        x0, cond = batch()
        losses = imitation(model, x0, generator, cond)
        optimiser.zero_grad()
        losses.mean().backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
        optimiser.step()
        falling.step()


@lru_cache(maxsize=8)
def base(seed: int) -> Denoiser:
    """The model of the ring that every method starts from; do not change it."""
    generator = torch.Generator().manual_seed(seed)
    model = fresh(seed)
    pretrain(model, lambda: (points(512, generator), None), generator)
    return model.requires_grad_(False)


def draw(
    model: Callable[..., Tensor], count: int, generator: torch.Generator, cond: Any = None
) -> Float[Tensor, "n 2"]:
    """Samples of the ancestral sampler."""
    noise = torch.randn(count, 2, generator=generator)
    return sample(model, noise, SCHEDULE, cond=cond, eta=1.0, generator=generator).sample


def reward(x: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    """What is preferred: points to the right."""
    return x[:, 0]


@dataclass(frozen=True)
class Pairs:
    """Pairs of points, the better one first."""

    chosen: Float[Tensor, "n 2"]
    rejected: Float[Tensor, "n 2"]

    def __len__(self) -> int:
        return len(self.chosen)

    def where(self, swapped: Tensor) -> Pairs:
        """The same pairs with some exchanged."""
        mask = swapped[:, None]
        return Pairs(torch.where(mask, self.rejected, self.chosen), torch.where(mask, self.chosen, self.rejected))


def labelled(first: Tensor, second: Tensor, generator: torch.Generator, sharpness: float | None = 3.0) -> Pairs:
    """Pairs of two points, ordered by the reward: a Bradley-Terry choice, or without noise if `sharpness` is None."""
    gap = reward(first) - reward(second)
    if sharpness is None:
        loses = gap <= 0
    else:
        loses = torch.rand(len(first), generator=generator) >= torch.sigmoid(sharpness * gap)
    return Pairs(first, second).where(loses)


def pairs_of(model: Denoiser, count: int, generator: torch.Generator, sharpness: float | None = 3.0) -> Pairs:
    """Pairs of samples of a model."""
    first, second = draw(model, 2 * count, generator).chunk(2)
    return labelled(first, second, generator, sharpness)


def pair_scores(
    model: Denoiser,
    reference: Denoiser,
    chosen: Tensor,
    rejected: Tensor,
    generator: torch.Generator,
    *,
    latents: Latents = "forward",
    inversion: InversionOptions | None = None,
    first_step: int = 0,
    **more: Any,
) -> PairScores:
    """Scores of pairs at one step and, unless they are inverted, one draw of noise a pair.

    Args:
        model: the policy.
        reference: the frozen model.
        chosen: better points.
        rejected: worse points.
        generator: source of randomness.
        latents: see `prefkit.diffusion.noised`; the policy inverts.
        inversion: how.
        first_step: least step that is drawn.
        more: further fields of the scores.
    """
    t = torch.randint(first_step, STEPS, (len(chosen),), generator=generator).repeat(2)
    noise = torch.randn(chosen.shape, generator=generator).repeat(2, 1)
    x0 = torch.cat([chosen, rejected])
    x_t, target = noised(x0, t, noise, SCHEDULE, latents=latents, model=model, inversion=inversion)
    policy = score_of(denoising_error(model(x_t, t), target))
    with torch.no_grad():
        frozen = score_of(denoising_error(reference(x_t, t), target))
    (better, worse), (ref_better, ref_worse) = policy.chunk(2), frozen.chunk(2)
    return PairScores(better, worse, ref_better, ref_worse, **more)


def imitation(
    model: Denoiser, x0: Tensor, generator: torch.Generator, cond: Tensor | None = None
) -> Float[Tensor, " n"]:
    """Denoising errors at random steps, the loss of ordinary training."""
    t = torch.randint(STEPS, (len(x0),), generator=generator)
    x_t, target = noised(x0, t, torch.randn(x0.shape, generator=generator), SCHEDULE)
    return denoising_error(model(x_t, t, cond), target)


def tune(
    start: Denoiser,
    loss: Callable[[Denoiser], Float[Tensor, ""]],
    *,
    updates: int,
    learning_rate: float = 3e-4,
    after: Callable[[int, Denoiser], None] | None = None,
    weights: Callable[[Denoiser], list[nn.Parameter]] | None = None,
    optimiser: type[torch.optim.Optimizer] = torch.optim.Adam,
    **how: Any,
) -> Denoiser:
    """Fine-tune a copy of a model with gradients clipped to norm 1.

    Args:
        start: is left as it is.
        loss: of the copy, computed anew for each update.
        updates: their number.
        learning_rate: of the optimiser.
        after: called after each update with its number, from 1.
        weights: what is trained; all weights by default.
        optimiser: Adam by default.
        how: further options of the optimiser.
    """
    model = copy.deepcopy(start).requires_grad_(True)
    trained = list(model.parameters()) if weights is None else weights(model)
    steps = optimiser(trained, lr=learning_rate, **how)  # type: ignore[call-arg]  # every optimiser of torch takes it
    for number in range(1, updates + 1):
        steps.zero_grad()
        loss(model).backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
        nn.utils.clip_grad_norm_(trained, 1.0)
        steps.step()
        if after is not None:
            after(number, model)
    return model


def align(
    reference: Denoiser,
    pairs: Pairs,
    objective: Objective[Any],
    generator: torch.Generator,
    *,
    updates: int,
    batch: int = 256,
    fields: Mapping[str, Tensor] | None = None,
    after: Callable[[int, Denoiser], None] | None = None,
    **how: Any,
) -> Denoiser:
    """Fine-tune a model on pairs with an objective.

    Args:
        reference: where it starts, and the frozen reference.
        pairs: the data.
        objective: takes pairs.
        generator: source of randomness.
        updates: of the model.
        batch: pairs an update.
        fields: further fields of the scores, one value a pair.
        after: called after each update with its number.
        how: options of `pair_scores`.
    """
    objective.prepare()

    def loss(model: Denoiser) -> Tensor:
        place = torch.randint(len(pairs), (batch,), generator=generator)
        more: dict[str, Any] = {name: values[place] for name, values in (fields or {}).items()}
        scores = pair_scores(model, reference, pairs.chosen[place], pairs.rejected[place], generator, **how, **more)
        return objective(scores).mean()

    def told(number: int, model: Denoiser) -> None:
        objective.after_update()
        if after is not None:
            after(number, model)

    return tune(reference, loss, updates=updates, after=told)


def accuracy(model: Denoiser, reference: Denoiser, pairs: Pairs, generator: torch.Generator, draws: int = 16) -> float:
    """Share of pairs in which the implicit reward, a mean over draws of step and noise, is greater for the better."""
    total = torch.zeros(len(pairs))
    with torch.no_grad():
        for _ in range(draws):
            scores = pair_scores(model, reference, pairs.chosen, pairs.rejected, generator)
            assert scores.ref_chosen_logps is not None
            assert scores.ref_rejected_logps is not None
            total += scores.policy_chosen_logps - scores.ref_chosen_logps
            total -= scores.policy_rejected_logps - scores.ref_rejected_logps
    return float((total > 0).double().mean())


def mode_shares(x: Float[Tensor, "n 2"]) -> Float[Tensor, " modes"]:
    """Share of the points that are nearest to each mode."""
    return torch.bincount(torch.cdist(x, CENTRES).argmin(1), minlength=MODES) / len(x)


def modes_kept(x: Float[Tensor, "n 2"]) -> float:
    """Modes with more than 2% of the points."""
    return float((mode_shares(x) > 0.02).sum())


def on_manifold(x: Float[Tensor, "n 2"]) -> float:
    """Share of the points within four standard deviations of a mode."""
    return float((torch.cdist(x, CENTRES).amin(1) < 4 * SPREAD).double().mean())


def wins(x: Float[Tensor, "n 2"], others: Float[Tensor, "n 2"]) -> float:
    """Share of random pairings in which a point has more reward than the other."""
    return float((reward(x) > reward(others)).double().mean())


def measured(name: str, x: Float[Tensor, "n 2"]) -> dict[str, float]:
    """Reward, modes and share on the manifold of samples, as figures."""
    return {
        f"{name} reward": float(reward(x).mean()),
        f"{name} modes": modes_kept(x),
        f"{name} on manifold": on_manifold(x),
    }


def pictures(samples: Mapping[str, Float[Tensor, "n 2"]]) -> dict[str, Plot]:
    """The samples, their rewards, and the modes that they cover."""
    arrays = {name: x.numpy() for name, x in samples.items()}
    coverage = {
        f"{name}, mode {mode}": share
        for name, x in samples.items()
        for mode, share in enumerate(mode_shares(x).tolist())
    }
    return {
        "samples": panels(arrays, title="Samples of the first seed"),
        "rewards": histogram({name: x[:, 0] for name, x in arrays.items()}, title="Rewards of the samples", x="reward"),
        "modes": bars(coverage, title="Share of the samples at each mode", x="share"),
    }
