"""The command line. Each command lives in a module of its own; this one joins them and turns user errors into
messages."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from prefkit.errors import PrefkitError

app = typer.Typer(
    name="prefkit",
    help="From any preference feedback to preference models, aligned policies and a diagnosis of both.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; an error that the user can act on is printed without a traceback, with exit status 2."""
    try:
        app()
    except PrefkitError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(2)
