"""Label noise: which labels contradict a preference that is otherwise clear, and how many of them there are.

Where pairs were judged once only, nobody else can be asked. A linear predictor on features of the pairs (a model's
hidden states, length) is fitted to the other labels, and each label is held against its prediction. A choice between
nearly equal responses is uncertain without being wrong, so noise is what is left where predictions are sure.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from prefkit.diagnostics.intervals import Interval, wilson_interval
from prefkit.errors import OptionError, PrefkitError
from prefkit.objectives import label_confidence

Values: TypeAlias = NDArray[np.float64]

LEAST_ROWS = 200
"""Pairs below which nothing is estimated."""

INFORMATIVE = 0.6
"""Accuracy on labels held out below which the features say too little for an estimate."""


class LabelNoise(NamedTuple):
    """Estimated noise of labels.

    Args:
        noise: share of labels that contradict a clear preference, with a 95% interval by likelihood ratio.
        accuracy: of the predictor on labels held out; where it is near one half, nothing can be told.
        confidence: `[pairs]`, probability that each label is right.
        by_group: the same share within groups (annotators, sources), by the mean of the posteriors.
    """

    noise: Interval
    accuracy: Interval
    confidence: Values
    by_group: dict[str, tuple[float, int]]


def estimate_label_noise(
    features: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    folds: int = 5,
    generator: np.random.Generator | None = None,
) -> LabelNoise:
    """Estimate how many labels are wrong.

    P(label) = (1 - e) sigmoid(s m) + e sigmoid(-s m), m the margin by a predictor that was fitted without the row, s
    its scale. Only labels against a sure prediction tell e from mere indifference.

    Args:
        features: `[pairs, d]`, features of the chosen response less those of the rejected one, on comparable scales.
        groups: `[pairs]`, who or what each label comes from.
        folds: the predictor of each part is fitted to the others, at least 2.
        generator: which rows are in which fold; a fresh one seeded with 0 by default.

    Raises:
        PrefkitError: too few pairs, or a feature is not finite.
        OptionError: folds is below 2.
    """
    x = np.asarray(features, dtype=np.float64)
    if folds < 2:
        raise OptionError(f"folds must be at least 2, got {folds}")
    if x.ndim != 2 or len(x) < LEAST_ROWS:
        raise PrefkitError(f"an estimate of label noise needs at least {LEAST_ROWS} pairs, got {len(x)}")
    if not np.isfinite(x).all():
        raise PrefkitError("features must be finite numbers")
    generator = generator or np.random.default_rng(0)
    margins = held_out_margins(x, folds, generator)
    accuracy = wilson_interval(float((margins > 0).sum() + 0.5 * (margins == 0).sum()), len(x))
    scale, noise = _mixture(margins)
    right = np.clip(1 - noise.mean, 0.5, 1 - 1e-4)
    confidence = label_confidence(torch.from_numpy(scale * margins), torch.full((len(x),), right, dtype=torch.float64))
    found = confidence.numpy()
    named: dict[str, tuple[float, int]] = {}
    if groups is not None:
        names = np.asarray(groups).astype(str)
        for name in np.unique(names):
            own = names == name
            named[str(name)] = (1 - float(found[own].mean()), int(own.sum()))
    return LabelNoise(noise, accuracy, found, named)


def held_out_margins(features: Values, folds: int, generator: np.random.Generator) -> Values:
    """The margin of each pair by a ridge-penalised logistic regression on the other folds, `[pairs]`.

    Directions in which pairs differ more count more. Of the penalties in `RIDGES` that one is taken which predicts the
    rows held out best.
    """
    x = features / (np.sqrt((features**2).mean()) or 1.0)
    part = generator.permutation(len(x)) % folds
    best, lowest = np.zeros(len(x)), math.inf
    for ridge in RIDGES:
        margins = np.empty(len(x))
        for fold in range(folds):
            out = part == fold
            margins[out] = x[out] @ _logistic(x[~out], ridge)
        loss = float(np.logaddexp(0.0, -margins).mean())
        if loss < lowest:
            best, lowest = margins, loss
    return best


RIDGES = (1.0, 10.0, 100.0)


def _logistic(x: Values, ridge: float) -> Values:
    """Weights under which the differences have a positive margin."""

    def loss(weights: Values) -> tuple[float, Values]:
        margin = x @ weights
        value = np.logaddexp(0.0, -margin).sum() + 0.5 * ridge * float(weights @ weights)
        wrong = np.exp(-np.logaddexp(0.0, margin))
        return float(value), ridge * weights - wrong @ x

    found = optimize.minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    weights: Values = found.x
    return weights


def _mixture(margins: Values) -> tuple[float, Interval]:
    """Scale of the margins and noise by maximum likelihood, with the noise's profile interval."""
    size = float(np.sqrt((margins**2).mean())) or 1.0
    unit = margins / size

    def negative(log_scale: float, noise: float) -> float:
        p = 1 / (1 + np.exp(-np.clip(np.exp(log_scale) * unit, -60, 60)))
        return -float(np.log(np.maximum((1 - noise) * p + noise * (1 - p), 1e-300)).sum())

    grid = np.linspace(0.0, 0.49, 50)
    profile = np.empty(len(grid))
    scales = np.empty(len(grid))
    for place, noise in enumerate(grid):
        found = optimize.minimize_scalar(negative, bounds=(-4.0, 4.0), args=(noise,), method="bounded")
        scales[place], profile[place] = found.x, found.fun
    best = int(profile.argmin())
    inside = grid[profile <= profile[best] + stats.chi2.ppf(0.95, 1) / 2]
    low, high = float(inside.min()), float(inside.max())
    return float(np.exp(scales[best]) / size), Interval(float(grid[best]), low, high, len(margins))
