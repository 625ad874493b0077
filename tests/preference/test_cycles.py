from __future__ import annotations

import numpy as np
import pytest

from prefkit.errors import OptionError, PrefkitError
from prefkit.preference import cyclicity


def world(margin: np.ndarray, each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Comparisons of every two items with these log-odds."""
    rng = np.random.default_rng(seed)
    n = len(margin)
    pairs = np.array([(i, j) for i in range(n) for j in range(i + 1, n) for _ in range(each)])
    return pairs, (rng.random(len(pairs)) < 1 / (1 + np.exp(-margin[pairs[:, 0], pairs[:, 1]]))).astype(float)


RING = 1.5 * np.array([[0, 1, -1, 0], [-1, 0, 1, 0], [1, -1, 0, 0], [0, 0, 0, 0]]) + 3 * np.array(
    [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [-1, -1, -1, 0]]
)
"""Rock, paper, scissors, and an item that loses against all three."""


def test_rock_paper_scissors_is_found_and_listed() -> None:
    names = np.array(["rock", "scissors", "paper", "straw"])
    X, y = world(RING, 50)
    found = cyclicity(names[X], y)
    assert found.circular == 1
    assert found.triples == 4
    assert found.p_value < 0.05
    assert found.deviance_p_value < 0.01
    assert found.freedom == 3
    (cycle,) = found.cycles
    assert set(cycle.items) == {"rock", "scissors", "paper"}
    start = cycle.items.index("rock")
    assert cycle.items[(start + 1) % 3] == "scissors"
    assert cycle.p_value < 0.01
    assert cycle.counts == (50, 50, 50)
    assert found.cyclic_share > 0.1
    assert "rock" in found.cycles_table().rows[0][0]
    assert found.table().rows[4][1] == 1


def test_transitive_preferences_are_not_called_cyclic() -> None:
    strengths = np.linspace(-1, 1, 6)
    values = []
    for seed in range(20):
        X, y = world(strengths[:, None] - strengths, 10, seed)
        values.append(cyclicity(X, y, samples=99).p_value)
    assert np.mean(np.array(values) <= 0.05) <= 0.15
    assert np.mean(values) > 0.3


def test_prompts_side_by_side_add_up() -> None:
    names = [f"{prompt}/{response}" for prompt in range(20) for response in "abc"]
    X = np.array([[names[3 * p + i], names[3 * p + (i + 1) % 3]] for p in range(20) for i in range(3)])
    found = cyclicity(X)
    assert (found.triples, found.circular) == (20, 20)
    assert found.expected == pytest.approx(5, abs=1)
    assert found.p_value == pytest.approx(1 / 201)
    assert len(found.cycles) == 20
    assert len(cyclicity(X, max_cycles=3).cycles) == 3


def test_longer_cycles_are_listed_where_there_are_no_triples() -> None:
    found = cyclicity([["a", "b"], ["b", "c"], ["c", "d"], ["d", "a"], ["a", "x"]])
    assert found.circular == 0
    assert [cycle.items for cycle in found.cycles] == [("a", "b", "c", "d")]


def test_ties_make_no_cycle() -> None:
    found = cyclicity([["a", "b"], ["b", "c"], ["c", "a"]], [0.5, 0.5, 0.5])
    assert (found.triples, found.circular, found.p_value, found.cyclic_share) == (0, 0, 1.0, 0.0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(PrefkitError, match="among named items"):
        cyclicity(np.zeros((3, 2, 2)))
    with pytest.raises(OptionError, match="samples must be at least 1"):
        cyclicity([["a", "b"]], samples=0)
