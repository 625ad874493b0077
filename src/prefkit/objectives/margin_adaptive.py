"""Margin-adaptive weights: pairs weighed by what a reward model thinks of them, and the loss that does so.

A pair that the reward model finds hard (small margin) is to be learned beyond its margin, an easy one up to less than
its margin. A pair whose label contradicts the reward model counts less, unless the contradiction is extreme.

Source: Margin Adaptive DPO, 2025 (arXiv 2510.05342); where the paper's notation and the authors' code could differ, the
code is taken as the definition.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, FiniteFloat
from torch import Tensor

from prefkit.errors import OptionError
from prefkit.objectives.losses import dpo_loss
from prefkit.objectives.parts import Part, catalogue
from prefkit.options import Options

Mode = Literal["both", "amplify", "dampen"]
"""Whether coefficients lie on both sides of 1, or are cut off at 1 from below or from above."""

TAU = math.log(999)
"""Log-odds of a probability of 0.999."""


class AdaptiveOptions(Options):
    """Options of `margin_adaptive`."""

    c_max: FiniteFloat = Field(2.0, gt=1, description="factor of the target margin of the hardest pairs")
    c_min: FiniteFloat | None = Field(
        None, gt=0, lt=1, description="factor of the target margin of the easiest pairs; by default 1 / c_max"
    )
    lam: FiniteFloat = Field(1.0, gt=0, description="how fast the factor falls with the margin")
    tau: FiniteFloat = Field(TAU, ge=0, description="reward margin at which the factor is 1, in log-odds")
    mode: Mode = Field("both", description="`amplify` only hard pairs, `dampen` only easy ones, or both")


def madpo_coefficient(
    margins: Float[Tensor, " batch"],
    *,
    c_max: float = 2.0,
    c_min: float | None = None,
    lam: float = 1.0,
    tau: float = TAU,
    mode: Mode = "both",
) -> Float[Tensor, " batch"]:
    """Factor of each pair's target margin: near c_max for |h| well below tau, 1 at tau, near c_min beyond.

    c(|h|) = c_min + (c_max - c_min) / (1 + (c_max - 1) / (1 - c_min) exp(lam (|h| - tau))).

    Args:
        margins: h, a reward model's reward of the chosen response less that of the rejected one, in log-odds.
        c_max: largest factor, above 1.
        c_min: smallest factor, in (0, 1); None is 1 / c_max.
        lam: slope, above 0.
        tau: where the factor is 1, at least 0.
        mode: `amplify` takes max(c, 1), `dampen` min(c, 1). UNSURE how the paper's ablations were coded: with c_min = 1
            or c_max = 1 the formula itself would be 1 everywhere.

    Raises:
        OptionError: an option is out of range.
    """
    options = AdaptiveOptions.parse({"c_max": c_max, "c_min": c_min, "lam": lam, "tau": tau, "mode": mode})
    low = 1 / c_max if options.c_min is None else options.c_min
    # As a sigmoid, so that the exponential cannot overflow.
    falling = torch.sigmoid(lam * (tau - margins.abs()) - math.log((c_max - 1) / (1 - low)))
    coefficient = low + (c_max - low) * falling
    match mode:
        case "amplify":
            return coefficient.clamp(min=1)
        case "dampen":
            return coefficient.clamp(max=1)
        case "both":
            return coefficient


def madpo_weight(
    margins: Float[Tensor, " batch"],
    *,
    c_max: float = 2.0,
    c_min: float | None = None,
    lam: float = 1.0,
    tau: float = TAU,
    mode: Mode = "both",
) -> Float[Tensor, " batch"]:
    """Weight of each pair: sigmoid(c(|h|) h) / sigmoid(h) where h > -tau, else 1; see `madpo_coefficient`.

    Above 1 for 0 < h < tau, below 1 for -tau < h < 0, where the label contradicts the reward model, and slightly below
    1 for h > tau. Weights are not normalised.

    Raises:
        OptionError: an option is out of range, or gradients would flow into the reward model.
    """
    return _log_weight(margins, c_max=c_max, c_min=c_min, lam=lam, tau=tau, mode=mode).exp()


def population_target_margin(
    margins: Float[Tensor, " batch"],
    *,
    c_max: float = 2.0,
    c_min: float | None = None,
    lam: float = 1.0,
    tau: float = TAU,
    mode: Mode = "both",
) -> Float[Tensor, " batch"]:
    """Implicit margin, beta included, that minimises the expected weighted loss if labels follow sigmoid(h).

    log[sigmoid(h) w(h)] - log[sigmoid(-h) w(-h)]: c(|h|) h for |h| < tau, and close to h beyond, where the opposite
    order has weight 1.

    Raises:
        OptionError: an option is out of range, or gradients would flow into the reward model.
    """
    options: dict[str, Any] = {"c_max": c_max, "c_min": c_min, "lam": lam, "tau": tau, "mode": mode}
    return margins + _log_weight(margins, **options) - _log_weight(-margins, **options)


def madpo_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    ref_chosen_logps: Float[Tensor, " batch"],
    ref_rejected_logps: Float[Tensor, " batch"],
    chosen_rewards: Float[Tensor, " batch"],
    rejected_rewards: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
    c_max: float = 2.0,
    c_min: float | None = None,
    lam: float = 1.0,
    tau: float = TAU,
    mode: Mode = "both",
) -> Float[Tensor, " batch"]:
    """The DPO loss, times `madpo_weight`.

    Args:
        policy_chosen_logps: chosen responses under the policy.
        policy_rejected_logps: rejected responses under the policy.
        ref_chosen_logps: chosen responses under the reference.
        ref_rejected_logps: rejected responses under the reference.
        chosen_rewards: a reward model's rewards of the chosen responses; their differences are log-odds.
        rejected_rewards: those of the rejected ones.
        beta: temperature.
        c_max: see `madpo_coefficient`, as the others.
        c_min: smallest factor.
        lam: slope.
        tau: where the factor is 1.
        mode: both sides of 1, or one.

    Raises:
        OptionError: an option is out of range, shapes differ, or gradients would flow into the reward model.
    """
    losses = dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta)
    shapes = [tuple(rewards.shape) for rewards in (chosen_rewards, rejected_rewards)]
    if any(shape != losses.shape for shape in shapes):
        raise OptionError(
            f"chosen_rewards and rejected_rewards must be of the losses' shape {tuple(losses.shape)}, got "
            f"{shapes[0]} and {shapes[1]}"
        )
    margins = chosen_rewards - rejected_rewards
    return losses * madpo_weight(margins, c_max=c_max, c_min=c_min, lam=lam, tau=tau, mode=mode)


def _log_weight(margins: Tensor, **options: Any) -> Tensor:
    if margins.requires_grad:
        raise OptionError("a reward model's margins must not require gradients: detach its rewards, it is frozen")
    coefficient, tau = madpo_coefficient(margins, **options), options["tau"]
    # Far below -tau the ratio is 0 / 0 as it is written; it is not asked for there.
    inside = margins.clamp(min=-tau)
    ratio = F.logsigmoid(coefficient * inside) - F.logsigmoid(inside)
    return torch.where(margins > -tau, ratio, 0.0)


ADAPTIVE_WEIGHTS = catalogue(Part("margin_adaptive", madpo_weight, ("margins",), AdaptiveOptions))
