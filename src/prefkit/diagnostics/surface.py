"""Style: what can be counted in a response without understanding it, and whether labels follow that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefkit.comparisons import Text
from prefkit.diagnostics.intervals import Interval, wilson_interval

_WORD = re.compile(r"\w+")
_LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
_SORRY = re.compile(r"\b(?:sorry|apologi[sz]e|i can(?:no|')t|unable to|as an ai)\b", re.IGNORECASE)

FEATURES = (
    "words",
    "list items",
    "line breaks",
    "bold or headings",
    "code",
    "questions",
    "exclamations",
    "digits",
    "apologies and refusals",
    "first person",
    "words of seven letters and more",
)
"""What is counted, in the order of `count_style`."""


def plain_text(text: Text) -> str:
    """The words of a response, of messages too."""
    return text if isinstance(text, str) else "\n".join(str(message["content"]) for message in text)


def count_style(text: str) -> tuple[float, ...]:
    """How much of each of `FEATURES` a response has."""
    words = text.split()
    return (
        float(len(words)),
        float(len(_LIST.findall(text))),
        float(text.count("\n")),
        float(text.count("**") // 2 + text.count("\n#")),
        float(text.count("`")),
        float(text.count("?")),
        float(text.count("!")),
        float(sum(map(text.count, "0123456789"))),
        float(len(_SORRY.findall(text))),
        float(words.count("I") + words.count("I'm") + words.count("my")),
        float(sum(len(word) >= 7 for word in words)),
    )


def word_overlap(one: str, two: str) -> float:
    """Shared words as a share of all words of both, each as often as it occurs (Jaccard); 1 for equal texts.

    Quick and without an order: near-duplicates are found by it, their edit distance is measured on tokens.
    """
    first, second = one.split(), two.split()
    if not first and not second:
        return 1.0
    if min(len(first), len(second)) < 0.5 * max(len(first), len(second)):
        # Then it is below one half anyway, however many are shared.
        return 0.0
    counts: dict[str, int] = {}
    for word in first:
        counts[word] = counts.get(word, 0) + 1
    shared = 0
    for word in second:
        left = counts.get(word, 0)
        if left:
            counts[word] = left - 1
            shared += 1
    return shared / (len(first) + len(second) - shared)


class Bias(NamedTuple):
    """How often the response with more of something wins.

    Args:
        wins: of the decided pairs in which the two differ in it, with a 95% interval.
        differ: share of the decided pairs in which they do.
    """

    wins: Interval
    differ: float


@dataclass
class StyleCounts:
    """Style of winners and losers, counted in one pass."""

    pairs: int = 0
    _more: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(FEATURES), dtype=np.int64))
    _differ: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(FEATURES), dtype=np.int64))

    def add(self, chosen: tuple[float, ...], rejected: tuple[float, ...]) -> None:
        """Take in one decided pair."""
        self.pairs += 1
        for place, (one, two) in enumerate(zip(chosen, rejected, strict=True)):
            if one != two:
                self._differ[place] += 1
                self._more[place] += one > two

    def biases(self) -> Mapping[str, Bias]:
        """By feature, of those in which any pair differs."""
        return {
            name: Bias(wilson_interval(int(more), int(differ)), int(differ) / self.pairs)
            for name, more, differ in zip(FEATURES, self._more, self._differ, strict=True)
            if differ
        }
