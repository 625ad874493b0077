"""The health of a data set: what is in it, and what could spoil a fit.

One pass; of each prompt, response and pair only a hash is kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from prefkit.comparisons.canonical import text_key
from prefkit.comparisons.pairing import Pair, pairs
from prefkit.comparisons.reader import BadRow, Comparisons
from prefkit.comparisons.record import Comparison, Label, Ranking, StepLabels, Text

_Z = 1.959963984540054  # 95%
_LONG_LIST = 10
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Share:
    """A share of a count, with its 95% Wilson interval.

    Args:
        count: how many.
        total: out of how many.
    """

    count: int
    total: int

    @property
    def value(self) -> float:
        """The share; NaN out of nothing."""
        return self.count / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval (Wilson 1927, score interval)."""
        if not self.total:
            return 0.0, 1.0
        share, n, z = self.value, self.total, _Z
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


@dataclass
class Health:
    """What `check_comparisons` found.

    Args:
        source: what was read.
        format: its format; None for comparisons that were made in memory.
        rows: comparisons that can be used.
        kinds: how many of each kind of judgement.
        joint: comparisons whose responses answer different prompts.
        prompts: different prompts.
        responses_per_prompt: different responses a prompt, on average.
        pairs: pairs that were judged: all pairs of a comparison; of long lists (more than 10 responses) neighbours
            in the ranking.
        ties: pairs that were judged equal; equal scores and equal ranks count.
        both_bad: comparisons in which every response was rejected.
        duplicates: comparisons that repeat an earlier one in everything that was judged, by the same annotator.
        exchanged: comparisons of an earlier pair with its sides exchanged.
        identical: pairs of two equal responses, bad rows included.
        conflicts: different pairs of which both sides have won (under one criterion).
        contradictions: those in which one and the same annotator said both.
        longer_wins: of the decided pairs with different lengths (in characters), those the longer response won.
        first_wins: of the decided pairs, those the response that the source lists first won.
        annotators: different annotators; 0 where the data does not say.
        criteria: comparisons a criterion.
        bad_rows: rows that were set aside.
        reasons: how many for which reason.
        examples: the first of them, by line.
    """

    source: str
    format: str | None
    rows: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    joint: int = 0
    prompts: int = 0
    responses_per_prompt: float = math.nan
    pairs: int = 0
    ties: int = 0
    both_bad: int = 0
    duplicates: int = 0
    exchanged: int = 0
    identical: int = 0
    conflicts: int = 0
    contradictions: int = 0
    longer_wins: Share = field(default=Share(0, 0))
    first_wins: Share = field(default=Share(0, 0))
    annotators: int = 0
    criteria: dict[str, int] = field(default_factory=dict)
    bad_rows: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    examples: list[BadRow] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, as JSON holds them."""
        values = asdict(self)
        for name in ("longer_wins", "first_wins"):
            share: Share = getattr(self, name)
            values[name] = {
                "share": None if math.isnan(share.value) else share.value,
                "interval": list(share.interval),
                "of": share.total,
            }
        if math.isnan(self.responses_per_prompt):
            values["responses_per_prompt"] = None
        return values


def check_comparisons(comparisons: Iterable[Comparison], on_row: Callable[[], object] | None = None) -> Health:
    """Read everything once and count.

    Args:
        comparisons: what `load_comparisons` returns, or any comparisons.
        on_row: called after each comparison (for a progress bar).
    """
    source = comparisons.source if isinstance(comparisons, Comparisons) else "comparisons"
    health = Health(source, comparisons.format if isinstance(comparisons, Comparisons) else None)
    kinds: Counter[str] = Counter()
    criteria: Counter[str] = Counter()
    annotators: set[str] = set()
    seen = _Seen()
    longer, unequal, first, decided = 0, 0, 0, 0
    for comparison in comparisons:
        health.rows += 1
        kinds[type(comparison.judgement).__name__] += 1
        health.joint += comparison.joint
        if comparison.annotator is not None:
            annotators.add(comparison.annotator)
        if comparison.criterion is not None:
            criteria[comparison.criterion] += 1
        health.both_bad += isinstance(comparison.judgement, Ranking) and comparison.judgement.both_bad
        lengths = [_length(response) for response in comparison.responses]
        made = _judged_pairs(comparison)
        seen.note(comparison, made)
        health.pairs += len(made)
        for pair in made:
            if pair.probability == 0.5:
                health.ties += 1
                continue
            decided += 1
            first += pair.chosen < pair.rejected
            if lengths[pair.chosen] != lengths[pair.rejected]:
                unequal += 1
                longer += lengths[pair.chosen] > lengths[pair.rejected]
        if on_row is not None:
            on_row()
    health.kinds, health.criteria = dict(kinds.most_common()), dict(criteria.most_common())
    health.annotators = len(annotators)
    health.longer_wins, health.first_wins = Share(longer, unequal), Share(first, decided)
    seen.report(health)
    if isinstance(comparisons, Comparisons):
        skipped = comparisons.skipped
        health.bad_rows, health.examples = len(skipped), skipped.rows[:_SHOWN]
        health.reasons = dict(skipped.reasons().most_common())
        health.identical += sum("identical pair" in row.problem for row in skipped)
    return health


def _judged_pairs(comparison: Comparison) -> list[Pair]:
    if isinstance(comparison.judgement, Label | StepLabels):
        return []
    return pairs(comparison, "all" if len(comparison.responses) <= _LONG_LIST else "adjacent", ties="half")


def _length(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(len(str(message["content"])) for message in text)


class _Seen:
    """What was seen before, as hashes. (Python's own hash of a text is 64 bits wide and fast.)"""

    def __init__(self) -> None:
        self._prompts: set[int] = set()
        self._responses: set[int] = set()
        self._rows: set[int] = set()
        self._sides: dict[int, int] = {}
        self._winners: dict[int, int] = {}
        self._said: dict[int, int] = {}
        self._duplicates = self._exchanged = self._identical = 0

    def note(self, comparison: Comparison, made: list[Pair]) -> None:
        prompts = [hash(text_key(prompt)) for prompt in comparison.prompts]
        places = prompts if comparison.joint else prompts * len(comparison.responses)
        sides = [hash((place, text_key(text))) for place, text in zip(places, comparison.responses, strict=True)]
        self._prompts.update(prompts)
        self._responses.update(sides)
        row = hash((tuple(sides), comparison.judgement, comparison.annotator, comparison.criterion))
        self._duplicates += row in self._rows
        self._rows.add(row)
        if len(sides) == 2:
            self._identical += sides[0] == sides[1]
            self._exchanged += self._note_order(sides)
        for pair in made:
            if pair.probability > 0.5 and sides[pair.chosen] != sides[pair.rejected]:
                self._note_winner(sides[pair.chosen], sides[pair.rejected], comparison)

    def _note_order(self, sides: list[int]) -> bool:
        """Whether the same two sides were seen in the other order."""
        both, order = hash((min(sides), max(sides))), 1 if sides[0] < sides[1] else 2
        before = self._sides.get(both, 0)
        self._sides[both] = before | order
        return sides[0] != sides[1] and bool(before & ~order)

    def _note_winner(self, chosen: int, rejected: int, comparison: Comparison) -> None:
        winner = 1 if chosen < rejected else 2
        key: Hashable = (min(chosen, rejected), max(chosen, rejected), comparison.criterion)
        pair = hash(key)
        self._winners[pair] = self._winners.get(pair, 0) | winner
        if comparison.annotator is not None:
            said = hash((key, comparison.annotator))
            self._said[said] = self._said.get(said, 0) | winner

    def report(self, health: Health) -> None:
        health.prompts = len(self._prompts)
        if self._prompts:
            health.responses_per_prompt = len(self._responses) / len(self._prompts)
        health.duplicates, health.exchanged = self._duplicates, self._exchanged
        health.identical = self._identical
        health.conflicts = sum(winners == 3 for winners in self._winners.values())
        health.contradictions = sum(winners == 3 for winners in self._said.values())
