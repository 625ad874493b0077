"""From one judgement to pairs, ranks or labels. Each comparison is one judgement, so pairs never cross annotators,
criteria or rating scales."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, TypeAlias

from prefkit.comparisons.record import Comparison, Label, Probability, Ranking, Ratings, StepLabels, Winner
from prefkit.errors import OptionError, RecordError, unknown

Strategy: TypeAlias = Literal["all", "best_worst", "adjacent"]
"""Which pairs a comparison of K responses gives."""

Ties: TypeAlias = Literal["skip", "half"]
"""What becomes of a tie: nothing, or a pair with probability one half."""


class Pair(NamedTuple):
    """Two responses of a comparison, by index.

    Args:
        chosen: the response that is the more probable winner.
        rejected: the other one.
        probability: that the chosen one wins, in [0.5, 1]; 0.5 is a tie.
        weight: importance.
        strength: how strongly the chosen one is preferred: the gap of the ratings, or the record's own strength.
    """

    chosen: int
    rejected: int
    probability: float = 1.0
    weight: float = 1.0
    strength: float | None = None


def all_pairs(ranks: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Every two responses, the better one first (in the order of the source where they are equal)."""
    order = sorted(range(len(ranks)), key=lambda index: ranks[index])
    for place, better in enumerate(order):
        for worse in order[place + 1 :]:
            yield better, worse


def best_worst(ranks: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """The first of the best against the last of the worst."""
    last = len(ranks) - 1
    best = min(range(last + 1), key=lambda index: ranks[index])
    worst = max(range(last, -1, -1), key=lambda index: ranks[index])
    if best != worst:
        yield best, worst
    else:  # everything is equal
        yield 0, last


def adjacent(ranks: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Each response against the next one in the ranking."""
    order = sorted(range(len(ranks)), key=lambda index: ranks[index])
    yield from itertools.pairwise(order)


STRATEGIES: dict[str, Callable[[tuple[int, ...]], Iterator[tuple[int, int]]]] = {
    "all": all_pairs,
    "best_worst": best_worst,
    "adjacent": adjacent,
}


def ranks(comparison: Comparison) -> tuple[int, ...]:
    """The rank of each response: 0 is best, equal ranks are ties.

    A winner among several responses is ranked 0 and all others 1: the judgement says nothing about them.

    Raises:
        RecordError: the judgement is on a single response.
    """
    match comparison.judgement:
        case Winner(index):
            return tuple(0 if place == index else 1 for place in range(len(comparison.responses)))
        case Ranking(given):
            places = {rank: place for place, rank in enumerate(sorted(set(given)))}
            return tuple(places[rank] for rank in given)
        case Ratings(values):
            levels = {value: place for place, value in enumerate(sorted(set(values), reverse=True))}
            return tuple(levels[value] for value in values)
        case Probability(first):
            return (0, 0) if first == 0.5 else (0, 1) if first > 0.5 else (1, 0)
    raise _not_compared(comparison)


def _not_compared(comparison: Comparison) -> RecordError:
    kind = "a label on" if isinstance(comparison.judgement, Label) else "labels on the steps of"
    return RecordError(
        f"{kind} a single response cannot give pairs; use an objective for unpaired feedback (kto, or sft on the good "
        "ones), or data that compares responses",
        field="judgement",
        source=comparison.source,
        line=comparison.line,
    )


def pairs(
    comparison: Comparison,
    strategy: Strategy = "all",
    min_margin: float = 0.0,
    ties: Ties = "skip",
    normalise: bool = False,
) -> list[Pair]:
    """The pairs of a comparison.

    Args:
        comparison: what was compared.
        strategy: "all" pairs, "best_worst" (one pair), or "adjacent" ones of the ranking. A winner among K responses
            is always paired with each of the others, about which nothing is said.
        min_margin: smallest gap of two ratings (or the record's strength) that makes a pair, at least 0. A pair whose
            strength is unknown is kept only where this is 0. A smaller gap is not a tie, it is left out.
        ties: "skip" leaves ties out, "half" gives them probability one half.
        normalise: divide the weight by the number of pairs, so that each comparison counts alike.

    Returns:
        Pairs of indices into the responses; empty where nothing is preferred.

    Raises:
        RecordError: the judgement is on a single response.
        OptionError: an option is unknown or out of range.
    """
    if strategy not in STRATEGIES:
        raise OptionError(unknown("pairing strategy", strategy, STRATEGIES))
    if ties not in ("skip", "half"):
        raise OptionError(unknown("treatment of ties", ties, ("skip", "half")))
    if not min_margin >= 0:
        raise OptionError(f"min_margin must be at least 0, got {min_margin}")
    order, judgement = ranks(comparison), comparison.judgement
    if isinstance(judgement, Winner):
        found = [(judgement.index, other) for other in range(len(order)) if other != judgement.index]
    else:
        found = list(STRATEGIES[strategy](order))
    result = []
    for chosen, rejected in found:
        if order[chosen] == order[rejected]:
            if ties == "half" and min_margin == 0:
                result.append(Pair(chosen, rejected, 0.5, comparison.weight))
            continue
        strength = comparison.strength
        if isinstance(judgement, Ratings):
            strength = judgement.values[chosen] - judgement.values[rejected]
        if min_margin > 0 and (strength is None or strength < min_margin):
            continue
        probability = max(judgement.first, 1.0 - judgement.first) if isinstance(judgement, Probability) else 1.0
        result.append(Pair(chosen, rejected, probability, comparison.weight, strength))
    if normalise:
        result = [pair._replace(weight=pair.weight / len(result)) for pair in result]
    return result


def labels(comparison: Comparison, threshold: float | None = None) -> list[tuple[int, bool]]:
    """Good or bad for each response on which the judgement says so: (index, good).

    Args:
        comparison: what was judged. A label is taken as it is; a winner is good and the other ones bad; of a ranking
            the best are good and all others bad; a probability decides unless it is one half. Ties say nothing,
            except that both are bad.
        threshold: smallest good rating; needed for ratings, meaningless otherwise.

    Raises:
        RecordError: the judgement is on steps, or ratings come without a threshold.
        OptionError: a threshold for a judgement without ratings.
    """
    judgement = comparison.judgement
    if threshold is not None and not isinstance(judgement, Ratings):
        raise OptionError(f"threshold applies to ratings only, and this judgement is a {type(judgement).__name__}")
    match judgement:
        case Label(good):
            return [(0, good)]
        case StepLabels():
            raise RecordError(
                "labels on steps say nothing about the whole response; use a process objective",
                field="judgement",
                source=comparison.source,
                line=comparison.line,
            )
        case Ratings(values):
            if threshold is None:
                raise RecordError(
                    "ratings become good or bad at a threshold; give one",
                    field="judgement",
                    source=comparison.source,
                    line=comparison.line,
                )
            return [(index, value >= threshold) for index, value in enumerate(values)]
        case Ranking(both_bad=True):
            return [(index, False) for index in range(len(comparison.responses))]
    order = ranks(comparison)
    return [] if len(set(order)) == 1 else [(index, rank == 0) for index, rank in enumerate(order)]
