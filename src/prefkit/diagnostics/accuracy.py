"""Accuracy: what the scores of pairs say about a policy, pair by pair and with intervals.

A policy ranks a pair rightly when it gives the chosen response the higher log-probability. Against a reference, its
implicit reward is beta times the log-ratio of policy to reference (Rafailov et al. 2023, Direct Preference
Optimization, section 4), and a pair is right when the chosen response has the higher reward. Chosen and rejected
log-probability changes are kept apart, because a margin also grows when both fall.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefkit.diagnostics.intervals import Interval, bootstrap_interval
from prefkit.errors import OptionError, PrefkitError
from prefkit.objectives import PairScores

Values = NDArray[np.float64]

LABELS = {
    "ranking_accuracy": "ranking accuracy",
    "ranking_accuracy_per_token": "ranking accuracy, per token",
    "reward_accuracy": "reward accuracy",
    "reward_margin": "reward margin (nats)",
    "chosen_logp_change": "chosen log-prob change (nats)",
    "rejected_logp_change": "rejected log-prob change (nats)",
}
"""The figures of a pair, as tables and plots call them."""


def wins(chosen: ArrayLike, rejected: ArrayLike) -> Values:
    """1 where the chosen response has the higher score, 0 where it has the lower one, 0.5 where they are equal.

    Args:
        chosen: `[pairs]`, scores of the chosen responses.
        rejected: `[pairs]`, scores of the rejected responses.

    Raises:
        PrefkitError: a score is not a finite number, or the two differ in length.
    """
    better, worse = _scores(chosen, rejected)
    return np.heaviside(better - worse, 0.5)


def pairwise_accuracy(chosen: ArrayLike, rejected: ArrayLike, *, ties: float = 0.5) -> float:
    """Share of pairs whose chosen response has the higher score.

    Args:
        chosen: `[pairs]`, scores of the chosen responses, at least one pair.
        rejected: `[pairs]`, scores of the rejected responses.
        ties: what a pair of equal scores counts, in [0, 1]; 0 counts ties as wrong.

    Raises:
        OptionError: ties is out of range.
        PrefkitError: there are no pairs, or as `wins`.
    """
    if not 0 <= ties <= 1:
        raise OptionError(f"ties must lie in [0, 1], got {ties}")
    won = wins(chosen, rejected)
    if not len(won):
        raise PrefkitError("an accuracy needs at least one pair")
    return float(np.where(won == 0.5, ties, won).mean())


def win_rate(wins: int, ties: int, losses: int) -> float:
    """Share of comparisons that were won, in percent, a tie counting half.

    Args:
        wins: comparisons won, for instance against a reference response.
        ties: comparisons without a winner.
        losses: comparisons lost.

    Raises:
        OptionError: there is none, or a count is negative.
    """
    if min(wins, ties, losses) < 0 or wins + ties + losses == 0:
        raise OptionError(f"wins, ties and losses must be counts with a sum of at least 1, got {(wins, ties, losses)}")
    return 100 * (wins + ties / 2) / (wins + ties + losses)


def ranking_wins(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    chosen_lengths: ArrayLike | None = None,
    rejected_lengths: ArrayLike | None = None,
) -> Values:
    """`wins` by log-probability: summed over tokens, or per token if lengths are given.

    Args:
        chosen_logps: `[pairs]`, log-probabilities of the chosen responses (nats).
        rejected_logps: `[pairs]`, log-probabilities of the rejected responses (nats).
        chosen_lengths: `[pairs]`, tokens of the chosen responses, at least 1.
        rejected_lengths: `[pairs]`, tokens of the rejected responses, at least 1.

    Raises:
        PrefkitError: lengths for one side only, a length below 1, or as `wins`.
    """
    chosen, rejected = _scores(chosen_logps, rejected_logps)
    if chosen_lengths is None and rejected_lengths is None:
        return wins(chosen, rejected)
    if chosen_lengths is None or rejected_lengths is None:
        raise PrefkitError("a comparison per token needs the lengths of both responses")
    lengths = _scores(chosen_lengths, rejected_lengths)
    if min(side.min() for side in lengths) < 1:
        raise PrefkitError("a response has at least one token; got a length below 1")
    return wins(chosen / lengths[0], rejected / lengths[1])


def implicit_rewards(policy_logps: ArrayLike, ref_logps: ArrayLike, beta: float = 1.0) -> Values:
    """`beta * (log pi - log pi_ref)` of each response, in nats.

    Args:
        policy_logps: `[n]`, log-probabilities under the policy (nats).
        ref_logps: `[n]`, log-probabilities under the reference (nats).
        beta: scale of the reward, above 0.

    Raises:
        OptionError: beta is not above 0.
        PrefkitError: a log-probability is not a finite number, or the two differ in length.
    """
    if not beta > 0:
        raise OptionError(f"beta must be greater than 0, got {beta}")
    policy, ref = _scores(policy_logps, ref_logps)
    return beta * (policy - ref)


def pair_figures(scores: PairScores, beta: float = 1.0) -> dict[str, Values]:
    """Every figure of each pair that its scores allow; the names are those of `LABELS`.

    Args:
        scores: scores of the pairs, with lengths and reference where known.
        beta: scale of the implicit reward, above 0.

    Returns:
        One array `[pairs]` a figure. Without reference, the figures that compare with it are left out.

    Raises:
        OptionError: beta is not above 0.
        PrefkitError: a score is not a finite number.
    """
    chosen, rejected = scores.policy_chosen_logps.numpy(), scores.policy_rejected_logps.numpy()
    compared = (chosen, rejected) if scores.odds is None else (scores.odds.numpy(), np.zeros(len(chosen)))
    figures = {"ranking_accuracy": ranking_wins(*compared)}
    if scores.chosen_lengths is not None and scores.rejected_lengths is not None:
        lengths = scores.chosen_lengths.numpy(), scores.rejected_lengths.numpy()
        figures["ranking_accuracy_per_token"] = ranking_wins(chosen, rejected, *lengths)
    if scores.ref_chosen_logps is not None and scores.ref_rejected_logps is not None:
        ref_chosen, ref_rejected = scores.ref_chosen_logps.numpy(), scores.ref_rejected_logps.numpy()
        good, bad = implicit_rewards(chosen, ref_chosen, beta), implicit_rewards(rejected, ref_rejected, beta)
        figures["reward_accuracy"] = wins(good, bad)
        figures["reward_margin"] = good - bad
        figures["chosen_logp_change"] = good / beta
        figures["rejected_logp_change"] = bad / beta
    return figures


def summarise(
    figures: Mapping[str, Values], prompts: ArrayLike, generator: np.random.Generator | None = None
) -> dict[str, Interval]:
    """Mean of each figure with a 95% bootstrap interval over prompts.

    Args:
        figures: one array `[pairs]` a figure.
        prompts: `[pairs]`, which prompt each pair belongs to; pairs of one prompt are resampled together.
        generator: source of randomness; a fresh one seeded with 0 by default.

    Raises:
        PrefkitError: there are no pairs, or a value is not a finite number.
    """
    return {name: bootstrap_interval(values, np.mean, generator, clusters=prompts) for name, values in figures.items()}


def kl_estimate(
    policy_logps: ArrayLike,
    ref_logps: ArrayLike,
    *,
    estimator: Literal["k1", "k3"] = "k1",
    prompts: ArrayLike | None = None,
    generator: np.random.Generator | None = None,
) -> Interval:
    """KL(policy || reference) per response, estimated from responses that the policy itself wrote.

    The responses of a comparison file were written by someone else: on them this is no KL.

    Args:
        policy_logps: `[n]`, log-probability of each sampled response under the policy (nats).
        ref_logps: `[n]`, the same under the reference (nats).
        estimator: with x = log pi - log pi_ref, `k1` is the mean of x, unbiased and possibly negative; `k3` is the mean
            of exp(-x) - 1 + x, unbiased and never negative, for policies still near the reference.
        prompts: `[n]`, which prompt each response answers; responses of one prompt are resampled together.
        generator: source of randomness; a fresh one seeded with 0 by default.

    Raises:
        PrefkitError: a log-probability is not a finite number, or `k3` overflows: the policies are too far apart.

    Source: Schulman (2020), Approximating KL divergence.
    """
    policy, ref = _scores(policy_logps, ref_logps)
    ratio = policy - ref
    if estimator == "k3":
        with np.errstate(over="ignore"):
            values = np.expm1(-ratio) + ratio
        if not np.isfinite(values).all():
            raise PrefkitError("policy and reference are too far apart for the estimator k3; use k1")
    else:
        values = ratio
    return bootstrap_interval(values, np.mean, generator, clusters=prompts)


def _scores(first: ArrayLike, second: ArrayLike) -> tuple[Values, Values]:
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape or one.ndim != 1:
        raise PrefkitError(f"scores must be two flat lists of one length, got shapes {one.shape} and {two.shape}")
    bad = np.flatnonzero(~(np.isfinite(one) & np.isfinite(two)))
    if len(bad):
        raise PrefkitError(f"scores {bad[0]} must be finite numbers, got {one[bad[0]]} and {two[bad[0]]}")
    return one, two
