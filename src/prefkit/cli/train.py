"""`prefkit train`: align a language model on comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from prefkit.errors import OptionError

if TYPE_CHECKING:
    from prefkit.recipes.run import RunConfig


def train(
    config: Annotated[Path | None, typer.Argument(help="YAML file with the options of the run.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub name of the model; `builtin` ships with it.")] = None,
    data: Annotated[str | None, typer.Option(help="File, data set folder or hub name of the comparisons.")] = None,
    objective: Annotated[str | None, typer.Option(help="Name of the objective (default dpo).")] = None,
    output: Annotated[str | None, typer.Option(help="The run folder.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="An option by its dotted name, such as `objective.beta=0.2`.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
) -> None:
    """Align a language model on comparisons.

    Writes a run folder: the trained `model/`, `metrics.jsonl`, `checkpoints/`, `skipped.jsonl` and `report.html`.

    Examples:

        prefkit train run.yaml --set objective.beta=0.2

        prefkit train --model builtin --data pairs.jsonl --objective ipo --output runs/ipo --set data.held_out=0.1

        prefkit train --model M --data D --output runs/lora --set model.lora.rank=8 --set training.learning_rate=1e-5

        prefkit train --data D --output runs/pm --set model.kind=preference --set model.estimator=general_preference
    """
    from prefkit.recipes.run import RunConfig, merge_options

    if config is None and data is None:
        raise OptionError("give a YAML file, or --data and --output")
    given = {"model.path": model, "data.path": data, "objective.kind": objective, "output": output}
    values = merge_options(config, settings or (), given)
    kind = values["model"].get("kind") if isinstance(values.get("model"), dict) else None
    if kind != "preference":
        show_run(RunConfig.parse(values), resume=resume)
    elif resume:
        raise OptionError("--resume does not apply to preference models, which are fitted at once")
    else:
        show_preference_run(values)


def show_preference_run(values: Mapping[str, Any]) -> None:
    """Fit a preference model and print what it is worth."""
    from prefkit.recipes.preferences import PreferenceConfig, run_preference

    result = run_preference(PreferenceConfig.parse(values))
    console = Console()
    console.print(result.table)
    console.print(result.calibration.table())
    console.print(f"fitted to {result.pairs} pairs", highlight=False)
    if result.skipped:
        first = str(result.skipped[0])
        console.print(f"{len(result.skipped)} comparisons set aside; the first: {first}", style="yellow", markup=False)
    console.print(f"model  {result.model}", highlight=False, soft_wrap=True)
    console.print(f"report {result.report}", highlight=False, soft_wrap=True)


def show_run(config: RunConfig, *, resume: bool = False) -> None:
    """Run a configuration and print what came of it."""
    from prefkit.recipes.run import run

    result = run(config, resume=resume)
    if result is None:
        return
    console = Console()
    for table in result.tables():
        console.print(table)
    fitted = result.fit
    console.print(
        f"trained on {fitted.rows} comparisons in {fitted.steps} steps, {fitted.seconds:.1f} s"
        + (f"; {fitted.skipped} set aside, see {fitted.run.folder / 'skipped.jsonl'}" if fitted.skipped else ""),
        highlight=False,
    )
    console.print(f"model  {fitted.run.model}", highlight=False, soft_wrap=True)
    console.print(f"report {result.report}", highlight=False, soft_wrap=True)
