"""Scaling: how a loss falls with the number of training samples.

Source: Wang et al. 2025, WorldPM: Scaling Human Preference Modeling (arXiv 2505.10527), section 3. The paper prints no
fitted constants, so how a law is fitted is a choice of this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from prefkit.diagnostics.intervals import Interval
from prefkit.errors import PrefkitError

Trend = Literal["scaling", "emergent", "none"]
"""scaling: the loss falls with the data; emergent: it does so for the largest model only; none."""

MONOTONE = -0.8
"""Spearman correlation of loss and samples from which a trend counts as falling."""


@dataclass(frozen=True)
class ScalingFit:
    """A power law L = a N^-b, fitted by least squares on logarithms, and the plain line of L over log2 N.

    Args:
        coefficient: a.
        exponent: b; above 0 the loss falls.
        exponent_interval: 95% interval of b, Student's t over the residuals; infinite for fewer than 3 points.
        r2_log_log: share of the variance of log L that the law explains; 1 for a constant loss.
        slope_per_doubling: how much L changes when N doubles.
        slope_r2: share of the variance of L that this line explains.
        spearman: rank correlation of L and N.
        floor: c of L = c + a N^-b, by non-linear least squares; None where it was not asked for or found.
        floor_exponent: b of the same.
    """

    coefficient: float
    exponent: float
    exponent_interval: Interval
    r2_log_log: float
    slope_per_doubling: float
    slope_r2: float
    spearman: float
    floor: float | None = None
    floor_exponent: float | None = None


def scaling_fit(samples: ArrayLike, losses: ArrayLike, *, floor: bool = False) -> ScalingFit:
    """Fit a power law to losses over sample sizes.

    Args:
        samples: `[n]`, training samples seen, above 0, at least 2 of them and not all equal. Two points lie on every
            law: their exponent has no interval.
        losses: `[n]`, test losses, above 0.
        floor: also fit a loss that no amount of data gets below.

    Raises:
        PrefkitError: there are fewer than 2 points, lengths differ, or a number is not positive.
    """
    n, loss = np.asarray(samples, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if n.ndim != 1 or n.shape != loss.shape or len(n) < 2:
        raise PrefkitError(f"a scaling law needs at least 2 points, one loss each, got {n.shape} and {loss.shape}")
    for name, values in (("samples", n), ("losses", loss)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise PrefkitError(f"{name} must be positive numbers, for their logarithms are fitted; got {values}")
    if len(np.unique(n)) < 2:
        raise PrefkitError("all points have one number of samples: there is no trend to fit")
    slope, intercept, r2, error = _line(np.log(n), np.log(loss))
    plain_slope, _, plain_r2, _ = _line(np.log2(n), loss)
    half = float(stats.t.ppf(0.975, len(n) - 2)) * error if len(n) > 2 else np.inf
    constant = bool((loss == loss[0]).all())
    # Three unknowns need more points than that to say anything.
    fitted = _with_floor(n, loss) if floor and len(n) > 3 else None
    return ScalingFit(
        coefficient=float(np.exp(intercept)),
        exponent=-slope,
        exponent_interval=Interval(-slope, -slope - half, -slope + half, len(n)),
        r2_log_log=r2,
        slope_per_doubling=plain_slope,
        slope_r2=plain_r2,
        spearman=0.0 if constant else float(stats.spearmanr(n, loss).statistic),
        floor=None if fitted is None else fitted[0],
        floor_exponent=None if fitted is None else fitted[1],
    )


@dataclass(frozen=True)
class ScalingReport:
    """How the losses of one family of tests scale.

    Args:
        family: name of the tests.
        trend: the verdict.
        fits: the fit of each model size.
    """

    family: str
    trend: Trend
    fits: Mapping[float, ScalingFit]

    def rows(self) -> list[list[Any]]:
        """Rows of a table with `SCALING_COLUMNS`, one a model size."""
        return [
            [
                self.family,
                f"{size:g}",
                fit.exponent_interval,
                fit.r2_log_log,
                fit.slope_per_doubling,
                fit.spearman,
                fit.floor,
                self.trend,
            ]
            for size, fit in sorted(self.fits.items())
        ]


SCALING_COLUMNS = ("tests", "model size", "exponent [95% interval]", "r2", "a doubling", "Spearman", "floor", "trend")
"""Columns of `ScalingReport.rows`."""


def scaling_report(
    samples: ArrayLike, losses: Mapping[float, ArrayLike], family: str, *, floor: bool = True
) -> ScalingReport:
    """Whether the losses of one family of tests scale, emerge with the size of the model, or do neither.

    Args:
        samples: `[n]`, training samples seen, the same for all models, at least 3.
        losses: `[n]` losses of each model, by its size.
        family: name of the tests.
        floor: see `scaling_fit`.

    Raises:
        PrefkitError: there are fewer than 3 points, no model, or as `scaling_fit`.
    """
    n = np.asarray(samples, dtype=np.float64)
    if n.ndim != 1 or len(n) < 3:
        raise PrefkitError(f"a scaling law needs at least 3 points, got samples of shape {n.shape}")
    if not losses:
        raise PrefkitError("a scaling report needs the losses of at least one model")
    fits = {size: scaling_fit(n, values, floor=floor) for size, values in losses.items()}
    largest = np.asarray(losses[max(losses)], dtype=np.float64)
    falls = [fits[size].exponent > 0 and fits[size].spearman <= MONOTONE for size in sorted(fits)]
    # A loss that turns up again at the end does not scale, however it fell before.
    if not falls[-1] or largest.argmin() != n.argmax():
        trend: Trend = "none"
    else:
        trend = "scaling" if all(falls) else "emergent"
    return ScalingReport(family, trend, fits)


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Slope, intercept, r^2 and standard error of the slope of a least-squares line."""
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ (y - y.mean())) / spread
    intercept = float(y.mean() - slope * x.mean())
    residuals = y - slope * x - intercept
    total = float(((y - y.mean()) ** 2).sum())
    unexplained = float(residuals @ residuals)
    r2 = 1.0 - unexplained / total if total > 0 else 1.0
    return slope, intercept, r2, (unexplained / max(len(x) - 2, 1) / spread) ** 0.5


def _with_floor(n: NDArray[np.float64], loss: NDArray[np.float64]) -> tuple[float, float] | None:
    """c and b of c + a N^-b; None where the search does not settle."""
    scaled = n / n[0]

    def law(x: NDArray[np.float64], c: float, a: float, b: float) -> NDArray[np.float64]:
        value: NDArray[np.float64] = c + a * x**-b
        return value

    low = float(loss.min())
    try:
        (c, _, b), _ = optimize.curve_fit(
            law, scaled, loss, p0=(0.9 * low, float(loss[0]) - 0.9 * low, 0.3), bounds=((0, 0, 0), np.inf)
        )
    except (RuntimeError, ValueError):
        return None
    return float(c), float(b)
