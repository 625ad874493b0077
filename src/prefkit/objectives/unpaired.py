"""Unpaired losses: single responses that were judged good or bad."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, FiniteFloat
from torch import Tensor

from prefkit.objectives.links import Temperature
from prefkit.objectives.parts import Part, Stateful, catalogue


class KtoOptions(Temperature):
    """Options of `kto`."""

    desirable_weight: FiniteFloat = Field(1.0, ge=0, description="weight of responses judged good")
    undesirable_weight: FiniteFloat = Field(1.0, ge=0, description="weight of responses judged bad")


def kto_loss(
    rewards: Float[Tensor, " batch"],
    reference_point: Float[Tensor, ""],
    labels: Bool[Tensor, " batch"],
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, " batch"]:
    """How much a response falls short in the eyes of somebody who weighs gains and losses against a reference point.

    With r the reward and z the reference point, a good response costs w_good (1 - sigmoid(beta (r - z))) and a bad
    one w_bad (1 - sigmoid(beta (z - r))).

    Args:
        rewards: log-ratio of policy to reference, in nats.
        reference_point: see `kto_reference_point`.
        labels: True where the response was judged good.
        beta: temperature; a larger one is more risk-averse in gains.
        desirable_weight: w_good. Where classes are unbalanced, the ratio of the class sizes times the ratio of the
            weights should lie in [1, 4/3].
        undesirable_weight: w_bad.

    Source: Ethayarajh et al. 2024 (KTO, arXiv 2402.01306), eq. 8.
    """
    advantage = beta * (rewards - reference_point)
    good = desirable_weight * torch.sigmoid(-advantage)
    bad = undesirable_weight * torch.sigmoid(advantage)
    return torch.where(labels, good, bad)


def kto_reference_point(
    rewards: Float[Tensor, " batch"], batch_mean: Callable[[Tensor], Tensor] = torch.mean
) -> Float[Tensor, ""]:
    """Estimate of the KL divergence of the policy from the reference, without gradient and at least 0.

    Args:
        rewards: log-ratios of policy to reference of responses to other prompts' records, in nats.
        batch_mean: mean over the batch; over all processes where there are several.

    Source: Ethayarajh et al. 2024 (KTO, arXiv 2402.01306), section 4.1.
    """
    return batch_mean(rewards.detach()).clamp(min=0)


def bco_loss(
    rewards: Float[Tensor, " batch"],
    reference_point: Float[Tensor, ""] | float,
    labels: Bool[Tensor, " batch"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " batch"]:
    """Cross-entropy of a classifier whose logit is beta * (reward - reference point): good is 1, bad is 0.

    Args:
        rewards: log-ratio of policy to reference, in nats.
        reference_point: mean reward of good and bad responses, which makes the classifier's loss closest to DPO's.
        labels: True where the response was judged good.
        beta: temperature.

    Source: Jung et al. 2024 (BCO, arXiv 2404.04656); its reward shift is beta times the reference point.
    """
    logits = beta * (rewards - reference_point)
    return -F.logsigmoid(torch.where(labels, logits, -logits))


class Bco(Stateful):
    """`bco_loss` against the running mean of all rewards of the training so far, the batch's own included.

    Args:
        beta: temperature.
    """

    mean: Tensor
    count: Tensor

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = beta
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, rewards: Float[Tensor, " batch"], labels: Bool[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """One loss a response. Only what is trained on moves the mean."""
        if rewards.requires_grad:
            found = rewards.detach().to(self.mean)
            number = self.total(torch.tensor(float(len(found)), device=found.device))
            self.count += number
            self.mean += (self.total(found.sum()) - number * self.mean) / self.count
        self.figures = {"reference_point": self.mean.expand(len(rewards)).clone()}
        return bco_loss(rewards, self.mean.clone().to(rewards.dtype), labels, beta=self.beta)

    def summary(self) -> Mapping[str, Any]:
        """The reference point at the end."""
        return {"reference_point": float(self.mean)}


UTILITIES = catalogue(
    Part("kto", kto_loss, options=KtoOptions, requires=frozenset({"kl"})),
    Part("bco", Bco, options=Temperature),
)
