"""Inversion: which noised sample belongs to a clean one under a model, instead of one that random noise gives.

The implicit sampler is run backwards, from the sample to the step that is to be trained. The noise that the inverted
sample then contains is the target of the losses. Nothing here has a gradient.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefkit.diffusion.sampling import NoiseModel, move
from prefkit.diffusion.schedules import Schedule, expand
from prefkit.errors import OptionError, unknown

Renoise = Literal["off", "every", "last"]
"""At which steps a prediction is corrected: at none (DDIM), at every one, or at the last."""


class Grid(NamedTuple):
    """Noise levels of an inversion, for each sample its own.

    Args:
        times: step that the model is told, `[n, batch]`.
        alpha_from: cumulative alpha before each step, `[n, batch]`.
        alpha_to: cumulative alpha after it; equal to `alpha_from` where a sample stays as it is.
    """

    times: Int[Tensor, "n batch"]
    alpha_from: Float[Tensor, "n batch"]
    alpha_to: Float[Tensor, "n batch"]


def inversion_grid(
    schedule: Schedule,
    t: Int[Tensor, " batch"],
    count: int,
    *,
    grid: Literal["per_sample", "released"] = "per_sample",
    offset: int = 1,
) -> Grid:
    """Levels from the clean sample to step t.

    Args:
        schedule: variance-preserving.
        t: the step to end at, in [1, T), one a sample.
        count: number of inversion steps; for "released" that of the whole grid.
        grid: `per_sample` cuts [0, t] into equal parts and ends at t. `released` is that of the published codes: a
            fixed grid, from which the steps that start below t are taken, so that the sample ends at the first level
            of the grid at or above t while the loss uses t.
        offset: first level above 0 of the released grid; 1 for Stable Diffusion.

    Raises:
        OptionError: t or count is out of range, or a level is pure noise.

    Source: Lu et al. 2025 (DDIM-InPO, arXiv 2503.18454) and its code.
    """
    if t.numel() and not (int(t.min()) > 0 and int(t.max()) < schedule.steps):
        raise OptionError(f"t must lie in [1, {schedule.steps}), got {int(t.min())} to {int(t.max())}")
    if not 1 <= count <= schedule.steps:
        raise OptionError(f"the number of inversion steps must lie in [1, {schedule.steps}], got {count}")
    alphas = schedule.alphas_cumprod.to(t.device)
    if grid == "per_sample":
        parts = torch.arange(count + 1, device=t.device, dtype=torch.float64) / count
        levels = (parts[:, None] * t[None]).round().long()
        found = torch.where(levels == 0, torch.ones((), dtype=alphas.dtype, device=t.device), alphas[levels])
        return Grid(levels[:-1], found[:-1], found[1:])
    if grid != "released":
        raise OptionError(unknown("grid", str(grid), ("per_sample", "released")))
    stride = schedule.steps // count
    starts = torch.arange(count, device=t.device) * stride + offset - stride
    times = starts[:, None].expand(-1, len(t))
    ends = (times + stride).clamp(max=schedule.steps - 1)
    before, after = alphas[times.clamp(min=0)], alphas[ends]
    return Grid(times, before, torch.where(times < t, after, before))


@torch.no_grad()
def invert(
    model: NoiseModel,
    x0: Float[Tensor, " batch *dims"],
    grid: Grid,
    cond: Any = None,
    *,
    eta: float = 0.0,
    noise: Float[Tensor, "n batch *dims"] | None = None,
    renoise: Renoise = "off",
    average: bool = True,
) -> Float[Tensor, " batch *dims"]:
    """Run the implicit sampler backwards along a grid.

    A corrected step predicts noise, makes the step, predicts again at where it led (with the same time) and makes the
    step anew with the mean of both predictions, or with the second alone.

    Args:
        model: predicts noise.
        x0: clean samples.
        grid: noise levels.
        cond: passed on to the model.
        eta: share of random noise added at each step.
        noise: standard normal, for eta > 0.
        renoise: which steps are corrected.
        average: take the mean of both predictions in a corrected step.

    Raises:
        OptionError: a cumulative alpha is 0 where it is divided by, or grows along the grid; noise is missing.

    Source: Lu et al. 2025 (DDIM-InPO, arXiv 2503.18454; SmPO-Diffusion, arXiv 2506.02698); ReNoise: Garibi et al. 2024
        (arXiv 2403.14602).
    """
    if not bool((grid.alpha_from > 0).all()):
        raise OptionError("inversion divides by the cumulative alpha, which is 0 at a step of this grid")
    if bool((grid.alpha_to > grid.alpha_from).any()):
        raise OptionError("inversion adds noise: cumulative alphas must not grow along the grid")
    if eta > 0 and (noise is None or len(noise) != len(grid.times)):
        raise OptionError(f"eta = {eta} needs noise for each of the {len(grid.times)} steps")
    if renoise not in ("off", "every", "last"):
        raise OptionError(unknown("renoise", str(renoise), ("off", "every", "last")))
    x = x0
    for place, (t, a, b) in enumerate(zip(*grid, strict=True)):
        eps = model(x, t, cond)
        if renoise == "every" or (renoise == "last" and place == len(grid.times) - 1):
            again = model(move(x, eps, a, b), t, cond)
            eps = (eps + again) / 2 if average else again
        moved = move(x, eps, a, b)
        if eta > 0 and noise is not None:
            variance = torch.where(b < a, (1 - a) / (1 - b).clamp(min=torch.finfo(b.dtype).tiny) * (1 - b / a), 0.0)
            moved = moved + eta * expand(variance.sqrt(), x) * noise[place]
        # Where the levels are equal the arithmetic would still round.
        x = torch.where(expand((a == b).to(x.dtype), x) > 0, x, moved)
    return x


def ddim_invert(
    model: NoiseModel,
    x0: Float[Tensor, " batch *dims"],
    t: Int[Tensor, " batch"],
    schedule: Schedule,
    cond: Any = None,
    *,
    count: int = 10,
    eta: float = 0.0,
    noise: Float[Tensor, "n batch *dims"] | None = None,
    grid: Literal["per_sample", "released"] = "per_sample",
) -> Float[Tensor, " batch *dims"]:
    """The sample at step t that belongs to a clean one; see `inversion_grid` and `invert`.

    Args:
        model: predicts noise.
        x0: clean samples.
        t: step to end at, one a sample.
        schedule: variance-preserving.
        cond: passed on to the model.
        count: inversion steps.
        eta: share of random noise; 0.1 in the released code.
        noise: standard normal, for eta > 0.
        grid: see `inversion_grid`.

    Source: Lu et al. 2025 (DDIM-InPO, arXiv 2503.18454).
    """
    return invert(model, x0, inversion_grid(schedule, t, count, grid=grid), cond, eta=eta, noise=noise)


def renoise_invert(
    model: NoiseModel,
    x0: Float[Tensor, " batch *dims"],
    t: Int[Tensor, " batch"],
    schedule: Schedule,
    cond: Any = None,
    *,
    count: int = 9,
    average: bool = True,
    every_step: bool = True,
    grid: Literal["per_sample", "released"] = "per_sample",
) -> Float[Tensor, " batch *dims"]:
    """`ddim_invert` with corrected predictions.

    Args:
        model: predicts noise.
        x0: clean samples.
        t: step to end at, one a sample.
        schedule: variance-preserving.
        cond: passed on to the model.
        count: inversion steps; 9 in the paper.
        average: mean of both predictions, as in the released code; False takes the second.
        every_step: correct each step, as the released code; False corrects the last, as the paper describes.
        grid: see `inversion_grid`.

    Source: Lu et al. 2025 (SmPO-Diffusion, arXiv 2506.02698).
    """
    levels = inversion_grid(schedule, t, count, grid=grid)
    return invert(model, x0, levels, cond, renoise="every" if every_step else "last", average=average)


def effective_noise(
    x_t: Float[Tensor, " batch *dims"],
    x0: Float[Tensor, " batch *dims"],
    abar_t: float | Float[Tensor, " batch"],
) -> Float[Tensor, " batch *dims"]:
    """The noise that x_t contains beside x_0: (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t).

    Raises:
        OptionError: a cumulative alpha is 1 (nothing was added), or the result is not finite.
    """
    level = torch.as_tensor(abar_t, dtype=x_t.dtype, device=x_t.device)
    level = level.expand(len(x_t)) if level.ndim == 0 else level
    if not bool((level < 1).all()):
        raise OptionError("a sample with a cumulative alpha of 1 contains no noise: exclude step 0")
    a = expand(level, x_t)
    tau = (x_t - a.sqrt() * x0) / (1 - a).sqrt()
    if not bool(torch.isfinite(tau).all()):
        raise OptionError("the effective noise is not finite; look at the samples and the precision")
    return tau


class CleanEstimate(NamedTuple):
    """A clean sample as one step sees it, and the noise-to-signal ratio of the step."""

    x0: Float[Tensor, " batch *dims"]
    sigma: Float[Tensor, " batch"]


def reparametrised_x0(
    x_t: Float[Tensor, " batch *dims"], eps: Float[Tensor, " batch *dims"], abar_t: Float[Tensor, " batch"]
) -> CleanEstimate:
    """Clean sample x_t / sqrt(abar_t) - sigma_t eps, with sigma_t = sqrt(1 - abar_t) / sqrt(abar_t).

    Source: Lu et al. 2025 (DDIM-InPO, arXiv 2503.18454); also known as Tweedie's estimate.
    """
    sigma = (1 - abar_t).sqrt() / abar_t.sqrt()
    return CleanEstimate(x_t / expand(abar_t.sqrt(), x_t) - expand(sigma, x_t) * eps, sigma)
