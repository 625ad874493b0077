"""`prefkit recipes` and `prefkit reproduce`: the published systems, and whether their claims hold here."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from prefkit.errors import OptionError
from prefkit.report.tables import Table


def recipes(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the published systems: what each is, where it was published, and whether it can be reproduced."""
    from prefkit.recipes import RECIPES

    rows = [[r.slug, r.title, r.year, r.paper, r.state] for r in RECIPES.values()]
    columns = ["recipe", "title", "year", "paper", "state"]
    if as_json:
        typer.echo(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
    else:
        Console().print(Table(columns, rows))


def reproduce(
    slug: Annotated[str | None, typer.Argument(help="The recipe, as `prefkit recipes` lists it.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds; the recipe's own by default.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The short form: fewer seeds.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Every recipe that is ready.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for results; one folder a recipe inside.")] = Path(
        "reproductions"
    ),
) -> None:
    """Run the experiment that checks a recipe's central claim, against its baseline.

    Prints a table, and writes `result.json`, `plot.svg` and the recipe's pictures. Ends with status 1 if a claim does
    not hold.
    """
    from prefkit.recipes import RECIPES, find_recipe
    from prefkit.recipes import reproduce as run

    if every == (slug is not None):
        raise OptionError("give the name of one recipe, or --all")
    if quick and seeds is not None:
        raise OptionError("--quick sets the number of seeds; give --quick or --seeds")
    chosen = [r for r in RECIPES.values() if r.state == "ready"] if slug is None else [find_recipe(slug)]
    console = Console()
    passed = True
    for recipe in chosen:
        result = run(
            recipe,
            seeds=seeds,
            quick=quick,
            track=partial(track, description=recipe.slug, console=console, transient=True),
        )
        folder = output / recipe.slug
        result.write(folder)
        console.print(result.table())
        console.print(f"{folder / 'result.json'} and plot.svg, {result.seconds:.1f} s", highlight=False)
        passed = passed and result.passed
    if not passed:
        raise typer.Exit(1)
