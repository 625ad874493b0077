"""Forums: votes on the replies to a post as preferences between replies.

Source: Wang et al. 2025, WorldPM: Scaling Human Preference Modeling (arXiv 2505.10527), sections 3.1.1 and A.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prefkit.errors import PrefkitError


class ForumPairs(NamedTuple):
    """What the votes on a post's replies say.

    Args:
        scores: score of each reply.
        pairs: places of the better and the worse reply of every two whose scores differ.
        gaps: how far the scores of each pair are apart. No part of the method: gaps are not margins.
    """

    scores: list[int]
    pairs: list[tuple[int, int]]
    gaps: list[int]


def forum_pairs(upvotes: Sequence[float], downvotes: Sequence[float], accepted: Sequence[float]) -> ForumPairs:
    """Every pair of replies of which one has the higher score: upvotes - downvotes + 1 if the author accepted it.

    Args:
        upvotes: of each reply.
        downvotes: of each reply.
        accepted: whether the author of the post accepted it, 0 or 1.

    Raises:
        PrefkitError: the lists differ in length, a count is negative or not whole, or accepted is neither 0 nor 1.
    """
    if not len(upvotes) == len(downvotes) == len(accepted):
        raise PrefkitError(
            "each reply needs upvotes, downvotes and accepted, got "
            f"{len(upvotes)}, {len(downvotes)} and {len(accepted)} values"
        )
    for name, counts in (("upvotes", upvotes), ("downvotes", downvotes)):
        for place, count in enumerate(counts):
            if count < 0 or count != int(count):
                raise PrefkitError(f"{name} of reply {place} must be a whole number of at least 0, got {count}")
    for place, mark in enumerate(accepted):
        if mark not in (0, 1):
            raise PrefkitError(f"accepted of reply {place} must be 0 or 1, got {mark}")
    scores = [int(up) - int(down) + int(mark) for up, down, mark in zip(upvotes, downvotes, accepted, strict=True)]
    places = range(len(scores))
    pairs = [(winner, loser) for winner in places for loser in places if scores[winner] > scores[loser]]
    return ForumPairs(scores, pairs, [scores[winner] - scores[loser] for winner, loser in pairs])


def drawn_pair(pairs: Sequence[tuple[int, int]], seed: int, post: str) -> tuple[int, int]:
    """One pair of a post, at random: the same seed and post give the same pair, whatever other posts there are."""
    entropy = [seed, *post.encode()]
    return pairs[int(np.random.default_rng(entropy).integers(len(pairs)))]
