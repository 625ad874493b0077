"""The formats that are known, in one table, and which one a file is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefkit.comparisons.formats import (
    battles,
    benchmarks,
    feedback,
    images,
    joint,
    modelling,
    recommending,
    steps,
    threads,
    tools,
    training,
    trajectories,
    verdicts,
)
from prefkit.comparisons.formats.base import Format
from prefkit.comparisons.formats.columns import COLUMNS, PREFKIT
from prefkit.errors import PrefkitError, unknown

FORMATS: dict[str, Format] = {
    known.name: known
    for known in (
        PREFKIT,
        *tools.FORMATS,
        *steps.FORMATS,
        *training.SPECIFIC,
        *joint.FORMATS,
        *threads.FORMATS,
        *feedback.FORMATS,
        *battles.FORMATS,
        *verdicts.FORMATS,
        *benchmarks.FORMATS,
        *images.FORMATS,
        *modelling.FORMATS,
        *recommending.FORMATS,
        *trajectories.FORMATS,
        *training.GENERIC,
        COLUMNS,
    )
}
"""Every known format by name, in the order in which they are tried."""


def find_format(name: str) -> Format:
    """The format of a name.

    Raises:
        PrefkitError: there is none; the message offers the nearest one.
    """
    if name not in FORMATS:
        raise PrefkitError(unknown("format", name, FORMATS))
    return FORMATS[name]


def detect(rows: Sequence[Mapping[str, Any]], source: str) -> Format:
    """The format of the first rows of a source: specific formats first, and the same on every row.

    Args:
        rows: at least one row.
        source: named in messages.

    Raises:
        PrefkitError: no format fits, two specific ones do, or the rows differ.
    """
    fitting = [_fitting(row) for row in rows]
    usual = {column for row, names in zip(rows, fitting, strict=True) if names for column in row}
    found: dict[str, int] = {}
    for number, (row, names) in enumerate(zip(rows, fitting, strict=True), 1):
        if len(names) > 1:
            raise PrefkitError(f"{source}: fits the formats {' and '.join(names)}; name one with format=")
        # A row that only lacks a value or a column is a bad row of the format that the other rows show.
        if names or not usual >= set(row):
            found.setdefault(names[0] if names else "", number)
    if len(found) == 1 and "" not in found:
        return FORMATS[next(iter(found))]
    columns = ", ".join(str(name) for name in rows[0])
    if any(found):
        seen = " and ".join(f"row {number} looks like {name or 'no known format'}" for name, number in found.items())
        raise PrefkitError(
            f"{source}: {seen}; name one with format=, or map columns with columns= (columns: {columns})"
        )
    raise PrefkitError(
        f"{source}: no known format has the columns {columns}; name the format with format=, or map the columns with "
        'columns=, for example columns={"prompt": ..., "chosen": ..., "rejected": ...}'
    )


def _fitting(row: Mapping[str, Any]) -> list[str]:
    specific = [known.name for known in FORMATS.values() if known.specific and known.matches(row)]
    generic = (known.name for known in FORMATS.values() if not known.specific and known.matches(row))
    return specific or [name for name in [next(generic, None)] if name is not None]
