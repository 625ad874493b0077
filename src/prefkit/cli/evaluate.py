"""`prefkit evaluate`: how well a model ranks the responses of comparisons."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.console import Console
from rich.progress import Progress

from prefkit.cli.common import (
    BatchSize,
    File,
    Followups,
    Format,
    Limit,
    MaxLength,
    Model,
    Precision,
    TooLong,
    list_skipped,
)
from prefkit.errors import OptionError, RecordError

if TYPE_CHECKING:
    from prefkit.comparisons import Comparison, Comparisons
    from prefkit.diagnostics import ContextUse, Evaluation, Ranked, Ranker, Scored, StyleUse
    from prefkit.recipes.rewarding import Measured, Ranking
    from prefkit.report import Plot, Table


class RankBy(StrEnum):
    """What of a model ranks responses; see `prefkit.recipes.rewarding.Measured`."""

    REWARD = "reward"
    IMPLICIT = "implicit"
    LIKELIHOOD = "likelihood"
    JUDGE = "judge"
    FOLLOWUPS = "followups"


def evaluate(
    model: Model,
    file: File,
    reference: Annotated[
        str | None, typer.Option(help="Reference model, for reward accuracy and margins; an adapter brings its own.")
    ] = None,
    data_format: Format = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help="FILE is this benchmark: rm-bench, judgebench, llmbar, hhh or pandalm; follow its protocol."),
    ] = None,
    measured: Annotated[
        RankBy | None,
        typer.Option(
            "--as", help="With --benchmark, --contexts, --style: what of the model ranks. Default: what it is."
        ),
    ] = None,
    contexts: Annotated[
        str | None,
        typer.Option(help="Measure how far the model reads contexts, which are in this field, such as `criterion`."),
    ] = None,
    style: Annotated[
        bool, typer.Option("--style", help="Also measure how much of the ranking is length and markdown.")
    ] = False,
    followups: Followups = None,
    tie_margin: Annotated[float, typer.Option(min=0, help="With --benchmark pandalm: margins that are ties.")] = 0.0,
    too_long: Annotated[TooLong, typer.Option(help="What happens to texts beyond the context.")] = TooLong.SKIP,
    output: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Reward and preference models: also write a page with the reliability plots, such as r.html."
        ),
    ] = None,
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

    Of a reward model it is the accuracy with which its rewards rank, and whether their differences mean what they say
    as log-odds, before and after its temperature; of a preference model log-likelihood, accuracy and calibration.

    Of a pipeline of diffusers it is the same, with minus the denoising error for the log-probability; or, with
    --scorer, the win rate of its images for the captions of the file against those of the reference.

    Examples:

        prefkit evaluate runs/dpo/model test.jsonl --reference base-model

        prefkit evaluate runs/rm/model rm_bench.jsonl.gz --benchmark rm-bench

        prefkit evaluate my-model llmbar.jsonl.gz --benchmark llmbar --as judge

        prefkit evaluate runs/rm/model reversals.jsonl --contexts criterion

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
    from prefkit.language import LanguageScorer, RewardScorer
    from prefkit.recipes.preferences import is_preference_model
    from prefkit.recipes.remote import is_address
    from prefkit.recipes.rewarding import load_ranking, scored_by, what_ranks

    if sum((benchmark is not None, contexts is not None, style)) > 1:
        raise OptionError("--benchmark, --contexts and --style exclude one another: give one")
    if benchmark is None and tie_margin:
        raise OptionError("--tie-margin goes with --benchmark")
    by_rank = benchmark is not None or contexts is not None or style
    if by_rank and pairs is not None:
        raise OptionError("--pairs does not apply to --benchmark, --contexts and --style")
    for name, given in (("as", measured), ("followups", followups)):
        if given is not None and not by_rank:
            raise OptionError(f"--{name} goes with --benchmark, --contexts or --style")
    if not by_rank and is_preference_model(model):
        if reference is not None or pairs is not None:
            raise OptionError("--reference and --pairs do not apply to a preference model")
        _evaluate_preference(model, report, _Reading(file, data_format, limit, batch_size, output))
        return
    ranked = load_ranking(
        model, reference=reference, max_length=max_length, precision=precision, too_long=str(too_long)
    )
    if by_rank:
        how = what_ranks(ranked, compared=reference is not None, given=measured, followups=followups)
        if benchmark is not None:
            ranker = _ranker(ranked, how, followups, batch_size)
            _show_benchmark(benchmark, ranker, how, model, file, data_format, limit, tie_margin, output)
            return
        scored = scored_by(ranked, how, followups=followups, batch_size=batch_size)
        comparisons = load_comparisons(file, format=data_format, limit=limit)
        found = _in_contexts_or_style(scored, comparisons, contexts)
        Console().print(found.table(f"{model} ({how}) on {file}"))
        if output is not None:
            output.write_text(json.dumps(found.to_dict(), indent=1), encoding="utf-8")
        list_skipped(Console(), found.skipped, comparisons)
        return
    if not isinstance(ranked, LanguageScorer | RewardScorer):
        if is_address(model):
            raise OptionError("a served reward is measured with --benchmark, --contexts or --style")
        raise OptionError(
            "a reward on features is measured with --benchmark, --contexts or --style; `prefkit features fit` measures "
            "it on held-out prompts"
        )
    comparisons = load_comparisons(file, format=data_format, limit=limit)
    rewards = isinstance(ranked, RewardScorer)
    if report is not None and not rewards:
        raise OptionError("--report is for reward and preference models, whose scores are log-odds of preference")
    compared = not rewards and (reference is not None or isinstance(ranked.policy, PeftModel))
    with Progress(transient=True) as progress:
        watched = progress.track(comparisons, description="evaluating")
        result = diagnostics.evaluate(ranked, watched, reference=compared, batch_size=batch_size, per_token=not rewards)
    console = Console()
    console.print(result.table(f"{model} on {file}"))
    figures = result.to_dict()
    if isinstance(ranked, RewardScorer):
        table, plots = _calibration_of(result, ranked.temperature)
        console.print(table)
        figures["calibration"] = table.to_dict()
        if report is not None:
            _write_page(report, f"{model} on {file}", [result.table("Figures"), table, *plots])
    if output is not None:
        output.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    if pairs is not None:
        pairs.write_text(result.pairs_table().csv(), encoding="utf-8")
    list_skipped(console, result.skipped, comparisons)


def _calibration_of(result: Evaluation, temperature: float) -> tuple[Table, list[Plot]]:
    """Whether a reward model's log-odds mean what they say; with a temperature also without it."""
    from prefkit.diagnostics import calibration_change

    if temperature == 1:
        found = result.calibration()
        return found.table(), [found.plot]
    after = result.calibration(title="Reliability, after the temperature")
    before = result.calibration(1 / temperature)
    return calibration_change(before, after, f"Calibration, temperature {temperature:.3g}"), [before.plot, after.plot]


def _write_page(path: Path, title: str, parts: Sequence[Table | Plot]) -> None:
    from prefkit.report import Report

    text = "Figures have 95% intervals over prompts. Bars of the plot are frequencies of what was predicted so often."
    Report(title).section("Figures", text, *parts).write(path)


def _show_benchmark(
    name: str,
    ranker: Ranker,
    how: str,
    model: str,
    file: str,
    data_format: str | None,
    limit: int | None,
    tie_margin: float,
    output: Path | None,
) -> None:
    """Measure, print and write."""
    from prefkit.comparisons import load_comparisons
    from prefkit.diagnostics import BENCHMARKS, run_benchmark

    known = BENCHMARKS.get(name)
    comparisons = load_comparisons(file, format=data_format or (known.format if known else None), limit=limit)
    with Progress(transient=True) as progress:
        task = progress.add_task("evaluating", total=None)

        def watched(items: Iterable[Comparison], skipped: list[RecordError]) -> Iterator[Ranked]:
            for ranked in ranker(items, skipped):
                progress.advance(task)
                yield ranked

        result = run_benchmark(
            name,
            watched,
            comparisons,
            model=f"{model} ({how})",
            tie_margin=tie_margin,
            judge=how == "judge",
        )
    console = Console()
    console.print(result.table())
    console.print(f"{result.benchmark.protocol}; {result.benchmark.source}", highlight=False, soft_wrap=True)
    if output is not None:
        output.write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
    list_skipped(console, result.skipped, comparisons)


def _in_contexts_or_style(scored: Scored, comparisons: Comparisons, field: str | None) -> ContextUse | StyleUse:
    from prefkit.comparisons import ContextOptions
    from prefkit.diagnostics import measure_context_use, measure_style_use

    if field is None:
        return measure_style_use(scored, comparisons)
    return measure_context_use(scored, comparisons, ContextOptions.parse({"field": field}, "contexts"))


def _ranker(ranking: Ranking, how: Measured, followups: str | None, batch_size: int) -> Ranker:
    from prefkit.diagnostics import by_scores
    from prefkit.language import LanguageJudge, LanguageScorer
    from prefkit.recipes.rewarding import scored_by

    if how == "judge":
        assert isinstance(ranking, LanguageScorer)
        return LanguageJudge(ranking)
    return by_scores(scored_by(ranking, how, followups=followups, batch_size=batch_size))


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


def _evaluate_preference(model: str, report: Path | None, reading: _Reading) -> None:
    """Log-likelihood, accuracy and calibration of a preference model."""
    from prefkit.comparisons import load_comparisons
    from prefkit.recipes.preferences import evaluate_preference

    comparisons = load_comparisons(reading.file, format=reading.data_format, limit=reading.limit)
    fitted = evaluate_preference(model, comparisons)
    console = Console()
    console.print(fitted.table(f"{model} on {reading.file}"))
    if reading.output is not None:
        reading.output.write_text(json.dumps(fitted.table().to_dict(), indent=1), encoding="utf-8")
    if report is not None:
        _write_page(report, f"{model} on {reading.file}", [fitted.table("Figures"), *fitted.plots()])
    list_skipped(console, fitted.skipped, comparisons)


def _evaluate_pipeline(model: str, reference: str | None, pairs: Path | None, reading: _Reading) -> None:
    """How well a pipeline ranks images."""
    from prefkit import diagnostics
    from prefkit.comparisons import load_comparisons
    from prefkit.diffusion import PipelineOptions, load_pipeline
    from prefkit.training import processes

    options = PipelineOptions.parse({"path": model, "reference": reference}, "model")
    scorer = load_pipeline(options).to(processes.device()).eval()
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
    list_skipped(console, result.skipped, comparisons)


def _win_rate(model: str, reference: str | None, scorer: str, drawing: _Drawing, reading: _Reading) -> None:
    """How often a pipeline's images are better than the reference's, for the captions of a file."""
    from prefkit.comparisons import load_comparisons
    from prefkit.diffusion import caption_of, draw_images, load_pipeline, make_scorer, win_rate_of
    from prefkit.report.cells import plain
    from prefkit.training import processes

    if reference is None:
        raise OptionError("a win rate compares two pipelines: give --reference")
    judge = make_scorer(scorer)
    comparisons = load_comparisons(reading.file, format=reading.data_format, limit=reading.limit)
    captions = list(dict.fromkeys(caption_of(comparison.prompt_of(0)) for comparison in comparisons))
    asked = [(caption, seed) for caption in captions for seed in range(drawing.seeds)]
    told, seeds = [caption for caption, _ in asked], [seed for _, seed in asked]
    drawn = [
        draw_images(
            load_pipeline(path).to(processes.device()),
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
    list_skipped(console, (), comparisons)
