"""Choosing among candidates by their rewards."""

import math
from collections.abc import Iterable, Iterator

import pytest

from prefkit.comparisons import Comparison, Ratings, RecordError, Winner
from prefkit.errors import OptionError, PrefkitError
from prefkit.selection import best_of_n, choose_best, mine_pairs, mined_comparisons


def test_the_first_of_equals_is_the_best_and_the_first_of_equals_the_worst() -> None:
    assert best_of_n([1.0, 3.0, 3.0]) == 1
    found = mine_pairs([[1.0, 2.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert [x.tolist() for x in found] == [[0], [1], [0]]


def test_a_gap_must_be_exceeded() -> None:
    assert mine_pairs([[0.0, 1.0]], min_gap=1.0).prompt.tolist() == []
    assert mine_pairs([[0.0, 1.5]], min_gap=1.0).prompt.tolist() == [0]


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: best_of_n([]), "at least one"),
        (lambda: best_of_n([math.nan]), "finite scores"),
        (lambda: mine_pairs([[1.0]]), "at least 2 candidates"),
        (lambda: mine_pairs([[1.0, math.inf]]), "candidate 1 of prompt 0 has a reward"),
    ],
)
def test_bad_rewards(call: object, problem: str) -> None:
    with pytest.raises(PrefkitError, match=problem):
        call()  # type: ignore[operator]
    with pytest.raises(OptionError, match="min_gap must be at least 0"):
        mine_pairs([[1.0, 2.0]], min_gap=-1)


def candidates(*rewards: float, **more: object) -> Comparison:
    texts = tuple(f"r{place}" for place in range(len(rewards)))
    extra = {"rewards": list(rewards)} if rewards else {}
    return Comparison(("p",), texts or ("a", "b"), Ratings((0.0,) * max(len(rewards), 2)), extra=extra, **more)


def test_pairs_of_comparisons_keep_prompt_rewards_and_place() -> None:
    (found,) = mined_comparisons([candidates(1.0, 4.0, -2.0, source="f", line=3), candidates(1.0, 1.0)])
    assert (found.responses, found.judgement, found.strength) == (("r1", "r2"), Winner(0), 6.0)
    assert (found.extra, found.source, found.line) == ({"rewards": [4.0, -2.0]}, "f", 3)


def test_comparisons_without_rewards_are_refused() -> None:
    with pytest.raises(RecordError, match="f:1: field 'rewards': one reward a response is needed, got None"):
        list(mined_comparisons([candidates(source="f", line=1)]))
    with pytest.raises(RecordError, match="f:2: field 'rewards': rewards must be finite numbers"):
        list(mined_comparisons([candidates(1.0, math.nan, source="f", line=2)]))


def test_all_pairs_and_best_against_the_rest() -> None:
    found = list(mined_comparisons([candidates(1.0, 4.0, 1.0)], scheme="all"))
    assert [(each.responses, each.strength) for each in found] == [(("r1", "r0"), 3.0), (("r1", "r2"), 3.0)]
    rest = list(mined_comparisons([candidates(1.0, 4.0, 3.0)], scheme="best_rest", min_gap=1.0))
    assert [each.responses for each in rest] == [("r1", "r0")]
    with pytest.raises(OptionError, match="min_gap must be at least 0"):
        list(mined_comparisons([], min_gap=-1.0))


def by_length(
    comparisons: Iterable[Comparison], skipped: list[RecordError]
) -> Iterator[tuple[Comparison, list[float]]]:
    for comparison in comparisons:
        if any("?" in response for response in comparison.responses):
            skipped.append(RecordError("no question", source=comparison.source, line=comparison.line))
        else:
            yield comparison, [float(len(response)) for response in comparison.responses]


def test_the_best_candidate() -> None:
    best = choose_best("p", ["aa", "", "b", "aa", "ccc", "ddd"], by_length)
    assert (best.response, best.reward) == ("ccc", 3.0)
    assert best.candidates is not None
    assert best.candidates.responses == ("aa", "b", "ccc", "ddd")
    assert best.candidates.judgement == Ratings((2.0, 1.0, 3.0, 3.0))
    assert best.candidates.extra == {"rewards": [2.0, 1.0, 3.0, 3.0]}
    assert choose_best("p", ["aa", "aa"], by_length) == ("aa", None, None)
    with pytest.raises(RecordError, match="prompts:7: all 2 candidates are empty"):
        choose_best("p", ["", " "], by_length, line=7)
    with pytest.raises(RecordError, match="prompts:7: no question"):
        choose_best("p", ["?", "a"], by_length, line=7)
