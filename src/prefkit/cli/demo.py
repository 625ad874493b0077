"""`prefkit demo`: the whole path on the built-in model and comparisons, offline, in minutes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from prefkit.cli.train import show_run

SETTINGS = {
    "model.path": "builtin",
    "data.path": "builtin",
    "objective.kind": "dpo",
    "objective.beta": 0.1,
    "training.learning_rate": 1e-3,
    "training.epochs": 3,
    "training.batch_size": 16,
}
"""Options of the demo; the page on the built-in model says how they were chosen."""


def demo(
    output: Annotated[Path, typer.Option(help="The run folder; a number is added if it exists.")] = Path("runs/demo"),
) -> None:
    """Train the built-in model on the built-in comparisons and show what changed.

    Needs no network and no data. Takes a minute or two on two cores.
    """
    from prefkit.recipes.run import read_config

    free = next(path for path in _numbered(output) if not path.exists())
    show_run(read_config(None, given={**SETTINGS, "output": str(free)}))


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in count(2))
