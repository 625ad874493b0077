"""Probabilities of preference: do they mean what they say?

Among comparisons that a model calls 70% sure, 70% should turn out so. A model may rank well and be far from that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefkit.diagnostics.intervals import Interval, Statistic, bootstrap_interval
from prefkit.errors import OptionError, PrefkitError
from prefkit.report import Plot, Table, reliability


@dataclass(frozen=True)
class Calibration:
    """How well probabilities are calibrated, with intervals.

    Args:
        error: expected calibration error.
        brier: Brier score.
        log_likelihood: mean log-likelihood of the outcomes, in nats.
        plot: observed frequencies over predicted probabilities.
    """

    error: Interval
    brier: Interval
    log_likelihood: Interval
    plot: Plot

    def table(self, title: str = "Calibration") -> Table:
        """The figures."""
        return Table.from_mapping(
            {
                "expected calibration error": self.error,
                "Brier score": self.brier,
                "log-likelihood (nats)": self.log_likelihood,
            },
            title,
            ("figure", "value"),
        )


def expected_calibration_error(probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> float:
    """Mean distance of predicted probability and observed frequency over bins of equal width, weighed by their rows.

    Of a pair, the probability of either option may be given: the other one's bin is its mirror image.

    Args:
        probabilities: `[n]`, that something happens.
        outcomes: `[n]`, 1 where it did, 0 where it did not, 0.5 for a tie.
        bins: number of bins.

    Raises:
        PrefkitError: there are no rows, lengths differ, or a value lies outside [0, 1].
        OptionError: there is no bin.

    Source: Naeini et al. 2015, Obtaining well calibrated probabilities using Bayesian binning.
    """
    if bins < 1:
        raise OptionError(f"bins must be at least 1, got {bins}")
    rows = _rows(probabilities, outcomes)
    return _error(rows, bins)


def brier_score(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean squared distance of probability and outcome; 0.25 for a coin.

    Args:
        probabilities: `[n]`.
        outcomes: `[n]`.

    Raises:
        PrefkitError: see `expected_calibration_error`.

    Source: Brier 1950, Verification of forecasts expressed in terms of probability.
    """
    return _brier(_rows(probabilities, outcomes))


def calibration(
    probabilities: ArrayLike,
    outcomes: ArrayLike,
    *,
    bins: int = 10,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    title: str = "Reliability",
) -> Calibration:
    """Calibration error, Brier score and log-likelihood with bootstrap intervals, and the reliability plot.

    The error of few rows is biased upwards, and so is its interval: noise in a bin counts as error.

    Args:
        probabilities: `[n]`, that the first option is preferred.
        outcomes: `[n]`, 1, 0, or 0.5 for a tie.
        bins: number of bins.
        clusters: `[n]`, the cluster (prompt) of each row; clusters are resampled whole.
        confidence: coverage, in (0, 1).
        resamples: of the bootstrap.
        title: of the plot.

    Raises:
        PrefkitError: see `expected_calibration_error`.
        OptionError: there is no bin.
    """
    if bins < 1:
        raise OptionError(f"bins must be at least 1, got {bins}")
    rows = _rows(probabilities, outcomes)

    def interval(statistic: Statistic) -> Interval:
        return bootstrap_interval(
            rows,
            statistic,
            clusters=clusters,
            confidence=confidence,
            resamples=resamples,
        )

    return Calibration(
        interval(lambda drawn: _error(drawn, bins)),
        interval(_brier),
        interval(_likelihood),
        reliability(rows[:, 0], rows[:, 1], title=title, bins=bins),
    )


def pair_calibration(
    log_odds: ArrayLike,
    probabilities: ArrayLike | None = None,
    *,
    clusters: ArrayLike | None = None,
    seed: int = 0,
    title: str = "Reliability",
) -> Calibration:
    """`calibration` of pairs that are given with the preferred option first, each looked at from a random side.

    From its first side every pair would have the outcome 1, and a model that knows the order would look calibrated.

    Args:
        log_odds: `[n]`, that the first option is preferred.
        probabilities: `[n]`, that it is, by the data; 1 by default.
        clusters: `[n]`, see `calibration`.
        seed: of the sides.
        title: of the plot.

    Raises:
        PrefkitError: see `expected_calibration_error`.
    """
    odds = np.asarray(log_odds, dtype=np.float64)
    observed = np.ones(len(odds)) if probabilities is None else np.asarray(probabilities, dtype=np.float64)
    turned = np.random.default_rng(seed).random(len(odds)) < 0.5
    predicted = np.exp(-np.logaddexp(0, np.where(turned, odds, -odds)))
    return calibration(predicted, np.where(turned, 1 - observed, observed), clusters=clusters, title=title)


def calibration_change(before: Calibration, after: Calibration, title: str = "Calibration") -> Table:
    """Two calibrations side by side.

    Args:
        before: without a temperature.
        after: with it.
        title: of the table.
    """
    rows = [
        [name, getattr(before, field), getattr(after, field)]
        for name, field in (
            ("expected calibration error", "error"),
            ("Brier score", "brier"),
            ("log-likelihood (nats)", "log_likelihood"),
        )
    ]
    return Table(["figure", "before the temperature", "after it"], rows, title)


def _rows(probabilities: ArrayLike, outcomes: ArrayLike) -> NDArray[np.float64]:
    predicted, observed = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if predicted.ndim != 1 or predicted.shape != observed.shape or not len(predicted):
        raise PrefkitError(
            f"probabilities and outcomes must be two lists of one length, got {predicted.shape} and {observed.shape}"
        )
    for name, values in (("probability", predicted), ("outcome", observed)):
        wrong = np.flatnonzero(~((values >= 0) & (values <= 1)))
        if len(wrong):
            raise PrefkitError(f"{name} {wrong[0]} must lie in [0, 1], got {values[wrong[0]]}")
    return np.stack([predicted, observed], axis=1)


def _error(rows: NDArray[np.float64], bins: int) -> float:
    predicted, observed = rows.T
    place = np.minimum((predicted * bins).astype(int), bins - 1)
    gaps = np.bincount(place, predicted - observed, bins)
    return float(np.abs(gaps).sum() / len(rows))


def _brier(rows: NDArray[np.float64]) -> float:
    return float(((rows[:, 0] - rows[:, 1]) ** 2).mean())


def _likelihood(rows: NDArray[np.float64]) -> float:
    # A certain prediction that was wrong has a log-likelihood of minus infinity; the smallest float is bad enough.
    p = np.clip(rows[:, 0], np.finfo(float).tiny, 1 - np.finfo(float).epsneg)
    return float((rows[:, 1] * np.log(p) + (1 - rows[:, 1]) * np.log1p(-p)).mean())
