"""`prefkit sample`: what a model makes of prompts: texts, the best of several by a reward; or images in one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from prefkit.errors import OptionError, PrefkitError, RecordError

if TYPE_CHECKING:
    from prefkit.comparisons import Text


def sample(
    model: Annotated[str, typer.Argument(help="Folder or hub name of a language model or a pipeline.")],
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt or caption; may be given several times.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file with one prompt a line; or comparisons, for their prompts.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="A seed; pipelines take several, and draw an image for each.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="samples.jsonl for texts, samples.png (or .svg) for images.")
    ] = None,
    best_of: Annotated[
        int | None, typer.Option(min=2, help="Texts: sample so many a prompt and keep the best.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="Texts: the reward or preference model, or aligned adapter, that chooses.")
    ] = None,
    reward_reference: Annotated[
        str | None, typer.Option(help="Texts: reference of a policy that chooses by its implicit reward.")
    ] = None,
    candidates: Annotated[
        Path | None, typer.Option(help="Texts: also write all candidates with their rewards, as comparisons.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Texts: tokens at most.  [default: 64]")] = None,
    temperature: Annotated[float | None, typer.Option(help="Texts: 0 is greedy.  [default: 1]")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Texts: probability mass that is sampled from.  [default: 1]")
    ] = None,
    before: Annotated[str | None, typer.Option(help="Images: another pipeline, drawn above from one noise.")] = None,
    negative: Annotated[
        str | None, typer.Option(help="Images: a negative model, for the other branch of the guidance.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Images: steps of the sampler.  [default: 25]")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Images: scale of classifier-free guidance, 1 is none.  [default: 7.5]")
    ] = None,
    rescale: Annotated[
        float | None, typer.Option(min=0, max=1, help="Images: share in which guidance keeps the spread.  [default: 0]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images: drawn together.  [default: 8]")] = None,
) -> None:
    """Write what a model makes of prompts.

    Of a language model it is one JSON object a prompt, with `prompt` and `response`; with --best-of the response with
    the highest reward, and its `reward`. Of a pipeline it is one picture: a column an image, a row a pipeline.

    Examples:

        prefkit sample runs/dpo/model --prompt "How do I boil an egg?" --temperature 0

        prefkit sample my-model --prompts prompts.txt --best-of 8 --reward runs/rm/model --candidates rewarded.jsonl

        prefkit sample runs/sd/model --before sd-folder --prompt "a red fox" --seed 0 --seed 1

        prefkit sample sd-folder --negative runs/npo/model --prompts captions.txt --guidance 5
    """
    from prefkit.diffusion import is_pipeline

    texts: dict[str, Any] = {
        **{"best_of": best_of, "reward": reward, "reward_reference": reward_reference, "candidates": candidates},
        **{"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p},
    }
    images: dict[str, Any] = {
        **{"before": before, "negative": negative, "steps": steps, "guidance": guidance, "rescale": rescale},
        "batch_size": batch_size,
    }
    asked, seeds = read_prompts(prompt, prompts), seed or [0]
    if is_pipeline(model):
        _draw(model, _captions(asked), seeds, output or Path("samples.png"), **_only(images, texts, "texts"))
        return
    if len(seeds) > 1:
        raise OptionError("several seeds are for pipelines; --best-of samples a prompt several times")
    _write(model, asked, seeds[0], output or Path("samples.jsonl"), **_only(texts, images, "images"))


def _only(own: Mapping[str, Any], others: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The options that were given, all of which must be the model's own."""
    for name, value in others.items():
        if value is not None:
            raise OptionError(f"--{name.replace('_', '-')} is for {kind}, which the model does not make")
    return {name: value for name, value in own.items() if value is not None}


def _write(
    model: str,
    prompts: list[Text],
    seed: int,
    output: Path,
    *,
    best_of: int = 1,
    reward: str | None = None,
    reward_reference: str | None = None,
    candidates: Path | None = None,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> None:
    from prefkit.comparisons import Comparison, write_comparisons
    from prefkit.language import LanguageScorer, sample_candidates
    from prefkit.language import sample as sample_texts
    from prefkit.recipes.rewarding import load_language, load_rewards
    from prefkit.selection import choose_best

    if (best_of > 1) != (reward is not None):
        raise OptionError("--best-of and --reward go together: give how many to sample and what chooses among them")
    for name, given in (("candidates", candidates), ("reward-reference", reward_reference)):
        if given is not None and reward is None:
            raise OptionError(f"--{name} goes with --reward")
    writer = load_language(model)
    if not isinstance(writer, LanguageScorer):
        raise OptionError(f"{model} is a reward model, which writes nothing")
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "top_p": top_p, "temperature": temperature}
    kept: list[Comparison] = []
    problems: list[str] = []
    lines = 0
    scored = None
    if reward is not None:
        scored = load_rewards(reward, reference=reward_reference)
    with output.open("w", encoding="utf-8") as out:
        for place, prompt in enumerate(track(prompts, "sampling", transient=True)):
            line: dict[str, Any] = {"prompt": prompt}
            length, room = len(writer.encoder.prompt_tokens(prompt)), writer.encoder.max_length
            if room is not None and length + max_new_tokens > room:
                needed = f"its {length} tokens and --max-new-tokens {max_new_tokens} exceed the context of {room}"
                problems.append(str(RecordError(needed, source="prompts", line=place + 1)))
                continue
            own = seed * 1_000_003 + place
            if scored is None:
                (line["response"],) = sample_texts(writer, [prompt], seed=own, **how)
            else:
                (written,) = sample_candidates(writer, [prompt], best_of, seed=own, **how)
                try:
                    best = choose_best(prompt, written, scored, line=place + 1)
                except RecordError as error:
                    problems.append(str(error))
                    continue
                line |= {"response": best.response, "reward": best.reward}
                if best.candidates is not None:
                    kept.append(best.candidates)
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            lines += 1
    console = Console()
    console.print(f"{lines} responses -> {output}", highlight=False, soft_wrap=True)
    if candidates is not None:
        rows = write_comparisons(kept, candidates)
        console.print(f"candidates of {rows} prompts -> {candidates}", highlight=False, soft_wrap=True)
    for problem in problems:
        console.print(f"  set aside: {problem}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _draw(
    model: str,
    captions: list[str],
    seeds: list[int],
    output: Path,
    *,
    before: str | None = None,
    negative: str | None = None,
    steps: int = 25,
    guidance: float = 7.5,
    rescale: float = 0.0,
    batch_size: int = 8,
) -> None:
    from prefkit.diffusion import draw_images, load_pipeline, to_arrays
    from prefkit.report import picture_grid
    from prefkit.training import processes

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


def read_prompts(given: list[str] | None, file: Path | None) -> list[Text]:
    """Prompts from options and from a file: a line each, or those of comparisons, each once.

    Raises:
        OptionError: there are none.
        PrefkitError: the file cannot be read.
    """
    from prefkit.comparisons import load_comparisons

    found: list[Text] = list(given or [])
    if file is not None and file.suffix in ("", ".txt"):
        try:
            found += [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise PrefkitError(f"{file} cannot be read as text: {error}") from error
    elif file is not None:
        once = {json.dumps(prompt): prompt for record in load_comparisons(str(file)) for prompt in record.prompts}
        found += list(once.values())
    if not found:
        raise OptionError("give prompts: --prompt, or --prompts FILE with one a line")
    return found


def _captions(prompts: list[Text]) -> list[str]:
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise OptionError(f"a pipeline takes captions as text, got messages: {prompt}")
    return [str(prompt) for prompt in prompts]
