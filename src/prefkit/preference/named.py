"""From comparisons to named items: who was compared, such as the models of a battle, instead of what they said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefkit.comparisons import Comparison, pairs
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.preference.inputs import Floats

ITEM_FIELDS = (("model_a", "model_b"), ("models",), ("responses",))
"""Where names are looked for: one field an option, a list of one name an option, or the texts themselves."""


class NamedComparisons(NamedTuple):
    """Comparisons as the estimators of `prefkit.preference` take them.

    Args:
        X: `[n, 2]`, names.
        y: probability that the first one is preferred; 0.5 is a tie.
        weights: importance of each row.
        skipped: comparisons without names, or without a preference between responses.
    """

    X: NDArray[Any]
    y: Floats
    weights: Floats
    skipped: list[RecordError]


def named_comparisons(comparisons: Iterable[Comparison], items: Sequence[str] | None = None) -> NamedComparisons:
    """Who was compared with whom, and what came of it; a comparison of K options gives all pairs, ties among them.

    Args:
        comparisons: records.
        items: fields kept in `extra` that hold the names: one an option, or one that holds a list; ("responses",) takes
            the texts themselves. By default `model_a` and `model_b`, or `models`, whichever the first record has.

    Raises:
        PrefkitError: no record has names.
        OptionError: more fields than options.
    """
    rows: list[tuple[Any, Any]] = []
    outcomes, weights = [], []
    skipped: list[RecordError] = []
    for comparison in comparisons:
        if items is None:
            items = next((fields for fields in ITEM_FIELDS[:2] if all(f in comparison.extra for f in fields)), None)
        if items is None:
            raise PrefkitError(
                "the comparisons do not say who was compared: no fields model_a and model_b, and no list models; name "
                "the fields that hold the names, or 'responses' for the texts themselves"
            )
        try:
            names = _names(comparison, items)
            found = pairs(comparison, ties="half")
        except RecordError as error:
            skipped.append(error)
            continue
        for pair in found:
            first, second = min(pair.chosen, pair.rejected), max(pair.chosen, pair.rejected)
            rows.append((names[first], names[second]))
            outcomes.append(pair.probability if pair.chosen == first else 1 - pair.probability)
            weights.append(pair.weight)
    if not rows:
        problem = f"; the first: {skipped[0]}" if skipped else ""
        raise PrefkitError(f"no comparison of named items{problem}")
    X = np.empty((len(rows), 2), dtype=object)
    X[:] = rows
    return NamedComparisons(X, np.array(outcomes), np.array(weights), skipped)


def _names(comparison: Comparison, items: Sequence[str]) -> list[str]:
    """The name of each option.

    Raises:
        RecordError: one is missing.
    """
    count = len(comparison.responses)

    def problem(text: str, field: str) -> RecordError:
        return RecordError(text, field=field, source=comparison.source, line=comparison.line)

    if tuple(items) == ("responses",):
        names = [text if isinstance(text, str) else str(text[-1]["content"]) for text in comparison.responses]
    elif len(items) == 1:
        value = comparison.extra.get(items[0])
        if not isinstance(value, list | tuple) or len(value) != count:
            raise problem(f"must be a list of {count} names, one an option, got {value!r}", items[0])
        names = [str(name) for name in value]
    elif len(items) == count:
        for field in items:
            if comparison.extra.get(field) in (None, ""):
                raise problem("the name is missing", field)
        names = [str(comparison.extra[field]) for field in items]
    elif count == 1:
        return []  # a verdict on a single response, which `pairs` refuses
    else:
        raise OptionError(f"a comparison has {count} options, and {len(items)} fields are to name them")
    if len(set(names)) < len(names):
        raise problem(f"an item is compared with itself: {names}", items[0])
    return names
