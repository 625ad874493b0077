"""Evaluation: how a policy ranks the responses of comparisons, in any domain that has a scorer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefkit.comparisons import Comparison, Pair, pairs
from prefkit.comparisons.pairing import Strategy
from prefkit.diagnostics.accuracy import LABELS, Values, pair_figures, summarise
from prefkit.diagnostics.intervals import Interval, bootstrap_difference
from prefkit.diagnostics.probabilities import Calibration, pair_calibration
from prefkit.diagnostics.states import evaluating
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.objectives import Encoded, PairScores, ResponseScores, Scorer, Targets, score_all
from prefkit.report import Table
from prefkit.report.cells import plain


class Place(NamedTuple):
    """Where a pair stands in the data.

    Args:
        source: file or data set, if known.
        line: 1-based line or row, if known.
        chosen: index of the chosen response in its comparison.
        rejected: index of the rejected response.
    """

    source: str | None
    line: int | None
    chosen: int
    rejected: int


@dataclass(frozen=True)
class Evaluation:
    """What a policy makes of a set of comparisons.

    Args:
        summary: each figure over all pairs, with a 95% interval over prompts; `accuracy.LABELS` says what each is.
        figures: the same figures pair by pair, `[pairs]` each.
        prompts: `[pairs]`, which prompt each pair belongs to.
        scores: log-probabilities and lengths of the pairs.
        places: where each pair stands in the data.
        comparisons: number of comparisons that were read.
        ties: number of comparisons without a pair to rank: nothing was preferred, or by less than asked for.
        skipped: comparisons that could not be used, each with place and reason.
    """

    summary: dict[str, Interval]
    figures: dict[str, Values]
    prompts: NDArray[np.int64]
    scores: PairScores
    places: tuple[Place, ...]
    comparisons: int
    ties: int
    skipped: tuple[RecordError, ...]

    def calibration(self, temperature: float = 1.0, title: str = "Reliability") -> Calibration:
        """Whether the scores mean what they say, as log-odds of preference; for reward models.

        Args:
            temperature: log-odds are divided by it.
            title: of the plot.
        """
        odds = self.log_odds / temperature
        return pair_calibration(odds, self.probabilities, clusters=self.prompts, title=title)

    @property
    def log_odds(self) -> Values:
        """`[pairs]`, that the chosen response is preferred: the difference of scores, unless the model compares."""
        scores = self.scores
        odds = scores.policy_chosen_logps - scores.policy_rejected_logps if scores.odds is None else scores.odds
        return np.asarray(odds.double().numpy())

    @property
    def probabilities(self) -> Values | None:
        """`[pairs]`, that the chosen response is the better one, by the data; None where all are certain."""
        given = self.scores.probabilities
        return None if given is None else np.asarray(given.double().numpy())

    def table(self, title: str = "Evaluation") -> Table:
        """The summary, one figure a row."""
        counts: list[list[Any]] = [["pairs", len(self.prompts)], ["prompts", len(np.unique(self.prompts))]]
        counts += [["ties, not ranked", self.ties], ["comparisons set aside", len(self.skipped)]]
        figures = [[LABELS[name], interval] for name, interval in self.summary.items()]
        return Table(["figure", "value [95% interval]"], figures + counts, title)

    def pairs_table(self) -> Table:
        """One row a pair: where it stands, its scores and its figures."""
        measured: dict[str, list[Any]] = {
            field.name: values.tolist()
            for field in fields(self.scores)
            if isinstance(values := getattr(self.scores, field.name), Tensor)
        }
        measured |= {name: values.tolist() for name, values in self.figures.items()}
        numbers = zip(*measured.values(), strict=True)
        rows = [[*place, *row] for place, row in zip(self.places, numbers, strict=True)]
        return Table([*Place._fields, *measured], rows, "Pairs")

    def to_dict(self) -> dict[str, Any]:
        """Summary and counts as values that JSON holds."""
        return {
            "summary": plain(self.summary),
            "pairs": len(self.prompts),
            "prompts": len(np.unique(self.prompts)),
            "comparisons": self.comparisons,
            "ties": self.ties,
            "skipped": [str(error) for error in self.skipped],
        }


def evaluate(
    scorer: Scorer,
    comparisons: Iterable[Comparison],
    *,
    reference: bool = False,
    batch_size: int = 8,
    strategy: Strategy = "all",
    min_margin: float = 0.0,
    beta: float = 1.0,
    per_token: bool = True,
    generator: np.random.Generator | None = None,
) -> Evaluation:
    """Score comparisons and measure how well the policy ranks their responses.

    A soft label counts as a preference for its more probable side; every pair counts once, whatever its weight.

    Args:
        scorer: scores the responses.
        comparisons: what was preferred; read once, a batch at a time.
        reference: also score under the scorer's reference, for the figures that compare with it.
        batch_size: comparisons a forward pass, at least 1.
        strategy: which pairs are taken from comparisons of more than two responses.
        min_margin: leave out pairs whose ratings differ by less.
        beta: scale of the implicit reward, above 0.
        per_token: also rank by score a token, which means something for log-probabilities, not for rewards.
        generator: source of randomness of the intervals; a fresh one seeded with 0 by default.

    Raises:
        OptionError: batch_size or beta is out of range.
        PrefkitError: no comparison could be used, or a log-probability is not a finite number; the message says where.
    """
    if batch_size < 1:
        raise OptionError(f"batch_size must be at least 1, got {batch_size}")
    skipped: list[RecordError] = []
    tally: Counter[str] = Counter()
    entries = _usable(scorer, comparisons, strategy, min_margin, skipped, tally)
    parts: list[ResponseScores] = []
    places: list[Place] = []
    index: list[tuple[int, int]] = []
    prompts: list[int] = []
    soft: list[float] = []
    known: dict[int, int] = {}
    responses = 0
    with evaluating(scorer):
        while batch := list(islice(entries, batch_size)):
            parts.append(_score(scorer, batch, reference))
            for comparison, found, _ in batch:
                # Hashes, because the texts of a large file would not fit into memory.
                prompt = known.setdefault(hash(str(comparison.prompts)), len(known))
                for pair in found:
                    places.append(Place(comparison.source, comparison.line, pair.chosen, pair.rejected))
                    index.append((responses + pair.chosen, responses + pair.rejected))
                    prompts.append(prompt)
                    soft.append(pair.probability)
                responses += len(comparison.responses)
    if not index:
        first = f"; the first of them: {skipped[0]}" if skipped else ""
        raise PrefkitError(
            f"no comparison can be evaluated: {tally['ties']} without a preferred response, "
            f"{len(skipped)} set aside{first}"
        )
    scores = _pair_scores(parts, index, soft)
    if not per_token:
        scores = replace(scores, chosen_lengths=None, rejected_lengths=None)
    figures = pair_figures(scores, beta)
    clusters = np.array(prompts)
    return Evaluation(
        summary=summarise(figures, clusters, generator),
        figures=figures,
        prompts=clusters,
        scores=scores,
        places=tuple(places),
        comparisons=tally["read"],
        ties=tally["ties"],
        skipped=tuple(skipped),
    )


def before_after(before: Evaluation, after: Evaluation, generator: np.random.Generator | None = None) -> Table:
    """Two evaluations of the same comparisons, with the paired difference of each figure.

    Args:
        before: the first evaluation.
        after: the second one.
        generator: source of randomness of the intervals; a fresh one seeded with 0 by default.

    Raises:
        PrefkitError: the two are not of the same pairs.
    """
    if before.places != after.places:
        raise PrefkitError("the two evaluations are of different comparisons; evaluate both on the same file")
    rows: list[list[Any]] = []
    for name in after.summary:
        if name in before.summary:
            change = bootstrap_difference(
                before.figures[name], after.figures[name], generator=generator, clusters=after.prompts
            )
            rows.append([LABELS[name], before.summary[name], after.summary[name], change])
        else:
            rows.append([LABELS[name], None, after.summary[name], None])
    return Table(["figure", "before", "after", "change"], rows, "Held-out comparisons, with 95% intervals")


_Entry: TypeAlias = tuple[Comparison, list[Pair], Encoded]


def _usable(
    scorer: Scorer,
    comparisons: Iterable[Comparison],
    strategy: Strategy,
    min_margin: float,
    skipped: list[RecordError],
    tally: Counter[str],
) -> Iterator[_Entry]:
    """Comparisons with something to rank; the others are set aside, and all are counted."""
    for comparison in comparisons:
        tally["read"] += 1
        try:
            found = pairs(comparison, strategy=strategy, min_margin=min_margin)
            if found:
                yield comparison, found, scorer.encode(comparison)
            else:
                tally["ties"] += 1
        except RecordError as error:
            skipped.append(error.at(comparison))


def _score(scorer: Scorer, batch: list[_Entry], reference: bool) -> ResponseScores:
    encoded = [item for _, _, item in batch]
    (scores,) = score_all(scorer, encoded, batch_size=len(batch))
    if reference:
        (ref,) = score_all(scorer, encoded, batch_size=len(batch), reference=True)
        scores = replace(scores, ref_logps=ref.policy_logps)
        _check_finite("reference", ref.policy_logps, batch)
    _check_finite("policy", scores.policy_logps, batch)
    return scores


def _check_finite(model: str, logps: Tensor, batch: list[_Entry]) -> None:
    owners = [comparison for comparison, _, _ in batch for _ in comparison.responses]
    for owner, logp in zip(owners, logps.tolist(), strict=True):
        if not math.isfinite(logp):
            problem = f"the {model} gives a response the log-probability {logp}; look at its weights and precision"
            raise RecordError(problem, source=owner.source, line=owner.line)


def _pair_scores(parts: list[ResponseScores], index: list[tuple[int, int]], soft: list[float]) -> PairScores:
    refs = [part.ref_logps for part in parts if part.ref_logps is not None]
    factors = [part.factors for part in parts if part.factors is not None]
    flat = ResponseScores(
        torch.cat([part.policy_logps for part in parts]),
        torch.cat([part.lengths for part in parts]),
        ref_logps=torch.cat(refs) if refs else None,
        factors=torch.cat(factors) if factors else None,
    )
    probabilities = torch.tensor(soft) if any(probability != 1 for probability in soft) else None
    scores = Targets("pairs", torch.tensor(index), torch.arange(len(index)), probabilities).view(flat)
    assert isinstance(scores, PairScores)
    return scores
