"""Graded lists: responses with values, not only ranks, learned from all ordered pairs of a list at once.

A pair counts by how far apart its two values are and by how much the policy's present ranking would change if the two
were exchanged (the weights of LambdaRank). In reasoning, responses that branch off one tree share steps; the margin of
a pair can then weigh each step by how similar it is in the two responses.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Self, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, FiniteFloat, model_validator
from torch import Tensor

from prefkit.comparisons import Comparison, Ratings
from prefkit.errors import OptionError, RecordError
from prefkit.objectives.parts import Part
from prefkit.objectives.scores import TokenScores
from prefkit.options import Options

LARGEST = 120.0
"""Largest value v of which 2^v can be used: float32 ends at 2^128."""

Range: TypeAlias = tuple[float, float] | None
"""Both ends of a rating scale, which become 0 and 1; None takes values as they are."""

WeightFunction: TypeAlias = Literal["one_plus_cos", "one_minus_cos"]
"""Weight of a step from the cosine of its embeddings in two responses."""


class GradedOptions(Options):
    """Options of `graded`."""

    beta: FiniteFloat = Field(0.5, gt=0, description="temperature of the implicit rewards")
    value_range: tuple[FiniteFloat, FiniteFloat] | None = Field(
        (-100.0, 100.0), description="ends of the rating scale, mapped to 0 and 1; None takes values as they are"
    )
    log_base: FiniteFloat = Field(math.e, gt=1, description="base of the logarithm of ranks; it scales the loss")
    weighted: bool = Field(True, description="weigh pairs; False lets all pairs of a list count alike")

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range must be [low, high] with low < high, got {list(self.value_range)}")
        return self


class StepwiseOptions(GradedOptions):
    """Options of `graded_steps`."""

    adaptive: Literal["pairwise", "to_best"] = Field("pairwise", description="what the steps are compared with")
    weight_fn: WeightFunction = Field("one_plus_cos", description="weight of a step from the cosine")
    detach_weights: bool = Field(True, description="no gradient through the weights of steps")


def normalise_values(values: Float[Tensor, "*shape"], low: float, high: float) -> Float[Tensor, "*shape"]:
    """Ratings mapped from the ends of their scale (not of the list) to 0 and 1."""
    return (values - low) / (high - low)


def rank_positions(rewards: Float[Tensor, "batch k"], mask: Bool[Tensor, "batch k"]) -> Int[Tensor, "batch k"]:
    """1-based place of each response in the order of the rewards, highest first; equal ones keep their order."""
    order = rewards.detach().masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(1, order.shape[1] + 1, device=order.device).expand(order.shape)
    return torch.zeros_like(order).scatter(1, order, places)


def lambda_weights(
    rewards: Float[Tensor, "batch k"],
    values: Float[Tensor, "batch k"],
    mask: Bool[Tensor, "batch k"],
    *,
    log_base: float = math.e,
) -> Float[Tensor, "batch k k"]:
    """How much the exchange of two responses would change the ranking: |2^v_i - 2^v_j| |1/log(1+t_i) - 1/log(1+t_j)|.

    Args:
        rewards: implicit rewards, whose order gives the positions t.
        values: v, of the order of 1.
        mask: which places hold a response.
        log_base: base of the logarithm.

    Source: Burges et al. 2006, Learning to rank with nonsmooth cost functions; TPO (arXiv 2410.12854), eq. 8.
    """
    gains = torch.exp2(values.masked_fill(~mask, 0.0))
    discounts = math.log(log_base) / torch.log1p(rank_positions(rewards, mask).to(values.dtype))
    both = mask.unsqueeze(2) & mask.unsqueeze(1)
    return (_gaps(gains).abs() * _gaps(discounts).abs()).masked_fill(~both, 0.0)


def list_loss(
    margins: Float[Tensor, "batch k k"],
    values: Float[Tensor, "batch k"],
    mask: Bool[Tensor, "batch k"],
    weights: Float[Tensor, "batch k k"] | None = None,
) -> Float[Tensor, " batch"]:
    """Weighted sum of -log sigmoid(margin) over all pairs of a list of which the first has the higher value."""
    pairs = (_gaps(values) > 0) & mask.unsqueeze(2) & mask.unsqueeze(1)
    losses = -F.logsigmoid(margins.masked_fill(~pairs, 0.0)).masked_fill(~pairs, 0.0)
    return (losses if weights is None else losses * weights).sum((1, 2))


def graded_loss(
    rewards: Float[Tensor, "batch k"],
    values: Float[Tensor, "batch k"],
    mask: Bool[Tensor, "batch k"],
    *,
    beta: float = 0.5,
    value_range: Range = (-100.0, 100.0),
    log_base: float = math.e,
    weighted: bool = True,
) -> Float[Tensor, " batch"]:
    """Preference list ranking: the logistic loss of all ordered pairs of a list, weighted by `lambda_weights`.

    A list of one, and ties, contribute 0. Two responses of weight 1 are DPO.

    Args:
        rewards: log-ratios of policy to reference, in nats, without the temperature.
        values: rating of each response, higher is better.
        mask: which places hold a response.
        beta: temperature.
        value_range: ends of the rating scale; see `normalise_values`. None takes values as they are.
        log_base: base of the logarithm in the weights.
        weighted: False gives every pair the weight 1.

    Source: TPO (arXiv 2410.12854), eqs. 7, 8. The paper states values in [0, 1] but ratings in [-100, 100]; how one
        becomes the other is not printed, the linear map is this library's reading.
    """
    scaled = beta * rewards
    return list_loss(_gaps(scaled), values, mask, _weights(scaled, values, mask, value_range, log_base, weighted))


class StepScores(NamedTuple):
    """The steps of the responses of lists.

    Args:
        ratios: log-ratio of policy to reference, summed over the tokens of each step.
        counts: tokens of each step; 0 where a response has no such step.
        embeddings: mean of the policy's hidden states over the tokens of each step; 0 where there are none.
    """

    ratios: Float[Tensor, "batch k steps"]
    counts: Int[Tensor, "batch k steps"]
    embeddings: Float[Tensor, "batch k steps dim"]

    @property
    def means(self) -> Float[Tensor, "batch k steps"]:
        """Log-ratio a token of each step."""
        return self.ratios / self.counts.clamp(min=1)


def step_scores(tokens: TokenScores, mask: Bool[Tensor, "batch k"], *, clip: bool = True) -> StepScores:
    """Tokens gathered by step.

    Args:
        tokens: with reference, hidden states and steps; `response` is the place in the flattened lists.
        mask: which places hold a response.
        clip: steps beyond the smallest number of steps in a list are merged into its last common step.

    Raises:
        OptionError: the tokens lack what is needed.
    """
    missing = [name for name in ("ref_logps", "states", "steps") if getattr(tokens, name) is None]
    if missing:
        raise OptionError(f"adaptive step weights need {', '.join(missing)} of single tokens, which these scores lack")
    assert tokens.ref_logps is not None
    assert tokens.states is not None
    assert tokens.steps is not None
    shape, steps = mask.shape, tokens.steps
    if clip:
        last = torch.full((mask.numel(),), -1, device=steps.device).scatter_reduce(0, tokens.response, steps, "amax")
        shortest = last.view(shape).masked_fill(last.view(shape) < 0, torch.iinfo(last.dtype).max).amin(1)
        steps = torch.minimum(steps, shortest[tokens.response // shape[1]])
    number = int(steps.max()) + 1 if len(steps) else 0
    inside = steps >= 0
    place = (tokens.response * number + steps)[inside]

    def summed(values: Tensor) -> Tensor:
        empty = values.new_zeros(mask.numel() * number, *values.shape[1:])
        return empty.index_add(0, place, values[inside]).view(*shape, number, *values.shape[1:])

    counts = summed(torch.ones_like(steps))
    ratios = summed(tokens.policy_logps - tokens.ref_logps)
    embeddings = summed(tokens.states.to(ratios.dtype)) / counts.clamp(min=1).unsqueeze(-1)
    return StepScores(ratios, counts, embeddings)


def graded_steps_loss(
    tokens: TokenScores,
    values: Float[Tensor, "batch k"],
    mask: Bool[Tensor, "batch k"],
    *,
    beta: float = 0.5,
    value_range: Range = (-100.0, 100.0),
    log_base: float = math.e,
    weighted: bool = True,
    adaptive: Literal["pairwise", "to_best"] = "pairwise",
    weight_fn: WeightFunction = "one_plus_cos",
    detach_weights: bool = True,
    clip: bool = True,
) -> Float[Tensor, " batch"]:
    """Tree preference optimisation: `graded_loss` with margins in which each step has a weight of its own.

    `pairwise`, the paper's form: the margin of i and j is beta times the sum over steps of (1 + cos(e_ik, e_jk))
    (R_ik - R_jk), R the log-ratio summed over a step and e its embedding; the pairs' weights come from the plain
    rewards. `to_best`, the released code's form: each response has the score of `adaptive_step_score`, weighted by the
    likeness to the best response of the list, and the rest is `graded_loss` of these scores. The
    weights of pairs and, by default, of steps are constants for the gradient.

    Args:
        tokens: see `step_scores`.
        values: rating of each response, higher is better.
        mask: which places hold a response.
        beta: see `graded_loss`.
        value_range: see `graded_loss`.
        log_base: see `graded_loss`.
        weighted: see `graded_loss`.
        adaptive: what the steps of a response are compared with: those of each other response, or of the best one.
        weight_fn: `one_plus_cos` as published; `one_minus_cos` emphasises steps that differ.
        detach_weights: no gradient through the weights of steps; the paper does not say, its code lets it flow.
        clip: see `step_scores`.

    Raises:
        OptionError: the tokens lack what is needed.

    Source: TPO (arXiv 2410.12854), eqs. 7, 8, 10, the brackets of eq. 10 being read such that a shared step cancels.
    """
    steps = step_scores(tokens, mask, clip=clip)
    embeddings = steps.embeddings.detach() if detach_weights else steps.embeddings
    if adaptive == "to_best":
        best = values.masked_fill(~mask, -torch.inf).argmax(1)
        scores = adaptive_step_score(steps, adaptive_step_weights(embeddings, steps.counts, best, weight_fn=weight_fn))
        return graded_loss(
            scores, values, mask, beta=beta, value_range=value_range, log_base=log_base, weighted=weighted
        )
    margins = step_margins(steps._replace(embeddings=embeddings), beta=beta, weight_fn=weight_fn)
    plain = beta * steps.ratios.sum(2)
    return list_loss(margins, values, mask, _weights(plain, values, mask, value_range, log_base, weighted))


def step_margins(
    steps: StepScores, *, beta: float = 0.5, weight_fn: WeightFunction = "one_plus_cos"
) -> Float[Tensor, "batch k k"]:
    """Margin of every two responses, each step weighted by its likeness in the two; 0 where either has no such step.

    Source: TPO (arXiv 2410.12854), eq. 10.
    """
    units, present = _units(steps.embeddings), steps.counts > 0
    alike = torch.einsum("bisd,bjsd->bijs", units, units)
    weights = _weight(alike, weight_fn).masked_fill(~(present.unsqueeze(2) & present.unsqueeze(1)), 0.0)
    return beta * (weights * _gaps(steps.ratios)).sum(3)


def adaptive_step_weights(
    embeddings: Float[Tensor, "batch k steps dim"],
    counts: Int[Tensor, "batch k steps"],
    best: Int[Tensor, " batch"],
    *,
    weight_fn: WeightFunction = "one_plus_cos",
) -> Float[Tensor, "batch k steps"]:
    """Weight of each step by its likeness to the same step of the best response; 0 where either has no such step.

    Source: the released code of TPO (arXiv 2410.12854).
    """
    units, present = _units(embeddings), counts > 0
    lists = torch.arange(len(best), device=best.device)
    alike = (units * units[lists, best].unsqueeze(1)).sum(3)
    return _weight(alike, weight_fn).masked_fill(~(present & present[lists, best].unsqueeze(1)), 0.0)


def adaptive_step_score(steps: StepScores, weights: Float[Tensor, "batch k steps"]) -> Float[Tensor, "batch k"]:
    """Weighted mean over the steps of their log-ratio a token; 0 where all weights are 0."""
    total = weights.sum(2)
    return (weights * steps.means).sum(2) / total.masked_fill(total == 0, 1.0)


def check_values(comparison: Comparison, *, value_range: Range = (-100.0, 100.0), **_: object) -> None:
    """Refuse values outside the range, and without one those of which 2^v is too large.

    Raises:
        RecordError: such a value was given.
    """
    if not isinstance(comparison.judgement, Ratings):
        raise RecordError("the objective needs a rating of each response", field="judgement")
    values = comparison.judgement.values
    if value_range is None:
        if max(map(abs, values)) > LARGEST:
            raise RecordError(
                f"2^{max(values, key=abs):g} is no usable weight; set objective.value_range to the ends of the rating "
                "scale, such as [-100, 100]",
                field="judgement",
            )
        return
    low, high = value_range
    for place, value in enumerate(values):
        if not low <= value <= high:
            raise RecordError(
                f"rating {place} must lie in objective.value_range [{low:g}, {high:g}], got {value:g}",
                field="judgement",
            )


def check_steps(comparison: Comparison, **options: object) -> None:
    """Refuse responses without steps, and what `check_values` refuses.

    Raises:
        RecordError: the record cannot be used.
    """
    check_values(comparison, **options)  # type: ignore[arg-type]  # the options of the part, of which this is one
    steps = comparison.steps or (None,) * len(comparison.responses)
    for place, own in enumerate(steps):
        if not own:
            raise RecordError(
                f"response {place} has no steps, which adaptive step weights need: give them, split responses with "
                "data.steps, or use the objective 'plr'",
                field="steps",
            )


def _gaps(values: Tensor) -> Tensor:
    """`[batch, i, j]`: the value of i less that of j."""
    return values.unsqueeze(2) - values.unsqueeze(1)


def _weights(
    scaled: Tensor, values: Tensor, mask: Tensor, value_range: Range, log_base: float, weighted: bool
) -> Tensor | None:
    if not weighted:
        return None
    return lambda_weights(
        scaled, values if value_range is None else normalise_values(values, *value_range), mask, log_base=log_base
    )


def _units(embeddings: Tensor) -> Tensor:
    """Embeddings of length 1; a zero vector stays 0, so that its cosine with any other is 0."""
    length: Tensor = torch.linalg.vector_norm(embeddings, dim=-1, keepdim=True)
    return embeddings / length.masked_fill(length == 0, 1.0)


def _weight(cosine: Tensor, weight_fn: WeightFunction) -> Tensor:
    weight: Tensor = 1 + cosine if weight_fn == "one_plus_cos" else 1 - cosine
    return weight


def _graded_steps(rewards: Tensor, values: Tensor, mask: Tensor, tokens: TokenScores, **options: object) -> Tensor:
    """The rewards of whole responses are for metrics; the margins are made of their steps."""
    return graded_steps_loss(tokens, values, mask, **options)  # type: ignore[arg-type]  # typed by `StepwiseOptions`


GRADED = (
    Part("graded", graded_loss, ("ratings", "mask"), GradedOptions, check=check_values),
    Part(
        "graded_steps",
        _graded_steps,
        ("ratings", "mask", "tokens"),
        StepwiseOptions,
        requires=frozenset({"states", "steps"}),
        check=check_steps,
    ),
)
