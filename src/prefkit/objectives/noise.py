"""Noise: labels that are wrong with a known probability, corrected for in any pairwise loss, or injected.

A correction takes the loss of the pair as observed and the loss of the same pair with its responses exchanged. It
knows nothing else of the loss, so it serves all of them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, field_validator
from torch import Tensor

from prefkit.comparisons import Comparison, Judgement, Label, Probability, Ranking, Ratings, RecordError, Winner
from prefkit.errors import OptionError
from prefkit.objectives.parts import Part, Stateful, catalogue
from prefkit.objectives.scores import PairScores
from prefkit.options import Options


class FlipOptions(Options):
    """Options of the corrections for flipped labels."""

    flip_rate: float = Field(0.1, ge=0, lt=0.5, description="probability that a label is wrong")

    @field_validator("flip_rate")
    @classmethod
    def _warn(cls, value: float) -> float:
        if value > 0.4:
            warnings.warn(
                f"a flip_rate of {value} leaves little signal: gradients scale with 1/(1 - 2 flip_rate) = "
                f"{1 / (1 - 2 * value):.3g} in a robust loss",
                stacklevel=2,
            )
        return value


def conservative(
    losses: Float[Tensor, " batch"],
    swapped_losses: Float[Tensor, " batch"],
    *,
    flip_rate: float | Float[Tensor, " batch"] = 0.1,
) -> Float[Tensor, " batch"]:
    """Label smoothing: the mean of a loss over flips of its label, (1 - e) l + e l_swapped.

    Biased: for a clean label the logistic loss is least where the model gives the chosen response probability 1 - e.

    Args:
        losses: loss of each pair as observed.
        swapped_losses: loss of each pair with its responses exchanged.
        flip_rate: e, in [0, 0.5); one number, or one a pair.

    Raises:
        OptionError: the flip rate is out of range.

    Source: Mitchell 2023, A note on DPO with noisy preferences and relationship to IPO, eq. 3.
    """
    check_flip_rate(flip_rate)
    return (1 - flip_rate) * losses + flip_rate * swapped_losses


def robust(
    losses: Float[Tensor, " batch"],
    swapped_losses: Float[Tensor, " batch"],
    *,
    flip_rate: float | Float[Tensor, " batch"] = 0.1,
) -> Float[Tensor, " batch"]:
    """Unbiased correction: ((1 - e) l - e l_swapped) / (1 - 2 e), whose mean over flips is the loss of the clean label.

    It is negative and has no lower bound where the loss of the exchanged pair has no upper bound, so its training
    value says nothing about the fit.

    Args:
        losses: loss of each pair as observed.
        swapped_losses: loss of each pair with its responses exchanged.
        flip_rate: e, in [0, 0.5); one number, or one a pair.

    Raises:
        OptionError: the flip rate is out of range.

    Source: Chowdhury et al. 2024 (rDPO, arXiv 2403.00409).
    """
    check_flip_rate(flip_rate)
    return ((1 - flip_rate) * losses - flip_rate * swapped_losses) / (1 - 2 * flip_rate)


def soft_labels(
    losses: Float[Tensor, " batch"],
    swapped_losses: Float[Tensor, " batch"],
    probabilities: Float[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Mean of a loss over a label that is right with a given probability, p l + (1 - p) l_swapped.

    Args:
        losses: loss of each pair as observed.
        swapped_losses: loss of each pair with its responses exchanged.
        probabilities: p, probability that the chosen response is the better one, in [0, 1].
    """
    return probabilities * losses + (1 - probabilities) * swapped_losses


def robust_loss(
    loss: Callable[[PairScores], Float[Tensor, " batch"]],
    scores: PairScores,
    *,
    flip_rate: float | Float[Tensor, " batch"] = 0.1,
) -> Float[Tensor, " batch"]:
    """Any pairwise loss, corrected for flipped labels; see `robust`.

    Args:
        loss: per-example losses of scored pairs.
        scores: the pairs as observed.
        flip_rate: in [0, 0.5); one number, or one a pair.

    Raises:
        OptionError: the flip rate is out of range.
    """
    return robust(loss(scores), loss(scores.swapped()), flip_rate=flip_rate)


def induced_log_odds(
    losses: Float[Tensor, " batch"], swapped_losses: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Log-odds that the chosen response is the better one, as any pairwise loss implies them: l_swapped - l.

    For the logistic link without a target margin this is beta times the margin.

    Source: Latent Collective Preference Optimization, 2025 (arXiv 2509.24159), eq. 2.
    """
    return swapped_losses - losses


class GradientWeights(NamedTuple):
    """How hard each loss pushes on a pair: its gradient in the chosen log-probability is -beta times this."""

    dpo: Float[Tensor, " batch"]
    cdpo: Float[Tensor, " batch"]
    rdpo: Float[Tensor, " batch"]


def gradient_weights(
    margin: Float[Tensor, " batch"], *, beta: float = 0.1, flip_rate: float | Float[Tensor, " batch"] = 0.1
) -> GradientWeights:
    """Weights of the gradients of the DPO loss, plain, conservative and robust.

    With z = sigmoid(-beta * margin) they are z, z - e and z + e / (1 - 2 e): the conservative loss turns round once
    the margin is large, the robust one never does.

    Args:
        margin: log-ratio of the chosen response less that of the rejected one.
        beta: temperature.
        flip_rate: e, in [0, 0.5); one number, or one a pair.

    Raises:
        OptionError: the flip rate is out of range.

    Source: Chowdhury et al. 2024 (rDPO, arXiv 2403.00409).
    """
    check_flip_rate(flip_rate)
    plain = torch.sigmoid(-beta * margin)
    return GradientWeights(plain, plain - flip_rate, plain + flip_rate / (1 - 2 * flip_rate))


def flip_preferences(
    comparisons: Iterable[Comparison], flip_rate: float | Mapping[str, float], seed: int
) -> tuple[list[Comparison], NDArray[np.bool_]]:
    """Flip each judgement with a given probability, independently: label noise for experiments on training data.

    Args:
        comparisons: pairs or labelled single responses.
        flip_rate: probability of a flip, in [0, 0.5); or one an annotator, by name.
        seed: of the random choice; the same seed flips the same positions.

    Returns:
        The comparisons in their order, and `[n]`, True where the judgement was flipped. A tie has nothing to flip.

    Raises:
        OptionError: the flip rate is out of range.
        RecordError: a comparison has more than two responses, judges steps, or has an annotator without a rate.
    """
    records = list(comparisons)
    if isinstance(flip_rate, Mapping):
        rates = np.array([_rate_of(record, flip_rate) for record in records])
    else:
        rates = np.full(len(records), flip_rate)
    for rate in flip_rate.values() if isinstance(flip_rate, Mapping) else (flip_rate,):
        check_flip_rate(rate)
    mask = np.random.default_rng(seed).random(len(records)) < rates
    for index in np.flatnonzero(mask):
        turned = flipped(records[index])
        mask[index] = turned.judgement != records[index].judgement
        records[index] = turned
    return records, mask


def _rate_of(record: Comparison, rates: Mapping[str, float]) -> float:
    if record.annotator is None or record.annotator not in rates:
        raise RecordError(
            f"no flip rate is given for {record.annotator!r}; given: {', '.join(sorted(rates))}",
            field="annotator",
            source=record.source,
            line=record.line,
        )
    return rates[record.annotator]


def flipped(record: Comparison) -> Comparison:
    """A comparison with its judgement turned round. A tie has nothing to turn.

    Raises:
        RecordError: it has more than two responses, or judges steps.
    """
    return replace(record, judgement=_flipped(record))


def _flipped(record: Comparison) -> Judgement:
    match record.judgement:
        case Winner(index) if len(record.responses) == 2:
            return Winner(1 - index)
        case Probability(first):
            return Probability(1 - first)
        case Label(good):
            return Label(not good)
        case Ranking((first, second), both_bad):
            return Ranking((second, first), both_bad)
        case Ratings((first, second)):
            return Ratings((second, first))
    raise RecordError(
        "only a judgement of a pair or of one whole response can be flipped",
        field="judgement",
        source=record.source,
        line=record.line,
    )


def check_flip_rate(flip_rate: float | Tensor) -> None:
    """Refuse a flip rate outside [0, 0.5).

    Raises:
        OptionError: it is out of range.
    """
    if isinstance(flip_rate, Tensor):
        inside = bool(((flip_rate >= 0) & (flip_rate < 0.5)).all())
    else:
        inside = math.isfinite(flip_rate) and 0 <= flip_rate < 0.5
    if not inside:
        raise OptionError(
            f"flip_rate must lie in [0, 0.5) (at 0.5 a label says nothing about its pair), got {flip_rate}"
        )


class StrengthLabelOptions(Options):
    """Options of `strength_label`."""

    label: Literal["pairwise", "bt", "gap", "gap_sigmoid"] = Field(
        "pairwise", description="how a strength becomes the probability that the chosen response is preferred"
    )
    scale: FiniteFloat = Field(1.0, gt=0, description="divides the strengths, which are on the data's own scale")


def strength_labels(
    strengths: Float[Tensor, " batch"],
    *,
    label: Literal["pairwise", "bt", "gap", "gap_sigmoid"] = "pairwise",
    scale: float = 1.0,
) -> Float[Tensor, " batch"]:
    """Probability that the chosen response is preferred, from how strongly it is.

    Args:
        strengths: on the data's own scale.
        label: what strength / scale is. "pairwise": the probability itself. "gap": the difference of two probabilities
            of winning, (1 + s) / 2. "bt": a difference of log-odds or rewards, sigmoid(s). "gap_sigmoid": the
            difference of two probabilities of winning, taken as if it were one of log-odds, sigmoid(s): a far more
            cautious policy.
        scale: divides the strengths.

    Raises:
        OptionError: a strength gives no probability.

    Source: Online Self-Preferring Language Models, 2024 (arXiv 2405.14103).
    """
    scaled = strengths / scale
    if label in ("bt", "gap_sigmoid"):
        return torch.sigmoid(scaled)
    if bool(((scaled < 0) | (scaled > 1)).any()):
        raise OptionError(
            f"label '{label}' needs strengths from 0 to the scale of {scale}, got "
            f"{strengths.min().item():.4g} to {strengths.max().item():.4g}; set scale, or use label: bt"
        )
    return scaled if label == "pairwise" else (1 + scaled) / 2


class StrengthLabels(Stateful):
    """Soft labels from the strengths of the data, see `strength_labels`.

    The least that the loss can be is the labels' entropy, which the figure `label_entropy` gives.

    Args:
        label: see `strength_labels`.
        scale: see `strength_labels`.
    """

    def __init__(self, label: Literal["pairwise", "bt", "gap", "gap_sigmoid"], scale: float) -> None:
        super().__init__()
        self.label, self.scale = label, scale

    def forward(
        self,
        losses: Float[Tensor, " batch"],
        swapped_losses: Float[Tensor, " batch"],
        strengths: Float[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """The mean of the loss over the label, as in `soft_labels`."""
        p = strength_labels(strengths, label=self.label, scale=self.scale)
        self.figures = {
            "soft_label": p,
            "label_entropy": torch.special.entr(p) + torch.special.entr(1 - p),
        }
        return soft_labels(losses, swapped_losses, p)


NOISE = catalogue(
    Part("strength_label", StrengthLabels, ("strengths",), StrengthLabelOptions),
    Part("conservative", conservative, options=FlipOptions),
    Part("robust", robust, options=FlipOptions),
)
