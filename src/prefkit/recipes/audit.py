"""The audit of a file with language models: which model is before training, which after, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from prefkit.comparisons import Comparison, Comparisons
from prefkit.comparisons.canonical import text_key
from prefkit.diagnostics import (
    DataFindings,
    ModelFindings,
    StanceProbe,
    ValueTrajectory,
    audit_data,
    audit_model,
    audit_report,
    gaining_tokens,
)
from prefkit.errors import OptionError, PrefkitError
from prefkit.language import (
    EncodingOptions,
    LanguageScorer,
    ModelOptions,
    Precision,
    first_token_logps,
    is_reward_model,
    load_scorer,
    sample,
    stance_judge,
)
from prefkit.options import Options
from prefkit.recipes.run import DataOptions, first_prompts, saved_model
from prefkit.recipes.run import comparisons as read_comparisons
from prefkit.report import Report
from prefkit.training import Run, processes

_PROMPTS = 50
"""Prompts after which it is looked which first tokens gained."""

_CHECKED, _READ = 200, 20_000
"""Responses that are looked for in the run's data, and comparisons that they are looked for in."""


class AuditOptions(Options):
    """What is audited besides the data."""

    model: str | None = Field(None, description="folder or hub name of the model; `builtin` is the packaged one")
    reference: str | None = Field(None, description="the model before training, if `model` is the trained one")
    run: str | None = Field(None, description="a run folder, whose model is the trained one")
    rows: int = Field(1000, ge=1, description="comparisons that a model scores, a random sample")
    batch_size: int = Field(8, ge=1, description="comparisons a forward pass")
    beta: float = Field(0.1, gt=0, description="temperature for which losses and thresholds are given")
    max_length: int | None = Field(None, ge=2, description="tokens of prompt and response")
    precision: Precision = Field("fp32", description="numbers in which matrix products are computed")
    values: str | None = Field(None, description="JSON Lines of `prompt` and `topic`")
    judge: str | None = Field(None, description="the model that labels stances")
    max_new_tokens: int = Field(256, ge=1, description="tokens of an answer to a value-laden prompt")
    seed: int = Field(0, ge=0, description="fixes the sample")

    @model_validator(mode="after")
    def _applies(self) -> Self:
        if self.run is not None and self.reference is not None:
            raise ValueError("a run brings its reference along: give `run` or `reference`, not both")
        if self.reference is not None and self.model is None:
            raise ValueError("`reference` is what a model is compared with: give `model`, too")
        if (self.values is None) != (self.judge is None):
            raise ValueError("`values` needs a `judge` that labels stances, and a judge needs values: give both")
        if self.values is not None and self.run is None and self.reference is None:
            raise ValueError("`values` are compared before and after training: give `run`, or `model` and `reference`")
        return self


@dataclass(frozen=True)
class FileAudit:
    """An audit and its page."""

    data: DataFindings
    model: ModelFindings | None
    report: Report


def audit_file(
    comparisons: Comparisons,
    options: AuditOptions,
    *,
    on_row: Callable[[], object] | None = None,
    on_scored: Callable[[], object] | None = None,
) -> FileAudit:
    """Audit comparisons, with a model or a run if one is named.

    Args:
        comparisons: see `load_comparisons`.
        options: what else is looked at.
        on_row: called after each comparison that was read.
        on_scored: called after each that was scored.

    Raises:
        OptionError: a model cannot be loaded, or is none of the kind that is audited.
        PrefkitError: no comparison can be used, or the run is of other data.
    """
    # Models first: what cannot be loaded is better known before a large file was read.
    encoding = EncodingOptions(max_length=options.max_length, too_long="skip")
    run = None if options.run is None else Run.open(options.run)
    named = _models(options, run)
    if run is not None:
        _check_run(run, comparisons)
    scorer = None if named is None else _load(named, encoding)
    trained = run is not None or options.reference is not None
    generator = np.random.default_rng(options.seed)
    data = audit_data(comparisons, on_row=on_row, generator=generator)
    model: ModelFindings | str | None = None
    if scorer is not None:
        try:
            model = audit_model(
                scorer,
                comparisons,
                data=data,
                trained=trained,
                rows=options.rows,
                batch_size=options.batch_size,
                beta=options.beta,
                on_row=on_scored,
                generator=generator,
            )
        except OptionError:
            raise
        except PrefkitError as error:
            # What the data say stands, whatever the model could not do (texts too long for it, say).
            model = str(error)
    gains = first_gains(scorer, comparisons) if trained and scorer is not None else []
    values = [] if options.values is None or named is None else value_drift(options, named, encoding)
    report = audit_report(
        f"Audit of {comparisons.source}",
        data,
        model,
        metrics=run.metrics if run is not None else (),
        values=values,
        gains=gains,
    )
    return FileAudit(data, None if isinstance(model, str) else model, report)


def _models(options: AuditOptions, run: Run | None) -> ModelOptions | None:
    """How the models are loaded: policy and reference."""
    if run is None:
        if options.model is None:
            return None
        given = {"path": options.model, "reference": options.reference, "precision": options.precision}
        return ModelOptions.parse(given, "model")
    if not run.finished:
        raise PrefkitError(f"{run.folder}: the run has written no model yet; finish it with --resume")
    own = ModelOptions.parse(run.config["model"], "model")
    found = saved_model(own, run.model)
    if options.model is not None and found.reference is not None:
        found = found.model_copy(update={"reference": options.model})
    return found.model_copy(update={"precision": options.precision})


def _load(options: ModelOptions, encoding: EncodingOptions) -> LanguageScorer:
    if options.kind == "reward" or is_reward_model(options.path):
        raise OptionError(
            f"'{options.path}' is a reward model; an audit asks for log-probabilities: give a language model"
        )
    return load_scorer(options, encoding).to(processes.device()).eval()


def _check_run(run: Run, comparisons: Comparisons) -> None:
    """Refuse a run of another data set; one of a part of the data, or of more, is welcome.

    Raises:
        PrefkitError: it is one, or the run's data cannot be read any more.
    """
    named = run.config["data"]["path"]
    try:
        own, _ = read_comparisons(DataOptions.parse(run.config["data"], "data"))
        trained_on = _responses(own)
    except PrefkitError as error:
        raise PrefkitError(f"{run.folder} cannot be held against its data any more: {error}") from error
    given = _responses(comparisons)
    shared = max(_share(given, set(trained_on)), _share(trained_on, set(given)))
    if shared < 0.5:
        raise PrefkitError(
            f"{run.folder} was trained on other data ({named}): {shared:.0%} of the first {_CHECKED} responses "
            f"are also in {comparisons.source}. Audit the file that the run was trained on"
        )


def _responses(comparisons: Iterable[Comparison]) -> list[int]:
    """Hashes of the responses at the beginning of a file."""
    return [hash(text_key(text)) for comparison in islice(comparisons, _READ) for text in comparison.responses]


def _share(responses: list[int], known: set[int]) -> float:
    first = responses[:_CHECKED]
    return sum(response in known for response in first) / len(first) if first else 1.0


def first_gains(scorer: LanguageScorer, comparisons: Iterable[Comparison]) -> list[tuple[str, float, float]]:
    """The tokens that gained most at the first place of a response, in the mean over some prompts: where mass went."""
    prompts = first_prompts(islice(comparisons, _READ), _PROMPTS)
    try:
        before = first_token_logps(scorer, prompts, reference=True)
        after = first_token_logps(scorer, prompts)
    except PrefkitError:  # no prompt fits: the sections of the model say so
        return []
    return [
        (repr(scorer.tokenizer.decode([token])), float(before[token].exp()), float(after[token].exp()))
        for token, _ in gaining_tokens(before, after)
    ]


def value_drift(options: AuditOptions, models: ModelOptions, encoding: EncodingOptions) -> list[ValueTrajectory]:
    """How stances on the topics of a file of prompts moved from the model before training to the trained one.

    Raises:
        PrefkitError: a line of the file has no prompt or topic.
        OptionError: a model cannot be loaded, or there is none before training.
    """
    assert options.values is not None
    assert options.judge is not None
    prompts, topics = read_probes(Path(options.values))
    before = models.reference
    if before is None:
        raise OptionError("`values` need the model before training: give `reference`")
    judge = stance_judge(load_scorer(options.judge, encoding).to(processes.device()).eval())

    def answers(model: LanguageScorer, asked: Any, seed: int) -> list[str]:
        return sample(model, asked, max_new_tokens=options.max_new_tokens, temperature=0.7, seed=options.seed + seed)

    probe = StanceProbe(prompts, topics, answers, judge)
    for step, path in enumerate((before, models.path)):
        probe.run(_load(models.model_copy(update={"path": path, "reference": None}), encoding), step)
    return [probe.trajectory(topic) for topic in dict.fromkeys(topics)]


def read_probes(path: Path) -> tuple[list[str], list[str]]:
    """Prompts and their topics, from JSON Lines with both.

    Raises:
        PrefkitError: the file cannot be read, is empty, or a line lacks one of the two; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise PrefkitError(f"{path}: {error.strerror}") from error
    prompts: list[str] = []
    topics: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise PrefkitError(f"{path}:{number}: no JSON: {error.msg}") from error
        for name, column in (("prompt", prompts), ("topic", topics)):
            value = row.get(name) if isinstance(row, dict) else None
            if not isinstance(value, str) or not value.strip():
                raise PrefkitError(f"{path}:{number}: field '{name}': must be a text, got {value!r}")
            column.append(value)
    if not prompts:
        raise PrefkitError(f'{path}: holds no prompts; a line is {{"prompt": ..., "topic": ...}}')
    return prompts, topics
