from __future__ import annotations

import numpy as np
import pytest

from prefkit.diagnostics import brier_score, calibration, expected_calibration_error
from prefkit.errors import OptionError, PrefkitError


def test_error_is_the_weighted_gap_of_the_bins() -> None:
    # Two bins: predicted 0.2 and 0.4 with one of two, predicted 0.9 with all of two.
    found = expected_calibration_error([0.2, 0.4, 0.9, 0.9], [0, 1, 1, 1], bins=2)
    assert found == pytest.approx((2 * abs(0.3 - 0.5) + 2 * 0.1) / 4)


def test_sides_can_be_exchanged() -> None:
    rng = np.random.default_rng(0)
    p, y = rng.random(500), rng.integers(2, size=500)
    assert expected_calibration_error(1 - p, 1 - y) == pytest.approx(expected_calibration_error(p, y))


def test_true_probabilities_are_calibrated_and_sharper_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    y = rng.random(20_000) < p
    sharp = np.where(p > 0.5, 1 - (1 - p) / 3, p / 3)
    assert expected_calibration_error(p, y) < 0.015
    assert expected_calibration_error(sharp, y) > 0.1
    assert brier_score(p, y) < brier_score(sharp, y)
    assert brier_score(np.full(4, 0.5), [0, 1, 1, 0]) == 0.25


def test_figures_come_with_intervals_and_a_plot() -> None:
    found = calibration([0.25, 0.75] * 20, [0, 1] * 20, clusters=np.repeat(np.arange(20), 2), resamples=50)
    assert found.error.mean == pytest.approx(0.25)
    assert found.brier.mean == pytest.approx(0.0625)
    assert found.log_likelihood.mean == pytest.approx(np.log(0.75))
    assert found.error.n == 20
    assert len(found.plot.data.rows) == 2
    assert found.table().rows[0][0] == "expected calibration error"
    assert np.isfinite(calibration([1.0, 0.0], [0, 1], resamples=2).log_likelihood.mean)


def test_bad_input_is_refused() -> None:
    with pytest.raises(PrefkitError, match=r"probability 1 must lie in \[0, 1\], got 1.5"):
        expected_calibration_error([0.5, 1.5], [0, 1])
    with pytest.raises(PrefkitError, match=r"outcome 0 must lie in \[0, 1\], got nan"):
        brier_score([0.5], [np.nan])
    with pytest.raises(PrefkitError, match="two lists of one length"):
        brier_score([0.5], [1, 0])
    with pytest.raises(OptionError, match="bins must be at least 1"):
        calibration([0.5], [1], bins=0)
