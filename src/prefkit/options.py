"""Typed options: the base of every configuration, with errors that name the option and what would be right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from prefkit.errors import OptionError, unknown


class Options(BaseModel):
    """A group of options. Unknown options and values out of range are errors, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Build the options from plain values, as read from YAML or the command line.

        Args:
            values: names and values.
            where: dotted path of this group in the configuration, used in messages.

        Raises:
            OptionError: an option is unknown or its value is not allowed; every problem is listed.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise OptionError("\n".join(_explain(cls, problem, where) for problem in error.errors())) from None


def _explain(model: type[BaseModel], problem: ErrorDetails, where: str) -> str:
    location = [str(part) for part in problem["loc"]]
    name = ".".join([where, *location] if where else location)
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            group = ".".join(part for part in (where, *location[:-1]) if part)
            return unknown(f"option of {group}" if group else "option", location[-1], _names(model, location[:-1]))
        case "missing":
            return f"{name} is required"
        case "greater_than":
            wanted = f"greater than {context['gt']}"
        case "greater_than_equal":
            wanted = f"at least {context['ge']}"
        case "less_than":
            wanted = f"less than {context['lt']}"
        case "less_than_equal":
            wanted = f"at most {context['le']}"
        case "value_error":
            return f"{name}: {context['error']}" if name else str(context["error"])
        case _:
            message = problem["msg"]
            return f"{name}: {message[0].lower()}{message[1:]}, got {problem['input']!r}"
    return f"{name} must be {wanted}, got {problem['input']!r}"


def _names(model: type[BaseModel], path: list[str]) -> list[str]:
    """The options of the group that `path` leads to, as far as the annotations tell."""
    for part in path:
        field = model.model_fields.get(part)
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
