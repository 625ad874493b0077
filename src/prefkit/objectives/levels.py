"""Levels: what a model learns from one response under two prompts, and from one pair under two prompts.

The prompts differ in instructions that responses obey or not (`prefkit.comparisons.instructions`). For a policy the
reward of a response is beta times its log-ratio to the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, FiniteFloat
from torch import Tensor

from prefkit.comparisons.instructions import (
    BETTER_CHOSEN,
    BETTER_REJECTED,
    STRONG_CHOSEN,
    STRONG_REJECTED,
    WEAK_CHOSEN,
    InterMode,
)
from prefkit.errors import OptionError, unknown
from prefkit.objectives.links import Temperature
from prefkit.objectives.scores import Companions


class IntraOptions(Temperature):
    """Options of `intra`."""

    intra_weight: FiniteFloat = Field(1.0, ge=0, description="weight of one response under two prompts")
    instructions: int = Field(4, ge=1, le=12, description="largest number of instructions added to a prompt")


class InterOptions(Temperature):
    """Options of `inter`."""

    inter_weight: FiniteFloat = Field(1.0, ge=0, description="weight of one pair under two prompts")
    inter_mode: InterMode = Field("difference", description="compare the two margins, or take the stronger prompt")
    instructions: int = Field(4, ge=1, le=12, description="largest number of instructions added to a prompt")


def intra_loss(
    better_prompt_rewards: Float[Tensor, " batch"], worse_prompt_rewards: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """-log sigmoid(r(x_better, y) - r(x_worse, y)): a response belongs to the prompt whose instructions it obeys.

    For a policy the normalisers of the two prompts differ and are left out.

    Args:
        better_prompt_rewards: of each response under the prompt that it fits better; for a policy beta times the
            log-ratio.
        worse_prompt_rewards: the same under the other prompt.

    Source: Multi-Level Aware Preference Learning, 2025 (arXiv 2505.12845), the intra-sample term.
    """
    _check(better_prompt_rewards, worse_prompt_rewards)
    return -F.logsigmoid(better_prompt_rewards - worse_prompt_rewards)


def inter_loss(
    strong_prompt_chosen_rewards: Float[Tensor, " batch"],
    strong_prompt_rejected_rewards: Float[Tensor, " batch"],
    weak_prompt_chosen_rewards: Float[Tensor, " batch"] | None = None,
    weak_prompt_rejected_rewards: Float[Tensor, " batch"] | None = None,
    *,
    inter_mode: InterMode = "difference",
) -> Float[Tensor, " batch"]:
    """A pair is told apart more clearly under the prompt whose instructions speak for its chosen response.

    Args:
        strong_prompt_chosen_rewards: chosen responses under that prompt; for a policy beta times the log-ratio.
        strong_prompt_rejected_rewards: rejected responses under it.
        weak_prompt_chosen_rewards: chosen responses under the other prompt; not used in mode "pairwise".
        weak_prompt_rejected_rewards: rejected responses under it.
        inter_mode: "difference": -log sigmoid of the difference of the two margins; "pairwise": -log sigmoid of the
            margin under the strong prompt. Which of them the paper takes is not certain.

    Raises:
        OptionError: the mode is unknown, or needs the weak prompt's rewards.

    Source: Multi-Level Aware Preference Learning, 2025 (arXiv 2505.12845), the inter-sample term.
    """
    _check_mode(inter_mode)
    _check(strong_prompt_chosen_rewards, strong_prompt_rejected_rewards)
    margin = strong_prompt_chosen_rewards - strong_prompt_rejected_rewards
    if inter_mode == "difference":
        if weak_prompt_chosen_rewards is None or weak_prompt_rejected_rewards is None:
            raise OptionError("inter_mode 'difference' needs the rewards under the weak prompt; or use 'pairwise'")
        _check(margin, weak_prompt_chosen_rewards, weak_prompt_rejected_rewards)
        margin = margin - (weak_prompt_chosen_rewards - weak_prompt_rejected_rewards)
    return -F.logsigmoid(margin)


class LevelsLoss(NamedTuple):
    """The parts of `levels_loss`, means over their batches, and their weighted sum."""

    original: Float[Tensor, ""]
    intra: Float[Tensor, ""]
    inter: Float[Tensor, ""]
    loss: Float[Tensor, ""]


def levels_loss(
    original: Float[Tensor, " batch"],
    intra: Float[Tensor, " intra"],
    inter: Float[Tensor, " inter"],
    *,
    intra_weight: float = 1.0,
    inter_weight: float = 1.0,
) -> LevelsLoss:
    """The joint objective for data in which the three kinds of pairs come in batches of their own.

    Args:
        original: loss of each original pair.
        intra: see `intra_loss`.
        inter: see `inter_loss`.
        intra_weight: weight of the intra-sample term.
        inter_weight: weight of the inter-sample term.

    Raises:
        OptionError: a weight is negative.

    Source: Multi-Level Aware Preference Learning, 2025 (arXiv 2505.12845).
    """
    for name, weight in (("intra_weight", intra_weight), ("inter_weight", inter_weight)):
        if not weight >= 0:
            raise OptionError(f"{name} must be at least 0, got {weight}")
    means = original.mean(), intra.mean(), inter.mean()
    return LevelsLoss(*means, means[0] + intra_weight * means[1] + inter_weight * means[2])


def intra(
    companions: Companions, pairs: int, *, beta: float = 0.1, intra_weight: float = 1.0, instructions: int = 4
) -> Float[Tensor, " pairs"]:
    """The intra-sample term of a policy, the mean over both responses of each pair.

    Args:
        companions: both responses under two prompts each, labelled as `intra_companions` does.
        pairs: number of pairs.
        beta: temperature.
        intra_weight: weight of the term.
        instructions: for the maker of the prompts.
    """
    rewards = beta * _log_ratios(companions)
    better = (companions.label == BETTER_CHOSEN) | (companions.label == BETTER_REJECTED)
    side = (companions.label >= BETTER_REJECTED).long()
    margins = rewards.new_zeros(2 * pairs).index_add(
        0, 2 * companions.entry + side, torch.where(better, rewards, -rewards)
    )
    return intra_weight * -F.logsigmoid(margins.view(pairs, 2)).mean(1)


def inter(
    companions: Companions,
    pairs: int,
    policy_chosen_logps: Float[Tensor, " pairs"],
    policy_rejected_logps: Float[Tensor, " pairs"],
    ref_chosen_logps: Float[Tensor, " pairs"],
    ref_rejected_logps: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
    inter_weight: float = 1.0,
    inter_mode: InterMode = "difference",
    instructions: int = 4,
) -> Float[Tensor, " pairs"]:
    """The inter-sample term of a policy; 0 for a pair whose new prompt speaks for both responses alike.

    Args:
        companions: both responses under the new prompt, labelled as `inter_companions` does.
        pairs: number of pairs.
        policy_chosen_logps: chosen responses under the original prompt and the policy.
        policy_rejected_logps: rejected responses.
        ref_chosen_logps: chosen responses under the reference.
        ref_rejected_logps: rejected responses.
        beta: temperature.
        inter_weight: weight of the term.
        inter_mode: see `inter_loss`.
        instructions: for the maker of the prompts.
    """
    ratios, label = _log_ratios(companions), companions.label
    own = (policy_chosen_logps - ref_chosen_logps) - (policy_rejected_logps - ref_rejected_logps)
    first = (label == STRONG_CHOSEN) | (label == WEAK_CHOSEN)
    nothing = torch.zeros_like(own)
    new = nothing.index_add(0, companions.entry, torch.where(first, ratios, -ratios))
    # 1 where the new prompt is the stronger one, -1 where the original is, 0 where there is no new one.
    strong = torch.where(label <= STRONG_REJECTED, 1.0, -1.0).to(own.dtype)
    order = nothing.index_add(0, companions.entry, strong).sign()
    margin = new if inter_mode == "pairwise" else order * (new - own)
    return inter_weight * torch.where(order == 0, nothing, -F.logsigmoid(beta * margin))


def _log_ratios(companions: Companions) -> Tensor:
    if companions.ref_logps is None:
        raise OptionError("instructions at several levels need the reference's scores of their companions")
    return companions.policy_logps - companions.ref_logps


def _check_mode(mode: str) -> None:
    if mode not in ("difference", "pairwise"):
        raise OptionError(unknown("inter_mode", mode, ("difference", "pairwise")))


def _check(*rewards: Tensor) -> None:
    if len({tuple(tensor.shape) for tensor in rewards}) > 1:
        raise OptionError(f"rewards must be of one shape, got {', '.join(str(tuple(r.shape)) for r in rewards)}")
