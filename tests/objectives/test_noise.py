from __future__ import annotations

import numpy as np
import pytest

from prefkit.comparisons import Comparison, Label, Probability, Ranking, Ratings, RecordError, Winner
from prefkit.errors import OptionError
from prefkit.objectives import flip_preferences


def pairs(n: int) -> list[Comparison]:
    return [Comparison.pair(f"prompt {i}", "yes", "no", id=str(i)) for i in range(n)]


def test_flips_happen_at_the_rate_and_are_reported() -> None:
    n, rate = 20_000, 0.3
    flipped, mask = flip_preferences(pairs(n), rate, seed=1)
    assert [c.judgement == Winner(1) for c in flipped] == mask.tolist()
    assert [c.id for c in flipped] == [str(i) for i in range(n)]
    assert abs(mask.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n)


def test_seed_decides() -> None:
    first, again, other = (flip_preferences(pairs(200), 0.3, seed)[1].tolist() for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_each_annotator_has_a_rate() -> None:
    records = [Comparison.pair("p", "yes", "no", annotator=name) for name in ("anna", "ben") for _ in range(5000)]
    _, mask = flip_preferences(records, {"anna": 0.0, "ben": 0.4}, seed=0)
    assert not mask[:5000].any()
    assert abs(mask[5000:].mean() - 0.4) < 5 * np.sqrt(0.4 * 0.6 / 5000)


def test_annotator_without_a_rate_is_named() -> None:
    records = [Comparison.pair("p", "yes", "no", annotator="carl", source="file.jsonl", line=3)]
    with pytest.raises(
        RecordError, match=r"file.jsonl:3: field 'annotator': no flip rate is given for 'carl'; given: an"
    ):
        flip_preferences(records, {"anna": 0.1, "ben": 0.2}, seed=0)


def test_input_is_left_alone() -> None:
    records = pairs(50)
    flip_preferences(records, 0.4, seed=0)
    assert all(record.judgement == Winner(0) for record in records)


@pytest.mark.parametrize(
    ("judgement", "flipped"),
    [
        (Winner(1), Winner(0)),
        (Probability(0.75), Probability(0.25)),
        (Ranking((0, 1)), Ranking((1, 0))),
        (Ratings((4.0, 2.0)), Ratings((2.0, 4.0))),
    ],
)
def test_each_judgement_of_a_pair_is_turned_round(judgement: object, flipped: object) -> None:
    records = [Comparison(("p",), ("a", "b"), judgement)] * 40
    result, mask = flip_preferences(records, 0.49, seed=0)
    assert 0 < mask.sum() < 40
    assert [c.judgement for c in result] == [flipped if m else judgement for m in mask]


def test_label_of_a_single_response_is_flipped() -> None:
    result, mask = flip_preferences([Comparison(("p",), ("a",), Label(good=True))] * 40, 0.49, seed=0)
    assert [c.judgement.good for c in result] == (~mask).tolist()
    assert mask.any()


def test_ties_have_nothing_to_flip() -> None:
    _, mask = flip_preferences([Comparison(("p",), ("a", "b"), Ranking((0, 0)))] * 40, 0.49, seed=0)
    assert not mask.any()


def test_lists_cannot_be_flipped() -> None:
    lists = [Comparison(("p",), ("a", "b", "c"), Winner(0), source="file.jsonl", line=7)] * 10
    with pytest.raises(RecordError, match=r"file.jsonl:7: field 'judgement': only a judgement of a pair"):
        flip_preferences(lists, 0.49, seed=0)


def test_rate_out_of_range() -> None:
    with pytest.raises(OptionError, match=r"\[0, 0.5\)"):
        flip_preferences(pairs(1), 0.5, seed=0)
