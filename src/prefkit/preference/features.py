"""Domain features: what experts say that people look at, as numbers with names, a range and a fixed order.

Source: Zhang et al. 2024, Leveraging Domain Knowledge for Efficient Reward Modelling (arXiv 2402.15473).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefkit.errors import OptionError, RecordError, unknown

FeatureFunction = Callable[[str, str], float]
"""From the text of a prompt and of a response to the value of a feature."""

OPINION_SUMMARY = (
    "aspect-coverage",
    "opinion-faithfulness",
    "opinion-coverage",
    "conciseness",
    "relevance",
    "hallucination",
    "language-correctness",
)
"""Features of a summary of opinions, each scored 0 to 5, where 5 is always good (no hallucination is 5)."""


@dataclass(frozen=True)
class DomainFeatures:
    """Named features of a domain.

    Args:
        names: in the order of the model's inputs.
        low: least value of each feature.
        high: greatest value.
        functions: how features are computed from prompt and response, for those that are not given as columns. What
            they give beyond the range counts as its end.
        ranges: least and greatest value of single features, where they differ from `low` and `high`.

    Raises:
        OptionError: there are no names, one is repeated, a range is empty, or a function or range has no feature.
    """

    names: Sequence[str]
    low: float = 0.0
    high: float = 5.0
    functions: Mapping[str, FeatureFunction] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise OptionError(f"features need different names, at least one, got {list(self.names)}")
        for low, high in ((self.low, self.high), *self.ranges.values()):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise OptionError(f"the range of a feature must have low < high, got {low} and {high}")
        for name in (*self.functions, *self.ranges):
            if name not in self.names:
                raise OptionError(unknown("feature", name, self.names))

    def vectors(self, scores: Sequence[Mapping[str, float | None]], *, missing: bool = False) -> NDArray[np.float64]:
        """Features scaled to [0, 1], `[n, features]`, in the order of the names, whatever that of the scores.

        Args:
            scores: value of each feature by name; None is missing.
            missing: give missing values as NaN; otherwise they are errors, since a reward model cannot read them.

        Raises:
            RecordError: a feature is absent, unknown, no number, out of range or missing; names row and feature.
        """
        rows = np.empty((len(scores), len(self.names)))
        for row, given in enumerate(scores):
            for name in given:
                if name not in self.names:
                    raise RecordError(unknown("feature", name, self.names), field=name, source="scores", line=row + 1)
            for place, name in enumerate(self.names):
                rows[row, place] = self._scaled(given, name, row, missing)
        return rows

    def score(self, prompt: str, response: str, given: Mapping[str, float | None] | None = None) -> dict[str, Any]:
        """Value of every feature of a response: as given, or by its function.

        Args:
            prompt: text of the prompt.
            response: text of the response.
            given: values that are known, by name; other entries are left out.

        Raises:
            RecordError: a feature is neither given nor computed.
        """
        found: dict[str, Any] = {}
        for name in self.names:
            if given is not None and name in given:
                found[name] = given[name]
            elif name in self.functions:
                low, high = self._range(name)
                found[name] = min(max(float(self.functions[name](prompt, response)), low), high)
            else:
                raise RecordError("the feature is neither given nor computed by a function", field=name)
        return found

    def naive_mean(self, scores: Sequence[Mapping[str, float | None]]) -> NDArray[np.float64]:
        """Mean of the features that are there, scaled to [0, 1], `[n]`: a reward without training.

        Raises:
            RecordError: as `vectors`, or a row has no value at all.
        """
        rows = self.vectors(scores, missing=True)
        empty = np.flatnonzero(np.isnan(rows).all(1))
        if len(empty):
            raise RecordError("all features are missing", source="scores", line=int(empty[0]) + 1)
        mean: NDArray[np.float64] = np.nanmean(rows, 1)
        return mean

    def _scaled(self, given: Mapping[str, float | None], name: str, row: int, missing: bool) -> float:
        def wrong(problem: str) -> RecordError:
            return RecordError(problem, field=name, source="scores", line=row + 1)

        if name not in given:
            raise wrong("the feature is absent; give null where its value is not known")
        value = given[name]
        if value is None or (isinstance(value, float) and math.isnan(value)):
            if missing:
                return math.nan
            raise wrong("the value is missing: impute it, or leave the row out")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong(f"must be a number, got {value!r}")
        low, high = self._range(name)
        if not low <= value <= high:
            raise wrong(f"must lie in [{low:g}, {high:g}], got {value:g}")
        return (value - low) / (high - low)

    def _range(self, name: str) -> tuple[float, float]:
        return self.ranges.get(name, (self.low, self.high))
