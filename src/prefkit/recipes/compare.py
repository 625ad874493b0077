"""Objectives side by side: one model, one data set, one held-out set, several seeds, and what comes of each objective.

All runs share one cache of encodings and reference scores. Training labels can be flipped at known rates, to see what
wrong labels do to each objective; the held-out labels never are. Finished runs are found again and not repeated.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from prefkit.comparisons import Comparison, to_dict
from prefkit.diagnostics import LABELS, Evaluation, Interval, evaluate, mean_interval, pair_figures
from prefkit.errors import OptionError, PrefkitError
from prefkit.language import (
    BUILTIN,
    EncodingOptions,
    LanguageScorer,
    ModelOptions,
    RewardScorer,
    sampled_kl,
)
from prefkit.objectives import PRESETS, SCORED, Objective, PairObjective, flip_preferences, make_objective
from prefkit.objectives.noise import check_flip_rate
from prefkit.options import Options
from prefkit.recipes.run import DataOptions, check_kind, comparisons, first_prompts, load, saved_model, with_reference
from prefkit.report import Curve, Plot, Report, Table, bars, curves
from prefkit.report.cells import plain
from prefkit.training import PairingOptions, Run, TrainingOptions, fit, processes
from prefkit.training.progress import bar
from prefkit.training.storage import write_text

ALL_PAIRWISE = "all-pairwise"
"""Stands for every pairwise method that can be trained on comparisons alone."""

INJECTED = "injected"
"""As the value of an objective's option: the rate at which labels were flipped, as an oracle would know it."""

HELD_OUT = 0.2
"""Share of the prompts that is held out if nothing is said about it."""

FIGURES: Mapping[str, str] = {
    **LABELS,
    "kl": "KL to the reference (nats)",
    "seconds": "training (s)",
}
"""What is reported of each run, as tables and plots call it."""

_ACCURACIES = ("ranking_accuracy", "ranking_accuracy_per_token", "reward_accuracy")
_MOVEMENT = ("chosen_logp_change", "rejected_logp_change", "reward_margin", "kl", "seconds")
_OUTCOME, _DATA = "outcome.json", "data.json"
_LEARNED_SHOWN = 20


class CompareOptions(Options):
    """Everything that decides a comparison of objectives; a YAML file holds it."""

    model: ModelOptions = Field(default_factory=ModelOptions, description="the policy and its reference, for all runs")
    data: DataOptions = Field(description=f"the comparisons; without a word, {HELD_OUT} of the prompts are held out")
    encoding: EncodingOptions = Field(default_factory=EncodingOptions, description="how texts become tokens")
    pairing: PairingOptions = Field(default_factory=PairingOptions, description="how comparisons become pairs")
    objectives: dict[str, dict[str, Any]] = Field(
        description="names, or each name with `kind` (default: the name), options, and `training` of its own"
    )
    training: TrainingOptions = Field(default_factory=TrainingOptions, description="how all models are trained")
    seeds: int = Field(3, ge=1, description="runs of each objective; seeds count from training.seed")
    flip: tuple[float, ...] = Field((0.0,), description="shares of the training labels that are flipped, in [0, 0.5)")
    kl_samples: int = Field(16, ge=0, description="continuations from which the KL divergence is estimated; 0: none")
    kl_tokens: int = Field(32, ge=1, description="tokens of such a continuation at most")
    keep_models: bool = Field(True, description="keep the trained model of each run")
    cache: str | None = Field(None, description="where encodings and reference scores are kept; PREFKIT_CACHE if not")
    output: str = Field(description="the folder of the comparison")

    @field_validator("objectives", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """Names and options, from a list of names (also as text), of mappings with `kind`, or of both."""
        if isinstance(value, str):
            value = [name.strip() for name in value.split(",") if name.strip()]
        if isinstance(value, Mapping):
            items = list(value.items())
        elif isinstance(value, Sequence):
            items = [_named(item) for item in value]
        else:
            return value
        named: dict[Any, Any] = {}
        for name, given in items:
            if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"a name may have letters, digits, '_', '-' and '.', got {name!r}")
            if name == ALL_PAIRWISE:
                named = {kind: {} for kind in pairwise_objectives()} | named
            elif name in named and isinstance(value, list):
                raise ValueError(f"'{name}' stands there twice: give each a `name` of its own")
            else:
                named[name] = given or {}
        if not named:
            raise ValueError("name at least one, such as dpo")
        return named

    @field_validator("flip", mode="before")
    @classmethod
    def _rates(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) else value

    @field_validator("flip")
    @classmethod
    def _rates_in_range(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if not rates:
            raise ValueError("name at least one rate; 0 leaves the labels as they are")
        for rate in rates:
            check_flip_rate(rate)
        if len(set(rates)) < len(rates):
            raise ValueError(f"a rate stands there twice: {list(rates)}")
        return rates

    @model_validator(mode="before")
    @classmethod
    def _holding_out(cls, values: Any) -> Any:
        """Something is held out, unless it is said what."""
        data = values.get("data") if isinstance(values, Mapping) else None
        if isinstance(data, Mapping) and data.get("path") != BUILTIN and data.get("evaluation") is None:
            return {**values, "data": {"held_out": HELD_OUT, **data}}
        return values

    @model_validator(mode="after")
    def _holds_out(self) -> CompareOptions:
        if self.data.path != BUILTIN and self.data.evaluation is None and not self.data.held_out:
            raise ValueError("objectives are compared on held-out comparisons: give data.held_out or data.evaluation")
        return self


def _named(item: Any) -> tuple[Any, Any]:
    """Name and options of one objective in a list."""
    if not isinstance(item, Mapping):
        return item, {}
    given = dict(item)
    return given.pop("name", given.get("kind")), given


def pairwise_objectives() -> list[str]:
    """The pairwise methods that a language model can be trained with on comparisons alone.

    Left out are those that ask the data for more (annotators, rewards, further texts), or have options without default.
    """
    found = []
    for kind, preset in PRESETS.items():
        if preset.form != "pairs":
            continue
        try:
            objective = make_objective(kind)
        except OptionError:
            continue
        enough = objective.needs <= LanguageScorer.provided | {"reference"}
        if enough and isinstance(objective, PairObjective) and not objective.accompanied:
            found.append(kind)
    return found


@dataclass(frozen=True)
class Cell:
    """One objective at one rate of flipped labels.

    Args:
        objective: its name in the comparison.
        flip: share of the training labels that were flipped.
    """

    objective: str
    flip: float


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Args:
        cell: which objective, and how many labels were flipped.
        seed: of the order of the data, of the flips, and of new weights.
        folder: the run folder.
        figures: what was measured on held-out comparisons, by the names of `FIGURES`.
        learned: what the objective learned beside the model (the summary in `objective.json`), under dotted names.
        failed: why there are no figures; None if there are.
    """

    cell: Cell
    seed: int
    folder: Path
    figures: Mapping[str, float]
    learned: Mapping[str, float]
    failed: str | None = None


@dataclass(frozen=True)
class ObjectiveComparison:
    """What a comparison of objectives came to.

    Args:
        options: what was asked for.
        outcomes: one a run.
        before: the reference on the held-out comparisons; None for reward models.
    """

    options: CompareOptions
    outcomes: tuple[Outcome, ...]
    before: Evaluation | None

    def cells(self) -> list[Cell]:
        """Objectives and flip rates, in the order in which they were asked for."""
        return list(dict.fromkeys(outcome.cell for outcome in self.outcomes))

    def intervals(self, cell: Cell) -> dict[str, Interval]:
        """Mean of each figure with a 95% interval over seeds."""
        runs = self._runs(cell)
        names = [name for name in FIGURES if any(name in run.figures for run in runs)]
        return {name: mean_interval([run.figures[name] for run in runs if name in run.figures]) for name in names}

    def tables(self) -> list[Table]:
        """Accuracies, movement of the policy, differences, what was learned, and failures, as far as there are any."""
        shown = [
            self._table("Held-out accuracy", _ACCURACIES),
            self._table("How far the policy moved, on held-out comparisons", _MOVEMENT),
        ]
        return [*shown, *filter(None, (self._differences(), self._learned(), self._failures()))]

    def summary(self) -> Table:
        """All figures, one row an objective and flip rate."""
        return self._table("Objectives", tuple(FIGURES))

    def runs(self) -> Table:
        """All figures, one row a run."""
        names = [name for name in FIGURES if any(name in outcome.figures for outcome in self.outcomes)]
        rows = [
            [o.cell.objective, o.cell.flip, o.seed, *(o.figures.get(name) for name in names), o.failed]
            for o in self.outcomes
        ]
        return Table(["objective", "flip rate", "seed", *(FIGURES[name] for name in names), "failed"], rows, "Runs")

    def plots(self) -> dict[str, Plot]:
        """Held-out accuracy by objective, or over the share of flipped labels if there are several."""
        found = {}
        for name in _ACCURACIES:
            values = {cell: interval for cell in self.cells() if (interval := self.intervals(cell).get(name))}
            if not values:
                continue
            title = f"Held-out {LABELS[name]}"
            if len(self.options.flip) > 1:
                lines = {o: _curve(o, values) for o in dict.fromkeys(cell.objective for cell in values)}
                found[name] = curves(lines, title=title, x="share of training labels flipped", y=LABELS[name])
            else:
                start = None if self.before is None else self.before.summary[name].mean
                named = {cell.objective: interval for cell, interval in values.items()}
                found[name] = bars(named, title=title, x=f"{LABELS[name]}; dashed: the reference", baseline=start)
        return found

    def report(self) -> Report:
        """The page with all of it."""
        kinds = list(self.options.objectives)
        report = Report(f"{len(kinds)} objectives on {self.options.data.path}", self._words())
        report.section("Held-out comparisons", _ABOUT, *self.tables()[:2], *self.plots().values())
        if differences := self._differences():
            report.section("Differences", _DIFFERENCES, differences)
        if learned := self._learned():
            report.section("What the objectives learned", _LEARNED, learned)
        if failures := self._failures():
            report.section("Failed runs", "They count in no figure. The same command tries them again.", failures)
        report.section("Runs", "Every figure of every run.", self.runs())
        settings = _flat(self.options.model_dump(mode="json"))
        report.section("Settings", "Every option, as it was resolved.", Table.from_mapping(settings, "Settings"))
        return report

    def to_dict(self) -> dict[str, Any]:
        """Options, figures with intervals, and runs, as values that JSON holds."""
        results = [
            {"objective": cell.objective, "flip": cell.flip, "figures": self.intervals(cell)} for cell in self.cells()
        ]
        runs = [
            {
                "objective": outcome.cell.objective,
                "flip": outcome.cell.flip,
                "seed": outcome.seed,
                "folder": outcome.folder.name,
                "figures": outcome.figures,
                "learned": outcome.learned,
                "failed": outcome.failed,
            }
            for outcome in self.outcomes
        ]
        reference = None if self.before is None else self.before.to_dict()
        options = self.options.model_dump(mode="json")
        found: dict[str, Any] = plain({"options": options, "reference": reference, "results": results, "runs": runs})
        return found

    def write(self) -> Path:
        """Write results.json, results.csv, runs.csv, a plot a figure, and report.html to the output folder.

        Returns:
            The path of the report.
        """
        folder = Path(self.options.output)
        write_text(folder / "results.json", json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        write_text(folder / "results.csv", self.summary().csv())
        write_text(folder / "runs.csv", self.runs().csv())
        for name, plot in self.plots().items():
            plot.figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        return self.report().write(folder / "report.html")

    def _runs(self, cell: Cell) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.cell == cell and outcome.failed is None]

    def _table(self, title: str, wanted: Sequence[str]) -> Table:
        cells = {cell: self.intervals(cell) for cell in self.cells()}
        names = [name for name in wanted if any(name in figures for figures in cells.values())]
        rows = [[*self._key(cell), *(figures.get(name) for name in names)] for cell, figures in cells.items()]
        return Table([*self._keys(), *(FIGURES[name] for name in names)], rows, title)

    def _differences(self) -> Table | None:
        """Accuracies against the first objective, run by run with the same seed and the same flips."""
        first = next(iter(self.options.objectives))
        rows = []
        for cell in self.cells():
            own = {run.seed: run.figures for run in self._runs(cell)}
            base = {run.seed: run.figures for run in self._runs(Cell(first, cell.flip))}
            if cell.objective == first or not own.keys() & base.keys():
                continue
            changes = []
            for name in _ACCURACIES:
                both = [seed for seed in own if seed in base and name in own[seed] and name in base[seed]]
                gains = [own[seed][name] - base[seed][name] for seed in both]
                changes.append(mean_interval(gains) if gains else None)
            rows.append([*self._key(cell), *changes])
        names = [LABELS[name] for name in _ACCURACIES]
        return Table([*self._keys(), *names], rows, f"Difference from {first}, seed by seed") if rows else None

    def _learned(self) -> Table | None:
        rows: list[list[Any]] = []
        for cell in self.cells():
            runs = self._runs(cell)
            names = list(dict.fromkeys(name for run in runs for name in run.learned))
            for name in names[:_LEARNED_SHOWN]:
                values = [run.learned[name] for run in runs if name in run.learned]
                rows.append([cell.objective, cell.flip, 1 - cell.flip, name, mean_interval(values)])
        columns = ["objective", "flip rate", "share of labels left", "learned", "value"]
        return Table(columns, rows, "What the objectives learned") if rows else None

    def _failures(self) -> Table | None:
        rows = [[o.cell.objective, o.cell.flip, o.seed, o.failed] for o in self.outcomes if o.failed is not None]
        return Table(["objective", "flip rate", "seed", "reason"], rows, "Failed runs") if rows else None

    def _keys(self) -> list[str]:
        return ["objective", "flip rate"] if len(self.options.flip) > 1 else ["objective"]

    def _key(self, cell: Cell) -> list[Any]:
        return [cell.objective, cell.flip] if len(self.options.flip) > 1 else [cell.objective]

    def _words(self) -> str:
        runs = f"{len(self.outcomes)} runs of {self.options.seeds} seeds each."
        if self.before is None:
            return runs
        return f"{runs} The reference's held-out ranking accuracy is {self.before.summary['ranking_accuracy']}."


_ABOUT = (
    "Means over seeds with 95% intervals (Student's t): how much the order of the data, the flips and new weights "
    "matter, not how much other held-out comparisons would. Ranking accuracy asks which response the policy finds more "
    "likely, reward accuracy which one it made more likely relative to the reference. The margin is log policy - log "
    "reference of the chosen response minus that of the rejected one. The KL divergence is estimated from what the "
    "trained policy writes itself. Objectives differ in which learning rate or beta suits them: an order that was "
    "found with one setting for all need not be theirs at their best."
)
_DIFFERENCES = "Runs of one seed have the same order of the data and the same flipped labels, so the seeds are paired."
_LEARNED = (
    "The summary of each objective's own state, beside the rate at which training labels were flipped and the share "
    "that was left as it was, which an estimate of reliability can be held against: it counts flips on top of what was "
    "wrong before."
)


def compare(options: CompareOptions) -> ObjectiveComparison:
    """Train every objective with every seed, measure each model on the held-out comparisons, and write the results.

    Runs that were finished before are found in the output folder and not repeated; one that was interrupted goes on. A
    run that fails (a loss that is not finite, say) is reported, and the others go on.

    Args:
        options: what to compare.

    Raises:
        OptionError: an option is wrong, does not apply to an objective, or differs from that of the runs in the folder.
        PrefkitError: no run came to its end; the message gives the first reason.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError("prefkit compare is one process; start single runs (prefkit train) with torchrun instead")
    training, held_out = comparisons(options.data)
    assert held_out is not None
    plans = list(_plans(options))
    folder = Path(options.output)
    _check_data(folder, training, held_out)
    lab = _Lab(options, held_out)
    outcomes = []
    with bar(options.training.progress) as shown:
        task = shown.add_task("runs", total=len(plans), note="")
        for plan in plans:
            shown.update(task, note=plan.words)
            outcomes.append(lab.outcome(plan, training))
            shown.advance(task)
        shown.update(task, note="")
    found = ObjectiveComparison(options, tuple(outcomes), lab.before)
    if all(outcome.failed is not None for outcome in outcomes):
        raise PrefkitError(f"none of the {len(outcomes)} runs came to its end; the first: {outcomes[0].failed}")
    found.write()
    return found


@dataclass(frozen=True)
class _Plan:
    """One run that is to be there in the end."""

    cell: Cell
    seed: int
    folder: Path
    objective: dict[str, Any]
    training: TrainingOptions

    @property
    def words(self) -> str:
        flips = f", {self.cell.flip:g} flipped" if self.cell.flip else ""
        return f"{self.cell.objective}{flips}, seed {self.seed}"

    def make(self) -> Objective[Any]:
        return make_objective(self.objective, f"objectives.{self.cell.objective}")


def _plans(options: CompareOptions) -> Iterator[_Plan]:
    """All runs, with everything that can be found wrong in their options before the first one starts."""
    shared = options.training.model_dump(exclude_unset=True)
    for number in range(options.seeds):
        seed = options.training.seed + number
        for flip in options.flip:
            for name, given in options.objectives.items():
                where = f"objectives.{name}"
                own = dict(given)
                further = own.pop("training", {})
                if not isinstance(further, Mapping):
                    raise OptionError(f"{where}.training must hold options of training, got {further!r}")
                if "seed" in further:
                    raise OptionError(f"{where}.training.seed does not apply: all objectives have the same seeds")
                training = TrainingOptions.parse(
                    {**shared, **further, "seed": seed, "progress": False}, f"{where}.training"
                )
                config = _with_rate({"kind": name, **own}, flip)
                leaf = f"seed-{seed}" if not flip else f"flip-{flip:g}-seed-{seed}"
                plan = _Plan(Cell(name, flip), seed, Path(options.output) / "runs" / name / leaf, config, training)
                objective = plan.make()
                check_kind(options.model, objective)
                options.pairing.check(objective.form)
                provided = RewardScorer.provided if options.model.kind == "reward" else LanguageScorer.provided
                if missing := (objective.needs & SCORED) - provided:
                    raise OptionError(f"{where} needs {', '.join(sorted(missing))}, which this model does not give")
                yield plan


def _with_rate(value: Any, flip: float) -> Any:
    if isinstance(value, Mapping):
        return {name: _with_rate(inner, flip) for name, inner in value.items()}
    return flip if value == INJECTED else value


class _Lab:
    """Trains and measures; the reference is loaded, and scores the held-out comparisons, once and if it is needed."""

    def __init__(self, options: CompareOptions, held_out: Iterable[Comparison]) -> None:
        self.options, self.held_out = options, held_out
        self._base: LanguageScorer | None = None
        self._before: Evaluation | None = None
        self._prompts: list[Any] | None = None

    @property
    def before(self) -> Evaluation | None:
        """The reference on the held-out comparisons."""
        if self.options.model.kind == "reward":
            return None
        if self._before is None:
            self._before = self._evaluate(self.base, reference=True)
        return self._before

    @property
    def base(self) -> LanguageScorer:
        """A scorer whose reference is that of all runs, and which is never trained."""
        if self._base is None:
            model = self.options.model
            own = model.model_copy(update={"path": model.reference or model.path, "reference": None, "lora": None})
            scorer = _placed(load(own, self.options.encoding))
            assert isinstance(scorer, LanguageScorer)
            self._base = scorer
        return self._base

    def outcome(self, plan: _Plan, training: Iterable[Comparison]) -> Outcome:
        """What a run came to: read from its folder if it was finished, else found out."""
        run, options = Run(plan.folder), self.options
        config = {
            **options.model_dump(mode="json", include={"model", "data", "encoding", "pairing"}),
            "objective": plan.objective,
            "training": plan.training.model_dump(mode="json"),
            "flip": plan.cell.flip,
            "kl_samples": options.kl_samples,
            "kl_tokens": options.kl_tokens,
        }
        if (plan.folder / _OUTCOME).is_file():
            run.check_config(config)
            found = json.loads((plan.folder / _OUTCOME).read_text(encoding="utf-8"))
            return Outcome(plan.cell, plan.seed, plan.folder, found["figures"], found["learned"])
        data = training
        if plan.cell.flip:
            data, _ = flip_preferences(training, plan.cell.flip, plan.seed)
        try:
            figures = self._run(plan, run, data, config)
        except OptionError:
            raise
        except PrefkitError as error:
            return Outcome(plan.cell, plan.seed, plan.folder, {}, {}, str(error))
        summary = plan.folder / "objective.json"
        learned = _numbers(json.loads(summary.read_text(encoding="utf-8"))) if summary.is_file() else {}
        write_text(plan.folder / _OUTCOME, json.dumps({"figures": figures, "learned": learned}, indent=1) + "\n")
        # Checkpoints are there to go on from, and there is nothing left to go on with.
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        if not options.keep_models:
            shutil.rmtree(run.model)
        return Outcome(plan.cell, plan.seed, plan.folder, figures, learned)

    def _run(self, plan: _Plan, run: Run, data: Iterable[Comparison], config: Mapping[str, Any]) -> dict[str, float]:
        options = self.options
        interrupted = run.exists and run.last_checkpoint() is not None
        objective = plan.make()
        result = fit(
            load(with_reference(options.model, objective), options.encoding, plan.seed),
            data,
            objective,
            output=plan.folder,
            options=plan.training,
            pairing=options.pairing,
            resume=run.exists,
            cache=options.cache,
            config=config,
        )
        # What is measured is what was saved; its reference is that of `base`.
        saved = saved_model(options.model, run.model).model_copy(update={"reference": None})
        trained = _placed(load(saved, options.encoding))
        after, before = self._evaluate(trained), self.before
        figures = {name: float(values.mean()) for name, values in self._figures(after, before).items()}
        if isinstance(trained, LanguageScorer) and options.kl_samples:
            if self._prompts is None:
                self._prompts = first_prompts(self.held_out, options.kl_samples)
            how = {"samples": options.kl_samples, "max_new_tokens": options.kl_tokens, "seed": plan.seed}
            estimate = sampled_kl(trained, self.base, self._prompts, **how)
            figures |= {} if estimate is None else {"kl": estimate}
        # The time of an interrupted run is not known.
        return figures if interrupted else {**figures, "seconds": result.seconds}

    def _figures(self, after: Evaluation, before: Evaluation | None) -> Mapping[str, Any]:
        if before is None:
            return after.figures
        if before.places != after.places:
            raise PrefkitError("the trained model and its reference do not read the same held-out comparisons")
        refs = {name: getattr(before.scores, name) for name in ("ref_chosen_logps", "ref_rejected_logps")}
        return pair_figures(replace(after.scores, **refs))

    def _evaluate(self, scorer: LanguageScorer | RewardScorer, reference: bool = False) -> Evaluation:
        options = self.options
        return evaluate(
            scorer,
            self.held_out,
            reference=reference,
            batch_size=options.training.batch_size,
            strategy=options.pairing.strategy,
            min_margin=options.pairing.min_margin,
            per_token=options.model.kind == "lm",
        )


def _placed(scorer: LanguageScorer | RewardScorer) -> LanguageScorer | RewardScorer:
    """The scorer where it is fastest, ready to measure."""
    return scorer.to(processes.device()).eval()


def _check_data(folder: Path, training: Iterable[Comparison], held_out: Iterable[Comparison]) -> None:
    """Make sure that there is something in both parts, and that the runs in the folder are of the same data.

    Raises:
        PrefkitError: it is not so.
    """
    found: dict[str, Any] = {}
    for part, records in (("training", training), ("held_out", held_out)):
        digest, count = hashlib.sha256(), 0
        for count, record in enumerate(records, 1):  # noqa: B007  # counted, and digested
            digest.update(json.dumps(to_dict(record), sort_keys=True).encode())
        if not count:  # of a file of its own; an empty share is found before
            raise PrefkitError(f"no comparison is in the {part.replace('_', '-')} part")
        found[part] = {"comparisons": count, "sha256": digest.hexdigest()}
    path = folder / _DATA
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != found:
        raise PrefkitError(f"{folder} holds a comparison on other data: choose another folder")
    write_text(path, json.dumps(found, indent=1) + "\n")


def _curve(objective: str, values: Mapping[Cell, Interval]) -> Curve:
    points = sorted((cell.flip, interval) for cell, interval in values.items() if cell.objective == objective)
    x, intervals = [flip for flip, _ in points], [interval for _, interval in points]
    y = [interval.mean for interval in intervals]
    if any(interval.n < 2 for interval in intervals):
        return Curve(x, y)
    return Curve(x, y, [interval.low for interval in intervals], [interval.high for interval in intervals])


def _numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in a nested summary, under dotted names."""
    return {
        name: float(value)
        for name, value in _flat(summary).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
