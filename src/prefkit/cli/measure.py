"""`prefkit score` and `prefkit evaluate`: what a model makes of comparisons."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from prefkit.errors import OptionError, RecordError

if TYPE_CHECKING:
    from prefkit.comparisons import Comparison, Comparisons
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

    Of a reward model it is the reward of every response, and the number of tokens.

    Examples:

        prefkit score runs/dpo/model pairs.jsonl --output scores.jsonl

        prefkit score runs/rm/model pairs.jsonl --rewards-into rewarded.jsonl
    """
    from prefkit.comparisons import load_comparisons, write_comparisons
    from prefkit.language import RewardScorer
    from prefkit.recipes.preferences import is_preference_model

    if is_preference_model(model):
        if tokens:
            raise OptionError("--tokens does not apply: a preference model scores whole responses")
        _score_preferences(model, file, output, rewards_into, data_format, limit)
        return
    scorer = _scorer(model, None, max_length, precision)
    if rewards_into is not None:
        scorer.provide(frozenset({"rewards"}))
    if tokens and isinstance(scorer, RewardScorer):
        raise OptionError("--tokens does not apply: a reward model scores whole responses")
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
) -> None:
    """Measure how well a model ranks the responses of comparisons.

    Ranking accuracy, summed and per token; with a reference also the accuracy and margin of the implicit reward and
    the changes of chosen and rejected log-probabilities; all with 95% intervals over prompts.

    Of a reward model it is the accuracy with which its rewards rank; of a preference model log-likelihood, accuracy and
    calibration.

    Example:

        prefkit evaluate runs/dpo/model test.jsonl --reference base-model
    """
    from peft import PeftModel

    from prefkit import diagnostics
    from prefkit.comparisons import load_comparisons
    from prefkit.language import RewardScorer
    from prefkit.recipes.preferences import evaluate_preference, is_preference_model

    if is_preference_model(model):
        if reference is not None or pairs is not None:
            raise OptionError("--reference and --pairs do not apply to a preference model")
        comparisons = load_comparisons(file, format=data_format, limit=limit)
        found = evaluate_preference(model, comparisons)
        console = Console()
        console.print(found.table(f"{model} on {file}"))
        if output is not None:
            output.write_text(json.dumps(found.table().to_dict(), indent=1), encoding="utf-8")
        _list_skipped(console, found.skipped, comparisons)
        return
    scorer = _scorer(model, reference, max_length, precision)
    comparisons = load_comparisons(file, format=data_format, limit=limit)
    rewards = isinstance(scorer, RewardScorer)
    compared = not rewards and (reference is not None or isinstance(scorer.policy, PeftModel))
    with Progress(transient=True) as progress:
        watched = progress.track(comparisons, description="evaluating")
        result = diagnostics.evaluate(scorer, watched, reference=compared, batch_size=batch_size, per_token=not rewards)
    console = Console()
    console.print(result.table(f"{model} on {file}"))
    if output is not None:
        output.write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
    if pairs is not None:
        pairs.write_text(result.pairs_table().csv(), encoding="utf-8")
    _list_skipped(console, result.skipped, comparisons)


def _scorer(model: str, reference: str | None, max_length: int | None, precision: str) -> LanguageScorer | RewardScorer:
    from prefkit.language import EncodingOptions, ModelOptions, is_reward_model, load_reward, load_scorer

    options = ModelOptions.parse({"path": model, "reference": reference, "precision": precision}, "model")
    encoding = EncodingOptions(max_length=max_length)
    if is_reward_model(model):
        return load_reward(options.model_copy(update={"kind": "reward"}), encoding).eval()
    return load_scorer(options, encoding).eval()


def _scored(
    scorer: LanguageScorer | RewardScorer,
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


def _score_preferences(
    model: str, file: str, output: Path, rewards_into: Path | None, data_format: str | None, limit: int | None
) -> None:
    """Rewards by a preference model: of each response, the mean log-odds against all responses of its comparison."""
    from prefkit.comparisons import load_comparisons, write_comparisons
    from prefkit.recipes.preferences import preference_rewards

    comparisons = load_comparisons(file, format=data_format, limit=limit)
    skipped: list[RecordError] = []
    rewarded = []
    with output.open("w", encoding="utf-8") as out:
        for comparison, rewards in preference_rewards(model, comparisons, skipped):
            place = {"source": comparison.source, "line": comparison.line, "id": comparison.id}
            line = {**place, "responses": [{"reward": reward} for reward in rewards]}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            rewarded.append(_rewarded(comparison, line))
    if rewards_into is not None:
        write_comparisons(rewarded, rewards_into)
    console = Console()
    for path in (output, rewards_into):
        if path is not None:
            console.print(f"{len(rewarded)} comparisons -> {path}", highlight=False, soft_wrap=True)
    _list_skipped(console, skipped, comparisons)


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
