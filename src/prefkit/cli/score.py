"""`prefkit score`: what a model says of each response."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

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
    list_skipped,
)
from prefkit.errors import OptionError, RecordError

if TYPE_CHECKING:
    from prefkit.comparisons import Comparison
    from prefkit.diffusion import DiffusionScorer
    from prefkit.language import FollowupScorer, LanguageScorer, RewardScorer
    from prefkit.preference import DomainReward
    from prefkit.recipes.preferences import TextPreference
    from prefkit.recipes.remote import RemoteReward

    _Lines: TypeAlias = Callable[[Iterable[Comparison], list[RecordError]], Iterator[tuple[Comparison, dict[str, Any]]]]


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
    followups: Followups = None,
    samples: Annotated[
        int | None, typer.Option(min=2, help="Reward models: passes with dropout, for the spread of rewards.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the dropout.")] = 0,
    batch_size: BatchSize = 8,
    max_length: MaxLength = None,
    precision: Precision = "fp32",
    limit: Limit = None,
) -> None:
    """Write the log-probability of every response: summed, per token, and the number of tokens.

    Of a reward model it is the reward of every response, and the number of tokens; of one that compares responses the
    mean log-odds against all of its comparison, and `odds`, those against each. An ensemble, or any model with dropout
    and --samples, adds the `spread` of each reward, its standard deviation within the comparison. With --followups it
    is the reward that the likelihood of follow-ups gives, in all and in each category. Of a pipeline of diffusers it is
    minus half the denoising error of every image, a mean over draws.

    Examples:

        prefkit score runs/dpo/model pairs.jsonl --output scores.jsonl

        prefkit score runs/rm/model pairs.jsonl --rewards-into rewarded.jsonl

        prefkit score my-model candidates.jsonl --followups default --rewards-into rewarded.jsonl
    """
    from prefkit.comparisons import load_comparisons, write_comparisons
    from prefkit.diffusion import is_pipeline, load_pipeline
    from prefkit.language import LanguageScorer, RewardScorer
    from prefkit.preference import DomainReward
    from prefkit.recipes.preferences import is_preference_model
    from prefkit.recipes.remote import is_address
    from prefkit.recipes.rewarding import followup_scorer, load_language, load_ranking
    from prefkit.training import processes

    if is_address(model) or is_preference_model(model) or DomainReward.is_saved(Path(model)):
        if tokens or samples is not None or followups is not None:
            raise OptionError("--tokens, --samples and --followups are for language models, which this is not")
        ranking = load_ranking(model)
        assert not isinstance(ranking, LanguageScorer | RewardScorer)
        lines_of: _Lines = partial(_rewarded, ranking)
    else:
        images = is_pipeline(model)
        dropout = samples is not None
        scorer = (
            load_pipeline(model).to(processes.device()).eval()
            if images
            else load_language(model, max_length=max_length, precision=precision, dropout=dropout)
        )
        if dropout and (not isinstance(scorer, RewardScorer) or followups is not None):
            raise OptionError("--samples is for reward models")
        if followups is not None:
            if not isinstance(scorer, LanguageScorer | RewardScorer):
                raise OptionError(
                    "--followups needs a language model: a pipeline of images gives no likelihood of texts"
                )
            lines_of = partial(_followed_up, followup_scorer(scorer, followups))
        else:
            if rewards_into is not None:
                scorer.provide(frozenset({"rewards"}))
            lines_of = partial(_scored, scorer, batch_size=batch_size, tokens=tokens, samples=samples, seed=seed)
        if tokens and (not isinstance(scorer, LanguageScorer) or followups is not None):
            raise OptionError("--tokens does not apply: rewards, and scores of images, are of whole responses")
    comparisons = load_comparisons(file, format=data_format, limit=limit)
    skipped: list[RecordError] = []
    written = 0

    def lines() -> Iterator[tuple[Comparison, dict[str, Any]]]:
        """Write each line and pass it on."""
        nonlocal written
        with output.open("w", encoding="utf-8") as out, Progress(transient=True) as progress:
            task = progress.add_task("scoring", total=None)
            for comparison, line in lines_of(comparisons, skipped):
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
                written += 1
                progress.update(task, completed=written, description=f"scored {written} comparisons")
                yield comparison, line

    if rewards_into is None:
        for _ in lines():
            pass
    else:
        write_comparisons((_with_rewards(comparison, line) for comparison, line in lines()), rewards_into)
    console = Console()
    for path in (output, rewards_into):
        if path is not None:
            console.print(f"{written} comparisons -> {path}", highlight=False, soft_wrap=True)
    list_skipped(console, skipped, comparisons)


def _scored(
    scorer: LanguageScorer | RewardScorer | DiffusionScorer,
    comparisons: Iterable[Comparison],
    skipped: list[RecordError],
    *,
    batch_size: int,
    tokens: bool,
    samples: int | None,
    seed: int,
) -> Iterator[tuple[Comparison, dict[str, Any]]]:
    """Each comparison with its line, a batch at a time."""
    from prefkit.language import RewardScorer, draw_rewards, spread_of
    from prefkit.objectives import encode_all, odds_among, score_all

    rewards = isinstance(scorer, RewardScorer)
    rows = encode_all(scorer, comparisons, skipped)
    while batch := list(islice(rows, batch_size)):
        (scores,) = score_all(scorer, [item for _, item in batch], batch_size=len(batch))
        begun, draws = 0, None
        if isinstance(scorer, RewardScorer) and (samples is not None or scorer.members):
            draws = draw_rewards(scorer, [item for _, item in batch], samples=samples, seed=seed)
            seed += 1
            scores = replace(scores, policy_logps=draws.mean(0))
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
            places = slice(begun, begun + len(found))
            if draws is not None:
                for line, spread in zip(found, spread_of(draws[:, places]).tolist(), strict=True):
                    line["spread"] = spread
            if scores.factors is not None:
                for line, odds in zip(found, odds_among(scores.factors[places]).tolist(), strict=True):
                    line["odds"] = odds
            begun += len(found)
            yield comparison, {**_place(comparison), "responses": found}


def _followed_up(
    rewarder: FollowupScorer, comparisons: Iterable[Comparison], skipped: list[RecordError]
) -> Iterator[tuple[Comparison, dict[str, Any]]]:
    """Each comparison with its line: the reward of every response, in all and in each category."""
    for comparison in rewarder.annotate(comparisons, skipped):
        categories = comparison.extra["category_rewards"]
        found = [
            {"reward": reward, **{name: values[place] for name, values in categories.items()}}
            for place, reward in enumerate(comparison.extra["rewards"])
        ]
        yield comparison, {**_place(comparison), "responses": found}


def _rewarded(
    ranking: TextPreference | DomainReward | RemoteReward, comparisons: Iterable[Comparison], skipped: list[RecordError]
) -> Iterator[tuple[Comparison, dict[str, Any]]]:
    """The same by what is no language model, with the spread of a preference model's ensemble."""
    from prefkit.recipes.preferences import Rewarded, TextPreference, preference_rewards
    from prefkit.recipes.rewarding import scored_by

    found: Iterable[Rewarded]
    if isinstance(ranking, TextPreference):
        found = preference_rewards(ranking, comparisons, skipped)
    else:
        found = (Rewarded(c, list(own), None) for c, own in scored_by(ranking, "reward")(comparisons, skipped))
    for comparison, rewards, spreads in found:
        responses = [{"reward": reward} for reward in rewards]
        for response, spread in zip(responses, spreads or (), strict=False):
            response["spread"] = spread
        yield comparison, {**_place(comparison), "responses": responses}


def _place(comparison: Comparison) -> dict[str, Any]:
    return {"source": comparison.source, "line": comparison.line, "id": comparison.id}


def _with_rewards(comparison: Comparison, line: Mapping[str, Any]) -> Comparison:
    rewards = [response["reward"] for response in line["responses"]]
    return replace(comparison, extra={**comparison.extra, "rewards": rewards})
