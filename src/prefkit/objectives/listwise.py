"""Listwise losses: from the rewards of K ranked responses to one loss a list.

Rank 0 is best. Responses of equal rank are ties: nothing is said about their order, so they are not compared with each
other. Places where the mask is False hold nothing and have no influence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from prefkit.objectives.calibration import CALIBRATION
from prefkit.objectives.graded import GRADED
from prefkit.objectives.links import LINKS, Temperature, logistic
from prefkit.objectives.parts import Part, catalogue
from prefkit.objectives.self_play import SELF_PLAY


def plackett_luce_loss(
    rewards: Float[Tensor, "batch k"],
    ranks: Int[Tensor, "batch k"],
    mask: Bool[Tensor, "batch k"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " batch"]:
    """Negative log-likelihood of a ranking as a series of choices, each of the best response that is left.

    A response is chosen against itself and everything ranked below it. A list in which one response is best and
    the others tie is a best-of-K choice; two responses give the logistic loss of a pair; a list of ties gives 0.

    Args:
        rewards: reward of each response, without the temperature.
        ranks: rank of each response.
        mask: which places hold a response.
        beta: temperature.

    Source: Plackett 1975, The analysis of permutations; Rafailov et al. 2023 (DPO, arXiv 2305.18290), eq. 18.
    """
    scaled = (beta * rewards).masked_fill(~mask, 0.0)
    itself = torch.eye(ranks.shape[1], dtype=torch.bool, device=ranks.device)
    rivals = _below(ranks, mask) | itself
    against = scaled.unsqueeze(1).expand(rivals.shape).masked_fill(~rivals, -torch.inf).logsumexp(2)
    return (against - scaled).sum(1)


def all_pairs_loss(
    rewards: Float[Tensor, "batch k"],
    ranks: Int[Tensor, "batch k"],
    mask: Bool[Tensor, "batch k"],
    *,
    link: Callable[[Float[Tensor, "batch k k"]], Float[Tensor, "batch k k"]] = logistic,
) -> Float[Tensor, " batch"]:
    """Mean of a pairwise loss over all pairs of a list in which one response is ranked above the other.

    Args:
        rewards: reward of each response, without the temperature.
        ranks: rank of each response.
        mask: which places hold a response.
        link: from margins to losses, with its temperature set.

    Returns:
        One loss a list; 0 for a list of ties.

    Source: Ouyang et al. 2022 (InstructGPT, arXiv 2203.02155), eq. 1.
    """
    pairs = _below(ranks, mask)
    # Margins that count for nothing are set to 0 before the link, so that none of them can overflow.
    margins = (rewards.unsqueeze(2) - rewards.unsqueeze(1)).masked_fill(~pairs, 0.0)
    losses = link(margins).masked_fill(~pairs, 0.0)
    return losses.sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


def _below(ranks: Int[Tensor, "batch k"], mask: Bool[Tensor, "batch k"]) -> Bool[Tensor, "batch k k"]:
    """Whether response j is ranked below response i, at [batch, i, j]."""
    return (ranks.unsqueeze(2) < ranks.unsqueeze(1)) & mask.unsqueeze(2) & mask.unsqueeze(1)


class AllPairsOptions(Temperature):
    """Options of `all_pairs`."""

    link: Literal["logistic", "hinge", "squared", "probit"] = Field("logistic", description="loss of one pair")


def _all_pairs(rewards: Tensor, ranks: Tensor, mask: Tensor, *, link: str, beta: float) -> Tensor:
    return all_pairs_loss(rewards, ranks, mask, link=partial(LINKS[link].function, beta=beta))


RANKINGS = catalogue(
    Part("plackett_luce", plackett_luce_loss, ("ranks", "mask"), Temperature),
    Part("all_pairs", _all_pairs, ("ranks", "mask"), AllPairsOptions, pairwise=True),
    CALIBRATION,
    *GRADED,
    *SELF_PLAY,
)
