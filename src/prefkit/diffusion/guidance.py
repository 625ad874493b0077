"""Negative models: weights that have learned what people dislike, for the other branch of classifier-free guidance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prefkit.diffusion.schedules import expand
from prefkit.errors import OptionError

Weights = TypeVar("Weights", Tensor, Mapping[str, Tensor])


def guided(
    eps_pos: Float[Tensor, " batch *dims"],
    eps_neg: Float[Tensor, " batch *dims"],
    scale: float,
    *,
    rescale: float = 0.0,
) -> Float[Tensor, " batch *dims"]:
    """Classifier-free guidance: eps_neg + s (eps_pos - eps_neg).

    Args:
        eps_pos: prediction of the positive branch.
        eps_neg: prediction of the negative branch.
        scale: s = omega + 1; at 1 the negative branch has no effect.
        rescale: share in which the spread of each sample is set back to that of the positive branch, in [0, 1].

    Raises:
        OptionError: the scale is not finite, or rescale lies outside [0, 1].

    Source: Ho and Salimans 2022 (arXiv 2207.12598); rescale: Lin et al. 2024 (arXiv 2305.08891).
    """
    if not math.isfinite(scale):
        raise OptionError(f"the guidance scale must be a finite number, got {scale}")
    if not 0 <= rescale <= 1:
        raise OptionError(f"rescale must lie in [0, 1], got {rescale}")
    eps = eps_neg + scale * (eps_pos - eps_neg)
    if rescale == 0:
        return eps
    ratio = expand(eps_pos.flatten(1).std(1) / eps.flatten(1).std(1), eps)
    return rescale * ratio * eps + (1 - rescale) * eps


def guidance_variance(omega: float, rho: float) -> float:
    """Variance of (omega + 1) u - omega v for unit variances and correlation rho.

    It is why the branches must stay correlated: at omega = 6.5 independent ones give 98.5.

    Source: Wang et al. 2025 (Diffusion-NPO, arXiv 2505.11245).
    """
    if not -1 <= rho <= 1:
        raise OptionError(f"rho is a correlation and must lie in [-1, 1], got {rho}")
    return (omega + 1) ** 2 + omega**2 - 2 * omega * (omega + 1) * rho


class NegativeGuidance(nn.Module):
    """A noise model for any sampler: one model in the positive branch, another in the negative one.

    Args:
        positive: predicts noise under the condition.
        negative: predicts noise under the empty or negative condition.
        scale: of the guidance, omega + 1.
        rescale: see `guided`.

    Source: Wang et al. 2025 (Diffusion-NPO, arXiv 2505.11245).
    """

    def __init__(
        self, positive: Callable[..., Tensor], negative: Callable[..., Tensor], scale: float, rescale: float = 0.0
    ) -> None:
        super().__init__()
        guided(torch.zeros(1, 2), torch.zeros(1, 2), scale, rescale=0.0)
        self.positive, self.negative, self.scale, self.rescale = positive, negative, scale, rescale

    def forward(self, x_t: Tensor, t: Tensor, cond: tuple[Any, Any]) -> Tensor:
        """The guided noise.

        Args:
            x_t: states.
            t: steps.
            cond: the condition, and the empty or negative one.

        Raises:
            OptionError: there is no second condition.
        """
        if not isinstance(cond, tuple) or len(cond) != 2:
            raise OptionError("guidance needs two conditions: that of the prompt, and the empty or negative one")
        return guided(self.positive(x_t, t, cond[0]), self.negative(x_t, t, cond[1]), self.scale, rescale=self.rescale)


def merge_negative_weights(
    theta: Weights, theta_pos: Weights, delta: Weights, *, alpha: float = 1.0, beta: float = 1.0
) -> Weights:
    """Weights of the negative model: theta + alpha (theta_pos - theta) + beta delta.

    Args:
        theta: weights of the base model; a tensor, or tensors by name.
        theta_pos: weights of the positive model.
        delta: what negative training added to the base model.
        alpha: how far the negative model follows the positive one, in [0, 1]; 1 - alpha is the released code's
            `merge_weight`.
        beta: share of the negative training, in [0, 1].

    Raises:
        OptionError: alpha or beta is out of range, or the weights do not belong to one model.

    Source: Wang et al. 2025 (Diffusion-NPO, arXiv 2505.11245).
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise OptionError(f"{name} must lie in [0, 1], got {value}")
    if isinstance(theta, Tensor):
        parts = (theta, theta_pos, delta)
        if len({part.shape for part in parts}) > 1:
            raise OptionError("the weights of base, positive and negative model differ in shape")
        return theta + alpha * (theta_pos - theta) + beta * delta
    if not (theta.keys() == theta_pos.keys() == delta.keys()):
        odd = sorted(theta.keys() ^ theta_pos.keys() | theta.keys() ^ delta.keys())
        raise OptionError(f"the weights of base, positive and negative model do not belong together: {odd[:3]}")
    merged = {
        name: merge_negative_weights(weight, theta_pos[name], delta[name], alpha=alpha, beta=beta)
        for name, weight in theta.items()
    }
    return merged
