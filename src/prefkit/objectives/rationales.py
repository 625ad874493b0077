"""Rationales: the policy learns to say why a response was preferred, beside preferring it.

The rationale is a text of its own, after a prompt that shows query and responses (`prefkit.comparisons`). It adds its
negative log-likelihood to the loss of the pair; there is no reference in it.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, FiniteFloat
from torch import Tensor

from prefkit.comparisons.rationales import RationaleOrder
from prefkit.errors import OptionError, unknown
from prefkit.objectives.losses import dpo_loss, orpo_loss, simpo_loss
from prefkit.objectives.parts import Stateful
from prefkit.objectives.scores import Companions
from prefkit.options import Options

RationaleTerm: TypeAlias = Literal["nll_mean", "nll_sum", "softplus", "softplus_mean"]
"""What a rationale of log-probability l and n tokens costs: -w l / n, -w l, softplus(-w l) or softplus(-w l / n)."""

_TERMS = ("nll_mean", "nll_sum", "softplus", "softplus_mean")


class RationaleOptions(Options):
    """Options of `rationale`."""

    rationale_weight: FiniteFloat = Field(2.0, ge=0, description="weight of the rationale against the comparison")
    rationale_term: RationaleTerm = Field("nll_mean", description="what a rationale costs")
    order: RationaleOrder = Field("chosen_first", description="which response the rationale's prompt shows first")


def rationale_loss(
    policy_logps: Float[Tensor, " texts"],
    lengths: Int[Tensor, " texts"],
    *,
    rationale_weight: float = 2.0,
    rationale_term: RationaleTerm = "nll_mean",
) -> Float[Tensor, " texts"]:
    """What rationales cost.

    Args:
        policy_logps: log-probability of each rationale after its prompt, summed over its tokens, in nats.
        lengths: tokens of each rationale.
        rationale_weight: gamma of the paper. Between a sum and a mean over tokens it does not carry over.
        rationale_term: "nll_mean" and "nll_sum" are negative log-likelihoods, a token and in all; the released code
            has -log sigmoid(gamma l) instead, "softplus", of which "softplus_mean" takes l a token.

    Source: Just et al. 2024 (arXiv 2407.14477), the objective of RDPO; the squashed forms are the authors' code.
    """
    mean = rationale_term in ("nll_mean", "softplus_mean")
    scaled = rationale_weight * (policy_logps / lengths if mean else policy_logps)
    return -scaled if rationale_term in ("nll_mean", "nll_sum") else -F.logsigmoid(scaled)


class Rationale(Stateful):
    """The rationales of pairs as an auxiliary term.

    Args:
        rationale_weight: see `rationale_loss`.
        rationale_term: see `rationale_loss`.
        order: which response the prompt shows first; for the maker of the prompts.
    """

    def __init__(self, rationale_weight: float, rationale_term: RationaleTerm, order: RationaleOrder) -> None:
        super().__init__()
        self.weight, self.term = rationale_weight, rationale_term

    def forward(self, companions: Companions, pairs: int) -> Float[Tensor, " pairs"]:
        """One term a pair; the figure `rationale_nll` is the negative log-likelihood a token."""
        logps, lengths = companions.policy_logps, companions.lengths
        terms = rationale_loss(logps, lengths, rationale_weight=self.weight, rationale_term=self.term)
        nothing = terms.new_zeros(pairs)
        self.figures = {"rationale_nll": nothing.index_add(0, companions.entry, -(logps / lengths).detach())}
        return nothing.index_add(0, companions.entry, terms)


def rationale_dpo_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    ref_chosen_logps: Float[Tensor, " batch"],
    ref_rejected_logps: Float[Tensor, " batch"],
    policy_rationale_logps: Float[Tensor, " batch"],
    rationale_lengths: Int[Tensor, " batch"],
    *,
    beta: float = 0.1,
    rationale_weight: float = 2.0,
    rationale_term: RationaleTerm = "nll_mean",
) -> Float[Tensor, " batch"]:
    """DPO with rationales (the paper's RDPO): see `dpo_loss` and `rationale_loss`.

    Source: Just et al. 2024 (arXiv 2407.14477), the objective of RDPO.
    """
    _check(policy_chosen_logps, policy_rationale_logps, rationale_lengths, rationale_weight, rationale_term)
    pair = dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta)
    return pair + rationale_loss(
        policy_rationale_logps, rationale_lengths, rationale_weight=rationale_weight, rationale_term=rationale_term
    )


def rationale_orpo_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    policy_rationale_logps: Float[Tensor, " batch"],
    chosen_lengths: Int[Tensor, " batch"],
    rejected_lengths: Int[Tensor, " batch"],
    rationale_lengths: Int[Tensor, " batch"],
    chosen_nll: Float[Tensor, ""] | None = None,
    *,
    beta: float = 0.1,
    rationale_weight: float = 10.0,
    rationale_term: RationaleTerm = "nll_mean",
) -> Float[Tensor, " batch"]:
    """ORPO with rationales: see `orpo_loss` and `rationale_loss`.

    Args:
        policy_chosen_logps: chosen responses under the policy.
        policy_rejected_logps: rejected responses under the policy.
        policy_rationale_logps: rationales under the policy.
        chosen_lengths: tokens of the chosen responses.
        rejected_lengths: tokens of the rejected responses.
        rationale_lengths: tokens of the rationales.
        chosen_nll: likelihood term of the batch; by default each chosen response's own, a token.
        beta: weight of the odds ratio.
        rationale_weight: see `rationale_loss`.
        rationale_term: see `rationale_loss`.

    Source: Just et al. 2024 (arXiv 2407.14477), and the authors' code.
    """
    _check(policy_chosen_logps, policy_rationale_logps, rationale_lengths, rationale_weight, rationale_term)
    for name, logps in (("policy_chosen_logps", policy_chosen_logps), ("policy_rejected_logps", policy_rejected_logps)):
        if not bool((logps < 0).all()):
            raise OptionError(f"{name} must be less than 0, where odds are finite, got {logps.max().item():.4g}")
    pair = orpo_loss(policy_chosen_logps, policy_rejected_logps, chosen_lengths, rejected_lengths, beta=beta)
    if chosen_nll is not None:
        pair = pair + policy_chosen_logps / chosen_lengths + chosen_nll
    return pair + rationale_loss(
        policy_rationale_logps, rationale_lengths, rationale_weight=rationale_weight, rationale_term=rationale_term
    )


def rationale_simpo_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    policy_rationale_logps: Float[Tensor, " batch"],
    chosen_lengths: Int[Tensor, " batch"],
    rejected_lengths: Int[Tensor, " batch"],
    rationale_lengths: Int[Tensor, " batch"],
    *,
    beta: float = 2.5,
    gamma: float = 0.25,
    rationale_weight: float = 1.0,
    rationale_term: RationaleTerm = "nll_mean",
) -> Float[Tensor, " batch"]:
    """SimPO with rationales: see `simpo_loss`, whose target margin `gamma` is, and `rationale_loss`.

    Source: Just et al. 2024 (arXiv 2407.14477), its later version.
    """
    _check(policy_chosen_logps, policy_rationale_logps, rationale_lengths, rationale_weight, rationale_term)
    pair = simpo_loss(
        policy_chosen_logps, policy_rejected_logps, chosen_lengths, rejected_lengths, beta=beta, gamma=gamma
    )
    return pair + rationale_loss(
        policy_rationale_logps, rationale_lengths, rationale_weight=rationale_weight, rationale_term=rationale_term
    )


def _check(chosen: Tensor, rationale: Tensor, lengths: Tensor, weight: float, term: str) -> None:
    if not weight >= 0:
        raise OptionError(f"rationale_weight must be at least 0, got {weight}")
    if term not in _TERMS:
        raise OptionError(unknown("rationale_term", term, _TERMS))
    if not chosen.shape == rationale.shape == lengths.shape:
        raise OptionError(
            "each pair needs one rationale: policy_chosen_logps, policy_rationale_logps and rationale_lengths must be "
            f"of one shape, got {tuple(chosen.shape)}, {tuple(rationale.shape)} and {tuple(lengths.shape)}"
        )
    if bool((rationale > 0).any()):
        raise OptionError(f"policy_rationale_logps must be at most 0, got {rationale.max().item():.4g}")
