"""Votes: what several judgements of the same pairs say about who can be trusted, who disagrees, and what is circular.

One table of small numbers, a row a judgement; texts are kept as hashes only. Everything here works without a model.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from prefkit.comparisons import Comparison, Label, StepLabels, pairs
from prefkit.comparisons.canonical import text_key
from prefkit.diagnostics.intervals import Interval, wilson_interval
from prefkit.errors import PrefkitError
from prefkit.objectives import label_confidence, mean_reliabilities, tally_labels

Indices: TypeAlias = NDArray[np.int64]
Values: TypeAlias = NDArray[np.float64]

MOST_VOTES = 2_000_000
"""Votes that are kept, so that memory is bounded; a file of more is read on, and the report says so."""

LONG_LIST = 10
"""Of longer lists only neighbours in the ranking are taken as pairs."""

MOST_ANNOTATORS = 200
"""Annotators among whom groups are looked for: those with the most votes on pairs that others judged too."""


@dataclass
class Votes:
    """Judgements of pairs, collected in one pass.

    Args:
        limit: votes to keep at most.

    Attributes:
        names: annotators, by number.
        dropped: decided pairs beyond the limit.
    """

    limit: int = MOST_VOTES
    names: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    dropped: int = 0
    _rows: array[int] = field(default_factory=lambda: array("q"))
    _known: dict[Any, int] = field(default_factory=dict)

    def add(self, comparison: Comparison, row: int) -> None:
        """Take in what a comparison says about pairs; ties say nothing here."""
        if isinstance(comparison.judgement, Label | StepLabels):
            return
        made = pairs(comparison, "all" if len(comparison.responses) <= LONG_LIST else "adjacent")
        if not made:
            return
        prompts = [self._number("prompt", text_key(prompt)) for prompt in comparison.prompts]
        places = prompts if comparison.joint else prompts * len(comparison.responses)
        sides = [
            self._number("response", (place, hash(text_key(text))))
            for place, text in zip(places, comparison.responses, strict=True)
        ]
        annotator = -1 if comparison.annotator is None else self._name(comparison.annotator)
        for pair in made:
            if sides[pair.chosen] == sides[pair.rejected]:
                continue
            if len(self._rows) >= 6 * self.limit:
                self.dropped += 1
                continue
            one, two = sides[pair.chosen], sides[pair.rejected]
            self._rows.extend((one, two, places[pair.chosen], annotator, row, self._criterion(comparison)))

    def _number(self, kind: str, key: Any) -> int:
        return self._known.setdefault((kind, hash(key)), len(self._known))

    def _name(self, annotator: str) -> int:
        found = self._known.setdefault(("annotator", annotator), len(self.names))
        if found == len(self.names):
            self.names.append(annotator)
        return found

    def _criterion(self, comparison: Comparison) -> int:
        return 0 if comparison.criterion is None else self._number("criterion", comparison.criterion)

    def table(self) -> VoteTable:
        """What was collected."""
        rows = np.frombuffer(self._rows, dtype=np.int64).reshape(-1, 6)
        chosen, rejected = rows[:, 0], rows[:, 1]
        low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
        keys = np.stack([low, high, rows[:, 5]], axis=1)
        _, item = np.unique(keys, axis=0, return_inverse=True) if len(rows) else (None, np.zeros(0, dtype=np.int64))
        return VoteTable(
            item=np.asarray(item).reshape(-1),
            first=chosen == low,
            low=low,
            high=high,
            prompt=rows[:, 2],
            annotator=rows[:, 3],
            row=rows[:, 4],
            names=tuple(self.names),
            dropped=self.dropped,
        )


@dataclass(frozen=True)
class VoteTable:
    """Judgements of pairs, one a row.

    Args:
        item: which pair (of two texts, under one prompt and criterion).
        first: whether the response with the lower number won.
        low: number of that response.
        high: number of the other one.
        prompt: number of the prompt.
        annotator: number of the annotator, -1 where unknown.
        row: which comparison it came from.
        names: annotators by number.
        dropped: judgements that were not kept.
    """

    item: Indices
    first: NDArray[np.bool_]
    low: Indices
    high: Indices
    prompt: Indices
    annotator: Indices
    row: Indices
    names: tuple[str, ...] = ()
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.item)

    def take(self, rows: ArrayLike) -> VoteTable:
        """Some of the judgements."""
        chosen = np.asarray(rows)
        columns = {
            name: getattr(self, name)[chosen] for name in ("item", "first", "low", "high", "prompt", "annotator", "row")
        }
        return VoteTable(**columns, names=self.names, dropped=self.dropped)

    def repeated(self) -> VoteTable:
        """Those of pairs that were judged at least twice."""
        return self.take(np.bincount(self.item)[self.item] > 1) if len(self) else self

    def shares(self) -> Values:
        """For each judgement the share of its pair's judgements that say the same, `[votes]`."""
        count = np.bincount(self.item)
        first = np.bincount(self.item, weights=self.first)
        share = first[self.item] / count[self.item]
        return np.where(self.first, share, 1 - share)


class Reliability(NamedTuple):
    """How often judgements are right, from pairs that were judged more than once.

    Args:
        noise: estimated share of wrong judgements, with a 95% interval over pairs.
        by_annotator: estimated share of right judgements of each, and how many there are.
        confidence: `[votes]`, probability that each judgement is right.
        votes: number of judgements used.
        pairs: number of pairs.
    """

    noise: Interval
    by_annotator: dict[str, tuple[float, int]]
    confidence: Values
    votes: int
    pairs: int


def reliability(table: VoteTable, *, per_annotator: bool = True, rounds: int = 30) -> Reliability:
    """Estimate who is right how often, by expectation maximisation: the steps of LCPO, with votes for a policy.

    The odds of the labelled order are those that the pair's other judgements give. A judgement that everybody else
    contradicts is probably wrong, and whoever gives many such is unreliable, so counts less in the next round.

    Args:
        table: judgements of pairs that were judged at least twice, see `VoteTable.repeated`.
        per_annotator: one reliability an annotator, shrunk a little to the common one; else one for all.
        rounds: of estimation.

    Raises:
        PrefkitError: no pair was judged twice.

    Source: Dawid and Skene (1979), with one coin an annotator; steps as in Cao et al. 2025 (arXiv 2509.24159).
    """
    if not len(table) or np.bincount(table.item).max() < 2:
        raise PrefkitError("reliabilities need pairs that were judged at least twice; there are none")
    known = per_annotator and bool((table.annotator >= 0).all())
    owner = torch.from_numpy(table.annotator if known else np.zeros(len(table), dtype=np.int64))
    count = int(owner.max()) + 1
    item = torch.from_numpy(table.item)
    sign = torch.from_numpy(np.where(table.first, 1.0, -1.0))
    reliabilities = torch.full((count,), 0.8, dtype=torch.float64)
    confidence = torch.full((len(table),), 0.8, dtype=torch.float64)
    for _ in range(rounds):
        weight = torch.logit(reliabilities[owner].clamp(0.02, 0.98)) * sign
        total = torch.zeros(int(item.max()) + 1, dtype=torch.float64).index_add(0, item, weight)
        others = (total[item] - weight) * sign
        confidence = label_confidence(others, reliabilities[owner].clamp(0.02, 0.98))
        tallied = _tally(confidence, owner, count)
        common = float(confidence.mean())
        # Four judgements of an average annotator are added to each one's own.
        tallied = tallied + torch.tensor([[4 * common], [4.0]], dtype=torch.float64)
        reliabilities = mean_reliabilities(tallied, reliabilities)
    found = confidence.numpy()
    votes = np.bincount(table.item)
    named = {}
    if known:
        counts = np.bincount(table.annotator, minlength=count)
        named = {table.names[i]: (float(reliabilities[i]), int(counts[i])) for i in range(count) if counts[i]}
    return Reliability(_noise_interval(table), named, found, len(table), int((votes > 0).sum()))


def _tally(confidence: torch.Tensor, owner: torch.Tensor, count: int) -> torch.Tensor:
    if count <= MOST_ANNOTATORS:
        return tally_labels(confidence, owner, count)
    # A table of one-hot rows would be too large for thousands of annotators.
    sums = torch.zeros(2, count, dtype=confidence.dtype)
    return sums.index_add(1, owner, torch.stack([confidence, torch.ones_like(confidence)]))


def _noise_interval(table: VoteTable) -> Interval:
    """Noise from how often two judgements of one pair agree: a = (1 - e)^2 + e^2, so e = (1 - sqrt(2a - 1)) / 2."""
    agree, pairs_of_votes = 0.0, 0.0
    count = np.bincount(table.item)
    first = np.bincount(table.item, weights=table.first)
    several = count > 1
    n, k = count[several].astype(np.float64), first[several]
    share = (k * (k - 1) + (n - k) * (n - k - 1)) / (n * (n - 1))
    agree, pairs_of_votes = float(share.sum()), float(len(share))
    agreement = wilson_interval(agree, int(pairs_of_votes))

    def noise(a: float) -> float:
        return 0.5 * (1 - math.sqrt(max(2 * a - 1, 0.0)))

    return Interval(noise(agreement.mean), noise(agreement.high), noise(agreement.low), int(pairs_of_votes))


class Groups(NamedTuple):
    """Whether people disagree in groups.

    Args:
        groups: number of groups that predicts held-out judgements best; 1 if more do not help.
        members: annotators of each group.
        gain: what the groups add to the log-likelihood of a held-out judgement (nats), with its 95% interval.
        agreement: share of judgements of one pair that agree, among all annotators.
        within: the same within the groups.
        annotators: how many were looked at.
    """

    groups: int
    members: tuple[tuple[str, ...], ...]
    gain: Interval
    agreement: float
    within: float
    annotators: int


LEAST_ANNOTATORS, LEAST_SHARED = 4, 20
"""Groups are looked for among at least so many annotators, who each judged so many pairs that others judged too."""


def annotator_groups(table: VoteTable, *, most: int = 3, generator: np.random.Generator | None = None) -> Groups:
    """Groups of annotators that agree among themselves and not with the others (prototypes).

    Each group has its own answer to each pair; annotators belong to the group whose answers theirs are most like.
    Groups count as found only if they predict judgements that were held out better than one common answer, with 95%
    confidence.

    Args:
        table: judgements.
        most: number of groups to try, at least 2.
        generator: which judgements are held out, and starts; a fresh one seeded with 0 by default.

    Raises:
        PrefkitError: too few annotators judged pairs in common; the message says how many are needed.
    """
    generator = generator or np.random.default_rng(0)
    used = _shared_votes(table)
    people, owner = np.unique(used.annotator, return_inverse=True)
    if len(people) < LEAST_ANNOTATORS:
        raise PrefkitError(
            f"groups need at least {LEAST_ANNOTATORS} annotators with {LEAST_SHARED} judgements each of pairs that "
            f"others judged too; {len(people)} have them"
        )
    _, item = np.unique(used.item, return_inverse=True)
    part = generator.permutation(len(used)) % _PARTS
    vote = np.where(used.first, 1.0, 0.0)
    scores, memberships = {}, {}
    for count in range(1, most + 1):
        scores[count] = np.empty(len(used))
        for fold in range(_PARTS):
            out = part == fold
            member = _fitted(item, owner, vote, ~out, count, generator)
            scores[count][out] = _predict(item, owner, vote, ~out, member, count)[out]
        memberships[count] = _fitted(item, owner, vote, np.ones(len(used), dtype=bool), count, generator)
    chosen, gain = 1, _gain(scores[2] - scores[1])
    for count in range(2, most + 1):
        if len(np.unique(memberships[count])) == count and _gain(scores[count] - scores[chosen]).low > 0:
            chosen, gain = count, _gain(scores[count] - scores[1])
    member = memberships[chosen] if chosen > 1 else np.zeros(len(people), dtype=np.int64)
    members = tuple(tuple(used.names[people[i]] for i in np.flatnonzero(member == group)) for group in range(chosen))
    return Groups(
        chosen,
        members,
        gain,
        _agreement(item, vote),
        _agreement(item * chosen + member[owner], vote),
        len(people),
    )


_PARTS = 5
"""Each judgement is predicted once from those of the other parts."""


def _gain(difference: Values) -> Interval:
    half = 1.96 * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    mean = float(difference.mean())
    return Interval(mean, mean - half, mean + half, len(difference))


def _fitted(
    item: Indices,
    owner: Indices,
    vote: Values,
    seen: NDArray[np.bool_],
    count: int,
    generator: np.random.Generator,
) -> Indices:
    """The group of each annotator that explains the judgements best, over all starts."""
    found = [_assign(item, owner, vote, seen, count, one) for one in _starts(item, owner, vote, seen, count, generator)]
    fits = [_predict(item, owner, vote, seen, one, count, leave_one_out=True)[seen].sum() for one in found]
    return found[int(np.argmax(fits))]


def _shared_votes(table: VoteTable) -> VoteTable:
    """Judgements of pairs that several people judged, by those who have enough of them."""
    used = table.take(table.annotator >= 0).repeated()
    if not len(used):
        return used
    counts = np.bincount(used.annotator)
    kept = np.flatnonzero(counts >= LEAST_SHARED)
    kept = kept[np.argsort(-counts[kept], kind="stable")][:MOST_ANNOTATORS]
    return used.take(np.isin(used.annotator, kept)).repeated()


def _starts(
    item: Indices,
    owner: Indices,
    vote: Values,
    seen: NDArray[np.bool_],
    count: int,
    generator: np.random.Generator,
) -> Iterable[Indices]:
    people = int(owner.max()) + 1
    if count == 1:
        return [np.zeros(people, dtype=np.int64)]
    # Who agrees with whom: the leading eigenvectors of signed agreement tell the camps.
    matrix = np.zeros((people, int(item.max()) + 1))
    matrix[owner[seen], item[seen]] = 2 * vote[seen] - 1
    shared = np.abs(matrix) @ np.abs(matrix).T
    agreement = np.divide(matrix @ matrix.T, shared, out=np.zeros_like(shared), where=shared > 0)
    np.fill_diagonal(agreement, 0.0)
    _, vectors = np.linalg.eigh(agreement)
    starts = []
    for place in range(1, min(3, people) + 1):
        ranks = np.argsort(np.argsort(vectors[:, -place], kind="stable"), kind="stable")
        starts.append((ranks * count // people).astype(np.int64))
        if count == 2:
            starts.append((vectors[:, -place] > 0).astype(np.int64))
    starts += [generator.integers(count, size=people) for _ in range(4)]
    return starts


def _counts(
    item: Indices, owner: Indices, vote: Values, seen: NDArray[np.bool_], member: Indices, count: int
) -> tuple[Values, Values]:
    """Votes for the first response, and all votes, of each pair in each group, `[pairs * groups]`."""
    cell = (item * count + member[owner])[seen]
    size = (int(item.max()) + 1) * count
    return (
        np.bincount(cell, weights=vote[seen], minlength=size).astype(np.float64),
        np.bincount(cell, minlength=size).astype(np.float64),
    )


_PRIOR = 0.7
"""Votes of each side that are added to each pair's: with few votes an answer is not certain."""


def _assign(
    item: Indices, owner: Indices, vote: Values, seen: NDArray[np.bool_], count: int, member: Indices
) -> Indices:
    people = int(owner.max()) + 1
    for _ in range(25):
        for_first, total = _counts(item, owner, vote, seen, member, count)
        fit = np.zeros((people, count))
        for group in range(count):
            cell = item * count + group
            own = (member[owner] == group) & seen
            # Nobody's own vote counts for the answer that it is compared with.
            k = for_first[cell] - np.where(own, vote, 0.0)
            n = total[cell] - own
            p = (k + _PRIOR) / (n + 2 * _PRIOR)
            value = np.log(np.where(vote > 0, p, 1 - p))
            fit[:, group] = np.bincount(owner[seen], weights=value[seen], minlength=people)
        new = fit.argmax(1)
        if (new == member).all():
            break
        member = new
    return member


def _predict(
    item: Indices,
    owner: Indices,
    vote: Values,
    seen: NDArray[np.bool_],
    member: Indices,
    count: int,
    *,
    leave_one_out: bool = False,
) -> Values:
    """Log-probability of every vote by the answers of its annotator's group."""
    for_first, total = _counts(item, owner, vote, seen, member, count)
    cell = item * count + member[owner]
    own = seen & leave_one_out
    k, n = for_first[cell] - np.where(own, vote, 0.0), total[cell] - own
    p = (k + _PRIOR) / (n + 2 * _PRIOR)
    found: Values = np.log(np.where(vote > 0, p, 1 - p))
    return found


def _agreement(cell: Indices, vote: Values) -> float:
    """Share of agreeing pairs of votes of one cell; nan where none has two."""
    _, place = np.unique(cell, return_inverse=True)
    n = np.bincount(place).astype(np.float64)
    k = np.bincount(place, weights=vote)
    possible = (n * (n - 1)).sum()
    return float((k * (k - 1) + (n - k) * (n - k - 1)).sum() / possible) if possible else float("nan")


class Cycles(NamedTuple):
    """Whether preferences go round in circles.

    Args:
        triads: three responses to one prompt of which each two were compared.
        cyclic: share that goes round (A over B, B over C, C over A), with a 95% interval.
        edges: pairs with a majority.
        examples: responses of some that do, by the row of a comparison each.
    """

    triads: int
    cyclic: Interval
    edges: int
    examples: tuple[tuple[int, int, int], ...]


MOST_TRIADS = 200_000
"""Triads that are counted, so that prompts with very many responses do not take all day."""


def cycles(table: VoteTable) -> Cycles:
    """Count circles among three responses, majorities deciding where a pair was judged more than once.

    Noise alone makes some: with a share e of wrong majorities about e (1 - e) of all triads, and a quarter at most.

    Raises:
        PrefkitError: no three responses to a prompt were all compared.
    """
    winners: dict[int, dict[tuple[int, int], int]] = {}
    rows: dict[tuple[int, int], int] = {}
    if len(table):
        net = np.bincount(table.item, weights=np.where(table.first, 1.0, -1.0))
        _, place = np.unique(table.item, return_index=True)
        for index in place:
            side = net[table.item[index]]
            if side:
                low, high = int(table.low[index]), int(table.high[index])
                winners.setdefault(int(table.prompt[index]), {})[low, high] = 1 if side > 0 else -1
                rows[low, high] = int(table.row[index])
    triads, found, edges = 0, [], sum(map(len, winners.values()))
    for sides in winners.values():
        if triads >= MOST_TRIADS:
            break
        neighbours: dict[int, set[int]] = {}
        for low, high in sides:
            neighbours.setdefault(low, set()).add(high)
        for one, others in neighbours.items():
            for two, three in itertools.combinations(sorted(others), 2):
                if (two, three) in sides:
                    triads += 1
                    if sides[one, two] == sides[two, three] == -sides[one, three]:
                        found.append((rows[one, two], rows[two, three], rows[one, three]))
    if not triads:
        raise PrefkitError(
            "circles need three responses to one prompt that were all compared with each other; no prompt has them"
        )
    return Cycles(triads, wilson_interval(len(found), triads), edges, tuple(found[:5]))
