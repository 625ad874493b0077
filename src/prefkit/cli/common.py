"""What the commands that measure models share: their arguments, and the list of what was set aside."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from prefkit.errors import RecordError

if TYPE_CHECKING:
    from prefkit.comparisons import Comparisons


class TooLong(StrEnum):
    """What happens to a text that is longer than the model's context."""

    SKIP = "skip"
    TRUNCATE_PROMPT = "truncate_prompt"
    TRUNCATE_RESPONSE = "truncate_response"


Model = Annotated[str, typer.Argument(help="Folder or hub name of the model or adapter; `builtin` ships with it.")]
File = Annotated[str, typer.Argument(help="File, data set folder or hub name of the comparisons.")]
Format = Annotated[str | None, typer.Option("--format", help="Name of the format; detected by default.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Comparisons a forward pass.")]
MaxLength = Annotated[int | None, typer.Option(min=2, help="Tokens of prompt and response; the context by default.")]
Precision = Annotated[str, typer.Option(help="fp32, or bf16 for mixed precision.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Read at most so many comparisons.")]
Followups = Annotated[
    str | None,
    typer.Option(help="Reward by the likelihood of follow-ups: `default`, or a JSON file with a bank of your own."),
]


def list_skipped(console: Console, unusable: Iterable[RecordError], comparisons: Comparisons, shown: int = 10) -> None:
    """List what was set aside: rows that could not be used, and rows that could not be read."""
    problems = [str(problem) for problem in (*unusable, *(row.error() for row in comparisons.skipped))]
    if not problems:
        return
    console.print(f"{len(problems)} comparisons set aside:", style="yellow")
    for problem in problems[:shown]:
        console.print(f"  {problem}", markup=False, emoji=False, highlight=False, soft_wrap=True)
    if len(problems) > shown:
        console.print(f"  and {len(problems) - shown} more")
