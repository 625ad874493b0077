"""Schedules: how much noise a sample carries at each training step, and what a denoiser is to predict there.

A sample at step t is x_t = alpha_t x_0 + sigma_t eps. Everything else (losses, inversion, sampling) asks a schedule for
these two numbers and for the form of the prediction, so it serves variance-preserving and flow-matching models alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefkit.errors import OptionError, unknown

Prediction = Literal["epsilon", "v", "sample", "flow"]
"""What a denoiser predicts: the noise, alpha eps - sigma x_0, the clean sample, or eps - x_0."""

PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v", "sample", "flow")


def expand(values: Float[Tensor, " batch"], like: Tensor) -> Tensor:
    """One value an entry of a batch, shaped so that it multiplies `like`."""
    return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def linear_betas(steps: int, start: float, end: float) -> Float[Tensor, " steps"]:
    """Variances beta_t that grow linearly, in float64. Source: Ho et al. 2020 (DDPM, arXiv 2006.11239)."""
    return torch.linspace(start, end, steps, dtype=torch.float64)


def scaled_linear_betas(steps: int, start: float, end: float) -> Float[Tensor, " steps"]:
    """Variances whose square roots grow linearly, in float64: the schedule of latent diffusion.

    Source: Rombach et al. 2022 (arXiv 2112.10752), released code.
    """
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2


def zero_terminal_snr(betas: Float[Tensor, " steps"]) -> Float[Tensor, " steps"]:
    """Cumulative alphas rescaled so that the last is exactly 0 and the first keeps its value.

    sqrt(abar) is shifted and scaled, and the cumulative product is taken of its successive ratios, squared.

    Args:
        betas: variances, in (0, 1).

    Raises:
        OptionError: there are fewer than two, or one is out of range.

    Source: Lin et al. 2024 (arXiv 2305.08891), algorithm 1, as in the released code of Diffusion-DPO.
    """
    if len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
        raise OptionError("betas must be at least two numbers in (0, 1)")
    root = torch.cumprod(1 - betas, 0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * first / (first - last)
    squares = root**2
    return torch.cumprod(torch.cat([squares[:1], squares[1:] / squares[:-1]]), 0)


@dataclass(frozen=True)
class Schedule:
    """The noise at every training step.

    Args:
        alphas: `[steps]`, factor of the clean sample.
        sigmas: `[steps]`, factor of the noise.
        prediction: what the denoiser predicts.

    Raises:
        OptionError: the prediction is unknown, or the levels are no schedule.
    """

    alphas: Float[Tensor, " steps"]
    sigmas: Float[Tensor, " steps"]
    prediction: Prediction = "epsilon"

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise OptionError(unknown("prediction type", str(self.prediction), PREDICTIONS))
        finite = bool(torch.isfinite(self.alphas).all() and torch.isfinite(self.sigmas).all())
        if not finite or self.alphas.shape != self.sigmas.shape or not len(self.alphas):
            raise OptionError("a schedule needs one finite alpha and one finite sigma a step")

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Float[Tensor, " steps"], prediction: Prediction = "epsilon") -> Self:
        """A variance-preserving schedule: alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t).

        Raises:
            OptionError: a cumulative alpha lies outside [0, 1], or they increase.
        """
        inside = bool(((alphas_cumprod >= 0) & (alphas_cumprod <= 1)).all())
        if not inside or bool((alphas_cumprod.diff() > 0).any()):
            raise OptionError("cumulative alphas must lie in [0, 1] and never increase")
        return cls(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt(), prediction)

    @classmethod
    def from_betas(
        cls, betas: Float[Tensor, " steps"], prediction: Prediction = "epsilon", *, zero_snr: bool = False
    ) -> Self:
        """A variance-preserving schedule of given variances.

        Args:
            betas: variances, in (0, 1).
            prediction: what the denoiser predicts.
            zero_snr: rescale it to a terminal signal of 0, see `zero_terminal_snr`; for few-step models.
        """
        cumulative = zero_terminal_snr(betas) if zero_snr else torch.cumprod(1 - betas, 0)
        return cls.from_alphas_cumprod(cumulative, prediction)

    @classmethod
    def flow_matching(cls, steps: int = 1000, shift: float = 1.0) -> Self:
        """A straight path x_t = (1 - sigma) x_0 + sigma eps, whose velocity eps - x_0 is predicted.

        Args:
            steps: number of levels; sigma is (t + 1) / steps before the shift.
            shift: of sigma towards noise, s sigma / (1 + (s - 1) sigma); 3 in Stable Diffusion 3.

        Raises:
            OptionError: shift is not positive.

        Source: Lipman et al. 2023 (arXiv 2210.02747); shift: Esser et al. 2024 (arXiv 2403.03206), eq. 23.
        """
        if not shift > 0:
            raise OptionError(f"shift must be greater than 0, got {shift}")
        sigmas = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
        return cls(1 - sigmas, sigmas, "flow")

    @property
    def steps(self) -> int:
        """Number of training steps, T."""
        return len(self.alphas)

    @property
    def alphas_cumprod(self) -> Float[Tensor, " steps"]:
        """abar_t, the squares of the alphas."""
        return self.alphas**2

    @property
    def snr(self) -> Float[Tensor, " steps"]:
        """Signal-to-noise ratio alpha^2 / sigma^2 of every step."""
        return self.alphas**2 / self.sigmas**2

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Schedule:
        """The same schedule elsewhere."""
        return Schedule(self.alphas.to(device, dtype), self.sigmas.to(device, dtype), self.prediction)

    def levels(self, t: Int[Tensor, " batch"], like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of a batch of steps, shaped to multiply `like`.

        Raises:
            OptionError: a step lies outside [0, steps).
        """
        if t.numel() and (int(t.min()) < 0 or int(t.max()) >= self.steps):
            raise OptionError(f"timesteps must lie in [0, {self.steps}), got {int(t.min())} to {int(t.max())}")
        alphas, sigmas = self.alphas.to(like.device), self.sigmas.to(like.device)
        return expand(alphas[t], like), expand(sigmas[t], like)

    def add_noise(
        self, x0: Float[Tensor, " batch *dims"], noise: Float[Tensor, " batch *dims"], t: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch *dims"]:
        """The sample at step t: alpha_t x_0 + sigma_t eps."""
        alpha, sigma = self.levels(t, x0)
        return alpha * x0 + sigma * noise

    def target(
        self, x0: Float[Tensor, " batch *dims"], noise: Float[Tensor, " batch *dims"], t: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch *dims"]:
        """What the denoiser is to predict at x_t."""
        alpha, sigma = self.levels(t, x0)
        match self.prediction:
            case "epsilon":
                return noise
            case "v":
                return alpha * noise - sigma * x0
            case "sample":
                return x0
            case "flow":
                return noise - x0

    def noise(
        self, prediction: Float[Tensor, " batch *dims"], x_t: Float[Tensor, " batch *dims"], t: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch *dims"]:
        """The noise that a prediction at x_t amounts to."""
        alpha, sigma = self.levels(t, x_t)
        match self.prediction:
            case "epsilon":
                return prediction
            case "v":
                return alpha * prediction + sigma * x_t
            case "sample":
                return (x_t - alpha * prediction) / sigma
            case "flow":
                # x_t = alpha x_0 + sigma eps with alpha + sigma = 1.
                return x_t + alpha * prediction

    def clean(
        self, prediction: Float[Tensor, " batch *dims"], x_t: Float[Tensor, " batch *dims"], t: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch *dims"]:
        """The clean sample that a prediction at x_t amounts to."""
        if self.prediction == "sample":
            return prediction
        alpha, sigma = self.levels(t, x_t)
        if self.prediction == "flow":
            return x_t - sigma * prediction
        if self.prediction == "v":
            return alpha * x_t - sigma * prediction
        return (x_t - sigma * prediction) / alpha


def schedule_from(options: Mapping[str, Any]) -> Schedule:
    """A schedule from plain values.

    Args:
        options: `schedule` ("linear", "scaled_linear"), `T`, `beta_start`, `beta_end`.

    Raises:
        OptionError: the name is unknown.
    """
    makers = {"linear": linear_betas, "scaled_linear": scaled_linear_betas}
    if options["schedule"] not in makers:
        raise OptionError(unknown("schedule", str(options["schedule"]), makers))
    return Schedule.from_betas(makers[options["schedule"]](options["T"], options["beta_start"], options["beta_end"]))


def few_step_times(t: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Training steps of a distilled four-step model ("turbo"): 250 (t mod 4) + 249. Source: Diffusion-DPO's code."""
    return 250 * (t % 4) + 249


def refiner_times(t: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Training steps of a refiner, which sees little noise only: t mod 200. Source: Diffusion-DPO's code."""
    return t % 200


def offset_noise(
    noise: Float[Tensor, " batch *dims"], scale: float, draw: Float[Tensor, " batch *dims"]
) -> Float[Tensor, " batch *dims"]:
    """Noise with a random mean in each channel.

    Args:
        noise: standard normal.
        scale: of the offset.
        draw: standard normal, one a sample and channel, 1 along the other dimensions.
    """
    return noise + scale * draw


def learning_rate_for(beta: float) -> float:
    """Diffusion-DPO's learning rate: (2000 / beta) 2.048e-8, as gradients grow with beta.

    Raises:
        OptionError: beta is not positive.

    Source: Wallace et al. 2023 (arXiv 2311.12908), section 5.1.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise OptionError(f"beta must be greater than 0, got {beta}")
    return 2000 / beta * 2.048e-8
