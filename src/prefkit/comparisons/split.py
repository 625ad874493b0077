"""Splitting by prompt, so that no prompt of one part occurs in another.

The part of a prompt is a hash of its text and a seed: the same in every run, whatever the order of the rows and
whatever else is in the file. The prompts of a joint comparison, and all prompts linked to them by further joint
comparisons, go to one part.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

from prefkit.comparisons.canonical import text_key
from prefkit.comparisons.prompts import HUMAN
from prefkit.comparisons.record import Comparison, Text
from prefkit.errors import OptionError, unknown

By: TypeAlias = Literal["prompt", "opening"]
"""What must not be shared by two parts: the whole prompt, or the first user turn of a conversation."""


def assign_parts(
    comparisons: Iterable[Comparison], parts: Mapping[str, float], *, seed: int = 0, by: By = "prompt"
) -> Callable[[Comparison], str]:
    """A function that says which part a comparison belongs to.

    Args:
        comparisons: read once, to find the prompts that joint comparisons link; only hashes of these are kept.
        parts: names and shares of the prompts; the shares must add up to 1.
        seed: another seed gives another split.
        by: "prompt" keeps whole prompts apart; "opening" also keeps conversations that begin with the same user turn
            in one part.

    Raises:
        OptionError: shares that are not positive or do not add up to 1.
    """
    if by not in ("prompt", "opening"):
        raise OptionError(unknown("way to split", by, ("prompt", "opening")))
    if not parts or any(not share > 0 for share in parts.values()) or not math.isclose(sum(parts.values()), 1.0):
        raise OptionError(f"the shares of the parts must be positive and add up to 1, got {dict(parts)}")
    links: dict[bytes, bytes] = {}

    def root(key: bytes) -> bytes:
        while (above := links.get(key, key)) != key:
            links[key] = links.get(above, above)
            key = above
        return key

    def keys(comparison: Comparison) -> list[bytes]:
        return [
            _digest(_opening(prompt) if by == "opening" else text_key(prompt), seed) for prompt in comparison.prompts
        ]

    for comparison in comparisons:
        if comparison.joint:
            roots = {root(key) for key in keys(comparison)}
            # The smallest hash leads, so that the order of the rows does not matter.
            links |= dict.fromkeys(roots, min(roots))

    def part_of(comparison: Comparison) -> str:
        place = int.from_bytes(root(keys(comparison)[0])) / 2**64
        for name, share in parts.items():
            place -= share
            if place < 0:
                return name
        return name

    return part_of


def split_comparisons(
    comparisons: Iterable[Comparison], parts: Mapping[str, float], *, seed: int = 0, by: By = "prompt"
) -> dict[str, Part]:
    """The parts of a data set, as streams that read the data set again.

    Args:
        comparisons: what is split; an iterator, which can be read only once, is kept in memory.
        parts: see `assign_parts`, as the other arguments.
        seed: see `assign_parts`.
        by: see `assign_parts`.
    """
    again = list(comparisons) if iter(comparisons) is comparisons else comparisons
    part_of = assign_parts(again, parts, seed=seed, by=by)
    return {name: Part(again, name, part_of) for name in parts}


class Part(Iterable[Comparison]):
    """One part of a data set; each iteration is a fresh pass over the whole set."""

    def __init__(self, comparisons: Iterable[Comparison], name: str, part_of: Callable[[Comparison], str]) -> None:
        self.name, self._comparisons, self._part_of = name, comparisons, part_of

    def __iter__(self) -> Iterator[Comparison]:
        return (comparison for comparison in self._comparisons if self._part_of(comparison) == self.name)


def _digest(text: str, seed: int) -> bytes:
    return hashlib.blake2b(
        text.strip().encode("utf-8", "surrogatepass"), digest_size=8, salt=str(seed).encode()
    ).digest()


def _opening(prompt: Text) -> str:
    if isinstance(prompt, str):
        return HUMAN.join(prompt.split(HUMAN)[:2]).split("\n\nAssistant:")[0]
    return text_key(next(((message,) for message in prompt if message["role"] == "user"), prompt))
