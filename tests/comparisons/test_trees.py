from __future__ import annotations

from typing import Any

import pytest

from prefkit.comparisons import (
    Comparison,
    Ratings,
    RecordError,
    TreeNode,
    Winner,
    WithSteps,
    list_from_tree,
    split_steps,
    to_pairs,
)
from prefkit.errors import OptionError

TREE = [
    TreeNode("add"),
    TreeNode("seven", parent=0, value=95),
    TreeNode("eight", parent=0, value=-20),
    TreeNode("guess", value=-90),
]


def test_every_leaf_is_a_solution_and_the_best_one_is_first() -> None:
    found = list_from_tree("2+5?", TREE, separator="\n")
    assert found.responses == ("add\nseven", "add\neight", "guess")
    assert found.steps == (("add\n", "seven"), ("add\n", "eight"), ("guess",))
    assert found.judgement == Ratings((95, -20, -90))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([*TREE, TreeNode("x", parent=9, value=1)], "the parent of node 4 must be one of 0..4, got 9"),
        ([*TREE, TreeNode("x", parent=5), TreeNode("y", parent=4)], "node 4 has no beginning"),
        ([*TREE, TreeNode("x")], "the value of node 4, a leaf, must be a finite number, got None"),
        ([*TREE, TreeNode("x", value="95")], "must be a finite number, got '95'"),  # type: ignore[arg-type]  # bad data
        (TREE[:2], "at least two responses, got 1"),
    ],
)
def test_bad_trees_are_named(nodes: list[TreeNode], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        list_from_tree("2+5?", nodes)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("Step 1: a\nStep 2: b", ("Step 1: a\n", "Step 2: b")),
        ("Well. Step 1: a Step 12: b", ("Well. Step 1: a ", "Step 12: b")),
        ("no steps", ("no steps",)),
    ],
)
def test_steps_make_up_the_text(text: str, steps: tuple[str, ...]) -> None:
    assert split_steps(text) == steps
    assert "".join(steps) == text


@pytest.mark.parametrize(("pattern", "message"), [("(", "is no regular expression"), ("x*", "fits everywhere")])
def test_bad_patterns(pattern: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        WithSteps([], pattern)


def test_steps_that_are_known_are_kept() -> None:
    known = Comparison.pair("p", "ab", "cd", steps=(("a", "b"), ("cd",)))
    chat: Any = ({"role": "assistant", "content": "1. x 2. y"},)
    split = Comparison.pair("p", chat, "z")
    found = list(WithSteps([known, split], r"\d\. "))
    assert [one.steps for one in found] == [known.steps, (("1. x ", "2. y"), ("z",))]


def rated() -> Comparison:
    texts = ("c", "best", "a", "b")
    return Comparison(("p",), texts, Ratings((30, 100, -50, 10)), steps=tuple((text,) for text in texts))


@pytest.mark.parametrize(
    ("opponents", "expected"), [("lowest", ["a"]), ("middle", ["b"]), ("highest", ["c"]), ("all", ["a", "b", "c"])]
)
def test_best_response_against_others(opponents: Any, expected: list[str]) -> None:
    found = to_pairs(rated(), opponents)
    assert [pair.responses for pair in found] == [("best", text) for text in expected]
    assert {pair.judgement for pair in found} == {Winner(0)}
    assert found[0].steps == (("best",), (expected[0],))
    assert to_pairs(rated())[0].strength == 150


def test_no_pairs_of_equal_responses_and_no_unknown_choice() -> None:
    assert to_pairs(Comparison(("p",), ("a", "b"), Ratings((1, 1)))) == []
    with pytest.raises(OptionError, match="unknown choice of opponents 'low'; did you mean 'lowest'"):
        to_pairs(rated(), "low")  # type: ignore[arg-type]  # bad option
