"""Reward forms: how good a response is, read off its log-probabilities.

Each function works on tensors of any shape, one entry a response, so pairs, lists and single responses share them.
The temperature beta is applied by the link, not here. Log-probabilities are in nats, lengths in tokens.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, FiniteFloat, model_validator
from torch import Tensor

from prefkit.errors import OptionError
from prefkit.objectives.parts import Part, catalogue
from prefkit.objectives.scores import TokenScores
from prefkit.objectives.token_level import TOKEN_REWARDS
from prefkit.options import Options

Divergence = Literal["reverse_kl", "forward_kl", "jensen_shannon", "alpha"]
"""Which divergence from the reference the policy is regularised with."""

MAX_EXPONENT = 80.0
"""Exponents of probability ratios stop here: exp(80) is still far from float32's largest number."""


class DivergenceOptions(Options):
    """Options of `log_ratio`."""

    divergence: Divergence = Field("reverse_kl", description="divergence from the reference")
    divergence_alpha: FiniteFloat = Field(
        0.5, ge=0, le=2, description="order of the alpha-divergence: 0 is forward KL, 1 is reverse KL"
    )

    @model_validator(mode="after")
    def _applies(self) -> Self:
        if "divergence_alpha" in self.model_fields_set and self.divergence != "alpha":
            raise ValueError(f"divergence_alpha applies only to `divergence: alpha`, not to '{self.divergence}'")
        return self


def log_ratio(
    policy_logps: Float[Tensor, "*shape"],
    ref_logps: Float[Tensor, "*shape"],
    *,
    divergence: Divergence = "reverse_kl",
    divergence_alpha: float = 0.5,
) -> Float[Tensor, "*shape"]:
    """Implicit reward of the policy that is optimal under a divergence from the reference, up to the temperature.

    It is f'(policy / reference), less f'(1), so that it is 0 where the two agree. For the reverse KL divergence, the
    default, that is log policy - log reference. The gradient vanishes where the exponent exceeds `MAX_EXPONENT`.

    Args:
        policy_logps: log-probabilities under the policy.
        ref_logps: log-probabilities under the reference.
        divergence: which f.
        divergence_alpha: order of the alpha-divergence, f'(t) = (t^(alpha - 1) - 1) / (alpha - 1).

    Source: Rafailov et al. 2023 (DPO, arXiv 2305.18290), eq. 5; Wang et al. 2023 (f-DPO, arXiv 2309.16240).
    """
    ratio = policy_logps - ref_logps
    match divergence:
        case "reverse_kl":
            return ratio
        case "forward_kl":
            order = 0.0
        case "jensen_shannon":
            return F.logsigmoid(ratio) + math.log(2)
        case "alpha":
            order = divergence_alpha
    if abs(order - 1) < 1e-6:
        return ratio
    return torch.expm1(((order - 1) * ratio).clamp(max=MAX_EXPONENT)) / (order - 1)


class ReferenceWeightOptions(Options):
    """Options of `weighted_log_ratio`."""

    ref_weight: FiniteFloat = Field(0.1, ge=0, description="weight of the reference: 1 is DPO, 0 leaves it out")


def weighted_log_ratio(
    policy_logps: Float[Tensor, "*shape"], ref_logps: Float[Tensor, "*shape"], *, ref_weight: float = 0.1
) -> Float[Tensor, "*shape"]:
    """Log-ratio to a reference that counts in part: log policy - ref_weight log reference.

    Args:
        policy_logps: log-probabilities under the policy.
        ref_logps: log-probabilities under the reference.
        ref_weight: the paper's gamma; above 1 the reference counts more than in DPO.

    Source: Chen et al. 2024 (arXiv 2405.19534), eq. 4; the default is that of the authors' code.
    """
    return policy_logps - ref_weight * ref_logps


def log_prob(policy_logps: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Log-probability of the whole response, without a reference.

    Source: Xu et al. 2024 (CPO, arXiv 2401.08417).
    """
    return policy_logps


def average_log_prob(policy_logps: Float[Tensor, "*shape"], lengths: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Log-probability a token, without a reference.

    Source: Meng et al. 2024 (SimPO, arXiv 2405.14734).
    """
    return policy_logps / lengths


def average_log_ratio(
    policy_logps: Float[Tensor, "*shape"], ref_logps: Float[Tensor, "*shape"], lengths: Int[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Log-ratio of policy to reference a token."""
    return (policy_logps - ref_logps) / lengths


def log_odds(policy_logps: Float[Tensor, "*shape"], lengths: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Log-odds of the geometric mean of the token probabilities.

    Source: Hong et al. 2024 (ORPO, arXiv 2403.07691).
    """
    mean = policy_logps / lengths
    # A probability of exactly 1 has infinite odds; the nearest smaller number has not.
    mean = mean.clamp(max=-torch.finfo(mean.dtype).eps)
    return mean - torch.log(-torch.expm1(mean))


def score(policy_logps: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The reward itself, which a reward model gives in the place of log-probabilities.

    Source: Ouyang et al. 2022 (InstructGPT, arXiv 2203.02155), eq. 1.
    """
    return policy_logps


class SharedLengthOptions(Options):
    """Options of `shared_length_log_ratio`."""

    tail_weight: FiniteFloat = Field(
        0.5, ge=0, le=1, description="weight of the tokens beyond the shorter response's length; 1 is DPO"
    )


def shared_length_log_ratio(
    tokens: TokenScores,
    lengths: Int[Tensor, " batch"],
    other_lengths: Int[Tensor, " batch"],
    *,
    tail_weight: float = 0.5,
) -> Float[Tensor, " batch"]:
    """Log-ratio of policy to reference in which the tokens beyond the pair's shorter length count less.

    Args:
        tokens: tokens of the responses, with the reference's log-probabilities.
        lengths: tokens of each response.
        other_lengths: tokens of the response that it is compared with.
        tail_weight: the paper's alpha.

    Source: Liu et al. 2024 (LD-DPO, arXiv 2409.06411).
    """
    if tokens.ref_logps is None:
        raise OptionError("shared_length_log_ratio needs the reference's log-probabilities of the tokens")
    starts = lengths.cumsum(0) - lengths
    place = torch.arange(len(tokens.response), device=lengths.device) - starts[tokens.response]
    ratios = tokens.policy_logps - tokens.ref_logps
    shared = place < torch.minimum(lengths, other_lengths)[tokens.response]
    weighted = torch.where(shared, ratios, tail_weight * ratios)
    return ratios.new_zeros(len(lengths)).index_add(0, tokens.response, weighted)


REWARDS = catalogue(
    Part("log_ratio", log_ratio, ("policy_logps", "ref_logps"), DivergenceOptions),
    # Whether a prompt is scored with its response is the scorer's business: the formula is the same.
    Part("joint_log_ratio", log_ratio, ("policy_logps", "ref_logps"), DivergenceOptions, requires=frozenset({"joint"})),
    Part("weighted_log_ratio", weighted_log_ratio, ("policy_logps", "ref_logps"), ReferenceWeightOptions),
    Part("log_prob", log_prob, ("policy_logps",)),
    Part("average_log_prob", average_log_prob, ("policy_logps", "lengths")),
    Part("average_log_ratio", average_log_ratio, ("policy_logps", "ref_logps", "lengths")),
    Part("log_odds", log_odds, ("policy_logps", "lengths")),
    Part("score", score, ("policy_logps",), requires=frozenset({"rewards"})),
    Part(
        "shared_length_log_ratio",
        shared_length_log_ratio,
        ("tokens", "lengths", "other_lengths"),
        SharedLengthOptions,
        requires=frozenset({"reference"}),
    ),
    *TOKEN_REWARDS,
)
