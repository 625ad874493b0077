"""Pairs, ranks and labels of a judgement, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkit.comparisons import (
    Comparison,
    Judgement,
    Label,
    Pair,
    Probability,
    Ranking,
    Ratings,
    StepLabels,
    Winner,
    labels,
    pairs,
    ranks,
)
from prefkit.errors import OptionError, RecordError


def judged(judgement: Judgement, count: int = 2, **more: Any) -> Comparison:
    return Comparison(("p",), tuple(f"r{index}" for index in range(count)), judgement, **more)


def chosen(comparison: Comparison, **how: Any) -> list[tuple[int, int]]:
    return [(pair.chosen, pair.rejected) for pair in pairs(comparison, **how)]


def test_winner_beats_each_other_one_under_every_strategy() -> None:
    for strategy in ("all", "best_worst", "adjacent"):
        assert chosen(judged(Winner(1), 3), strategy=strategy) == [(1, 0), (1, 2)]


def test_strategies() -> None:
    ranking = judged(Ranking((2, 0, 1)), 3)
    assert chosen(ranking) == [(1, 2), (1, 0), (2, 0)]
    assert chosen(ranking, strategy="best_worst") == [(1, 0)]
    assert chosen(ranking, strategy="adjacent") == [(1, 2), (2, 0)]


def test_ties() -> None:
    tied = judged(Ranking((0, 0, 1)), 3)
    assert chosen(tied) == [(0, 2), (1, 2)]
    assert pairs(tied, ties="half") == [Pair(0, 1, 0.5), Pair(0, 2), Pair(1, 2)]
    for equal in (Ranking((0, 0)), Ratings((2.0, 2.0)), Probability(0.5)):
        for strategy in ("all", "best_worst", "adjacent"):
            assert pairs(judged(equal), strategy) == []
            assert pairs(judged(equal), strategy, ties="half") == [Pair(0, 1, 0.5)]


def test_ratings_carry_their_gap() -> None:
    rated = judged(Ratings((1.0, 4.0, 3.5)), 3)
    assert pairs(rated) == [Pair(1, 2, strength=0.5), Pair(1, 0, strength=3.0), Pair(2, 0, strength=2.5)]
    assert chosen(rated, min_margin=1.0) == [(1, 0), (2, 0)]


def test_margin_of_other_judgements_is_their_strength() -> None:
    assert pairs(judged(Winner(0), strength=2.0), min_margin=1.0) == [Pair(0, 1, strength=2.0)]
    assert pairs(judged(Winner(0), strength=0.5), min_margin=1.0) == []
    assert pairs(judged(Winner(0)), min_margin=1.0) == []


def test_probability() -> None:
    assert pairs(judged(Probability(0.75))) == [Pair(0, 1, 0.75)]
    assert pairs(judged(Probability(0.25))) == [Pair(1, 0, 0.75)]


def test_weights() -> None:
    three = judged(Ranking((0, 1, 2)), 3, weight=6.0)
    assert [pair.weight for pair in pairs(three)] == [6.0, 6.0, 6.0]
    assert [pair.weight for pair in pairs(three, normalise=True)] == [2.0, 2.0, 2.0]


@given(st.lists(st.integers(0, 4), min_size=2, max_size=7))
def test_every_strict_pair_occurs_once(given_ranks: list[int]) -> None:
    found = chosen(judged(Ranking(tuple(given_ranks)), len(given_ranks)))
    assert sorted(found) == sorted(
        (i, j) for i, a in enumerate(given_ranks) for j, b in enumerate(given_ranks) if a < b
    )


def test_ranks_are_dense() -> None:
    assert ranks(judged(Ranking((4, 1, 4)), 3)) == (1, 0, 1)
    assert ranks(judged(Ratings((0.5, 9.0, 9.0)), 3)) == (1, 0, 0)
    assert ranks(judged(Winner(2), 3)) == (1, 1, 0)
    assert ranks(judged(Probability(0.1))) == (1, 0)


def test_labels() -> None:
    assert labels(judged(Label(False), 1)) == [(0, False)]
    assert labels(judged(Winner(1))) == [(0, False), (1, True)]
    assert labels(judged(Ratings((1.0, 4.0))), threshold=4.0) == [(0, False), (1, True)]
    assert labels(judged(Ranking((0, 0)))) == []
    assert labels(judged(Ranking((0, 0), both_bad=True))) == [(0, False), (1, False)]
    with pytest.raises(RecordError, match="threshold"):
        labels(judged(Ratings((1.0, 4.0))))
    with pytest.raises(OptionError, match="ratings only"):
        labels(judged(Winner(0)), threshold=1.0)
    with pytest.raises(RecordError, match="process objective"):
        labels(judged(StepLabels((1.0,)), 1))


@pytest.mark.parametrize("judgement", [Label(True), StepLabels((1.0,))])
def test_single_responses_give_no_pairs(judgement: Judgement) -> None:
    with pytest.raises(RecordError, match=r"f\.jsonl:3: field 'judgement': .*single response .*unpaired feedback"):
        pairs(judged(judgement, 1, source="f.jsonl", line=3))


def test_options() -> None:
    with pytest.raises(OptionError, match="did you mean 'best_worst'"):
        pairs(judged(Winner(0)), "best-worst")  # type: ignore[arg-type]  # the error is the point
    with pytest.raises(OptionError, match="min_margin must be at least 0, got -1"):
        pairs(judged(Winner(0)), min_margin=-1)
    with pytest.raises(OptionError, match="treatment of ties"):
        pairs(judged(Winner(0)), ties="drop")  # type: ignore[arg-type]  # the error is the point
