"""Links: from the margin between two rewards to the loss of a pair.

The margin is the reward of the chosen response less that of the rejected one, in nats and without the temperature
beta. Every link is finite for margins of any size that the square of a float32 can hold.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, FiniteFloat
from torch import Tensor

from prefkit.objectives.parts import Part, catalogue
from prefkit.options import Options


class Temperature(Options):
    """Options of every link."""

    beta: FiniteFloat = Field(
        0.1, gt=0, description="temperature: strength of the regularisation towards the reference"
    )


class LogisticOptions(Temperature):
    """Options of `logistic`."""

    gamma: FiniteFloat = Field(0.0, description="target margin, added to what the chosen response must win by")


class HingeOptions(Temperature):
    """Options of `hinge`."""

    gamma: FiniteFloat = Field(1.0, ge=0, description="target margin, beyond which the loss is 0")


def logistic(margin: Float[Tensor, "*shape"], *, beta: float = 0.1, gamma: float = 0.0) -> Float[Tensor, "*shape"]:
    """-log sigmoid(beta * margin - gamma), the negative log-likelihood of a Bradley-Terry choice.

    Source: Rafailov et al. 2023 (DPO, arXiv 2305.18290), eq. 7; gamma: Meng et al. 2024 (SimPO, arXiv 2405.14734),
    eq. 6, where it is the margin itself, not its ratio to beta.
    """
    return -F.logsigmoid(beta * margin - gamma)


def hinge(margin: Float[Tensor, "*shape"], *, beta: float = 0.1, gamma: float = 1.0) -> Float[Tensor, "*shape"]:
    """max(0, gamma - beta * margin), the loss of a support-vector machine.

    Source: Zhao et al. 2023 (SLiC-HF, arXiv 2305.10425), eq. 1; Liu et al. 2023 (RSO, arXiv 2309.06657), eqs. 9, 10.
    """
    return torch.relu(gamma - beta * margin)


def squared(margin: Float[Tensor, "*shape"], *, beta: float = 0.1) -> Float[Tensor, "*shape"]:
    """(margin - 1 / (2 beta))^2: regression on a finite margin, so that certain labels do not drive it to infinity.

    Source: Azar et al. 2023 (IPO, arXiv 2310.12036), eq. 17, whose tau is beta here.
    """
    return (margin - 1 / (2 * beta)) ** 2


def probit(margin: Float[Tensor, "*shape"], *, beta: float = 0.1) -> Float[Tensor, "*shape"]:
    """-log Phi(beta * margin), Phi the normal distribution function: the likelihood of a Thurstone choice.

    Source: Thurstone 1927, A law of comparative judgment.
    """
    log_cdf: Tensor = torch.special.log_ndtr(beta * margin)
    return -log_cdf


def weighted_logistic(margin: Float[Tensor, "*shape"], *, beta: float = 0.1) -> Float[Tensor, "*shape"]:
    """-beta * log sigmoid(margin): beta weighs the comparison against a likelihood term instead of scaling the margin.

    Source: Hong et al. 2024 (ORPO, arXiv 2403.07691), eqs. 6, 7, whose lambda is beta here.
    """
    return -beta * F.logsigmoid(margin)


LINKS = catalogue(
    Part("logistic", logistic, options=LogisticOptions),
    Part("hinge", hinge, options=HingeOptions),
    Part("squared", squared, options=Temperature),
    Part("probit", probit, options=Temperature),
    Part("weighted_logistic", weighted_logistic, options=Temperature),
)
