from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkit.comparisons import (
    Comparison,
    Label,
    Ranking,
    Ratings,
    RecordError,
    Winner,
    build_curriculum,
    curriculum_pairs,
    curriculum_stages,
    from_dict,
    to_dict,
)
from prefkit.errors import OptionError


def rated(*values: float, prompt: str = "p", **more: Any) -> Comparison:
    return Comparison((prompt,), tuple(f"r{place}" for place in range(len(values))), Ratings(values), **more)


def texts(stage: Any) -> list[tuple[str, ...]]:
    return [pair.responses for pair in stage]


def test_best_against_rest_from_easy_to_hard() -> None:
    found = curriculum_pairs([4, 5, 2, 3])
    assert found == [(1, 2, 3), (1, 3, 2), (1, 0, 1)]


@given(st.lists(st.integers(0, 5).map(float), min_size=2, max_size=6), st.booleans())
def test_every_two_responses_are_paired_once(ratings: list[float], drop: bool) -> None:
    found = curriculum_pairs(ratings, "all_pairs", drop_ties=drop)
    wanted = {pair for pair in combinations(range(len(ratings)), 2) if not drop or len({ratings[i] for i in pair}) > 1}
    assert {tuple(sorted(pair[:2])) for pair in found} == wanted
    assert len(found) == len(wanted)
    assert all(ratings[pair.chosen] >= ratings[pair.rejected] for pair in found)
    assert [pair.gap for pair in found] == sorted((pair.gap for pair in found), reverse=True)


def test_ties_are_dropped_or_kept() -> None:
    assert curriculum_pairs([5, 5, 1]) == [(0, 2, 4)]
    assert curriculum_pairs([5, 5, 1], drop_ties=False) == [(0, 2, 4), (0, 1, 0)]


def test_the_references_gap_may_be_negative() -> None:
    assert curriculum_pairs([3, 1, 2], ref_logps=[-5, -9, -4]) == [(0, 1, 4), (0, 2, -1)]


@pytest.mark.parametrize(
    ("ratings", "message"),
    [([1.0], "at least two rated responses, got 1"), ([1.0, math.nan], "rating 1 must be a finite number, got nan")],
)
def test_bad_ratings_are_named(ratings: list[float], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        curriculum_pairs(ratings)


def test_shorter_lists_are_absent_from_later_stages() -> None:
    built = build_curriculum([rated(1, 4, 2), rated(5, 3, prompt="q")], num_stages=2)
    assert [[pair.prompts for pair in stage] for stage in built.stages] == [[("p",), ("q",)], [("p",)]]
    assert texts(built.stages[0]) == [("r1", "r0"), ("r0", "r1")]
    assert [pair.strength for pair in built.stages[0]] == [3, 2]
    assert built.stages[1][0].extra == {"gap": 2.0, "stage": 2}


def test_all_pairs_together_are_cut_into_equal_parts() -> None:
    built = build_curriculum([rated(9, 1, 8), rated(3, 1), rated(7, 2)], num_stages=2, scope="global")
    assert [[pair.extra["gap"] for pair in stage] for stage in built.stages] == [[8, 5], [2, 1]]
    lists = [curriculum_pairs(list(map(float, range(n)))) for n in (5, 4, 3)]
    sizes = [len(stage) for stage in curriculum_stages(lists, 4, "global")]
    assert sum(sizes) == sum(map(len, lists))
    assert max(sizes) - min(sizes) <= 1


def test_ranks_make_a_curriculum_too() -> None:
    record = Comparison(("p",), ("a", "b", "c"), Ranking((2, 0, 1)))
    built = build_curriculum([record], criterion="rank", num_stages=2)
    assert [texts(stage) for stage in built.stages] == [[("b", "a")], [("b", "c")]]


def test_pairs_keep_what_was_said() -> None:
    record = Comparison(
        ("p", "q", "s"), ("a", "b", "c"), Ratings((1, 3, 2)), steps=(("a",), ("b",), None), annotator="ann", line=4
    )
    pair = build_curriculum([record], num_stages=1).stages[0][0]
    assert (pair.prompts, pair.responses, pair.judgement) == (("q", "p"), ("b", "a"), Winner(0))
    assert (pair.steps, pair.annotator, pair.line) == ((("b",), ("a",)), "ann", 4)
    assert from_dict(to_dict(pair)).extra["gap"] == 2


def test_what_has_no_ratings_is_set_aside() -> None:
    records = [rated(1, 2), Comparison.pair("p", "a", "b", source="f", line=2), Comparison(("p",), ("a",), Label(True))]
    skipped = build_curriculum(records, num_stages=1).skipped
    assert (
        str(skipped[0])
        == "f:2: field 'judgement': criterion 'rating' needs a rating of each response; ranks go with 'rank'"
    )
    assert "single response" in str(skipped[1])


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([rated(1, 2)], {"num_stages": 0}, "num_stages must be at least 1, got 0"),
        ([rated(1, 2, 3)], {}, "stage 3 of 3 is empty: no prompt gives more than 2 pairs; use at most 2 stages"),
        ([rated(1, 1)], {}, "stage 1 of 3 is empty: no prompt gives a pair"),
        ([rated(1, 2)], {"scope": "global"}, "is empty: there are 1 pairs in all"),
        (
            [Comparison.pair("p", "a", "b")],
            {},
            r"empty: no prompt gives a pair \(1 comparisons were set aside, the first",
        ),
        ([rated(1, 2)], {"criterion": "logp"}, "ref_logps goes with criterion 'logp'"),
        ([rated(1, 2)], {"ref_logps": [[0.0, 1.0]]}, "ref_logps goes with criterion 'logp'"),
        ([rated(1, 2)], {"criterion": "logp", "ref_logps": []}, "one list a comparison, got 0 for 1"),
        ([rated(1, 2)], {"criterion": "logp", "ref_logps": [[0.0]]}, "one number a response, got 1 for 2"),
        ([rated(1, 2)], {"criterion": "given", "num_stages": 2}, "num_stages must be 3 for criterion 'given', got 2"),
        ([rated(1, 2, extra={"difficulty": "easy"})], {"criterion": "given"}, "no pair is called medium"),
        ([rated(1, 2)], {"criterion": "given"}, "needs pairs with a difficulty of easy, medium, hard, got None"),
    ],
)
def test_messages(records: list[Comparison], options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build_curriculum(records, **options)


def test_given_difficulties_are_the_stages() -> None:
    records = [rated(2, 1, prompt=name, extra={"difficulty": name}) for name in ("hard", "easy", "medium", "easy")]
    built = build_curriculum(records, criterion="given")
    assert [[pair.prompts[0] for pair in stage] for stage in built.stages] == [["easy", "easy"], ["medium"], ["hard"]]
