"""Best of N: which of several candidates a reward chooses, and which of them make a pair.

Source: best-of-N, Stiennon et al. 2020 (arXiv 2009.01325); pairs, Zhang et al. 2024 (FLR, arXiv 2409.13948).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from prefkit.comparisons import Comparison, Ratings, Text, Winner
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.objectives import PairScheme, pairs_of_ranking


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


def mined_comparisons(
    comparisons: Iterable[Comparison], *, scheme: PairScheme = "best_worst", min_gap: float = 0.0
) -> Iterator[Comparison]:
    """Pairs of the candidates of each prompt by their rewards, the higher one chosen.

    Args:
        comparisons: with `extra["rewards"]`, one a response; their judgements are not looked at.
        scheme: which pairs; see `prefkit.objectives.pairs_of_ranking`. Equal rewards are ranked by place.
        min_gap: a pair's rewards are further apart than this, at least 0. Equal rewards never make a pair.

    Yields:
        Each pair with both `rewards`, and their difference as strength: log-odds, where the rewards are those of a
        Bradley-Terry model, which the objective `osp` takes with `label: bt`.

    Raises:
        OptionError: min_gap is negative, or the scheme is unknown.
        RecordError: a comparison has no finite reward for each response.
    """
    if not min_gap >= 0:
        raise OptionError(f"min_gap must be at least 0, got {min_gap}")
    for comparison in comparisons:
        rewards = comparison.extra.get("rewards")
        if not isinstance(rewards, list | tuple) or len(rewards) != len(comparison.responses):
            raise _at(comparison, f"one reward a response is needed, got {rewards!r}")
        try:
            table = torch.tensor(rewards, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise _at(comparison, f"rewards must be numbers, got {rewards}") from error
        if len(rewards) < 2 or not bool(table.isfinite().all()):
            raise _at(comparison, f"rewards must be finite numbers of at least 2 responses, got {rewards}")
        ranking = table.argsort(descending=True, stable=True)
        for higher, lower in pairs_of_ranking(ranking, scheme).tolist():
            if rewards[higher] - rewards[lower] > min_gap:
                yield _pair(comparison, higher, lower)


class Chosen(NamedTuple):
    """The best of several candidates.

    Args:
        response: the best.
        reward: its reward; None if there was nothing to choose among.
        candidates: all that could be chosen, once each, as a comparison with `rewards`; None if there was one.
    """

    response: Text
    reward: float | None
    candidates: Comparison | None


Rewarding: TypeAlias = Callable[[Iterable[Comparison], list[RecordError]], Iterable[tuple[Comparison, Sequence[float]]]]
"""Gives each response of comparisons a reward, and sets aside what it cannot reward."""


def choose_best(prompt: Text, candidates: Sequence[Text], rewarding: Rewarding, *, line: int | None = None) -> Chosen:
    """The candidate with the highest reward, the first of equals.

    Candidates that are empty are no responses, and of equal ones the first is taken for all.

    Args:
        prompt: of all candidates.
        candidates: what was sampled.
        rewarding: gives the rewards.
        line: of the prompt, for messages.

    Raises:
        RecordError: all candidates are empty, or they cannot be rewarded.
    """
    different = list(dict.fromkeys(candidate for candidate in candidates if candidate and str(candidate).strip()))
    if not different:
        raise RecordError(f"all {len(candidates)} candidates are empty", source="prompts", line=line)
    if len(different) == 1:
        return Chosen(different[0], None, None)
    nothing = Ratings((0.0,) * len(different))
    problems: list[RecordError] = []
    asked = Comparison((prompt,), tuple(different), nothing, source="prompts", line=line)
    for _, rewards in rewarding([asked], problems):
        found = [float(reward) for reward in rewards]
        best = best_of_n(found)
        candidates_of = replace(asked, judgement=Ratings(tuple(found)), extra={"rewards": found})
        return Chosen(different[best], found[best], candidates_of)
    raise problems[0]


def _pair(comparison: Comparison, higher: int, lower: int) -> Comparison:
    sides = higher, lower
    rewards = [float(comparison.extra["rewards"][side]) for side in sides]
    return replace(
        comparison,
        prompts=tuple(comparison.prompt_of(side) for side in sides) if comparison.joint else comparison.prompts,
        responses=tuple(comparison.responses[side] for side in sides),
        judgement=Winner(0),
        steps=None if comparison.steps is None else tuple(comparison.steps[side] for side in sides),
        strength=rewards[0] - rewards[1],
        extra={"rewards": rewards},
    )


def _at(comparison: Comparison, problem: str) -> RecordError:
    return RecordError(problem, field="rewards", source=comparison.source, line=comparison.line)
