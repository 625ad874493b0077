"""Rates at which log-probabilities change at the beginning of preference training, in closed form.

The model: next-token logits `W h`, `W [vocabulary, dim]` the output matrix and `h` a free vector for every different
prefix, under gradient flow on l(log pi(chosen) - log pi(rejected)), l decreasing.

Source: Razin et al. 2024 (arXiv 2410.08847), theorems 4 to 6.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prefkit.diagnostics.displacement import ches_from_sums
from prefkit.errors import PrefkitError


class SingleTokenRates(NamedTuple):
    """Responses of one token.

    Args:
        logprob_rates: change of the log-probability of each token a unit of time.
        chosen_rate: that of the chosen one.
        m: the part that always pushes the chosen token up.
        preferences_unembedding_alignment: <W+, W->.
        other_token_alignment: sum of pi(z) <W_z, W+ - W-> over the other tokens.
        probs: the distribution.
    """

    logprob_rates: Float[Tensor, " vocabulary"]
    chosen_rate: Float[Tensor, ""]
    m: Float[Tensor, ""]
    preferences_unembedding_alignment: Float[Tensor, ""]
    other_token_alignment: Float[Tensor, ""]
    probs: Float[Tensor, " vocabulary"]


class MultiTokenRate(NamedTuple):
    """Responses of several tokens.

    Args:
        alpha_plus: <e+_k, e+_k'>, e the one-hot token less the distribution.
        alpha_minus: <e+_k, e-_k'>.
        hidden_alignment_term: sum of alpha-  <h+, h-> less sum of alpha+ <h+, h+>; CHES is its proxy.
        chosen_rate: change of the chosen response's log-probability a unit of time, for l' = -1.
        ches: all coefficients set to 1.
    """

    alpha_plus: Float[Tensor, "chosen chosen"]
    alpha_minus: Float[Tensor, "chosen rejected"]
    hidden_alignment_term: Float[Tensor, ""]
    chosen_rate: Float[Tensor, ""]
    ches: Float[Tensor, ""]


def single_token_rates(
    unembedding: Float[Tensor, "vocabulary dim"],
    hidden: Float[Tensor, " dim"],
    chosen_id: int,
    rejected_id: int,
    *,
    loss_derivative: float = -1.0,
) -> SingleTokenRates:
    """Rates of every token when one token is preferred to another.

    Args:
        unembedding: W.
        hidden: h of the prompt.
        chosen_id: the preferred token.
        rejected_id: the other one.
        loss_derivative: l', negative.

    Raises:
        PrefkitError: the two tokens are one.

    Source: theorems 4 and 5.
    """
    if chosen_id == rejected_id:
        raise PrefkitError(f"the preferred and the rejected token must differ, both are {chosen_id}")
    probs = torch.softmax(unembedding @ hidden, 0)
    chosen, rejected = unembedding[chosen_id], unembedding[rejected_id]
    difference = chosen - rejected
    gap = 1 - probs[chosen_id] + probs[rejected_id]
    m = (
        (1 - probs[chosen_id]) * (chosen @ chosen)
        + probs[rejected_id] * (rejected @ rejected)
        + gap * (hidden @ hidden)
    )
    others = probs.clone()
    others[[chosen_id, rejected_id]] = 0
    alignment, elsewhere = chosen @ rejected, others @ (unembedding @ difference)
    # d logits / dt = -l' (W (W+ - W-) + ||h||^2 (e+ - e-)); log-probabilities move by that less its mean.
    logits = unembedding @ difference
    logits[chosen_id] += hidden @ hidden
    logits[rejected_id] -= hidden @ hidden
    rates = -loss_derivative * (logits - probs @ logits)
    chosen_rate = -loss_derivative * (m - gap * alignment - elsewhere)
    return SingleTokenRates(rates, chosen_rate, m, alignment, elsewhere, probs)


def multi_token_rate(
    unembedding: Float[Tensor, "vocabulary dim"],
    chosen_ids: Int[Tensor, " chosen"],
    rejected_ids: Int[Tensor, " rejected"],
    chosen_hidden: Float[Tensor, "chosen dim"],
    rejected_hidden: Float[Tensor, "rejected dim"],
) -> MultiTokenRate:
    """Rate of the chosen response's log-probability when responses have several tokens.

    Args:
        unembedding: W.
        chosen_ids: tokens of the chosen response.
        rejected_ids: tokens of the rejected one.
        chosen_hidden: h before each chosen token.
        rejected_hidden: h before each rejected token; where the tokens so far are the same, the same vector.

    Raises:
        PrefkitError: a response is empty, or has another number of states than tokens.

    Source: theorem 6; positions with one prefix in both responses share their state, all of them enter.
    """
    for name, ids, states in (("chosen", chosen_ids, chosen_hidden), ("rejected", rejected_ids, rejected_hidden)):
        if not len(ids) or len(ids) != len(states):
            raise PrefkitError(
                f"the {name} response needs a state for each of its tokens and at least one token, got {len(ids)} "
                f"tokens and {len(states)} states"
            )
    vocabulary = len(unembedding)

    def errors(ids: Tensor, states: Tensor) -> Tensor:
        return F.one_hot(ids, vocabulary).to(states.dtype) - torch.softmax(states @ unembedding.T, 1)

    plus, minus = errors(chosen_ids, chosen_hidden), errors(rejected_ids, rejected_hidden)
    alpha_plus, alpha_minus = plus @ plus.T, plus @ minus.T
    with_chosen = (alpha_plus * (chosen_hidden @ chosen_hidden.T)).sum()
    with_rejected = (alpha_minus * (chosen_hidden @ rejected_hidden.T)).sum()
    moved, against = plus @ unembedding, minus @ unembedding
    shared = _shared_prefix(chosen_ids, rejected_ids)
    hidden_part = (moved * moved).sum() - (moved[:shared] * against[:shared]).sum()
    lengths = (torch.tensor([len(ids)], device=chosen_ids.device) for ids in (chosen_ids, rejected_ids))
    (ches,) = ches_from_sums(chosen_hidden.sum(0)[None], rejected_hidden.sum(0)[None], *lengths)
    return MultiTokenRate(
        alpha_plus, alpha_minus, with_rejected - with_chosen, with_chosen - with_rejected + hidden_part, ches
    )


def _shared_prefix(chosen_ids: Tensor, rejected_ids: Tensor) -> int:
    """How many positions have the same tokens before them in both responses."""
    common = min(len(chosen_ids), len(rejected_ids))
    equal = int((chosen_ids[:common] == rejected_ids[:common]).long().cumprod(0).sum())
    return min(equal + 1, common)
