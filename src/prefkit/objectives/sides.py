"""Sides: links that judge the chosen and the rejected response each on its own, against what the reference gives them.

They take the rewards of both sides, in nats and without the temperature beta, where 0 is the reference's own
log-probability. A difference of rewards says nothing about where the two stand; these losses do: they can keep the
chosen response from becoming less likely, which a margin allows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, FiniteFloat
from torch import Tensor

from prefkit.objectives.links import Temperature
from prefkit.objectives.parts import Part, catalogue

Rewards = Float[Tensor, " batch"]


class SppoOptions(Temperature):
    """Options of `sppo`."""

    beta: FiniteFloat = Field(0.001, gt=0, description="inverse of the step size eta of the self-play")


class DpopOptions(Temperature):
    """Options of `dpop`."""

    beta: FiniteFloat = Field(0.3, gt=0, description="temperature")
    penalty: FiniteFloat = Field(50.0, ge=0, description="weight of the chosen response's fall below the reference")


def nca(chosen: Rewards, rejected: Rewards, *, beta: float = 0.1) -> Float[Tensor, " batch"]:
    """-log s(c) - log s(-c) / 2 - log s(-r) / 2, with c, r = beta times the rewards and s the logistic function.

    Both responses are told from samples of the reference, of which each counts half: absolute likelihoods, where DPO
    learns relative ones.

    Source: Chen et al. 2024 (NCA, arXiv 2402.05369), for two responses of which one is good.
    """
    c, r = beta * chosen, beta * rejected
    return -F.logsigmoid(c) - 0.5 * F.logsigmoid(-c) - 0.5 * F.logsigmoid(-r)


def bco_pair(chosen: Rewards, rejected: Rewards, *, beta: float = 0.1) -> Float[Tensor, " batch"]:
    """-log s(c) - log s(-r): a binary classifier of good and bad responses, without the shift that `bco` learns.

    Source: Jung et al. 2024 (BCO, arXiv 2404.04656), with a reward shift of 0.
    """
    return -F.logsigmoid(beta * chosen) - F.logsigmoid(-beta * rejected)


def apo_zero(chosen: Rewards, rejected: Rewards, *, beta: float = 0.1) -> Float[Tensor, " batch"]:
    """1 - s(c) + s(r): the chosen response becomes more likely and the rejected one less.

    For chosen responses that are better than what the model gives of itself.

    Source: D'Oosterlinck et al. 2024 (APO, arXiv 2408.06266), eq. 7.
    """
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(chosen: Rewards, rejected: Rewards, *, beta: float = 0.1) -> Float[Tensor, " batch"]:
    """s(c) + 1 - s(c - r): both responses become less likely, the rejected one more so.

    For chosen responses that are worse than what the model gives of itself.

    Source: D'Oosterlinck et al. 2024 (APO, arXiv 2408.06266), eq. 8.
    """
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def sppo(
    chosen: Rewards, rejected: Rewards, probabilities: Float[Tensor, " batch"] | None = None, *, beta: float = 0.001
) -> Float[Tensor, " batch"]:
    """(chosen - (p - 1/2) / beta)^2 + (rejected + (p - 1/2) / beta)^2: each log-ratio is led to its win rate.

    Args:
        chosen: log-ratio of the chosen response.
        rejected: log-ratio of the rejected one.
        probabilities: p, probability that the chosen response wins; 1 by default (hard labels). A soft label in a
            composed objective, p l + (1 - p) l_swapped, has the same gradient; it is larger by 2 p (1 - p) / beta^2.
        beta: the inverse of the paper's eta.

    Source: Wu et al. 2024 (SPPO, arXiv 2405.00675), eq. 4.7.
    """
    target = (0.5 if probabilities is None else probabilities - 0.5) / beta
    return (chosen - target) ** 2 + (rejected + target) ** 2


def dpop(chosen: Rewards, rejected: Rewards, *, beta: float = 0.3, penalty: float = 50.0) -> Float[Tensor, " batch"]:
    """-log s(beta (chosen - rejected - penalty max(0, -chosen))): DPO that the chosen response must not pay for.

    Source: Pal et al. 2024 (DPO-Positive, arXiv 2402.13228), eq. 3, whose lambda is the penalty.
    """
    return -F.logsigmoid(beta * (chosen - rejected - penalty * torch.relu(-chosen)))


_BOTH = ("chosen", "rejected")

SIDES = catalogue(
    Part("nca", nca, _BOTH, Temperature),
    Part("bco_pair", bco_pair, _BOTH, Temperature),
    Part("apo_zero", apo_zero, _BOTH, Temperature),
    Part("apo_down", apo_down, _BOTH, Temperature),
    Part("sppo", sppo, _BOTH, SppoOptions),
    Part("dpop", dpop, _BOTH, DpopOptions),
)
