"""The command line. Each command has a module of its own; this one joins them and turns user errors into messages."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console

from prefkit.cli.audit import advise, audit
from prefkit.cli.compare import compare
from prefkit.cli.data import data
from prefkit.cli.demo import demo
from prefkit.cli.evaluate import evaluate
from prefkit.cli.features import features
from prefkit.cli.leaderboard import leaderboard
from prefkit.cli.recipes import recipes, reproduce
from prefkit.cli.rewarded import mine, strength
from prefkit.cli.sample import sample
from prefkit.cli.scaling import scaling
from prefkit.cli.score import score
from prefkit.cli.serve import serve
from prefkit.cli.train import train
from prefkit.errors import PrefkitError

app = typer.Typer(
    name="prefkit",
    help="From any preference feedback to preference models, aligned policies and a diagnosis of both.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for command in (
    demo,
    train,
    compare,
    evaluate,
    score,
    sample,
    serve,
    leaderboard,
    audit,
    advise,
    recipes,
    reproduce,
    scaling,
):
    app.command()(command)
data.command()(strength)
data.command()(mine)
app.add_typer(data, name="data")
app.add_typer(features, name="features")


def main() -> None:
    """Run the command line; an error that the user can act on is printed without a traceback, with exit status 2."""
    # Loading says enough of itself in a line; the bars of other libraries would hide ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except PrefkitError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(2)
