"""Style control, phi, power laws: closed forms, a second implementation, and bad input."""

import math

import numpy as np
import pytest
from scipy import optimize

from prefkit.comparisons import Comparison, Winner
from prefkit.diagnostics import (
    measure_style_use,
    pairwise_accuracy,
    phi,
    scaling_fit,
    scaling_report,
    style_control,
    style_difference,
    style_features,
)
from prefkit.errors import OptionError, PrefkitError

TEXT = "# Title\n\nSome **bold** and __more__ words.\n\n- one\n* two\n  3. three\n\n```\n# no header\n- no item\n```\n"


def test_markdown_is_counted_outside_code() -> None:
    assert style_features(TEXT)[1:] == (3, 1, 2)
    assert style_features("a b c")[0] == 3
    assert style_features("a b c", count_tokens=len)[0] == 5
    assert style_features("2 * 3 ** 2 and a_b__c")[1:] == (0, 0, 0)


def test_differences_are_standardised_and_zero_where_nothing_is_counted() -> None:
    found = style_difference([[1, 0], [3, 0], [2, 0]], [[3, 0], [1, 0], [2, 0]])
    assert found.relative.tolist() == [[-0.5, 0.0], [0.5, 0.0], [0.0, 0.0]]
    assert found.normalised[:, 0].std() == pytest.approx(1)
    assert found.normalised[:, 1].tolist() == [0, 0, 0]


def test_style_control_agrees_with_another_optimiser() -> None:
    rng = np.random.default_rng(1)
    difference, style, labels = rng.normal(size=80), rng.normal(size=(80, 3)), rng.integers(0, 2, 80)
    found = style_control(difference, style, labels, l2=0.01)
    inputs, signs = np.column_stack([difference, style]), 1 - 2 * labels

    def loss(w: np.ndarray) -> float:
        return float(np.logaddexp(0, -signs * (inputs @ w)).mean() + 0.01 * w @ w)

    best = optimize.minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-10})
    np.testing.assert_allclose([found.alpha, *found.beta], best.x, atol=1e-6)
    assert found.penalised_loss == pytest.approx(best.fun)
    assert found.gap == pytest.approx(found.uncontrolled_loss - found.controlled_loss)
    assert found.gap >= -1e-9


def test_separable_pairs_have_a_finite_fit() -> None:
    found = style_control([2.0, -3.0, 1.0], [[0.0], [0.0], [0.0]], [0, 1, 0])
    assert math.isfinite(found.alpha)
    assert found.controlled_accuracy == 1.0


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: style_control([1.0, 2.0], [[0.0], [1.0]], [0, 1], l2=0), "l2 must be greater than 0"),
        (lambda: style_control([1.0, 1.0], [[0.0], [1.0]], [0, 0]), "one label and one difference"),
        (lambda: style_control([1.0, 2.0], [[0.0], [1.0]], [0, 2]), "preferred must be 0 or 1"),
        (lambda: style_control([1.0, np.nan], [[0.0], [1.0]], [0, 1]), "finite numbers"),
        (lambda: style_control([1.0], [[0.0], [1.0]], [0]), r"style must be \[1, features\]"),
        (lambda: style_control([1.0], [[0.0]], [0, 1]), "each pair needs a difference and a label"),
        (lambda: style_difference([[1, -1]], [[0, 0]]), "style_0 of pair 0, feature 1 must be a count"),
        (lambda: style_difference([[1]], [[0, 0]]), "two tables"),
        (lambda: phi([1, 0], [1]), "two lists of one length"),
        (lambda: phi([1, 2], [1, 0]), "variables that are 0 or 1"),
        (lambda: scaling_fit([1.0], [1.0]), "at least 2 points"),
        (lambda: scaling_fit([1.0, 2.0], [0.5, 0.0]), "losses must be positive"),
        (lambda: scaling_fit([2.0, 2.0], [0.5, 0.4]), "no trend to fit"),
        (lambda: scaling_report([1.0, 2.0], {1: [0.5, 0.4]}, "x"), "at least 3 points"),
        (lambda: scaling_report([1.0, 2.0, 3.0], {}, "x"), "at least one model"),
        (lambda: pairwise_accuracy([1.0], [0.0], ties=2), "ties must lie in"),
        (lambda: pairwise_accuracy([], []), "at least one pair"),
        (lambda: measure_style_use(None, [], features=("size",)), "unknown feature of style"),  # type: ignore[arg-type]
    ],
)
def test_bad_input(call: object, problem: str) -> None:
    with pytest.raises(PrefkitError, match=problem):
        call()  # type: ignore[operator]
    assert issubclass(OptionError, PrefkitError)


def test_phi_is_the_correlation_and_zero_for_a_constant() -> None:
    x, y = np.array([1, 0, 1, 1, 0]), np.array([1, 1, 1, 0, 0])
    assert phi(x, y).phi == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert phi([1, 1], [0, 1]).phi == 0


def test_an_exact_power_law_is_found() -> None:
    n = np.array([100, 400, 1600, 6400])
    fit = scaling_fit(n, 3 * n**-0.25)
    assert (fit.coefficient, fit.exponent, fit.r2_log_log) == pytest.approx((3, 0.25, 1))
    assert fit.exponent_interval.low == pytest.approx(0.25)


def test_a_floor_is_found() -> None:
    n = 100.0 * 2 ** np.arange(10)
    fit = scaling_fit(n, 0.3 + 2 * n**-0.5, floor=True)
    assert fit.floor == pytest.approx(0.3, abs=1e-3)
    assert fit.floor_exponent == pytest.approx(0.5, abs=1e-2)
    assert scaling_fit(n[:3], 2 * n[:3] ** -0.5, floor=True).floor is None


def test_trends_of_families() -> None:
    n = [100, 200, 400, 800]
    falls, rises, turns = [0.6, 0.5, 0.4, 0.3], [0.5, 0.5, 0.6, 0.6], [0.6, 0.3, 0.2, 0.25]
    assert scaling_report(n, {1: falls, 7: falls}, "a").trend == "scaling"
    assert scaling_report(n, {1: rises, 7: falls}, "b").trend == "emergent"
    assert scaling_report(n, {1: falls, 7: rises}, "c").trend == "none"
    assert scaling_report(n, {7: turns}, "d").trend == "none"
    assert len(scaling_report(n, {1: falls, 7: falls}, "a").rows()) == 2


def test_a_model_that_ranks_by_length_relies_on_it_wholly() -> None:
    rng = np.random.default_rng(0)
    records = [
        Comparison((f"p{k}",), ("w " * int(a), "w " * int(b)), Winner(int(rng.integers(2))))
        for k, (a, b) in enumerate(rng.integers(1, 50, (60, 2)))
        if a != b
    ]
    scored = lambda comparisons, skipped: ((c, [len(r) for r in c.responses]) for c in comparisons)  # noqa: E731
    found = measure_style_use(scored, records)
    assert found.figures["phi of model and length"].mean == pytest.approx(1)
    assert found.figures["accuracy, longer preferred"].mean == 1
    assert found.figures["accuracy, shorter preferred"].mean == 0
    assert abs(found.figures["phi of label and length"].mean) < 0.5
