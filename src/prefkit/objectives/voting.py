"""Voting: the strength of comparisons by several reward models' rewards, and what is done with it before training.

Source: Wang et al. 2024, Secrets of RLHF in Large Language Models Part II (arXiv 2401.06080).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch

from prefkit.comparisons import Comparison
from prefkit.comparisons.pairing import pairs
from prefkit.errors import PrefkitError, RecordError
from prefkit.objectives.agreement import PreferenceStrength, flip_weakest, preference_strength, strength_groups
from prefkit.objectives.noise import flipped


@dataclass(frozen=True)
class Vote:
    """Comparisons with what a vote of reward models says about them.

    Args:
        comparisons: pairs whose `extra` holds `rewards` (the mean of the models', which objectives with margins take),
            `strength_mean`, `strength_std`, `vote_share` and `strength_group`; flipped where that was asked for. Ties
            are left as they are.
        strength: of the pairs with a preference, before any flip.
        flips: how many were flipped.
    """

    comparisons: list[Comparison]
    strength: PreferenceStrength
    flips: int


def vote(
    rewarded: Sequence[Iterable[Comparison]],
    *,
    flip_fraction: float | None = None,
    flip_threshold: float | None = None,
    groups: int = 10,
    normalise: bool = False,
) -> Vote:
    """Join the rewards that several models gave to the same comparisons.

    Rewards stay with their responses when a label is flipped, so the margin of a flipped pair changes sign.

    Args:
        rewarded: for each model the same comparisons in the same order, with `extra["rewards"]`; see
            `language.annotate`.
        flip_fraction: flip the weakest share; see `flip_weakest`.
        flip_threshold: or all below this strength.
        groups: number of groups by strength.
        normalise: see `preference_strength`; `rewards` stay as they are.

    Raises:
        OptionError: an option is out of range.
        PrefkitError: there is no model, there are no pairs, or the files differ in length.
        RecordError: a comparison is no pair, differs between models, or has no reward for each response.
    """
    if not rewarded:
        raise PrefkitError("a vote needs the rewards of at least one model")
    records: list[Comparison] = []
    means: list[list[float]] = []
    ahead: list[list[float]] = []
    voted: list[int] = []
    for group in _together(rewarded):
        first, rewards = group[0], [_rewards(record) for record in group]
        records.append(first)
        means.append([sum(side) / len(group) for side in zip(*rewards, strict=True)])
        found = pairs(first)
        if found:
            chosen, rejected = found[0].chosen, found[0].rejected
            voted.append(len(records) - 1)
            ahead.append([own[chosen] - own[rejected] for own in rewards])
    if not voted:
        raise PrefkitError("no comparison has a preferred response: there is nothing to vote on")
    scores = torch.tensor(ahead, dtype=torch.float64).T
    strength = preference_strength(scores, torch.zeros_like(scores), normalise=normalise)
    turned = torch.zeros(len(voted), dtype=torch.bool)
    if flip_fraction is not None or flip_threshold is not None:
        turned = flip_weakest(strength.mean, fraction=flip_fraction, threshold=flip_threshold).mask
    placed = strength_groups(strength.mean, groups)
    records = [
        replace(record, extra={**record.extra, "rewards": own}) for record, own in zip(records, means, strict=True)
    ]
    for place, at in enumerate(voted):
        sign = -1.0 if turned[place] else 1.0
        said = {
            "strength_mean": sign * float(strength.mean[place]),
            "strength_std": float(strength.std[place]),
            "vote_share": float(strength.vote_share[place]),
            "strength_group": int(placed[place]),
            "flipped": bool(turned[place]),
        }
        record = replace(records[at], extra={**records[at].extra, **said})
        records[at] = flipped(record) if turned[place] else record
    return Vote(records, strength, int(turned.sum()))


def _together(rewarded: Sequence[Iterable[Comparison]]) -> Iterator[tuple[Comparison, ...]]:
    """The same comparison of every model."""
    for group in zip_longest(*rewarded):
        first = group[0]
        if any(each is None for each in group):
            there = next(each for each in group if each is not None)
            raise PrefkitError(
                f"the files hold different numbers of comparisons: {there.source}:{there.line} is not in all of them"
            )
        if len(first.responses) != 2:
            raise RecordError(
                f"a vote is on pairs, got {len(first.responses)} responses",
                field="responses",
                source=first.source,
                line=first.line,
            )
        for other in group[1:]:
            if (other.prompts, other.responses, other.judgement) != (first.prompts, first.responses, first.judgement):
                raise RecordError(
                    f"is another comparison than {first.source}:{first.line}; the files must hold the same ones in the "
                    "same order",
                    source=other.source,
                    line=other.line,
                )
        yield group


def _rewards(record: Comparison) -> list[float]:
    given = record.extra.get("rewards")
    if (
        not isinstance(given, list | tuple)
        or len(given) != len(record.responses)
        or not all(isinstance(value, int | float) for value in given)
    ):
        raise RecordError(
            f"one reward a response is needed, as `prefkit score --rewards-into` writes them, got {given!r}",
            field="rewards",
            source=record.source,
            line=record.line,
        )
    return [float(value) for value in given]
