"""Noising: the state of a clean sample at which a denoiser is trained, and what it is to predict there."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from prefkit.diffusion.inversion import effective_noise, inversion_grid, invert
from prefkit.diffusion.sampling import NoiseModel
from prefkit.diffusion.schedules import Schedule
from prefkit.errors import OptionError
from prefkit.options import Options

Latents = Literal["forward", "ddim", "renoise"]
"""How a state belongs to its sample: by random noise, by inversion, or by inversion with corrected predictions."""


class InversionOptions(Options):
    """How samples are inverted; used by the latents `ddim` and `renoise` only."""

    steps: int = Field(10, ge=1, description="steps from the clean sample to the state; the papers take 9 or 10")
    eta: float = Field(0.0, ge=0, description="share of random noise in each step; 0.1 in InPO's code")
    grid: Literal["per_sample", "released"] = Field(
        "per_sample", description="levels that end at t, or the codes' grid"
    )
    average: bool = Field(True, description="renoise: mean of both predictions; False takes the second")
    every_step: bool = Field(True, description="renoise: correct every step; False corrects the last")


class Noised(NamedTuple):
    """States, and what the denoiser is to predict at them; both constant."""

    x_t: Float[Tensor, " batch *dims"]
    target: Float[Tensor, " batch *dims"]


def noised(
    x0: Float[Tensor, " batch *dims"],
    t: Int[Tensor, " batch"],
    noise: Float[Tensor, " batch *dims"],
    schedule: Schedule,
    *,
    latents: Latents = "forward",
    model: NoiseModel | None = None,
    cond: Any = None,
    inversion: InversionOptions | None = None,
    inversion_noise: Float[Tensor, "n batch *dims"] | None = None,
    perturbation: Float[Tensor, " batch *dims"] | None = None,
) -> Noised:
    """States of samples at given steps.

    Args:
        x0: clean samples.
        t: steps; at least 1 for inverted states.
        noise: standard normal; used by `forward` only.
        schedule: of the noise.
        latents: see `Latents`.
        model: predicts noise, for inversion; it gets no gradient.
        cond: passed on to the model.
        inversion: see `InversionOptions`.
        inversion_noise: standard normal, for `inversion.eta` > 0.
        perturbation: added to the noise of the state but not to that of the target.

    Raises:
        OptionError: inversion without a model, or under a schedule that is not variance-preserving.

    Source: Wallace et al. 2023 (arXiv 2311.12908); Lu et al. 2025 (arXiv 2503.18454, arXiv 2506.02698).
    """
    if latents == "forward":
        mixed = noise if perturbation is None else noise + perturbation
        return Noised(schedule.add_noise(x0, mixed, t), schedule.target(x0, noise, t))
    if model is None:
        raise OptionError(f"latents: {latents} needs a model that inverts the samples")
    if schedule.prediction == "flow":
        raise OptionError(f"latents: {latents} needs a variance-preserving schedule, and this one matches flows")
    options = inversion or InversionOptions()
    x_t = invert(
        model,
        x0,
        inversion_grid(schedule, t, options.steps, grid=options.grid),
        cond,
        eta=options.eta,
        noise=inversion_noise,
        renoise="off" if latents == "ddim" else "every" if options.every_step else "last",
        average=options.average,
    )
    tau = effective_noise(x_t, x0, schedule.alphas_cumprod.to(t.device)[t])
    return Noised(x_t, schedule.target(x0, tau, t))
