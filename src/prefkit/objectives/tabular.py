"""Objectives in closed form where prompts and responses can be listed: for tests, experiments and small action sets.

Tables are `[x, y]`, one row a prompt and one column a response. Policies are given by their log-probabilities.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prefkit.errors import OptionError
from prefkit.objectives.values import VpoLoss, check_value


def optimal_policy(
    reward: Float[Tensor, "*x y"], log_ref: Float[Tensor, "*x y"], *, beta: float
) -> Float[Tensor, "*x y"]:
    """Log-probabilities of the policy with the most reward less beta times its KL divergence from the reference.

    log pi = log pi_ref + reward / beta - log Z.

    Args:
        reward: of each response; a probability of winning for methods that maximise that.
        log_ref: log-probabilities of the reference.
        beta: temperature, greater than 0.

    Raises:
        OptionError: the temperature is not positive, or the reference is no distribution.

    Source: Rafailov et al. 2023 (DPO, arXiv 2305.18290), eq. 4.
    """
    _check_temperature(beta)
    _check_distribution("log_ref", log_ref.exp())
    return torch.log_softmax(log_ref + reward / beta, dim=-1)


class PolicyAndValue(NamedTuple):
    """An optimal policy and what it is worth."""

    log_policy: Float[Tensor, "x y"]
    value: Float[Tensor, ""]


def optimal_policy_and_value(
    reward: Float[Tensor, "x y"], log_ref: Float[Tensor, "x y"], rho: Float[Tensor, " x"], *, beta: float
) -> PolicyAndValue:
    """The optimal policy, and J*(r) = sum_x rho(x) beta log Z(x), its reward less beta times its divergence.

    Args:
        reward: of each response.
        log_ref: log-probabilities of the reference.
        rho: probability of each prompt.
        beta: temperature, greater than 0.

    Raises:
        OptionError: the temperature is not positive, or a distribution does not sum to 1.

    Source: Cen et al. 2024 (VPO, arXiv 2405.19320).
    """
    log_policy = optimal_policy(reward, log_ref, beta=beta)
    _check_distribution("rho", rho)
    return PolicyAndValue(log_policy, (rho * beta * torch.logsumexp(log_ref + reward / beta, dim=1)).sum())


class Calibrated(NamedTuple):
    """A reward table, and the number that was taken off it."""

    reward: Float[Tensor, "x y"]
    shift: Float[Tensor, ""]


def calibrate_reward(
    reward: Float[Tensor, "x y"], calibration: Float[Tensor, "x y"], rho: Float[Tensor, " x"]
) -> Calibrated:
    """A reward less its mean over a calibration distribution: one shift for all prompts.

    Comparisons say nothing about such a shift, but the value of a reward moves with it.

    Args:
        reward: of each response.
        calibration: probability of each response to each prompt.
        rho: probability of each prompt.

    Raises:
        OptionError: a distribution does not sum to 1.

    Source: Cen et al. 2024 (VPO, arXiv 2405.19320).
    """
    _check_distribution("calibration", calibration)
    _check_distribution("rho", rho)
    shift = (rho[:, None] * calibration * reward).sum()
    return Calibrated(reward - shift, shift)


class RewardObjective(NamedTuple):
    """The parts of `vpo_reward_objective` and the loss."""

    nll: Float[Tensor, ""]
    value: Float[Tensor, ""]
    loss: Float[Tensor, ""]


def vpo_reward_objective(
    reward: Float[Tensor, "x y"],
    log_ref: Float[Tensor, "x y"],
    rho: Float[Tensor, " x"],
    calibration: Float[Tensor, "x y"],
    prompts: Int[Tensor, " n"],
    chosen: Int[Tensor, " n"],
    rejected: Int[Tensor, " n"],
    *,
    beta: float,
    alpha: float,
    sign: int,
) -> RewardObjective:
    """Value-regularised estimate of a reward: the likelihood of the pairs, summed, less sign * alpha * J*(r).

    Its minimum is that of `prefkit.objectives.vpo_loss` over policies, the policy being optimal for the reward.

    Args:
        reward: free table; it is calibrated here.
        log_ref: log-probabilities of the reference.
        rho: probability of each prompt.
        calibration: probability of each response to each prompt in the calibration distribution.
        prompts: the prompt of each pair.
        chosen: its chosen response.
        rejected: its rejected response.
        beta: temperature, greater than 0.
        alpha: strength of the value term, at least 0.
        sign: -1 for pessimism, 1 for optimism.

    Raises:
        OptionError: an option is out of range, or a distribution does not sum to 1.

    Source: Cen et al. 2024 (VPO, arXiv 2405.19320), the reward form of the objective.
    """
    check_value(beta, alpha, sign)
    calibrated = calibrate_reward(reward, calibration, rho).reward
    nll = -F.logsigmoid(calibrated[prompts, chosen] - calibrated[prompts, rejected]).sum()
    best = optimal_policy_and_value(calibrated, log_ref, rho, beta=beta).value
    return RewardObjective(nll, best, nll - sign * alpha * best)


def vpo_policy_objective(
    log_policy: Float[Tensor, "x y"],
    log_ref: Float[Tensor, "x y"],
    rho: Float[Tensor, " x"],
    calibration: Float[Tensor, "x y"],
    prompts: Int[Tensor, " n"],
    chosen: Int[Tensor, " n"],
    rejected: Int[Tensor, " n"],
    *,
    beta: float,
    alpha: float,
    sign: int,
) -> VpoLoss:
    """The policy form of the same estimate, with the exact mean over the calibration distribution.

    Args:
        log_policy: log-probabilities of the policy.
        log_ref: log-probabilities of the reference.
        rho: probability of each prompt.
        calibration: probability of each response to each prompt in the calibration distribution.
        prompts: the prompt of each pair.
        chosen: its chosen response.
        rejected: its rejected response.
        beta: temperature, greater than 0.
        alpha: strength of the value term, at least 0.
        sign: -1 for pessimism, 1 for optimism.

    Raises:
        OptionError: an option is out of range, or a distribution does not sum to 1.

    Source: Cen et al. 2024 (VPO, arXiv 2405.19320), the policy form of the objective.
    """
    check_value(beta, alpha, sign)
    _check_distribution("rho", rho)
    ratio = log_policy - log_ref
    nll = -F.logsigmoid(beta * (ratio[prompts, chosen] - ratio[prompts, rejected])).sum()
    mean = (rho * calibration_kl_identity(log_policy, log_ref, calibration).mean_log_ratio).sum()
    term = sign * alpha * beta * mean
    return VpoLoss(nll, term, nll + term)


class CalibrationIdentity(NamedTuple):
    """The mean log-ratio over a calibration distribution, and the two divergences whose difference it is."""

    mean_log_ratio: Float[Tensor, " x"]
    kl_to_reference: Float[Tensor, " x"]
    kl_to_policy: Float[Tensor, " x"]


def calibration_kl_identity(
    log_policy: Float[Tensor, "x y"], log_ref: Float[Tensor, "x y"], calibration: Float[Tensor, "x y"]
) -> CalibrationIdentity:
    """E_cal[log pi - log pi_ref] = KL(cal, ref) - KL(cal, pi): what the value term does to a policy.

    Args:
        log_policy: log-probabilities of the policy.
        log_ref: log-probabilities of the reference.
        calibration: probability of each response to each prompt.

    Raises:
        OptionError: the calibration distribution does not sum to 1.

    Source: Cen et al. 2024 (VPO, arXiv 2405.19320).
    """
    _check_distribution("calibration", calibration)
    entropy = torch.special.entr(calibration).sum(1)
    reference, policy = (-entropy - (calibration * logs).sum(1) for logs in (log_ref, log_policy))
    return CalibrationIdentity((calibration * (log_policy - log_ref)).sum(1), reference, policy)


def _check_temperature(beta: float) -> None:
    if not beta > 0:
        raise OptionError(f"beta must be greater than 0, got {beta}")


def _check_distribution(name: str, probabilities: Tensor) -> None:
    sums = probabilities.detach().sum(-1)
    if bool((probabilities < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=1e-6):
        raise OptionError(f"{name} must hold probabilities that sum to 1, got sums {sums.flatten().tolist()[:4]}")
