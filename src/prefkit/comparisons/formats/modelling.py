"""Data for preference models: votes on forum replies, preferences under contexts, written feedback, candidates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from prefkit.comparisons.formats.base import Format, has, is_list
from prefkit.comparisons.forum import drawn_pair, forum_pairs
from prefkit.comparisons.record import Comparison, Label, Message, Ratings
from prefkit.comparisons.rows import A, B, Row, assistant, ranking, user
from prefkit.errors import PrefkitError, RecordError
from prefkit.options import Options


class ForumOptions(Options):
    """Options of `forum`.

    Args:
        pairs: "one" draws one pair of replies with different scores a post; "all" compares all replies by their scores.
        seed: of the drawing.
    """

    pairs: Literal["one", "all"] = "one"
    seed: int = 0


def _forum(row: Row, options: ForumOptions) -> Iterator[Comparison]:
    replies = row.objects("replies")
    counts = {
        name: [0 if reply.missing(name) else reply.number(name) for reply in replies]
        for name in ("upvotes", "downvotes", "accepted")
    }
    try:
        found = forum_pairs(*(counts[name] for name in ("upvotes", "downvotes", "accepted")))
    except PrefkitError as error:
        raise row.error(str(error), "replies") from error
    if not found.pairs:
        raise row.error("no judgement: no two replies have different scores", "replies")
    prompt, texts = user(row.text("post")), [assistant(reply.text("text")) for reply in replies]
    more = {"id": row.name("id"), "extra": row.rest("post", "replies", "id"), **row.place}
    if options.pairs == "all":
        yield Comparison((prompt,), tuple(texts), Ratings(tuple(map(float, found.scores))), **more)
        return
    winner, loser = drawn_pair(found.pairs, options.seed, row.text("post"))
    yield Comparison.pair(prompt, texts[winner], texts[loser], **more)


class RprOptions(Options):
    """Options of `rpr`.

    Args:
        context: which of the fields is the context: "criteria", "scenario" or "category".
        exchanged: response b, not a, is the better one under the contexts `_x`. That a belongs to x is how the set's
            description reads.
    """

    context: Literal["criteria", "scenario", "category"] = "criteria"
    exchanged: bool = False


def _rpr(row: Row, options: RprOptions) -> Iterator[Comparison]:
    prompt = user(row.text("prompt"))
    answers = assistant(row.text("response_a")), assistant(row.text("response_b"))
    used = ("prompt", "response_a", "response_b", "id", *(f"{kind}_{side}" for kind in _CONTEXTS for side in "xy"))
    for side, winner in (("x", A), ("y", B)):
        judgement = winner if not options.exchanged else B if winner is A else A
        yield Comparison(
            (prompt,),
            answers,
            judgement,
            criterion=row.text(f"{options.context}_{side}"),
            id=row.name("id"),
            extra=row.rest(*used),
            **row.place,
        )


_CONTEXTS = ("criteria", "scenario", "category")

SWITCHED_OPENING = "Ask me one question. I will answer it, and you then tell me what you think of my answer."
"""First turn of a conversation in which the assistant is the one who judges."""


def switched(question: str, answer: str) -> tuple[Message, ...]:
    """The turns before a feedback whose giver speaks as the assistant.

    Args:
        question: what was asked.
        answer: what is to be judged.

    Source: Zhang et al. 2024 (FLR, arXiv 2409.13948); the opening is ours.
    """
    return (*user(SWITCHED_OPENING), *assistant(question), *user(answer))


def _feedback(row: Row, options: Options) -> Iterator[Comparison]:
    turns = switched(row.text("question"), row.text("answer"))
    extra = row.rest("question", "answer", "feedback")
    yield Comparison((turns,), (assistant(row.text("feedback")),), Label(True), extra=extra, **row.place)


def _candidates(row: Row, options: Options) -> Iterator[Comparison]:
    given = row.list_of("candidates")
    if len(given) < 2:
        raise row.error(f"at least two candidates are needed, got {len(given)}", "candidates")
    prompt = row.said("prompt")
    texts = [row.as_said(text, f"candidates[{place}]") for place, text in enumerate(given)]
    yield Comparison(
        (prompt,),
        tuple(texts),
        Ratings((0.0,) * len(texts)),
        id=row.name("id"),
        extra=row.rest("prompt", "candidates", "id"),
        **row.place,
    )


def _opinpref(row: Row, options: Options) -> Iterator[Comparison]:
    reviews = row.list_of("reviews")
    sides = [row.inside("summary-pairs").inside(name) for name in ("summary-one", "summary-two")]
    yield Comparison(
        (user("\n".join(str(review) for review in reviews)),),
        tuple(assistant(side.text("summary-text")) for side in sides),
        row.one_of("preference-data", {1: A, 2: B}),
        id=row.name("unique-id"),
        extra={
            **row.rest("reviews", "summary-pairs", "preference-data", "unique-id"),
            "features": [dict(side.inside("summary-score")) for side in sides],
        },
        **row.place,
    )


_QUALITY = ("is-good", "is-sbad", "is-vbad")


def _promptopinsumm(row: Row, options: Options) -> Iterator[Comparison]:
    """All summaries of a product, ranked by the quality that they were written with; those of one quality are ties."""
    reviews, summaries = row.list_of("reviews"), row.objects("summaries")
    ranks = []
    for place, summary in enumerate(summaries):
        marks = [rank for rank, name in enumerate(_QUALITY) if summary.get(name)]
        if len(marks) != 1:
            raise row.error(
                f"a summary is of one quality, {', '.join(_QUALITY)}, got {len(marks)}", f"summaries[{place}]"
            )
        ranks.append(marks[0])
    if len(set(ranks)) < 2:
        raise row.error("no judgement: fewer than two classes of quality", "summaries")
    yield Comparison(
        (user("\n".join(str(review) for review in reviews)),),
        tuple(assistant(summary.text("summary_text")) for summary in summaries),
        ranking(ranks),
        id=row.name("unique-id"),
        extra={
            **row.rest("reviews", "summaries", "unique-id"),
            "features": [dict(summary.inside("score")) for summary in summaries],
        },
        **row.place,
    )


def feedback_example(question: str, answer: str, feedback: str) -> Comparison:
    """Written feedback as a demonstration, with which the objective `sft` teaches a model to give it.

    Raises:
        RecordError: a text is empty.
    """
    for field, text in (("question", question), ("answer", answer), ("feedback", feedback)):
        if not text.strip():
            raise RecordError("must not be empty", field=field)
    return Comparison((switched(question, answer),), (assistant(feedback),), Label(True))


FORMATS = (
    Format(
        "forum",
        "`post`, `replies` list of objects with `text`, `upvotes`, `downvotes`, `accepted`",
        "upvotes - downvotes + 1 if accepted, higher wins; votes that are not there count 0",
        lambda row: has("post", "replies")(row) and is_list(row, "replies"),
        _forum,
        ForumOptions,
    ),
    Format(
        "rpr",
        "`prompt`, `response_a`, `response_b`, `criteria_x`, `criteria_y`",
        "a wins under the context x, b under y: two comparisons a row",
        has("prompt", "response_a", "response_b", "criteria_x", "criteria_y"),
        _rpr,
        RprOptions,
    ),
    Format(
        "written_feedback",
        "`question`, `answer`, `feedback` texts",
        "none: the feedback is to be imitated, with the roles switched",
        has("question", "answer", "feedback"),
        _feedback,
    ),
    Format(
        "opinpref",
        "`reviews` list, `summary-pairs` of `summary-one` and `summary-two`, `preference-data`",
        "1: first, 2: second; scores of the summaries become `features`",
        has("reviews", "summary-pairs", "preference-data"),
        _opinpref,
    ),
    Format(
        "promptopinsumm",
        "`reviews` list, `summaries` with `summary_text`, `score`, `is-good`, `is-sbad`, `is-vbad`",
        "good beats slightly bad beats very bad; within a class ties",
        lambda row: has("reviews", "summaries")(row) and is_list(row, "summaries"),
        _promptopinsumm,
    ),
    Format(
        "candidates",
        "`prompt`, `candidates` list of texts",
        "none: all are equal until they are rewarded",
        lambda row: "prompt" in row and is_list(row, "candidates"),
        _candidates,
    ),
)
