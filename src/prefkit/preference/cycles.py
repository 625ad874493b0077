"""Cycles: is a set of comparisons more circular than any reward could explain, and where?

Chance alone makes cycles: with few comparisons of close items the majority often goes round. So circular triples, each
counted by how clear its weakest majority is, are compared with those of data drawn from the best-fitting Bradley-Terry
model, in which the same items meet as often.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, xlogy
from scipy.stats import binom

from prefkit.errors import OptionError, PrefkitError
from prefkit.preference.inputs import Codes, Floats, coded, outcomes_of, pairs_of, total_by
from prefkit.preference.linear import BradleyTerry
from prefkit.report import Table

MAX_TRIPLES = 2_000_000
"""Triples that are tested at most."""

RIDGE = 1e-3
"""Penalty of the Bradley-Terry model that data are drawn from, so that it exists for separable data too."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """Items each of which is preferred to the next one, and the last one to the first.

    Args:
        items: in this order, starting with the first in the order of names.
        shares: share of comparisons that each won against its successor.
        counts: comparisons of each with its successor.
        p_value: that some link is not a majority: the largest one-sided binomial p-value of the links.
    """

    items: tuple[Any, ...]
    shares: tuple[float, ...]
    counts: tuple[float, ...]
    p_value: float

    @property
    def weakest(self) -> float:
        """The smallest share: how clear the cycle is."""
        return min(self.shares)


@dataclass(frozen=True)
class Cyclicity:
    """How circular comparisons are.

    Args:
        items: number of items.
        comparisons: number of comparisons, without ties.
        pairs: pairs of items that were compared.
        triples: triples of which each pair has a majority.
        circular: those whose majorities go round.
        expected: circular triples in data drawn from the Bradley-Terry model, on average.
        p_value: share of such data (and the data themselves) that are at least as circular, counting each triple by its
            weakest lead in standard deviations: small where no reward explains the circles.
        deviance: 2 times the log-likelihood that a free probability for each pair adds to Bradley-Terry's.
        freedom: number of parameters that these probabilities add.
        deviance_p_value: share of drawn data with at least this deviance.
        cyclic_share: share of the squared log-odds of pairs that no differences of strengths can give.
        cycles: circular majorities, the clearest first; of each link without a circular triple a shortest one.
    """

    items: int
    comparisons: int
    pairs: int
    triples: int
    circular: int
    expected: float
    p_value: float
    deviance: float
    freedom: int
    deviance_p_value: float
    cyclic_share: float
    cycles: Sequence[Cycle]

    def table(self, title: str = "Cyclicity") -> Table:
        """The figures."""
        return Table.from_mapping(
            {
                "items": self.items,
                "comparisons": self.comparisons,
                "pairs": self.pairs,
                "triples with majorities": self.triples,
                "circular triples": self.circular,
                "expected under Bradley-Terry": round(self.expected, 2),
                "p-value": round(self.p_value, 4),
                "deviance from Bradley-Terry": f"{self.deviance:.1f} ({self.freedom} degrees of freedom)",
                "p-value of the deviance": round(self.deviance_p_value, 4),
                "cyclic share of log-odds": round(self.cyclic_share, 3),
            },
            title,
        )

    def cycles_table(self, title: str = "Cycles", most: int = 20) -> Table:
        """The clearest cycles, one a row.

        Args:
            title: what the table shows.
            most: rows at most.
        """
        rows = [
            [
                " > ".join(map(str, (*cycle.items, cycle.items[0]))),
                round(cycle.weakest, 3),
                ", ".join(f"{share:.0%} of {count:g}" for share, count in zip(cycle.shares, cycle.counts, strict=True)),
                round(cycle.p_value, 4),
            ]
            for cycle in self.cycles[:most]
        ]
        return Table(["cycle", "weakest link", "won", "p-value"], rows, title)


def cyclicity(
    X: Any,
    y: ArrayLike | None = None,
    *,
    samples: int = 200,
    max_cycles: int = 1000,
    seed: int = 0,
) -> Cyclicity:
    """Test whether comparisons of named items are more circular than a Bradley-Terry model allows, and list cycles.

    Items need not be connected: groups that were never compared, such as the responses of different prompts, are fitted
    side by side.

    Args:
        X: `[n, 2]`, names; for responses to prompts, names that hold the prompt.
        y: outcomes; ties say nothing of circles and are left out, a soft label counts as its share.
        samples: data sets drawn; the smallest p-value is 1 / (samples + 1).
        max_cycles: cycles listed at most.
        seed: of the draws.

    Raises:
        PrefkitError: the data are wrong; names the row.
        OptionError: an option is out of range.

    Source: Kendall and Babington Smith 1940, On the method of paired comparisons (circular triads); the share of
        log-odds: Jiang et al. 2011, Statistical ranking and combinatorial Hodge theory.
    """
    if samples < 1 or max_cycles < 0:
        raise OptionError(f"samples must be at least 1 and max_cycles at least 0, got {samples} and {max_cycles}")
    array = pairs_of(X)
    if array.ndim != 2:
        raise PrefkitError("cycles are among named items: X must be [n, 2] names, got features")
    outcomes, items = outcomes_of(y, len(array)), coded(array)
    n = len(items.names)
    told = outcomes != 0.5
    first, second, won, count = _tally(items.codes[told], outcomes[told], n)
    with warnings.catch_warnings():
        # That groups are related by the penalty alone does not matter: they are never compared.
        warnings.simplefilter("ignore", UserWarning)
        strengths = BradleyTerry(ridge=RIDGE).fit(array, outcomes, told).coef_ if told.any() else np.zeros(n)
    p = expit(strengths[first] - strengths[second])
    triangles = _triangles(first, second, n)
    rounds, clearness = _circular(triangles, won, count)
    deviance = _deviance(won, count, p)
    rng = np.random.default_rng(seed)
    drawn, clear, deviances = np.empty(samples), np.empty(samples), np.empty(samples)
    for sample in range(samples):
        wins = rng.binomial(count.astype(int), p).astype(float)
        found, how_clear = _circular(triangles, wins, count)
        drawn[sample], clear[sample] = found.sum(), how_clear.sum()
        deviances[sample] = _deviance(wins, count, p)
    parts = connected_components(sp.coo_array((np.ones(len(first)), (first, second)), shape=(n, n)), directed=False)[0]
    return Cyclicity(
        n,
        int(told.sum()),
        len(first),
        int((2 * won != count)[triangles].all(axis=1).sum()),
        int(rounds.sum()),
        float(drawn.mean()),
        (1 + int((clear >= clearness.sum() - 1e-9).sum())) / (1 + samples),
        deviance,
        len(first) - (n - parts),
        (1 + int((deviances >= deviance).sum())) / (1 + samples),
        _cyclic_share(first, second, won, count, n),
        _cycles(first, second, won, count, items.names)[:max_cycles],
    )


def _tally(codes: Codes, outcomes: Floats, n: int) -> tuple[Codes, Codes, Floats, Floats]:
    """Each pair once: the items, the comparisons that the first one won, and all of them."""
    low, high = codes.min(axis=1), codes.max(axis=1)
    keys, slot = np.unique(low * n + high, return_inverse=True)
    oriented = np.where(codes[:, 0] == low, outcomes, 1 - outcomes)
    return keys // n, keys % n, total_by(slot, oriented, len(keys)), total_by(slot, np.ones(len(codes)), len(keys))


def _majority(first: Codes, second: Codes, won: Floats, count: Floats, n: int) -> sp.csr_array:
    """Who beats whom more often than not."""
    lead = np.sign(2 * won - count)
    told = lead != 0
    ahead, behind = np.where(lead > 0, first, second)[told], np.where(lead > 0, second, first)[told]
    return sp.coo_array((np.ones(len(ahead), dtype=np.int64), (ahead, behind)), shape=(n, n)).tocsr()


def _triangles(first: Codes, second: Codes, n: int) -> Codes:
    """`[triples, 3]`: the pairs (i, j), (j, k) and (i, k) of every three items that were all compared, i < j < k."""
    place = {pair: row for row, pair in enumerate(zip(first.tolist(), second.tolist(), strict=True))}
    above: list[set[int]] = [set() for _ in range(n)]
    for i, j in place:
        above[i].add(j)
    found = []
    for (i, j), row in place.items():
        found += [(row, place[j, k], place[i, k]) for k in sorted(above[i] & above[j])]
        if len(found) > MAX_TRIPLES:
            warnings.warn(f"there are more than {MAX_TRIPLES} triples; the first ones are tested", stacklevel=3)
            break
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def _circular(triangles: Codes, won: Floats, count: Floats) -> tuple[NDArray[np.bool_], Floats]:
    """Which triples go round, and how clearly: their weakest lead, in standard deviations of a fair coin's."""
    leads = ((2 * won - count) / np.sqrt(count))[triangles] * np.array([1, 1, -1])
    rounds = (leads > 0).all(axis=1) | (leads < 0).all(axis=1)
    return rounds, np.where(rounds, np.abs(leads).min(axis=1), 0.0)


def _deviance(won: Floats, count: Floats, p: Floats) -> float:
    share = won / count
    free = xlogy(won, share) + xlogy(count - won, 1 - share)
    return 2 * float((free - xlogy(won, p) - xlogy(count - won, 1 - p)).sum())


def _cyclic_share(first: Codes, second: Codes, won: Floats, count: Floats, n: int) -> float:
    """The part of the log-odds of pairs, weighed by comparisons, that is orthogonal to differences of strengths."""
    if not len(first):
        return 0.0
    odds = np.log((won + 0.5) / (count - won + 0.5))
    root = np.sqrt(count)
    rows = np.arange(len(first))
    signs = np.concatenate([root, -root])
    design = sp.coo_array(
        (signs, (np.concatenate([rows, rows]), np.concatenate([first, second]))), shape=(len(first), n)
    )
    fitted = design @ sp.linalg.lsqr(design.tocsr(), root * odds, atol=1e-12, btol=1e-12)[0]
    total = float(((root * odds) ** 2).sum())
    return float(((root * odds - fitted) ** 2).sum()) / total if total else 0.0


def _cycles(first: Codes, second: Codes, won: Floats, count: Floats, names: NDArray[Any]) -> list[Cycle]:
    """Circular triples, and for links in none of them a shortest cycle, the clearest first."""
    n = len(names)
    beats = _majority(first, second, won, count, n)
    following = [beats.indices[beats.indptr[i] : beats.indptr[i + 1]].tolist() for i in range(n)]
    after = [set(row) for row in following]
    _, part = connected_components(beats, connection="strong")
    found: dict[tuple[int, ...], None] = {}
    for i in range(n):
        for j in following[i]:
            if part[i] != part[j]:
                continue
            triples = [(i, j, k) for k in following[j] if i in after[k]]
            for cycle in triples or filter(None, [_shortest(i, j, following, part)]):
                start = cycle.index(min(cycle))
                found[cycle[start:] + cycle[:start]] = None
    tally = {(i, j): (w, c) for i, j, w, c in zip(first.tolist(), second.tolist(), won, count, strict=True)}
    cycles = [_described(cycle, tally, names) for cycle in found]
    return sorted(cycles, key=lambda cycle: (cycle.p_value, -cycle.weakest))


def _shortest(i: int, j: int, following: list[list[int]], part: NDArray[Any]) -> tuple[int, ...] | None:
    """A shortest cycle through the link from i to j."""
    came, queue = {j: i}, deque([j])
    while queue:
        here = queue.popleft()
        for there in following[here]:
            if there == i:
                path = [here]
                while path[-1] != j:
                    path.append(came[path[-1]])
                return (i, *reversed(path))
            if there not in came and part[there] == part[i]:
                came[there] = here
                queue.append(there)
    return None


def _described(cycle: tuple[int, ...], tally: dict[tuple[int, int], tuple[float, float]], names: NDArray[Any]) -> Cycle:
    shares, counts, values = [], [], []
    for i, j in zip(cycle, (*cycle[1:], cycle[0]), strict=True):
        won, count = tally[min(i, j), max(i, j)]
        won = won if i < j else count - won
        shares.append(float(won / count))
        counts.append(float(count))
        values.append(float(binom.sf(np.floor(won) - 1, np.ceil(count), 0.5)))
    return Cycle(tuple(names[list(cycle)].tolist()), tuple(shares), tuple(counts), max(values))
