"""Calibration: within each list, the likelihoods of the candidates are to correlate with their ratings.

A model whose likelihood rises and falls with quality finds better texts by plain decoding, and its likelihood is a
quality estimate itself. Correlation is blind to the level of the likelihoods, so a likelihood term of the best
candidate goes with it.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, FiniteFloat, model_validator
from torch import Tensor

from prefkit.comparisons import Comparison
from prefkit.errors import OptionError, RecordError
from prefkit.objectives.parts import Part, Stateful
from prefkit.objectives.rewards import average_log_prob
from prefkit.options import Options

EPS = 1e-6
"""Added to standard deviations, as in the authors' code."""

FLAT = 1e-4
"""A list whose log-probabilities have a smaller standard deviation (nats) says nothing about their order."""

FEWEST = 3
"""Candidates that a correlation needs: of two it is 1 or -1, whatever their distance, and has no gradient."""


class CalibrationOptions(Options):
    """Options of `calibration`."""

    nll_weight: FiniteFloat = Field(1.0, ge=0, description="weight of the best candidate's likelihood (alpha)")
    calibration_weight: FiniteFloat = Field(1.0, ge=0, description="weight of the correlation (beta)")
    cpo_weight: FiniteFloat = Field(0.0, ge=0, description="weight of best against worst candidate (gamma)")
    cpo_beta: FiniteFloat = Field(0.1, gt=0, description="temperature of best against worst candidate")
    candidates: int | None = Field(None, ge=2, description="use only so many first candidates of each list")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.nll_weight or self.calibration_weight or self.cpo_weight):
            raise ValueError("one of nll_weight, calibration_weight, cpo_weight must be greater than 0")
        if self.candidates is not None and self.calibration_weight > 0 and self.candidates < FEWEST:
            raise ValueError(f"candidates must be at least {FEWEST} for a correlation, got {self.candidates}")
        return self


class CalibrationTerms(NamedTuple):
    """The terms of calibration, one value a list.

    Args:
        calibration: -mean of the products of z-scores, that is -(n - 1)/n times Pearson's correlation.
        nll_best: negative log-likelihood a token of the candidate with the highest rating, in nats.
        nll_worst: the same of the lowest rating.
        cpo: logistic loss of the best against the worst candidate, on summed log-probabilities.
        pearson: Pearson's correlation, without gradient; 0 where the list is flat.
        flat: whether log-probabilities or ratings of the list are constant, so that it has no correlation.
    """

    calibration: Float[Tensor, " batch"]
    nll_best: Float[Tensor, " batch"]
    nll_worst: Float[Tensor, " batch"]
    cpo: Float[Tensor, " batch"]
    pearson: Float[Tensor, " batch"]
    flat: Bool[Tensor, " batch"]

    def weighted(
        self, nll_weight: float = 1.0, calibration_weight: float = 1.0, cpo_weight: float = 0.0
    ) -> Float[Tensor, " batch"]:
        """The weighted sum: one loss a list."""
        return nll_weight * self.nll_best + calibration_weight * self.calibration + cpo_weight * self.cpo


def pearson_loss(
    rewards: Float[Tensor, "batch k"], ratings: Float[Tensor, "batch k"], mask: Bool[Tensor, "batch k"]
) -> Float[Tensor, " batch"]:
    """-Pearson's correlation of rewards and ratings in each list; 0, without gradient, where one of them is constant.

    Source: Calibrating Translation Decoding with Quality Estimation on LLMs (arXiv 2504.19044), the paper's form.
    """
    count = mask.sum(1)
    products, _ = _products(rewards, ratings, mask, 0.0)
    return -products / (count - 1).clamp(min=1)


def calibration_terms(
    rewards: Float[Tensor, "batch k"],
    ratings: Float[Tensor, "batch k"],
    mask: Bool[Tensor, "batch k"],
    policy_logps: Float[Tensor, "batch k"],
    lengths: Int[Tensor, "batch k"],
    *,
    cpo_beta: float = 0.1,
    eps: float = EPS,
) -> CalibrationTerms:
    """The terms of calibration.

    Gradients flow through mean and standard deviation of a list. A flat list contributes 0 to `calibration`, and no
    gradient. Of equal ratings the first candidate counts as best and as worst.

    Args:
        rewards: what is to correlate: summed log-probabilities, or those a token.
        ratings: of the candidates, higher is better.
        mask: which places hold a candidate.
        policy_logps: summed log-probability of each candidate, in nats.
        lengths: tokens of each candidate.
        cpo_beta: temperature of best against worst.
        eps: added to the standard deviations.

    Source: Calibrating Translation Decoding with Quality Estimation on LLMs (arXiv 2504.19044); standard deviations
        with n - 1, eps and the terms beside the correlation are those of the authors' code.
    """
    products, flat = _products(rewards, ratings, mask, eps)
    best = ratings.masked_fill(~mask, -torch.inf).argmax(1, keepdim=True)
    worst = ratings.masked_fill(~mask, torch.inf).argmin(1, keepdim=True)
    (best_logps, best_nll), (worst_logps, worst_nll) = (
        (logps := policy_logps.gather(1, place).squeeze(1), -logps / lengths.gather(1, place).squeeze(1))
        for place in (best, worst)
    )
    return CalibrationTerms(
        calibration=-products / mask.sum(1).clamp(min=1),
        nll_best=best_nll,
        nll_worst=worst_nll,
        cpo=-F.logsigmoid(cpo_beta * (best_logps - worst_logps)),
        pearson=-pearson_loss(rewards.detach(), ratings, mask),
        flat=flat,
    )


def _products(rewards: Tensor, ratings: Tensor, mask: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Sum over each list of the products of z-scores (standard deviations with n - 1), and which lists are flat."""
    # Sums of squares of log-probabilities lose too much in half precision.
    precision = torch.promote_types(rewards.dtype, torch.float32)
    count = mask.sum(1, keepdim=True)

    def centred(values: Tensor) -> tuple[Tensor, Tensor]:
        held = values.to(precision).masked_fill(~mask, 0.0)
        apart = (held - held.sum(1, keepdim=True) / count.clamp(min=1)).masked_fill(~mask, 0.0)
        return apart, (apart**2).sum(1, keepdim=True) / (count - 1).clamp(min=1)

    (x, spread_x), (y, spread_y) = centred(rewards), centred(ratings)
    highest = ratings.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    lowest = ratings.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    flat = (spread_x < FLAT**2) | (spread_y == 0) | (highest <= lowest)
    # A root has no gradient at 0: flat lists are taken out before it.
    deviation_x, deviation_y = (spread.masked_fill(flat, 1.0).sqrt() + eps for spread in (spread_x, spread_y))
    products = (x / deviation_x * y / deviation_y).sum(1).masked_fill(flat.squeeze(1), 0.0)
    return products, flat.squeeze(1)


class Calibration(Stateful):
    """`calibration_terms`, weighted, as the ranking of a list objective; it reports the correlation of each list."""

    def __init__(
        self,
        nll_weight: float = 1.0,
        calibration_weight: float = 1.0,
        cpo_weight: float = 0.0,
        cpo_beta: float = 0.1,
        candidates: int | None = None,
    ) -> None:
        super().__init__()
        self.weights = (nll_weight, calibration_weight, cpo_weight)
        self.cpo_beta, self.candidates = cpo_beta, candidates

    def forward(
        self, rewards: Tensor, ratings: Tensor, mask: Tensor, policy_logps: Tensor, lengths: Tensor
    ) -> Float[Tensor, " batch"]:
        """One loss a list."""
        mask = mask if self.candidates is None else mask & _first(self.candidates, mask)
        terms = calibration_terms(rewards, ratings, mask, policy_logps, lengths, cpo_beta=self.cpo_beta)
        self.figures = {
            "pearson": terms.pearson.masked_fill(terms.flat, torch.nan),
            "flat_list": terms.flat.float(),
            "nll_best": terms.nll_best.detach(),
        }
        return terms.weighted(*self.weights)


def check_candidates(
    comparison: Comparison, *, calibration_weight: float = 1.0, candidates: int | None = None, **_: float
) -> None:
    """Refuse lists that are too short.

    Raises:
        RecordError: there are fewer than three candidates, or fewer than are to be used.
    """
    count = len(comparison.responses)
    if candidates is not None and count < candidates:
        raise RecordError(f"objective.candidates is {candidates}, but there are only {count}", field="responses")
    if calibration_weight > 0 and count < FEWEST:
        raise RecordError(
            f"a correlation needs at least {FEWEST} candidates, got {count}; with objective.calibration_weight=0 two "
            "are enough",
            field="responses",
        )


def calibration_objective(
    candidate_token_logps: Float[Tensor, "rows tokens"],
    candidate_mask: Bool[Tensor, "rows tokens"],
    scores: Float[Tensor, " rows"],
    list_size: int,
    *,
    length_normalise: bool = False,
    calibration_weight: float = 1.0,
    cpo_beta: float = 0.1,
    candidates: int | None = None,
    eps: float = EPS,
) -> CalibrationTerms:
    """`calibration_terms` for padded token log-probabilities in which the candidates of a list follow one another.

    Args:
        candidate_token_logps: in nats; padded places may hold anything and get no gradient.
        candidate_mask: which places hold a token of the candidate, its end token included.
        scores: rating of each candidate, higher is better.
        list_size: candidates a list.
        length_normalise: correlate log-probabilities a token instead of their sums.
        calibration_weight: at 0, lists of two are allowed.
        cpo_beta: see `calibration_terms`.
        candidates: use only so many first candidates of each list.
        eps: see `calibration_terms`.

    Raises:
        OptionError: shapes do not fit, the rows are no whole lists, lists are too short, a score is not finite, or a
            candidate has no tokens.
    """
    rows = len(scores)
    if candidate_token_logps.shape != candidate_mask.shape or len(candidate_mask) != rows:
        shapes = ", ".join(str(tuple(each.shape)) for each in (candidate_token_logps, candidate_mask, scores))
        raise OptionError(f"log-probabilities [rows, tokens], mask and scores [rows] must fit, got {shapes}")
    if list_size < 1 or rows % list_size:
        raise OptionError(f"the number of rows must be a multiple of list_size={list_size}, got {rows}")
    used = list_size if candidates is None else candidates
    if used > list_size:
        raise OptionError(f"candidates must be at most list_size={list_size}, got {used}")
    if calibration_weight > 0 and used < FEWEST:
        raise OptionError(f"list_size must be at least {FEWEST} for a correlation, got {used}")
    finite = torch.isfinite(scores)
    if not bool(finite.all()):
        raise OptionError(f"scores must be finite numbers, got one that is not in row {_where(~finite)}")
    held = candidate_mask.bool()
    if not bool(held.any(1).all()):
        raise OptionError(f"the candidate of row {_where(~held.any(1))} has no tokens: its mask is empty")
    logps = candidate_token_logps.masked_fill(~held, 0.0).sum(1).view(-1, list_size)
    lengths = held.sum(1).view(-1, list_size)
    rewards = average_log_prob(logps, lengths) if length_normalise else logps
    mask = _first(used, torch.ones_like(lengths, dtype=torch.bool))
    return calibration_terms(rewards, scores.view(-1, list_size), mask, logps, lengths, cpo_beta=cpo_beta, eps=eps)


def _first(count: int, mask: Tensor) -> Tensor:
    return torch.arange(mask.shape[1], device=mask.device).expand(mask.shape) < count


def _where(wrong: Tensor) -> int:
    return int(wrong.nonzero()[0, 0])


CALIBRATION = Part(
    "calibration",
    Calibration,
    ("ratings", "mask", "policy_logps", "lengths"),
    CalibrationOptions,
    check=check_candidates,
)
