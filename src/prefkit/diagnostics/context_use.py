"""Use of contexts: does a model read the context that it is told?

Each comparison is scored without its context, with it, and with another comparison's. A model that reads contexts gains
from its own and loses from another's; one that does not is context-blind, however accurate it is.

Source: Pitis et al. 2024 (arXiv 2407.14916), evaluation protocol.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefkit.comparisons import Comparison, ContextOptions, context_of, pairs, shuffled_contexts, with_context
from prefkit.diagnostics.benchmarks import Scored
from prefkit.diagnostics.intervals import Interval, bootstrap_difference, bootstrap_interval
from prefkit.diagnostics.reversal import reversal_metrics
from prefkit.errors import PrefkitError, RecordError
from prefkit.report import Table
from prefkit.report.cells import plain


@dataclass(frozen=True)
class ContextUse:
    """Accuracies of a model with and without contexts, with 95% intervals over prompts.

    Args:
        figures: by name: "no context", "context", "another's context", "gain" (context less none), and of reversals
            "both correct" and "context ignored".
        comparisons: how many were scored in all three ways.
        reversals: pairs of comparisons with one prompt and the same responses, of opposite outcome.
        skipped: what could not be scored.
    """

    figures: dict[str, Interval]
    comparisons: int
    reversals: int
    skipped: tuple[RecordError, ...]

    def table(self, title: str = "Use of contexts") -> Table:
        """One figure a row."""
        rows: list[list[Any]] = [[name, interval] for name, interval in self.figures.items()]
        rows += [["comparisons", self.comparisons], ["reversals", self.reversals], ["set aside", len(self.skipped)]]
        return Table(["figure", "value [95% interval]"], rows, title)

    def to_dict(self) -> dict[str, Any]:
        """The figures as values that JSON holds."""
        return {
            "figures": plain(self.figures),
            "comparisons": self.comparisons,
            "reversals": self.reversals,
            "skipped": [str(error) for error in self.skipped],
        }


def measure_context_use(
    scored: Scored, comparisons: Iterable[Comparison], options: ContextOptions | None = None, *, seed: int = 0
) -> ContextUse:
    """Score pairs without, with, and with another's context.

    Args:
        scored: gives scores to responses, see `benchmarks.Scored`.
        comparisons: pairs with a preferred response and a context; held in memory.
        options: how contexts are told.
        seed: which other's context.

    Raises:
        RecordError: a comparison has no context, or is no pair.
        PrefkitError: nothing could be scored.
    """
    options = options or ContextOptions()
    records, skipped = [c for c in comparisons if pairs(c)], list[RecordError]()
    for record in records:
        context_of(record, options.field)
        if len(record.responses) != 2:
            raise RecordError("contexts are measured on pairs", source=record.source, line=record.line)
    told = [with_context(record, context_of(record, options.field), options) for record in records]
    others = shuffled_contexts(records, seed, options)
    found = [_scores(scored, records_, skipped) for records_ in (records, told, others)]
    places = [place for place in range(len(records)) if all(place in each for each in found)]
    if not places:
        first = f"; first: {skipped[0]}" if skipped else ""
        raise PrefkitError(f"no comparison could be scored in all three ways, {len(skipped)} times set aside{first}")
    prompts: dict[str, int] = {}
    clusters = np.array([prompts.setdefault(str(records[place].prompts), len(prompts)) for place in places])
    won = [np.array([_won(records[place], each[place]) for place in places]) for each in found]
    names = ("no context", "context", "another's context")
    figures = {name: bootstrap_interval(own, clusters=clusters) for name, own in zip(names, won, strict=True)}
    figures["gain"] = bootstrap_difference(won[0], won[1], clusters=clusters)
    x, y, owners = _reversals([records[place] for place in places], [found[1][place] for place in places], clusters)
    if len(x):
        judged = reversal_metrics(x, y)
        figures["both correct"] = bootstrap_interval(judged.both_correct, clusters=owners)
        figures["context ignored"] = bootstrap_interval(judged.same_decision, clusters=owners)
    return ContextUse(figures, len(places), len(x), tuple(skipped))


def _scores(scored: Scored, records: Sequence[Comparison], skipped: list[RecordError]) -> dict[int, Sequence[float]]:
    """Scores of the responses by place, without those that were set aside."""
    numbered = [_numbered(record, place) for place, record in enumerate(records)]
    return {int(record.extra[_PLACE]): scores for record, scores in scored(numbered, skipped)}


_PLACE = "place in the evaluation"


def _numbered(record: Comparison, place: int) -> Comparison:
    return replace(record, extra={**record.extra, _PLACE: place})


def _won(record: Comparison, scores: Sequence[float]) -> float:
    pair = pairs(record)[0]
    return float(np.heaviside(scores[pair.chosen] - scores[pair.rejected], 0.5))


def _reversals(
    records: Sequence[Comparison], scores: Sequence[Sequence[float]], clusters: NDArray[np.int64]
) -> tuple[list[list[float]], list[list[float]], list[int]]:
    """Rewards of responses, the better one under context x first, where context y turns the judgement round."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        groups[str(record.prompts), str(sorted(map(str, record.responses)))].append(place)
    x, y, owners = [], [], []
    for members in groups.values():
        if len(members) != 2:
            continue
        one, other = members
        better = [records[place].responses[pairs(records[place])[0].chosen] for place in members]
        if better[0] == better[1]:
            continue
        x.append([_of(records[one], scores[one], text) for text in better])
        y.append([_of(records[other], scores[other], text) for text in better])
        owners.append(int(clusters[one]))
    return x, y, owners


def _of(record: Comparison, scores: Sequence[float], text: Any) -> float:
    return float(scores[record.responses.index(text)])
