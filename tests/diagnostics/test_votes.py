from __future__ import annotations

import numpy as np
import pytest

from prefkit.comparisons import Comparison, Label, Ranking, Winner
from prefkit.diagnostics import Votes, VoteTable, annotator_groups, cycles, reliability
from prefkit.errors import PrefkitError


def table(records: list[Comparison], limit: int = 10**6) -> VoteTable:
    votes = Votes(limit)
    for row, record in enumerate(records):
        votes.add(record, row)
    return votes.table()


def vote(one: str, two: str, annotator: str | None = None, prompt: str = "q") -> Comparison:
    return Comparison.pair(prompt, one, two, annotator=annotator)


def test_the_same_pair_in_another_order_is_the_same_pair() -> None:
    turned = Comparison(("q",), ("b", "a"), Winner(1))
    found = table([vote("a", "b"), turned, vote("b", "a"), vote("a", "b", prompt="other")])
    assert found.item[0] == found.item[1] == found.item[2] != found.item[3]
    assert found.first[0] == found.first[1] != found.first[2]
    assert found.shares()[:3].tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    assert len(found.repeated()) == 3


def test_single_judgements_and_ties_are_no_votes_and_a_limit_is_told() -> None:
    assert len(table([Comparison(("q",), ("a",), Label(True)), Comparison(("q",), ("a", "b"), Ranking((0, 0)))])) == 0
    found = table([vote("a", "b"), vote("a", "c"), vote("a", "d")], limit=2)
    assert (len(found), found.dropped) == (2, 1)


def judged(rates: dict[str, float], items: int = 300, seed: int = 0) -> list[Comparison]:
    generator = np.random.default_rng(seed)
    return [
        vote(*((f"x{i}", f"y{i}") if generator.random() < rate else (f"y{i}", f"x{i}")), annotator=name)
        for i in range(items)
        for name, rate in rates.items()
    ]


def test_reliabilities_are_recovered() -> None:
    truth = {"ann": 0.95, "ben": 0.9, "eve": 0.6, "dan": 0.9}
    found = reliability(table(judged(truth)))
    assert {name: value for name, (value, _) in found.by_annotator.items()} == pytest.approx(truth, abs=0.06)
    assert {count for _, count in found.by_annotator.values()} == {300}
    assert (found.votes, found.pairs) == (1200, 300)


def test_noise_of_equal_annotators_is_recovered_without_their_names() -> None:
    records = [Comparison.pair("q", *c.responses) for c in judged({"a": 0.8, "b": 0.8, "c": 0.8}, 500)]
    found = reliability(table(records))
    assert found.noise.low < 0.2 < found.noise.high
    assert found.noise.mean == pytest.approx(0.2, abs=0.03)
    assert found.by_annotator == {}


def test_groups_are_found_and_noise_makes_none() -> None:
    camps = {f"left {i}": 0.95 for i in range(3)} | {f"right {i}": 0.05 for i in range(3)}
    found = annotator_groups(table(judged(camps, 100)))
    assert found.groups == 2
    assert {frozenset(name.split()[0] for name in group) for group in found.members} == {
        frozenset({"left"}),
        frozenset({"right"}),
    }
    assert found.within > 0.85 > found.agreement
    assert found.gain.low > 0.2
    noisy = annotator_groups(table(judged({f"p{i}": 0.7 for i in range(6)}, 100)))
    assert noisy.groups == 1
    assert noisy.gain.low < 0


def test_three_camps_are_told_from_two() -> None:
    generator = np.random.default_rng(3)
    wants = generator.random((3, 150)) < 0.5
    records = [
        vote(*((f"x{i}", f"y{i}") if wants[camp, i] else (f"y{i}", f"x{i}")), annotator=f"{camp}-{who}")
        for camp in range(3)
        for who in range(4)
        for i in range(150)
    ]
    found = annotator_groups(table(records))
    assert sorted(len(group) for group in found.members) == [4, 4, 4]
    assert all(len({name[0] for name in group}) == 1 for group in found.members)


def test_circles_are_counted_by_majorities() -> None:
    ring = [vote("a", "b"), vote("b", "c"), vote("c", "a"), vote("a", "d"), vote("b", "d"), vote("c", "d")]
    found = cycles(table(ring))
    # abc goes round; abd, acd and bcd do not.
    assert (found.triads, found.cyclic.mean, found.edges) == (4, 0.25, 6)
    outvoted = cycles(table([*ring, vote("a", "c"), vote("a", "c")]))
    assert outvoted.cyclic.mean == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reliability(table([vote("a", "b")])), "judged at least twice; there are none"),
        (lambda: annotator_groups(table([vote("a", "b", "x"), vote("a", "b", "y")])), "at least 4 annotators with 20"),
        (lambda: cycles(table([vote("a", "b"), vote("b", "c")])), "no prompt has them"),
    ],
)
def test_too_little_data_say_how_much_is_needed(call: object, message: str) -> None:
    with pytest.raises(PrefkitError, match=message):
        call()  # type: ignore[operator]
