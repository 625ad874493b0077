"""Trees of reasoning: solutions that branch off one another, as rated lists of responses with steps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from prefkit.comparisons.pairing import ranks
from prefkit.comparisons.record import Comparison, Ratings, Text, Winner
from prefkit.errors import OptionError, RecordError, unknown

STEP = r"Step \d+:"
"""How a step begins, as models write them that are asked for numbered steps."""

Opponents: TypeAlias = Literal["lowest", "middle", "highest", "all"]
"""Which responses of a rated list are compared with its best one."""


@dataclass(frozen=True, slots=True)
class TreeNode:
    """One step of a tree of solutions.

    Args:
        text: the step.
        parent: place of the step before it, among the nodes; None begins a solution.
        value: how good the solution is that ends here; needed at the leaves only.
    """

    text: str
    parent: int | None = None
    value: float | None = None


def list_from_tree(prompt: Text, nodes: Sequence[TreeNode], *, separator: str = "", **more: Any) -> Comparison:
    """The solutions of a tree, from root to leaf, as one rated list, best first.

    Args:
        prompt: the problem.
        nodes: the steps, in any order.
        separator: put between steps, at the end of the former.
        more: further fields of the comparison.

    Raises:
        RecordError: a parent does not exist or a step is its own ancestor, a leaf has no value that is a finite
            number, or there are fewer than two solutions.
    """
    parents = [node.parent for node in nodes]
    for place, parent in enumerate(parents):
        if parent is not None and not 0 <= parent < len(nodes):
            raise RecordError(
                f"the parent of node {place} must be one of 0..{len(nodes) - 1}, got {parent}", field="nodes"
            )
    paths = [_path(nodes, place) for place in range(len(nodes))]
    leaves = sorted(set(range(len(nodes))) - set(parents))
    found = [(_value(nodes[leaf], leaf), paths[leaf]) for leaf in leaves]
    found.sort(key=lambda solution: -solution[0])
    steps = tuple((*(text + separator for text in path[:-1]), path[-1]) for _, path in found)
    return Comparison(
        (prompt,),
        tuple("".join(own) for own in steps),
        Ratings(tuple(value for value, _ in found)),
        steps=steps,
        **more,
    )


def _value(node: TreeNode, place: int) -> float:
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RecordError(f"the value of node {place}, a leaf, must be a finite number, got {value!r}", field="nodes")
    return float(value)


def _path(nodes: Sequence[TreeNode], leaf: int) -> list[str]:
    path: list[str] = []
    place: int | None = leaf
    while place is not None:
        path.append(nodes[place].text)
        if len(path) > len(nodes):
            raise RecordError(f"node {leaf} has no beginning: a step is its own ancestor", field="nodes")
        place = nodes[place].parent
    return path[::-1]


def split_steps(text: str, pattern: str = STEP) -> tuple[str, ...]:
    """The steps of a text, whose concatenation is the text.

    Args:
        text: a response.
        pattern: regular expression that each step begins with. What stands before the first one belongs to the first
            step; a text without any is one step.

    Raises:
        OptionError: the pattern is no regular expression, or fits nothing at all.
    """
    starts = [match.start() for match in _compiled(pattern).finditer(text)]
    cuts = [0, *starts[1:], len(text)]
    return tuple(text[start:end] for start, end in pairwise(cuts) if end > start)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise OptionError(f"'{pattern}' is no regular expression: {error}") from None
    if compiled.match(""):
        raise OptionError(f"'{pattern}' fits everywhere; give the text that a step begins with, such as '{STEP}'")
    return compiled


class WithSteps(Iterable[Comparison]):
    """Comparisons whose responses are split into steps, where they have none.

    Args:
        comparisons: can be iterated over again and again.
        pattern: see `split_steps`.

    Raises:
        OptionError: as `split_steps`.
    """

    def __init__(self, comparisons: Iterable[Comparison], pattern: str = STEP) -> None:
        _compiled(pattern)
        self.comparisons, self.pattern = comparisons, pattern

    def __iter__(self) -> Iterator[Comparison]:
        for comparison in self.comparisons:
            yield comparison if comparison.steps else replace(comparison, steps=self._split(comparison.responses))

    @property
    def skipped(self) -> Any:
        """What the reader set aside."""
        return getattr(self.comparisons, "skipped", ())

    def _split(self, responses: Sequence[Text]) -> tuple[tuple[str, ...], ...]:
        texts = [text if isinstance(text, str) else str(text[-1].get("content")) for text in responses]
        return tuple(split_steps(text, self.pattern) for text in texts)


def to_pairs(comparison: Comparison, opponents: Opponents = "lowest") -> list[Comparison]:
    """Pairs of the best response of a list and others, for methods that take pairs.

    Args:
        comparison: a list.
        opponents: the "lowest", the "middle" or the "highest" of the responses that are worse than the best one, or
            "all" of them, the lowest first.

    Returns:
        Pairs with the steps of their responses; empty where all responses are equal.

    Raises:
        OptionError: the opponents are unknown.
        RecordError: the judgement is on a single response.
    """
    order = ranks(comparison)
    best = order.index(min(order))
    worse = sorted(
        (place for place in range(len(order)) if order[place] > order[best]), key=lambda place: -order[place]
    )
    chosen = {
        "lowest": worse[:1],
        "middle": worse[len(worse) // 2 :][:1],
        "highest": worse[-1:],
        "all": worse,
    }
    if opponents not in chosen:
        raise OptionError(unknown("choice of opponents", opponents, chosen))
    return [pair_of(comparison, best, other) for other in chosen[opponents]]


def pair_of(comparison: Comparison, chosen: int, rejected: int, **more: Any) -> Comparison:
    """A pair of two responses of a comparison, of which the first is preferred, with all else that was said.

    Args:
        comparison: what was compared.
        chosen: place of the better response.
        rejected: place of the other one.
        more: fields of the pair that differ.
    """
    places = (chosen, rejected)
    strength = comparison.strength
    if isinstance(comparison.judgement, Ratings):
        strength = comparison.judgement.values[chosen] - comparison.judgement.values[rejected]
    fields: dict[str, Any] = {
        "prompts": tuple(comparison.prompts[place] for place in places) if comparison.joint else comparison.prompts,
        "responses": tuple(comparison.responses[place] for place in places),
        "judgement": Winner(0),
        "steps": tuple(comparison.steps[place] for place in places) if comparison.steps else None,
        "strength": strength,
    }
    return replace(comparison, **{**fields, **more})
