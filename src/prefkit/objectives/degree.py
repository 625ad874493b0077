"""Self-supervised degrees of preference: beside any pairwise loss, tell how much key content a response has lost.

Variants of both responses with less and less of their key content are made and scored with each pair; a small head on
the policy's last hidden state says which is which. Its gradient reaches the policy; the head is not needed afterwards.

Source: Li et al. 2024 (Self-supervised Preference Optimization, arXiv 2409.17791). The paper's abstract says what is
done, not with which numbers: degrees, ratios, head and weight are choices of this library.
"""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, FiniteFloat, field_validator
from torch import Tensor, nn

from prefkit.comparisons import Companion, Comparison
from prefkit.comparisons.key_content import (
    Extractor,
    fraction_of,
    key_spans,
    removed_spans,
    said,
    saying,
    without_key_content,
)
from prefkit.errors import OptionError
from prefkit.objectives.parts import Part, Stateful
from prefkit.objectives.scorer import HasStates
from prefkit.objectives.scores import Companions
from prefkit.options import Options

logger = logging.getLogger("prefkit")

SIDES = ("chosen", "rejected")


class DegreeOptions(Options):
    """Options of `degree`. The paper does not state them; see `SelfSupervisedDegree`."""

    gamma: FiniteFloat = Field(0.1, ge=0, description="weight of the term")
    ratios: tuple[float, ...] = Field((0.0, 0.5, 1.0), description="share of the key content that each degree loses")
    extractor: Any = Field("rake", description="finds the key content: rake, tfidf, random, or a function")
    sides: Literal["both", "chosen", "rejected"] = Field("both", description="whose variants are told apart")
    heads: Literal["separate", "shared"] = Field("separate", description="one head for each side, or one for both")
    pool: Literal["last", "mean"] = Field("last", description="state of the last token, or mean over the response")
    variants: Literal["all", "one"] = Field("all", description="all degrees of a response, or one that its text draws")
    filler: str | None = Field(None, description="stands for each removed word, so that length tells nothing")

    @field_validator("ratios")
    @classmethod
    def _increasing(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        if len(ratios) < 2:
            raise ValueError(f"there must be at least 2 degrees, got {len(ratios)}")
        if not all(0 <= ratio <= 1 for ratio in ratios) or any(a >= b for a, b in pairwise(ratios)):
            raise ValueError(f"ratios must increase and lie in [0, 1], got {list(ratios)}")
        return ratios

    @field_validator("extractor")
    @classmethod
    def _known(cls, extractor: Any) -> Any:
        try:
            key_spans("", extractor)
        except OptionError as error:
            raise ValueError(str(error)) from None
        return extractor


def degree_cross_entropy(
    degree_logits: Float[Tensor, "n degrees"], degree_labels: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Cross-entropy of each variant's degree, in nats.

    Args:
        degree_logits: what the head says.
        degree_labels: the degree, 0 where nothing was removed.

    Raises:
        OptionError: there are fewer than 2 degrees, or a label is none of them.
    """
    degrees = degree_logits.shape[-1]
    if degrees < 2:
        raise OptionError(f"there must be at least 2 degrees, got {degrees}")
    if len(degree_labels) and not 0 <= int(degree_labels.min()) <= int(degree_labels.max()) < degrees:
        raise OptionError(f"degree labels must be in [0, {degrees}), got {degree_labels.tolist()}")
    return F.cross_entropy(degree_logits, degree_labels, reduction="none")


def degree_head_loss(
    pooled: Float[Tensor, "n dim"],
    weight: Float[Tensor, "degrees dim"],
    bias: Float[Tensor, " degrees"],
    degree_labels: Int[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """The cross-entropy of a linear head on pooled hidden states; see `degree_cross_entropy`."""
    return degree_cross_entropy(F.linear(pooled, weight, bias), degree_labels)


def pool_hidden(
    hidden_states: Float[Tensor, "batch length dim"],
    attention_mask: Bool[Tensor, "batch length"] | Int[Tensor, "batch length"],
    kind: Literal["last", "mean"] = "last",
) -> Float[Tensor, "batch dim"]:
    """One state a sequence: that of its last real token, or the mean over its real tokens; padded on either side.

    Args:
        hidden_states: of all places.
        attention_mask: 1 at real tokens.
        kind: which of the two.

    Raises:
        OptionError: a sequence has no real token, or the kind is unknown.
    """
    mask = attention_mask.bool()
    if not bool(mask.any(1).all()):
        raise OptionError(f"row {int((~mask.any(1)).nonzero()[0])} has no real token")
    if kind == "last":
        last = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1).amax(1)
        return hidden_states[torch.arange(len(mask), device=mask.device), last]
    if kind == "mean":
        return torch.where(mask[:, :, None], hidden_states, 0.0).sum(1) / mask.sum(1, keepdim=True)
    raise OptionError(f"pool must be 'last' or 'mean', got {kind!r}")


def spo_total_loss(
    align_losses: Float[Tensor, " batch"],
    chosen_degree_logits: Float[Tensor, "batch degrees"],
    chosen_degree_labels: Int[Tensor, " batch"],
    rejected_degree_logits: Float[Tensor, "batch degrees"],
    rejected_degree_labels: Int[Tensor, " batch"],
    *,
    gamma: float = 0.1,
) -> Float[Tensor, " batch"]:
    """An alignment loss of untouched pairs, plus gamma times the degree losses of one variant of each response.

    Args:
        align_losses: any pairwise loss, DPO as a rule.
        chosen_degree_logits: of variants of the chosen responses.
        chosen_degree_labels: their degrees.
        rejected_degree_logits: of variants of the rejected responses.
        rejected_degree_labels: their degrees.
        gamma: weight of the degree losses.

    Raises:
        OptionError: gamma is negative; see `degree_cross_entropy`.
    """
    if gamma < 0:
        raise OptionError(f"gamma must be at least 0, got {gamma}")
    chosen = degree_cross_entropy(chosen_degree_logits, chosen_degree_labels)
    rejected = degree_cross_entropy(rejected_degree_logits, rejected_degree_labels)
    return align_losses + gamma * (chosen + rejected)


def degraded(
    comparison: Comparison,
    chosen: int,
    rejected: int,
    *,
    ratios: tuple[float, ...],
    extractor: Literal["rake", "tfidf", "random"] | Extractor,
    sides: str,
    variants: str,
    filler: str | None,
    **_: Any,
) -> list[Companion]:
    """Variants of both responses without a share of their key content; the label is `side * degrees + degree`.

    A response has no variant of a degree that removes as much as a lower one, and none at all without key content.
    """
    found: list[Companion] = []
    for side, place in enumerate((chosen, rejected)):
        response, prompt = comparison.responses[place], comparison.prompt_of(place)
        text = said(response)
        spans = key_spans(text, extractor)
        if not spans or sides not in ("both", SIDES[side]):
            continue
        counts = [removed_spans(len(spans), ratio) for ratio in ratios]
        own = [
            Companion(
                prompt,
                saying(response, without_key_content(text, spans, ratio, filler=filler)),
                side * len(ratios) + degree,
            )
            for degree, ratio in enumerate(ratios)
            if counts[degree] not in counts[:degree]
        ]
        if variants == "one":
            own = [own[int(fraction_of(f"{SIDES[side]} {text}") * len(own))]]
        found.extend(own)
    return found


class SelfSupervisedDegree(Stateful):
    """The auxiliary term: gamma times the cross-entropy of the variants' degrees, a mean over those of each side.

    The heads begin at 0, where every degree is equally likely and the cross-entropy is ln(degrees). Figures, one a
    pair: `degree_loss` (gamma included), `degree_accuracy`, and `length_accuracy`, how often the degree is told from
    the variant's length alone; where that is as good, `filler` makes the task harder.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = DegreeOptions.parse(options, "degree")
        self.degrees = len(self.options.ratios)
        self.heads, self.width = nn.ModuleList(), 0
        self.register_buffer("lengths", torch.zeros(2, self.degrees))
        self._without: set[str] = set()

    def equip(self, scorer: object) -> None:
        """See `Stateful.equip`."""
        if not isinstance(scorer, HasStates):
            raise OptionError(f"auxiliary 'degree' reads hidden states, which {type(scorer).__name__} does not have")
        self.build(scorer.width)

    def build(self, width: int) -> None:
        """Make the heads.

        Args:
            width: size of the hidden states.
        """
        self.width = width
        self.heads = nn.ModuleList(
            nn.Linear(width, self.degrees) for _ in range(1 if self.options.heads == "shared" else 2)
        )
        for weight in self.heads.parameters():
            nn.init.zeros_(weight)

    def accompany(self, comparison: Comparison, chosen: int, rejected: int) -> list[Companion]:
        """See `Part.accompany`; counts responses without key content."""
        found = list(super().accompany(comparison, chosen, rejected))
        for side, place in enumerate((chosen, rejected)):
            wanted = self.options.sides in ("both", SIDES[side])
            if wanted and not any(companion.label // self.degrees == side for companion in found):
                self._without.add(said(comparison.responses[place]))
        return found

    def prepare(self, annotators: object) -> None:
        """See `Stateful.prepare`."""
        if self._without:
            logger.warning(f"{len(self._without)} responses have no key content and take no part in 'degree'")

    def summary(self) -> dict[str, Any]:
        """See `Stateful.summary`."""
        return {"degrees": self.degrees, "responses_without_key_content": len(self._without)}

    def forward(self, companions: Companions, pairs: int) -> Float[Tensor, " pairs"]:
        """The term of each pair; 0 where its responses have no variant.

        Raises:
            OptionError: the heads have not been made, or the variants' hidden states are not given.
        """
        side = torch.div(companions.label, self.degrees, rounding_mode="floor")
        degree = companions.label % self.degrees
        logits = self._logits(companions, side)
        losses = degree_cross_entropy(logits, degree)
        place = companions.entry * 2 + side
        count = torch.bincount(place, minlength=2 * pairs)
        terms = losses.new_zeros(2 * pairs).index_add(0, place, losses) / count.clamp(min=1)
        term = self.options.gamma * terms.view(pairs, 2).sum(1)

        own = torch.bincount(companions.entry, minlength=pairs)

        def share(right: Tensor) -> Tensor:
            return term.new_zeros(pairs).index_add(0, companions.entry, right.to(term.dtype)) / own

        self.figures = {
            "degree_loss": term.detach(),
            "degree_accuracy": share(logits.detach().argmax(1) == degree),
            "length_accuracy": share(self._from_length(companions.lengths, place, degree) == degree),
        }
        return term

    def _logits(self, companions: Companions, side: Tensor) -> Tensor:
        if not len(self.heads):
            raise OptionError("auxiliary 'degree' has no heads yet: fit makes them, or build(width)")
        states = companions.last_states if self.options.pool == "last" else companions.mean_states
        if states is None:
            if len(side):
                raise OptionError("auxiliary 'degree' needs hidden states of the companions, which the scores lack")
            states = companions.policy_logps.new_zeros(0, self.width)
        # Both heads see all variants, so that each has a gradient in every process whatever the batch holds.
        logits: Tensor = torch.stack([head(states.float()) for head in self.heads], dim=1)
        return logits[torch.arange(len(side), device=side.device), side % len(self.heads)]

    @torch.no_grad()
    def _from_length(self, lengths: Tensor, place: Tensor, degree: Tensor) -> Tensor:
        """The degree whose mean length so far, as a share of the longest variant's, is nearest."""
        longest = lengths.new_zeros(int(place.max()) + 1 if len(place) else 0).scatter_reduce(0, place, lengths, "amax")
        share = lengths / longest[place]
        sums, counts = self.get_buffer("lengths")
        if self.training:
            sums.index_add_(0, degree, share.to(sums.dtype))
            counts.index_add_(0, degree, torch.ones_like(share, dtype=counts.dtype))
        nearest: Tensor = (share[:, None] - sums / counts.clamp(min=1)).abs().argmin(1)
        return nearest


DEGREE = Part(
    "degree",
    SelfSupervisedDegree,
    (),
    DegreeOptions,
    requires=frozenset({"tokens", "states"}),
    companions=degraded,
)
