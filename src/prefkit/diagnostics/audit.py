"""The audit: what comparisons can teach, what could spoil it, and what a model makes of them.

Comparisons are read as a stream, three times at most: once for their health, once for style, strength and votes, and
once for the sample of rows that a model scores. Of texts only hashes are kept, except for the rows that are shown.
`audit_report` turns the findings into a page.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefkit.comparisons import Comparison, Health, Label, Pair, StepLabels, check_comparisons, pairs
from prefkit.diagnostics.displacement import Displacement, ches_from_sums, displacement_report, normalized_edit_distance
from prefkit.diagnostics.label_noise import LabelNoise, estimate_label_noise
from prefkit.diagnostics.ranking import (
    BETAS,
    Difficulty,
    Flips,
    IdealizedRange,
    difficulty,
    flip_report,
    idealized_ranking_accuracy,
    ranking_accuracy,
    reward_accuracy,
)
from prefkit.diagnostics.states import NEEDS, score_states
from prefkit.diagnostics.surface import StyleCounts, count_style, plain_text, word_overlap
from prefkit.diagnostics.votes import (
    Cycles,
    Groups,
    Reliability,
    Votes,
    VoteTable,
    annotator_groups,
    cycles,
    reliability,
)
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.objectives import Encoded, Scorer
from prefkit.report import Table

Values: TypeAlias = NDArray[np.float64]
Measured = TypeVar("Measured")

LONG_LIST = 10
"""Of longer lists only neighbours in the ranking are taken as pairs."""

NEAR = 0.8
"""Shared words from which on two responses count as nearly the same."""

SINGLE_VOTE = 0.75
"""Share of raters that a single vote stands for, where a share is needed (Chen et al. 2024, the authors' code)."""

PROJECTED = 64
"""Features that label noise is estimated from; larger states are projected at random."""

_BINS = 20
_KEPT_STRENGTHS = 100_000
_PREVIEW = 110


@dataclass
class DataFindings:
    """What the data alone say. What could not be told is a string that says why.

    Args:
        health: format, counts and what could spoil a fit.
        style: how often the response with more of something wins.
        overlap: pairs by shared words, in 20 equal bins of [0, 1].
        strengths: how strongly responses were preferred, where the data say; a sample of at most 100,000.
        stated: decided pairs whose strength or probability the data say.
        decided: decided pairs.
        responses: comparisons by number of responses.
        rationales: comparisons with a rationale.
        votes: judgements of pairs.
        reliability: from pairs that were judged more than once.
        within_groups: the same within the largest group of annotators, if they fall into groups.
        groups: of annotators.
        cycles: preferences that go round.
        sources: comparisons by file.
    """

    health: Health
    style: StyleCounts = field(default_factory=StyleCounts)
    overlap: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, dtype=np.int64))
    strengths: list[float] = field(default_factory=list)
    stated: int = 0
    decided: int = 0
    responses: Counter[int] = field(default_factory=Counter)
    rationales: int = 0
    votes: VoteTable = field(default_factory=lambda: Votes().table())
    reliability: Reliability | str = "not looked at"
    within_groups: Reliability | None = None
    groups: Groups | str = "not looked at"
    cycles: Cycles | str = "not looked at"
    sources: Counter[str] = field(default_factory=Counter)

    @property
    def near(self) -> int:
        """Decided pairs whose two responses are nearly the same."""
        return int(self.overlap[round(NEAR * _BINS) :].sum())


@dataclass(frozen=True)
class ScoredPair:
    """Where a pair that was scored stands."""

    row: int
    source: str | None
    line: int | None
    annotator: str | None
    preview: str


@dataclass(frozen=True)
class ModelFindings:
    """What a model says about a sample of the data; "before" is the model before it is, or was, trained.

    Args:
        pairs: where each pair stands.
        before: log-probabilities of chosen and rejected responses before training, `[2, pairs]` (nats).
        lengths: tokens of chosen and rejected responses, `[2, pairs]`.
        after: the same of the trained model, if there is one.
        ches: `[pairs]`.
        ln_ches: `[pairs]`, normalised by length.
        similarity: `[pairs]`, 1 less the normalised edit distance of tokens; nan where the domain has no tokens.
        alpha: `[pairs]`, share of raters who prefer the chosen response.
        noise: estimated label noise, or why there is none.
        skipped: comparisons that could not be encoded.
        beta: temperature for which losses and thresholds are given.
    """

    pairs: tuple[ScoredPair, ...]
    before: Tensor
    lengths: Tensor
    after: Tensor | None
    ches: Values
    ln_ches: Values
    similarity: Values
    alpha: Tensor
    noise: LabelNoise | str
    skipped: tuple[RecordError, ...]
    beta: float

    @property
    def at_risk(self) -> NDArray[np.bool_]:
        """`[pairs]`, whose tokens are nearly the same."""
        return self.similarity >= NEAR

    def pairs_table(self) -> Table:
        """One row a pair: where it stands, and everything that was measured of it."""
        hard = self.difficulty()
        columns: dict[str, list[Any]] = {
            "row": [place.row + 1 for place in self.pairs],
            "source": [place.source for place in self.pairs],
            "line": [place.line for place in self.pairs],
            "annotator": [place.annotator for place in self.pairs],
            "chosen_logp": self.before[0].tolist(),
            "rejected_logp": self.before[1].tolist(),
            "chosen_tokens": self.lengths[0].tolist(),
            "rejected_tokens": self.lengths[1].tolist(),
            "difficulty": hard.nats.tolist(),
            "loss_threshold": hard.loss_threshold.tolist(),
            "ches": self.ches.tolist(),
            "ln_ches": self.ln_ches.tolist(),
            "token_similarity": [None if math.isnan(value) else value for value in self.similarity.tolist()],
            "raters_for_chosen": self.alpha.tolist(),
        }
        if isinstance(self.noise, LabelNoise):
            columns["label_confidence"] = self.noise.confidence.tolist()
        flips = self.flips()
        if flips is not None and self.after is not None:
            columns |= {"chosen_logp_after": self.after[0].tolist(), "rejected_logp_after": self.after[1].tolist()}
            columns["moved"] = flips.labels
        return Table(list(columns), zip(*columns.values(), strict=True), "Pairs")

    def difficulty(self) -> Difficulty:
        """Of each pair, before training."""
        return difficulty(self.before[0], self.before[1], beta=self.beta)

    def ideal(self, *, length_normalize: bool = False, betas: Sequence[float] = BETAS) -> IdealizedRange:
        """Ranking accuracy of the optimum, over the paper's grid of beta or another."""
        sides = self.before[0], self.before[1], self.alpha, self.lengths[0], self.lengths[1]
        return idealized_ranking_accuracy(*sides, length_normalize=length_normalize, betas=betas)

    def accuracies(self) -> dict[str, Tensor]:
        """1 or 0 for each pair, by what is asked of which model."""
        found = {}
        for name, logps in (("before", self.before), ("after", self.after)):
            if logps is not None:
                found[f"ranking accuracy {name}"] = ranking_accuracy(*logps).per_example
                found[f"ranking accuracy a token {name}"] = ranking_accuracy(
                    *logps, *self.lengths, length_normalize=True
                ).per_example
        if self.after is not None:
            found["reward accuracy"] = reward_accuracy(*self.after, *self.before).per_example
        return found

    def flips(self) -> Flips | None:
        """How training moved the pairs; None without a trained model."""
        return None if self.after is None else flip_report(*self.after, *self.before)

    def displacement(self) -> Displacement | None:
        """What training did to log-probabilities; None without a trained model."""
        if self.after is None:
            return None
        return displacement_report(*self.before.numpy(), *self.after.numpy(), beta=self.beta)


def audit_data(
    comparisons: Iterable[Comparison],
    *,
    on_row: Callable[[], object] | None = None,
    generator: np.random.Generator | None = None,
) -> DataFindings:
    """Everything that the data say without a model.

    Args:
        comparisons: read twice, from the beginning.
        on_row: called after each comparison in each pass, for a progress bar.
        generator: source of randomness; a fresh one seeded with 0 by default.

    Raises:
        PrefkitError: no comparison can be used.
    """
    generator = generator or np.random.default_rng(0)
    found = DataFindings(check_comparisons(comparisons, on_row))
    if not found.health.rows:
        raise PrefkitError(f"{found.health.source}: no comparison can be used, {found.health.bad_rows} rows are bad")
    votes = Votes()
    for row, comparison in enumerate(comparisons):
        votes.add(comparison, row)
        _scan(comparison, found, generator)
        if on_row is not None:
            on_row()
    found.votes = votes.table()
    found.groups = _or_reason(lambda: annotator_groups(found.votes, generator=generator))
    found.reliability = _or_reason(lambda: reliability(found.votes.repeated()))
    largest = found.votes
    if isinstance(found.groups, Groups) and found.groups.groups > 1:
        # What groups explain is no noise, and no circle either: each is asked of a group for itself.
        numbers = {name: number for number, name in enumerate(found.votes.names)}
        parts = [
            found.votes.take(np.isin(found.votes.annotator, [numbers[name] for name in members]))
            for members in found.groups.members
        ]
        largest = max(parts, key=len)
        inside = _or_reason(lambda: reliability(largest.repeated()))
        found.within_groups = inside if isinstance(inside, Reliability) else None
    found.cycles = _or_reason(lambda: cycles(largest))
    return found


def _or_reason(measure: Callable[[], Measured]) -> Measured | str:
    """What was measured, or why it could not be."""
    try:
        return measure()
    except PrefkitError as error:
        return str(error)


def _scan(comparison: Comparison, found: DataFindings, generator: np.random.Generator) -> None:
    found.sources[comparison.source or "-"] += 1
    found.responses[len(comparison.responses)] += 1
    found.rationales += comparison.rationale is not None
    made = decided(comparison)
    if not made:
        return
    texts = [plain_text(response) for response in comparison.responses]
    styles = [count_style(text) for text in texts]
    for pair in made:
        found.decided += 1
        found.style.add(styles[pair.chosen], styles[pair.rejected])
        overlap = word_overlap(texts[pair.chosen], texts[pair.rejected])
        found.overlap[min(int(overlap * _BINS), _BINS - 1)] += 1
        strength = pair.probability if pair.probability < 1 else pair.strength
        if strength is not None:
            found.stated += 1
            if len(found.strengths) < _KEPT_STRENGTHS:
                found.strengths.append(strength)
            elif (place := int(generator.integers(found.stated))) < _KEPT_STRENGTHS:
                found.strengths[place] = strength


def decided(comparison: Comparison) -> list[Pair]:
    """Pairs of a comparison with a winner; none of judgements on a single response."""
    if isinstance(comparison.judgement, Label | StepLabels):
        return []
    return pairs(comparison, "all" if len(comparison.responses) <= LONG_LIST else "adjacent")


def sampled_rows(total: int, rows: int, generator: np.random.Generator) -> set[int]:
    """Which comparisons a model scores: all, or a sample without replacement.

    Raises:
        OptionError: rows is below 1.
    """
    if rows < 1:
        raise OptionError(f"rows must be at least 1, got {rows}")
    return set(range(total)) if rows >= total else set(generator.choice(total, rows, replace=False).tolist())


def audit_model(
    scorer: Scorer,
    comparisons: Iterable[Comparison],
    *,
    data: DataFindings,
    trained: bool = False,
    rows: int = 1000,
    batch_size: int = 8,
    beta: float = 0.1,
    on_row: Callable[[], object] | None = None,
    generator: np.random.Generator | None = None,
) -> ModelFindings:
    """What a model says about a sample of the comparisons.

    Args:
        scorer: the model; with `trained`, its policy is the trained one and its reference the one before.
        comparisons: read once, from the beginning.
        data: what the data alone said.
        trained: whether there is a model before and one after training.
        rows: comparisons to score, a random sample; 1000 is the number of Chen et al. (2024).
        batch_size: comparisons a forward pass.
        beta: temperature for which losses and thresholds are given.
        on_row: called after each comparison that was scored.
        generator: source of randomness; a fresh one seeded with 0 by default.

    Raises:
        OptionError: an option is out of range, or the scorer has no hidden states.
        PrefkitError: no pair of the sample can be scored.
    """
    for name, value in (("batch_size", batch_size), ("beta", beta)):
        if not value > 0:
            raise OptionError(f"{name} must be greater than 0, got {value}")
    generator = generator or np.random.default_rng(0)
    scorer.provide(NEEDS)
    wanted = sampled_rows(data.health.rows, rows, generator)
    skipped: list[RecordError] = []
    batches = _batches(scorer, comparisons, wanted, batch_size, skipped)
    parts: list[_Part] = []
    places: list[ScoredPair] = []
    similarity: list[float] = []
    projection: Tensor | None = None
    for batch in batches:
        encoded = [item for _, _, _, item in batch]
        (before,) = score_states(scorer, encoded, batch_size=len(batch), reference=trained)
        after = None
        if trained:
            (scored,) = score_states(scorer, encoded, batch_size=len(batch))
            after = scored.logps
        if projection is None:
            projection = _projection(before.sums.shape[1])
        index = _pair_index(batch)
        lengths = before.lengths[index]
        means = before.sums[index] / lengths[..., None]
        sides = *before.sums[index], *lengths
        parts.append(
            _Part(
                before.logps[index].double(),
                lengths,
                None if after is None else after[index].double(),
                ches_from_sums(*sides),
                ches_from_sums(*sides, length_normalize=True),
                torch.cat([(means[0] - means[1]) @ projection, torch.log(lengths[:1] / lengths[1:]).T], dim=1),
            )
        )
        for row, comparison, made, item in batch:
            for pair in made:
                places.append(_place(row, comparison, pair))
                similarity.append(_similarity(item, pair))
            if on_row is not None:
                on_row()
    if not parts:
        first = f"; the first: {skipped[0]}" if skipped else ""
        raise PrefkitError(f"the model could score no pair of {len(wanted)} sampled comparisons{first}")
    features = torch.cat([part.features for part in parts]).double().numpy()
    features = _leading(features, max(2, len(features) // 10))
    sources = [place.source or "-" for place in places]
    names = [place.annotator or source for place, source in zip(places, sources, strict=True)]
    return ModelFindings(
        pairs=tuple(places),
        before=torch.cat([part.before for part in parts], dim=1),
        lengths=torch.cat([part.lengths for part in parts], dim=1),
        after=torch.cat([part.after for part in parts if part.after is not None], dim=1) if trained else None,
        ches=torch.cat([part.ches for part in parts]).double().numpy(),
        ln_ches=torch.cat([part.ln_ches for part in parts]).double().numpy(),
        similarity=np.array(similarity),
        alpha=_shares(places, data.votes),
        noise=_or_reason(lambda: estimate_label_noise(features, names, generator=generator)),
        skipped=tuple(skipped),
        beta=beta,
    )


@dataclass(frozen=True)
class _Part:
    """One batch of pairs."""

    before: Tensor
    lengths: Tensor
    after: Tensor | None
    ches: Tensor
    ln_ches: Tensor
    features: Tensor


_Entry: TypeAlias = tuple[int, Comparison, list[Pair], Encoded]


def _batches(
    scorer: Scorer, comparisons: Iterable[Comparison], wanted: set[int], size: int, skipped: list[RecordError]
) -> Iterator[list[_Entry]]:
    batch: list[_Entry] = []
    for row, comparison in enumerate(comparisons):
        if row not in wanted or not (made := decided(comparison)):
            continue
        try:
            batch.append((row, comparison, made, scorer.encode(comparison)))
        except RecordError as error:
            skipped.append(error.at(comparison))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _pair_index(batch: list[_Entry]) -> Tensor:
    """Places of chosen and rejected responses among those of the batch, `[2, pairs]`."""
    found, start = [], 0
    for _, comparison, made, _ in batch:
        found += [(start + pair.chosen, start + pair.rejected) for pair in made]
        start += len(comparison.responses)
    return torch.tensor(found).T


def _projection(width: int) -> Tensor:
    if width <= PROJECTED:
        return torch.eye(width)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(width, PROJECTED, generator=generator) / math.sqrt(width)


def _leading(features: Values, most: int) -> Values:
    """The directions in which pairs differ most, so many that each has ten rows: more would be fitted by chance."""
    spread = np.sqrt((features**2).mean(0))
    scaled = features / np.where(spread > 0, spread, 1.0)
    if scaled.shape[1] <= most:
        return scaled
    _, _, directions = np.linalg.svd(scaled, full_matrices=False)
    led: Values = scaled @ directions[:most].T
    return led


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _PREVIEW else f"{words[:_PREVIEW]} …"


def _place(row: int, comparison: Comparison, pair: Pair) -> ScoredPair:
    chosen, rejected = (_short(plain_text(comparison.responses[side])) for side in (pair.chosen, pair.rejected))
    preview = f"{chosen}\n— against —\n{rejected}"
    return ScoredPair(row, comparison.source, comparison.line, comparison.annotator, preview)


def _similarity(item: Encoded, pair: Pair) -> float:
    tokens = item.get("response_ids")
    if tokens is None:
        return math.nan
    return 1 - normalized_edit_distance(tokens[pair.chosen], tokens[pair.rejected])


def _shares(places: list[ScoredPair], votes: VoteTable) -> Tensor:
    """Share of raters who prefer each chosen response: that of its votes, where there are several."""
    several = votes.repeated()
    known = dict(zip(several.row.tolist(), several.shares().tolist(), strict=True))
    return torch.tensor([known.get(place.row, SINGLE_VOTE) for place in places], dtype=torch.float64)
