"""A training run on language: from a configuration to an aligned model, its evaluation, a report and a model card."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from pydantic import Field, field_validator, model_validator

from prefkit.assets import comparisons_path
from prefkit.comparisons import (
    Comparison,
    ContextOptions,
    Pair,
    Ranking,
    RecordError,
    WithContexts,
    WithSteps,
    load_comparisons,
    pairs,
    split_comparisons,
)
from prefkit.diagnostics import (
    Calibration,
    Evaluation,
    before_after,
    calibration_change,
    evaluate,
    pair_calibration,
    run_report,
)
from prefkit.errors import OptionError, PrefkitError
from prefkit.language import (
    BESIDE_REFERENCE,
    BUILTIN,
    EncodingOptions,
    LanguageScorer,
    ModelOptions,
    RewardScorer,
    is_reward_model,
    load_reward,
    load_scorer,
    sample,
    set_temperature,
)
from prefkit.objectives import SCORED, Objective, encode_all, make_objective
from prefkit.options import Options
from prefkit.preference import cross_fitted_temperature
from prefkit.report import Plot, Table, model_card, token_strips
from prefkit.training import (
    CurriculumOptions,
    FitResult,
    MetaLearning,
    MetaOptions,
    PairingOptions,
    Run,
    TrainingOptions,
    fit,
    fit_curriculum,
    make_stages,
    processes,
)

logger = logging.getLogger("prefkit")
Wanted = TypeVar("Wanted", bound=Options)


class DataOptions(Options):
    """Which comparisons, and how they are read; see `prefkit.comparisons.load_comparisons`."""

    path: str | list[str] = Field(description="file, glob, several of them, data set folder or hub name; or `builtin`")
    format: str | None = Field(None, description="name of the format; detected by default")
    columns: dict[str, str] = Field({}, description="names of the columns, for files in no known format")
    options: dict[str, Any] = Field({}, description="options of the format")
    split: str | None = Field(None, description="split of a data set")
    limit: int | None = Field(None, ge=1, description="read at most so many comparisons")
    evaluation: str | list[str] | None = Field(None, description="held-out comparisons, read in the same way")
    contexts: ContextOptions | None = Field(None, description="tell the model the context of each comparison")
    steps: str | None = Field(None, description="regular expression that each step of a response begins with")
    held_out: float = Field(0.0, ge=0, lt=1, description="share of the prompts to hold out, without `evaluation`")


class ReportOptions(Options):
    """What the report shows besides the curves."""

    samples: int = Field(3, ge=0, description="continuations of held-out prompts, before and after")
    max_new_tokens: int = Field(48, ge=1, description="tokens of a continuation at most")
    temperature: float = Field(0.7, ge=0, description="of the continuations; 0 is greedy")


class MetaConfig(MetaOptions):
    """Meta-learning of a reward model on unlabelled responses of a policy; see `prefkit.training.MetaLearning`."""

    data: DataOptions = Field(
        description="responses of the policy, two or more a prompt; their judgements are not read"
    )


class RunConfig(Options):
    """Everything that decides a run. `run.yaml` holds it; every option but `data` and `output` has a default."""

    model: ModelOptions = Field(default_factory=ModelOptions, description="the policy and its reference")
    data: DataOptions = Field(description="the comparisons")
    encoding: EncodingOptions = Field(default_factory=EncodingOptions, description="how texts become tokens")
    pairing: PairingOptions = Field(default_factory=PairingOptions, description="how comparisons become pairs")
    objective: dict[str, Any] = Field({"kind": "dpo"}, description="what is minimised: `kind` and its options")
    curriculum: CurriculumOptions | None = Field(None, description="train in stages, from easy pairs to hard ones")
    meta: MetaConfig | None = Field(
        None, description="reward models: learn to tell apart the responses of a policy (MetaRM)"
    )
    training: TrainingOptions = Field(default_factory=TrainingOptions, description="how the model is trained")
    calibrate: bool = Field(
        False, description="reward models: divide rewards by the temperature that held-out comparisons ask for"
    )
    report: ReportOptions = Field(default_factory=ReportOptions, description="what the report shows")
    output: str = Field(description="the run folder")

    @model_validator(mode="before")
    @classmethod
    def _suited(cls, values: Any) -> Any:
        """The objective of a reward model is another one by default."""
        if isinstance(values, dict):
            model, objective = values.get("model"), values.get("objective", {})
            reward = isinstance(model, dict) and model.get("kind") == "reward"
            if isinstance(objective, dict):
                values = {**values, "objective": {"kind": "reward_model" if reward else "dpo", **objective}}
        return values

    @field_validator("objective", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class CalibrationResult:
    """What a temperature did to a reward model, on held-out comparisons.

    Args:
        temperature: the divisor of rewards, fitted to all of them.
        before: without it.
        after: each half of the prompts under the temperature that the other half asks for.
    """

    temperature: float
    before: Calibration
    after: Calibration

    def table(self) -> Table:
        """The figures, before and after."""
        return calibration_change(self.before, self.after, f"Calibration, temperature {self.temperature:.3g}")


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Args:
        fit: the training itself.
        before: the policy on held-out comparisons, before training; None without held-out comparisons.
        after: the same after training.
        samples: continuations of held-out prompts, each with `prompt`, `before` and `after`.
        report: path of the report.
        calibration: what the temperature did; None without one.
    """

    fit: FitResult
    before: Evaluation | None
    after: Evaluation | None
    samples: list[dict[str, str]]
    report: Path
    calibration: CalibrationResult | None = None

    def tables(self) -> list[Table]:
        """What a person wants to see at the end of a run."""
        shown = []
        if self.before is not None and self.after is not None:
            shown.append(before_after(self.before, self.after))
        if self.calibration is not None:
            shown.append(self.calibration.table())
        if self.samples:
            columns = ["prompt", "before", "after"]
            rows = [[_short(each[name]) for name in columns] for each in self.samples]
            shown.append(Table(columns, rows, "Sampled continuations"))
        return shown


def read_config(path: Path | None, settings: Sequence[str] = (), given: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of a run; see `read_options`."""
    return read_options(RunConfig, path, settings, given)


def read_options(
    kind: type[Wanted], path: Path | None, settings: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> Wanted:
    """Options from a file and from single settings, the later ones first.

    Args:
        kind: which options.
        path: a YAML file, or None.
        settings: `name.of.option=value`, the value in YAML.
        given: dotted names and values of options that were given otherwise; None values are left out.

    Raises:
        OptionError: an option is unknown, out of range or missing.
    """
    return kind.parse(read_values(path, settings, given))


def read_values(
    path: Path | None, settings: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The values of options as they were given; see `read_options`.

    Raises:
        OptionError: the file cannot be read, or a setting is none.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            read = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise OptionError(f"{path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise OptionError(f"{path} is no YAML: {error}") from error
        if not isinstance(read, dict):
            raise OptionError(f"{path} must hold a mapping of options, such as `data: {{path: pairs.jsonl}}`")
        values = read
    for name, value in (given or {}).items():
        if value is not None:
            _put(values, name, value)
    for setting in settings:
        name, found, value = setting.partition("=")
        if not found:
            raise OptionError(f"--set takes name=value, got '{setting}'")
        _put(values, name.strip(), _scalar(value))
    return values


def load(options: ModelOptions, encoding: EncodingOptions, seed: int = 0) -> LanguageScorer | RewardScorer:
    """The scorer of the kind that the options name, where it is computed fastest.

    Args:
        options: which model.
        encoding: how texts become tokens.
        seed: fixes the weights of a new adapter.

    Raises:
        OptionError: it cannot be loaded.
    """
    if options.kind == "lm" and is_reward_model(options.path):
        raise OptionError(f"'{options.path}' is a reward model: set model.kind=reward")
    # Adapters draw from the global generator.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = load_reward(options, encoding) if options.kind == "reward" else load_scorer(options, encoding)
    return made.to(processes.device())


def with_reference(options: ModelOptions, objective: Objective[Any]) -> ModelOptions:
    """The options, with the model as it starts for reference if the objective reads one in every step."""
    own = options.reference is not None or options.lora is not None  # an adapter's reference is the model below it
    beside = options.kind == "lm" and not own and objective.needs & BESIDE_REFERENCE
    return options.model_copy(update={"reference": options.path}) if beside else options


def saved_model(options: ModelOptions, folder: Path) -> ModelOptions:
    """How to load what a run of these options has saved, with the reference that it was compared with."""
    # A saved adapter brings its reference along: the model below it.
    reference = options.reference or (None if options.lora or options.kind == "reward" else options.path)
    made = {"head": None, "pooling": None, "ensemble": None, "trained": "all"}  # what the folder says itself
    return options.model_copy(update={"path": str(folder), "lora": None, "reference": reference, **made})


def check_kind(options: ModelOptions, objective: Objective[Any]) -> None:
    """Refuse an objective on log-probabilities for a reward model.

    Raises:
        OptionError: it is one.
    """
    if options.kind == "reward" and "rewards" not in objective.needs:
        raise OptionError(
            f"objective '{objective.name}' is on log-probabilities, which a reward model (model.kind: reward) does not "
            "give: use `reward_model`, or another objective with `reward: score`"
        )


def _calibrate(evaluation: Evaluation, folder: Path) -> CalibrationResult:
    """Find the temperature that held-out comparisons ask for, and write it to the model's folder."""
    odds, probabilities = evaluation.log_odds, evaluation.probabilities
    outcomes = np.ones(len(odds)) if probabilities is None else probabilities
    try:
        found = cross_fitted_temperature(odds, outcomes, groups=evaluation.prompts)
    except PrefkitError as error:
        raise PrefkitError(
            f"calibrate: no temperature can be found, the model is as it was trained: {error}"
        ) from error
    after = pair_calibration(
        found.log_odds, probabilities, clusters=evaluation.prompts, title="Reliability, after the temperature"
    )
    set_temperature(folder, found.value)
    return CalibrationResult(found.value, evaluation.calibration(), after)


def run(config: RunConfig, *, resume: bool = False) -> RunResult | None:
    """Train, evaluate and report.

    Args:
        config: what to do.
        resume: go on with the run in the output folder.

    Returns:
        The result, in the first process; None in the others of a distributed run.
    """
    training, held_out = comparisons(config.data)
    objective = make_objective(config.objective)
    check_kind(config.model, objective)
    if config.calibrate and (config.model.kind != "reward" or held_out is None):
        raise OptionError(
            "calibrate is for reward models (model.kind: reward), on comparisons that are held out (data.held_out or "
            "data.evaluation)"
        )
    scorer = load(with_reference(config.model, objective), config.encoding, config.training.seed)
    joint = objective.needs & {"joint"}  # what is evaluated is what is trained
    scorer.provide(joint)
    shown = 0 if config.model.kind == "reward" else config.report.samples
    prompts = first_prompts(held_out or training, shown)
    first = processes.rank() == 0
    ranked = held_out
    if held_out is not None and all(len(comparison.responses) < 2 for comparison in held_out):
        logger.warning("no held-out comparison has two responses to rank: set training.eval_every for their loss")
        ranked = None
    before = _evaluate(scorer, ranked, config) if first and ranked is not None else None
    texts = _sample(scorer, prompts, config.report) if first else []
    how: dict[str, Any] = {
        "output": config.output,
        "options": config.training,
        "evaluation": held_out,
        "pairing": config.pairing,
        "resume": resume,
        "config": config.model_dump(mode="json"),
    }
    if config.meta is not None:
        if config.curriculum is not None:
            raise OptionError("meta and curriculum exclude each other: give one")
        unlabelled, _ = comparisons(config.meta.data)
        how["meta"] = MetaLearning(unlabelled, config.meta, seed=config.training.seed)
    if config.curriculum is None:
        result = fit(scorer, training, objective, **how)
    else:
        made = make_stages(scorer, training, config.curriculum, batch_size=config.training.batch_size)
        reference = config.curriculum.reference
        result = fit_curriculum(scorer, made.stages, objective, reference=reference, skipped=made.skipped, **how).fit
    if processes.rank() != 0:
        return None
    # What is measured is what was saved.
    del scorer
    trained = load(saved_model(config.model, result.run.model), config.encoding)
    trained.provide(joint)
    compared = config.model.kind == "lm"
    after = _evaluate(trained, ranked, config, reference=compared) if ranked is not None else None
    written = _sample(trained, prompts, config.report)
    samples = [
        {"prompt": _shown(prompt), "before": old, "after": new}
        for prompt, old, new in zip(prompts, texts, written, strict=True)
    ]
    calibrated = _calibrate(after, result.run.model) if config.calibrate and after is not None else None
    pictures = _token_pictures(trained, objective, held_out or training, shown)
    report = _write_report(config, result, before, after, samples, pictures, calibrated)
    return RunResult(result, before, after, samples, report, calibrated)


def comparisons(options: DataOptions) -> tuple[Iterable[Comparison], Iterable[Comparison] | None]:
    """Training and held-out comparisons; both can be iterated over again and again.

    Raises:
        OptionError: `evaluation` and `held_out` are both given, something cannot be read, or a part would be empty.
        PrefkitError: no comparison can be read.
    """

    def load(path: str | list[str]) -> Iterable[Comparison]:
        loaded = load_comparisons(
            path,
            format=options.format,
            columns=options.columns or None,
            options=options.options or None,
            split=options.split,
            limit=options.limit,
        )
        told = loaded if options.contexts is None else WithContexts(loaded, options.contexts)
        return told if options.steps is None else WithSteps(told, options.steps)

    if options.evaluation is not None and options.held_out:
        raise OptionError("data.evaluation and data.held_out exclude each other: give one")
    if options.path == BUILTIN:
        return load_comparisons(comparisons_path("train")), load_comparisons(comparisons_path("test"))
    training = load(options.path)
    if options.evaluation is not None:
        return training, load(options.evaluation)
    if options.held_out:
        parts = split_comparisons(training, {"train": 1 - options.held_out, "held_out": options.held_out})
        empty = [name for name, part in parts.items() if next(iter(part), None) is None]
        if len(empty) == 2:
            aside = list(getattr(training, "skipped", ()))
            first = (RecordError(bad.problem, field=bad.field, source=bad.source, line=bad.line) for bad in aside[:1])
            why = (
                "".join(f"{len(aside)} rows were set aside, the first because: {bad}" for bad in first) or "it is empty"
            )
            raise PrefkitError(f"no comparison can be read from {options.path}: {why}")
        if empty:
            raise OptionError(
                f"data.held_out = {options.held_out} leaves the {empty[0].replace('_', '-')} part empty: prompts are "
                "dealt whole, and there are few of them; choose another share, or give data.evaluation"
            )
        return parts["train"], parts["held_out"]
    return training, None


def _evaluate(
    scorer: LanguageScorer | RewardScorer, held_out: Iterable[Comparison], config: RunConfig, reference: bool = False
) -> Evaluation:
    return evaluate(
        scorer,
        held_out,
        reference=reference,
        batch_size=config.training.batch_size,
        strategy=config.pairing.strategy,
        min_margin=config.pairing.min_margin,
        per_token=config.model.kind == "lm",
    )


def first_prompts(records: Iterable[Comparison], count: int) -> list[Any]:
    """The first few different prompts."""
    return list(islice(dict.fromkeys(_hashable(comparison.prompt_of(0)) for comparison in records), count))


def _hashable(prompt: Any) -> Any:
    return prompt if isinstance(prompt, str) else _Messages(prompt)


class _Messages(tuple[Any, ...]):
    """Messages, compared by their text."""

    def __hash__(self) -> int:
        return hash(str(self))


def _sample(scorer: LanguageScorer | RewardScorer, prompts: Sequence[Any], options: ReportOptions) -> list[str]:
    if isinstance(scorer, RewardScorer):
        return []
    return sample(scorer, prompts, max_new_tokens=options.max_new_tokens, temperature=options.temperature)


_SHOWN_TOKENS = 200
"""Of a text whose tokens the report shows."""


def _two_sides(comparison: Comparison, pair: Pair) -> Comparison:
    """A pair of a comparison's responses alone, the better one first."""
    sides = (pair.chosen, pair.rejected)
    prompts = tuple(comparison.prompt_of(side) for side in (sides if comparison.joint else sides[:1]))
    return Comparison(prompts, tuple(comparison.responses[side] for side in sides), Ranking((0, 1)))


@torch.no_grad()
def _token_pictures(
    scorer: LanguageScorer | RewardScorer, objective: Objective[Any], records: Iterable[Comparison], count: int
) -> list[Plot]:
    """What the objective makes of each token of the better and the worse response of some comparisons."""
    if not count or "tokens" not in objective.needs or not isinstance(scorer, LanguageScorer):
        return []
    scorer.provide(objective.needs & SCORED)
    objective.to(scorer.device).eval()
    strips: dict[str, dict[str, list[tuple[str, float]]]] = {}
    two = (_two_sides(comparison, pair) for comparison in records for pair in pairs(comparison)[:1])
    for number, (_, encoded) in enumerate(islice(encode_all(scorer, two, skipped=[]), count), 1):
        scores = scorer({name: part.to(scorer.device) for name, part in scorer.collate([encoded]).items()})
        assert scores.tokens is not None
        for name, values in objective.token_figures(scores.tokens, len(scores.lengths)).items():
            for side, ids in enumerate(encoded["response_ids"]):
                own = values[scores.tokens.response == side].tolist()
                texts = (scorer.tokenizer.decode([token]) for token in ids[:_SHOWN_TOKENS])
                strips.setdefault(name, {})[f"{number} {('chosen', 'rejected')[side]}"] = list(
                    zip(texts, own, strict=True)
                )
    return [token_strips(texts, title=name) for name, texts in strips.items()]


def _shown(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)


def _short(text: str, length: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else "... " + text[-length:]


def _write_report(
    config: RunConfig,
    result: FitResult,
    before: Evaluation | None,
    after: Evaluation | None,
    samples: list[dict[str, str]],
    pictures: Sequence[Plot],
    calibrated: CalibrationResult | None,
) -> Path:
    folder: Run = result.run
    report = run_report(
        f"{config.objective['kind']} on {_name(config.data.path)}",
        metrics=folder.metrics,
        before=before,
        after=after,
        samples=samples,
        settings=folder.config,
        skipped=folder.skipped,
        environment=folder.environment,
        learned=folder.learned,
        row_figures=folder.rows,
        pictures=pictures,
    )
    card = model_card(
        folder.folder.name,
        base_model=config.model.path,
        objective=config.objective["kind"],
        data={"source": _name(config.data.path), "comparisons": result.rows, "set aside": result.skipped},
        settings=folder.config,
        figures=[] if before is None or after is None else [before_after(before, after)],
    )
    if calibrated is not None:
        text = (
            f"Rewards are divided by {calibrated.temperature:.3g}, the temperature under which held-out choices are "
            "most likely. What is shown is each half of the prompts under the temperature that the other half asks for."
        )
        plots = (calibrated.before.plot, calibrated.after.plot)
        report.section("Calibration", text, calibrated.table(), *plots)
    (folder.model / "README.md").write_text(card, encoding="utf-8")
    return report.write(folder.folder / "report.html")


def _name(path: str | list[str]) -> str:
    return path if isinstance(path, str) else ", ".join(path)


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set an option by its dotted name."""
    *groups, last = name.split(".")
    for group in groups:
        inner = values.setdefault(group, {})
        if isinstance(inner, str) and group == "objective":
            inner = values[group] = {"kind": inner}
        if not isinstance(inner, dict):
            raise OptionError(f"'{name}' cannot be set: {group} is no group of options")
        values = inner
    values[last] = value


def _scalar(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise OptionError(f"'{text}' is no YAML value: {error}") from error
    # YAML takes 1e-5, which has no point, for text.
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
