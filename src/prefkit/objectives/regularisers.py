"""Regularisers: terms beside the comparison that keep the policy close to good text."""

from __future__ import annotations

from jaxtyping import Float, Int
from pydantic import Field, FiniteFloat
from torch import Tensor

from prefkit.objectives.intuitive import IFT
from prefkit.objectives.parts import Part, catalogue
from prefkit.options import Options


class WeightOptions(Options):
    """Options of every regulariser."""

    weight: FiniteFloat = Field(1.0, ge=0, description="weight of the term")


def sft(policy_logps: Float[Tensor, " batch"], *, weight: float = 1.0) -> Float[Tensor, " batch"]:
    """Negative log-likelihood of responses that are to be imitated, summed over their tokens.

    Args:
        policy_logps: summed log-probability of each response, in nats.
        weight: factor of the term.
    """
    return -weight * policy_logps


def average_sft(
    policy_logps: Float[Tensor, " batch"], lengths: Int[Tensor, " batch"], *, weight: float = 1.0
) -> Float[Tensor, " batch"]:
    """Negative log-likelihood a token of responses that are to be imitated.

    Args:
        policy_logps: summed log-probability of each response, in nats.
        lengths: tokens of each response.
        weight: factor of the term.
    """
    return -weight * policy_logps / lengths


REGULARISERS = catalogue(
    Part("sft", sft, ("policy_chosen_logps",), WeightOptions),
    Part("average_sft", average_sft, ("policy_chosen_logps", "chosen_lengths"), WeightOptions),
)

IMITATION = catalogue(
    Part("sft", sft, ("policy_logps",)),
    Part("average_sft", average_sft, ("policy_logps", "lengths")),
    IFT,
)
"""What can be the whole objective of demonstrations."""
