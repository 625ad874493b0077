"""The comparison: one validated record of what was compared and what was said about it.

Every reader ends in a `Comparison` and everything else starts from one. It has a context (the prompt), the responses
in the order of the source, and one judgement in one of a few forms. A judgement never hides in the order of the
responses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from prefkit.errors import RecordError

Message: TypeAlias = Mapping[str, Any]
"""One chat message: `role` and `content`, as in the chat templates of transformers."""

Text: TypeAlias = str | tuple[Message, ...]
"""A prompt or a response: plain text, used as it stands, or messages, which go through a chat template."""


@dataclass(frozen=True, slots=True)
class Winner:
    """One response is preferred to every other one; nothing is said about the others.

    Args:
        index: 0-based position of the preferred response.
    """

    index: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """An order of the responses, equal ranks being ties.

    Args:
        ranks: one rank a response; 0 is best, equal numbers are ties.
        both_bad: a tie in which the annotator rejected every response.
    """

    ranks: tuple[int, ...]
    both_bad: bool = False


@dataclass(frozen=True, slots=True)
class Ratings:
    """One score a response on one scale; higher is better, equal scores are ties."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Probability:
    """The probability, in [0, 1], that the first of two responses is preferred to the second; 0.5 is a tie."""

    first: float


@dataclass(frozen=True, slots=True)
class Label:
    """A verdict on a single response (unpaired feedback)."""

    good: bool


@dataclass(frozen=True, slots=True)
class StepLabels:
    """One verdict a step of a single response: positive is right, 0 neutral, negative wrong, None not judged."""

    values: tuple[float | None, ...]


Judgement: TypeAlias = Winner | Ranking | Ratings | Probability | Label | StepLabels
"""What was said about the responses of a comparison, in one of a few forms."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison of responses.

    Args:
        prompts: the context; one entry shared by all responses, or one entry a response when the contexts differ (a
            joint comparison of prompt and response).
        responses: the candidates in the order of the source; one for `Label` and `StepLabels`, two or more otherwise.
        judgement: what was said about them.
        steps: for each response its steps, whose concatenation is the response; None where no steps are known.
        annotator: who judged.
        criterion: what was judged (helpfulness, harmlessness, ...).
        rationale: why, in the annotator's words.
        strength: how strongly the better response was preferred, on the source's own scale, at least 0.
        weight: importance of this record in a mean, at least 0.
        id: the source's name for the record.
        source: file or data set it came from.
        line: 1-based line or row in the source.
        extra: other columns that were kept.

    Raises:
        RecordError: the parts do not fit together; the message names the field.
    """

    prompts: tuple[Text, ...]
    responses: tuple[Text, ...]
    judgement: Judgement
    steps: tuple[tuple[str, ...] | None, ...] | None = None
    annotator: str | None = None
    criterion: str | None = None
    rationale: str | None = None
    strength: float | None = None
    weight: float = 1.0
    id: str | None = None
    source: str | None = None
    line: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def pair(cls, prompt: Text, chosen: Text, rejected: Text, **more: Any) -> Comparison:
        """A pair of responses to one prompt of which the first is preferred."""
        return cls((prompt,), (chosen, rejected), Winner(0), **more)

    @property
    def joint(self) -> bool:
        """Whether the responses answer different prompts."""
        return len(self.prompts) > 1

    def prompt_of(self, response: int) -> Text:
        """The context of one response."""
        return self.prompts[response] if self.joint else self.prompts[0]


def _check(record: Comparison) -> None:
    count, judgement = len(record.responses), record.judgement
    if len(record.prompts) not in (1, count):
        raise RecordError(
            f"{len(record.prompts)} prompts for {count} responses; give one, or one a response", field="prompts"
        )
    alone = isinstance(judgement, Label | StepLabels)
    if alone and count != 1:
        raise RecordError(f"a {type(judgement).__name__} judges one response, got {count}", field="responses")
    if not alone and count < 2:
        raise RecordError(f"a comparison needs at least two responses, got {count}", field="responses")
    for index, response in enumerate(record.responses):
        if not response or (isinstance(response, str) and not response.strip()):
            raise RecordError(f"response {index} is empty", field="responses")
    match judgement:
        case Winner(index):
            if not 0 <= index < count:
                raise RecordError(f"the winner must be an index from 0 to {count - 1}, got {index}", field="judgement")
        case Ranking(ranks):
            _check_length("ranks", ranks, count)
            if any(rank < 0 for rank in ranks):
                raise RecordError(f"ranks start at 0 (best), got {list(ranks)}", field="judgement")
        case Ratings(values):
            _check_length("ratings", values, count)
            for index, value in enumerate(values):
                if not math.isfinite(value):
                    raise RecordError(f"rating {index} must be a finite number, got {value}", field="judgement")
        case Probability(first):
            if count != 2:
                raise RecordError(f"a probability compares two responses, got {count}", field="judgement")
            if not 0.0 <= first <= 1.0:
                raise RecordError(f"a probability must lie in [0, 1], got {first}", field="judgement")
        case StepLabels(values):
            steps = record.steps[0] if record.steps else None
            if steps is not None and len(steps) != len(values):
                raise RecordError(f"{len(values)} step labels for {len(steps)} steps", field="judgement")
    for name, number in (("strength", record.strength), ("weight", record.weight)):
        if number is not None and not (math.isfinite(number) and number >= 0):
            raise RecordError(f"must be a finite number of at least 0, got {number}", field=name)


def _check_length(name: str, values: Sequence[Any], count: int) -> None:
    if len(values) != count:
        raise RecordError(f"{len(values)} {name} for {count} responses", field="judgement")


def ranks_from_order(order: Iterable[int], count: int) -> tuple[int, ...]:
    """Ranks of a strict order given as indices, best first.

    Raises:
        RecordError: an index is repeated, missing or out of range.
    """
    order = list(order)
    if sorted(order) != list(range(count)):
        raise RecordError(
            f"a ranking of {count} responses must hold each of 0..{count - 1} once, got {order}", field="ranking"
        )
    ranks = [0] * count
    for rank, index in enumerate(order):
        ranks[index] = rank
    return tuple(ranks)
