"""Correlation: does the likelihood of a text say how good it is?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from prefkit.diagnostics.intervals import Interval, mean_interval
from prefkit.errors import PrefkitError


class Correlations(NamedTuple):
    """Three correlations of two lists of numbers, each 0 where one of the lists is constant.

    Args:
        pearson: linear correlation.
        spearman: linear correlation of the ranks, equal numbers sharing their mean rank.
        kendall: tau-b: pairs in the same order less pairs in opposite order, as a share, corrected for ties.
    """

    pearson: float
    spearman: float
    kendall: float


class CalibrationFigures(NamedTuple):
    """How well likelihoods order texts by quality.

    Args:
        per_list: mean of each correlation over lists, with intervals over lists.
        pooled: the correlations of all texts together.
        constant: lists in which either side is constant: they count as correlations of 0.
    """

    per_list: dict[str, Interval]
    pooled: Correlations
    constant: int


def correlations(x: ArrayLike, y: ArrayLike) -> Correlations:
    """Pearson, Spearman and Kendall correlations.

    Args:
        x: `[n]`, finite numbers.
        y: `[n]`, finite numbers.

    Raises:
        PrefkitError: the lists differ in length, are shorter than 2, or hold a number that is not finite.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) < 2:
        raise PrefkitError(
            f"a correlation takes two lists of one length, of at least 2, got shapes {first.shape} and {second.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise PrefkitError("a correlation takes finite numbers, got one that is not")
    if _constant(first) or _constant(second):
        return Correlations(0.0, 0.0, 0.0)
    return Correlations(
        float(stats.pearsonr(first, second).statistic),
        float(stats.spearmanr(first, second).statistic),
        float(stats.kendalltau(first, second).statistic),
    )


def evaluate_calibration(logps: ArrayLike, quality: ArrayLike, lists: ArrayLike) -> CalibrationFigures:
    """Correlations of log-probabilities with quality, within each list and over all texts.

    Args:
        logps: `[n]`, log-probability of each text, summed or a token (nats).
        quality: `[n]`, by a judge that was not trained on, higher is better.
        lists: `[n]`, which list (source, prompt) each text belongs to.

    Raises:
        PrefkitError: as `correlations`, of any list.
    """
    x, y, owner = np.asarray(logps, dtype=np.float64), np.asarray(quality, dtype=np.float64), np.asarray(lists)
    if owner.shape != x.shape:
        raise PrefkitError(f"every text belongs to a list, got {owner.shape} lists for {x.shape} texts")
    pooled = correlations(x, y)
    members = [owner == name for name in np.unique(owner)]
    found = [correlations(x[own], y[own]) for own in members]
    constant = sum(_constant(x[own]) or _constant(y[own]) for own in members)
    per_list = {name: mean_interval([getattr(one, name) for one in found]) for name in Correlations._fields}
    return CalibrationFigures(per_list, pooled, constant)


def _constant(values: NDArray[np.float64]) -> bool:
    return bool((values == values[0]).all())
