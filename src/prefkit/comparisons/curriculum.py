"""Curricula: several pairs of each rated list, in stages from easy (far apart) to hard (close together)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal, NamedTuple, TypeAlias

from prefkit.comparisons.formats.training import DIFFICULTIES
from prefkit.comparisons.pairing import ranks
from prefkit.comparisons.record import Comparison, Ratings
from prefkit.comparisons.trees import pair_of
from prefkit.errors import OptionError, RecordError

Mode: TypeAlias = Literal["best_vs_rest", "all_pairs"]
"""Which pairs of a list are made: the best response against each other one, or every two."""

Criterion: TypeAlias = Literal["rating", "rank", "logp", "given"]
"""What makes a pair easy: a large gap of the ratings, of the ranks, or of the reference's log-probabilities; or what
the data say."""

Scope: TypeAlias = Literal["per_prompt", "global"]
"""The k-th easiest pair of every prompt makes stage k, or all pairs together are ordered and cut into equal parts."""


class Candidate(NamedTuple):
    """A pair of a list.

    Args:
        chosen: place of the better response.
        rejected: place of the other one.
        gap: how far apart they are; larger is easier.
    """

    chosen: int
    rejected: int
    gap: float


@dataclass(frozen=True)
class Curriculum:
    """Pairs in stages.

    Args:
        stages: the pairs of each stage, easy ones first; the gap is in `extra["gap"]`.
        skipped: why comparisons were set aside.
    """

    stages: tuple[tuple[Comparison, ...], ...]
    skipped: tuple[RecordError, ...] = ()


def curriculum_pairs(
    ratings: Sequence[float],
    mode: Mode = "best_vs_rest",
    *,
    drop_ties: bool = True,
    ref_logps: Sequence[float] | None = None,
) -> list[Candidate]:
    """The pairs of one list, easy ones first.

    Args:
        ratings: of the responses, higher is better.
        mode: "best_vs_rest" pairs the best response (the first of equal ones) with each other one, "all_pairs" every
            two.
        drop_ties: leave out pairs of equal rating; otherwise the first of the two counts as chosen.
        ref_logps: log-probability of each response under the reference, whose gap then decides instead of the
            ratings'.

    Returns:
        Pairs in the order of falling gaps; equal gaps in the order of the places.

    Raises:
        RecordError: fewer than two ratings, or one that is not a finite number.
        OptionError: not one log-probability a response.
    """
    if len(ratings) < 2:
        raise RecordError(f"a curriculum needs at least two rated responses, got {len(ratings)}", field="ratings")
    for place, rating in enumerate(ratings):
        if not math.isfinite(rating):
            raise RecordError(f"rating {place} must be a finite number, got {rating}", field="ratings")
    if ref_logps is not None and len(ref_logps) != len(ratings):
        raise OptionError(f"ref_logps must hold one number a response, got {len(ref_logps)} for {len(ratings)}")
    best = max(range(len(ratings)), key=lambda place: ratings[place])
    both = (
        combinations(range(len(ratings)), 2)
        if mode == "all_pairs"
        else ((best, other) for other in range(len(ratings)) if other != best)
    )
    found = []
    for one, other in both:
        chosen, rejected = (one, other) if ratings[one] >= ratings[other] else (other, one)
        if drop_ties and ratings[chosen] == ratings[rejected]:
            continue
        by = ratings if ref_logps is None else ref_logps
        found.append(Candidate(chosen, rejected, float(by[chosen] - by[rejected])))
    return sorted(found, key=lambda pair: (-pair.gap, pair.chosen, pair.rejected))


def curriculum_stages(
    lists: Sequence[Sequence[Candidate]], num_stages: int = 3, scope: Scope = "per_prompt"
) -> list[list[tuple[int, Candidate]]]:
    """The pairs of many lists, distributed over stages; each with the place of its list.

    Lists with fewer pairs than there are stages are absent from the later ones.

    Args:
        lists: the pairs of each list, easy ones first.
        num_stages: number of stages.
        scope: see `Scope`.

    Raises:
        OptionError: fewer than one stage.
    """
    if num_stages < 1:
        raise OptionError(f"num_stages must be at least 1, got {num_stages}")
    if scope == "per_prompt":
        return [
            [(place, pairs[stage]) for place, pairs in enumerate(lists) if len(pairs) > stage]
            for stage in range(num_stages)
        ]
    everything = [(place, pair) for place, pairs in enumerate(lists) for pair in pairs]
    everything.sort(key=lambda entry: -entry[1].gap)
    cuts = [round(len(everything) * stage / num_stages) for stage in range(num_stages + 1)]
    return [everything[start:end] for start, end in pairwise(cuts)]


def build_curriculum(
    comparisons: Iterable[Comparison],
    *,
    mode: Mode = "best_vs_rest",
    criterion: Criterion = "rating",
    scope: Scope = "per_prompt",
    num_stages: int = 3,
    drop_ties: bool = True,
    ref_logps: Sequence[Sequence[float]] | None = None,
) -> Curriculum:
    """Pairs of rated or ranked lists, in stages from easy to hard.

    Args:
        comparisons: lists with ratings, or with ranks for `criterion="rank"`; for "given", pairs whose
            `extra["difficulty"]` is easy, medium or hard.
        mode: which pairs of a list are made.
        criterion: what makes a pair easy. With "logp" the ratings still say which response is chosen.
        scope: how pairs become stages.
        num_stages: number of stages.
        drop_ties: leave out pairs of equal rating.
        ref_logps: log-probabilities of the responses of each comparison under the reference; needed for "logp".

    Raises:
        OptionError: fewer than one stage, "logp" without `ref_logps` or the other way round, or a stage is empty.

    Source: Curry-DPO (arXiv 2403.07230).
    """
    if (criterion == "logp") != (ref_logps is not None):
        raise OptionError("ref_logps goes with criterion 'logp': give both, or neither")
    records = list(comparisons)
    if ref_logps is not None and len(ref_logps) != len(records):
        raise OptionError(f"ref_logps must hold one list a comparison, got {len(ref_logps)} for {len(records)}")
    lists: list[list[Candidate]] = []
    skipped: list[RecordError] = []
    for place, record in enumerate(records):
        try:
            lists.append(_candidates(record, mode, criterion, drop_ties, ref_logps[place] if ref_logps else None))
        except RecordError as error:
            lists.append([])
            skipped.append(error.at(record))
    if criterion == "given":
        if num_stages != len(DIFFICULTIES):
            raise OptionError(f"num_stages must be {len(DIFFICULTIES)} for criterion 'given', got {num_stages}")
        # A given difficulty is its own gap: 0, -1, -2.
        entries = [(place, pair) for place, pairs in enumerate(lists) for pair in pairs]
        stages = [[entry for entry in entries if entry[1].gap == -stage] for stage in range(num_stages)]
    else:
        stages = curriculum_stages(lists, num_stages, scope)
    for number, stage in enumerate(stages, 1):
        if not stage:
            raise OptionError(_why_empty(number, num_stages, lists, scope, criterion, skipped))
    return Curriculum(
        tuple(
            tuple(_pair(records[place], pair, number) for place, pair in stage) for number, stage in enumerate(stages)
        ),
        tuple(skipped),
    )


def _candidates(
    record: Comparison, mode: Mode, criterion: Criterion, drop_ties: bool, ref_logps: Sequence[float] | None
) -> list[Candidate]:
    order = ranks(record)
    if criterion == "given":
        difficulty = record.extra.get("difficulty")
        if difficulty not in DIFFICULTIES or len(order) != 2 or order[0] == order[1]:
            raise RecordError(
                f"criterion 'given' needs pairs with a difficulty of {', '.join(DIFFICULTIES)}, got {difficulty!r}",
                field="difficulty",
            )
        return [Candidate(order.index(0), order.index(1), -float(DIFFICULTIES.index(difficulty)))]
    if criterion == "rank" or (criterion == "logp" and not isinstance(record.judgement, Ratings)):
        return curriculum_pairs([-rank for rank in order], mode, drop_ties=drop_ties, ref_logps=ref_logps)
    if not isinstance(record.judgement, Ratings):
        raise RecordError("criterion 'rating' needs a rating of each response; ranks go with 'rank'", field="judgement")
    return curriculum_pairs(record.judgement.values, mode, drop_ties=drop_ties, ref_logps=ref_logps)


def _pair(record: Comparison, pair: Candidate, stage: int) -> Comparison:
    return pair_of(record, pair.chosen, pair.rejected, extra={**record.extra, "gap": pair.gap, "stage": stage + 1})


def _why_empty(
    number: int,
    num_stages: int,
    lists: Sequence[Sequence[Candidate]],
    scope: Scope,
    criterion: Criterion,
    skipped: Sequence[RecordError],
) -> str:
    most = max(map(len, lists), default=0)
    if criterion == "given":
        why = f"no pair is called {DIFFICULTIES[number - 1]}"
    elif most == 0:
        why = "no prompt gives a pair"
    elif scope == "per_prompt":
        why = f"no prompt gives more than {most} pairs; use at most {most} stages"
    else:
        why = f"there are {sum(map(len, lists))} pairs in all"
    set_aside = f" ({len(skipped)} comparisons were set aside, the first because: {skipped[0]})" if skipped else ""
    return f"stage {number} of {num_stages} is empty: {why}{set_aside}"
