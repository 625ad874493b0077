"""Rationales: why a response was preferred, as a text that is learned with the pair, and prompts that ask for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal, Protocol, TypeAlias

from prefkit.comparisons.companions import Companion
from prefkit.comparisons.pairing import pairs
from prefkit.comparisons.record import Comparison, Text
from prefkit.comparisons.rows import user
from prefkit.errors import OptionError, RecordError, unknown

RationaleOrder: TypeAlias = Literal["chosen_first", "random"]
"""Which response a rationale's prompt shows first."""

RationaleStyle: TypeAlias = Literal["general", "specific"]
"""Short and high-level reasons, or detailed ones that refer to what the responses say."""


class RationaleTemplate(Protocol):
    """Makes the prompt of a rationale."""

    def __call__(self, query: Text, chosen: Text, rejected: Text, *, chosen_first: bool, marked: bool) -> Text:
        """The prompt that the rationale answers; see `rationale_prompt`."""
        ...


def rationale_prompt(query: Text, chosen: Text, rejected: Text, *, chosen_first: bool, marked: bool) -> Text:
    """The query, both responses, and the question which of them is preferable and why.

    Args:
        query: prompt of the pair.
        chosen: the preferred response.
        rejected: the other one.
        chosen_first: show the preferred response above the other one.
        marked: say which one was preferred. Otherwise only the order tells, as long as it is always the same.

    Returns:
        Messages where the query is messages, else plain text.

    Source: Just et al. 2024 (arXiv 2407.14477), whose prompt has the same content.
    """
    above, below = (chosen, rejected) if chosen_first else (rejected, chosen)
    asked = (
        f"{plain(query)}\n\nWhich of these two responses is more preferable and strictly follows the query?\n\n"
        f'Above: "{plain(above)}"\n\nor\n\nBelow: "{plain(below)}"'
    )
    if marked:
        asked += f"\n\nThe response {'above' if chosen_first else 'below'} was preferred. Why?"
    return f"{asked}\n\nRationale: " if isinstance(query, str) else user(asked)


def rationale_companions(
    comparison: Comparison,
    chosen: int,
    rejected: int,
    *,
    order: RationaleOrder = "chosen_first",
    template: RationaleTemplate = rationale_prompt,
    **_: Any,
) -> list[Companion]:
    """The rationale of a pair as a text of its own, after a prompt that shows the query and both responses.

    Args:
        comparison: what was compared, with its rationale.
        chosen: place of the chosen response.
        rejected: place of the rejected one.
        order: "chosen_first", or "random": drawn from a digest of the texts, the same in each run, and said in the
            prompt, so that a model cannot learn that the first response is the better one.
        template: makes the prompt.

    Raises:
        RecordError: the comparison has no rationale.
    """
    if comparison.rationale is None or not comparison.rationale.strip():
        raise RecordError("the objective learns why a response was preferred; give a rationale", field="rationale")
    query, better, worse = comparison.prompt_of(chosen), comparison.responses[chosen], comparison.responses[rejected]
    first = order == "chosen_first" or drawn(query, better, worse)
    prompt = template(query, better, worse, chosen_first=first, marked=order == "random")
    return [Companion(prompt, comparison.rationale.strip())]


def generate_rationales(
    comparisons: Iterable[Comparison],
    generate: Callable[[Text], str],
    *,
    style: RationaleStyle = "general",
    prompt_builder: Callable[[Text, Text, Text, RationaleStyle], Text] | None = None,
) -> Iterator[Comparison]:
    """Comparisons with a rationale that a model wrote; those that have one keep it.

    Args:
        comparisons: what was compared; of more than two responses the best and the worst are shown.
        generate: from a prompt to the text that follows it.
        style: what kind of rationale is asked for.
        prompt_builder: makes the prompt from query, chosen and rejected response, and style.

    Raises:
        OptionError: the style is unknown.
        RecordError: a comparison prefers no response, or nothing was written.
    """
    if style not in _STYLES:
        raise OptionError(unknown("style of rationales", style, _STYLES))
    build = prompt_builder or _request
    for comparison in comparisons:
        if comparison.rationale is not None:
            yield comparison
            continue
        found = pairs(comparison, strategy="best_worst")
        source, line = comparison.source, comparison.line
        if not found:
            raise RecordError(
                "no response is preferred to another, so there is nothing to explain", source=source, line=line
            )
        chosen, rejected = (comparison.responses[index] for index in found[0][:2])
        written = generate(build(comparison.prompt_of(found[0].chosen), chosen, rejected, style)).strip()
        if not written:
            raise RecordError("the generator wrote no rationale", field="rationale", source=source, line=line)
        yield replace(comparison, rationale=written)


_STYLES = {
    "general": "Explain briefly, in general terms, why response 1 is preferred to response 2.",
    "specific": "Explain in detail, referring to what the responses say, why response 1 is preferred to response 2.",
}


def _request(query: Text, chosen: Text, rejected: Text, style: RationaleStyle) -> Text:
    asked = f"Query: {plain(query)}\n\nResponse 1: {plain(chosen)}\n\nResponse 2: {plain(rejected)}\n\n{_STYLES[style]}"
    return f"{asked}\n\nExplanation: " if isinstance(query, str) else user(asked)


def plain(text: Text) -> str:
    """What a text says, as one string: a single message without its role, several with theirs."""
    if isinstance(text, str):
        return text.strip()
    if len(text) == 1:
        return str(text[0]["content"]).strip()
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in text).strip()


def drawn(*texts: Text) -> bool:
    """A fair coin that falls the same way whenever the same texts are given."""
    return hashlib.sha256("\0".join(map(plain, texts)).encode()).digest()[0] % 2 == 0
