"""Around any preference model: ensembles, which say what the data leave open, and temperatures, which calibrate."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_expit
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from prefkit.errors import OptionError, PrefkitError
from prefkit.objectives import PreferenceStrength, preference_strength
from prefkit.preference.estimator import PreferenceModel
from prefkit.preference.inputs import Floats, outcomes_of, pairs_of, weights_of

TEMPERATURES = (0.01, 1000.0)
"""Range of temperatures."""


class Ensemble(PreferenceModel):
    """Several fits of one model, whose probabilities are averaged; where they differ, the data leave it open.

    Args:
        estimator: the model; its clones differ in `seed`, if it has one.
        members: number of fits, at least 2.
        bootstrap: fit each with random weights of the rows (the Bayesian bootstrap, which leaves no item out), so that
            they differ as fits to other data would; False fits all to the same data.
        seed: of the weights and the members.

    Attributes:
        members_: the fitted models.

    Source: Lakshminarayanan et al. 2017, Simple and scalable predictive uncertainty estimation using deep ensembles;
        Rubin 1981, The Bayesian bootstrap.
    """

    def __init__(self, estimator: PreferenceModel, *, members: int = 5, bootstrap: bool = True, seed: int = 0) -> None:
        self.estimator = estimator
        self.members = members
        self.bootstrap = bootstrap
        self.seed = seed

    def fit(self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None, **given: Any) -> Self:
        """Fit every member; see `PreferenceModel`.

        Raises:
            PrefkitError: the data are wrong; names the row.
            OptionError: a parameter is out of range.
        """
        if self.members < 2:
            raise OptionError(f"members must be at least 2, got {self.members}")
        seeded = "seed" in self.estimator.get_params(deep=False)
        if not seeded and not self.bootstrap:
            raise OptionError("fits of a model without a seed to the same data are the same: set bootstrap=True")
        array = pairs_of(X)
        weights = weights_of(sample_weight, len(array))
        rng = np.random.default_rng(self.seed)
        self.members_ = []
        for number in range(self.members):
            member = clone(self.estimator)
            if seeded:
                member.set_params(seed=self.estimator.get_params(deep=False)["seed"] + number)
            drawn = weights * rng.exponential(size=len(array)) if self.bootstrap else weights
            self.members_.append(member.fit(array, y, drawn, **given))
        self.classes_ = self.members_[0].classes_
        return self

    def predict_log_proba(self, X: Any, **given: Any) -> Floats:
        """The logarithm of the mean probability; see `PreferenceModel`."""
        check_is_fitted(self)
        every = np.stack([member.predict_log_proba(X, **given) for member in self.members_])
        found: Floats = np.logaddexp.reduce(every, axis=0) - np.log(len(every))
        return found

    def decision_function(self, X: Any, **given: Any) -> Floats:
        """`[n]`, log-odds of the mean probabilities, ties left out."""
        log_p = self.predict_log_proba(X, **given)
        found: Floats = log_p[:, -1] - log_p[:, 0]
        return found

    def decisions(self, X: Any, **given: Any) -> Floats:
        """`[members, n]`, what each member makes of the comparisons.

        Args:
            X: comparisons.
            given: see the estimator.
        """
        check_is_fitted(self)
        return np.stack([member.decision_function(X, **given) for member in self.members_])

    def spread(self, X: Any, **given: Any) -> Floats:
        """`[n]`, standard deviation of the members' decisions.

        Args:
            X: comparisons.
            given: see the estimator.
        """
        found: Floats = self.decisions(X, **given).std(axis=0, ddof=1)
        return found


def vote_strength(
    model: PreferenceModel,
    X: Any,
    y: ArrayLike | None = None,
    *,
    members: int = 10,
    bootstrap: bool = False,
    folds: int | None = None,
    normalise: bool = False,
    seed: int = 0,
    **given: Any,
) -> PreferenceStrength:
    """The strength of each pair by a vote of several fits of one model.

    Args:
        model: what each member is a copy of. Without folds let it see the data once or twice: models that have
            memorised the labels agree with all of them, the wrong ones included.
        X: comparisons.
        y: outcomes, 0.5 counting as preferred.
        members: number of models, at least 2; see `Ensemble`.
        bootstrap: fit each with random weights of the rows; otherwise they differ by their seeds, in order and first
            weights.
        folds: score each pair by models that were not trained on it, in so many folds.
        normalise: see `preference_strength`.
        seed: of the weights and the folds.
        given: further arguments of the model, one entry a row.

    Raises:
        OptionError: members or folds is out of range, or the members would be the same.
        PrefkitError: the data are wrong; names the row.
    """
    array = pairs_of(X)
    n = len(array)
    outcomes = outcomes_of(y, n)
    if folds is not None and not 2 <= folds <= n:
        raise OptionError(f"folds must be from 2 to {n}, got {folds}")
    ensemble = Ensemble(model, members=members, bootstrap=bootstrap, seed=seed)
    part = np.random.default_rng(seed).permutation(n) % (folds or 1)
    ahead = np.empty((members, n))
    for fold in range(folds or 1):
        held = part == fold
        train = held if folds is None else ~held
        fitted = clone(ensemble).fit(array[train], outcomes[train], **take(given, train))
        ahead[:, held] = fitted.decisions(array[held], **take(given, held))
    scores = torch.from_numpy(np.where(outcomes >= 0.5, ahead, -ahead))
    return preference_strength(scores, torch.zeros_like(scores), normalise=normalise)


def fit_temperature(log_odds: ArrayLike, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None) -> float:
    """T under which sigmoid(log_odds / T) makes outcomes most likely; above 1 where a model was too sure.

    Args:
        log_odds: `[n]`, of held-out comparisons.
        y: outcomes, as for `PreferenceModel`.
        sample_weight: weight of each row.

    Raises:
        PrefkitError: the data are wrong, or every log-odds is 0.

    Source: Guo et al. 2017, On calibration of modern neural networks.
    """
    odds = np.asarray(log_odds, dtype=np.float64)
    outcomes, weights = outcomes_of(y, len(odds)), weights_of(sample_weight, len(odds))
    bad = np.flatnonzero(~np.isfinite(odds))
    if len(bad):
        raise PrefkitError(f"row {bad[0]}: log-odds must be a finite number, got {odds[bad[0]]}")
    if not odds.any():
        raise PrefkitError("every log-odds is 0: a temperature changes nothing")

    def loss(log_temperature: float) -> float:
        scaled = odds * np.exp(-log_temperature)
        return -float(weights @ (outcomes * log_expit(scaled) + (1 - outcomes) * log_expit(-scaled)))

    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), options={"xatol": 1e-8}).x))


class Temperature(NamedTuple):
    """A temperature, and what it is worth.

    Args:
        value: fitted to all rows.
        log_odds: `[n]`, each row's divided by the temperature that was fitted to the other half of the groups.
    """

    value: float
    log_odds: Floats


def cross_fitted_temperature(
    log_odds: ArrayLike,
    y: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    *,
    groups: ArrayLike,
    seed: int = 0,
) -> Temperature:
    """`fit_temperature` on all rows, with calibrated log-odds of rows that their own temperature has not seen.

    Args:
        log_odds: `[n]`, of comparisons that the model itself was not trained on.
        y: outcomes, as for `PreferenceModel`.
        sample_weight: weight of each row.
        groups: `[n]`, rows of one group (a prompt) go to the same half.
        seed: of the halves.

    Raises:
        PrefkitError: the data are wrong, there is one group only, or every log-odds of a half is 0.
    """
    odds = np.asarray(log_odds, dtype=np.float64)
    outcomes, weights = outcomes_of(y, len(odds)), weights_of(sample_weight, len(odds))
    names, own = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise PrefkitError(f"a temperature is tested on other groups than it is fitted to: {len(names)} is too few")
    half = np.isin(own, np.random.default_rng(seed).permutation(len(names))[: len(names) // 2])
    found = odds.copy()
    for part in (half, ~half):
        found[part] /= fit_temperature(odds[~part], outcomes[~part], weights[~part])
    return Temperature(fit_temperature(odds, outcomes, weights), found)


class Calibrated(PreferenceModel):
    """A model whose log-odds are divided by a temperature that held-out comparisons ask for.

    Args:
        estimator: the model, without ties as an outcome of their own.
        held_out: share of the rows, or of the `groups`, on which the temperature is fitted, not the model.
        seed: of the split.

    Attributes:
        estimator_: the fitted model.
        temperature_: the divisor.
    """

    def __init__(self, estimator: PreferenceModel, *, held_out: float = 0.2, seed: int = 0) -> None:
        self.estimator = estimator
        self.held_out = held_out
        self.seed = seed

    def fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        **given: Any,
    ) -> Self:
        """Fit the model to one part of the comparisons, and the temperature to the other.

        Args:
            X: comparisons.
            y: outcomes.
            sample_weight: weight of each row.
            groups: `[n]`, rows of one group (a prompt) go to the same part.
            given: further arguments of the model, one entry a row.

        Raises:
            PrefkitError: the data are wrong; names the row.
            OptionError: a parameter is out of range.
        """
        if not 0 < self.held_out < 1:
            raise OptionError(f"held_out must lie in (0, 1), got {self.held_out}")
        array = pairs_of(X)
        n = len(array)
        outcomes, weights = outcomes_of(y, n), weights_of(sample_weight, n)
        own = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        if len(own) != n:
            raise PrefkitError(f"groups must name the group of each row ({n} rows), got {len(own)}")
        order = np.random.default_rng(self.seed).permutation(own.max() + 1)
        count = round(self.held_out * len(order))
        if not 0 < count < len(order):
            raise PrefkitError(f"held_out = {self.held_out} of {len(order)} groups leaves one of the two parts empty")
        held = np.isin(own, order[:count])
        rest = ~held
        self.estimator_ = clone(self.estimator).fit(array[rest], outcomes[rest], weights[rest], **take(given, rest))
        if len(self.estimator_.classes_) > 2:
            raise OptionError("a temperature is for models without ties as an outcome: set ties='half'")
        odds = _log_odds(self.estimator_, array[held], take(given, held))
        self.temperature_ = fit_temperature(odds, outcomes[held], weights[held])
        self.classes_ = self.estimator_.classes_
        return self

    @classmethod
    def around(cls, fitted: PreferenceModel, temperature: float) -> Self:
        """A model that is fitted already, with a temperature that is known.

        Args:
            fitted: without ties as an outcome of their own.
            temperature: greater than 0.

        Raises:
            OptionError: the model has ties as an outcome, or the temperature is not positive.
        """
        check_is_fitted(fitted)
        if not temperature > 0:
            raise OptionError(f"temperature must be greater than 0, got {temperature}")
        if len(fitted.classes_) > 2:
            raise OptionError("a temperature is for models without ties as an outcome: set ties='half'")
        made = cls(fitted)
        made.estimator_, made.temperature_, made.classes_ = fitted, temperature, fitted.classes_
        return made

    def decision_function(self, X: Any, **given: Any) -> Floats:
        """`[n]`, calibrated log-odds."""
        check_is_fitted(self)
        return _log_odds(self.estimator_, X, given) / self.temperature_

    def predict_log_proba(self, X: Any, **given: Any) -> Floats:
        """See `PreferenceModel`."""
        odds = self.decision_function(X, **given)
        return np.stack([log_expit(-odds), log_expit(odds)], axis=1)


def unwrapped(model: Any) -> Any:
    """The model itself, without an ensemble or a temperature around it; one of the members, if they are fitted."""
    if isinstance(model, Calibrated):
        return unwrapped(model.estimator_ if hasattr(model, "estimator_") else model.estimator)
    if isinstance(model, Ensemble):
        return unwrapped(model.members_[0] if hasattr(model, "members_") else model.estimator)
    return model


def take(given: dict[str, Any], rows: Any) -> dict[str, Any]:
    """The entries of some rows of arguments that have one a row; None stays."""
    found: dict[str, Any] = {}
    for name, values in given.items():
        if values is None:
            continue
        if isinstance(values, np.ndarray):
            found[name] = values[rows]
        else:
            kept = np.arange(len(values))[rows]
            found[name] = [values[row] for row in kept]
    return found


def _log_odds(model: PreferenceModel, X: Any, given: dict[str, Any]) -> Floats:
    log_p = model.predict_log_proba(X, **given)
    found: Floats = log_p[:, 1] - log_p[:, 0]
    return found
