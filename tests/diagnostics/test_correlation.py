from __future__ import annotations

import numpy as np
import pytest

from prefkit.diagnostics import correlations, evaluate_calibration
from prefkit.errors import PrefkitError


def kendall_by_pairs(x: list[float], y: list[float]) -> float:
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    untied = [sum(one[side] != 0 for one in signs) for side in (0, 1)]
    return sum(a * b for a, b in signs) / np.sqrt(untied[0] * untied[1])


def test_correlations_with_ties_by_their_definitions() -> None:
    x, y = [1.0, 2.0, 2.0, 5.0, -3.0], [0.3, 0.3, 0.9, 0.4, 0.1]
    ranks = [2.0, 3.5, 3.5, 5.0, 1.0], [2.5, 2.5, 5.0, 4.0, 1.0]
    found = correlations(x, y)
    assert found.pearson == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found.kendall == pytest.approx(kendall_by_pairs(x, y))


def test_constant_side_has_no_correlation() -> None:
    assert correlations([1, 2, 3], [4, 4, 4]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [([1, 2], [1, 2, 3], "two lists of one length"), ([1], [1], "at least 2"), ([1, np.nan], [1, 2], "finite numbers")],
)
def test_messages(x: list[float], y: list[float], message: str) -> None:
    with pytest.raises(PrefkitError, match=message):
        correlations(x, y)


def test_lists_and_all_texts_together() -> None:
    # Within each list the order is right, between the lists it is wrong; the third list is constant.
    logps = [-10, -9, -8, -3, -2, -1, -5, -5, -5]
    quality = [7, 8, 9, 1, 2, 3, 1, 2, 3]
    found = evaluate_calibration(logps, quality, ["a"] * 3 + ["b"] * 3 + ["c"] * 3)
    assert found.per_list["spearman"].mean == pytest.approx(2 / 3)
    assert found.per_list["pearson"].n == 3
    assert found.constant == 1
    assert found.pooled.pearson == pytest.approx(np.corrcoef(logps, quality)[0, 1])
    assert found.pooled.pearson < 0


def test_every_text_needs_a_list() -> None:
    with pytest.raises(PrefkitError, match="every text belongs to a list"):
        evaluate_calibration([1, 2], [1, 2], [0])
