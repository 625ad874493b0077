"""Scores of responses by whatever is saved: a reward model, a preference model, a policy, a reward on features.

One place turns a folder or a hub name into a function from comparisons to one score a response, which evaluation,
benchmarks, best-of-N, the server and the data commands take alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from peft import PeftModel

from prefkit.comparisons import Comparison
from prefkit.diagnostics import Scored
from prefkit.errors import OptionError, RecordError, unknown
from prefkit.language import (
    EncodingOptions,
    FollowupBank,
    FollowupScorer,
    LanguageScorer,
    ModelOptions,
    RewardScorer,
    is_reward_model,
)
from prefkit.objectives import encode_all, score_all
from prefkit.preference import DomainReward
from prefkit.recipes.preferences import TextPreference, is_preference_model, load_preference, preference_rewards
from prefkit.recipes.remote import RemoteReward, is_address
from prefkit.recipes.run import load

Measured: TypeAlias = Literal["reward", "implicit", "likelihood", "judge", "followups"]
"""What of a model ranks responses: its reward; the log-ratio to its reference; the log-likelihood; its verdicts; the
likelihood of follow-ups."""

Ranking: TypeAlias = LanguageScorer | RewardScorer | DomainReward | TextPreference | RemoteReward
"""What `load_ranking` gives."""


def load_language(
    model: str,
    *,
    reference: str | None = None,
    max_length: int | None = None,
    precision: str = "fp32",
    too_long: str = "skip",
    dropout: bool = False,
) -> LanguageScorer | RewardScorer:
    """A language model, or a reward model on one, in evaluation mode, where it is computed fastest.

    Args:
        model: folder or hub name.
        reference: of a policy.
        max_length: tokens of prompt and response; by default the context.
        precision: fp32, or bf16 for mixed precision.
        too_long: what happens to longer texts; see `EncodingOptions`.
        dropout: keep the dropout that the model was made with.

    Raises:
        OptionError: it cannot be loaded, or an option is out of range.
    """
    given = {"path": model, "reference": reference, "precision": precision, "dropout": dropout}
    options = ModelOptions.parse(given, "model")
    encoding = EncodingOptions.parse({"max_length": max_length, "too_long": too_long}, "encoding")
    if is_reward_model(model):
        options = options.model_copy(update={"kind": "reward"})
    return load(options, encoding).eval()


def load_ranking(
    model: str,
    *,
    reference: str | None = None,
    max_length: int | None = None,
    precision: str = "fp32",
    too_long: str = "skip",
) -> Ranking:
    """Whatever ranks responses to a prompt: see the arguments of `load_language`.

    Raises:
        OptionError: it cannot be loaded, or an option is out of range.
        PrefkitError: the folder of a preference model is damaged.
    """
    if is_address(model):
        return RemoteReward(model)
    if is_preference_model(model):
        return load_preference(model)
    if DomainReward.is_saved(Path(model)):
        return DomainReward.load(Path(model))
    return load_language(model, reference=reference, max_length=max_length, precision=precision, too_long=too_long)


def what_ranks(ranking: Ranking, *, compared: bool, given: str | None = None, followups: str | None = None) -> Measured:
    """What of a model ranks: as asked for, or as the model is.

    Args:
        ranking: the model.
        compared: whether it was loaded with a reference; an adapter brings its own.
        given: what was asked for.
        followups: the bank of follow-ups that was asked for.

    Raises:
        OptionError: that does not apply to the model.
    """
    rewards = not isinstance(ranking, LanguageScorer)
    compared = isinstance(ranking, LanguageScorer) and (compared or isinstance(ranking.policy, PeftModel))
    if followups is not None and given is None:
        given = "followups"
    if given is None:
        return "reward" if rewards else "implicit" if compared else "likelihood"
    asked: Measured | None = next((each for each in get_args(Measured) if each == given), None)
    if asked is None:
        raise OptionError(unknown("measure of a model", given, get_args(Measured)))
    if rewards != (asked == "reward"):
        kind = "a reward model" if rewards else "a language model"
        raise OptionError(f"--as {asked} does not apply to {kind}")
    if asked == "implicit" and not compared:
        raise OptionError("--as implicit needs --reference: the implicit reward is a log-ratio to it")
    if (followups is not None) != (asked == "followups"):
        raise OptionError("--followups and --as followups go together")
    return asked


def scored_by(ranking: Ranking, how: Measured, *, followups: str | None = None, batch_size: int = 8) -> Scored:
    """A function from comparisons to a score of each response.

    Args:
        ranking: the model.
        how: what of it ranks; not the judge, who gives no scores.
        followups: `default`, or a JSON file with a bank of follow-ups.
        batch_size: comparisons a forward pass.

    Raises:
        OptionError: the model has no such scores.
    """
    if how == "judge":
        raise OptionError("--as judge goes with --benchmark: a judge gives no scores")
    if isinstance(ranking, TextPreference):
        return lambda comparisons, skipped: (found[:2] for found in preference_rewards(ranking, comparisons, skipped))
    if isinstance(ranking, RemoteReward):
        return ranking
    if isinstance(ranking, DomainReward):
        return _annotated(ranking)
    if how == "followups":
        return _annotated(followup_scorer(ranking, followups or "default"))

    def scored(
        comparisons: Iterable[Comparison], skipped: list[RecordError]
    ) -> Iterator[tuple[Comparison, list[float]]]:
        rows = encode_all(ranking, comparisons, skipped)
        while batch := list(islice(rows, batch_size)):
            encoded = [item for _, item in batch]
            (scores,) = score_all(ranking, encoded, batch_size=len(batch))
            values = scores.policy_logps
            if how == "implicit":
                (ref,) = score_all(ranking, encoded, batch_size=len(batch), reference=True)
                values = values - ref.policy_logps
            found = iter(values.tolist())
            for comparison, _ in batch:
                yield comparison, list(islice(found, len(comparison.responses)))

    return scored


def load_rewards(
    model: str,
    *,
    reference: str | None = None,
    max_length: int | None = None,
    precision: str = "fp32",
    batch_size: int = 8,
) -> Scored:
    """The rewards of whatever gives rewards: see `load_ranking`.

    Raises:
        OptionError: it gives none, or cannot be loaded.
    """
    ranking = load_ranking(model, reference=reference, max_length=max_length, precision=precision)
    how = what_ranks(ranking, compared=reference is not None)
    if how == "likelihood":
        raise OptionError(
            f"{model} is a language model, whose log-likelihood is no reward: give a reward or preference model, an "
            "adapter, or the model's reference"
        )
    return scored_by(ranking, how, batch_size=batch_size)


def followup_scorer(scorer: LanguageScorer | RewardScorer, bank: str) -> FollowupScorer:
    """Rewards by the likelihood of follow-ups.

    Args:
        scorer: a language model.
        bank: `default`, or a JSON file.

    Raises:
        OptionError: it is a reward model, or the bank cannot be read.
    """
    if isinstance(scorer, RewardScorer):
        raise OptionError("--followups needs a language model: a reward model gives no likelihood")
    return FollowupScorer(scorer, None if bank == "default" else FollowupBank.read(Path(bank)))


def _annotated(rewarder: DomainReward | FollowupScorer) -> Scored:
    def scored(
        comparisons: Iterable[Comparison], skipped: list[RecordError]
    ) -> Iterator[tuple[Comparison, list[float]]]:
        for comparison in rewarder.annotate(comparisons, skipped):
            yield comparison, comparison.extra["rewards"]

    return scored
