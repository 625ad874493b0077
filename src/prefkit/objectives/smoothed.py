"""Smoothed preferences: the margin of a pair counts as far as a scorer finds its two members different.

A winner that is hardly better than the loser should hardly be learned from. The labels are smoothed as a geometric
mixture of both orders, which multiplies the margin by a coefficient that vanishes for a near tie.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field, FiniteFloat
from torch import Tensor

from prefkit.errors import OptionError
from prefkit.objectives.links import Temperature, logistic
from prefkit.objectives.parts import Part, catalogue


class SmoothedPreference(NamedTuple):
    """Which of two is better, and with what probability."""

    winner: Int[Tensor, " batch"]
    probability: Float[Tensor, " batch"]


def smoothed_preference_prob(
    score_0: Float[Tensor, " batch"],
    score_1: Float[Tensor, " batch"],
    score_min: float,
    score_max: float,
    *,
    temperature: float = 1.0,
) -> SmoothedPreference:
    """The better of two by a scorer, and the probability of a choice between the scores on a scale from 0 to 1.

    The first is the winner only if its score is greater. Scores outside the range are not clipped.

    Args:
        score_0: score of the first.
        score_1: score of the second.
        score_min: least score of the data.
        score_max: greatest score of the data.
        temperature: divides the scaled scores; the paper's is 1, which keeps p between 0.5 and 0.731.

    Raises:
        OptionError: the range is empty, the temperature not positive, or scores are missing or not finite.

    Source: Lu et al. 2025 (SmPO-Diffusion, arXiv 2506.02698).
    """
    if not score_max > score_min:
        raise OptionError(f"score_max must be greater than score_min, got {score_max} and {score_min}")
    if not temperature > 0:
        raise OptionError(f"temperature must be greater than 0, got {temperature}")
    if score_0.shape != score_1.shape:
        raise OptionError(f"each pair needs two scores, got {tuple(score_0.shape)} and {tuple(score_1.shape)}")
    if not bool(torch.isfinite(score_0).all() and torch.isfinite(score_1).all()):
        raise OptionError("scores must be finite numbers")
    gap = (score_0 - score_1) / (score_max - score_min) / temperature
    return SmoothedPreference((gap <= 0).long(), torch.sigmoid(gap.abs()))


class Smoothing(NamedTuple):
    """alpha = gamma p, and the coefficient 2 alpha - gamma of the margin."""

    alpha: Float[Tensor, " batch"]
    coefficient: Float[Tensor, " batch"]


def smoothing_coefficients(p_winner: Float[Tensor, " batch"], gamma: float) -> Smoothing:
    """What a smoothed label multiplies the margin of its pair by: gamma (2 p - 1).

    Args:
        p_winner: probability that the one called better is so, in [0, 1]; below one half the coefficient is negative.
        gamma: sensitivity.

    Raises:
        OptionError: a probability or gamma is out of range.

    Source: Lu et al. 2025 (arXiv 2506.02698).
    """
    if not gamma > 0:
        raise OptionError(f"gamma must be greater than 0, got {gamma}")
    if not bool(((p_winner >= 0) & (p_winner <= 1)).all()):
        raise OptionError("p_winner must lie in [0, 1]")
    alpha = gamma * p_winner
    return Smoothing(alpha, 2 * alpha - gamma)


class SmoothedOptions(Temperature):
    """Options of `smoothed_logistic`."""

    sensitivity: FiniteFloat = Field(10.0, gt=0, description="gamma, by which the smoothed margins are scaled")
    score_range: FiniteFloat = Field(1.0, gt=0, description="greatest less least score of the data")


def smoothed_logistic(
    margin: Float[Tensor, " batch"],
    margins: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
    sensitivity: float = 10.0,
    score_range: float = 1.0,
) -> Float[Tensor, " batch"]:
    """-log sigmoid(beta c margin), with c = gamma (2 p - 1) and p the choice between the scores of the pair.

    Args:
        margin: reward of the chosen response less that of the rejected one.
        margins: a scorer's score of the chosen response less that of the rejected one, on the scorer's own scale.
        beta: temperature.
        sensitivity: gamma.
        score_range: greatest less least score of the data.

    Source: Lu et al. 2025 (SmPO-Diffusion, arXiv 2506.02698).
    """
    p = torch.sigmoid(margins / score_range)
    return logistic(smoothing_coefficients(p, sensitivity).coefficient * margin, beta=beta)


SMOOTHED = catalogue(Part("smoothed_logistic", smoothed_logistic, ("margins",), SmoothedOptions))
