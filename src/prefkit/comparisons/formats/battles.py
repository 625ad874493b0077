"""Battles of models and judges' verdicts: Chatbot Arena, MT-bench, FastChat, Arena-Hard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prefkit.comparisons.containers import parse_cell
from prefkit.comparisons.formats.base import Format, has
from prefkit.comparisons.record import Comparison, Message, Text
from prefkit.comparisons.rows import BOTH_BAD, TIE, A, B, Row, as_list, assistant, user
from prefkit.options import Options

_WINNERS = {
    "model_a": A,
    "model_b": B,
    "tie": TIE,
    "tie (bothbad)": BOTH_BAD,
    "bothbad": BOTH_BAD,
    "both_bad": BOTH_BAD,
    "both bad": BOTH_BAD,
}
_CONVERSATIONS = ("conversation_a", "conversation_b")


def _conversation(row: Row, field: str) -> tuple[Message, ...]:
    conversation = row.said(field)
    if isinstance(conversation, str):
        raise row.error("must be messages with role and content", field)
    return conversation


def _split(row: Row, conversations: tuple[tuple[Message, ...], ...], field: str) -> dict[str, Any]:
    """Votes are on the last answers; after the first turn the two contexts differ, and the comparison is joint."""
    for conversation, name in zip(conversations, _CONVERSATIONS, strict=True):
        if len(conversation) < 2 or conversation[-1]["role"] != "assistant":
            raise row.error("must hold a user turn and end with an assistant turn", field or name)
    prompts: tuple[Text, ...] = tuple(conversation[:-1] for conversation in conversations)
    return {
        "prompts": prompts[:1] if prompts[0] == prompts[1] else prompts,
        "responses": tuple(conversation[-1:] for conversation in conversations),
    }


def _arena(row: Row, options: Options) -> Iterator[Comparison]:
    conversations = _conversation(row, "conversation_a"), _conversation(row, "conversation_b")
    yield Comparison(
        **_split(row, conversations, ""),
        judgement=row.one_of("winner", _WINNERS),
        annotator=row.name("judge"),
        id=row.name("question_id") or row.name("id"),
        extra=row.rest(*_CONVERSATIONS, "winner", "judge", "question_id", "full_conversation"),
        **row.place,
    )


def _mt_bench(row: Row, options: Options) -> Iterator[Comparison]:
    turn = row.one_of("turn", {1: 1, 2: 2})
    conversations = tuple(_turns(row, field, turn) for field in _CONVERSATIONS)
    judge = parse_cell(row["judge"]) if isinstance(row["judge"], str) else row["judge"]
    yield Comparison(
        **_split(row, conversations, ""),
        judgement=row.one_of("winner", {"model_a": A, "model_b": B, "tie": TIE}),
        annotator="/".join(str(part) for part in judge) if isinstance(judge, list | tuple) else str(judge),
        id=row.name("question_id"),
        extra=row.rest(*_CONVERSATIONS, "winner", "judge", "question_id"),
        **row.place,
    )


def _turns(row: Row, field: str, count: int) -> tuple[Message, ...]:
    """The conversation up to its answer number `count`: turn 1 judges the first answer only."""
    messages = _conversation(row, field)
    ends = [index + 1 for index, message in enumerate(messages) if message["role"] == "assistant"]
    if len(ends) < count:
        raise row.error(f"holds {len(ends)} answers, but turn {count} was judged", field)
    return messages[: ends[count - 1]]


_ONE_HOT = ("winner_model_a", "winner_model_b", "winner_tie")


def _one_hot(row: Row, options: Options) -> Iterator[Comparison]:
    if all(row.missing(column) for column in _ONE_HOT):
        raise row.error("no judgement", "winner_model_a")
    flags = [row.one_of(column, {0: False, 1: True}) for column in _ONE_HOT]
    if sum(flags) != 1:
        raise row.error(f"exactly one winner column must be 1, got {[int(flag) for flag in flags]}", "winner_model_a")
    # A table may hold one turn as plain text.
    turns = [as_list(row.need(column)) or [row[column]] for column in ("prompt", "response_a", "response_b")]
    if len({len(column) for column in turns}) != 1:
        raise row.error(f"prompt, response_a and response_b hold {[len(column) for column in turns]} turns", "prompt")
    for name, column in zip(("prompt", "response_a", "response_b"), turns, strict=True):
        for index, text in enumerate(column):
            if not isinstance(text, str) or not text.strip():
                raise row.error("is null" if text is None else "is empty", f"{name}[{index}]")
    conversations = tuple(
        tuple(part for asked, said in zip(turns[0], side, strict=True) for part in (*user(asked), *assistant(said)))
        for side in turns[1:]
    )
    yield Comparison(
        **_split(row, conversations, "prompt"),
        judgement=(A, B, TIE)[flags.index(True)],
        id=row.name("id"),
        extra=row.rest("prompt", "response_a", "response_b", "id", *_ONE_HOT),
        **row.place,
    )


# MT-bench rows have Arena's columns; what they lack is the log of a public arena.
_LOG = ("anony", "tstamp", "language", "evaluation_session_id", "timestamp")


def _is_battle(row: Mapping[str, Any]) -> bool:
    return has("model_a", "model_b", "winner", *_CONVERSATIONS)(row)


def _is_mt_bench(row: Mapping[str, Any]) -> bool:
    return _is_battle(row) and has("judge", "turn")(row) and not any(column in row for column in _LOG)


FORMATS = (
    Format(
        "mt_bench",
        "`model_a`, `model_b`, `winner`, `conversation_a`, `conversation_b`, `judge`, `turn`, no time or language",
        "model_a, model_b, tie; turn 1 or 2 is judged",
        _is_mt_bench,
        _mt_bench,
    ),
    Format(
        "arena",
        "`model_a`, `model_b`, `winner`, `conversation_a`, `conversation_b`",
        "model_a, model_b, tie, both bad (in any spelling)",
        lambda row: _is_battle(row) and not _is_mt_bench(row),
        _arena,
    ),
    Format(
        "arena_one_hot",
        "`response_a`, `response_b`, `winner_model_a`, `winner_model_b`, `winner_tie`",
        "exactly one 1",
        has("prompt", "response_a", "response_b", *_ONE_HOT),
        _one_hot,
    ),
)
