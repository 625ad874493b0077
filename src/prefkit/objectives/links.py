"""Links: from the margin between two rewards to the loss of a pair.

The margin is the reward of the chosen response less that of the rejected one, in nats and without the temperature
beta. Every link is finite for margins of any size that the square of a float32 can hold.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
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


class ExoOptions(Temperature):
    """Options of `exo`."""

    epsilon: FiniteFloat = Field(1e-3, gt=0, lt=0.5, description="probability left to the rejected response")


class DiscopopOptions(Temperature):
    """Options of `discopop`."""

    tau: FiniteFloat = Field(0.05, gt=0, le=1, description="width of the step between the two losses, in log-odds")


class LengthOptions(Temperature):
    """Options of `length_logistic`."""

    length_weight: FiniteFloat = Field(0.01, ge=0, description="log-odds that a further token is worth to the judge")


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


def exo(margin: Float[Tensor, "*shape"], *, beta: float = 0.1, epsilon: float = 1e-3) -> Float[Tensor, "*shape"]:
    """KL divergence of the policy's choice (q, 1 - q), q = sigmoid(beta * margin), from the label (1 - e, e).

    DPO takes the divergence the other way round, which covers the label's mass instead of seeking its mode. The loss
    needs e > 0; the smaller it is, the larger the loss of a pair that is ranked wrongly.

    Source: Ji et al. 2024 (EXO, arXiv 2402.00856), eq. 16.
    """
    log_q, log_other = F.logsigmoid(beta * margin), F.logsigmoid(-beta * margin)
    return log_q.exp() * (log_q - math.log1p(-epsilon)) + log_other.exp() * (log_other - math.log(epsilon))


def discopop(margin: Float[Tensor, "*shape"], *, beta: float = 0.1, tau: float = 0.05) -> Float[Tensor, "*shape"]:
    """(1 - m) times the logistic loss plus m exp(-x), with x = beta * margin and m = sigmoid(x / tau).

    Pairs that are ranked wrongly have the logistic loss, the others an exponential one.

    Source: Lu et al. 2024 (DiscoPOP, arXiv 2406.08414), eq. 5.
    """
    x = beta * margin
    # As one exponent, which is never positive for tau <= 1: exp(-x) alone overflows.
    exponential = torch.exp(F.logsigmoid(x / tau) - x)
    return -torch.sigmoid(-x / tau) * F.logsigmoid(x) + exponential


def length_logistic(
    margin: Float[Tensor, " batch"],
    chosen_lengths: Int[Tensor, " batch"],
    rejected_lengths: Int[Tensor, " batch"],
    *,
    beta: float = 0.1,
    length_weight: float = 0.01,
) -> Float[Tensor, " batch"]:
    """-log sigmoid(beta * margin + length_weight * (chosen - rejected length)): preference less taste for length.

    A label that the lengths explain has little left to teach.

    Args:
        margin: reward of the chosen response less that of the rejected one.
        chosen_lengths: tokens of the chosen response.
        rejected_lengths: tokens of the rejected one.
        beta: temperature.
        length_weight: the paper's alpha, in log-odds a token.

    Source: Park et al. 2024 (R-DPO, arXiv 2403.19159).
    """
    return -F.logsigmoid(beta * margin + length_weight * (chosen_lengths - rejected_lengths))


LINKS = catalogue(
    Part("logistic", logistic, options=LogisticOptions),
    Part("hinge", hinge, options=HingeOptions),
    Part("squared", squared, options=Temperature),
    Part("probit", probit, options=Temperature),
    Part("weighted_logistic", weighted_logistic, options=Temperature),
    Part("exo", exo, options=ExoOptions),
    Part("discopop", discopop, options=DiscopopOptions),
    Part("length_logistic", length_logistic, ("chosen_lengths", "rejected_lengths"), LengthOptions),
)
