"""Feedback inside conversations: answers of one turn are compared, the context is the path that led to them.

The rows of one conversation can stand anywhere in the file, so flat files are held in memory whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal

from prefkit.comparisons.formats.base import Format, has, is_list, is_text
from prefkit.comparisons.record import Comparison, Judgement, Message, Ratings, Winner
from prefkit.comparisons.rows import Row, assistant, ranking, user
from prefkit.errors import RecordError
from prefkit.options import Options

# --- PRISM


class PrismOptions(Options):
    """Options of `prism_utterances` and `prism_conversations`.

    Args:
        judgement: "score" compares by the person's slider (equal scores are ties), "chosen" by the answer with which
            the person went on.
    """

    judgement: Literal["score", "chosen"] = "score"


def _prism_turn(
    context: tuple[Message, ...], answers: list[Row], text: str, who: Row, options: PrismOptions
) -> Comparison:
    first = answers[0]
    chosen = [index for index, answer in enumerate(answers) if answer.one_of("if_chosen", _FLAGS)]
    if len(answers) < 2:
        raise first.error("no judgement: the only answer of its turn", text)
    judgement: Judgement
    if options.judgement == "score":
        judgement = Ratings(tuple(answer.number("score") for answer in answers))
    elif len(chosen) != 1:
        raise first.error(f"one answer of a turn must be chosen, got {len(chosen)}", "if_chosen")
    else:
        judgement = Winner(chosen[0])
    return Comparison(
        (context,),
        tuple(assistant(answer.text(text)) for answer in answers),
        judgement,
        annotator=who.name("user_id"),
        id=first.name("interaction_id") or who.name("conversation_id"),
        extra={"models": [answer.name("model_name") for answer in answers], "chosen": chosen},
        **first.place,
    )


_FLAGS = {True: True, False: False, "true": True, "false": False}


def _prism_key(row: Row, options: Options) -> Hashable:
    return row.name("conversation_id")


def _prism_utterances(rows: list[Row], options: PrismOptions) -> Iterator[Comparison | RecordError]:
    by_turn: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        by_turn[row.number("turn")].append(row)
    context: tuple[Message, ...] = ()
    for _, answers in sorted(by_turn.items()):
        answers.sort(key=lambda row: row.number("within_turn_id"))
        context = (*context, *user(answers[0].text("user_prompt")))
        try:
            yield _prism_turn(context, answers, "model_response", answers[0], options)
        except RecordError as error:
            yield error
        context = _chosen_path(context, answers, "model_response")


def _chosen_path(context: tuple[Message, ...], answers: Sequence[Row], text: str) -> tuple[Message, ...]:
    chosen = [answer for answer in answers if answer.one_of("if_chosen", _FLAGS)]
    if len(chosen) != 1:
        raise answers[0].error(f"one answer of a turn must be chosen, got {len(chosen)}", "if_chosen")
    return (*context, *assistant(chosen[0].text(text)))


def _prism_conversations(row: Row, options: PrismOptions) -> Iterator[Comparison | RecordError]:
    by_turn: dict[float, list[Row]] = defaultdict(list)
    for message in row.objects("conversation_history"):
        by_turn[message.number("turn")].append(message)
    context: tuple[Message, ...] = ()
    for _, messages in sorted(by_turn.items()):
        for message in messages:
            if message.one_of("role", {"user": True, "model": False}):
                context = (*context, *user(message.text("content")))
        answers = [message for message in messages if message["role"] == "model"]
        if not answers:
            continue
        try:
            yield _prism_turn(context, answers, "content", row, options)
        except RecordError as error:
            yield error
        context = _chosen_path(context, answers, "content")


# --- OpenAssistant


def _oasst_key(row: Row, options: Options) -> Hashable:
    return row.name("message_tree_id") or row.name("message_id")


def _oasst_flat(rows: list[Row], options: Options) -> Iterator[Comparison | RecordError]:
    by_id = {row.name("message_id"): row for row in rows}
    siblings: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        siblings[row.name("parent_id")].append(row)
    for parent, replies in siblings.items():
        ranked = _ranked(replies)
        if len(ranked) < 2:
            continue
        path, above, seen = [], parent, set()
        while above is not None:
            if above not in by_id or above in seen:
                yield ranked[0].error(f"the message '{above}' on the way to the root is not in the file", "parent_id")
                break
            seen.add(above)
            path.append(by_id[above])
            above = by_id[above].name("parent_id")
        else:
            yield _oasst(tuple(reversed(path)), ranked)


def _ranked(replies: list[Row]) -> list[Row]:
    """Ranked answers: prompter messages carry ranks of their own, and an answer without a rank is not the last one."""
    return [
        reply
        for reply in replies
        if reply.get("role") == "assistant" and not reply.missing("rank") and not reply.get("deleted")
    ]


def _oasst(path: Sequence[Row], answers: list[Row]) -> Comparison:
    roles = {"prompter": user, "assistant": assistant}
    context: tuple[Message, ...] = ()
    for message in path:
        context = (*context, *message.one_of("role", roles)(message.text("text")))
    first = answers[0]
    return Comparison(
        (context,),
        tuple(assistant(answer.text("text")) for answer in answers),
        ranking([answer.number("rank") for answer in answers]),
        id=path[-1].name("message_id"),
        extra=first.rest(
            "message_id",
            "parent_id",
            "user_id",
            "text",
            "role",
            "rank",
            "deleted",
            "review_result",
            "labels",
            "replies",
        ),
        **first.place,
    )


def _oasst_trees(row: Row, options: Options) -> Iterator[Comparison | RecordError]:
    stack: list[tuple[Row, ...]] = [(row.inside("prompt"),)]
    while stack:
        path = stack.pop()
        replies = path[-1].objects("replies") if path[-1].get("replies") else []
        ranked = _ranked(replies)
        if len(ranked) > 1:
            yield _oasst(path, ranked)
        stack += [(*path, reply) for reply in reversed(replies)]


def _is_tree(row: Mapping[str, Any]) -> bool:
    prompt = row.get("prompt")
    return isinstance(prompt, Mapping) and "replies" in prompt and "text" in prompt


FORMATS = (
    Format(
        "prism_utterances",
        "`conversation_id`, `turn`, `within_turn_id`, `if_chosen`, `score`",
        "score 1..100, higher is better; or the chosen flag",
        has("conversation_id", "turn", "within_turn_id", "if_chosen", "score", "user_prompt", "model_response"),
        _prism_utterances,
        PrismOptions,
        key=_prism_key,
        adjacent=False,
    ),
    Format(
        "prism_conversations",
        "`conversation_history` list",
        "score 1..100, higher is better; or the chosen flag",
        lambda row: is_list(row, "conversation_history"),
        _prism_conversations,
        PrismOptions,
    ),
    Format(
        "openassistant",
        "`message_id`, `parent_id`, `rank`, `role` prompter or assistant",
        "rank 0 is best; null is unranked",
        lambda row: has("message_id", "parent_id", "rank", "role")(row) and is_text(row, "role"),
        _oasst_flat,
        key=_oasst_key,
        adjacent=False,
    ),
    Format(
        "openassistant_trees",
        "`prompt` message with nested `replies`",
        "rank 0 is best; null is unranked",
        _is_tree,
        _oasst_trees,
    ),
)
