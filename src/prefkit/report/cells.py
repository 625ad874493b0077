"""Cells: how one value is written for a person (text), for Markdown and for JSON."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any


def show(value: Any) -> str:
    """A value as a person reads it: four digits of a number, a dash for nothing."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case Real() if not isinstance(value, Integral):
            return f"{float(value):.4g}"
        case Mapping():
            return ", ".join(f"{name}: {show(inner)}" for name, inner in value.items()) or "–"
        case list() | tuple():
            return ", ".join(show(inner) for inner in value) or "–"
        case _:
            return str(value)


def plain(value: Any) -> Any:
    """A value as JSON holds it: dataclasses become mappings, numbers that are not finite become null."""
    match value:
        case None | bool() | str():
            return value
        case Integral():
            return int(value)
        case Real():
            number = float(value)
            return number if math.isfinite(number) else None
        case Mapping():
            return {str(name): plain(inner) for name, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return plain(parts(value))
        case _:
            return str(value)


def is_number(value: Any) -> bool:
    """Whether a value reads as a number: one, or a dataclass of them such as an interval."""
    if dataclasses.is_dataclass(value):
        return True
    return isinstance(value, Real) and not isinstance(value, bool)


def parts(value: Any) -> dict[str, Any]:
    """The fields of a dataclass instance."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def printable(text: str) -> str:
    """Text without control characters, which a terminal would obey."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, on one line: nothing in it is a tag, a link or the end of a cell."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#!~$])", r"\\\1", text).replace("\r", "").replace("\n", "<br>")
