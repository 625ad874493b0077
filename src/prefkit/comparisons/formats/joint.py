"""The format of joint preferences: which of two instructions with their responses is better."""

from __future__ import annotations

from collections.abc import Iterator

from prefkit.comparisons.formats.base import Format, has
from prefkit.comparisons.record import Comparison, Winner
from prefkit.comparisons.rows import Row
from prefkit.errors import OptionError
from prefkit.options import Options

_FIELDS = ("i_chosen", "r_chosen", "i_reject", "r_reject")
_FEEDBACK = ("feedback", "label")
_TIES = (2, "2", "tie")


class JointOptions(Options):
    """Options of `joint`.

    Args:
        template: wraps each instruction, with {} in its place; the authors of the format trained on
            "### Instructions: {}\\n\\n### Response:".
    """

    template: str = "{}"


def _joint(row: Row, options: JointOptions) -> Iterator[Comparison]:
    if "{}" not in options.template:
        raise OptionError(f"joint: template must hold {{}} where the instruction stands, got {options.template!r}")
    first, chosen, second, rejected = (row.text(field) for field in _FIELDS)
    for field in _FEEDBACK:
        if not row.missing(field) and row[field] in _TIES:
            raise row.error("is a tie, and i_chosen and i_reject name a winner: leave ties out of the file", field)
    if (first, chosen) == (second, rejected):
        raise row.error("chosen equals rejected; there is no preference in an identical pair", "r_chosen")
    prompts = tuple(options.template.replace("{}", text) for text in (first, second))
    # One instruction is an ordinary comparison, in which only the responses are scored.
    yield Comparison(
        prompts[:1] if first == second else prompts,
        (chosen, rejected),
        Winner(0),
        annotator=row.name("annotator"),
        id=row.name("id"),
        extra=row.rest(*_FIELDS, "annotator", "id"),
        **row.place,
    )


FORMATS = (
    Format(
        "joint",
        "`i_chosen`, `r_chosen`, `i_reject`, `r_reject`",
        "the chosen instruction with its response wins",
        has(*_FIELDS),
        _joint,
        JointOptions,
    ),
)
