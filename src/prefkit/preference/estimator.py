"""What all preference models share: scikit-learn's conventions, outcomes, accuracy and likelihood.

A constructor stores its parameters and does nothing else; `fit` checks them, learns, and stores what it learned in
attributes that end in an underscore. So models can be cloned, searched over and cross-validated.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from prefkit.errors import OptionError
from prefkit.preference.inputs import Floats, outcomes_of, pairs_of, weights_of


class PreferenceModel(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no annotations
    """A model of comparisons of two options.

    `X` is `[n, 2]`, names of the two options of each comparison, or `[n, 2, d]`, their features; which of the two a
    model takes, it says itself. `y` is the probability that the first option is preferred: 1, 0, 0.5 for a tie, or a
    soft label between; without `y` the first one always is.

    What a subclass needs to know besides X (who judged, which prompt) are further arguments by keyword.

    Attributes:
        classes_: the outcomes in the order of the columns of `predict_proba`: 0 and 1, or 0, 0.5 and 1 where ties are
            an outcome of their own.
    """

    classes_: Floats

    @abstractmethod
    def fit(self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None, **given: Any) -> Self:
        """Fit to comparisons.

        Args:
            X: comparisons.
            y: outcomes.
            sample_weight: `[n]`, weight of each row, at least 0.
            given: see the class.

        Raises:
            PrefkitError: the data are wrong; names the row.
            OptionError: a parameter is out of range.
        """

    @abstractmethod
    def decision_function(self, X: Any, **given: Any) -> Floats:
        """`[n]`, how much more the first option is preferred: 0 is indifference; log-odds for logistic models."""

    @abstractmethod
    def predict_log_proba(self, X: Any, **given: Any) -> Floats:
        """Logarithm of `predict_proba`, exact where that is 0 or 1 but for rounding."""

    def predict_proba(self, X: Any, **given: Any) -> Floats:
        """`[n, classes]`, probability of each outcome; the last column is that the first option is preferred."""
        found: Floats = np.exp(self.predict_log_proba(X, **given))
        return found

    def predict(self, X: Any, **given: Any) -> Floats:
        """`[n]`, the most probable outcome."""
        best: NDArray[np.int64] = self.predict_log_proba(X, **given).argmax(axis=1)
        return self.classes_[best]

    def score(self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None, **given: Any) -> float:
        """Accuracy: how often the preferred option is the one that the model prefers.

        Where ties are half a win, they are left out, a soft label counts for both sides, and indifference of the model
        is half right. Where ties are an outcome, the most probable one must be it.

        Args:
            X: comparisons.
            y: outcomes.
            sample_weight: weight of each row.
            given: see the class.
        """
        check_is_fitted(self)
        n = len(X)
        outcomes, weights = outcomes_of(y, n), weights_of(sample_weight, n)
        if len(self.classes_) > 2:
            right = (self.predict(X, **given) == outcomes).astype(float)
        else:
            lead = np.sign(self.decision_function(X, **given))
            right = 0.5 + lead * (outcomes - 0.5)
            weights = weights * (outcomes != 0.5)
        return float(weights @ right / weights.sum()) if weights.sum() > 0 else float("nan")

    def log_likelihood(
        self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None, **given: Any
    ) -> float:
        """Mean log-likelihood of the outcomes, in nats a comparison; -log 2 is a coin's.

        A soft label counts as that share of a win and the rest of a loss.

        Args:
            X: comparisons.
            y: outcomes.
            sample_weight: weight of each row.
            given: see the class.
        """
        check_is_fitted(self)
        n = len(X)
        shares = shares_of(outcomes_of(y, n), ties=len(self.classes_) > 2)[:, ::-1]
        log_p = self.predict_log_proba(X, **given)
        if len(self.classes_) == 2:
            shares = shares[:, [0, 2]]
        terms = np.where(shares > 0, shares * np.where(shares > 0, log_p, 0.0), 0.0).sum(axis=1)
        weights = weights_of(sample_weight, n)
        return float(weights @ terms / weights.sum())

    def _options(self, X: Any) -> NDArray[Any]:
        """Comparisons to predict, checked against those that were fitted."""
        check_is_fitted(self)
        array = pairs_of(X, self._feature_names())
        check_width(self, array)
        return array

    def _feature_names(self) -> Sequence[str] | None:
        """Names of features for messages, of models that are told them."""
        names: Sequence[str] | None = getattr(self, "feature_names", None)
        return names


def shares_of(outcomes: Floats, *, ties: bool) -> Floats:
    """`[n, 3]`, the share of a win, a tie and a loss of the first option in each outcome.

    Args:
        outcomes: in [0, 1].
        ties: whether one half is a tie; otherwise it is half a win and half a loss.

    Raises:
        OptionError: a soft label where ties are an outcome of their own.
    """
    if not ties:
        return np.stack([outcomes, np.zeros_like(outcomes), 1 - outcomes], axis=1)
    soft = np.flatnonzero(~np.isin(outcomes, (0.0, 0.5, 1.0)))
    if len(soft):
        raise OptionError(
            f"row {soft[0]}: a model of ties takes outcomes 0, 0.5 and 1, got {outcomes[soft[0]]}; soft labels need "
            "ties='half'"
        )
    return np.stack([outcomes == 1, outcomes == 0.5, outcomes == 0], axis=1).astype(float)


def check_width(model: Any, array: NDArray[Any]) -> None:
    """Refuse names for a model of features, features for one of names, and features of another size.

    Raises:
        OptionError: says which of them.
    """
    wanted = getattr(model, "n_features_in_", None)
    if array.ndim == 3 and wanted is None:
        raise OptionError("the model was fitted to names of options, got features")
    if array.ndim == 2 and wanted is not None:
        raise OptionError(f"the model was fitted to {wanted} features, got names of options")
    if array.ndim == 3 and array.shape[2] != wanted:
        raise OptionError(f"the model was fitted to {wanted} features, got {array.shape[2]}")


def check_positive(name: str, value: float, *, zero: bool = False) -> None:
    """Refuse a parameter that is not positive (or, with `zero`, negative).

    Raises:
        OptionError: names it.
    """
    if not (value >= 0 if zero else value > 0) or not np.isfinite(value):
        raise OptionError(f"{name} must be {'at least' if zero else 'greater than'} 0, got {value}")
