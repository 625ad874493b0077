"""Best of N: which of several candidates a reward chooses, and which of them make a pair.

Source: best-of-N, Stiennon et al. 2020 (arXiv 2009.01325); pairs, Zhang et al. 2024 (FLR, arXiv 2409.13948).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefkit.comparisons import Comparison, Winner
from prefkit.errors import OptionError, PrefkitError, RecordError


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


def mined_comparisons(comparisons: Iterable[Comparison], *, min_gap: float = 0.0) -> Iterator[Comparison]:
    """Pairs of the best and the worst candidate of each prompt by their rewards; see `mine_pairs`.

    Args:
        comparisons: with `extra["rewards"]`, one a response; their judgements are not looked at.
        min_gap: a pair's rewards are further apart than this.

    Yields:
        A pair for each prompt that makes one, with both `rewards` and their difference as strength.

    Raises:
        OptionError: min_gap is negative.
        RecordError: a comparison has no finite reward for each response.
    """
    for comparison in comparisons:
        rewards = comparison.extra.get("rewards")
        if not isinstance(rewards, list | tuple) or len(rewards) != len(comparison.responses):
            raise _at(comparison, f"one reward a response is needed, got {rewards!r}")
        try:
            found = mine_pairs([rewards], min_gap=min_gap)
        except OptionError:
            raise
        except (PrefkitError, TypeError, ValueError) as error:
            raise _at(comparison, f"rewards must be finite numbers of at least 2 responses, got {rewards}") from error
        if not len(found.prompt):
            continue
        sides = int(found.chosen[0]), int(found.rejected[0])
        prompts = tuple(comparison.prompt_of(side) for side in sides) if comparison.joint else comparison.prompts
        own = [float(rewards[side]) for side in sides]
        yield replace(
            comparison,
            prompts=prompts,
            responses=tuple(comparison.responses[side] for side in sides),
            judgement=Winner(0),
            steps=None if comparison.steps is None else tuple(comparison.steps[side] for side in sides),
            strength=own[0] - own[1],
            extra={"rewards": own},
        )


def _at(comparison: Comparison, problem: str) -> RecordError:
    return RecordError(problem, field="rewards", source=comparison.source, line=comparison.line)
