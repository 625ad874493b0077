"""Reversals: two responses of which one is better under one context and the other under another.

A model that does not read the context is right exactly half of the time, whatever it has learned.

Source: Pitis et al. 2024 (arXiv 2407.14916), Reasonable Preference Reversal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefkit.diagnostics.accuracy import wins
from prefkit.errors import PrefkitError


class Reversals(NamedTuple):
    """How a model judges reversals, one number a pair of responses; their means are the figures.

    Args:
        accuracy: share of its two comparisons that are right, ties one half.
        both_correct: 1 where both are.
        same_decision: 1 where the two responses are ranked alike under both contexts: the context was ignored.
    """

    accuracy: NDArray[np.float64]
    both_correct: NDArray[np.float64]
    same_decision: NDArray[np.float64]


def reversal_metrics(under_x: ArrayLike, under_y: ArrayLike) -> Reversals:
    """Figures of reversals: under context x the first response is preferred, under context y the second.

    Args:
        under_x: `[pairs, 2]`, rewards of both responses given context x.
        under_y: `[pairs, 2]`, rewards of the same responses given context y.

    Raises:
        PrefkitError: a pair lacks its counterpart, or a reward is no finite number.
    """
    x, y = np.asarray(under_x, dtype=np.float64), np.asarray(under_y, dtype=np.float64)
    if x.ndim != 2 or x.shape != y.shape or x.shape[1] != 2 or not len(x):
        raise PrefkitError(
            "reversals need the rewards of two responses under each of two contexts, [pairs, 2] twice, got "
            f"{x.shape} and {y.shape}"
        )
    first, second = wins(x[:, 0], x[:, 1]), wins(y[:, 1], y[:, 0])
    same = np.sign(x[:, 0] - x[:, 1]) == np.sign(y[:, 0] - y[:, 1])
    return Reversals((first + second) / 2, ((first == 1) & (second == 1)).astype(float), same.astype(float))
