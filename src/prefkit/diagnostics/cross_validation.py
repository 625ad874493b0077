"""Cross-validation of preference models: on prompts that they have not seen, and on people that they have not met.

Whatever is chosen (features, penalties, the number of prototypes) is chosen inside the training part. What people
themselves reach is the ceiling: each vote is predicted from the votes of the others on the same pair.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.base import clone

from prefkit.diagnostics.intervals import Interval, bootstrap_interval
from prefkit.errors import OptionError, PrefkitError
from prefkit.preference import BradleyTerry, IdealPoints, infer_context
from prefkit.preference.inputs import outcomes_of, pairs_of, weights_of
from prefkit.preference.wrappers import unwrapped
from prefkit.report import Curve, Plot, Table, curves

Floats: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = NDArray[np.int64]

_AS_KNOWN = "{}, as known people"

BINS = 10
"""Bins of the calibration error."""


@dataclass(frozen=True)
class Judgements:
    """Comparisons, and what is known of each.

    Args:
        X: `[n, 2, d]` features, or `[n, 2]` names, of the two options; with `features` their places in it.
        y: `[n]`, probability that the first option was preferred; 1, 0, or 0.5 for a tie.
        groups: `[n]`, what is held out together, such as the prompt.
        weights: `[n]`, how many judgements a row stands for; 1 by default.
        annotators: `[n]`, who judged, for models of people.
        items: `[n]`, which pair was judged, the same name for the same two options in the same order; for the ceiling.
            Models that do not ask who judged are fitted to the mean of each pair where it is given.
        contexts: `[n, p]`, features of the prompts, for models that read them: `GeneralPreference` with a gate, variant
            B of `IdealPoints`.
        features: `[options, d]`, of options that are judged many times: the memory of a row is then two numbers.

    Raises:
        PrefkitError: lengths differ, or a value is wrong; names the row.
    """

    X: NDArray[Any]
    y: Floats
    groups: NDArray[Any]
    weights: Floats | None = None
    annotators: Sequence[Hashable] | None = None
    items: NDArray[Any] | None = None
    features: Floats | None = None
    contexts: Floats | None = None

    def __post_init__(self) -> None:
        array = pairs_of(self.X)
        n = len(array)
        if self.features is not None and not (
            array.ndim == 2 and array.dtype.kind in "iu" and 0 <= array.min() <= array.max() < len(self.features)
        ):
            raise PrefkitError(f"X must be places of options in features, from 0 to {len(self.features) - 1}")
        for name, value in (
            ("X", array),
            ("y", outcomes_of(self.y, n)),
            ("weights", weights_of(self.weights, n)),
            ("groups", np.asarray(self.groups)),
            ("items", None if self.items is None else np.asarray(self.items)),
            ("contexts", None if self.contexts is None else np.asarray(self.contexts, dtype=np.float64)),
        ):
            if value is not None and len(value) != n:
                raise PrefkitError(f"{name} must have one entry a comparison ({n}), got {len(value)}")
            object.__setattr__(self, name, value)
        if self.annotators is not None and len(self.annotators) != n:
            raise PrefkitError(f"annotators must name who judged each comparison ({n}), got {len(self.annotators)}")

    def __len__(self) -> int:
        return len(self.y)

    @property
    def counts(self) -> Floats:
        """`[n]`, the weights."""
        return weights_of(self.weights, len(self))

    def take(self, rows: Rows | NDArray[np.bool_]) -> Judgements:
        """Some of the comparisons."""
        places = np.arange(len(self))[rows]
        people = None if self.annotators is None else [self.annotators[place] for place in places]
        return Judgements(
            self.X[places],
            self.y[places],
            self.groups[places],
            self.counts[places],
            annotators=people,
            items=None if self.items is None else self.items[places],
            features=self.features,
            contexts=None if self.contexts is None else self.contexts[places],
        )

    def options(self, columns: Sequence[int] | None = None) -> NDArray[Any]:
        """What models are given: names, or features, of which `columns` alone if they are named."""
        chosen = slice(None) if columns is None else np.asarray(columns, dtype=np.int64)
        if self.features is not None:
            found: Floats = self.features[:, chosen][self.X]
            return found
        return self.X if columns is None else self.X[:, :, chosen]

    def pooled(self) -> Judgements:
        """One comparison a pair, with the mean outcome and the total weight of its judgements."""
        if self.items is None:
            return self
        _, first, member = np.unique(self.items, return_index=True, return_inverse=True)
        total: Floats = np.bincount(member, self.counts).astype(np.float64)
        with np.errstate(invalid="ignore"):
            mean = np.bincount(member, self.counts * self.y) / total
        kept = total > 0
        first = first[kept]
        contexts = None if self.contexts is None else self.contexts[first]
        return Judgements(
            self.X[first], mean[kept], self.groups[first], total[kept], features=self.features, contexts=contexts
        )


@dataclass(frozen=True)
class Candidate:
    """A model, and the features that it is shown.

    Args:
        model: an estimator of `prefkit.preference`, not fitted.
        columns: places of its features; all by default.
        name: of the candidate, where there are several.
    """

    model: Any
    columns: Sequence[int] | None = None
    name: str = ""

    def fit(self, data: Judgements) -> Candidate:
        """A fitted copy of the candidate."""
        given: dict[str, Any] = {}
        if _asks_who(self.model):
            given["annotators"] = data.annotators
        else:
            # Means that are all even say nothing, which models refuse; the judgements behind them are no such case.
            pooled = data.pooled()
            data = pooled if (pooled.y != 0.5).any() else data
        if _asks_where(self.model):
            given["prompts"] = data.contexts
        with warnings.catch_warnings():
            # A part of the data may lack what the whole has.
            warnings.filterwarnings("ignore", message="features that are constant")
            fitted = clone(self.model).fit(data.options(self.columns), data.y, data.counts, **given)
        return replace(self, model=fitted)

    def log_odds(self, data: Judgements) -> Floats:
        """`[n]`, of the first option; a person whom the model does not know is judged as the mean of all."""
        X, where = data.options(self.columns), data.contexts if _asks_where(self.model) else None
        if not _asks_who(self.model) or data.annotators is None:
            return _odds(self.model, X, where)
        known = set(_people_of(self.model))
        told = np.array([person in known for person in data.annotators], dtype=bool)
        odds = np.zeros(len(data))
        for rows in (told, ~told):
            if rows.any():
                people = [who for who in data.annotators if who in known] if rows is told else None
                odds[rows] = _odds(self.model, X[rows], None if where is None else where[rows], people)
        return odds


Choice: TypeAlias = Candidate | Sequence[Candidate]
"""A candidate, or several of which the training part chooses one."""


@dataclass(frozen=True)
class Figures:
    """What predictions are worth on judgements that had no part in them.

    Args:
        log_likelihood: mean over judgements, in nats; a tie is half a vote for each side.
        accuracy: share of judgements whose side is predicted; ties are left out, even odds are half right.
        calibration: expected calibration error, either side of each comparison counting alike.
    """

    log_likelihood: Interval
    accuracy: Interval
    calibration: Interval


def held_out_figures(
    odds: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None, clusters: ArrayLike | None = None
) -> Figures:
    """Log-likelihood, accuracy and calibration error of log-odds, with intervals over clusters.

    Args:
        odds: `[n]`, log-odds of the first option.
        y: `[n]`, outcomes in [0, 1].
        weights: `[n]`, judgements that a row stands for.
        clusters: `[n]`, resampled whole; each row by itself by default.

    Raises:
        PrefkitError: lengths differ, there is nothing, or a value is no finite number; names the row.
    """
    found = np.asarray(odds, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise PrefkitError(f"row {bad[0]}: log-odds must be a finite number, got {found[bad[0]]}")
    outcomes, weight = outcomes_of(y, len(found)), weights_of(weights, len(found))
    member = np.arange(len(found)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    if len(member) != len(found):
        raise PrefkitError(f"clusters must name one cluster a row ({len(found)} rows), got {len(member)}")
    terms = log_likelihoods(found, outcomes)
    told = weight * (outcomes != 0.5)
    right = 0.5 + np.sign(found) * (outcomes - 0.5)
    # Seen from either side, half a judgement each: the error does not depend on which option comes first.
    p = expit(found)
    sums = np.zeros((member.max() + 1, BINS))
    for probability, outcome in ((p, outcomes), (1 - p, 1 - outcomes)):
        place = np.minimum((probability * BINS).astype(int), BINS - 1)
        np.add.at(sums, (member, place), 0.5 * weight * (probability - outcome))
    size = np.bincount(member, weight)
    return Figures(
        _ratio(np.bincount(member, weight * terms), size),
        _ratio(np.bincount(member, told * right), np.bincount(member, told)),
        bootstrap_interval(
            np.column_stack([sums, size]),
            lambda drawn: float(np.abs(drawn[:, :-1].sum(0)).sum() / max(drawn[:, -1].sum(), 1e-300)),
        ),
    )


def log_likelihoods(odds: Floats, y: Floats) -> Floats:
    """`[n]`, log-likelihood of each outcome, in nats.

    Args:
        odds: log-odds of the first option.
        y: outcomes in [0, 1].
    """
    found: Floats = -(y * np.logaddexp(0, -odds) + (1 - y) * np.logaddexp(0, odds))
    return found


@dataclass(frozen=True)
class CrossValidation:
    """Held-out predictions of several models on the same judgements.

    Args:
        data: the judgements.
        odds: for each model `[n]`, log-odds of comparisons whose group it had not seen; NaN where nothing could be
            predicted (of the ceiling: nobody else judged the pair).
        chosen: for each model the candidate that each fold chose.
        seconds: time of fits and predictions of each model.
        clusters: `[n]`, what intervals are over.
    """

    data: Judgements
    odds: Mapping[str, Floats]
    chosen: Mapping[str, list[str]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    clusters: NDArray[Any] | None = None

    def figures(self, name: str) -> Figures:
        """Of one model, over the rows that it predicts."""
        rows = np.isfinite(self.odds[name])
        own = self.data.take(rows)
        return held_out_figures(self.odds[name][rows], own.y, weights=own.counts, clusters=self._clusters[rows])

    def gain(self, name: str, baseline: str) -> Interval:
        """How much likelier judgements are than under a baseline, in nats a judgement, over the same rows."""
        rows = np.isfinite(self.odds[name]) & np.isfinite(self.odds[baseline])
        own, member = self.data.take(rows), np.unique(self._clusters[rows], return_inverse=True)[1]
        apart = log_likelihoods(self.odds[name][rows], own.y) - log_likelihoods(self.odds[baseline][rows], own.y)
        return _ratio(np.bincount(member, own.counts * apart), np.bincount(member, own.counts))

    def table(self, baseline: str | None = None, title: str = "") -> Table:
        """The figures of all models, and each one's gain over the baseline."""
        rows: list[list[Any]] = []
        for name in self.odds:
            found = self.figures(name)
            row = [name, found.log_likelihood, found.accuracy, found.calibration]
            if baseline is not None:
                row.insert(2, None if name == baseline else self.gain(name, baseline))
            rows.append(row)
        columns = ["model", "log-likelihood", "accuracy", "calibration error"]
        if baseline is not None:
            columns.insert(2, f"gain over {baseline}")
        return Table(columns, rows, title)

    @property
    def _clusters(self) -> NDArray[Any]:
        return self.data.groups if self.clusters is None else self.clusters


def cross_validate(
    models: Mapping[str, Choice],
    data: Judgements,
    *,
    folds: int = 5,
    inner: int = 3,
    seed: int = 0,
    watch: Callable[[str], None] | None = None,
) -> CrossValidation:
    """Predict each group's judgements by models that were fitted to the other groups.

    Where there are several candidates, the training part is divided in the same way, and the one with the highest
    held-out log-likelihood there is fitted to all of it.

    Args:
        models: candidates by name of the model.
        data: the judgements.
        folds: parts of the groups, at least 2.
        inner: parts of the training part.
        seed: of the parts.
        watch: called with the name of a model after each of its folds, for progress.

    Raises:
        OptionError: there are fewer groups than folds.
        PrefkitError: a model cannot be fitted.
    """
    fold = group_folds(data.groups, folds, seed)
    odds = {name: np.full(len(data), np.nan) for name in models}
    chosen: dict[str, list[str]] = {}
    seconds = dict.fromkeys(models, 0.0)
    for held in range(folds):
        test = fold == held
        train, tested = data.take(~test), data.take(test)
        for name, choice in models.items():
            start = time.perf_counter()
            best = choose(choice, train, folds=inner, seed=seed)
            odds[name][test] = best.fit(train).log_odds(tested)
            seconds[name] += time.perf_counter() - start
            if best.name:
                chosen.setdefault(name, []).append(best.name)
            if watch is not None:
                watch(name)
    return CrossValidation(data, odds, chosen, seconds)


def choose(choice: Choice, data: Judgements, *, folds: int = 3, seed: int = 0) -> Candidate:
    """The candidate under which judgements of held-out groups are most likely.

    Args:
        choice: the candidates.
        data: judgements to choose by.
        folds: parts of the groups.
        seed: of the parts.

    Raises:
        OptionError: there are no candidates, or fewer groups than folds.
    """
    if isinstance(choice, Candidate):
        return choice
    if not choice:
        raise OptionError("there must be a candidate, got none")
    if len(choice) == 1:
        return choice[0]
    fold = group_folds(data.groups, folds, seed)
    found = np.zeros(len(choice))
    for held in range(folds):
        train, tested = data.take(fold != held), data.take(fold == held)
        for place, candidate in enumerate(choice):
            terms = log_likelihoods(candidate.fit(train).log_odds(tested), tested.y)
            found[place] += float(tested.counts @ terms)
    return choice[int(found.argmax())]


def group_folds(groups: ArrayLike, folds: int, seed: int) -> NDArray[np.int64]:
    """`[n]`, the fold of each row, whole groups together.

    Args:
        groups: `[n]`.
        folds: at least 2.
        seed: of the division.

    Raises:
        OptionError: there are fewer groups than folds.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    if folds < 2 or len(names) < folds:
        raise OptionError(f"folds must be from 2 to the number of groups, {len(names)}, got {folds}")
    found: NDArray[np.int64] = (np.random.default_rng(seed).permutation(len(names)) % folds)[member]
    return found


# -- people ---------------------------------------------------------------------------------------------------------


def annotator_ceiling(data: Judgements) -> Floats:
    """`[n]`, log-odds of each judgement by those of the others on the same pair; NaN where there is no other.

    The share of the others' votes is drawn towards one half by as many votes as make all judgements most likely: one
    number for all pairs, which is what separates a ceiling from a majority of two that is taken for certain. The sign
    is the majority's.

    Args:
        data: with `items`; a row of weight w is w people who said the same.

    Raises:
        PrefkitError: pairs are not named, or nobody judged a pair that another judged.
    """
    if data.items is None:
        raise PrefkitError("the ceiling needs items: which pair each row judges")
    member = np.unique(data.items, return_inverse=True)[1]
    total, wins = np.bincount(member, data.counts)[member], np.bincount(member, data.counts * data.y)[member]
    # One judgement of each row is predicted by all the others, those of its own row among them.
    others, won = total - 1, wins - data.y
    told = (others > 0.5) & (data.counts > 0)
    if not told.any():
        raise PrefkitError("no pair was judged twice: there are no others to predict a judgement from")

    def odds(log_prior: float) -> Floats:
        prior = float(np.exp(log_prior))
        share = (won[told] + prior) / (others[told] + 2 * prior)
        found: Floats = logit(share)
        return found

    def loss(log_prior: float) -> float:
        return -float(data.counts[told] @ log_likelihoods(odds(log_prior), data.y[told]))

    found = np.full(len(data), np.nan)
    found[told] = odds(float(minimize_scalar(loss, bounds=(-5.0, 7.0), method="bounded").x))
    return found


@dataclass(frozen=True)
class NewPeople:
    """How well people are predicted of whom a few judgements are known.

    Args:
        labels: how many of them.
        log_likelihood: for each model one figure a number of labels, with its interval over people.
        accuracy: the same.
        gains: how much likelier than under `baseline`, over people; for every other model.
        chosen: for each model of people the candidate that each fold chose.
        baseline: the model that is fitted to everybody.
        people: number of people.
    """

    labels: Sequence[int]
    log_likelihood: Mapping[str, list[Interval]]
    accuracy: Mapping[str, list[Interval]]
    gains: Mapping[str, list[Interval]]
    chosen: Mapping[str, list[str]]
    baseline: str
    people: int

    def table(self, title: str = "") -> Table:
        """A row a model and number of labels."""
        rows: list[list[Any]] = []
        for name, figures in self.log_likelihood.items():
            for place, count in enumerate(self.labels):
                gain = self.gains[name][place] if name in self.gains else None
                rows.append([name, count, figures[place], gain, self.accuracy[name][place]])
        columns = ["model", "labels", "log-likelihood", f"gain over {self.baseline}", "accuracy"]
        return Table(columns, rows, title)

    def plot(self, title: str = "Held-out log-likelihood of new people") -> Plot:
        """Log-likelihood over the number of labels, with bands over people."""
        return curves(
            {
                name: Curve(
                    list(self.labels),
                    [each.mean for each in figures],
                    [each.low for each in figures],
                    [each.high for each in figures],
                )
                for name, figures in self.log_likelihood.items()
            },
            title=title,
            x="judgements known of a new person",
            y="log-likelihood",
        )


def new_people(
    models: Mapping[str, Choice],
    data: Judgements,
    *,
    everybody: Choice | None = None,
    alone: Choice | None = None,
    labels: Sequence[int] = (0, 2, 5, 10, 20),
    folds: int = 4,
    inner: int = 2,
    seed: int = 0,
    watch: Callable[[str], None] | None = None,
) -> NewPeople:
    """Cross-validate over people and groups at once: nothing is known of a new person but a few judgements.

    People are divided into folds, and so are groups. Models are fitted to the people and groups that are not held out.
    Each model predicts a new person twice: by a mixture that is fitted to the labels, and "as known people": by the
    mean of what the people whom it knows would say, each weighed by how likely he or she makes the labels.

    A new person's labels are drawn from the same groups; the judgements that are predicted are those of the
    groups that are held out. The first labels of a person are among the first of a longer list.

    Args:
        models: models of people, such as `IdealPoints`, with `fit_annotators`.
        data: with annotators.
        everybody: the model fitted to all people and none in particular; Bradley-Terry with ridge 10 by default.
        alone: the model fitted to the new person's labels alone; Bradley-Terry with ridge 10 by default. Without labels
            it predicts even odds.
        labels: how many judgements of the new person are known.
        folds: of people, and of groups.
        inner: parts of the training part, by which candidates are chosen; see `choose`.
        seed: of the folds and of the labels.
        watch: called with a name after each fold.

    Raises:
        OptionError: a number of labels is negative, there are fewer people or groups than folds, or nobody has as many
            judgements as there are labels beside one to be predicted.
        PrefkitError: annotators are missing.
    """
    if data.annotators is None:
        raise PrefkitError("new people need annotators: who judged each row")
    if not labels or min(labels) < 0:
        raise OptionError(f"labels must be numbers of judgements, at least 0, got {list(labels)}")
    linear = Candidate(BradleyTerry(ridge=10.0))
    everybody, alone = everybody or linear, alone or linear
    people = np.unique([str(person) for person in data.annotators], return_inverse=True)[1]
    person_fold, group_fold = group_folds(people, folds, seed), group_folds(data.groups, folds, seed + 1)
    names = ["everybody", "alone", *(line for name in models for line in (name, _AS_KNOWN.format(name)))]
    # Of every name and number of labels the log-likelihood and the accuracy of each person.
    terms: dict[str, list[Floats]] = {name: [np.full(len(data), np.nan) for _ in labels] for name in names}
    chosen: dict[str, list[str]] = {}
    order = np.random.default_rng(seed).permutation(len(data))
    for held in range(folds):
        new, away = person_fold == held, group_fold == held
        train = data.take(~new & ~away)
        pool = order[(new & ~away)[order]]
        rank = np.zeros(len(data), dtype=np.int64)
        rank[pool] = _running(people[pool])
        enough = np.bincount(people[pool], minlength=people.max() + 1) >= max(labels)
        test = np.flatnonzero(new & away & enough[people])
        if not len(test):
            continue
        common = choose(everybody, train, folds=inner, seed=seed).fit(train)
        odds = common.log_odds(data.take(test))
        for place in range(len(labels)):
            terms["everybody"][place][test] = odds
        fitted = {}
        for name, choice in models.items():
            best = choose(choice, train, folds=inner, seed=seed)
            if best.name:
                chosen.setdefault(name, []).append(best.name)
            fitted[name] = best.fit(train)
        seen = np.concatenate([pool, test])
        opinions = {name: _opinions(candidate, data.take(seen)) for name, candidate in fitted.items()}
        own = choose(alone, train, folds=inner, seed=seed)
        for place, count in enumerate(labels):
            known = pool[(rank[pool] < count) & enough[people[pool]]]
            terms["alone"][place][test] = _alone(own, data, people, known, test) if count else 0.0
            for name, candidate in fitted.items():
                terms[name][place][test] = _met(candidate, data, known, test)
                told = np.isin(seen, known)
                told[len(pool) :] = False
                terms[_AS_KNOWN.format(name)][place][test] = _as_known(
                    opinions[name], data.y[seen], people[seen], told, np.arange(len(seen)) >= len(pool)
                )
        if watch is not None:
            watch(f"people, part {held + 1}")
    told = np.isfinite(terms["everybody"][0])
    if not told.any():
        raise OptionError(f"nobody has {max(labels)} judgements to learn from and one to predict")
    own_rows, member = data.take(told), np.unique(people[told], return_inverse=True)[1]
    size = np.bincount(member, own_rows.counts)
    sided = own_rows.counts * (own_rows.y != 0.5)

    def likelihood(name: str, place: int) -> Floats:
        own = log_likelihoods(terms[name][place][told], own_rows.y)
        return np.bincount(member, own_rows.counts * own) / size

    def right(name: str, place: int) -> Interval:
        own = 0.5 + np.sign(terms[name][place][told]) * (own_rows.y - 0.5)
        return _ratio(np.bincount(member, sided * own), np.bincount(member, sided))

    places = range(len(labels))
    base = "everybody"
    return NewPeople(
        tuple(labels),
        {name: [bootstrap_interval(likelihood(name, place)) for place in places] for name in names},
        {name: [right(name, place) for place in places] for name in names},
        {
            name: [bootstrap_interval(likelihood(name, place) - likelihood(base, place)) for place in places]
            for name in names
            if name != base
        },
        chosen,
        base,
        len(size),
    )


def _met(candidate: Candidate, data: Judgements, known: Rows, test: Rows) -> Floats:
    """Predictions for new people by a fitted model of people that is told some of their judgements."""
    tested = data.take(test)
    if not len(known):
        return candidate.log_odds(tested)
    told = data.take(known)
    # The model is fitted again for every number of labels, and must not remember the last one's people.
    model = candidate.model
    people, mixtures = model.annotators_, model.mixtures_
    try:
        model.fit_annotators(told.options(candidate.columns), told.y, told.weights, annotators=told.annotators)
        return candidate.log_odds(tested)
    finally:
        model.annotators_, model.mixtures_ = people, mixtures


def _opinions(candidate: Candidate, data: Judgements) -> Floats:
    """`[people, n]`, what each person whom a model knows makes of comparisons."""
    where = data.contexts if _asks_where(candidate.model) else None
    found: Floats = candidate.model.decisions(data.options(candidate.columns), prompts=where)
    return found


def _as_known(opinions: Floats, y: Floats, people: Rows, known: NDArray[np.bool_], test: NDArray[np.bool_]) -> Floats:
    """Predictions for new people as for somebody like those whom the model knows."""
    odds = np.zeros(len(y))
    for person in np.unique(people[test]):
        own, told = test & (people == person), known & (people == person) & (y != 0.5)
        labels = torch.from_numpy((y[told] > 0.5).astype(np.int64))
        posterior = infer_context(torch.from_numpy(opinions[:, told].T), labels, _uniform(len(opinions))).posterior
        odds[own] = logit(np.clip(posterior.numpy() @ expit(opinions[:, own]), 1e-12, 1 - 1e-12))
    return odds[test]


def _uniform(count: int) -> torch.Tensor:
    return torch.full((count,), 1 / count, dtype=torch.float64)


def _alone(candidate: Candidate, data: Judgements, people: Rows, known: Rows, test: Rows) -> Floats:
    """Predictions for each new person by a model of that person's judgements alone."""
    odds = np.zeros(len(test))
    for person in np.unique(people[test]):
        rows = known[people[known] == person]
        own = people[test] == person
        # All ties say nothing but that the odds are even.
        if len(rows) and (data.y[rows] != 0.5).any():
            odds[own] = candidate.fit(data.take(rows)).log_odds(data.take(test[own]))
    return odds


def _running(names: Rows) -> Rows:
    """How often each name has come before."""
    seen: dict[int, int] = {}
    found = np.empty(len(names), dtype=np.int64)
    for place, name in enumerate(names.tolist()):
        found[place] = seen.get(name, 0)
        seen[name] = int(found[place]) + 1
    return found


def _asks_who(model: Any) -> bool:
    """Whether a model is of people."""
    return isinstance(unwrapped(model), IdealPoints)


def _asks_where(model: Any) -> bool:
    """Whether a model reads the prompt."""
    inner = unwrapped(model)
    return bool(getattr(inner, "gate", False)) or getattr(inner, "variant", "A") == "B"


def _people_of(model: Any) -> list[Hashable]:
    found: list[Hashable] = unwrapped(model).annotators_.tolist()
    return found


def _odds(model: Any, X: NDArray[Any], where: Floats | None = None, people: Sequence[Hashable] | None = None) -> Floats:
    given = {name: value for name, value in (("prompts", where), ("annotators", people)) if value is not None}
    if hasattr(model, "predict_log_proba"):
        log_p = model.predict_log_proba(X, **given)
        found: Floats = log_p[:, -1] - log_p[:, 0]
        return found
    return np.asarray(model.decision_function(X, **given), dtype=np.float64)


def _ratio(sums: NDArray[Any], sizes: NDArray[Any]) -> Interval:
    """Mean over all rows from the sums and sizes of clusters; clusters are resampled whole."""
    kept = sizes > 0
    return bootstrap_interval(
        np.column_stack([sums[kept], sizes[kept]]), lambda drawn: float(drawn[:, 0].sum() / drawn[:, 1].sum())
    )
