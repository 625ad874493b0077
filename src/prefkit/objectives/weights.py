"""Weights: how much each pair counts, beyond the weight that its record carries."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pydantic import Field, FiniteFloat
from torch import Tensor

from prefkit.objectives.parts import Part, catalogue
from prefkit.options import Options


class StrengthOptions(Options):
    """Options of `strength`."""

    scale: FiniteFloat = Field(1.0, gt=0, description="strength of preference that counts as weight 1")


def strength(strengths: Float[Tensor, " batch"], *, scale: float = 1.0) -> Float[Tensor, " batch"]:
    """Weight proportional to how strongly the chosen response was preferred.

    Args:
        strengths: on the data's own scale, at least 0.
        scale: the strength that counts as 1.

    Source: Wang et al. 2024 (HelpSteer2-Preference, arXiv 2410.01257), scaled Bradley-Terry.
    """
    return strengths / scale


def wpo(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    chosen_lengths: Int[Tensor, " batch"],
    rejected_lengths: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Product of both responses' mean token probabilities under the policy: pairs count as far as it would write them.

    The mean is geometric, and the weight has no gradient.

    Args:
        policy_chosen_logps: chosen responses under the policy, summed over tokens.
        policy_rejected_logps: rejected responses under the policy.
        chosen_lengths: tokens of the chosen responses, at least 1.
        rejected_lengths: tokens of the rejected responses, at least 1.

    Source: Zhou et al. 2024 (WPO, arXiv 2406.11827), eq. 2, without the alignment of weights over prompts.
    """
    mean = policy_chosen_logps / chosen_lengths + policy_rejected_logps / rejected_lengths
    return torch.exp(mean.detach())


WEIGHTS = catalogue(
    Part("strength", strength, ("strengths",), StrengthOptions),
    Part("wpo", wpo, ("policy_chosen_logps", "policy_rejected_logps", "chosen_lengths", "rejected_lengths")),
)
