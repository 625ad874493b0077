"""`prefkit score` and `prefkit evaluate`: what a model makes of comparisons."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from prefkit.errors import RecordError

if TYPE_CHECKING:
    from prefkit.comparisons import Comparison, Comparisons
    from prefkit.language import LanguageScorer

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
    batch_size: BatchSize = 8,
    max_length: MaxLength = None,
    precision: Precision = "fp32",
    limit: Limit = None,
) -> None:
    """Write the log-probability of every response: summed, per token, and the number of tokens.

    Example:

        prefkit score runs/dpo/model pairs.jsonl --output scores.jsonl
    """
    from prefkit.comparisons import load_comparisons

    scorer = _scorer(model, None, max_length, precision)
    comparisons = load_comparisons(file, format=data_format, limit=limit)
    skipped: list[RecordError] = []
    written = 0
    with output.open("w", encoding="utf-8") as out, Progress(transient=True) as progress:
        task = progress.add_task("scoring", total=None)
        for line in _scored(scorer, comparisons, batch_size, tokens, skipped):
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            written += 1
            progress.update(task, completed=written, description=f"scored {written} comparisons")
    console = Console()
    console.print(f"{written} comparisons -> {output}", highlight=False, soft_wrap=True)
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
) -> None:
    """Measure how well a model ranks the responses of comparisons.

    Ranking accuracy, summed and per token; with a reference also the accuracy and margin of the implicit reward and
    the changes of chosen and rejected log-probabilities; all with 95% intervals over prompts.

    Example:

        prefkit evaluate runs/dpo/model test.jsonl --reference base-model
    """
    from peft import PeftModel

    from prefkit import diagnostics
    from prefkit.comparisons import load_comparisons

    scorer = _scorer(model, reference, max_length, precision)
    comparisons = load_comparisons(file, format=data_format, limit=limit)
    compared = reference is not None or isinstance(scorer.policy, PeftModel)
    with Progress(transient=True) as progress:
        watched = progress.track(comparisons, description="evaluating")
        result = diagnostics.evaluate(scorer, watched, reference=compared, batch_size=batch_size)
    console = Console()
    console.print(result.table(f"{model} on {file}"))
    if output is not None:
        output.write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
    if pairs is not None:
        pairs.write_text(result.pairs_table().csv(), encoding="utf-8")
    _list_skipped(console, result.skipped, comparisons)


def _scorer(model: str, reference: str | None, max_length: int | None, precision: str) -> LanguageScorer:
    from prefkit.language import EncodingOptions, ModelOptions, load_scorer

    options = ModelOptions.parse({"path": model, "reference": reference, "precision": precision}, "model")
    scorer = load_scorer(options, EncodingOptions(max_length=max_length))
    return scorer.eval()


def _scored(
    scorer: LanguageScorer,
    comparisons: Any,
    batch_size: int,
    tokens: bool,
    skipped: list[RecordError],
) -> Iterator[dict[str, Any]]:
    """One line a comparison, a batch at a time."""
    from prefkit.objectives import score_all

    def encoded() -> Iterator[tuple[Comparison, Any]]:
        for comparison in comparisons:
            try:
                yield comparison, scorer.encode(comparison)
            except RecordError as error:
                place = {"source": comparison.source, "line": comparison.line}
                skipped.append(RecordError(error.problem, field=error.field, **place))

    rows = encoded()
    while batch := list(islice(rows, batch_size)):
        (scores,) = score_all(scorer, [item for _, item in batch], batch_size=len(batch))
        responses = iter(zip(scores.policy_logps.tolist(), scores.lengths.tolist(), strict=True))
        each_token = iter(scores.tokens.policy_logps.tolist() if scores.tokens is not None else ())
        for comparison, _ in batch:
            found: list[dict[str, Any]] = []
            for logp, length in islice(responses, len(comparison.responses)):
                own = list(islice(each_token, length))
                found.append({"logp": logp, "logp_per_token": logp / length, "tokens": length})
                if tokens:
                    found[-1]["token_logps"] = own
            yield {"source": comparison.source, "line": comparison.line, "id": comparison.id, "responses": found}


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
