"""What a format is: how its rows are recognised, and how they become comparisons."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prefkit.comparisons.record import Comparison
from prefkit.comparisons.rows import Row, as_list
from prefkit.errors import RecordError
from prefkit.options import Options


class NoOptions(Options):
    """A format without options."""


@dataclass(frozen=True)
class Format:
    """One way to write down comparisons.

    Args:
        name: how the format is called.
        tells: the fields by which it is recognised, in words.
        outcome: how its outcomes are coded, in words.
        matches: whether a row has the tell-tale fields.
        read: the comparisons of one row and what is wrong with it; of a list of rows where rows are grouped. It may
            raise a `RecordError`, which sets the whole row (or group) aside.
        options: the options it takes.
        key: rows with the same key belong together; None where every row stands alone.
        adjacent: rows that belong together follow one another, so that one group is in memory at a time; otherwise
            the whole source is.
        specific: it is told from all other specific formats by its fields; a generic format is taken only where no
            specific one fits, in the order of the table.
        context: comparisons have a prompt, and an empty one is an error.
    """

    name: str
    tells: str
    outcome: str
    matches: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Any, Any], Iterable[Comparison | RecordError]]
    options: type[Options] = NoOptions
    key: Callable[[Row, Any], Hashable] | None = None
    adjacent: bool = True
    specific: bool = True
    context: bool = True


def has(*fields: str) -> Callable[[Mapping[str, Any]], bool]:
    """A test for columns."""
    return lambda row: all(field in row for field in fields)


def is_list(row: Mapping[str, Any], *fields: str) -> bool:
    """Whether columns hold lists (or lists written as text)."""
    return all(as_list(row.get(field)) is not None for field in fields)


def is_dict(row: Mapping[str, Any], *fields: str) -> bool:
    """Whether columns hold objects."""
    return all(isinstance(row.get(field), Mapping) for field in fields)


def is_text(row: Mapping[str, Any], *fields: str) -> bool:
    """Whether columns hold text."""
    return all(isinstance(row.get(field), str) for field in fields)
