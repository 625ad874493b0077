"""A row of a source, with accessors whose errors name file, line and field, and the values that formats share."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from prefkit.comparisons.containers import parse_cell
from prefkit.comparisons.record import Judgement, Message, Ranking, Text, Winner
from prefkit.errors import RecordError

A: Judgement = Winner(0)
B: Judgement = Winner(1)
TIE: Judgement = Ranking((0, 0))
BOTH_BAD: Judgement = Ranking((0, 0), both_bad=True)

_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_call": "assistant",
}
_MISSING = {"", "nan", "none", "null", "n/a"}
_LARGEST_EXACT = 2**53


class Row(dict[str, Any]):
    """One row (or an object inside one).

    Args:
        fields: column names and values.
        source: file or data set.
        line: 1-based line or row.
        path: dotted path of this object in its row, ending in a dot; empty for the row itself.
    """

    __slots__ = ("line", "path", "source")

    def __init__(
        self, fields: Mapping[str, Any], source: str | None = None, line: int | None = None, path: str = ""
    ) -> None:
        super().__init__(fields)
        self.source, self.line, self.path = source, line, path

    @property
    def place(self) -> dict[str, Any]:
        """Where the row stands, as the arguments of a `Comparison`."""
        return {"source": self.source, "line": self.line}

    def error(self, problem: str, field: str | None = None) -> RecordError:
        """An error about this row."""
        return RecordError(problem, field=f"{self.path}{field}" if field else None, source=self.source, line=self.line)

    def missing(self, field: str) -> bool:
        """Whether an outcome column is absent, null, NaN, or a word such as "N/A"."""
        value = self.get(field)
        if isinstance(value, str):
            return value.strip().lower() in _MISSING
        return value is None or (isinstance(value, float) and math.isnan(value))

    def need(self, field: str) -> Any:
        """A value that must be there."""
        value = self.get(field)
        if value is None:
            raise self.error("is null" if field in self else "is missing", field)
        return value

    def text(self, field: str) -> str:
        """A text that must be there and not be blank."""
        value = self.need(field)
        if not isinstance(value, str):
            raise self.error(f"must be text, got {value!r}", field)
        if not value.strip():
            raise self.error("is empty", field)
        return value

    def name(self, field: str) -> str | None:
        """An id, name or remark as text; None where it is missing."""
        return None if self.missing(field) else as_name(self[field])

    def number(self, field: str) -> float:
        """A finite number; text such as "4" counts as one."""
        value = self.need(field)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise self.error(f"must be a number, got {value!r}", field) from None
        if not math.isfinite(number):
            raise self.error(f"must be a finite number, got {value}", field)
        return number

    def one_of(self, field: str, meanings: Mapping[Any, Any]) -> Any:
        """What a code or word means.

        Args:
            field: the column.
            meanings: numbers and lower-case words, and what they stand for.

        Raises:
            RecordError: no judgement is given, or the format defines no such word.
        """
        if self.missing(field):
            raise self.error("no judgement", field)
        value = self[field]
        code: Hashable = value
        if isinstance(value, str):
            code = value.strip().lower()
            if code not in meanings:
                try:
                    code = float(value)
                except ValueError:
                    code = value
        elif isinstance(value, bool) and value not in meanings:
            code = str(value).lower()
        if not isinstance(code, Hashable) or code not in meanings:
            known = ", ".join(repr(meaning) for meaning in meanings)
            raise self.error(f"unknown outcome {value!r}; this format knows {known}", field)
        return meanings[code]

    def list_of(self, field: str) -> list[Any]:
        """A list, also one that is written as text."""
        value = as_list(self.need(field))
        if value is None:
            raise self.error(f"must be a list, got {self[field]!r}", field)
        return value

    def inside(self, field: str) -> Row:
        """An object in a column, with accessors that name it in errors."""
        value = self.need(field)
        return self.nested(parse_cell(value) if isinstance(value, str) else value, field)

    def objects(self, field: str) -> list[Row]:
        """The objects of a list."""
        return [self.nested(value, f"{field}[{index}]") for index, value in enumerate(self.list_of(field))]

    def nested(self, value: Any, name: str) -> Row:
        """An object inside this row."""
        if not isinstance(value, Mapping):
            raise self.error(f"must be an object, got {value!r}", name)
        return Row(value, self.source, self.line, f"{self.path}{name}.")

    def said(self, field: str) -> Text:
        """A prompt or response: text, or messages (also written as text)."""
        return self.as_said(self.need(field), field)

    def as_said(self, value: Any, field: str) -> Text:
        """A value as a prompt or response."""
        if isinstance(value, str):
            parsed = parse_cell(value) if value.lstrip()[:1] in "[{" and value else value
            if not is_messages(parsed):
                if not value.strip():
                    raise self.error("is empty", field)
                return value
            value = parsed
        if isinstance(value, Mapping):
            value = [value]
        if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str):
            return self.as_said(value[0], field)
        if not is_messages(value):
            raise self.error(f"must be text or messages with role and content, got {value!r:.200}", field)
        return tuple(self._message(message, f"{field}[{index}]") for index, message in enumerate(value))

    def _message(self, message: Mapping[str, Any], field: str) -> Message:
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if not isinstance(role, str):
            raise self.error(f"a message needs a role, got {role!r}", field)
        if content is None and not message.get("tool_calls"):
            raise self.error("a message needs content, got null", field)
        more = {
            key: value
            for key, value in message.items()
            if key not in ("role", "from", "content", "value") and value is not None
        }
        return {"role": _ROLES.get(role.lower(), role.lower()), "content": content, **more}

    def rest(self, *used: str) -> dict[str, Any]:
        """The columns that were not used and are not null."""
        return {key: exact(value) for key, value in self.items() if key not in used and value is not None}


def ranking(numbers: Sequence[float]) -> Ranking:
    """A ranking from the source's own numbers: lower is better, whatever they start at; gaps are closed."""
    places = {number: place for place, number in enumerate(sorted(set(numbers)))}
    return Ranking(tuple(places[number] for number in numbers))


def as_name(value: Any) -> str:
    """An id or name as text, so that 7 and "7" are one annotator; 7.0, as tables with gaps store it, too."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def exact(value: Any) -> Any:
    """Integers that a double cannot hold are ids: keep them as text."""
    return str(value) if type(value) is int and abs(value) > _LARGEST_EXACT else value


def as_list(value: Any) -> list[Any] | None:
    """A list, also one that is written as text; None for anything else."""
    if isinstance(value, str):
        value = parse_cell(value)
    return list(value) if isinstance(value, list | tuple) else None


def is_messages(value: Any) -> bool:
    """Whether a value is a list of chat messages."""
    if isinstance(value, Mapping):
        value = [value]
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(
            isinstance(item, Mapping) and ("role" in item or "from" in item) and ("content" in item or "value" in item)
            for item in value
        )
    )


def user(content: Any) -> tuple[Message, ...]:
    """One user message."""
    return ({"role": "user", "content": content},)


def assistant(content: Any) -> tuple[Message, ...]:
    """One assistant message."""
    return ({"role": "assistant", "content": content},)


def blank(text: Text) -> bool:
    """Whether a prompt or response says nothing."""
    if isinstance(text, str):
        return not text.strip()
    return not any(message.get("tool_calls") or _says(message.get("content")) for message in text)


def _says(content: Any) -> bool:
    return bool(content.strip()) if isinstance(content, str) else bool(content)
