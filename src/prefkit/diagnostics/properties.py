"""Properties: in what named ways two responses differ, from annotations of each.

An annotator (a person or a model) rates both responses of a pair on each property; the rules here turn ratings into
-1, 0 or 1: the first response has less, as much, or more of it.

Source: Li et al. 2024, Dissecting Human and LLM Preferences (arXiv 2402.11296), and the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefkit.errors import OptionError, PrefkitError, unknown

RELEVANCE = "relevance without considering inaccuracy"
"""Only whether a response has any of it is compared, not how much."""

QUERY_SPECIFIC = (
    "clarify user intent",
    "showing empathetic",
    "satisfying explicit constraints",
    "supporting explicit subjective stances",
    "correcting explicit mistakes or biases",
)
"""Properties that apply to some queries only: absent, they make no difference."""

SEVERITIES = ("minor", "moderate", "severe")

PROPERTIES = (
    "harmlessness",
    "grammar, spelling, punctuation, and code-switching",
    "friendly",
    "polite",
    "interactive",
    "authoritative tone",
    "funny and humorous",
    "metaphors, personification, similes, hyperboles, irony, parallelism",
    "complex word usage and sentence structure",
    "use of direct and explicit supporting materials",
    "well formatted",
    "admit limitations or mistakes",
    "persuade user",
    "step by step solution",
    "use of informal expressions",
    "non-repetitive",
    "clear and understandable",
    RELEVANCE,
    "innovative and novel",
    "information richness without considering inaccuracy",
    *(f"no {severity} errors" for severity in SEVERITIES),
    *QUERY_SPECIFIC,
    "length",
)
"""The 29 properties, in the order of features."""

SCENARIOS = (
    "Advice", "Code", "Communication", "Creative Writing", "Daily Tasks", "Exam Questions", "Functional Writing",
    "Knowledge-aware", "NLP Tasks", "Unsafe Query", "Others",
)  # fmt: skip
"""Kinds of queries that the paper fits apart."""

_STANCES = {
    "strongly supported": 2,
    "weakly supported": 1,
    "neutral": 0,
    "weakly opposed": -1,
    "strongly opposed": -2,
}
_MISTAKES = {
    "pointed out and corrected": 3,
    "corrected without being pointed out": 2,
    "pointed out but not corrected": 1,
    "neither pointed out nor corrected": 0,
    "neither": 0,
}
_SCALES: Mapping[str, tuple[Mapping[str, float] | None, float]] = {
    "clarify user intent": (None, 3),
    "showing empathetic": (None, 3),
    "satisfying explicit constraints": (None, 3),
    "supporting explicit subjective stances": (_STANCES, 3),
    "correcting explicit mistakes or biases": (_MISTAKES, 3),
}
"""Words of the annotation and the difference that counts as 1, of each property that is specific to a query."""

_SHORT = (1, 3, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19)
"""Words from which the longer response counts as longer, by the words of the shorter one, 0 to 11."""
_LONG = ((0.7, 10), (0.8, 20), (0.9, 40))
"""Beyond: at most this share of the longer one, and so many words fewer."""


class Compared(NamedTuple):
    """Two responses compared: -1, 0 or 1; by how much; and the same difference within [-1, 1]."""

    comparison: NDArray[np.int64]
    diff: NDArray[np.float64]
    norm_diff: NDArray[np.float64]


def normalize_diff(
    diff: ArrayLike, threshold: float, way: Literal["linear", "log_linear"] = "linear"
) -> NDArray[np.float64]:
    """Differences within [-1, 1].

    Args:
        diff: `[n]`.
        threshold: the difference that counts as 1, above 0.
        way: `linear`, or `log_linear`: sign(d) min(log(1 + |d|) / log(1 + threshold), 1).

    Raises:
        OptionError: the threshold is not above 0, or the way unknown.
    """
    if not threshold > 0:
        raise OptionError(f"threshold must be greater than 0, got {threshold}")
    values = np.asarray(diff, dtype=np.float64)
    if way == "linear":
        return np.clip(values / threshold, -1.0, 1.0)
    if way == "log_linear":
        return np.sign(values) * np.minimum(np.log1p(np.abs(values)) / math.log1p(threshold), 1.0)
    raise OptionError(unknown("way to normalise", way, ("linear", "log_linear")))


def compare_likert(scores_a: ArrayLike, scores_b: ArrayLike, property: str) -> Compared:
    """Ratings of 0 to 3 compared.

    Args:
        scores_a: `[n]`, of the first responses.
        scores_b: `[n]`, of the second ones.
        property: its name; of relevance only whether there is any is compared.

    Raises:
        PrefkitError: the two differ in length, or a rating is none.
    """
    a, b = (np.asarray(scores, dtype=np.float64) for scores in (scores_a, scores_b))
    _same(a, b)
    for values in (a, b):
        if not ((values >= 0) & (values <= 3)).all():
            raise PrefkitError(f"ratings of '{property}' must lie in 0..3")
    diff = a - b
    compared = (a > 0).astype(int) - (b > 0).astype(int) if property == RELEVANCE else np.sign(diff)
    return Compared(compared.astype(np.int64), diff, normalize_diff(diff, 3))


def compare_lengths(words_a: ArrayLike, words_b: ArrayLike) -> Compared:
    """Numbers of words compared: whether a reader would call one response longer.

    Args:
        words_a: `[n]`, of the first responses.
        words_b: `[n]`, of the second ones.

    Raises:
        PrefkitError: the two differ in length, or a number is negative.
    """
    a, b = (np.asarray(words, dtype=np.int64) for words in (words_a, words_b))
    _same(a, b)
    if min(a.min(initial=0), b.min(initial=0)) < 0:
        raise PrefkitError("numbers of words must be at least 0")
    short, long = np.minimum(a, b), np.maximum(a, b)
    table = np.array(_SHORT)
    differ = np.where(short < len(table), long >= table[np.minimum(short, len(table) - 1)], False)
    for share, fewer in _LONG:
        differ |= (short >= len(table)) & (short <= share * long) & (long - short >= fewer)
    diff = (a - b).astype(np.float64)
    return Compared((np.sign(diff) * differ).astype(np.int64), diff, normalize_diff(diff, 500, "log_linear"))


class ComparedErrors(NamedTuple):
    """Errors of two responses compared, by severity; None where a response could not be judged.

    Args:
        comparison: 1 where the first response has fewer errors.
        diff: errors of the second less those of the first.
        norm_diff: a fifth of that, within [-1, 1].
    """

    comparison: list[dict[str, int] | None]
    diff: list[dict[str, int] | None]
    norm_diff: list[dict[str, float] | None]


def compare_errors(pairs: Sequence[Mapping[str, Any]]) -> ComparedErrors:
    """Numbers of errors compared, each severity for itself. A pair that could not be judged is to be left out of fits.

    Args:
        pairs: each with `applicable`, two truth values, and `errors_a` and `errors_b`, a number for each severity.

    Raises:
        PrefkitError: a severity is missing, or a number negative; the message says of which pair.
    """
    found = ComparedErrors([], [], [])
    for index, pair in enumerate(pairs):
        if not all(pair["applicable"]):
            for column in found:
                column.append(None)
            continue
        counts = []
        for side in ("errors_a", "errors_b"):
            own = {str(name).lower(): int(count) for name, count in pair[side].items()}
            if set(own) != set(SEVERITIES) or min(own.values()) < 0:
                raise PrefkitError(f"pair {index}: {side} must count {', '.join(SEVERITIES)} errors, got {pair[side]}")
            counts.append(own)
        diff = {name: counts[1][name] - counts[0][name] for name in SEVERITIES}
        found.diff.append(diff)
        found.comparison.append({name: (d > 0) - (d < 0) for name, d in diff.items()})
        found.norm_diff.append({name: max(-1.0, min(1.0, d / 5)) for name, d in diff.items()})
    return found


def compare_query_specific(annotation: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The annotations that apply to one query compared; what does not apply makes no difference.

    Args:
        annotation: of each property either ratings of `Response 1` and `Response 2`, or a mapping of items
            (constraints, stances, mistakes) to these.

    Returns:
        `comparison`, `diff` and `norm_diff`, each by property.

    Raises:
        PrefkitError: a property or a rating is none.
    """
    for name in annotation:
        if name not in QUERY_SPECIFIC:
            raise PrefkitError(unknown("property of a query", name, QUERY_SPECIFIC))
    found: dict[str, dict[str, float]] = {"comparison": {}, "diff": {}, "norm_diff": {}}
    for name in QUERY_SPECIFIC:
        given = annotation.get(name) or {}
        words, threshold = _SCALES[name]
        items = [given] if "Response 1" in given else list(given.values())
        diff = 0.0
        if items:
            sides = ("Response 1", "Response 2")
            a, b = (sum(_rating(name, item[side], words) for item in items) / len(items) for side in sides)
            diff = a - b
        found["diff"][name] = diff
        found["comparison"][name] = (diff > 0) - (diff < 0)
        found["norm_diff"][name] = float(normalize_diff([diff], threshold)[0])
    return found


def _rating(name: str, value: Any, words: Mapping[str, float] | None) -> float:
    if words is None:
        try:
            rating = float(value)
        except (TypeError, ValueError):
            rating = math.nan
        if not 0 <= rating <= 3:
            raise PrefkitError(f"a rating of '{name}' must lie in 0..3, got {value!r}")
        return rating
    label = str(value).strip().lower()
    if label not in words:
        raise PrefkitError(unknown(f"label of '{name}'", label, words))
    return words[label]


def feature_vector(
    comparison: Mapping[str, Any],
    properties: Sequence[str] = PROPERTIES,
    *,
    missing: Literal["error", "zero"] = "error",
) -> list[float]:
    """The features of a pair, in the order of the properties.

    Args:
        comparison: -1, 0 or 1 (or a graded difference) by property. `repetitive` enters `non-repetitive` with the
            opposite sign, and `accuracy`, by severity, enters the three properties about errors.
        properties: which features.
        missing: what becomes of a property that was not annotated: an error, or 0. Those that are specific to a query
            are 0 in any case.

    Raises:
        PrefkitError: a property is unknown, out of [-1, 1], or missing.
        OptionError: `missing` is neither.
    """
    if missing not in ("error", "zero"):
        raise OptionError(f"missing must be 'error' or 'zero', got {missing!r}")
    values: dict[str, float] = {}
    for name, value in comparison.items():
        if name == "accuracy":
            values |= {f"no {str(severity).lower()} errors": difference for severity, difference in value.items()}
        elif name == "repetitive":
            values["non-repetitive"] = -value
        else:
            values[name] = value
    for name, value in values.items():
        if name not in properties:
            raise PrefkitError(unknown("property", name, properties))
        if not -1 <= value <= 1:
            raise PrefkitError(f"the difference in '{name}' must lie in [-1, 1], got {value}")
    absent = [name for name in properties if name not in values and name not in QUERY_SPECIFIC]
    if absent and missing == "error":
        raise PrefkitError(
            f"no annotation of '{absent[0]}'; a failed annotation is not a difference of 0: leave it out"
        )
    return [values.get(name, 0) for name in properties]


def _same(a: NDArray[Any], b: NDArray[Any]) -> None:
    if a.shape != b.shape or a.ndim != 1:
        raise PrefkitError(f"both sides need one number a pair, got shapes {a.shape} and {b.shape}")
