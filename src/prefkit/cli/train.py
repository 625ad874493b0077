"""`prefkit train`: align a language model, or a diffusion pipeline, on comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from prefkit.errors import OptionError

if TYPE_CHECKING:
    from prefkit.recipes.run import RunConfig, RunResult
    from prefkit.recipes.run_images import ImageRunResult


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
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Images: set unusable rows aside and go on, instead of stopping.")
    ] = False,
) -> None:
    """Align a language model, or a pipeline of diffusers, on comparisons.

    Writes a run folder: the trained `model/`, `metrics.jsonl`, `checkpoints/`, `skipped.jsonl` and `report.html`.

    Examples:

        prefkit train run.yaml --set objective.beta=0.2

        prefkit train --model builtin --data pairs.jsonl --objective ipo --output runs/ipo --set data.held_out=0.1

        prefkit train --model M --data D --output runs/lora --set model.lora.rank=8 --set training.learning_rate=1e-5

        prefkit train --model sd-folder --data pairs.parquet --output runs/sd --set model.lora.rank=8 --skip-bad

        prefkit train --data R --output runs/judge --set model.kind=inpainting_reward --set model.embedder=clip-folder

        prefkit train --data D --output runs/pm --set model.kind=preference --set model.estimator=general_preference
    """
    from prefkit.recipes.run import RunConfig, read_values

    if config is None and data is None:
        raise OptionError("give a YAML file, or --data and --output")
    given = {"model.path": model, "data.path": data, "objective.kind": objective, "output": output}
    values = read_values(config, settings or (), given)
    if isinstance(values.get("model"), Mapping) and values["model"].get("kind") == "inpainting_reward":
        _train_inpainting_reward(values, resume=resume, skip_bad=skip_bad)
        return
    if _of_images(values):
        _train_on_images(values, resume=resume, skip_bad=skip_bad)
        return
    if skip_bad:
        raise OptionError("--skip-bad is for images; rows of texts that cannot be used are always set aside")
    chosen = values.get("model")
    if not isinstance(chosen, Mapping) or chosen.get("kind") != "preference":
        show_run(RunConfig.parse(values), resume=resume)
    elif resume:
        raise OptionError("--resume does not apply to preference models, which are fitted at once")
    else:
        show_preference_run(values)


def _train_on_images(values: dict[str, Any], *, resume: bool, skip_bad: bool) -> None:
    from prefkit.recipes.run_images import ImageRunConfig, run_images

    values["model"] = {**values["model"], "kind": "diffusion"}
    values["skip_bad"] = skip_bad or values.get("skip_bad", False)
    shown = run_images(ImageRunConfig.parse(values), resume=resume)
    if shown is not None:
        _show(shown)


def _train_inpainting_reward(values: dict[str, Any], *, resume: bool, skip_bad: bool) -> None:
    from prefkit.recipes.inpainting_reward import InpaintingRewardConfig, run_inpainting_reward

    if resume:
        raise OptionError("--resume does not apply to a reward model of fillings, which is trained in minutes")
    values["skip_bad"] = skip_bad or values.get("skip_bad", False)
    result = run_inpainting_reward(InpaintingRewardConfig.parse(values))
    console = Console()
    console.print(result.table)
    aside = f"; {len(result.skipped)} set aside, see {result.run.folder / 'skipped.jsonl'}" if result.skipped else ""
    console.print(f"trained on {result.rows} fillings{aside}", highlight=False, soft_wrap=True)
    console.print(f"model  {result.run.model}", highlight=False, soft_wrap=True)
    console.print(f"report {result.report}", highlight=False, soft_wrap=True)


def _of_images(values: Mapping[str, Any]) -> bool:
    """Whether the model is a pipeline: by its kind, or by what is in its folder."""
    from prefkit.diffusion import is_pipeline

    model = values.get("model")
    if not isinstance(model, Mapping):
        return False
    if "kind" in model:
        return bool(model["kind"] == "diffusion")
    return is_pipeline(str(model.get("path", "")), model.get("revision"))


def show_preference_run(values: Mapping[str, Any]) -> None:
    """Fit a preference model and print what it is worth."""
    from prefkit.recipes.preferences import PreferenceConfig, run_preference

    result = run_preference(PreferenceConfig.parse(values))
    console = Console()
    console.print(result.table)
    console.print(result.calibration_table())
    if result.people is not None:
        console.print(result.people.table(f"{result.people.people} new people"))
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
    if result is not None:
        _show(result)


def _show(result: RunResult | ImageRunResult) -> None:
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
