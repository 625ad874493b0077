"""Domain rewards: a reward of texts that looks at an expert's features only.

Source: Zhang et al. 2024, Leveraging Domain Knowledge for Efficient Reward Modelling (arXiv 2402.15473).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from prefkit.comparisons import Comparison, Text, pairs
from prefkit.errors import OptionError, PrefkitError, RecordError, unknown
from prefkit.preference.features import DomainFeatures, FeatureFunction
from prefkit.preference.networks import RewardNetwork
from prefkit.preference.storage import load_preference_model, save_preference_model

_FILE = "domain.json"

_WORD = re.compile(r"\w+")


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _overlap(prompt: str, response: str) -> float:
    own, asked = set(_words(response)), set(_words(prompt))
    return len(own & asked) / len(own) if own else 0.0


def _variety(prompt: str, response: str) -> float:
    words = _words(response)
    return len(set(words)) / len(words) if words else 0.0


FEATURE_FUNCTIONS: Mapping[str, FeatureFunction] = {
    "words": lambda prompt, response: float(len(_words(response))),
    "lines": lambda prompt, response: float(len(response.splitlines())),
    "word-variety": _variety,
    "prompt-overlap": _overlap,
}
"""Features that need no annotation, by name: words; lines; share of different words; share of the different words that
the prompt has, too."""


class Wins(NamedTuple):
    """How pairs are ranked.

    Args:
        wins: `[pairs]`, 1 where a pair is ranked as judged, 0 where not, 0.5 at equal rewards.
        prompts: `[pairs]`, which prompt each pair belongs to, for intervals.
    """

    wins: NDArray[np.float64]
    prompts: NDArray[np.int64]


class DomainReward:
    """A reward model on named features of texts.

    The features of a response are read from the record's `features`, a mapping a response, or computed by a function.

    Args:
        features: names, ranges and functions.
        model: what is fitted to them, by default a linear reward with the weight decay of the paper. Its
            `feature_names` become those of the features.
    """

    def __init__(self, features: DomainFeatures, model: RewardNetwork | None = None) -> None:
        if model is None:
            model = RewardNetwork(hidden=(), learning_rate=0.05, weight_decay=0.05, epochs=150)
        self.features = features
        self.model: RewardNetwork = model.set_params(feature_names=tuple(features.names))

    def vectors(self, comparison: Comparison) -> NDArray[np.float64]:
        """Features of the responses of a comparison, scaled to [0, 1], `[responses, features]`.

        Raises:
            RecordError: a feature is absent, unknown, out of range or missing; names the place and the feature.
        """
        given = comparison.extra.get("features")
        count = len(comparison.responses)
        if given is None:
            given = [None] * count
        if not isinstance(given, list | tuple) or len(given) != count:
            raise _at(comparison, f"one mapping of features a response is needed, {count}, got {given!r}", "features")
        rows = []
        for place, own in enumerate(given):
            if own is not None and not isinstance(own, Mapping):
                raise _at(comparison, f"the features of response {place} must be a mapping, got {own!r}", "features")
            try:
                prompt, response = _plain(comparison.prompt_of(place)), _plain(comparison.responses[place])
                (row,) = self.features.vectors([self.features.score(prompt, response, own)])
            except RecordError as error:
                raise _at(comparison, f"response {place}: {error.problem}", error.field) from error
            rows.append(row)
        return np.array(rows)

    def fit(self, comparisons: Iterable[Comparison], skipped: list[RecordError] | None = None) -> Self:
        """Fit to every pair of the comparisons with a preference.

        Args:
            comparisons: held as vectors in memory.
            skipped: where comparisons with wrong or missing features are set aside; without it they are errors.

        Raises:
            PrefkitError: no pair could be used.
        """
        X, weights, _ = self._pairs(comparisons, skipped)
        self.model.fit(X, sample_weight=weights)
        return self

    def score(self, comparisons: Iterable[Comparison], skipped: list[RecordError] | None = None) -> float:
        """Share of pairs that are ranked as judged, ties half; see `fit`."""
        return float(self.wins(comparisons, skipped).wins.mean())

    def wins(
        self, comparisons: Iterable[Comparison], skipped: list[RecordError] | None = None, *, naive: bool = False
    ) -> Wins:
        """Whether each pair is ranked as judged.

        Args:
            comparisons: pairs or lists.
            skipped: see `fit`.
            naive: rank by the plain mean of the features instead.
        """
        X, _, prompts = self._pairs(comparisons, skipped)
        ahead = X[:, 0].mean(1) - X[:, 1].mean(1) if naive else self.model.decision_function(X)
        return Wins(np.heaviside(ahead, 0.5), prompts)

    def annotate(
        self, comparisons: Iterable[Comparison], skipped: list[RecordError] | None = None
    ) -> Iterator[Comparison]:
        """The comparisons with `extra["rewards"]`, in log-odds."""
        for comparison in comparisons:
            try:
                rewards = self.model.reward(self.vectors(comparison)).tolist()
            except RecordError as error:
                if skipped is None:
                    raise
                skipped.append(error)
                continue
            yield replace(comparison, extra={**comparison.extra, "rewards": rewards})

    def explain(self) -> dict[str, float]:
        """What each feature is worth, in log-odds over its whole range: at the middle of all features, or everywhere
        for a linear reward."""
        return self.model.explain(np.full((1, len(self.features.names)), 0.5))

    def save(self, folder: Path) -> None:
        """Write to a folder that `load` reads. Functions are kept by name; those of a user's own cannot be.

        Raises:
            OptionError: a feature is computed by a function that is not in `FEATURE_FUNCTIONS`.
        """
        for name, function in self.features.functions.items():
            if FEATURE_FUNCTIONS.get(name) is not function:
                raise OptionError(
                    f"feature '{name}' is computed by a function of your own, which a folder cannot hold: save rewards "
                    "or give the feature as a column"
                )
        save_preference_model(self.model, folder)
        about = {
            "names": list(self.features.names),
            "low": self.features.low,
            "high": self.features.high,
            "ranges": {name: list(bounds) for name, bounds in self.features.ranges.items()},
            "functions": sorted(self.features.functions),
        }
        (folder / _FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def is_saved(folder: Path) -> bool:
        """Whether a folder holds such a reward."""
        return (folder / _FILE).is_file()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder that `save` wrote. Nothing in it runs code.

        Raises:
            PrefkitError: it cannot be read.
        """
        try:
            about = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            features = domain_features(about["names"], about["functions"], about["ranges"], about["low"], about["high"])
            model = load_preference_model(folder)
        except PrefkitError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OptionError(f"'{folder}' holds no domain reward: {error}") from error
        if not isinstance(model, RewardNetwork):
            raise OptionError(f"'{folder}' holds no domain reward: its model is a {type(model).__name__}")
        return cls(features, model)

    def _pairs(
        self, comparisons: Iterable[Comparison], skipped: list[RecordError] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Features `[pairs, 2, features]`, the better response first, weights, and the prompt of each pair."""
        X: list[NDArray[np.float64]] = []
        weights: list[float] = []
        known: dict[str, int] = {}
        prompts: list[int] = []
        for comparison in comparisons:
            try:
                found = pairs(comparison)
                vectors = self.vectors(comparison) if found else None
            except RecordError as error:
                if skipped is None:
                    raise
                skipped.append(error)
                continue
            for pair in found:
                assert vectors is not None
                X.append(vectors[[pair.chosen, pair.rejected]])
                weights.append(comparison.weight)
                prompts.append(known.setdefault(str(comparison.prompts), len(known)))
        if not X:
            first = f"; first: {skipped[0]}" if skipped else ""
            raise PrefkitError(f"no comparison has a preferred response and features{first}")
        return np.array(X), np.array(weights), np.array(prompts)


def domain_features(
    names: Iterable[str],
    functions: Iterable[str] = (),
    ranges: Mapping[str, Iterable[float]] | None = None,
    low: float = 0.0,
    high: float = 5.0,
) -> DomainFeatures:
    """Features of which some are computed by `FEATURE_FUNCTIONS`.

    Args:
        names: see `DomainFeatures`.
        functions: names of those that are computed.
        ranges: see `DomainFeatures`.
        low: see `DomainFeatures`.
        high: see `DomainFeatures`.

    Raises:
        OptionError: there is no such function, or as `DomainFeatures`.
    """
    found = {}
    for name in functions:
        if name not in FEATURE_FUNCTIONS:
            raise OptionError(unknown("function of a feature", name, FEATURE_FUNCTIONS))
        found[name] = FEATURE_FUNCTIONS[name]
    bounds = {}
    for name, given in (ranges or {}).items():
        least, most = given
        bounds[name] = (float(least), float(most))
    return DomainFeatures(tuple(names), low, high, found, bounds)


def _plain(text: Text) -> str:
    return text if isinstance(text, str) else "\n\n".join(str(message["content"]) for message in text)


def _at(comparison: Comparison, problem: str, field: str | None) -> RecordError:
    return RecordError(problem, field=field, source=comparison.source, line=comparison.line)
