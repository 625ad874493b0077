"""Strengths of options by maximum likelihood: Bradley-Terry, Thurstone, and rankings by Plackett and Luce.

Options are known by name, and each name has a strength (a leaderboard); or they are known by features, and a strength
is linear in them. Either way the same likelihoods are maximised by Newton's method with analytic derivatives, and the
inverse of the curvature gives standard errors.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import log_softmax, logsumexp
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from prefkit.errors import OptionError, PrefkitError, unknown
from prefkit.preference.estimator import PreferenceModel, check_positive, check_width, shares_of
from prefkit.preference.inputs import (
    Codes,
    Floats,
    check_features,
    check_some_preference,
    coded,
    codes_among,
    options_of,
    outcomes_of,
    pairs_of,
    total_by,
    weights_of,
)
from prefkit.preference.laws import BradleyTerryLaw, DavidsonLaw, Law, RaoKupperLaw, ThurstoneLaw
from prefkit.preference.leaderboard import Leaderboard, Records
from prefkit.preference.newton import (
    DENSE,
    Expansion,
    Matrix,
    Optimum,
    inverse,
    minimise,
    warn_unless_converged,
)

Ties: TypeAlias = Literal["half", "rao_kupper", "davidson"]

TIES: dict[str, Law] = {"half": BradleyTerryLaw(), "rao_kupper": RaoKupperLaw(), "davidson": DavidsonLaw()}

SEPARABLE_RIDGE = 0.01
"""Penalty of separable data, as a share of the curvature that the mean parameter has at 0."""

SEPARABLE = 1e-7
"""Data count as separable where some direction has lost all but this share of the curvature that it had at 0."""


# --- designs: how parameters make margins


class Pairs:
    """Comparisons of named items, each two of them once: a margin is the difference of two strengths."""

    def __init__(self, first: Codes, second: Codes, n: int) -> None:
        self.first, self.second, self.size, self.free = first, second, n, n
        if n > DENSE:
            # The pattern of the curvature never changes; where the weight of each two goes is found once.
            places, own = np.arange(len(first)), np.arange(n)
            ends = np.concatenate([first, second, own]), np.concatenate([second, first, own])
            origin = np.concatenate([places, places, len(first) + own])
            pattern = sp.coo_array((origin, ends), shape=(n, n)).tocsr()
            self.indices, self.indptr, self.origin = pattern.indices, pattern.indptr, pattern.data

    def margins(self, theta: Floats) -> Floats:
        """Strength of the first less that of the second."""
        return theta[self.first] - theta[self.second]

    def gather(self, values: Floats) -> Floats:
        """The transpose of `margins`."""
        return total_by(self.first, values, self.size) - total_by(self.second, values, self.size)

    def curvature(self, weights: Floats) -> Matrix:
        """The Laplacian of the graph of comparisons with these weights."""
        n = self.size
        degrees = total_by(self.first, weights, n) + total_by(self.second, weights, n)
        if n <= DENSE:
            cross = total_by(self.first * n + self.second, weights, n * n).reshape(n, n)
            return np.diag(degrees) - cross - cross.T
        values = np.concatenate([-weights, degrees])[self.origin]
        return sp.csr_array((values, self.indices, self.indptr), shape=(n, n))


class Differences:
    """Comparisons of features: a margin is linear in the difference of two vectors."""

    def __init__(self, matrix: Floats) -> None:
        self.matrix, self.size, self.free = matrix, matrix.shape[1], 0

    def margins(self, theta: Floats) -> Floats:
        """Inner products of the differences with the coefficients."""
        return self.matrix @ theta

    def gather(self, values: Floats) -> Floats:
        """The transpose of `margins`."""
        return self.matrix.T @ values

    def curvature(self, weights: Floats) -> Matrix:
        """The weighted Gram matrix."""
        found: Floats = self.matrix.T @ (self.matrix * weights[:, None])
        return found


# --- likelihoods


@dataclass
class PairLikelihood:
    """Outcomes of comparisons of two under a choice law, with a ridge penalty on the strengths.

    Args:
        design: from strengths to margins.
        law: from margins to probabilities; its parameter of ties comes last.
        shares: `[n, 3]`, weight of a win, a tie and a loss.
        ridge: half of it times the squared strengths is added.
    """

    design: Pairs | Differences
    law: Law
    shares: Floats
    ridge: float

    @property
    def free(self) -> int:
        """See `newton.Likelihood`."""
        return self.design.free

    @property
    def size(self) -> int:
        """Number of strengths."""
        return self.design.size

    def start(self) -> Floats:
        """All strengths equal."""
        return np.append(np.zeros(self.design.size), [self.law.start] * self.law.ties)

    def expand(self, theta: Floats) -> Expansion:
        """See `newton.Likelihood`."""
        strengths, tie = self._parts(theta)
        terms = self.law.terms(self.design.margins(strengths), tie, self.shares)
        gradient = self.design.gather(terms.margin) + self.ridge * strengths
        curvature = _with_ridge(self.design.curvature(terms.margin2), self.ridge)
        if self.law.ties:
            gradient = np.append(gradient, terms.tie)
            curvature = _bordered(curvature, self.design.gather(terms.cross), terms.tie2)
        return Expansion(terms.value + 0.5 * self.ridge * float(strengths @ strengths), gradient, curvature)

    def _parts(self, theta: Floats) -> tuple[Floats, float]:
        return (theta[:-1], float(theta[-1])) if self.law.ties else (theta, 0.0)


@dataclass
class ChoiceLikelihood:
    """Choices of the best of a set: -sum w log softmax(strengths of the set)[chosen].

    Args:
        sets: `[s, m]` codes of named items, or `[s, m, d]` features.
        mask: `[s, m]`, which places hold an option.
        chosen: `[s]`, place of the chosen option.
        weights: `[s]`.
        size: number of parameters.
        ridge: see `PairLikelihood`.
    """

    sets: NDArray[Any]
    mask: NDArray[np.bool_]
    chosen: Codes
    weights: Floats
    size: int
    ridge: float

    @property
    def free(self) -> int:
        """See `newton.Likelihood`."""
        return self.size if self.sets.ndim == 2 else 0

    def start(self) -> Floats:
        """All strengths equal."""
        return np.zeros(self.size)

    def expand(self, theta: Floats) -> Expansion:
        """See `newton.Likelihood`."""
        log_p = log_softmax(self._strengths(theta), axis=1)
        won = np.arange(len(log_p)), self.chosen
        value = 0.5 * self.ridge * float(theta @ theta) - float(self.weights @ log_p[won])
        p = np.exp(log_p)
        excess = p.copy()
        excess[won] -= 1
        gradient = self._gather(self.weights[:, None] * excess) + self.ridge * theta
        weighted = self.weights[:, None] * p
        curvature: Matrix
        if self.sets.ndim == 3:
            means = np.einsum("sm,smd->sd", p, self.sets)
            curvature = np.einsum("sm,smd,sme->de", weighted, self.sets, self.sets, optimize=True)
            curvature -= means.T @ (means * self.weights[:, None])
        else:
            rows = np.repeat(np.arange(len(p)), p.shape[1])[self.mask.ravel()]
            places = rows, self.sets[self.mask]
            shares = sp.csr_array((p[self.mask], places), shape=(len(p), self.size))
            joint = sp.csr_array((weighted[self.mask], places), shape=(len(p), self.size))
            curvature = sp.csr_array(sp.diags_array(self._gather(weighted)) - shares.T @ joint)
            if self.size <= DENSE:
                curvature = curvature.toarray()
        return Expansion(value, gradient, _with_ridge(curvature, self.ridge))

    def _strengths(self, theta: Floats) -> Floats:
        found = theta[self.sets] if self.sets.ndim == 2 else self.sets @ theta
        return np.where(self.mask, found, -np.inf)

    def _gather(self, values: Floats) -> Floats:
        if self.sets.ndim == 3:
            return np.asarray(np.einsum("sm,smd->d", values, self.sets))
        return total_by(self.sets[self.mask], values[self.mask], self.size)


def _with_ridge(curvature: Matrix, ridge: float) -> Matrix:
    if not ridge:
        return curvature
    if isinstance(curvature, np.ndarray):
        curvature[np.diag_indices_from(curvature)] += ridge
        return curvature
    return sp.csr_array(curvature + ridge * sp.eye_array(curvature.shape[0], format="csr"))


def _bordered(curvature: Matrix, border: Floats, corner: float) -> Matrix:
    if isinstance(curvature, np.ndarray):
        return np.block([[curvature, border[:, None]], [border[None], np.array([[corner]])]])
    column = sp.csr_array(border[:, None])
    return sp.csr_array(sp.block_array([[curvature, column], [column.T, sp.csr_array([[corner]])]], format="csr"))


def _aggregated(first: Codes, second: Codes, shares: Floats, n: int) -> tuple[Codes, Codes, Floats]:
    """One row for each two items that were compared: a leaderboard has many comparisons of few pairs."""
    swapped = first > second
    keys = np.where(swapped, second * n + first, first * n + second)
    pairs, slot = np.unique(keys, return_inverse=True)
    oriented = np.where(swapped[:, None], shares[:, ::-1], shares)
    totals = np.stack([total_by(slot, column, len(pairs)) for column in oriented.T], axis=1)
    return pairs // n, pairs % n, totals


def _record(outcomes: Floats) -> Floats:
    """`[n, 3]`: win, tie or loss of the first option; a soft label is shared between win and loss."""
    tie = outcomes == 0.5
    return np.stack([np.where(tie, 0.0, outcomes), tie, np.where(tie, 0.0, 1 - outcomes)], axis=1)


# --- which strengths the comparisons determine


def check_connected(winners: Codes, losers: Codes, names: NDArray[Any], ridge: float) -> float:
    """Whether maximum likelihood has an answer, from the graph of who beat whom; a tie is an edge both ways.

    Args:
        winners: `[edges]`, items.
        losers: `[edges]`, items that they beat.
        names: of the items.
        ridge: the penalty that was asked for.

    Returns:
        The penalty to use: what was asked for, or, with a warning, `SEPARABLE_RIDGE` (relative to the curvature at 0,
        returned as a negative number) where some items were never beaten by the others.

    Raises:
        PrefkitError: no comparison connects one part of the items with another, and there is no penalty; names the
            parts.

    Source: Ford 1957, Solution of a ranking problem from binary comparisons.
    """
    n = len(names)
    graph = sp.coo_array((np.ones(len(winners), dtype=np.int8), (winners, losers)), shape=(n, n)).tocsr()
    count, part = connected_components(graph, directed=False)
    if count > 1:
        parts = _listed(part, names)
        if not ridge:
            raise PrefkitError(
                f"no comparison connects {count} groups of items, so that their strengths cannot be compared: {parts}; "
                "fit each group alone, or set ridge above 0"
            )
        warnings.warn(
            f"only the penalty relates {count} groups of items that were never compared: {parts}", stacklevel=4
        )
        return ridge
    if ridge:
        return ridge
    count, part = connected_components(graph, directed=True, connection="strong")
    if count > 1:
        warnings.warn(
            f"the comparisons are separable: {count} groups of items, of which one wins every comparison with another "
            f"({_listed(part, names)}), would be infinitely far apart; a weak ridge penalty is used, set ridge to "
            "choose another",
            stacklevel=4,
        )
        return -SEPARABLE_RIDGE
    return 0.0


def _listed(part: NDArray[Any], names: NDArray[Any], most: int = 5) -> str:
    """Groups in words, small ones first: they are what one looks for."""
    groups = [names[part == label].tolist() for label in range(part.max() + 1)]
    shown = []
    for group in sorted(groups, key=len)[:most]:
        more = f" and {len(group) - most} more" if len(group) > most else ""
        shown.append("{" + ", ".join(map(str, group[:most])) + more + "}")
    return "; ".join(shown) + (f"; and {len(groups) - most} more groups" if len(groups) > most else "")


def _is_separable(optimum: Optimum, at_start: Matrix) -> bool:
    """Whether the curvature has vanished in some direction in which it was not 0 to begin with."""
    assert isinstance(at_start, np.ndarray)
    assert isinstance(optimum.expansion.curvature, np.ndarray)
    size = at_start.shape[0]
    root = np.linalg.cholesky(at_start)
    scaled = np.linalg.solve(root, np.linalg.solve(root, optimum.expansion.curvature).T)
    return bool(np.linalg.eigvalsh((scaled + scaled.T) / 2)[0] < SEPARABLE) and size > 0


# --- estimators


class StrengthModel(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no annotations
    """Options with strengths: what the estimators of this module share.

    Attributes:
        coef_: `[items]`, strengths with mean 0, or `[d]`, coefficients of the features; in log-odds (Thurstone: in
            standard deviations of the difference of two utilities).
        items_: `[items]`, names; only of models of named items.
        n_features_in_: d; only of models of features.
        ridge_: the penalty that was used.
        n_iter_: Newton steps.
        log_likelihood_: of the data, without the penalty, in nats.
    """

    ridge: float
    coef_: Floats
    items_: NDArray[Any]
    n_features_in_: int
    ridge_: float
    n_iter_: int
    log_likelihood_: float

    @property
    def covariance_(self) -> Floats:
        """Covariance of `coef_`, the inverse of the curvature of the penalised likelihood.

        Strengths of items are relative to their mean. It is computed when it is first asked for: for many items it is
        large (8 bytes times their square).
        """
        check_is_fitted(self)
        if not hasattr(self, "_covariance"):
            size = len(self.coef_)
            self._covariance: Floats = inverse(self._information, size if hasattr(self, "items_") else 0)[:size, :size]
        return self._covariance

    @property
    def standard_errors_(self) -> Floats:
        """Standard errors of `coef_`."""
        found: Floats = np.sqrt(np.clip(np.diagonal(self.covariance_), 0, None))
        return found

    def difference(self, first: Any, second: Any) -> tuple[float, float]:
        """How much stronger one item is than another, and the standard error of that.

        Args:
            first: name of an item.
            second: name of another.

        Raises:
            PrefkitError: a name was in no comparison.
            OptionError: the model is one of features.
        """
        i, j = codes_among(np.array([[first, second]], dtype=object), self._names())[0]
        spread = self.covariance_[i, i] + self.covariance_[j, j] - 2 * self.covariance_[i, j]
        return float(self.coef_[i] - self.coef_[j]), float(np.sqrt(max(spread, 0.0)))

    def strengths(self, X: Any) -> Floats:
        """`[n, k]`, strength of every option of every row: a reward.

        Args:
            X: names `[n, k]` or features `[n, k, d]`.
        """
        check_is_fitted(self)
        array = options_of(X)
        check_width(self, array)
        if array.ndim == 3:
            found: Floats = array @ self.coef_
            return found
        return self.coef_[codes_among(array, self.items_)]

    def leaderboard(self, confidence: float = 0.95) -> Leaderboard:
        """The items in the order of their strengths, with intervals.

        Args:
            confidence: coverage of each interval, in (0, 1).

        Raises:
            OptionError: the model is one of features, or the confidence is out of range.
        """
        return Leaderboard.of(self._names(), self.coef_, self.covariance_, self._records, confidence)

    def _names(self) -> NDArray[Any]:
        check_is_fitted(self)
        if not hasattr(self, "items_"):
            raise OptionError("a model of features knows no items: fit it to names of options")
        return self.items_

    def _fit(self, likelihood: PairLikelihood | ChoiceLikelihood, penalty: float, max_iter: int) -> Floats:
        """Maximise a likelihood, and keep what is common to all; returns all parameters.

        Args:
            likelihood: without a penalty as yet.
            penalty: see `check_connected`.
            max_iter: Newton steps.
        """
        start = likelihood.start()
        at_start = likelihood.expand(start).curvature
        relative = float(at_start.diagonal()[: likelihood.size].mean())
        likelihood.ridge = -penalty * relative if penalty < 0 else penalty
        optimum = minimise(likelihood, start, max_iter=max_iter)
        if not likelihood.free and not likelihood.ridge and _is_separable(optimum, at_start):
            warnings.warn(
                "the comparisons are separable: a combination of features never contradicts an outcome, so that its "
                "coefficient would be infinite; a weak ridge penalty is used, set ridge to choose another",
                stacklevel=3,
            )
            likelihood.ridge = SEPARABLE_RIDGE * relative
            optimum = minimise(likelihood, start, max_iter=max_iter)
        warn_unless_converged(optimum)
        self.ridge_, self.n_iter_ = likelihood.ridge, optimum.iterations
        self._information = optimum.expansion.curvature
        self.__dict__.pop("_covariance", None)
        penalised = optimum.theta[: likelihood.size]
        self.log_likelihood_ = 0.5 * self.ridge_ * float(penalised @ penalised) - optimum.expansion.value
        return optimum.theta

    def _forget(self) -> None:
        """Drop what a former fit has learned, which may have been of another kind of input."""
        for name in ("items_", "n_features_in_", "_covariance", "_records"):
            self.__dict__.pop(name, None)


class _PairModel(StrengthModel, PreferenceModel):
    """Comparisons of two under a choice law."""

    max_iter: int
    tie_: float

    @property
    @abstractmethod
    def _law(self) -> Law:
        """From margins to probabilities."""

    def check_parameters(self) -> None:
        """See `PreferenceModel`."""
        check_positive("ridge", self.ridge, zero=True)
        _ = self._law

    def _fit_pairs(self, X: Any, y: ArrayLike | None, sample_weight: ArrayLike | None) -> Self:
        self.check_parameters()
        law = self._law
        array = pairs_of(X)
        outcomes, weights = outcomes_of(y, len(array)), weights_of(sample_weight, len(array))
        check_some_preference(outcomes, weights)
        self._forget()
        self.classes_ = np.array([0.0, 0.5, 1.0] if law.ties else [0.0, 1.0])
        shares = shares_of(outcomes, ties=law.ties) * weights[:, None]
        fitted = law
        if law.ties and not shares[:, 1].any():
            warnings.warn("no comparison is a tie: a tie is taken to be impossible", stacklevel=3)
            fitted = BradleyTerryLaw()
        penalty = self.ridge
        design: Pairs | Differences
        if array.ndim == 2:
            items = coded(array)
            first, second = items.codes.T
            self.items_ = items.names
            self._records = Records.of_pairs(first, second, weights[:, None] * _record(outcomes), len(items.names))
            first, second, shares = _aggregated(first, second, shares, len(items.names))
            penalty = self._connected(first, second, shares, items.names)
            design = Pairs(first, second, len(items.names))
        else:
            differences = array[:, 0] - array[:, 1]
            check_features(differences[weights > 0], self.ridge)
            design = Differences(differences)
            self.n_features_in_ = array.shape[2]
        theta = self._fit(PairLikelihood(design, fitted, shares, 0.0), penalty, self.max_iter)
        self.coef_ = theta[: design.size]
        never = 0.0 if isinstance(law, RaoKupperLaw) else -np.inf
        self.tie_ = float(theta[-1]) if fitted.ties else never
        return self

    def _connected(self, first: Codes, second: Codes, shares: Floats, names: NDArray[Any]) -> float:
        ahead, behind = shares[:, 0] + shares[:, 1] > 0, shares[:, 2] + shares[:, 1] > 0
        winners = np.concatenate([first[ahead], second[behind]])
        losers = np.concatenate([second[ahead], first[behind]])
        return check_connected(winners, losers, names, self.ridge)

    def decision_function(self, X: Any, **given: Any) -> Floats:
        """`[n]`, strength of the first option less that of the second."""
        strengths = self.strengths(self._options(X))
        return strengths[:, 0] - strengths[:, 1]

    def predict_log_proba(self, X: Any, **given: Any) -> Floats:
        """See `PreferenceModel`."""
        return self._law.log_probabilities(self.decision_function(X), self.tie_)


class BradleyTerry(_PairModel):
    """P(i is preferred to j) = sigmoid(strength_i - strength_j), with or without ties.

    Args:
        ties: "half" counts a tie as half a win of each; "rao_kupper" has a threshold within which options tie (`tie_`,
            at least 0); "davidson" lets equal options tie most (`tie_` is log nu).
        ridge: penalty, half of it times the sum of squared strengths: the prior precision of a MAP estimate. With 0,
            separable data are penalised weakly all the same, with a warning.
        max_iter: Newton steps.

    Source: Bradley and Terry 1952; ties: Rao and Kupper 1967, Davidson 1970.
    """

    def __init__(self, *, ties: Ties = "half", ridge: float = 0.0, max_iter: int = 100) -> None:
        self.ties = ties
        self.ridge = ridge
        self.max_iter = max_iter

    def fit(self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None, **given: Any) -> Self:
        """Fit to comparisons; see `PreferenceModel`.

        Raises:
            PrefkitError: the data are wrong, or do not connect the items.
            OptionError: a parameter is out of range.
        """
        return self._fit_pairs(X, y, sample_weight)

    @property
    def _law(self) -> Law:
        if self.ties not in TIES:
            raise OptionError(unknown("treatment of ties", str(self.ties), TIES))
        return TIES[self.ties]


class Thurstone(_PairModel):
    """P(i is preferred to j) = Phi(strength_i - strength_j); a tie is half a win of each.

    Strengths are in units of the standard deviation of the difference of two utilities, about 0.6 times those of
    `BradleyTerry`.

    Args:
        ridge: see `BradleyTerry`.
        max_iter: Newton steps.

    Source: Thurstone 1927, case V.
    """

    def __init__(self, *, ridge: float = 0.0, max_iter: int = 100) -> None:
        self.ridge = ridge
        self.max_iter = max_iter

    def fit(self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None, **given: Any) -> Self:
        """Fit to comparisons; see `PreferenceModel`.

        Raises:
            PrefkitError: the data are wrong, or do not connect the items.
            OptionError: a parameter is out of range.
        """
        return self._fit_pairs(X, y, sample_weight)

    @property
    def _law(self) -> Law:
        return ThurstoneLaw()


class PlackettLuce(StrengthModel):
    """Rankings as a series of choices, each of the best option that is left: P(best) = softmax(strengths).

    `X` is `[n, k]` names (shorter rankings end in None, or are shorter lists) or `[n, k, d]` features. `y` is `[n, k]`
    ranks, 0 being best; without it the options stand in their order, best first. Options of equal rank are not compared
    with each other, so a best-of-k choice has ranks 0, 1, 1, ..., and a ranking of the top m ends in a tie of the rest.
    Two options are `BradleyTerry`.

    Args:
        ridge: see `BradleyTerry`.
        max_iter: Newton steps.

    Source: Plackett 1975, The analysis of permutations; Luce 1959, Individual choice behavior.
    """

    def __init__(self, *, ridge: float = 0.0, max_iter: int = 100) -> None:
        self.ridge = ridge
        self.max_iter = max_iter

    def fit(self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None) -> Self:
        """Fit to rankings.

        Args:
            X: options.
            y: ranks.
            sample_weight: `[n]`, weight of each ranking.

        Raises:
            PrefkitError: the data are wrong, or do not connect the items.
            OptionError: a parameter is out of range.
        """
        check_positive("ridge", self.ridge, zero=True)
        array = options_of(X, ragged=True)
        ranks = _ranks_of(array, y)
        weights = weights_of(sample_weight, len(array))
        rows, chosen, mask = _stages(ranks)
        used = weights[rows] > 0
        rows, chosen, mask = rows[used], chosen[used], mask[used]
        if not len(rows):
            raise PrefkitError(f"all {len(array)} rankings are ties: nothing is preferred")
        self._forget()
        penalty = self.ridge
        if array.ndim == 2:
            items = coded(array)
            sets = items.codes[rows]
            winners = np.repeat(sets[np.arange(len(sets)), chosen], mask.sum(axis=1))
            losers = sets[mask]
            penalty = check_connected(winners, losers, items.names, self.ridge)
            self.items_ = items.names
            self._records = _records_of_rankings(items.codes, ranks, weights, len(items.names))
            size = len(items.names)
        else:
            sets, size = array[rows], array.shape[2]
            best = sets[np.arange(len(sets)), chosen]
            check_features(np.asarray((best[:, None] - sets)[mask], dtype=np.float64), self.ridge)
            self.n_features_in_ = size
        self.coef_ = self._fit(ChoiceLikelihood(sets, mask, chosen, weights[rows], size, 0.0), penalty, self.max_iter)
        return self

    def predict_proba(self, X: Any) -> Floats:
        """`[n, k]`, the probability of each option to be the best of its row; 0 where there is none."""
        found: Floats = np.exp(log_softmax(self._strengths(X), axis=1))
        return found

    def predict(self, X: Any) -> Codes:
        """`[n, k]`, the most probable ranking; -1 where there is no option."""
        strengths = self._strengths(X)
        ranks: Codes = np.argsort(np.argsort(-strengths, axis=1, kind="stable"), axis=1)
        return np.where(np.isfinite(strengths), ranks, -1)

    def score(self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None) -> float:
        """Share of ordered pairs, over all rankings, that the strengths order likewise; indifference is half right.

        Args:
            X: options.
            y: ranks.
            sample_weight: weight of each ranking.
        """
        strengths = self._strengths(X)
        ranks = _ranks_of(options_of(X, ragged=True), y)
        weights = weights_of(sample_weight, len(ranks))
        present = ranks >= 0
        above = (ranks[:, :, None] < ranks[:, None]) & present[:, :, None] & present[:, None]
        finite = np.where(present, strengths, 0.0)
        right = np.heaviside(finite[:, :, None] - finite[:, None], 0.5)
        total = float((weights[:, None, None] * above).sum())
        return float((weights[:, None, None] * right * above).sum()) / total if total else float("nan")

    def log_likelihood(self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None) -> float:
        """Mean log-likelihood of a ranking, in nats.

        Args:
            X: options.
            y: ranks.
            sample_weight: weight of each ranking.
        """
        strengths = self._strengths(X)
        ranks = _ranks_of(options_of(X, ragged=True), y)
        weights = weights_of(sample_weight, len(ranks))
        rows, chosen, mask = _stages(ranks)
        sets = np.where(mask, strengths[rows], -np.inf)
        losses = logsumexp(sets, axis=1) - sets[np.arange(len(sets)), chosen]
        return -float(weights[rows] @ losses) / float(weights.sum())

    def strengths(self, X: Any) -> Floats:
        """See `StrengthModel`; -inf where a ranking is shorter."""
        return self._strengths(X)

    def _strengths(self, X: Any) -> Floats:
        check_is_fitted(self)
        array = options_of(X, ragged=True)
        check_width(self, array)
        if array.ndim == 3:
            found: Floats = array @ self.coef_
            return found
        codes = codes_among(array, self.items_)
        return np.where(codes >= 0, self.coef_[codes], -np.inf)


def _ranks_of(array: NDArray[Any], y: ArrayLike | None) -> Codes:
    """`[n, k]` ranks, -1 where there is no option.

    Raises:
        PrefkitError: ranks do not fit the options; names the row.
    """
    absent = array == np.array(None) if array.dtype == object else np.zeros(array.shape[:2], dtype=bool)
    if array.ndim == 2:
        for row, names in enumerate(array.tolist()):
            present = [name for name in names if name is not None]
            if len(set(present)) < len(present) or len(present) < 2:
                raise PrefkitError(f"row {row}: a ranking must hold at least two different items, got {present}")
    if y is None:
        ranks = np.broadcast_to(np.arange(array.shape[1]), absent.shape)
    else:
        ranks = np.asarray(y)
        if ranks.shape != absent.shape:
            raise PrefkitError(f"y must be ranks of shape {absent.shape}, 0 being best, got shape {ranks.shape}")
        wrong = np.argwhere(~absent & ~((ranks >= 0) & (ranks == np.floor(ranks))))
        if len(wrong):
            row, place = wrong[0]
            raise PrefkitError(f"row {row}: rank {place} must be a whole number from 0 (best), got {ranks[row, place]}")
    return np.where(absent, -1, ranks).astype(np.int64)


def _stages(ranks: Codes) -> tuple[Codes, Codes, NDArray[np.bool_]]:
    """Choices that rankings consist of: the ranking, the place of what is chosen, and `[s, k]` what it is chosen from.

    Each option is chosen from itself and all that are ranked below it; what nothing is ranked below is left out.
    """
    found = []
    for place in range(ranks.shape[1]):
        own = ranks[:, place]
        below = ranks > own[:, None]
        rows = np.flatnonzero((own >= 0) & below.any(axis=1))
        below[:, place] = True
        found.append((rows, np.full(len(rows), place), below[rows]))
    rows, chosen, mask = (np.concatenate(column) for column in zip(*found, strict=True))
    return rows, chosen, mask


def _records_of_rankings(codes: Codes, ranks: Codes, weights: Floats, n: int) -> Records:
    """Wins, ties and losses in all pairs of each ranking."""
    present = codes >= 0
    others = present[:, :, None] & present[:, None] & ~np.eye(ranks.shape[1], dtype=bool)

    def total(compared: NDArray[np.bool_]) -> Floats:
        counts = (compared & others).sum(axis=2) * weights[:, None]
        return total_by(codes[present], counts[present], n)

    own, other = ranks[:, :, None], ranks[:, None]
    return Records(total(own < other), total(own == other), total(own > other))
