"""Key content and its removal, with scores worked out by hand."""

from __future__ import annotations

import re

import pytest

from prefkit.comparisons import KeySpan, key_spans, rake_scores, remove_key_content, without_key_content
from prefkit.errors import OptionError

TEXT = "Compatibility of systems of linear constraints, and the linear systems."


def found(text: str, extractor: str = "rake") -> list[tuple[str, float]]:
    return [(text[span.start : span.end], span.score) for span in key_spans(text, extractor)]  # type: ignore[arg-type]


def test_rake_by_hand() -> None:
    words, phrases = rake_scores([["linear", "constraints"], ["systems"], ["linear", "systems"]])
    assert words == {"linear": 2.0, "constraints": 2.0, "systems": 1.5}
    assert phrases == [4.0, 1.5, 3.5]


def test_phrases_stand_between_stop_words_and_punctuation() -> None:
    assert found(TEXT) == [
        ("Compatibility", 1.0),
        ("systems", 1.5),
        ("linear constraints", 4.0),
        ("linear systems", 3.5),
    ]


def test_words_of_every_sentence_count_least() -> None:
    scores = dict(found("Cats sleep. Cats eat fish.", "tfidf"))
    assert scores["fish"] > scores["Cats"] / 2
    assert set(scores) == {"Cats", "sleep", "eat", "fish"}


def test_random_scores_are_those_of_the_text() -> None:
    assert found(TEXT, "random") == found(TEXT, "random")
    assert len({score for _, score in found(TEXT, "random")}) == 6


@pytest.mark.parametrize(
    ("ratio", "left"),
    [
        (0.0, TEXT),
        (0.25, "Compatibility of systems of, and the linear systems."),
        (0.5, "Compatibility of systems of, and the."),
        (1.0, "of of, and the."),
    ],
)
def test_best_spans_go_first(ratio: float, left: str) -> None:
    assert without_key_content(TEXT, key_spans(TEXT), ratio) == left


def test_filler_keeps_the_length_in_words() -> None:
    assert without_key_content("Red big dogs, and cats", key_spans("Red big dogs, and cats"), 0.5, filler="_") == (
        "_ _ _, and cats"
    )


def test_something_is_always_left() -> None:
    assert without_key_content("Big dogs", key_spans("Big dogs"), 1.0) == "Big"


def test_letters_of_several_bytes_are_not_cut() -> None:
    text = "Über die naïve Größe 量子力学 😀 and İstanbul"
    for ratio in (0.3, 0.6, 1.0):
        left = without_key_content(text, key_spans(text), ratio)
        assert all(word in text.split() for word in left.split())


def test_spans_of_ones_own() -> None:
    def first_word(text: str) -> list[KeySpan]:
        return [KeySpan(0, text.index(" "), 1.0)]

    assert without_key_content("one two", key_spans("one two", first_word), 1.0) == "two"


def test_ties_go_to_the_earlier_span_and_halves_round_up() -> None:
    assert remove_key_content("abcdef", [[4, 5], [0, 1], [2, 4]], [1.0, 1.0, 1.0], 0.5) == (["b", "e", "f"], [1, 2])


@pytest.mark.parametrize(
    ("spans", "scores", "ratio", "message"),
    [
        ([[0, 2], [1, 3]], [1.0, 2.0], 0.5, "spans must not be empty, overlap or leave the 4 tokens; span 1 is [1, 3)"),
        ([[2, 5]], [1.0], 0.5, "span 0 is [2, 5)"),
        ([[1, 1]], [1.0], 0.5, "span 0 is [1, 1)"),
        ([[0, 1]], [], 0.5, "one score a span, got 0 for 1"),
        ([[0, 1]], [1.0], 1.5, "the ratio must be in [0, 1], got 1.5"),
    ],
)
def test_mistakes_are_named(spans: list[list[int]], scores: list[float], ratio: float, message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        remove_key_content("abcd", spans, scores, ratio)


def test_unknown_extractor_is_named() -> None:
    with pytest.raises(OptionError, match="unknown extractor 'rack'; did you mean 'rake'"):
        key_spans("text", "rack")  # type: ignore[arg-type]
