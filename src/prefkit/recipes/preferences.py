"""Preference models on texts: from a file of comparisons to features, a fitted model, and what it is worth.

Texts become features by TF-IDF, by the hidden states of a language model, or they come with the records. The model is
then one of `prefkit.preference`. How good it is on new prompts, cross-validation says, beside Bradley-Terry on the same
features.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from sklearn.feature_extraction.text import TfidfVectorizer

from prefkit.comparisons import Comparison, RecordError, pairs
from prefkit.comparisons.record import Text
from prefkit.diagnostics import (
    Calibration,
    Candidate,
    CrossValidation,
    Interval,
    Judgements,
    NewPeople,
    annotator_ceiling,
    calibration_change,
    cross_validate,
    held_out_figures,
    new_people,
    pair_calibration,
)
from prefkit.diagnostics.cross_validation import choose
from prefkit.errors import OptionError, PrefkitError, unknown
from prefkit.language import BUILTIN, load_reward, response_states
from prefkit.options import Options
from prefkit.preference import (
    BradleyTerry,
    Calibrated,
    Ensemble,
    GeneralPreference,
    IdealPoints,
    PreferenceModel,
    RewardNetwork,
    Thurstone,
    cross_fitted_temperature,
    load_preference_model,
    save_preference_model,
)
from prefkit.preference.wrappers import unwrapped
from prefkit.recipes.run import DataOptions, comparisons
from prefkit.report import Plot, Report, Table
from prefkit.training import processes

Floats = NDArray[np.float64]

ESTIMATORS: Mapping[str, type[Any]] = {
    "bradley_terry": BradleyTerry,
    "thurstone": Thurstone,
    "reward_network": RewardNetwork,
    "general_preference": GeneralPreference,
    "ideal_points": IdealPoints,
}
"""Models of features by the name in configurations."""

FEATURES = "features.json"


class FeatureOptions(Options):
    """How texts become features."""

    kind: Literal["tfidf", "states", "given"] = Field(
        "tfidf",
        description="TF-IDF of prompt and response; the last hidden state of a language model; or a list of numbers a "
        "response that the records hold",
    )
    size: int = Field(200, ge=1, description="words of TF-IDF at most")
    model: str = Field(BUILTIN, description="folder or hub name of the language model, for states")
    field: str = Field("embeddings", description="field of the records that holds one list of numbers a response")


class PreferenceConfig(Options):
    """Everything that decides a run of `prefkit train` with `model.kind: preference`."""

    model: dict[str, Any] = Field(
        description="kind: preference, `estimator` and its options; `ensemble: N` fits it N times with random weights "
        "of the rows"
    )
    data: DataOptions = Field(description="the comparisons")
    features: FeatureOptions = Field(default_factory=FeatureOptions, description="how texts become features")
    calibrate: bool = Field(False, description="divide log-odds by the temperature that held-out comparisons ask for")
    folds: int = Field(5, ge=2, description="parts of the prompts for cross-validation")
    choose: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="options of the estimator, with values of which the most likely on held-out prompts is taken",
    )
    inner_folds: int = Field(3, ge=2, description="parts of the training part in which `choose` chooses")
    new_people: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=list,
        description="ideal points: also cross-validate over people, of whom so many judgements are known",
    )
    seed: int = Field(0, description="of the folds")
    output: str = Field(description="the run folder")

    @field_validator("model")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        _estimator(value)
        return value

    @model_validator(mode="after")
    def _applies(self) -> Self:
        for option, values in self.choose.items():
            if not values:
                raise ValueError(f"choose.{option} must list at least one value")
            for value in values:
                _estimator({**self.model, option: value})
        if self.new_people and self.model.get("estimator") != "ideal_points":
            raise ValueError("new_people is for ideal_points: no other estimator is fitted to people")
        return self


def _estimator(options: Mapping[str, Any]) -> PreferenceModel:
    given = {name: value for name, value in options.items() if name not in ("kind", "estimator", "ensemble")}
    name = options.get("estimator", "bradley_terry")
    if name not in ESTIMATORS:
        raise OptionError(unknown("estimator", str(name), ESTIMATORS))
    known = ESTIMATORS[name]().get_params()
    for option in given:
        if option not in known:
            raise OptionError(unknown(f"option of {name}", option, known))
    # Texts have more words than there are comparisons: without a penalty their weights are not determined.
    defaults = {"ridge": 1.0} if "ridge" in known else {}
    made: PreferenceModel = ESTIMATORS[name](**{**defaults, **given})
    members = options.get("ensemble")
    if members is None:
        return made
    if not isinstance(members, int) or isinstance(members, bool) or members < 2:
        raise OptionError(f"model.ensemble must be a number of fits, at least 2, got {members!r}")
    return Ensemble(made, members=members)


class Featuriser:
    """From comparisons to features of their responses.

    Args:
        options: which features.
        vocabulary: words and their weights, of TF-IDF that was fitted before.
    """

    def __init__(self, options: FeatureOptions, vocabulary: Mapping[str, float] | None = None) -> None:
        self.options = options
        self._tfidf: TfidfVectorizer | None = None
        self._scorer = load_reward(options.model).to(processes.device()).eval() if options.kind == "states" else None
        if vocabulary is not None:
            self._tfidf = TfidfVectorizer(vocabulary={word: place for place, word in enumerate(vocabulary)})
            self._tfidf.idf_ = np.array(list(vocabulary.values()))

    def fit(self, records: Sequence[Comparison]) -> None:
        """Choose the words of TF-IDF; the other kinds have nothing to learn."""
        if self.options.kind == "tfidf":
            texts = [_joined(record, place) for record in records for place in range(len(record.responses))]
            self._tfidf = TfidfVectorizer(max_features=self.options.size)
            try:
                self._tfidf.fit(texts)
            except ValueError as error:
                raise PrefkitError(f"no word of the texts can be a feature: {error}") from error

    def of(self, record: Comparison) -> Floats:
        """`[responses, d]`, features of a record's responses.

        Raises:
            RecordError: the record lacks them.
        """
        if self._scorer is not None:
            return response_states(self._scorer, record)
        if self._tfidf is not None:
            texts = [_joined(record, place) for place in range(len(record.responses))]
            return np.asarray(self._tfidf.transform(texts).toarray(), dtype=np.float64)
        try:
            found = np.asarray(record.extra.get(self.options.field), dtype=np.float64)
        except (TypeError, ValueError):
            found = np.empty(0)
        if found.ndim != 2 or len(found) != len(record.responses) or not np.isfinite(found).all():
            raise RecordError(
                f"must hold a list of numbers for each of the {len(record.responses)} responses, all of one length",
                field=self.options.field,
                source=record.source,
                line=record.line,
            )
        return found

    def of_prompt(self, record: Comparison) -> Floats:
        """`[p]`, features of the prompt: TF-IDF of its text."""
        if self._tfidf is None:
            raise OptionError("features of prompts need features.kind: tfidf")
        return np.asarray(self._tfidf.transform([_text(record.prompts[0])]).toarray()[0], dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write what `load_featuriser` reads."""
        written: dict[str, Any] = {"options": self.options.model_dump()}
        if self._tfidf is not None:
            words = sorted(self._tfidf.vocabulary_, key=self._tfidf.vocabulary_.get)
            written["vocabulary"] = dict(zip(words, self._tfidf.idf_.tolist(), strict=True))
        (folder / FEATURES).write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class Examples(NamedTuple):
    """Pairs of a file as a model takes them.

    Args:
        data: the pairs, grouped by prompt.
        skipped: records that could not be used.
    """

    data: Judgements
    skipped: list[RecordError]


def examples(records: Iterable[Comparison], featuriser: Featuriser, model: PreferenceModel) -> Examples:
    """All pairs of comparisons, ties among them, with their features.

    Args:
        records: the comparisons.
        featuriser: makes the features.
        model: says whether annotators and prompts are needed.

    Raises:
        PrefkitError: no record can be used.
    """
    X: list[Floats] = []
    y, weights, people, contexts, places, items = [], [], [], [], [], []
    numbers: dict[Any, int] = {}
    prompts: dict[str, int] = {}
    skipped: list[RecordError] = []
    for record in records:
        try:
            found = pairs(record, ties="half")
            if _needs(model, "annotators") and record.annotator is None:
                raise RecordError("ideal points belong to people: the annotator is missing", field="annotator")
            features = _checked(featuriser, record, model)
            if X and features.shape[1] != X[0].shape[1]:
                raise RecordError(f"{features.shape[1]} features, the first record has {X[0].shape[1]}")
        except RecordError as error:
            source, line = error.source or record.source, error.line or record.line
            skipped.append(RecordError(error.problem, field=error.field, source=source, line=line))
            continue
        number = prompts.setdefault(_text(record.prompts[0]), len(prompts))
        for pair in found:
            # People judge the same pair in either order: one order for all.
            texts = _joined(record, pair.chosen), _joined(record, pair.rejected)
            turned = texts[0] > texts[1]
            own = features[[pair.rejected, pair.chosen] if turned else [pair.chosen, pair.rejected]]
            X.append(own)
            y.append(1 - pair.probability if turned else pair.probability)
            items.append(numbers.setdefault((record.criterion, *sorted(texts), own.tobytes()), len(numbers)))
            weights.append(pair.weight)
            people.append(record.annotator)
            places.append(number)
            if _needs(model, "prompts"):
                contexts.append(featuriser.of_prompt(record))
    if not X:
        first = f"; the first problem: {skipped[0]}" if skipped else ""
        raise PrefkitError(f"no comparison can be used{first}")
    data = Judgements(
        np.array(X),
        np.array(y),
        np.array(places),
        np.array(weights),
        annotators=None if None in people else people,
        items=np.array(items),
        contexts=np.array(contexts) if contexts else None,
    )
    return Examples(data, skipped)


@dataclass(frozen=True)
class PreferenceResult:
    """What a run came to.

    Args:
        table: held-out figures of the model, of Bradley-Terry and of chance.
        calibration: of the model, held out; with a temperature that other prompts asked for, if it is calibrated.
        uncalibrated: the same without the temperature; None if there is none.
        pairs: number of pairs.
        skipped: records that could not be used.
        model: folder of the model.
        report: the page.
        people: figures of people whom the model has not met, where they were asked for.
    """

    table: Table
    calibration: Calibration
    uncalibrated: Calibration | None
    pairs: int
    skipped: Sequence[RecordError]
    model: Path
    report: Path
    people: NewPeople | None = None

    def calibration_table(self) -> Table:
        """Whether the probabilities mean what they say, before and after the temperature if there is one."""
        if self.uncalibrated is None:
            return self.calibration.table()
        return calibration_change(self.uncalibrated, self.calibration)


def run_preference(config: PreferenceConfig) -> PreferenceResult:
    """Cross-validate over prompts, fit to everything, save and report.

    Raises:
        PrefkitError: the data are wrong, or have fewer prompts than folds.
        OptionError: an option is out of range.
    """
    records = list(comparisons(config.data)[0])
    model = _estimator(config.model)
    featuriser = Featuriser(config.features)
    featuriser.fit(records)
    data, skipped = examples(records, featuriser, model)
    count = int(data.groups.max()) + 1
    if count < config.folds:
        raise OptionError(f"folds = {config.folds}, but the file has {count} prompts: cross-validation is over prompts")
    name = str(config.model.get("estimator", "bradley_terry"))
    choice = _choice(config)
    models: dict[str, Any] = {name: choice, "bradley_terry": Candidate(BradleyTerry(ridge=1.0))}
    if name == "bradley_terry":
        models = {name: choice}
    found = cross_validate(models, data, folds=config.folds, inner=config.inner_folds, seed=config.seed)
    odds = dict(found.odds)
    temperature = None
    if config.calibrate:
        try:
            temperature = cross_fitted_temperature(
                odds[name], data.y, data.counts, groups=data.groups, seed=config.seed
            )
        except PrefkitError as error:
            raise OptionError(f"calibrate: no temperature can be found: {error}") from error
        odds[f"{name}, calibrated"] = temperature.log_odds
    odds["chance"] = np.zeros(len(data))
    if data.annotators is not None and data.items is not None and len(np.unique(data.items)) < len(data):
        odds["other annotators"] = annotator_ceiling(data)
    table = CrossValidation(data, odds).table(title=f"Held out, {config.folds} parts of the prompts")
    reliability, plain = _calibration(odds[name], data, config.seed), None
    people = None
    if config.new_people:
        people = new_people(
            {name: choice}, data, labels=config.new_people, folds=config.folds, inner=config.inner_folds
        )
    best = choose(choice, data, folds=config.inner_folds, seed=config.seed)
    fitted: PreferenceModel = best.fit(data).model
    if temperature is not None:
        reliability, plain = _calibration(temperature.log_odds, data, config.seed, _AFTER), reliability
        fitted = Calibrated.around(fitted, temperature.value)
    folder = Path(config.output)
    saved = save_preference_model(fitted, folder / "model")
    featuriser.save(saved)
    (folder / "config.json").write_text(config.model_dump_json(indent=1) + "\n", encoding="utf-8")
    page = Report(f"{name} on {config.data.path}", f"{len(data)} pairs under {count} prompts.")
    page.section("Held out", "Cross-validated over prompts, with 95% intervals over prompts.", table)
    if best.name:
        parts = ", ".join(found.chosen[name])
        page.section("Chosen", f"{best.name}, by held-out log-likelihood; in the parts of cross-validation: {parts}.")
    result = PreferenceResult(table, reliability, plain, len(data), skipped, saved, folder / "report.html", people)
    plots = [reliability.plot] if plain is None else [plain.plot, reliability.plot]
    text = "Do the probabilities mean what they say?"
    if temperature is not None:
        text += (
            f" Log-odds are divided by {temperature.value:.3g}; what is shown is each pair under the temperature that "
            "the other half of the prompts asks for."
        )
    page.section("Calibration", text, result.calibration_table(), *plots)
    if people is not None:
        page.section("New people", "People and prompts are held out at once.", people.table(), people.plot())
    page.write(result.report)
    return result


_AFTER = "Reliability, after the temperature"


def _choice(config: PreferenceConfig) -> Any:
    """The model, or one candidate for each combination of the options among which to choose."""
    if not config.choose:
        return Candidate(_estimator(config.model))
    found = []
    for values in product(*config.choose.values()):
        own = dict(zip(config.choose, values, strict=True))
        name = ", ".join(f"{option} = {value}" for option, value in own.items())
        found.append(Candidate(_estimator({**config.model, **own}), name=name))
    return found


class TextPreference(NamedTuple):
    """A preference model on texts.

    Args:
        model: fitted to features.
        featuriser: makes them.
    """

    model: PreferenceModel
    featuriser: Featuriser


def load_preference(folder: str | Path) -> TextPreference:
    """A model that `run_preference` saved, and the features that it takes.

    Raises:
        PrefkitError: the folder holds none.
    """
    model: PreferenceModel = load_preference_model(folder)
    try:
        written = json.loads((Path(folder) / FEATURES).read_text(encoding="utf-8"))
        options = FeatureOptions.parse(written["options"], "features")
    except (OSError, ValueError, KeyError) as error:
        raise PrefkitError(f"{folder}: the features of the preference model cannot be read: {error}") from error
    return TextPreference(model, Featuriser(options, written.get("vocabulary")))


def is_preference_model(path: str) -> bool:
    """Whether a path is a folder that `run_preference` wrote."""
    return (Path(path) / FEATURES).is_file()


class Rewarded(NamedTuple):
    """Rewards of the responses of a comparison.

    Args:
        comparison: what was scored.
        rewards: one a response.
        spread: of an ensemble, the standard deviation over its members; else None.
    """

    comparison: Comparison
    rewards: list[float]
    spread: list[float] | None


def preference_rewards(
    fitted: TextPreference, records: Iterable[Comparison], skipped: list[RecordError]
) -> Iterator[Rewarded]:
    """Each comparison with a reward a response: the mean log-odds against all of its responses, as GPO takes them.

    Of models that have rewards it is the reward itself, which differs from that by a constant.

    Args:
        fitted: the model and its features.
        records: the comparisons.
        skipped: where those that cannot be scored are set aside.
    """
    model, featuriser = fitted
    for record in records:
        try:
            features = _checked(featuriser, record, model)
            own = _own_rewards(model, features)
            if own is None and len(features) == 1:
                raise RecordError(
                    "the model compares responses: one alone has no reward",
                    field="responses",
                    source=record.source,
                    line=record.line,
                )
        except RecordError as error:
            skipped.append(error)
            continue
        if own is not None:
            yield Rewarded(record, own.tolist(), None)
            continue
        k = len(features)
        first, second = np.divmod(np.arange(k * k), k)
        apart = first != second
        X = np.stack([features[first[apart]], features[second[apart]]], axis=1)
        given: dict[str, Any] = {}
        if record.annotator in _people(model):
            given["annotators"] = [record.annotator] * len(X)
        if _needs(model, "prompts"):
            given["prompts"] = np.tile(featuriser.of_prompt(record), (len(X), 1))

        def against_all(odds: Floats, of: NDArray[np.int64] = first[apart], k: int = k) -> Floats:
            means: Floats = np.bincount(of, odds, k) / k
            return means

        odds = model.decision_function(X, **given)
        spread = None
        if (ensemble := _ensemble(model)) is not None:
            each = ensemble.decisions(X, **given)
            scale = model.temperature_ if isinstance(model, Calibrated) else 1.0
            spread = (np.stack([against_all(own) for own in each]).std(axis=0, ddof=1) / scale).tolist()
        yield Rewarded(record, against_all(odds).tolist(), spread)


def _own_rewards(model: PreferenceModel, features: Floats) -> Floats | None:
    """Rewards of responses by themselves, where the model has such."""
    scale = 1.0
    if isinstance(model, Calibrated):
        model, scale = model.estimator_, model.temperature_
    if not isinstance(model, BradleyTerry | Thurstone | RewardNetwork):
        return None
    found: Floats = model.strengths(features[None])[0] / scale
    return found


@dataclass(frozen=True)
class PreferenceEvaluation:
    """A fitted model on a file of comparisons.

    Args:
        log_likelihood: mean over pairs, in nats.
        accuracy: share of pairs that it orders as people did.
        calibration: of its probabilities.
        uncalibrated: of those without its temperature; None if it has none.
        skipped: records that could not be used.
    """

    log_likelihood: Interval
    accuracy: Interval
    calibration: Calibration
    uncalibrated: Calibration | None
    skipped: Sequence[RecordError]

    def table(self, title: str = "") -> Table:
        """The figures, with 95% intervals over prompts."""
        figures = {
            "log-likelihood (nats)": self.log_likelihood,
            "accuracy": self.accuracy,
            "expected calibration error": self.calibration.error,
            "Brier score": self.calibration.brier,
        }
        if self.uncalibrated is not None:
            figures |= {
                "without the temperature: log-likelihood (nats)": self.uncalibrated.log_likelihood,
                "without the temperature: expected calibration error": self.uncalibrated.error,
                "without the temperature: Brier score": self.uncalibrated.brier,
            }
        return Table.from_mapping(figures, title, ("figure", "value"))

    def plots(self) -> list[Plot]:
        """Reliability, before and after the temperature if there is one."""
        return [self.calibration.plot] if self.uncalibrated is None else [self.uncalibrated.plot, self.calibration.plot]


def evaluate_preference(folder: str | Path, records: Iterable[Comparison]) -> PreferenceEvaluation:
    """What a fitted model makes of comparisons.

    Args:
        folder: of the model.
        records: the comparisons.

    Raises:
        PrefkitError: the folder holds no model, or no record can be used.
    """
    model, featuriser = load_preference(folder)
    data, skipped = examples(records, featuriser, model)
    odds = Candidate(model).log_odds(data)
    found = held_out_figures(odds, data.y, weights=data.counts, clusters=data.groups)
    after, plain = _calibration(odds, data, 0), None
    if isinstance(model, Calibrated):
        after, plain = _calibration(odds, data, 0, _AFTER), _calibration(odds * model.temperature_, data, 0)
    return PreferenceEvaluation(found.log_likelihood, found.accuracy, after, plain, skipped)


def _ensemble(model: PreferenceModel) -> Ensemble | None:
    inside = model.estimator_ if isinstance(model, Calibrated) else model
    return inside if isinstance(inside, Ensemble) else None


def _people(model: PreferenceModel) -> set[Any]:
    """The people whom it knows."""
    return set(getattr(unwrapped(model), "annotators_", np.empty(0)).tolist())


def _needs(model: PreferenceModel, name: str) -> bool:
    model = unwrapped(model)
    if name == "annotators":
        return isinstance(model, IdealPoints)
    return getattr(model, "gate", False) or getattr(model, "variant", "A") == "B"


def _calibration(odds: Floats, data: Judgements, seed: int, title: str = "Reliability") -> Calibration:
    # The sides are in the order of the texts.
    return pair_calibration(odds, data.y, clusters=data.groups, seed=seed, title=title)


def _checked(featuriser: Featuriser, record: Comparison, model: PreferenceModel) -> Floats:
    """Features of a record, as many as a fitted model was fitted to."""
    features = featuriser.of(record)
    wanted = getattr(unwrapped(model), "n_features_in_", features.shape[1])
    if features.shape[1] != wanted:
        raise RecordError(
            f"{features.shape[1]} features, the model was fitted to {wanted}", source=record.source, line=record.line
        )
    return features


def _joined(record: Comparison, place: int) -> str:
    return _text(record.prompt_of(place)) + "\n" + _text(record.responses[place])


def _text(text: Text) -> str:
    return text if isinstance(text, str) else "\n".join(str(message["content"]) for message in text)
