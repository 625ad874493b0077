"""The value term: optimism or pessimism about responses that the comparisons say little of.

Rewards that fit the comparisons equally well differ in the value that the best policy would have under them. Preferring
a high value makes a policy explore (online), preferring a low one keeps it where the data are (offline). With rewards
fixed to mean 0 over a calibration distribution, the value is -beta times the mean log-ratio of policy to reference
there.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from jaxtyping import Float
from pydantic import Field, FiniteFloat
from torch import Tensor

from prefkit.errors import OptionError
from prefkit.objectives.links import Temperature
from prefkit.objectives.losses import dpo_loss


class ValueOptions(Temperature):
    """Options of `value_term`."""

    alpha: FiniteFloat = Field(0.1, ge=0, description="strength of the term relative to the mean over pairs")
    sign: Literal[-1, 1] = Field(-1, description="-1 for pessimism (offline), 1 for optimism (online)")


def value_term(
    policy_logps: Float[Tensor, " batch"],
    ref_logps: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
    alpha: float = 0.1,
    sign: int = -1,
) -> Float[Tensor, " batch"]:
    """sign * alpha * beta * (log pi - log pi_ref) of calibration responses: the value that a reward promises, negated.

    With sign -1 the policy is drawn towards the calibration distribution, with 1 it is pushed away, without bound.
    The distribution may be any that does not change with the policy.

    Args:
        policy_logps: calibration responses under the policy, summed over tokens, in nats.
        ref_logps: the same under the reference; constant, kept so that the term has a meaning.
        beta: temperature of the comparison.
        alpha: strength; where a paper sums the likelihood over N pairs, its alpha is N times this one.
        sign: -1 offline, 1 online.

    Source: Cen et al. 2024 (VPO, arXiv 2405.19320), the policy form of the objective.
    """
    return sign * alpha * beta * (policy_logps - ref_logps)


class VpoLoss(NamedTuple):
    """The parts of `vpo_loss` and their sum."""

    nll: Float[Tensor, ""]
    regulariser: Float[Tensor, ""]
    loss: Float[Tensor, ""]


def vpo_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    ref_chosen_logps: Float[Tensor, " batch"],
    ref_rejected_logps: Float[Tensor, " batch"],
    policy_cal_logps: Float[Tensor, " calibration"],
    ref_cal_logps: Float[Tensor, " calibration"],
    *,
    beta: float = 0.1,
    alpha: float = 0.1,
    sign: int = -1,
    reduction: Literal["sum", "mean"] = "mean",
) -> VpoLoss:
    """DPO with a value term on a calibration set of its own, which need not belong to the pairs.

    Args:
        policy_chosen_logps: chosen responses under the policy.
        policy_rejected_logps: rejected responses under the policy.
        ref_chosen_logps: chosen responses under the reference.
        ref_rejected_logps: rejected responses under the reference.
        policy_cal_logps: calibration responses under the policy.
        ref_cal_logps: calibration responses under the reference.
        beta: temperature.
        alpha: strength of the value term.
        sign: -1 for pessimism (offline), 1 for optimism (online).
        reduction: of the likelihood over pairs, "sum" as in the paper or "mean"; the value term is always a mean, so
            with "mean" an alpha is N times as strong.

    Raises:
        OptionError: an option is out of range, shapes differ, the calibration set is empty, or a log-probability is
            not a number.

    Source: Cen et al. 2024 (VPO, arXiv 2405.19320), the policy form of the objective.
    """
    check_value(beta, alpha, sign)
    if reduction not in ("sum", "mean"):
        raise OptionError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    if policy_cal_logps.numel() == 0:
        raise OptionError("policy_cal_logps is empty; the value term needs at least one calibration response")
    if policy_cal_logps.shape != ref_cal_logps.shape:
        raise OptionError(
            f"policy_cal_logps and ref_cal_logps must be of one shape, got {tuple(policy_cal_logps.shape)} and "
            f"{tuple(ref_cal_logps.shape)}"
        )
    pairs = (policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    if any(bool(tensor.isnan().any()) for tensor in (*pairs, policy_cal_logps, ref_cal_logps)):
        raise OptionError("log-probabilities must be numbers, got nan")
    losses = dpo_loss(*pairs, beta=beta)
    nll = losses.sum() if reduction == "sum" else losses.mean()
    term = value_term(policy_cal_logps, ref_cal_logps, beta=beta, alpha=alpha, sign=sign).mean()
    return VpoLoss(nll, term, nll + term)


def check_value(beta: float, alpha: float, sign: int) -> None:
    """Refuse options of the value term that are out of range.

    Raises:
        OptionError: one is.
    """
    if not beta > 0:
        raise OptionError(f"beta must be greater than 0, got {beta}")
    if not alpha >= 0:
        raise OptionError(f"alpha must be at least 0, got {alpha}")
    if sign not in (-1, 1):
        raise OptionError(f"sign must be -1 (pessimism, offline) or 1 (optimism, online), got {sign}")
