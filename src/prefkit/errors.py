"""Errors that a user can act on. Everything else that is raised is a bug."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Protocol


class PrefkitError(ValueError):
    """The input (data, option, file) is wrong; the message says what, where, and what would be right."""


class OptionError(PrefkitError):
    """An option is unknown, out of range, or does not apply to the chosen objective, model or data."""


class _Placed(Protocol):
    """What stands somewhere: a comparison, or a row."""

    @property
    def source(self) -> str | None: ...

    @property
    def line(self) -> int | None: ...


class RecordError(PrefkitError):
    """A record that cannot be used, with the place where it stands.

    Args:
        problem: what is wrong and what would be right.
        field: the field of the record that is wrong, if it is one field.
        source: file or data set, filled in by the reader.
        line: 1-based line (text files) or row (tables), filled in by the reader.
    """

    def __init__(
        self, problem: str, *, field: str | None = None, source: str | None = None, line: int | None = None
    ) -> None:
        self.problem, self.field, self.source, self.line = problem, field, source, line
        super().__init__(problem)

    def at(self, record: _Placed) -> RecordError:
        """The same problem, in the place of the record that has it."""
        return RecordError(self.problem, field=self.field, source=record.source, line=record.line)

    def to_dict(self) -> dict[str, str | int | None]:
        """The problem and its place, as files of what was set aside hold them."""
        return {"source": self.source, "line": self.line, "field": self.field, "problem": self.problem}

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.source, self.line) if part is not None)
        named = f"field '{self.field}': " if self.field else ""
        return f"{place}: {named}{self.problem}" if place else f"{named}{self.problem}"


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Message for an unknown name that offers the nearest known one, or the whole list when none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    return f"unknown {what} '{name}'; {hint}"
