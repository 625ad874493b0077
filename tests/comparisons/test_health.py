"""Counts of a small set whose figures are known by construction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy.stats import binomtest

from prefkit.comparisons import (
    Comparison,
    Label,
    Ranking,
    Ratings,
    Winner,
    check_comparisons,
    load_comparisons,
)
from prefkit.comparisons.health import Share


def test_counts() -> None:
    def two(first: str, second: str, judgement: Winner | Ranking, who: str, prompt: str = "p") -> Comparison:
        return Comparison((prompt,), (first, second), judgement, annotator=who, criterion="taste")

    health = check_comparisons(
        [
            two("long one", "short", Winner(0), "x"),
            two("long one", "short", Winner(0), "x"),  # duplicate
            two("short", "long one", Winner(0), "x"),  # exchanged, contradiction
            two("aa", "bb", Winner(1), "y", "q"),
            two("aa", "bb", Winner(0), "z", "q"),  # conflict of two people
            two("aa", "cc", Ranking((0, 0)), "y", "q"),
            two("bad", "worse", Ranking((0, 0), both_bad=True), "y", "r"),
            two("same", "same", Ranking((0, 0)), "y", "s"),
            Comparison(("t", "u"), ("a", "b"), Winner(0)),
            Comparison(("v",), ("1", "22", "333"), Ratings((3.0, 2.0, 1.0))),
            Comparison(("w",), ("only",), Label(True)),
        ]
    )
    assert health.rows == 11
    assert health.kinds == {"Winner": 6, "Ranking": 3, "Ratings": 1, "Label": 1}
    assert (health.joint, health.prompts, health.both_bad) == (1, 8, 1)
    assert (health.pairs, health.ties) == (6 + 3 + 3, 3)
    assert (health.duplicates, health.exchanged, health.identical) == (1, 1, 1)
    assert (health.conflicts, health.contradictions) == (2, 1)
    assert (health.longer_wins.count, health.longer_wins.total) == (2, 3 + 3)
    assert (health.first_wins.count, health.first_wins.total) == (5 + 3, 9)
    assert health.annotators == 3
    assert health.criteria == {"taste": 8}
    # p: 2, q: 3, r: 2, s: 1, t and u: 1 each, v: 3, w: 1 different responses
    assert health.responses_per_prompt == 14 / 8


@pytest.mark.parametrize(("count", "total"), [(0, 5), (3, 10), (50, 50), (333, 1000)])
def test_wilson_interval(count: int, total: int) -> None:
    expected = binomtest(count, total).proportion_ci(method="wilson")
    assert Share(count, total).interval == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_bad_rows_are_part_of_it(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (row, {**row, "chosen": "b"}, {**row, "prompt": None})))
    health = check_comparisons(load_comparisons(path))
    assert (health.format, health.rows, health.bad_rows, health.identical) == ("trl_preference", 1, 2, 1)
    assert [bad.line for bad in health.examples] == [2, 3]
    assert sum(health.reasons.values()) == 2
    json.dumps(health.as_dict(), allow_nan=False)


def test_nothing_at_all() -> None:
    health = check_comparisons([])
    assert json.loads(json.dumps(health.as_dict(), allow_nan=False))["longer_wins"]["share"] is None
