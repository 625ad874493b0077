"""Splits keep prompts apart, stay the same, and have the size that was asked for."""

from __future__ import annotations

import hashlib
import itertools
import random

import pytest

from prefkit.comparisons import Comparison, Winner, split_comparisons
from prefkit.errors import OptionError

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def made(count: int = 2000) -> list[Comparison]:
    """Comparisons of few prompts, some of them joint, in chains."""
    generator = random.Random(1)
    rows = [
        Comparison((f"p{generator.randrange(count // 2)}",), ("a", "b"), Winner(0), line=i + 1) for i in range(count)
    ]
    for start in range(0, count // 2, 50):
        links = [Comparison((f"p{start + k}", f"p{start + k + 1}"), ("a", "b"), Winner(0)) for k in range(3)]
        rows += links
    generator.shuffle(rows)
    return rows


def prompts(rows: list[Comparison]) -> set[str]:
    return {str(prompt) for row in rows for prompt in row.prompts}


def test_no_prompt_leaks_and_nothing_is_lost() -> None:
    rows = made()
    parts = {name: list(part) for name, part in split_comparisons(rows, SHARES).items()}
    assert sum(len(part) for part in parts.values()) == len(rows)
    for one in parts:
        for other in parts:
            assert one == other or not prompts(parts[one]) & prompts(parts[other])
    for name, share in SHARES.items():
        assert len(prompts(parts[name])) / len(prompts(rows)) == pytest.approx(share, abs=0.05)


def test_the_part_of_a_prompt_depends_on_nothing_else() -> None:
    rows = made()
    first = prompts(list(split_comparisons(rows, SHARES)["test"]))
    assert prompts(list(split_comparisons(rows[::-1], SHARES)["test"])) == first
    assert prompts(list(split_comparisons(iter(rows), SHARES)["test"])) == first
    alone = [row for row in rows if not row.joint][:300]
    own = list(split_comparisons([*alone, *[row for row in rows if row.joint]], SHARES)["test"])
    assert prompts(own) <= first
    assert prompts(list(split_comparisons(rows, SHARES, seed=1)["test"])) != first


def test_linked_prompts_follow_the_smallest_hash() -> None:
    names = [f"linked {index}" for index in range(40)]
    rows = [Comparison((one, other), ("a", "b"), Winner(0)) for one, other in itertools.pairwise(names)]
    smallest = min(hashlib.blake2b(name.encode(), digest_size=8, salt=b"5").digest() for name in names)
    expected = "low" if int.from_bytes(smallest) / 2**64 < 0.02 else "high"
    parts = split_comparisons(rows, {"low": 0.02, "high": 0.98}, seed=5)
    assert len(list(parts[expected])) == len(rows)
    for first, second in ((rows, names[0]), (rows[::-1], names[-1])):
        alone = [*first, Comparison((second,), ("a", "b"), Winner(0))]
        assert len(list(split_comparisons(alone, {"low": 0.02, "high": 0.98}, seed=5)[expected])) == len(alone)


def test_conversations_with_one_opening_stay_together() -> None:
    opening = "\n\nHuman: {}\n\nAssistant:"
    rows = [
        Comparison((opening.format(i) + more,), ("a", "b"), Winner(0))
        for i in range(200)
        for more in ("", " Hello\n\nHuman: Why?\n\nAssistant:")
    ]
    chat = [
        Comparison(
            (({"role": "system", "content": system}, {"role": "user", "content": str(i)}),), ("a", "b"), Winner(0)
        )
        for i in range(200)
        for system in ("x", "y")
    ]
    for conversations in (rows, chat):
        halves = {"a": 0.5, "b": 0.5}
        together = list(split_comparisons(conversations, halves, by="opening")["a"])
        assert all(
            (row in together) == (other in together)
            for row, other in zip(conversations[::2], conversations[1::2], strict=True)
        )
        apart = list(split_comparisons(conversations, halves)["a"])
        assert any(
            (row in apart) != (other in apart)
            for row, other in zip(conversations[::2], conversations[1::2], strict=True)
        )


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}])
def test_wrong_shares(shares: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="add up to 1"):
        split_comparisons([], shares)
