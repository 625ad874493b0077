from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from prefkit.diagnostics import Interval, bootstrap_difference, bootstrap_interval, mean_interval, wilson_interval
from prefkit.errors import PrefkitError


def test_interval_reads_as_one_figure() -> None:
    assert str(Interval(0.7123, 0.69, 0.7341, 500)) == "0.712 [0.690, 0.734]"
    assert str(Interval(0.5, -math.inf, math.inf, 1)) == "0.500 [n = 1]"


def test_mean_interval_is_students_t() -> None:
    # The 97.5% quantile of t with 2 degrees of freedom is 4.302653 (tables), the standard error 1 / sqrt(3).
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert 2 - found.low == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    # 95% quantile, 4 degrees of freedom: 2.131847; standard deviation of 1..5 is sqrt(2.5).
    assert mean_interval(range(1, 6), 0.9).high - 3 == pytest.approx(2.131847 * math.sqrt(2.5 / 5), rel=1e-6)


def test_one_seed_has_no_interval() -> None:
    assert mean_interval([3.0]) == Interval(3.0, -math.inf, math.inf, 1)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_interval_is_scipys(counts: tuple[int, int], confidence: float) -> None:
    successes, n = counts
    theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    ours = wilson_interval(successes, n, confidence)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= ours.low <= ours.mean <= ours.high <= 1


def test_wilson_counts_ties_half() -> None:
    low, middle, high = (wilson_interval(k, 10) for k in (7, 7.5, 8))
    assert middle.mean == 0.75
    assert low.low < middle.low < high.low


def test_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(size=2000)
    found = bootstrap_interval(values, generator=generator)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert found.mean == values.mean()
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_a_cluster_of_copies_counts_once() -> None:
    values = np.random.default_rng(2).normal(size=50)
    once = bootstrap_interval(values, generator=np.random.default_rng(3))
    copies = np.repeat(values, 4)
    clusters = np.repeat([f"prompt {index:02}" for index in range(50)], 4)
    shuffle = np.random.default_rng(4).permutation(200)
    again = bootstrap_interval(copies[shuffle], generator=np.random.default_rng(3), clusters=clusters[shuffle])
    assert (again.low, again.high, again.n) == pytest.approx((once.low, once.high, 50))
    assert bootstrap_interval(copies).high - bootstrap_interval(copies).low < 0.6 * (once.high - once.low)


def test_clusters_of_unequal_size_are_taken_whole() -> None:
    # Two clusters, {0} and {1, 1, 1}: a resample holds one of them twice, or both.
    seen: set[float] = set()

    def record(rows: np.ndarray) -> float:
        seen.add(float(rows.mean()))
        return float(rows.mean())

    bootstrap_interval([1.0, 0.0, 1.0, 1.0], record, np.random.default_rng(0), clusters=["b", "a", "b", "b"])
    assert seen == {0.0, 0.75, 1.0}


def test_any_statistic_can_be_resampled() -> None:
    found = bootstrap_interval([1.0, 2.0, 3.0, 4.0, 100.0], np.median, np.random.default_rng(0))
    assert found.mean == 3.0
    assert found.low >= 1.0


def test_paired_difference_removes_what_the_rows_share() -> None:
    before = np.random.default_rng(5).normal(scale=100, size=40)
    found = bootstrap_difference(before, before + 2.0)
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_one_generator_seed_gives_one_interval() -> None:
    values = np.random.default_rng(6).normal(size=30)
    first, second, other = (bootstrap_interval(values, generator=np.random.default_rng(s)) for s in (7, 7, 8))
    assert first == second != other


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: mean_interval([]), "needs at least one value"),
        (lambda: mean_interval([1.0, math.nan]), "value 1 must be a finite number, got nan"),
        (lambda: mean_interval([[1.0]]), r"flat list of values, got shape \(1, 1\)"),
        (lambda: mean_interval([1.0], 95), r"confidence must lie in \(0, 1\), got 95"),
        (lambda: wilson_interval(0, 0), "at least one trial"),
        (lambda: wilson_interval(11, 10), r"successes must lie in \[0, 10\], got 11"),
        (lambda: wilson_interval(math.nan, 10), "must be a finite number, got nan"),
        (lambda: bootstrap_interval([]), "needs at least one value"),
        (lambda: bootstrap_interval([[1.0, 2.0], [math.inf, 1.0]]), r"value \(1, 0\) must be a finite number, got inf"),
        (lambda: bootstrap_interval([1.0, 2.0], clusters=["a"]), "one cluster a row"),
        (lambda: bootstrap_interval([1.0, 2.0], resamples=0), "resamples must be at least 1"),
        (lambda: bootstrap_difference([1.0, 2.0], [1.0]), "same rows, got 2 and 1"),
    ],
)
def test_what_has_no_interval_is_an_error(measure, message) -> None:
    with pytest.raises(PrefkitError, match=message):
        measure()
