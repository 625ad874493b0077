"""Intervals: how far a measured figure can be trusted.

Seeds give Student's t, counts give Wilson's interval, and anything else is resampled (bootstrap), by whole prompts
where rows of one prompt are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from prefkit.errors import PrefkitError

Statistic: TypeAlias = Callable[[NDArray[np.float64]], float]
"""A figure of an array whose first axis holds the rows."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its confidence interval.

    Args:
        mean: the estimate.
        low: lower end of the interval; -inf when one unit alone was measured.
        high: upper end of the interval; inf when one unit alone was measured.
        n: number of independent units it rests on (seeds, trials, rows, or clusters of rows).
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if math.isinf(self.low) and math.isinf(self.high):
            return f"{self.mean:.3f} [n = {self.n}]"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of independent values, such as one figure a seed, with Student's t interval.

    Args:
        values: `[n]`.
        confidence: coverage, in (0, 1).

    Raises:
        PrefkitError: no values, a value that is not finite, or a confidence out of range.
    """
    array = _checked(values, confidence)
    if array.ndim != 1:
        raise PrefkitError(f"mean_interval takes a flat list of values, got shape {array.shape}")
    mean, n = float(array.mean()), len(array)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * float(array.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Share of successes among independent trials, with Wilson's score interval.

    Args:
        successes: number of successes; ties may count half.
        n: number of trials.
        confidence: coverage, in (0, 1).

    Raises:
        PrefkitError: no trials, successes outside [0, n], or a confidence out of range.

    Source: Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    _checked([successes], confidence)
    if n < 1:
        raise PrefkitError(f"a share needs at least one trial, got n = {n}")
    if not 0 <= successes <= n:
        raise PrefkitError(f"successes must lie in [0, {n}], got {successes}")
    z2 = float(stats.norm.ppf((1 + confidence) / 2)) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # Rounding may not push an end past the estimate when every trial, or none, succeeded.
    return Interval(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)), n)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Statistic = np.mean,
    generator: np.random.Generator | None = None,
    *,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> Interval:
    """A figure of the rows, with the percentile interval of its bootstrap.

    Args:
        values: `[n]` or `[n, ...]`; rows are resampled whole, so paired columns stay paired.
        statistic: from resampled rows to the figure.
        generator: source of randomness; a fresh one seeded with 0 by default.
        clusters: `[n]`, the cluster (prompt) of each row; clusters are resampled whole. None: each row is its own.
        confidence: coverage, in (0, 1).
        resamples: number of resamples.

    Raises:
        PrefkitError: no rows, a value that is not finite, clusters of another length, or an option out of range.

    Source: Efron (1979), Bootstrap methods: another look at the jackknife.
    """
    array = _checked(values, confidence)
    if resamples < 1:
        raise PrefkitError(f"resamples must be at least 1, got {resamples}")
    if clusters is None:
        order, sizes = np.arange(len(array)), np.ones(len(array), dtype=np.int64)
    else:
        names = np.asarray(clusters)
        if names.shape != (len(array),):
            raise PrefkitError(f"clusters must name one cluster a row ({len(array)} rows), got shape {names.shape}")
        _, member, sizes = np.unique(names, return_inverse=True, return_counts=True)
        order = np.argsort(member, kind="stable")
    estimate, count = float(statistic(array)), len(sizes)
    if count == 1:
        return Interval(estimate, -math.inf, math.inf, count)
    if generator is None:
        generator = np.random.default_rng(0)
    starts = np.cumsum(sizes) - sizes
    replicates = np.empty(resamples)
    for index in range(resamples):
        drawn = generator.integers(count, size=count)
        taken = sizes[drawn]
        # Positions of the drawn clusters' rows, one run of consecutive positions a cluster.
        offsets = np.repeat(starts[drawn] - (np.cumsum(taken) - taken), taken)
        replicates[index] = statistic(array[order[offsets + np.arange(len(offsets))]])
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high), count)


def bootstrap_difference(
    before: ArrayLike,
    after: ArrayLike,
    statistic: Statistic = np.mean,
    generator: np.random.Generator | None = None,
    *,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> Interval:
    """`statistic(after) - statistic(before)` of the same rows measured twice, with a paired bootstrap interval.

    Args:
        before: `[n]`, the first measurement of each row.
        after: `[n]`, the second measurement of the same rows, in the same order.
        statistic: see `bootstrap_interval`, as are the other options.
        generator: see `bootstrap_interval`.
        clusters: see `bootstrap_interval`.
        confidence: see `bootstrap_interval`.
        resamples: see `bootstrap_interval`.

    Raises:
        PrefkitError: the two differ in length; otherwise as `bootstrap_interval`.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape:
        raise PrefkitError(f"paired measurements must be of the same rows, got {len(first)} and {len(second)}")

    def difference(rows: NDArray[np.float64]) -> float:
        return float(statistic(rows[:, 1])) - float(statistic(rows[:, 0]))

    rows = np.stack([first, second], axis=1)
    return bootstrap_interval(
        rows, difference, generator, clusters=clusters, confidence=confidence, resamples=resamples
    )


def _checked(values: ArrayLike, confidence: float) -> NDArray[np.float64]:
    if not 0 < confidence < 1:
        raise PrefkitError(f"confidence must lie in (0, 1), got {confidence}")
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or len(array) == 0:
        raise PrefkitError("an interval needs at least one value, got none")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        place = tuple(int(i) for i in bad[0])
        where = place[0] if len(place) == 1 else place
        raise PrefkitError(f"value {where} must be a finite number, got {array[place]}")
    return array
