"""`prefkit scaling`: how the losses of a reward model fall with its data and its size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prefkit.errors import OptionError


def scaling(
    config: Annotated[Path, typer.Argument(help="YAML file of one run of a reward model (`model.kind: reward`).")],
    sizes: Annotated[str, typer.Option(help="Numbers of training comparisons, such as `256,512,1024`.")],
    test: Annotated[list[str], typer.Option(help="Tests by family: `objective=math.jsonl`. Repeatable.")],
    model: Annotated[list[str] | None, typer.Option(help="Models, from small to large. Repeatable.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the study; the run's by default.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="An option by its dotted name.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the trained models.")] = False,
) -> None:
    """Train on growing parts of the data and fit a power law to the loss of each family of tests.

    Prints losses, accuracies and laws, and writes `result.json` and `plot.svg`.

    Example:

        prefkit scaling rm.yaml --sizes 256,512,1024 --test adversarial=a.jsonl --test subjective=s.jsonl
    """
    from prefkit.recipes.run import read_config
    from prefkit.recipes.scaling import scaling_study

    tests = {}
    for given in test:
        name, equals, file = given.partition("=")
        if not equals or not name or not file:
            raise OptionError(f"--test takes family=file, got '{given}'")
        tests[name] = file
    try:
        numbers = [int(size) for size in sizes.split(",")]
    except ValueError:
        raise OptionError(f"--sizes takes whole numbers, got '{sizes}'") from None
    options = read_config(config, settings or (), {"output": None if output is None else str(output)})
    console = Console()
    study = scaling_study(
        options, numbers, tests, model or (), keep=keep, progress=lambda done: console.print(f"trained {done}")
    )
    for table in study.tables():
        console.print(table)
    study.write(Path(options.output))
    console.print(f"{options.output}/result.json and plot.svg", highlight=False, soft_wrap=True)
