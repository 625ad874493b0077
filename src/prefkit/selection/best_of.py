"""Best of N: which of several candidates a reward chooses, and which of them make a pair.

Source: best-of-N, Stiennon et al. 2020 (arXiv 2009.01325); pairs, Zhang et al. 2024 (FLR, arXiv 2409.13948).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefkit.errors import OptionError, PrefkitError


def best_of_n(scores: ArrayLike) -> int:
    """Place of the highest score, the first of equals.

    Args:
        scores: `[n]`, rewards of the candidates.

    Raises:
        PrefkitError: there are no candidates, or a score is no finite number.
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise PrefkitError(f"best of N takes a list of finite scores, at least one, got {array}")
    return int(array.argmax())


class MinedPairs(NamedTuple):
    """Pairs of candidates, `[pairs]` each.

    Args:
        prompt: place of the prompt.
        chosen: place of the candidate with the highest reward, the first of equals.
        rejected: place of the candidate with the lowest reward, the first of equals.
    """

    prompt: NDArray[np.int64]
    chosen: NDArray[np.int64]
    rejected: NDArray[np.int64]


def mine_pairs(rewards: ArrayLike, *, min_gap: float = 0.0) -> MinedPairs:
    """The best and the worst candidate of each prompt, where they are more than `min_gap` apart.

    Args:
        rewards: `[prompts, n]`, rewards of n candidates a prompt, at least 2.
        min_gap: at least 0; a prompt whose rewards are all equal never makes a pair.

    Raises:
        OptionError: min_gap is negative.
        PrefkitError: there are fewer than 2 candidates, or a reward is no finite number.
    """
    if not min_gap >= 0:
        raise OptionError(f"min_gap must be at least 0, got {min_gap}")
    table = np.asarray(rewards, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2:
        raise PrefkitError(f"mining takes rewards [prompts, n] of at least 2 candidates a prompt, got {table.shape}")
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        raise PrefkitError(f"candidate {bad[0][1]} of prompt {bad[0][0]} has a reward that is no finite number")
    prompts = np.flatnonzero(table.max(1) - table.min(1) > min_gap)
    return MinedPairs(prompts, table[prompts].argmax(1), table[prompts].argmin(1))
