"""`prefkit sample`: images of a pipeline for captions and seeds, beside those of another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prefkit.errors import OptionError, PrefkitError


def sample(
    model: Annotated[str, typer.Argument(help="Folder or hub name of the pipeline.")],
    before: Annotated[str | None, typer.Option(help="Another pipeline, drawn above it from the same noise.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A caption; may be given several times.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file with one caption a line.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="A seed of the noise; may be given several times.")] = None,
    negative: Annotated[
        str | None, typer.Option(help="A negative model, for the other branch of the guidance.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 25,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.")] = 7.5,
    rescale: Annotated[float, typer.Option(min=0, max=1, help="Share in which guidance keeps the spread.")] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images drawn together.")] = 8,
    output: Annotated[Path, typer.Option(help="The picture, as PNG or SVG.")] = Path("samples.png"),
) -> None:
    """Draw images for captions and seeds into one picture: a column an image, a row a pipeline.

    Examples:

        prefkit sample runs/sd/model --before sd-folder --prompt "a red fox" --seed 0 --seed 1

        prefkit sample sd-folder --negative runs/npo/model --prompts captions.txt --guidance 5
    """
    from prefkit.diffusion import draw_images, load_pipeline, to_arrays
    from prefkit.report import picture_grid
    from prefkit.training import processes

    captions = read_captions(prompt, prompts)
    seeds = seed or [0]
    asked = [(caption, number) for caption in captions for number in seeds]
    away = None if negative is None else load_pipeline(negative).to(processes.device())
    rows = {}
    for name, path in (("before", before), ("after" if before else model, model)):
        if path is None:
            continue
        scorer = load_pipeline(path).to(processes.device())
        if steps > scorer.schedule.steps:
            raise OptionError(f"--steps must be at most {scorer.schedule.steps}, the steps that {path} was trained on")
        images = draw_images(
            scorer,
            [caption for caption, _ in asked],
            [number for _, number in asked],
            steps=steps,
            guidance=guidance,
            rescale=rescale,
            negative=away if path == model else None,
            batch_size=batch_size,
        )
        rows[name] = to_arrays(images)
    columns = [f"{caption}, {number}" if len(seeds) > 1 else caption for caption, number in asked]
    picture_grid(rows, title="Samples", columns=columns).figure.savefig(output)
    Console().print(f"{len(asked)} images a pipeline -> {output}", highlight=False, soft_wrap=True)


def read_captions(given: list[str] | None, file: Path | None) -> list[str]:
    """Captions from options and from a file.

    Raises:
        OptionError: there are none.
        PrefkitError: the file cannot be read.
    """
    captions = list(given or [])
    if file is not None:
        try:
            captions += [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise PrefkitError(f"{file} cannot be read as text: {error}") from error
    if not captions:
        raise OptionError("give captions: --prompt, or --prompts FILE with one a line")
    return captions
