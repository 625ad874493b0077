"""Contexts: the criterion, scenario or person under which a comparison was made, told to the model in the prompt.

Source: Pitis et al. 2024, Improving Context-Aware Preference Modeling for Language Models (arXiv 2407.14916). Template,
place and dropout are this library's choices; the paper's are not known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from prefkit.comparisons.record import Comparison, Message, Text
from prefkit.errors import RecordError
from prefkit.options import Options

_MARK = "{context}"


class ContextOptions(Options):
    """How a context is told."""

    field: str = Field("criterion", description="field of the record, or one of its further columns, that holds it")
    template: str = Field(f"Context: {_MARK}", description="how it is said; holds {context} once")
    place: Literal["before", "after", "system"] = Field(
        "before", description="before or after the user's last turn, or as a system message (messages only)"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the comparisons that are shown without context")
    seed: int = Field(0, description="of the dropout")

    @field_validator("template")
    @classmethod
    def _holds_the_mark(cls, value: str) -> str:
        if value.count(_MARK) != 1:
            raise ValueError(f"the template must hold {_MARK} once, got {value!r}")
        return value


def context_of(comparison: Comparison, field: str = "criterion") -> str:
    """The context of a comparison.

    Args:
        comparison: what was compared.
        field: "criterion", "annotator", or a further column.

    Raises:
        RecordError: it has none, or something that is no text.
    """
    value = getattr(comparison, field) if field in ("criterion", "annotator") else comparison.extra.get(field)
    if not isinstance(value, str) or not value.strip():
        raise RecordError(
            f"a context is needed, a text, got {value!r}", field=field, source=comparison.source, line=comparison.line
        )
    return value


def with_context(comparison: Comparison, context: str, options: ContextOptions | None = None) -> Comparison:
    """A comparison whose prompts say a context.

    Args:
        comparison: what was compared; its responses and judgement stay.
        context: what is said.
        options: how.

    Raises:
        RecordError: a system message is asked for and the prompt is plain text, or it has no user's turn.
    """
    options = options or ContextOptions()
    said = options.template.replace(_MARK, context)
    try:
        prompts = tuple(_told(prompt, said, options.place) for prompt in comparison.prompts)
    except RecordError as error:
        raise RecordError(error.problem, field="prompt", source=comparison.source, line=comparison.line) from error
    return replace(comparison, prompts=prompts)


class WithContexts(Iterable[Comparison]):
    """Comparisons whose prompts say their contexts.

    Both comparisons of a reversal have the same fate in dropout, so that what is dropped is balanced.

    Args:
        comparisons: can be iterated over again and again.
        options: see `ContextOptions`.
    """

    def __init__(self, comparisons: Iterable[Comparison], options: ContextOptions | None = None) -> None:
        self.comparisons, self.options = comparisons, options or ContextOptions()

    def __iter__(self) -> Iterator[Comparison]:
        for comparison in self.comparisons:
            context = context_of(comparison, self.options.field)
            yield comparison if self._dropped(comparison) else with_context(comparison, context, self.options)

    @property
    def skipped(self) -> Any:
        """What the reader set aside."""
        return getattr(self.comparisons, "skipped", ())

    def _dropped(self, comparison: Comparison) -> bool:
        if not self.options.dropout:
            return False
        facts = repr((self.options.seed, comparison.prompts, comparison.responses))
        number = int.from_bytes(hashlib.sha256(facts.encode()).digest()[:8], "big")
        return number / 2**64 < self.options.dropout


def shuffled_contexts(
    comparisons: Iterable[Comparison], seed: int = 0, options: ContextOptions | None = None
) -> list[Comparison]:
    """The comparisons with each other's contexts, as a control: a model must be worse with them.

    Args:
        comparisons: held in memory, at least two with different contexts.
        seed: of the permutation.
        options: see `ContextOptions`.

    Raises:
        RecordError: a comparison has no context.
    """
    records, options = list(comparisons), options or ContextOptions()
    contexts = [context_of(record, options.field) for record in records]
    order = np.random.default_rng(seed).permutation(len(records))
    return [with_context(record, contexts[place], options) for record, place in zip(records, order, strict=True)]


def _told(prompt: Text, said: str, place: str) -> Text:
    if isinstance(prompt, str):
        if place == "system":
            raise RecordError("a system message needs a prompt of messages; use place: before", field="prompt")
        return f"{said}\n\n{prompt}" if place == "before" else f"{prompt}\n\n{said}"
    if place == "system":
        first = prompt[0]
        if first["role"] == "system":
            return ({**first, "content": f"{first['content']}\n\n{said}"}, *prompt[1:])
        return ({"role": "system", "content": said}, *prompt)
    turns = [index for index, message in enumerate(prompt) if message["role"] == "user"]
    if not turns:
        raise RecordError("the prompt has no user's turn that could say the context", field="prompt")
    own = prompt[turns[-1]]
    content = f"{said}\n\n{own['content']}" if place == "before" else f"{own['content']}\n\n{said}"
    told: Message = {**own, "content": content}
    return (*prompt[: turns[-1]], told, *prompt[turns[-1] + 1 :])
