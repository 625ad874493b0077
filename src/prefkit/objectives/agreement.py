"""Strength: how far several reward models agree with a label, and what to do about labels with which they do not.

The strength of a pair is the mean, over reward models that were trained apart, of the reward of the chosen response
less that of the rejected one. Where it is negative the label is probably wrong: it can be flipped, softened, or left
to stand with a margin that allows the pair to stay misordered. The vote means something only if the models have not
memorised the labels: let each see the data once, or score folds that it was not trained on.

Source of all: Wang et al. 2024, Secrets of RLHF in Large Language Models Part II (arXiv 2401.06080).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, FiniteFloat
from torch import Tensor

from prefkit.errors import OptionError, PrefkitError
from prefkit.objectives import links, noise
from prefkit.objectives.parts import Part, catalogue
from prefkit.options import Options

Smoothed = Literal["negative", "all"]
"""Which labels are softened: those of negative strength, or all."""


class PreferenceStrength(NamedTuple):
    """What a vote of reward models says about each pair.

    Args:
        mean: mean difference of rewards; below 0 the models contradict the label.
        std: standard deviation of the differences over the models, dividing by their number.
        vote_share: share of the models that order the pair as labelled.
    """

    mean: Float[Tensor, " pairs"]
    std: Float[Tensor, " pairs"]
    vote_share: Float[Tensor, " pairs"]


def preference_strength(
    chosen_scores: Float[Tensor, "models pairs"],
    rejected_scores: Float[Tensor, "models pairs"],
    *,
    normalise: bool = False,
) -> PreferenceStrength:
    """The strength of each pair by a vote of reward models.

    Args:
        chosen_scores: rewards of the chosen responses.
        rejected_scores: rewards of the rejected responses.
        normalise: divide each model's differences by their root mean square first, so that models with rewards on
            large scales do not outvote the others. Off by default, as in the paper.

    Raises:
        PrefkitError: the scores are not two tables of one shape with at least one model, one of them is no finite
            number, or a model to normalise calls all pairs equal.

    Source: section 2.2.
    """
    if chosen_scores.shape != rejected_scores.shape or chosen_scores.ndim != 2 or not len(chosen_scores):
        raise PrefkitError(
            "scores must be two tables [models, pairs] of one shape, of at least one model, got "
            f"{tuple(chosen_scores.shape)} and {tuple(rejected_scores.shape)}"
        )
    for side, scores in (("chosen", chosen_scores), ("rejected", rejected_scores)):
        bad = (~torch.isfinite(scores)).nonzero().tolist()
        if bad:
            model, pair = bad[0]
            raise PrefkitError(f"model {model} gives the {side} response of pair {pair} a reward that is no number")
    differences = chosen_scores - rejected_scores
    if normalise:
        scales = differences.square().mean(1, keepdim=True).sqrt()
        flat = (scales[:, 0] == 0).nonzero()[:, 0].tolist()
        if flat:
            raise PrefkitError(f"model {flat[0]} rewards both responses of every pair alike: it has no scale")
        differences = differences / scales
    return PreferenceStrength(
        differences.mean(0), differences.std(0, correction=0), (differences > 0).to(differences.dtype).mean(0)
    )


class Flips(NamedTuple):
    """Labels turned round.

    Args:
        mask: True where chosen and rejected are to be exchanged.
        strength: strengths after that, whose sign follows the flip.
    """

    mask: Bool[Tensor, " pairs"]
    strength: Float[Tensor, " pairs"]


def flip_weakest(
    strength: Float[Tensor, " pairs"], *, fraction: float | None = None, threshold: float | None = None
) -> Flips:
    """Flip the labels that the vote contradicts most.

    Args:
        strength: see `preference_strength`.
        fraction: flip the lowest share, in [0, 0.5], rounded down to whole pairs; of equal strengths the first ones.
        threshold: flip every pair below this strength instead.

    Raises:
        OptionError: neither or both of fraction and threshold are given, or one of them is out of range.
        PrefkitError: a strength is no number.

    Source: section 2.4.
    """
    if (fraction is None) == (threshold is None):
        raise OptionError("give fraction or threshold, one of the two")
    _check_strength(strength)
    if threshold is not None:
        if math.isnan(threshold):
            raise OptionError("threshold must be a number, got nan")
        mask = strength < threshold
    else:
        assert fraction is not None
        if not 0 <= fraction <= 0.5:
            raise OptionError(
                f"fraction must lie in [0, 0.5]: more flips would turn round right labels, got {fraction}"
            )
        mask = _ranks(strength) < math.floor(fraction * len(strength))
    return Flips(mask, torch.where(mask, -strength, strength))


def strength_groups(strength: Float[Tensor, " pairs"], groups: int = 10) -> Int[Tensor, " pairs"]:
    """The group of each pair, 0 for the weakest, in `groups` groups of nearly equal size by ascending strength.

    Raises:
        OptionError: there are fewer groups than one.
        PrefkitError: a strength is no number.

    Source: section 2.3.
    """
    if groups < 1:
        raise OptionError(f"groups must be at least 1, got {groups}")
    _check_strength(strength)
    return _ranks(strength) * groups // max(len(strength), 1)


def _ranks(values: Tensor) -> Tensor:
    """Place of each value in ascending order; equal values keep their order."""
    order = torch.argsort(values, stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def _check_strength(strength: Tensor) -> None:
    bad = torch.isnan(strength).nonzero()[:, 0].tolist()
    if bad:
        raise PrefkitError(f"the strength of pair {bad[0]} is no number")


def smoothed_reward_loss(
    chosen_scores: Float[Tensor, " batch"],
    rejected_scores: Float[Tensor, " batch"],
    *,
    alpha: float | Float[Tensor, " batch"] = 0.2,
) -> Float[Tensor, " batch"]:
    """Loss of a reward model on smoothed labels: -(1 - a) log sigmoid(d) - a log sigmoid(-d).

    Args:
        chosen_scores: rewards of the chosen responses, in log-odds.
        rejected_scores: rewards of the rejected responses.
        alpha: a, in [0, 0.5]; one number, or one a pair. At 0.5 a label says nothing.

    Raises:
        OptionError: alpha is out of range, or shapes differ.
    """
    return adaptive_margin_loss(chosen_scores, rejected_scores, torch.zeros_like(chosen_scores), alpha=alpha)


def adaptive_margin_loss(
    chosen_scores: Float[Tensor, " batch"],
    rejected_scores: Float[Tensor, " batch"],
    margins: Float[Tensor, " batch"],
    *,
    alpha: float | Float[Tensor, " batch"] = 0.0,
    smoothed: Smoothed = "all",
) -> Float[Tensor, " batch"]:
    """Loss of a reward model with a margin a pair: -(1 - a) log sigmoid(z) - a log sigmoid(-z), z = d - margin.

    A pair of negative margin may stay misordered.

    Args:
        chosen_scores: rewards of the chosen responses, in log-odds.
        rejected_scores: rewards of the rejected responses.
        margins: strength of each pair, constant in the gradient; after a flip that of the flipped pair.
        alpha: a, smoothing of the labels, in [0, 0.5]; one number, or one a pair.
        smoothed: "negative" smooths only pairs of negative strength, which is the paper's soft label with margin.

    Raises:
        OptionError: alpha is out of range, or shapes differ.

    Source: section 2.5.
    """
    if not chosen_scores.shape == rejected_scores.shape == margins.shape:
        raise OptionError(
            "each pair needs two scores and a margin, got shapes "
            f"{tuple(chosen_scores.shape)}, {tuple(rejected_scores.shape)} and {tuple(margins.shape)}"
        )
    return adaptive_margin(chosen_scores - rejected_scores, margins, beta=1.0, alpha=alpha, smoothed=smoothed)


def offset_reward_loss(score_difference: Float[Tensor, " batch"], *, offset: float = 1e-5) -> Float[Tensor, " batch"]:
    """-log(sigmoid(d) + offset), the loss of the paper's released trainer, for parity with it only.

    It ends a little below 0 and has no gradient where a pair is ranked very wrongly; `reward_model_loss` is exact.

    Args:
        score_difference: d, reward of the chosen response less that of the rejected one.
        offset: added to the probability.

    Source: the authors' code.
    """
    return -torch.log(torch.sigmoid(score_difference) + offset)


class AdaptiveMarginOptions(Options):
    """Options of `adaptive_margin`."""

    beta: FiniteFloat = Field(1.0, gt=0, description="factor of the difference of rewards")
    alpha: FiniteFloat = Field(0.0, ge=0, le=0.5, description="smoothing of labels")
    smoothed: Smoothed = Field("negative", description="which labels are smoothed: of negative strength, or all")


def adaptive_margin(
    margin: Float[Tensor, " batch"],
    margins: Float[Tensor, " batch"],
    *,
    beta: float = 1.0,
    alpha: float | Float[Tensor, " batch"] = 0.0,
    smoothed: Smoothed = "negative",
) -> Float[Tensor, " batch"]:
    """Logistic loss of what a pair is ahead of its own margin, on labels that may be smoothed.

    Args:
        margin: reward of the chosen response less that of the rejected one.
        margins: the strength of each pair, which it has to reach; no gradient.
        beta: factor of the former.
        alpha: smoothing, in [0, 0.5].
        smoothed: see `adaptive_margin_loss`.

    Raises:
        OptionError: alpha is out of range.
    """
    rates = torch.as_tensor(alpha, dtype=margin.dtype, device=margin.device)
    if not bool(((rates >= 0) & (rates <= 0.5)).all()):
        raise OptionError(f"alpha must lie in [0, 0.5] (at 0.5 a label says nothing), got {alpha}")
    target = margins.detach()
    if smoothed == "negative":
        rates = torch.where(target < 0, rates, torch.zeros_like(rates))
    ahead = beta * margin - target
    return noise.soft_labels(links.logistic(ahead, beta=1.0), F.softplus(ahead), 1 - rates)


STRENGTH_LINKS = catalogue(
    # The margin belongs to the label: exchanging the responses alone would leave it behind.
    Part("adaptive_margin", adaptive_margin, ("margins",), AdaptiveMarginOptions, one_way=True),
)
