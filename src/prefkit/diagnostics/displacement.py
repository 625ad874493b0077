"""Displacement: why preferred responses become less likely in preference training, and which rows make them.

The score of a row (CHES, centred hidden embedding similarity) is read off the hidden states of the model before it is
trained: it is high where the preferred and the rejected response look alike to the model. Rates of change in closed
form are in `displacement_theory`.

Source: Razin et al. 2024, Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization
(arXiv 2410.08847).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from prefkit.diagnostics.intervals import Interval, bootstrap_interval
from prefkit.errors import OptionError, PrefkitError


def predicting_mask(last_prompt_index: Int[Tensor, " batch"], length: int) -> Bool[Tensor, "batch length"]:
    """Where the states stand from which the tokens of left-padded responses are predicted.

    From the last token of the prompt to the last but one of the sequence. The state at the last token predicts none.

    Args:
        last_prompt_index: place of the prompt's last token in each sequence.
        length: of the padded sequences.

    Raises:
        PrefkitError: a prompt ends where no response can follow.
    """
    if bool(((last_prompt_index < 0) | (last_prompt_index > length - 2)).any()):
        raise PrefkitError(
            f"last_prompt_index must lie in 0..{length - 2} for sequences of {length}, got {last_prompt_index.tolist()}"
        )
    places = torch.arange(length, device=last_prompt_index.device)
    return (places >= last_prompt_index[:, None]) & (places < length - 1)


def ches_score(
    chosen_hidden: Float[Tensor, "batch time_chosen dim"],
    rejected_hidden: Float[Tensor, "batch time_rejected dim"],
    chosen_mask: Float[Tensor, "batch time_chosen"],
    rejected_mask: Float[Tensor, "batch time_rejected"],
    *,
    length_normalize: bool = False,
) -> Float[Tensor, " batch"]:
    """CHES of each row from padded hidden states; see `ches_from_sums`.

    Args:
        chosen_hidden: last hidden states of prompt and chosen response, after the final norm.
        rejected_hidden: the same of the rejected response.
        chosen_mask: 1 where the state predicts a response token: the last prompt token to the last but one.
        rejected_mask: the same of the rejected response.
        length_normalize: as in definition 3.

    Raises:
        PrefkitError: shapes do not fit, a response is empty, or a state is not finite.
    """
    if len(chosen_hidden) != len(rejected_hidden):
        raise PrefkitError(
            f"each row has both responses: got {len(chosen_hidden)} chosen, {len(rejected_hidden)} rejected"
        )
    (chosen, chosen_lengths), (rejected, rejected_lengths) = (
        _sums(name, states, mask)
        for name, states, mask in (
            ("chosen", chosen_hidden, chosen_mask),
            ("rejected", rejected_hidden, rejected_mask),
        )
    )
    return ches_from_sums(chosen, rejected, chosen_lengths, rejected_lengths, length_normalize=length_normalize)


def _sums(name: str, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    if mask.shape != states.shape[:2]:
        raise PrefkitError(f"{name}_mask must be {tuple(states.shape[:2])}, got {tuple(mask.shape)}")
    there = mask.bool()
    # Padding may hold anything. Sums of large numbers that nearly cancel are taken in at least float32.
    exact = states if states.dtype == torch.float64 else states.float()
    return torch.where(there[:, :, None], exact, 0.0).sum(1), there.sum(1)


def ches_from_sums(
    chosen_sum: Float[Tensor, "batch dim"],
    rejected_sum: Float[Tensor, "batch dim"],
    chosen_lengths: Int[Tensor, " batch"],
    rejected_lengths: Int[Tensor, " batch"],
    *,
    length_normalize: bool = False,
) -> Float[Tensor, " batch"]:
    """CHES of each row from sums of hidden states: <S+, S-> - ||S+||^2. The higher, the more displacement.

    Normalised, <S+, S-> / (n+ n-) - ||S+||^2 / n+^2. Take that to compare rows of different lengths: the raw score
    grows with length, because hidden states of one model mostly point the same way.

    Args:
        chosen_sum: S+, sum of the states that predict the tokens of the chosen response.
        rejected_sum: S-, the same of the rejected response.
        chosen_lengths: n+, tokens, at least 1.
        rejected_lengths: n-.
        length_normalize: whether to divide by lengths.

    Raises:
        PrefkitError: shapes do not fit, a response is empty, or a state is not finite.

    Source: definitions 2 and 3. Two equal responses have 0, or nearly so: drop such rows first.
    """
    if chosen_sum.shape != rejected_sum.shape or chosen_sum.ndim != 2:
        raise PrefkitError(
            f"states of both responses must have one size, got {tuple(chosen_sum.shape)} and "
            f"{tuple(rejected_sum.shape)}"
        )
    for name, sums, lengths in (
        ("chosen", chosen_sum, chosen_lengths),
        ("rejected", rejected_sum, rejected_lengths),
    ):
        if bool((lengths < 1).any()):
            raise PrefkitError(f"row {int((lengths < 1).nonzero()[0, 0])}: the {name} response is empty")
        if not bool(torch.isfinite(sums).all()):
            raise PrefkitError(f"hidden states of the {name} responses must be finite; look at weights and precision")
    chosen, rejected = chosen_sum, rejected_sum
    if length_normalize:
        chosen, rejected = chosen / chosen_lengths[:, None], rejected / rejected_lengths[:, None]
    return (chosen * rejected).sum(1) - (chosen * chosen).sum(1)


def normalized_edit_distance(chosen_ids: Sequence[int], rejected_ids: Sequence[int]) -> float:
    """Levenshtein distance of two lists of tokens, as a share of the longer one; 0 for two empty ones.

    The paper's first baseline is its negative. Quadratic in the length.
    """
    longest = max(len(chosen_ids), len(rejected_ids))
    if not longest:
        return 0.0
    other = np.asarray(rejected_ids)
    row = np.arange(len(other) + 1)
    steps = np.arange(len(other) + 1)
    for place, token in enumerate(np.asarray(chosen_ids), start=1):
        best = np.minimum(row[:-1] + (other != token), row[1:] + 1)
        candidates = np.concatenate([[place], best])
        # An insertion costs one a place: the cheapest way into each place is a running minimum.
        row = np.minimum.accumulate(candidates - steps) + steps
    return float(row[-1]) / longest


def last_hidden_similarity(
    chosen_last: Float[Tensor, "batch dim"], rejected_last: Float[Tensor, "batch dim"]
) -> Float[Tensor, " batch"]:
    """Inner product of the hidden states at the last tokens of both responses, the paper's second baseline."""
    if chosen_last.shape != rejected_last.shape:
        raise PrefkitError(
            f"states of both responses must have one shape, got {tuple(chosen_last.shape)} and "
            f"{tuple(rejected_last.shape)}"
        )
    return (chosen_last * rejected_last).sum(-1)


def quantile_subset(scores: ArrayLike, quantile: float, count: int) -> NDArray[np.int64]:
    """Rows around a quantile of a score, in ascending order of it.

    Args:
        scores: `[n]`.
        quantile: in [0, 1]; its place is `round(quantile (n - 1))`, halves to even.
        count: rows to take, a window around that place that stays within the data; all where there are fewer.

    Raises:
        OptionError: the quantile is out of range, or the count below 1.
        PrefkitError: there are no scores, or one is not finite.
    """
    if not 0 <= quantile <= 1:
        raise OptionError(f"quantile must lie in [0, 1], got {quantile}")
    if count < 1:
        raise OptionError(f"count must be at least 1, got {count}")
    order = np.argsort(_scores(scores), kind="stable")
    centre = round(quantile * (len(order) - 1))
    start = max(0, min(centre - count // 2, len(order) - count))
    return order[start : start + count]


def filter_by_ches(scores: ArrayLike, keep_fraction: float = 0.05) -> NDArray[np.int64]:
    """The rows with the lowest scores, in their own order: those that displace least.

    Args:
        scores: `[n]`, length-normalised CHES.
        keep_fraction: share to keep, in (0, 1]; at least one row. 5% is the paper's, up to 15% did alike there.

    Raises:
        OptionError: the share is out of range.
        PrefkitError: there are no scores, or one is not finite.
    """
    if not 0 < keep_fraction <= 1:
        raise OptionError(f"keep_fraction must lie in (0, 1], got {keep_fraction}")
    values = _scores(scores)
    kept = max(1, round(keep_fraction * len(values)))
    return np.sort(np.argsort(values, kind="stable")[:kept])


class Displacement(NamedTuple):
    """What training did to the log-probabilities of the pairs, with 95% intervals (nats).

    Args:
        chosen_change: mean change of the chosen responses.
        rejected_change: mean change of the rejected ones.
        loss_change: mean change of the loss.
        both_fell: share of pairs in which both fell.
        chosen_fell: share in which the chosen response fell.
        displaced: the loss fell, and the mean of the chosen responses too (definition 1).
    """

    chosen_change: Interval
    rejected_change: Interval
    loss_change: Interval
    both_fell: Interval
    chosen_fell: Interval
    displaced: bool


def displacement_report(
    before_chosen: ArrayLike,
    before_rejected: ArrayLike,
    after_chosen: ArrayLike,
    after_rejected: ArrayLike,
    *,
    before_losses: ArrayLike | None = None,
    after_losses: ArrayLike | None = None,
    beta: float = 0.1,
    generator: np.random.Generator | None = None,
) -> Displacement:
    """Whether the likelihood of the chosen responses was displaced.

    Args:
        before_chosen: `[n]`, log-probabilities of the chosen responses before training (nats).
        before_rejected: `[n]`, of the rejected ones.
        after_chosen: `[n]`, after training.
        after_rejected: `[n]`.
        before_losses: `[n]`, losses before training; by default those of DPO, the model before training as reference.
        after_losses: `[n]`, losses after training.
        beta: temperature of those losses, above 0.
        generator: source of randomness of the intervals; a fresh one seeded with 0 by default.

    Raises:
        OptionError: beta is not above 0, or losses are given for one time only.
        PrefkitError: lengths differ, or a number is not finite.

    Source: definition 1.
    """
    if not beta > 0:
        raise OptionError(f"beta must be greater than 0, got {beta}")
    if (before_losses is None) != (after_losses is None):
        raise OptionError("give the losses of both times, or of neither")
    chosen = _scores(after_chosen) - _scores(before_chosen)
    rejected = _scores(after_rejected) - _scores(before_rejected)
    if before_losses is None or after_losses is None:
        change = np.logaddexp(0.0, -beta * (chosen - rejected)) - np.log(2)
    else:
        change = _scores(after_losses) - _scores(before_losses)

    def interval(values: NDArray[np.float64]) -> Interval:
        return bootstrap_interval(values, np.mean, generator)

    fell, other = chosen < 0, rejected < 0
    return Displacement(
        interval(chosen),
        interval(rejected),
        interval(change),
        interval((fell & other).astype(np.float64)),
        interval(fell.astype(np.float64)),
        bool(change.mean() < 0 and chosen.mean() < 0),
    )


def gaining_tokens(
    before: Float[Tensor, " vocabulary"], after: Float[Tensor, " vocabulary"], count: int = 10
) -> list[tuple[int, float]]:
    """The tokens that gained most probability at one place, for instance the first of a response, and how much.

    Args:
        before: log-probabilities of the next token before training.
        after: the same after training.
        count: how many tokens.
    """
    if before.shape != after.shape or before.ndim != 1:
        raise PrefkitError(
            f"both distributions must be over one vocabulary, got {tuple(before.shape)} and {tuple(after.shape)}"
        )
    gain = after.exp() - before.exp()
    found = gain.topk(min(count, len(gain)))
    return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def _scores(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise PrefkitError("scores must be a flat, non-empty list of finite numbers")
    return array
