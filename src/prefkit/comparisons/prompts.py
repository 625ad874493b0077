"""Where a prompt ends and the answers begin, for pairs that carry the prompt inside both sides.

A prompt is cut where a turn ends, never inside an answer: the longest common prefix of two transcripts runs into the
answers as soon as both begin alike. Where the two sides have different contexts the comparison is joint (one prompt a
response).
"""

from __future__ import annotations

import re
from typing import TypeAlias

from prefkit.comparisons.record import Text
from prefkit.comparisons.rows import Row, assistant, blank, user

Sides: TypeAlias = tuple[tuple[Text, ...], tuple[Text, ...]]
"""Prompts (one, or one a response) and responses."""

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

# What opens an assistant's turn in the usual plain-text transcripts and chat templates; the text after it is an answer.
_TURN = re.compile(
    r"\n\nAssistant:|\n(?:Assistant|ASSISTANT|AI|Bot):|<\|im_start\|>assistant\n|<\|assistant\|>\n?"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n|<start_of_turn>model\n|\[/INST\]"
    r"|### ?(?:Response|Assistant):|(?<= )ASSISTANT:"
)


def transcript(row: Row, field: str) -> tuple[str, str]:
    """A "\\n\\nHuman: ... \\n\\nAssistant: ..." transcript as context, which ends with the last mark, and last answer.

    Raises:
        RecordError: there is no assistant turn, or the transcript ends with an empty answer or a human turn.
    """
    text = row.text(field)
    cut = text.rfind(ASSISTANT)
    if cut < 0:
        raise row.error(r"has no '\n\nAssistant:' turn", field)
    context, answer = text[: cut + len(ASSISTANT)], text[cut + len(ASSISTANT) :]
    if HUMAN in answer:
        raise row.error("ends with a human turn instead of an answer", field)
    if not answer.strip():
        raise row.error("ends with an empty answer", field)
    return context, answer


def split_pair(row: Row, prompt: Text | None, first: Text, second: Text, names: tuple[str, str]) -> Sides:
    """Prompts and responses of a pair whose prompt may stand apart, inside both sides, or both.

    Args:
        row: for the place in errors.
        prompt: the prompt column; None if the format has none.
        first: one side, text or messages.
        second: the other side, of the same kind.
        names: the columns of the two sides.

    Raises:
        RecordError: the sides are identical, differ in kind, or share no prompt.
    """
    if first == second:
        raise row.error(f"{names[0]} equals {names[1]}; there is no preference in an identical pair", names[0])
    if isinstance(first, str) and isinstance(second, str):
        if prompt is None:
            return _split_texts(row, first, second, names)
        if isinstance(prompt, str):
            return (prompt,), (first, second)
        return (prompt,), (assistant(first), assistant(second))
    if isinstance(first, str) or isinstance(second, str):
        raise row.error(f"{names[0]} and {names[1]} must both be text or both be messages", names[1])
    if isinstance(prompt, str):
        if not any(message["content"] == prompt for message in (*first[:-1], *second[:-1])):
            return (user(prompt),), (first, second)
    elif prompt is not None and (first[: len(prompt)] != prompt or second[: len(prompt)] != prompt):
        return (prompt,), (first, second)
    return _split_messages(row, first, second, names)


def _split_texts(row: Row, first: str, second: str, names: tuple[str, str]) -> Sides:
    cut = turns_shared(first, second)
    if cut:
        for name, answer in zip(names, (first[cut:], second[cut:]), strict=True):
            if not answer.strip():
                raise row.error("ends with an empty answer", name)
        return (first[:cut],), (first[cut:], second[cut:])
    length = min(len(first), len(second))
    common = next((i for i in range(length) if first[i] != second[i]), length)
    # A word boundary: the answers start with the blank before their first differing word, and neither is empty.
    for cut in range(min(common, length - 1), 0, -1):
        starts_word = first[cut].isspace() and second[cut].isspace() and not first[cut - 1].isspace()
        if starts_word and first[cut:].strip() and second[cut:].strip():
            return (first[:cut],), (first[cut:], second[cut:])
    raise row.error(
        f"{names[0]} and {names[1]} share no beginning that could be the prompt; give a prompt column", names[0]
    )


def has_turns(text: Text) -> bool:
    """Whether a side is made of messages, or of text in which an assistant's turn is marked."""
    return not isinstance(text, str) or _TURN.search(text) is not None


def turns_shared(first: Text, second: Text) -> int:
    """How much two conversations share from their beginning: whole messages, or characters up to a turn's mark."""
    length = min(len(first), len(second))
    common = next((i for i in range(length) if first[i] != second[i]), length)
    if isinstance(first, str) and isinstance(second, str):
        return max((turn.end() for turn in _TURN.finditer(first[:common])), default=0)
    return min(common, length - 1)


def _split_messages(row: Row, first: Text, second: Text, names: tuple[str, str]) -> Sides:
    shortest = min(len(first), len(second)) - 1
    common = next((i for i in range(shortest) if first[i] != second[i]), shortest)
    rests = first[common:], second[common:]
    # A common run that ends before another user turn is a beginning of two conversations, not their whole context.
    if common and all(rest[0]["role"] == "assistant" for rest in rests):  # type: ignore[index]  # messages, not text
        prompts: tuple[Text, ...] = (first[:common],)
    else:
        prompts, rests = (first[:-1], second[:-1]), (first[-1:], second[-1:])
    if any(blank(prompt) for prompt in prompts):
        raise row.error(f"{names[0]} holds an answer without a prompt; give a prompt column", names[0])
    if rests[0] == rests[1] and len(prompts) == 1:
        raise row.error(f"{names[0]} equals {names[1]}; there is no preference in an identical pair", names[0])
    return prompts, rests
