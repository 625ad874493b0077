"""Progress bars, on the terminal's error stream and in the first process only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prefkit.training import processes

T = TypeVar("T")


def bar(shown: bool) -> Progress:
    """A bar with a place for figures (`note`) at its end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        disable=not shown or processes.rank() > 0,
    )


def counting(items: Iterable[T], what: str, total: int | None, shown: bool) -> Iterator[T]:
    """The items, with a bar that counts them."""
    with bar(shown) as progress:
        task = progress.add_task(what, total=total, note="")
        for item in items:
            yield item
            progress.advance(task)
