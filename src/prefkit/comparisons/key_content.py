"""Key content of a response, and what is left of the response without it.

A response from which the key content is removed step by step gives texts that say less and less: a graded notion of
preference that needs no label.

Source: Li et al. 2024 (Self-supervised Preference Optimization, arXiv 2409.17791); RAKE: Rose, Engel, Cramer and
Cowley 2010, Automatic keyword extraction from individual documents.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from prefkit.comparisons.record import Text
from prefkit.errors import OptionError, unknown

Token = TypeVar("Token")

_STOP = """
a about above after again against all also am an and any are as at be because been before being below between
both but by can cannot could did do does doing down during each either few for from further had has have having he
her here hers herself him himself his how i if in into is it its itself just let may me might more most must my
myself neither no nor not now of off on once only or other our ours ourselves out over own same shall she should so
some such than that the their theirs them themselves then there these they this those through to too under until up
upon us very was we were what when where which while who whom whose why will with within without would you your
yours yourself yourselves
"""
STOP_WORDS = frozenset(_STOP.split())
"""English words that carry little content of their own."""

_PIECE = re.compile(r"[^\W_](?:[\w'’-]*\w)?|\s+|.", re.DOTALL)
"""A word (inner hyphens and apostrophes included), white space, or one other character."""


class KeySpan(NamedTuple):
    """A piece of key content.

    Args:
        start: its first character.
        end: the character after it.
        score: how much it matters.
    """

    start: int
    end: int
    score: float


Extractor: TypeAlias = Callable[[str], Sequence[KeySpan]]
"""Finds the key content of a text: spans that do not overlap."""


def rake_scores(phrases: Sequence[Sequence[str]]) -> tuple[dict[str, float], list[float]]:
    """Scores of candidate phrases by RAKE.

    A word's score is its degree over its frequency, the degree being the sum of the lengths of the phrases that it is
    in, counted once for each time it occurs. A phrase's score is the sum of its words' scores.

    Args:
        phrases: candidate phrases, each a list of words.

    Returns:
        The words' scores, and the phrases' scores in their order.
    """
    frequency: Counter[str] = Counter()
    degree: Counter[str] = Counter()
    for phrase in phrases:
        for word in phrase:
            frequency[word] += 1
            degree[word] += len(phrase)
    words = {word: degree[word] / count for word, count in frequency.items()}
    return words, [sum(words[word] for word in phrase) for phrase in phrases]


def remove_key_content(
    tokens: Sequence[Token], spans: Sequence[Sequence[int]], span_scores: Sequence[float], ratio: float
) -> tuple[list[Token], list[int]]:
    """Drop the floor(ratio * n + 1/2) of n key spans that score highest; of equal ones, the earlier first.

    Args:
        tokens: the whole text.
        spans: first token of each span, and the one after its last.
        span_scores: their scores.
        ratio: share of the spans to remove, in [0, 1].

    Returns:
        The tokens that are left, and which spans were removed, in increasing order.

    Raises:
        OptionError: the ratio lies outside [0, 1], spans overlap or reach beyond the text, or scores are missing.
    """
    if not 0 <= ratio <= 1:
        raise OptionError(f"the ratio must be in [0, 1], got {ratio}")
    if len(spans) != len(span_scores):
        raise OptionError(f"there must be one score a span, got {len(span_scores)} for {len(spans)}")
    in_order = sorted(range(len(spans)), key=lambda place: tuple(spans[place]))
    end = 0
    for place in in_order:
        first, after = spans[place]
        if not end <= first < after <= len(tokens):
            raise OptionError(
                f"spans must not be empty, overlap or leave the {len(tokens)} tokens; "
                f"span {place} is [{first}, {after})"
            )
        end = after
    count = removed_spans(len(spans), ratio)
    best = sorted(range(len(spans)), key=lambda place: (-span_scores[place], spans[place][0]))[:count]
    gone = {token for place in best for token in range(*spans[place])}
    return [token for place, token in enumerate(tokens) if place not in gone], sorted(best)


def removed_spans(spans: int, ratio: float) -> int:
    """How many of so many spans are removed at a ratio: floor(ratio * spans + 1/2)."""
    return math.floor(ratio * spans + 0.5)


def key_spans(text: str, extractor: Literal["rake", "tfidf", "random"] | Extractor = "rake") -> list[KeySpan]:
    """The key content of a text.

    Args:
        text: the text.
        extractor: "rake": phrases between stop-words and punctuation, scored by RAKE. "tfidf": words but stop-words,
            scored by frequency times the logarithm of the inverse share of sentences that they occur in. "random": the
            words of "tfidf" with random scores, a control; the text decides them. Or a function of one's own.

    Returns:
        The spans in the order of the text.

    Raises:
        OptionError: the extractor is unknown.
    """
    if callable(extractor):
        return sorted(extractor(text))
    if extractor not in _EXTRACTORS:
        raise OptionError(unknown("extractor", str(extractor), _EXTRACTORS))
    return _EXTRACTORS[extractor](text)


def without_key_content(text: str, spans: Sequence[KeySpan], ratio: float, *, filler: str | None = None) -> str:
    """A text without a share of its key content.

    Args:
        text: the text.
        spans: its key content.
        ratio: share of the spans to remove; see `remove_key_content`.
        filler: stands for each word that is removed, so that the text keeps its length in words; None leaves nothing.

    Returns:
        The rest; where nothing would be left, the first word of the span that matters least.
    """
    pieces: list[str] = _PIECE.findall(text)
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    bounds: list[tuple[int, int]] = []
    for span in spans:
        # Whole pieces that lie in the span, at least in part: no character is cut, nor a word.
        inside = [place for place in range(len(pieces)) if starts[place] < span.end and starts[place + 1] > span.start]
        bounds.append((inside[0], inside[-1] + 1))
    _, gone = remove_key_content(pieces, bounds, [span.score for span in spans], ratio)
    if not gone:
        return text
    if filler is not None:
        for place in gone:
            first, after = bounds[place]
            pieces[first:after] = [filler if _is_word(piece) else piece for piece in pieces[first:after]]
        return "".join(pieces)
    for place in gone:
        first, after = bounds[place]
        pieces[first:after] = [""] * (after - first)
        # One of the two spaces around it goes with it.
        if after < len(pieces) and pieces[after].isspace():
            pieces[after] = ""
        elif first and pieces[first - 1].isspace():
            pieces[first - 1] = ""
    left = "".join(pieces)
    if left.strip():
        return left
    least = min(gone, key=lambda place: spans[place].score)
    words: list[str] = _PIECE.findall(text[spans[least].start : spans[least].end])
    return words[0]


def said(response: Text) -> str:
    """What a response says: a text itself, or what the last message says."""
    if isinstance(response, str):
        return response
    content = response[-1].get("content") if response else None
    return content if isinstance(content, str) else ""


def saying(response: Text, content: str) -> Text:
    """The response with other words."""
    return content if isinstance(response, str) else (*response[:-1], {**response[-1], "content": content})


def _is_word(piece: str) -> bool:
    return piece[0].isalnum()


class _Word(NamedTuple):
    start: int
    end: int
    lower: str


def _phrases(text: str) -> list[list[_Word]]:
    """Runs of words between stop-words, punctuation and line breaks."""
    phrases: list[list[_Word]] = [[]]
    for found in _PIECE.finditer(text):
        piece = found.group()
        if _is_word(piece) and piece.lower() not in STOP_WORDS:
            phrases[-1].append(_Word(*found.span(), piece.lower()))
        elif not piece.isspace() or "\n" in piece:
            phrases.append([])
    return [phrase for phrase in phrases if phrase]


def _words(text: str) -> list[_Word]:
    return [word for phrase in _phrases(text) for word in phrase]


def _rake(text: str) -> list[KeySpan]:
    phrases = _phrases(text)
    _, scores = rake_scores([[word.lower for word in phrase] for phrase in phrases])
    return [KeySpan(phrase[0].start, phrase[-1].end, score) for phrase, score in zip(phrases, scores, strict=True)]


def _tfidf(text: str) -> list[KeySpan]:
    sentences = [{word.lower for word in _words(part)} for part in re.split(r"[.!?\n]+", text) if part.strip()]
    words = _words(text)
    frequency = Counter(word.lower for word in words)
    # Smoothed as is usual, so that a word of every sentence still counts for something.
    weight = {
        word: count * (1 + math.log((1 + len(sentences)) / (1 + sum(word in sentence for sentence in sentences))))
        for word, count in frequency.items()
    }
    return [KeySpan(word.start, word.end, weight[word.lower]) for word in words]


def _random(text: str) -> list[KeySpan]:
    return [KeySpan(word.start, word.end, fraction_of(f"{word.start} {text}")) for word in _words(text)]


def fraction_of(text: str) -> float:
    """A number in [0, 1) that looks random and that the text alone decides."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


_EXTRACTORS: dict[str, Callable[[str], list[KeySpan]]] = {"rake": _rake, "tfidf": _tfidf, "random": _random}
