from __future__ import annotations

import pytest

from prefkit.comparisons import Comparison, Label, Ranking, Ratings, Winner
from prefkit.errors import OptionError, PrefkitError
from prefkit.preference import named_comparisons

PAIR = Comparison(("p",), ("x", "y"), Winner(1), weight=2.0, extra={"model_a": "m", "model_b": "n"})


def test_names_keep_their_side_and_outcomes_follow() -> None:
    tie = Comparison(("p",), ("x", "y"), Ranking((0, 0)), extra={"model_a": "m", "model_b": "n"})
    found = named_comparisons([PAIR, tie])
    assert found.X.tolist() == [["m", "n"], ["m", "n"]]
    assert found.y.tolist() == [0.0, 0.5]
    assert found.weights.tolist() == [2.0, 1.0]


def test_lists_of_names_give_all_pairs() -> None:
    rated = Comparison(("p",), ("x", "y", "z"), Ratings((1.0, 3.0, 2.0)), extra={"models": ["a", "b", "c"]})
    found = named_comparisons([rated])
    outcomes = {tuple(row): outcome for row, outcome in zip(found.X.tolist(), found.y, strict=True)}
    assert outcomes == {("a", "b"): 0.0, ("a", "c"): 0.0, ("b", "c"): 1.0}


def test_texts_can_be_the_items() -> None:
    assert named_comparisons([PAIR], ["responses"]).X.tolist() == [["x", "y"]]


def test_what_has_no_names_is_set_aside() -> None:
    bare = Comparison.pair("p", "x", "y", source="f", line=3, extra={"model_a": "m"})
    alone = Comparison(("p",), ("x",), Label(True), extra={"model_a": "m", "model_b": "n"})
    same = Comparison.pair("p", "x", "y", extra={"model_a": "m", "model_b": "m"})
    found = named_comparisons([PAIR, bare, alone, same])
    assert len(found.y) == 1
    assert [error.field for error in found.skipped] == ["model_b", "judgement", "model_a"]
    assert "f:3" in str(found.skipped[0])


def test_bad_input_is_refused() -> None:
    with pytest.raises(PrefkitError, match="do not say who was compared"):
        named_comparisons([Comparison.pair("p", "x", "y")])
    with pytest.raises(PrefkitError, match="no comparison of named items; the first: field 'models': must be a list"):
        named_comparisons([Comparison.pair("p", "x", "y")], ["models"])
    with pytest.raises(OptionError, match="2 options, and 3 fields"):
        named_comparisons([PAIR], ["a", "b", "c"])
