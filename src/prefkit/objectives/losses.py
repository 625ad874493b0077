"""Named pairwise losses as plain functions: tensors in, one loss a pair out, nothing reduced.

They are the presets' formulas for direct use. Log-probabilities are summed over the response's tokens, in nats; the
chosen response is the one that the (possibly wrong) label calls better. All are finite for finite input, and all raise
`OptionError` when beta is not positive, a length is below 1, a flip rate lies outside [0, 0.5) or shapes differ.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from prefkit.errors import OptionError
from prefkit.objectives import links, noise, rewards
from prefkit.objectives.rewards import Divergence


def dpo_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    ref_chosen_logps: Float[Tensor, " batch"],
    ref_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
    divergence: Divergence = "reverse_kl",
    divergence_alpha: float = 0.5,
) -> Float[Tensor, " batch"]:
    """Direct preference optimisation: -log sigmoid(beta h), h the difference of the log-ratios to the reference.

    Args:
        policy_chosen_logps: chosen responses under the policy.
        policy_rejected_logps: rejected responses under the policy.
        ref_chosen_logps: chosen responses under the reference.
        ref_rejected_logps: rejected responses under the reference.
        beta: temperature.
        divergence: see `rewards.log_ratio`.
        divergence_alpha: see `rewards.log_ratio`.

    Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; other divergences: Wang et al. 2023 (arXiv 2309.16240).
    """
    _check(beta, policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    chosen, rejected = (
        rewards.log_ratio(policy, ref, divergence=divergence, divergence_alpha=divergence_alpha)
        for policy, ref in ((policy_chosen_logps, ref_chosen_logps), (policy_rejected_logps, ref_rejected_logps))
    )
    return links.logistic(chosen - rejected, beta=beta)


def dpo_gamma_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    ref_chosen_logps: Float[Tensor, " batch"],
    ref_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
    ref_weight: float = 0.1,
) -> Float[Tensor, " batch"]:
    """DPO with a reference that counts in part: see `rewards.weighted_log_ratio`."""
    _check(beta, policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    if not ref_weight >= 0:
        raise OptionError(f"ref_weight must be at least 0, got {ref_weight}")
    chosen = rewards.weighted_log_ratio(policy_chosen_logps, ref_chosen_logps, ref_weight=ref_weight)
    rejected = rewards.weighted_log_ratio(policy_rejected_logps, ref_rejected_logps, ref_weight=ref_weight)
    return links.logistic(chosen - rejected, beta=beta)


def cdpo_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    ref_chosen_logps: Float[Tensor, " batch"],
    ref_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
    flip_rate: float | Float[Tensor, " batch"] = 0.1,
) -> Float[Tensor, " batch"]:
    """Conservative DPO (label smoothing): see `dpo_loss` and `noise.conservative`."""
    margin = _margin(beta, policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    losses, swapped = links.logistic(margin, beta=beta), links.logistic(-margin, beta=beta)
    return noise.conservative(losses, swapped, flip_rate=flip_rate)


def spce_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    ref_chosen_logps: Float[Tensor, " batch"],
    ref_rejected_logps: Float[Tensor, " batch"],
    soft_labels: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " batch"]:
    """Soft-preference cross-entropy: the mean of the DPO loss over labels that hold with given probabilities.

    Args:
        policy_chosen_logps: responses called better, under the policy.
        policy_rejected_logps: the others.
        ref_chosen_logps: responses called better, under the reference.
        ref_rejected_logps: the others.
        soft_labels: probability that each is the better one, in [0, 1]; constant.
        beta: temperature.

    Source: Online Self-Preferring Language Models, 2024 (arXiv 2405.14103).
    """
    margin = _margin(beta, policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    if soft_labels.shape != margin.shape:
        raise OptionError(f"each pair needs one soft label: got {tuple(soft_labels.shape)} for {tuple(margin.shape)}")
    if not bool(((soft_labels >= 0) & (soft_labels <= 1)).all()):
        raise OptionError("soft_labels must lie in [0, 1]")
    losses, swapped = links.logistic(margin, beta=beta), links.logistic(-margin, beta=beta)
    return noise.soft_labels(losses, swapped, soft_labels.detach())


def rdpo_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    ref_chosen_logps: Float[Tensor, " batch"],
    ref_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
    flip_rate: float | Float[Tensor, " batch"] = 0.1,
) -> Float[Tensor, " batch"]:
    """Robust DPO, unbiased under flipped labels: see `dpo_loss` and `noise.robust`."""
    margin = _margin(beta, policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    losses, swapped = links.logistic(margin, beta=beta), links.logistic(-margin, beta=beta)
    return noise.robust(losses, swapped, flip_rate=flip_rate)


def ipo_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    ref_chosen_logps: Float[Tensor, " batch"],
    ref_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " batch"]:
    """Identity preference optimisation with summed log-ratios: see `links.squared`."""
    margin = _margin(beta, policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return links.squared(margin, beta=beta)


def ipo_loss_length_averaged(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    ref_chosen_logps: Float[Tensor, " batch"],
    ref_rejected_logps: Float[Tensor, " batch"],
    chosen_lengths: Int[Tensor, " batch"],
    rejected_lengths: Int[Tensor, " batch"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " batch"]:
    """Identity preference optimisation with log-ratios a token: see `links.squared`.

    Lengths are in tokens and at least 1.
    """
    _check(beta, policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    _check_lengths(chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    chosen = rewards.average_log_ratio(policy_chosen_logps, ref_chosen_logps, chosen_lengths)
    rejected = rewards.average_log_ratio(policy_rejected_logps, ref_rejected_logps, rejected_lengths)
    return links.squared(chosen - rejected, beta=beta)


def slic_hinge_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    ref_chosen_logps: Float[Tensor, " batch"],
    ref_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " batch"]:
    """Hinge on log-ratios to the reference: see `links.hinge`. Source: RSO (arXiv 2309.06657), eq. 10."""
    margin = _margin(beta, policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return links.hinge(margin, beta=beta)


def slic_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    policy_target_logps: Float[Tensor, " batch"] | None = None,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    sft_weight: float = 0.0,
) -> Float[Tensor, " batch"]:
    """Hinge on log-probabilities without a reference: max(0, gamma - beta h) - sft_weight log pi(target).

    Args:
        policy_chosen_logps: chosen responses under the policy.
        policy_rejected_logps: rejected responses under the policy.
        policy_target_logps: responses to imitate; the chosen ones by default.
        beta: temperature.
        gamma: target margin.
        sft_weight: weight of the imitation term.

    Source: Zhao et al. 2023 (SLiC-HF, arXiv 2305.10425), eq. 1.
    """
    _check(beta, policy_chosen_logps, policy_rejected_logps)
    target = policy_chosen_logps if policy_target_logps is None else policy_target_logps
    return links.hinge(policy_chosen_logps - policy_rejected_logps, beta=beta, gamma=gamma) - sft_weight * target


def simpo_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    chosen_lengths: Int[Tensor, " batch"],
    rejected_lengths: Int[Tensor, " batch"],
    *,
    beta: float = 2.5,
    gamma: float = 0.25,
) -> Float[Tensor, " batch"]:
    """SimPO: -log sigmoid(beta h - gamma), h the difference of the log-probabilities a token.

    Args:
        policy_chosen_logps: chosen responses under the policy.
        policy_rejected_logps: rejected responses under the policy.
        chosen_lengths: tokens of the chosen responses, at least 1.
        rejected_lengths: tokens of the rejected responses, at least 1.
        beta: temperature.
        gamma: target margin itself, not its ratio to beta.

    Source: Meng et al. 2024 (arXiv 2405.14734), eq. 6.
    """
    _check(beta, policy_chosen_logps, policy_rejected_logps)
    _check_lengths(chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    chosen = rewards.average_log_prob(policy_chosen_logps, chosen_lengths)
    rejected = rewards.average_log_prob(policy_rejected_logps, rejected_lengths)
    return links.logistic(chosen - rejected, beta=beta, gamma=gamma)


def cpo_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
    sft_weight: float = 1.0,
) -> Float[Tensor, " batch"]:
    """Contrastive preference optimisation: -log sigmoid(beta h) - sft_weight log pi(chosen), without a reference.

    Source: Xu et al. 2024 (arXiv 2401.08417).
    """
    _check(beta, policy_chosen_logps, policy_rejected_logps)
    return links.logistic(policy_chosen_logps - policy_rejected_logps, beta=beta) - sft_weight * policy_chosen_logps


def orpo_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    chosen_lengths: Int[Tensor, " batch"],
    rejected_lengths: Int[Tensor, " batch"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " batch"]:
    """Odds ratio preference optimisation: token-mean likelihood of the chosen response, and beta times the log-odds.

    Args:
        policy_chosen_logps: chosen responses under the policy.
        policy_rejected_logps: rejected responses under the policy.
        chosen_lengths: tokens of the chosen responses, at least 1.
        rejected_lengths: tokens of the rejected responses, at least 1.
        beta: weight of the comparison (the paper's lambda).

    Source: Hong et al. 2024 (arXiv 2403.07691), eqs. 6, 7.
    """
    _check(beta, policy_chosen_logps, policy_rejected_logps)
    _check_lengths(chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    chosen = rewards.log_odds(policy_chosen_logps, chosen_lengths)
    rejected = rewards.log_odds(policy_rejected_logps, rejected_lengths)
    return links.weighted_logistic(chosen - rejected, beta=beta) - policy_chosen_logps / chosen_lengths


def jpo_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    ref_chosen_logps: Float[Tensor, " batch"],
    ref_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " batch"]:
    """Joint preference optimisation: DPO on log-probabilities of prompt and response together.

    Args:
        policy_chosen_logps: chosen prompts with their responses under the policy, log pi(I, R).
        policy_rejected_logps: rejected prompts with their responses under the policy.
        ref_chosen_logps: chosen prompts with their responses under the reference.
        ref_rejected_logps: rejected prompts with their responses under the reference.
        beta: temperature.

    Source: Bansal et al. 2024 (JPO, arXiv 2404.00530).
    """
    return dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta)


class JointLosses(NamedTuple):
    """Losses of joint preferences, and what the responses and the prompts have in them, in nats."""

    losses: Float[Tensor, " batch"]
    response_margin: Float[Tensor, " batch"]
    instruction_margin: Float[Tensor, " batch"]


def jpo_loss_decomposed(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    ref_chosen_logps: Float[Tensor, " batch"],
    ref_rejected_logps: Float[Tensor, " batch"],
    policy_chosen_instruction_logps: Float[Tensor, " batch"],
    policy_rejected_instruction_logps: Float[Tensor, " batch"],
    ref_chosen_instruction_logps: Float[Tensor, " batch"],
    ref_rejected_instruction_logps: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
) -> JointLosses:
    """`jpo_loss` from log pi(R | I) and log pi(I) given apart. Equal prompts cancel, which leaves DPO.

    Args:
        policy_chosen_logps: chosen responses given their prompts under the policy.
        policy_rejected_logps: rejected responses given their prompts under the policy.
        ref_chosen_logps: chosen responses given their prompts under the reference.
        ref_rejected_logps: rejected responses given their prompts under the reference.
        policy_chosen_instruction_logps: prompts of the chosen responses under the policy.
        policy_rejected_instruction_logps: prompts of the rejected responses under the policy.
        ref_chosen_instruction_logps: prompts of the chosen responses under the reference.
        ref_rejected_instruction_logps: prompts of the rejected responses under the reference.
        beta: temperature.

    Source: Bansal et al. 2024 (JPO, arXiv 2404.00530).
    """
    responses = _margin(beta, policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    instructions = _margin(
        beta,
        policy_chosen_instruction_logps,
        policy_rejected_instruction_logps,
        ref_chosen_instruction_logps,
        ref_rejected_instruction_logps,
    )
    return JointLosses(links.logistic(responses + instructions, beta=beta), responses, instructions)


def reward_model_loss(
    chosen_rewards: Float[Tensor, " batch"], rejected_rewards: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Bradley-Terry loss of a reward model: -log sigmoid(chosen reward - rejected reward), rewards in log-odds."""
    _check(1.0, chosen_rewards, rejected_rewards)
    return links.logistic(chosen_rewards - rejected_rewards, beta=1.0)


def choice_loss(
    score_0: Float[Tensor, " batch"], score_1: Float[Tensor, " batch"], preferred: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Bradley-Terry loss of a choice between two responses in a fixed order: -log P(preferred).

    Args:
        score_0: reward of the first response, in log-odds.
        score_1: reward of the second one.
        preferred: index of the response that was preferred, 0 or 1.

    Raises:
        OptionError: an index is neither 0 nor 1, or shapes differ.

    Source: Wang et al. 2025 (WorldPM, arXiv 2505.10527), eqs. 1, 2.
    """
    _check(1.0, score_0, score_1, preferred)
    if not bool(((preferred == 0) | (preferred == 1)).all()):
        raise OptionError(f"preferred must hold the index of a response, 0 or 1, got {sorted(set(preferred.tolist()))}")
    return links.logistic((score_0 - score_1) * (1 - 2 * preferred), beta=1.0)


def robust_reward_model_loss(
    chosen_rewards: Float[Tensor, " batch"],
    rejected_rewards: Float[Tensor, " batch"],
    *,
    flip_rate: float | Float[Tensor, " batch"] = 0.1,
) -> Float[Tensor, " batch"]:
    """Bradley-Terry loss of a reward model, unbiased under flipped labels: see `noise.robust`.

    Args:
        chosen_rewards: reward of the responses that were labelled better, in log-odds.
        rejected_rewards: reward of the others.
        flip_rate: in [0, 0.5); one number, or one a pair.
    """
    _check(1.0, chosen_rewards, rejected_rewards)
    margin = chosen_rewards - rejected_rewards
    losses, swapped = links.logistic(margin, beta=1.0), links.logistic(-margin, beta=1.0)
    return noise.robust(losses, swapped, flip_rate=flip_rate)


def _margin(beta: float, chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    _check(beta, chosen, rejected, ref_chosen, ref_rejected)
    return rewards.log_ratio(chosen, ref_chosen) - rewards.log_ratio(rejected, ref_rejected)


def _check(beta: float, *tensors: Tensor) -> None:
    if not beta > 0:
        raise OptionError(f"beta must be greater than 0, got {beta}")
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1:
        raise OptionError(f"log-probabilities must be of one shape, got {', '.join(map(str, shapes))}")


def _check_lengths(**lengths: Tensor) -> None:
    for name, tensor in lengths.items():
        if bool((tensor < 1).any()):
            raise OptionError(f"{name} must be at least 1 token, got {tensor.min().item():g}")
