"""Self-play: regression of log-ratios on how each response fares against the policy's own.

Candidates are sampled from the policy of the last round, which is the reference, and scored against one another by a
preference model. What is learned is one step of multiplicative weights, pi'(y) ~ pi(y) exp(s(y > pi) / beta), which
also makes sense where preferences go in circles and no reward exists.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, FiniteFloat
from torch import Tensor

from prefkit.comparisons import Comparison, Ratings
from prefkit.errors import OptionError, RecordError
from prefkit.objectives.parts import Part
from prefkit.options import Options


class GpoOptions(Options):
    """Options of `gpo`."""

    beta: FiniteFloat = Field(0.001, gt=0, description="inverse of the step size: the scores are divided by it")
    gamma: FiniteFloat = Field(
        0.0, ge=0, description="log-ratios are divided by length ** gamma; 1 is the length-normalised variant"
    )
    clamp: FiniteFloat | None = Field(None, gt=0, description="largest size of score / beta; no bound by default")


def gpo_loss(
    policy_logps: Float[Tensor, "*shape"],
    ref_logps: Float[Tensor, "*shape"],
    scores: Float[Tensor, "*shape"],
    *,
    beta: float = 0.001,
    log_z: float = 0.0,
    lengths: Float[Tensor, "*shape"] | Int[Tensor, "*shape"] | None = None,
    gamma: float = 1.0,
    clamp: float | None = None,
) -> Float[Tensor, "*shape"]:
    """(log-ratio - (score - log_z) / beta)^2 of each response.

    Args:
        policy_logps: log-probabilities, summed over tokens.
        ref_logps: the same under the policy of the last round.
        scores: s(y > pi), mean log-odds that each response is preferred to the policy's; win probability less 1/2 for
            the loss of SPPO.
        beta: temperature, greater than 0.
        log_z: logarithm of the normaliser; the authors leave it out.
        lengths: tokens of each response; with them, log-ratios are divided by lengths ** gamma (LN-GPO).
        gamma: exponent of the lengths.
        clamp: largest size of the target; what the authors' setting of that kind does is not published.

    Raises:
        OptionError: beta is not positive.

    Source: Zhang et al. 2024 (General Preference Modeling, arXiv 2410.02197), eq. 5.3.
    """
    return _squares(policy_logps - ref_logps, scores - log_z, lengths, beta=beta, gamma=gamma, clamp=clamp)


def gpo_pair_loss(
    policy_chosen_logps: Float[Tensor, " batch"],
    policy_rejected_logps: Float[Tensor, " batch"],
    ref_chosen_logps: Float[Tensor, " batch"],
    ref_rejected_logps: Float[Tensor, " batch"],
    score_chosen: Float[Tensor, " batch"],
    score_rejected: Float[Tensor, " batch"],
    *,
    beta: float = 0.001,
    clamp: float | None = None,
) -> Float[Tensor, " batch"]:
    """The mean of `gpo_loss` over the best and the worst candidate, on which the authors train.

    Args:
        policy_chosen_logps: the best candidate under the policy.
        policy_rejected_logps: the worst candidate under the policy.
        ref_chosen_logps: the best one under the policy of the last round.
        ref_rejected_logps: the worst one under the policy of the last round.
        score_chosen: mean score of the best against all candidates.
        score_rejected: mean score of the worst.
        beta: temperature, greater than 0.
        clamp: see `gpo_loss`.

    Raises:
        OptionError: beta is not positive.
    """
    chosen = gpo_loss(policy_chosen_logps, ref_chosen_logps, score_chosen, beta=beta, clamp=clamp)
    rejected = gpo_loss(policy_rejected_logps, ref_rejected_logps, score_rejected, beta=beta, clamp=clamp)
    return 0.5 * (chosen + rejected)


def _squares(
    log_ratios: Tensor,
    scores: Tensor,
    lengths: Tensor | None,
    *,
    beta: float,
    gamma: float,
    clamp: float | None,
) -> Tensor:
    if not beta > 0:
        raise OptionError(f"beta must be greater than 0, got {beta}")
    if lengths is not None:
        log_ratios = log_ratios / lengths**gamma
    targets = scores / beta
    return (log_ratios - (targets if clamp is None else targets.clamp(-clamp, clamp))) ** 2


def _listed(
    rewards: Float[Tensor, "batch k"],
    ratings: Float[Tensor, "batch k"],
    mask: Bool[Tensor, "batch k"],
    lengths: Int[Tensor, "batch k"],
    *,
    beta: float,
    gamma: float,
    clamp: float | None,
) -> Float[Tensor, " batch"]:
    """The mean of `gpo_loss` over the candidates of a list, whose ratings are their scores."""
    squares = _squares(rewards, ratings, lengths.masked_fill(~mask, 1), beta=beta, gamma=gamma, clamp=clamp)
    found: Tensor = torch.where(mask, squares, 0.0).sum(1) / mask.sum(1).clamp(min=1)
    return found


def check_scores(comparison: Comparison, **options: object) -> None:
    """Refuse judgements without a number for each response.

    Raises:
        RecordError: names the field.
    """
    if not isinstance(comparison.judgement, Ratings):
        raise RecordError(
            "the objective 'gpo' needs a rating of each response: its mean log-odds against the policy's own",
            field="judgement",
        )


SELF_PLAY = (Part("gpo", _listed, ("ratings", "mask", "lengths"), GpoOptions, check=check_scores),)
