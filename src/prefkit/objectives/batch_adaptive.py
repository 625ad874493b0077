"""A temperature for each batch, and a filter of its pairs: the baseline beta-DPO.

The more a batch's pairs are already told apart, the higher its temperature; pairs far from the running centre of the
margins are left out more often.

Source: Wu et al. 2024, beta-DPO (arXiv 2407.08639), in the order of operations of the code that Margin Adaptive DPO
(arXiv 2510.05342) compares with: the running centre takes in the batch before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, FiniteFloat
from torch import Tensor

from prefkit.objectives.links import Temperature, logistic
from prefkit.objectives.parts import Part, Stateful, catalogue

TINY = 1e-6
"""Added to standard deviations, so that a batch of equal margins has a scale."""


class BatchOptions(Temperature):
    """Options of `batch_logistic`."""

    alpha: FiniteFloat = Field(0.6, ge=0, description="how far the temperature follows the batch's mean margin")
    keep: float = Field(0.8, gt=0, le=1, description="share of a batch's pairs that is kept")
    momentum: float = Field(0.9, ge=0, lt=1, description="weight of the past in the running centre and scale")
    seed: int = Field(0, ge=0, description="of the choice of pairs")


class BatchFilter(NamedTuple):
    """Running statistics after a batch, and how likely each of its pairs is kept.

    Args:
        centre: running mean of the margins.
        scale: running standard deviation.
        scores: exp(-(margin - centre)^2 / (2 (scale + 1e-6)^2)).
        probabilities: the scores, normalised; of the first draw.
    """

    centre: Float[Tensor, ""]
    scale: Float[Tensor, ""]
    scores: Float[Tensor, " batch"]
    probabilities: Float[Tensor, " batch"]


def beta_dpo_batch_beta(
    margins: Float[Tensor, " batch"], *, beta: float = 0.1, alpha: float = 0.6, centre: float | Float[Tensor, ""] = 0.0
) -> Float[Tensor, ""]:
    """Temperature of a batch: (1 + alpha (mean margin - centre)) beta.

    Args:
        margins: beta times the implicit margin of each pair.
        beta: temperature of a batch at the centre.
        alpha: how far it follows the mean.
        centre: running mean of the margins.
    """
    return (1 + alpha * (margins.mean() - centre)) * beta


def beta_dpo_filter(
    margins: Float[Tensor, " batch"],
    *,
    centre: float | Float[Tensor, ""] = 0.0,
    scale: float | Float[Tensor, ""] = 1.0,
    momentum: float = 0.9,
) -> BatchFilter:
    """Take a batch into the running statistics, and say how likely each of its pairs is kept.

    Args:
        margins: beta times the implicit margin of each pair; two or more.
        centre: running mean before the batch.
        scale: running standard deviation before the batch.
        momentum: weight of the past.
    """
    return _filtered(margins, margins.mean(), margins.std() + TINY, centre, scale, momentum)


def _filtered(
    margins: Tensor, mean: Tensor, std: Tensor, centre: float | Tensor, scale: float | Tensor, momentum: float
) -> BatchFilter:
    centre = momentum * centre + (1 - momentum) * mean
    scale = momentum * scale + (1 - momentum) * std
    logs = -((margins - centre) ** 2) / (2 * (scale + TINY) ** 2)
    return BatchFilter(centre, scale, logs.exp(), torch.softmax(logs, dim=0))


class BatchLogistic(Stateful):
    """-log sigmoid(b margin) with the batch's temperature b, of the pairs that the filter keeps.

    The losses of kept pairs are divided by the share that is kept, so that the batch mean is theirs; those of others
    are 0. UNSURE: whether the authors divide by the kept pairs or by all. A batch is one forward pass, of all processes
    together; accumulated steps are batches of their own, since the temperature is needed before the next one is seen.
    Each process keeps its share of its own pairs. In evaluation mode no pair is left out and nothing moves. The
    temperature is not let below 0, where it would prefer the rejected responses.

    Args:
        beta: temperature of a batch at the centre.
        alpha: see `BatchOptions`, as the others.
        keep: share of the pairs that is kept.
        momentum: weight of the past.
        seed: of the choice.

    Attributes:
        centre: running mean of beta times the margins.
        scale: running standard deviation.
        batches: how many there were, from which, with the seed, the next choice follows.
    """

    one_way = True
    centre: Tensor
    scale: Tensor
    batches: Tensor

    def __init__(
        self, *, beta: float = 0.1, alpha: float = 0.6, keep: float = 0.8, momentum: float = 0.9, seed: int = 0
    ) -> None:
        super().__init__()
        self.beta, self.alpha, self.keep, self.momentum, self.seed = beta, alpha, keep, momentum, seed
        self._reset()

    def prepare(self, annotators: Sequence[str]) -> None:
        """See `Stateful.prepare`."""
        self._reset()

    def forward(self, margin: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The losses of the pairs of a batch.

        Args:
            margin: reward of each chosen response less that of the rejected one, without beta.
        """
        scaled = self.beta * margin.detach()
        mean, std = self._moments(scaled)
        kept = torch.ones_like(scaled)
        if self.training:
            found = _filtered(scaled, mean, std + TINY, self.centre, self.scale, self.momentum)
            self.centre.copy_(found.centre)
            self.scale.copy_(found.scale)
            kept = self._choose(found.probabilities)
        beta = beta_dpo_batch_beta(mean, beta=self.beta, alpha=self.alpha, centre=self.centre).clamp(min=0)
        self.figures = {"batch_beta": beta.expand_as(scaled), "kept": (kept > 0).to(scaled.dtype)}
        return kept * logistic(beta * margin, beta=1.0)

    def _moments(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and unbiased standard deviation over all processes; that of one pair is taken to be 0."""
        ones = torch.ones_like(scaled)
        count, summed = self.total(torch.stack([ones.sum(), scaled.sum()]))
        mean = summed / count.clamp(min=1)
        squares = self.total(((scaled - mean) ** 2).sum())
        return mean, (squares / (count - 1).clamp(min=1)).sqrt()

    def _choose(self, probabilities: Tensor) -> Tensor:
        """Weight of each pair: 0, or one over the share that is kept."""
        count = max(int(self.keep * len(probabilities)), min(len(probabilities), 1))
        self.batches += 1
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.batches))
        # Sorting by log p plus Gumbel noise draws without replacement, also where a probability is 0.
        uniform = torch.rand(len(probabilities), generator=generator, dtype=torch.float64).to(probabilities)
        noise = -torch.log(-torch.log(uniform.clamp(1e-6, 1 - 1e-6)))
        places = torch.topk(probabilities.log() + noise, count).indices
        return torch.zeros_like(probabilities).index_fill(0, places, len(probabilities) / max(count, 1))

    def _reset(self) -> None:
        self.register_buffer("centre", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("batches", torch.tensor(0))


BATCH_LINKS = catalogue(Part("batch_logistic", BatchLogistic, options=BatchOptions))
