"""Dissection: which properties of responses a judge rewards, how alike judges are, and how a judge can be played.

For each judge and scenario a Bayesian logistic regression from differences in named properties to the judge's choice.
The sigmoid of a weight is the probability with which a response is preferred that is better in that property alone.

Source: Li et al. 2024, Dissecting Human and LLM Preferences (arXiv 2402.11296), and the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from prefkit.diagnostics.correlation import correlations
from prefkit.diagnostics.intervals import Interval
from prefkit.diagnostics.posterior import Posterior, Sampler, Values, fit_posterior
from prefkit.diagnostics.properties import PROPERTIES
from prefkit.errors import OptionError, PrefkitError, unknown
from prefkit.report import Plot, Table, bars

SIMILARITIES = ("pearson", "spearman", "normed_l1", "normed_l2")
Metric = Literal["pearson", "spearman", "normed_l1", "normed_l2"]
Side = Literal["A", "B"]


def preference_probability(features: Float[Tensor, "n d"], alpha: Float[Tensor, " d"]) -> Float[Tensor, " n"]:
    """Probability that the first response is preferred, sigmoid(features . alpha)."""
    return torch.sigmoid(features.to(alpha.dtype) @ alpha)


def fold_bounds(count: int, folds: int) -> list[tuple[int, int]]:
    """Which rows each fold holds out, `[start, stop)`, as in the authors' code: a few rows may be in none.

    Raises:
        PrefkitError: there are fewer rows than folds.
        OptionError: there are fewer than two folds.
    """
    if folds < 2:
        raise OptionError(f"folds must be at least 2, got {folds}")
    if count < folds:
        raise PrefkitError(f"{folds} folds need at least {folds} rows, got {count}")
    starts = [int(fold / folds * count) for fold in range(folds)]
    return [(start, start + int(count / folds)) for start in starts]


class Degree(NamedTuple):
    """How much each property is preferred, in percent; 50 is indifferent.

    Args:
        degree: `[scenarios, d]`.
        scenario_average: `[d]`.
    """

    degree: Values
    scenario_average: Values


def degree_of_preference(alpha: ArrayLike) -> Degree:
    """100 sigmoid(alpha), averaged over scenarios after the sigmoid.

    Args:
        alpha: `[scenarios, d]`, weights.
    """
    weights = np.atleast_2d(np.asarray(alpha, dtype=np.float64))
    degree = 100 * _sigmoid(weights)
    return Degree(degree, degree.mean(0))


def ranked_properties(
    average: ArrayLike, properties: Sequence[str] = PROPERTIES, k: int = 3
) -> tuple[list[str], list[str]]:
    """The k most preferred properties, best first, and the k least preferred, worst first.

    Raises:
        PrefkitError: there is not one value a property.
    """
    values = np.asarray(average, dtype=np.float64)
    if values.shape != (len(properties),):
        raise PrefkitError(f"one value a property is needed ({len(properties)}), got shape {values.shape}")
    order = np.argsort(values, kind="stable")
    return [properties[i] for i in order[::-1][:k]], [properties[i] for i in order[:k]]


def judge_similarity(alpha_1: ArrayLike, alpha_2: ArrayLike, metric: Metric = "pearson") -> float:
    """Mean over scenarios of how alike two judges' weights are.

    Args:
        alpha_1: `[scenarios, d]`, weights of one judge.
        alpha_2: `[scenarios, d]`, of the other.
        metric: `pearson` (the paper's) or `spearman` correlation, or minus the L1 or L2 distance a property.

    Raises:
        OptionError: the metric is unknown.
        PrefkitError: shapes differ.
    """
    if metric not in SIMILARITIES:
        raise OptionError(unknown("similarity", metric, SIMILARITIES))
    one, two = (np.atleast_2d(np.asarray(alpha, dtype=np.float64)) for alpha in (alpha_1, alpha_2))
    if one.shape != two.shape:
        raise PrefkitError(f"judges are compared on the same scenarios and properties, got {one.shape} and {two.shape}")
    if metric in ("pearson", "spearman"):
        return float(np.mean([getattr(correlations(a, b), metric) for a, b in zip(one, two, strict=True)]))
    order = 1 if metric == "normed_l1" else 2
    return float(-np.linalg.norm(one - two, ord=order, axis=1).mean() / one.shape[1])


def group_similarity(judges: Mapping[str, ArrayLike], groups: Mapping[str, str], metric: Metric = "pearson") -> Table:
    """Mean similarity over pairs of judges, within and across groups.

    Args:
        judges: weights `[scenarios, d]` by judge.
        groups: the group of each judge.
        metric: see `judge_similarity`.
    """
    names = list(judges)
    found: dict[tuple[str, str], list[float]] = {}
    for place, one in enumerate(names):
        for two in names[place + 1 :]:
            key = tuple(sorted((groups[one], groups[two])))
            found.setdefault((key[0], key[1]), []).append(judge_similarity(judges[one], judges[two], metric))
    rows = [[*key, float(np.mean(values)), len(values)] for key, values in sorted(found.items())]
    return Table(["group", "group ", f"mean {metric}", "pairs of judges"], rows, "Similarity of judges")


# --- labels of judges


def swap_and_average_labels(scores_ab: ArrayLike, scores_ba: ArrayLike) -> tuple[list[Side], int]:
    """A judge's choices over both orders of presentation.

    Args:
        scores_ab: `[n, 2]`, scores of the first and second slot when A is shown first.
        scores_ba: `[n, 2]`, the same when B is shown first: its first column belongs to B.

    Returns:
        A where its sum is strictly larger, else B; and how many sums were equal.

    Raises:
        PrefkitError: shapes differ.
    """
    ab, ba = np.asarray(scores_ab, dtype=np.float64), np.asarray(scores_ba, dtype=np.float64)
    if ab.shape != ba.shape or ab.ndim != 2 or ab.shape[1] != 2:
        raise PrefkitError(f"scores must be [n, 2] in both orders, got {ab.shape} and {ba.shape}")
    a, b = ab[:, 0] + ba[:, 1], ab[:, 1] + ba[:, 0]
    return ["A" if more else "B" for more in a > b], int((a == b).sum())


def label_with_judge(
    logprobs: Callable[[str, str, str], tuple[float, float]],
    pairs: Sequence[tuple[str, str, str]],
    *,
    both_orders: bool = True,
) -> tuple[list[Side], int]:
    """Labels of a judge that says how probable the first and the second slot are.

    Args:
        logprobs: from query and two responses in the order shown to the log-probabilities of `A` and `B` as the first
            token of the answer.
        pairs: query, response A and response B of each.
        both_orders: ask in both orders and add up; else A first only.

    Returns:
        As `swap_and_average_labels`.
    """
    ab = [logprobs(query, a, b) for query, a, b in pairs]
    ba = [logprobs(query, b, a) for query, a, b in pairs] if both_orders else [(0.0, 0.0)] * len(pairs)
    return swap_and_average_labels(np.array(ab).reshape(-1, 2), np.array(ba).reshape(-1, 2))


class Manipulation(NamedTuple):
    """Labels that pull a policy towards a judge, or away from it.

    Args:
        keep: `[n]`, pairs on which the judge is not undecided.
        labels: which response to prefer, of every pair.
    """

    keep: NDArray[np.bool_]
    labels: list[Side]


def manipulation_labels(
    probabilities: ArrayLike, *, margin: float = 0.15, direction: Literal["toward", "against"] = "toward"
) -> Manipulation:
    """Labels for training a policy to please a judge, or to displease it.

    Args:
        probabilities: `[n]`, that the judge prefers A.
        margin: least distance from one half, in [0, 0.5).
        direction: towards the judge's preference, or against it.

    Raises:
        OptionError: an option is out of range.
        PrefkitError: a probability lies outside [0, 1].

    Source: section 4.3.2.
    """
    if not 0 <= margin < 0.5:
        raise OptionError(f"margin must lie in [0, 0.5), got {margin}")
    if direction not in ("toward", "against"):
        raise OptionError(f"direction must be 'toward' or 'against', got {direction!r}")
    p = np.asarray(probabilities, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise PrefkitError("probabilities must lie in [0, 1]")
    wanted = (p > 0.5) == (direction == "toward")
    return Manipulation(np.abs(p - 0.5) > margin, ["A" if a else "B" for a in wanted])


def system_message(properties: Sequence[str], *, avoid: bool = False) -> str:
    """A system message that asks a model for properties (or to avoid them): manipulation without training.

    Raises:
        PrefkitError: there are no properties.
    """
    if not properties:
        raise PrefkitError("a system message needs at least one property")
    listed = "\n".join(f"- {name}" for name in properties)
    how = "must not show" if avoid else "must show"
    return f"Answer the user. Your answers {how} each of these properties as far as possible:\n{listed}"


# --- the estimator


@dataclass(frozen=True)
class _Fitted:
    """One scenario: the mean of the folds' means, their accuracy, and the posterior of all rows."""

    weights: Values
    accuracy: float
    posterior: Posterior
    rows: int


class PreferenceDissection:
    """Preferences decomposed over named properties.

    Args:
        properties: names of the features, in their order.
        scenarios: kinds of queries that are fitted apart; those of the data by default.
        prior_scale: of the Laplace prior, above 0.
        folds: the weights are the mean over so many fits, each without a fold, which is predicted.
        sampler: see `fit_posterior`, as the following.
        draws: steps of each chain.
        warmup: steps before.
        chains: number of chains.
        seed: fixes the order of the rows and the draws.

    Attributes:
        scenarios_: the scenarios that were fitted.
        weights_: `[scenarios, d]`.
        accuracies_: of each scenario, on the rows held out.
        posteriors_: of all rows of each scenario.

    Raises:
        OptionError: an option is out of range.
    """

    def __init__(
        self,
        properties: Sequence[str] = PROPERTIES,
        scenarios: Sequence[str] | None = None,
        prior_scale: float = 0.1,
        folds: int = 10,
        sampler: Sampler = "nuts",
        draws: int = 2000,
        warmup: int = 500,
        chains: int = 4,
        seed: int = 0,
    ) -> None:
        if not prior_scale > 0:
            raise OptionError(f"prior_scale must be greater than 0, got {prior_scale}")
        if folds < 2:
            raise OptionError(f"folds must be at least 2, got {folds}")
        self.properties, self.scenarios = tuple(properties), scenarios
        self.prior_scale, self.folds, self.sampler = prior_scale, folds, sampler
        self.draws, self.warmup, self.chains, self.seed = draws, warmup, chains, seed
        self._fitted: dict[str, _Fitted] = {}

    def fit(self, features: ArrayLike, labels: ArrayLike, scenario: Sequence[str] | None = None) -> Self:
        """Fit every scenario.

        Args:
            features: `[n, d]`, in [-1, 1]: how A differs from B.
            labels: `[n]`, 1 where A was preferred, else 0.
            scenario: the scenario of each pair; one for all by default.

        Raises:
            PrefkitError: shapes do not fit, a feature is out of range, a label not 0 or 1, or a scenario has fewer
                rows than folds.

        Warns:
            UserWarning: a scenario has labels of one kind only, or chains disagree.
        """
        x, y = self._features(features), np.asarray(labels)
        if y.shape != x.shape[:1] or not np.isin(y, (0, 1)).all():
            raise PrefkitError(f"labels must be 0 or 1, one for each of {len(x)} pairs")
        names = np.array(["all"] * len(x) if scenario is None else [str(name) for name in scenario])
        if len(names) != len(x):
            raise PrefkitError(f"each pair has one scenario: got {len(names)} for {len(x)} pairs")
        self._fitted = {}
        for name in self.scenarios if self.scenarios is not None else sorted(set(names.tolist())):
            own = names == name
            if own.sum() < self.folds:
                raise PrefkitError(
                    f"scenario '{name}' has {int(own.sum())} pairs; {self.folds} folds need at least {self.folds}"
                )
            self._fitted[name] = self._fit_one(x[own], y[own])
        return self

    def _fit_one(self, x: Values, y: NDArray[Any]) -> _Fitted:
        order = np.random.default_rng(self.seed).permutation(len(x))
        x, y = x[order], y[order]
        means, accuracies = [], []
        for start, stop in fold_bounds(len(x), self.folds):
            kept = np.ones(len(x), dtype=bool)
            kept[start:stop] = False
            mean = self._posterior(x[kept], y[kept]).mean
            means.append(mean)
            accuracies.append(float(((x[start:stop] @ mean > 0) == y[start:stop]).mean()))
        return _Fitted(np.mean(means, axis=0), float(np.mean(accuracies)), self._posterior(x, y), len(x))

    def _posterior(self, x: Values, y: NDArray[Any]) -> Posterior:
        return fit_posterior(
            x,
            y,
            scale=self.prior_scale,
            sampler=self.sampler,
            warmup=self.warmup,
            draws=self.draws,
            chains=self.chains,
            seed=self.seed,
        )

    @property
    def scenarios_(self) -> tuple[str, ...]:
        """The scenarios that were fitted."""
        return tuple(self._checked())

    @property
    def weights_(self) -> Values:
        """Weights, `[scenarios, d]`."""
        return np.stack([one.weights for one in self._checked().values()])

    @property
    def accuracies_(self) -> dict[str, float]:
        """Accuracy on rows held out, by scenario."""
        return {name: one.accuracy for name, one in self._checked().items()}

    @property
    def posteriors_(self) -> dict[str, Posterior]:
        """The posterior of all rows, by scenario."""
        return {name: one.posterior for name, one in self._checked().items()}

    def predict_proba(self, features: ArrayLike, scenario: str | None = None) -> Values:
        """Probability that A is preferred, `[n]`.

        Args:
            features: `[n, d]`.
            scenario: whose weights; may be left out where there is one only.

        Raises:
            PrefkitError: nothing was fitted, or the scenario is unknown.
        """
        return _sigmoid(self._features(features) @ self._one(scenario).weights)

    def degree(self) -> Degree:
        """See `degree_of_preference`."""
        return degree_of_preference(self.weights_)

    def top(self, k: int = 3) -> tuple[list[str], list[str]]:
        """See `ranked_properties`."""
        return ranked_properties(self.degree().scenario_average, self.properties, k)

    def similarity(self, other: PreferenceDissection, metric: Metric = "pearson") -> float:
        """How alike another judge is; see `judge_similarity`.

        Raises:
            PrefkitError: the two were fitted on different scenarios or properties.
        """
        if self.scenarios_ != other.scenarios_ or self.properties != other.properties:
            raise PrefkitError("judges are compared on the same scenarios and properties; fit both on the same")
        return judge_similarity(self.weights_, other.weights_, metric)

    def explain(self, features: ArrayLike, scenario: str | None = None) -> Values:
        """What each property contributes to the log-odds of each pair, `[n, d]`: alpha_p x_p."""
        return self._features(features) * self._one(scenario).weights

    def table(self, scenario: str | None = None) -> Table:
        """One row a property: the degree of preference in percent, with its 95% interval, most preferred first."""
        one = self._one(scenario)
        low, high = one.posterior.interval()
        rows: list[list[Any]] = [
            [name, _percent(values, one.rows)]
            for name, *values in zip(self.properties, one.posterior.mean, low, high, strict=True)
        ]
        rows.sort(key=lambda row: -row[1].mean)
        return Table(["property", "preferred (%)"], rows, "Degree of preference")

    def plot(self, scenario: str | None = None) -> Plot:
        """The table as bars around 50."""
        rows = self.table(scenario).rows
        return bars({row[0]: row[1] for row in rows}, title="Degree of preference", x="preferred (%)", baseline=50)

    def _features(self, features: ArrayLike) -> Values:
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.properties):
            raise PrefkitError(f"features must be [n, {len(self.properties)}], got {x.shape}")
        bad = np.argwhere(~((x >= -1) & (x <= 1)))
        if len(bad):
            row, column = bad[0]
            raise PrefkitError(
                f"features must lie in [-1, 1]: row {row}, '{self.properties[column]}' is {x[row, column]}"
            )
        return x

    def _checked(self) -> dict[str, _Fitted]:
        if not self._fitted:
            raise PrefkitError("nothing was fitted yet: call fit first")
        return self._fitted

    def _one(self, scenario: str | None) -> _Fitted:
        fitted = self._checked()
        if scenario is None and len(fitted) == 1:
            return next(iter(fitted.values()))
        if scenario is None or scenario not in fitted:
            raise PrefkitError(unknown("scenario", str(scenario), fitted))
        return fitted[scenario]


def _percent(weights: Sequence[float], rows: int) -> Interval:
    mean, low, high = (100 * float(_sigmoid(np.asarray(weight))) for weight in weights)
    return Interval(mean, low, high, rows)


def _sigmoid(values: Values) -> Values:
    return np.exp(-np.logaddexp(0.0, -values))
