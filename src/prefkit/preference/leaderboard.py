"""Leaderboards: items in the order of their strengths, with what that rests on and how sure one may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from prefkit.errors import OptionError
from prefkit.preference.inputs import Codes, Floats, total_by
from prefkit.report import Plot, Table, bars

Scale: TypeAlias = Literal["strength", "elo"]
"""Units: as fitted, with mean 0, or 400 points for odds of 10 to 1, with mean 1000."""

ELO, ELO_MEAN = 400 / math.log(10), 1000.0


class Records(NamedTuple):
    """Weighted wins, ties and losses of each item, `[items]` each."""

    wins: Floats
    ties: Floats
    losses: Floats

    @classmethod
    def of_pairs(cls, first: Codes, second: Codes, shares: Floats, n: int) -> Self:
        """From the weights `[rows, 3]` of a win, a tie and a loss of the first item."""

        def total(one: Floats, two: Floats) -> Floats:
            return total_by(first, one, n) + total_by(second, two, n)

        win, tie, loss = shares.T
        return cls(total(win, loss), total(tie, tie), total(loss, win))


@dataclass(frozen=True, slots=True)
class Standing:
    """One item of a leaderboard.

    Args:
        rank: 1 is the strongest.
        item: its name.
        mean: its strength.
        low: lower end of the interval.
        high: upper end.
        standard_error: of the strength, relative to the mean of all items.
        best_rank: 1 + the number of items that are stronger beyond doubt (the interval of the difference is above 0).
        worst_rank: the number of items that are not weaker beyond doubt.
        wins: comparisons that it won.
        ties: comparisons without a winner.
        losses: comparisons that it lost.
    """

    rank: int
    item: Any
    mean: float
    low: float
    high: float
    standard_error: float
    best_rank: int
    worst_rank: int
    wins: float
    ties: float
    losses: float


@dataclass(frozen=True)
class Leaderboard:
    """Items in the order of their strengths.

    Args:
        standings: strongest first.
        confidence: coverage of each interval; of each alone, not of all together.
        scale: units of the strengths.
    """

    standings: Sequence[Standing]
    confidence: float
    scale: Scale = "strength"

    @classmethod
    def of(
        cls, names: NDArray[Any], strengths: Floats, covariance: Floats, records: Records, confidence: float = 0.95
    ) -> Self:
        """From strengths and their covariance.

        Raises:
            OptionError: the confidence is out of range.
        """
        if not 0 < confidence < 1:
            raise OptionError(f"confidence must lie in (0, 1), got {confidence}")
        z = float(stats.norm.ppf((1 + confidence) / 2))
        variances = np.clip(np.diagonal(covariance), 0, None)
        order = np.argsort(-strengths, kind="stable")
        standings = []
        for place, item in enumerate(order):
            spread = np.sqrt(np.clip(variances[item] + variances - 2 * covariance[item], 0, None))
            lead, error = strengths - strengths[item], float(np.sqrt(variances[item]))
            standings.append(
                Standing(
                    place + 1,
                    names[item],
                    float(strengths[item]),
                    float(strengths[item] - z * error),
                    float(strengths[item] + z * error),
                    error,
                    1 + int((lead > z * spread).sum()),
                    len(names) - int((lead < -z * spread).sum()),
                    *(float(column[item]) for column in records),
                )
            )
        return cls(standings, confidence)

    def elo(self) -> Leaderboard:
        """The same in points: 400 for odds of 10 to 1, around 1000."""
        if self.scale == "elo":
            return self
        points = [
            replace(
                s,
                mean=ELO_MEAN + ELO * s.mean,
                low=ELO_MEAN + ELO * s.low,
                high=ELO_MEAN + ELO * s.high,
                standard_error=ELO * s.standard_error,
            )
            for s in self.standings
        ]
        return Leaderboard(points, self.confidence, "elo")

    def table(self, title: str = "") -> Table:
        """One row an item."""
        digits = 0 if self.scale == "elo" else 3
        rows = [
            [
                *(s.rank, str(s.item), round(s.mean, digits), f"{s.low:.{digits}f} to {s.high:.{digits}f}"),
                *(f"{s.best_rank}-{s.worst_rank}", *(_count(value) for value in (s.wins, s.ties, s.losses))),
            ]
            for s in self.standings
        ]
        interval = f"{self.confidence:.0%} interval"
        return Table(["rank", "item", self.scale, interval, "ranks", "wins", "ties", "losses"], rows, title)

    def plot(self, title: str = "Leaderboard", most: int = 50) -> Plot:
        """Strengths with their intervals, strongest first.

        Args:
            title: what the plot shows.
            most: items at most, from the top.
        """
        return bars({str(s.item): s for s in self.standings[:most]}, title=title, x=self.scale, filled=False)


def _count(value: float) -> float | int:
    return int(value) if value == int(value) else round(value, 2)
