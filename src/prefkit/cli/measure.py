"""`prefkit score` and `prefkit evaluate`: what a model makes of comparisons."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.progress import Progress

from prefkit.errors import OptionError, RecordError

if TYPE_CHECKING:
    from prefkit.comparisons import Comparison, Comparisons
    from prefkit.diffusion import DiffusionScorer
    from prefkit.language import LanguageScorer, RewardScorer

Model = Annotated[str, typer.Argument(help="Folder or hub name of the model or adapter; `builtin` ships with it.")]
File = Annotated[str, typer.Argument(help="File, data set folder or hub name of the comparisons.")]
Format = Annotated[str | None, typer.Option("--format", help="Name of the format; detected by default.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Comparisons a forward pass.")]
MaxLength = Annotated[int | None, typer.Option(min=2, help="Tokens of prompt and response; the context by default.")]
Precision = Annotated[str, typer.Option(help="fp32, or bf16 for mixed precision.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Read at most so many comparisons.")]


def score(
    model: Model,
    file: File,
    output: Annotated[Path, typer.Option(help="Where to write, one JSON object a comparison.")] = Path("scores.jsonl"),
    data_format: Format = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Also the log-probability of each token.")] = False,
    rewards_into: Annotated[
        Path | None,
        typer.Option(help="Also write the comparisons themselves, with the reward model's `rewards`, to this file."),
    ] = None,
    batch_size: BatchSize = 8,
    max_length: MaxLength = None,
    precision: Precision = "fp32",
    limit: Limit = None,
) -> None:
    """Write the log-probability of every response: summed, per token, and the number of tokens.

    Of a reward model it is the reward of every response, and the number of tokens. Of a pipeline of diffusers it is
    minus half the denoising error of every image, a mean over draws.

    Examples:

        prefkit score runs/dpo/model pairs.jsonl --output scores.jsonl

        prefkit score runs/rm/model pairs.jsonl --rewards-into rewarded.jsonl
    """
    from prefkit.comparisons import load_comparisons, write_comparisons
    from prefkit.diffusion import is_pipeline, load_pipeline
    from prefkit.language import RewardScorer

    images = is_pipeline(model)
    scorer = load_pipeline(model).eval() if images else _scorer(model, None, max_length, precision)
    if rewards_into is not None:
        scorer.provide(frozenset({"rewards"}))
    if tokens and (images or isinstance(scorer, RewardScorer)):
        raise OptionError("--tokens does not apply: a reward model, or a pipeline of images, scores whole responses")
    comparisons = load_comparisons(file, format=data_format, limit=limit)
    skipped: list[RecordError] = []
    written = 0

    def lines() -> Iterator[tuple[Comparison, dict[str, Any]]]:
        """Write each line and pass it on."""
        nonlocal written
        with output.open("w", encoding="utf-8") as out, Progress(transient=True) as progress:
            task = progress.add_task("scoring", total=None)
            for comparison, line in _scored(scorer, comparisons, batch_size, tokens, skipped):
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
                written += 1
                progress.update(task, completed=written, description=f"scored {written} comparisons")
                yield comparison, line

    if rewards_into is None:
        for _ in lines():
            pass
    else:
        write_comparisons((_rewarded(comparison, line) for comparison, line in lines()), rewards_into)
    console = Console()
    for path in (output, rewards_into):
        if path is not None:
            console.print(f"{written} comparisons -> {path}", highlight=False, soft_wrap=True)
    _list_skipped(console, skipped, comparisons)


def evaluate(
    model: Model,
    file: File,
    reference: Annotated[
        str | None, typer.Option(help="Reference model, for reward accuracy and margins; an adapter brings its own.")
    ] = None,
    data_format: Format = None,
    output: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Also write one row a pair to this CSV file.")] = None,
    batch_size: BatchSize = 8,
    max_length: MaxLength = None,
    precision: Precision = "fp32",
    limit: Limit = None,
    scorer: Annotated[
        str | None,
        typer.Option(help="Pipelines: draw the captions, and give the win rate against --reference by `clip:FOLDER`."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Pipelines: steps of the sampler.")] = 25,
    guidance: Annotated[float, typer.Option(help="Pipelines: scale of classifier-free guidance.")] = 7.5,
    seeds: Annotated[int, typer.Option(min=1, help="Pipelines: images a caption.")] = 1,
) -> None:
    """Measure how well a model ranks the responses of comparisons.

    Ranking accuracy, summed and per token; with a reference also the accuracy and margin of the implicit reward and
    the changes of chosen and rejected log-probabilities; all with 95% intervals over prompts.

    Of a reward model it is the accuracy with which its rewards rank.

    Of a pipeline of diffusers it is the same, with minus the denoising error for the log-probability; or, with
    --scorer, the win rate of its images for the captions of the file against those of the reference.

    Examples:

        prefkit evaluate runs/dpo/model test.jsonl --reference base-model

        prefkit evaluate runs/sd/model test.parquet --reference sd-folder --scorer clip:pickscore-folder
    """
    from prefkit.diffusion import is_pipeline

    if is_pipeline(model):
        reading = _Reading(file, data_format, limit, batch_size, output)
        if scorer is None:
            _evaluate_pipeline(model, reference, pairs, reading)
        else:
            _win_rate(model, reference, scorer, _Drawing(steps, guidance, seeds), reading)
        return
    if scorer is not None:
        raise OptionError(f"--scorer is for pipelines of diffusers, and {model} is none")

    from peft import PeftModel

    from prefkit import diagnostics
    from prefkit.comparisons import load_comparisons
    from prefkit.language import RewardScorer

    measured = _scorer(model, reference, max_length, precision)
    comparisons = load_comparisons(file, format=data_format, limit=limit)
    rewards = isinstance(measured, RewardScorer)
    compared = not rewards and (reference is not None or isinstance(measured.policy, PeftModel))
    with Progress(transient=True) as progress:
        watched = progress.track(comparisons, description="evaluating")
        result = diagnostics.evaluate(
            measured, watched, reference=compared, batch_size=batch_size, per_token=not rewards
        )
    console = Console()
    console.print(result.table(f"{model} on {file}"))
    if output is not None:
        output.write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
    if pairs is not None:
        pairs.write_text(result.pairs_table().csv(), encoding="utf-8")
    _list_skipped(console, result.skipped, comparisons)


class _Reading(NamedTuple):
    """What is evaluated, and where the figures go."""

    file: str
    data_format: str | None
    limit: int | None
    batch_size: int
    output: Path | None


class _Drawing(NamedTuple):
    """How a pipeline draws."""

    steps: int
    guidance: float
    seeds: int


def _evaluate_pipeline(model: str, reference: str | None, pairs: Path | None, reading: _Reading) -> None:
    """How well a pipeline ranks images."""
    from prefkit import diagnostics
    from prefkit.comparisons import load_comparisons
    from prefkit.diffusion import PipelineOptions, load_pipeline

    scorer = load_pipeline(PipelineOptions.parse({"path": model, "reference": reference}, "model")).eval()
    comparisons = load_comparisons(reading.file, format=reading.data_format, limit=reading.limit)
    with Progress(transient=True) as progress:
        watched = progress.track(comparisons, description="evaluating")
        result = diagnostics.evaluate(
            scorer, watched, reference=reference is not None, batch_size=reading.batch_size, per_token=False
        )
    console = Console()
    console.print(result.table(f"{model} on {reading.file}"))
    if reading.output is not None:
        reading.output.write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
    if pairs is not None:
        pairs.write_text(result.pairs_table().csv(), encoding="utf-8")
    _list_skipped(console, result.skipped, comparisons)


def _win_rate(model: str, reference: str | None, scorer: str, drawing: _Drawing, reading: _Reading) -> None:
    """How often a pipeline's images are better than the reference's, for the captions of a file."""
    from prefkit.comparisons import load_comparisons
    from prefkit.diffusion import caption_of, draw_images, load_pipeline, make_scorer, win_rate_of
    from prefkit.report.cells import plain

    if reference is None:
        raise OptionError("a win rate compares two pipelines: give --reference")
    judge = make_scorer(scorer)
    comparisons = load_comparisons(reading.file, format=reading.data_format, limit=reading.limit)
    captions = list(dict.fromkeys(caption_of(comparison.prompt_of(0)) for comparison in comparisons))
    asked = [(caption, seed) for caption in captions for seed in range(drawing.seeds)]
    told, seeds = [caption for caption, _ in asked], [seed for _, seed in asked]
    drawn = [
        draw_images(
            load_pipeline(path),
            told,
            seeds,
            steps=drawing.steps,
            guidance=drawing.guidance,
            batch_size=reading.batch_size,
        )
        for path in (model, reference)
    ]
    result = win_rate_of(judge, drawn[0], drawn[1], told)
    console = Console()
    console.print(result.table(f"{model} against {reference} by {scorer}, {len(asked)} images"))
    if reading.output is not None:
        found = {"win_rate": result.rate, "gain": result.gain, "captions": result.captions, "scores": result.scores}
        reading.output.write_text(json.dumps(plain(found), indent=1), encoding="utf-8")
    _list_skipped(console, (), comparisons)


def _scorer(model: str, reference: str | None, max_length: int | None, precision: str) -> LanguageScorer | RewardScorer:
    from prefkit.language import EncodingOptions, ModelOptions, is_reward_model, load_reward, load_scorer

    options = ModelOptions.parse({"path": model, "reference": reference, "precision": precision}, "model")
    encoding = EncodingOptions(max_length=max_length)
    if is_reward_model(model):
        return load_reward(options.model_copy(update={"kind": "reward"}), encoding).eval()
    return load_scorer(options, encoding).eval()


def _scored(
    scorer: LanguageScorer | RewardScorer | DiffusionScorer,
    comparisons: Iterable[Comparison],
    batch_size: int,
    tokens: bool,
    skipped: list[RecordError],
) -> Iterator[tuple[Comparison, dict[str, Any]]]:
    """Each comparison with its line, a batch at a time."""
    from prefkit.language import RewardScorer
    from prefkit.objectives import encode_all, score_all

    rewards = isinstance(scorer, RewardScorer)
    rows = encode_all(scorer, comparisons, skipped)
    while batch := list(islice(rows, batch_size)):
        (scores,) = score_all(scorer, [item for _, item in batch], batch_size=len(batch))
        responses = iter(zip(scores.policy_logps.tolist(), scores.lengths.tolist(), strict=True))
        each_token = iter(scores.tokens.policy_logps.tolist() if scores.tokens is not None else ())
        for comparison, _ in batch:
            found: list[dict[str, Any]] = []
            for score, length in islice(responses, len(comparison.responses)):
                own = list(islice(each_token, length))
                if rewards:
                    found.append({"reward": score, "tokens": length})
                    continue
                found.append({"logp": score, "logp_per_token": score / length, "tokens": length})
                if tokens:
                    found[-1]["token_logps"] = own
            place = {"source": comparison.source, "line": comparison.line, "id": comparison.id}
            yield comparison, {**place, "responses": found}


def _rewarded(comparison: Comparison, line: Mapping[str, Any]) -> Comparison:
    rewards = [response["reward"] for response in line["responses"]]
    return replace(comparison, extra={**comparison.extra, "rewards": rewards})


def _list_skipped(console: Console, unusable: Iterable[RecordError], comparisons: Comparisons, shown: int = 10) -> None:
    """List what was set aside: rows that could not be used, and rows that could not be read."""
    problems = [*map(str, unusable), *(f"{row.source}:{row.line}: {row.problem}" for row in comparisons.skipped)]
    if not problems:
        return
    console.print(f"{len(problems)} comparisons set aside:", style="yellow")
    for problem in problems[:shown]:
        console.print(f"  {problem}", markup=False, highlight=False, soft_wrap=True)
    if len(problems) > shown:
        console.print(f"  and {len(problems) - shown} more")
