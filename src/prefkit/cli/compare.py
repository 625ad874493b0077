"""`prefkit compare`: objectives side by side on one data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prefkit.errors import OptionError


def compare(
    config: Annotated[Path | None, typer.Argument(help="YAML file with the options of the comparison.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub name of the model; `builtin` ships with it.")] = None,
    data: Annotated[str | None, typer.Option(help="File, data set folder or hub name of the comparisons.")] = None,
    objectives: Annotated[
        str | None, typer.Option(help="Names of objectives, such as dpo,ipo,simpo, or all-pairwise.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each objective (default 3).")] = None,
    flip: Annotated[
        str | None, typer.Option(help="Shares of the training labels to flip, such as 0,0.1,0.2,0.3,0.4.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="The folder of the comparison.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="An option by its dotted name, such as `training.epochs=2`.")
    ] = None,
) -> None:
    """Train several objectives with the same model, data, held-out set and seeds, and compare what comes of it.

    Writes tables, plots and a report, with 95% intervals over seeds. The same command again takes up where an
    interrupted one stopped: finished runs are not repeated.

    Examples:

        prefkit compare --model builtin --data pairs.jsonl --objectives dpo,ipo,simpo,cpo --output comparisons/first

        prefkit compare run.yaml --objectives dpo,rdpo --flip 0,0.2,0.4 --set objectives.rdpo.flip_rate=injected
    """
    from prefkit.recipes.compare import CompareOptions
    from prefkit.recipes.compare import compare as run
    from prefkit.recipes.run import read_options

    if config is None and data is None:
        raise OptionError("give a YAML file, or --data, --objectives and --output")
    given = {
        "model.path": model,
        "data.path": data,
        "objectives": None if objectives is None else _names(objectives),
        "seeds": seeds,
        "flip": None if flip is None else _rates(flip),
        "output": output,
    }
    result = run(read_options(CompareOptions, config, settings or (), given))
    console = Console()
    for table in result.tables():
        console.print(table)
    folder = Path(result.options.output)
    console.print(f"results {folder / 'results.json'}, results.csv, runs.csv", highlight=False, soft_wrap=True)
    console.print(f"report  {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _names(text: str) -> dict[str, dict[str, object]]:
    names = [name for part in text.split(",") if (name := part.strip())]
    return {name: {} for name in names}


def _rates(text: str) -> list[float]:
    try:
        return [float(rate) for rate in text.replace(",", " ").split()]
    except ValueError:
        raise OptionError(f"--flip takes numbers such as 0,0.1,0.2, got '{text}'") from None
