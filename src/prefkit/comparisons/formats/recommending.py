"""Interactions of users with items, and conversations that recommend. Ids are labels and stay text.

A prompt is a user's id and a response an item's id, both as text; in a conversation the prompt is the conversation.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Literal

from prefkit.comparisons.containers import parse_cell
from prefkit.comparisons.formats.base import Format, has
from prefkit.comparisons.record import Comparison, Label, Ratings
from prefkit.comparisons.rows import A, Row, as_name
from prefkit.errors import OptionError, RecordError
from prefkit.options import Options


class InteractionOptions(Options):
    """Options of `interactions`.

    Args:
        rule: how judgements are derived. "ratings": one comparison a user of all items the user rated (pairs then take
            a smallest gap through `min_margin`); "threshold": one label an interaction, good from `threshold` on;
            "observed": each observed item against `negatives` items that the user was not seen with, which does not
            mean that they are disliked. Needed where the file has no ratings.
        threshold: the smallest good rating (or play count).
        negatives: unobserved items an observed one.
        seed: of the sampled items.
    """

    rule: Literal["ratings", "threshold", "observed"] | None = None
    threshold: float | None = None
    negatives: int = 1
    seed: int = 0


_USER = ("userId", "userID", "user_id", "user_id:token", "user")
_ITEM = ("movieId", "artistID", "artist_id", "item_id", "item_id:token", "item")
_RATING = ("rating", "rating:float")
_WEIGHT = ("weight", "plays", "count", "weight:float")
_TIME = ("timestamp", "timestamp:float", "time")


def _column(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in row), None)


def _id(row: Row, names: tuple[str, ...]) -> str:
    column = _column(row, names)
    name = None if column is None else row.name(column)
    if name is None:
        raise row.error("is missing", column or names[0])
    return name


def _key(row: Row, options: InteractionOptions) -> Hashable:
    # Unobserved items are known only when the whole file is.
    return "all" if options.rule == "observed" else _id(row, _USER)


def _interactions(rows: list[Row], options: InteractionOptions) -> Iterator[Comparison | RecordError]:
    rating, weight = _column(rows[0], _RATING), _column(rows[0], _WEIGHT)
    value, rule = rating or weight, options.rule or ("ratings" if rating else None)
    if rule is None or (rule != "observed" and value is None):
        raise OptionError(
            "interactions: play counts and presence are not ratings; give the option rule: 'observed' (against sampled "
            "unobserved items)" + (", 'threshold' or 'ratings' (counts as they are)" if value else "")
        )
    if rule == "observed":
        yield from _observed(rows, options)
    elif rule == "threshold":
        if options.threshold is None:
            raise OptionError(
                "interactions: the rule 'threshold' needs the option threshold (the smallest good rating)"
            )
        for row in rows:
            try:
                good = row.number(str(value)) >= options.threshold
                who, item = _id(row, _USER), _id(row, _ITEM)
                yield Comparison((who,), (item,), Label(good), annotator=who, extra=_when(row), **row.place)
            except RecordError as error:
                yield error
    else:
        yield from _rated(rows, str(value))


def _when(row: Row) -> dict[str, Any]:
    column = _column(row, _TIME)
    return {} if column is None else {"time": row.number(column)}


def _rated(rows: list[Row], value: str) -> Iterator[Comparison | RecordError]:
    """A user's last rating of each item; rows may repeat."""
    last: dict[str, tuple[float, float | None]] = {}
    for row in rows:
        try:
            last[_id(row, _ITEM)] = row.number(value), _when(row).get("time")
        except RecordError as error:
            yield error
    who = _id(rows[0], _USER)
    if len(last) < 2:
        raise rows[0].error(f"no judgement: user '{who}' rated fewer than two items")
    times = [time for _, time in last.values()]
    yield Comparison(
        (who,),
        tuple(last),
        Ratings(tuple(rating for rating, _ in last.values())),
        annotator=who,
        extra={} if None in times else {"times": times},
        **rows[0].place,
    )


def _observed(rows: list[Row], options: InteractionOptions) -> Iterator[Comparison]:
    seen: dict[str, dict[str, Row]] = {}
    for row in rows:
        seen.setdefault(_id(row, _USER), {})[_id(row, _ITEM)] = row
    items = sorted({item for own in seen.values() for item in own})
    generator = random.Random(options.seed)
    for who, own in seen.items():
        if len(own) == len(items):
            continue
        for item, row in own.items():
            for _ in range(options.negatives):
                while (other := generator.choice(items)) in own:
                    pass
                yield Comparison((who,), (item, other), A, annotator=who, extra=_when(row), **row.place)


# --- ReDial


def _redial(row: Row, options: Options) -> Iterator[Comparison | RecordError]:
    """One label a film and worker; "not said" is no judgement. The two workers can disagree."""
    seeker = row.need("initiatorWorkerId")
    conversation = tuple(
        {
            "role": "user" if message.need("senderWorkerId") == seeker else "assistant",
            "content": str(message.need("text")),
        }
        for message in row.objects("messages")
    )
    titles = parse_cell(row["movieMentions"]) if isinstance(row["movieMentions"], str) else row["movieMentions"]
    told = False
    for column, worker in (("initiatorQuestions", "initiatorWorkerId"), ("respondentQuestions", "respondentWorkerId")):
        # An empty answer sheet is [] instead of {}.
        for film, answer in (row.inside(column) if row.get(column) else {}).items():
            form = row.nested(answer, f"{column}.{film}")
            liked = form.one_of("liked", {0: False, 1: True, 2: None})
            if liked is None:
                continue
            told = True
            title = titles.get(film) if isinstance(titles, Mapping) else None
            yield Comparison(
                (conversation,),
                (title or f"@{film}",),
                Label(liked),
                annotator=None if row.get(worker) is None else as_name(row[worker]),
                criterion="liked",
                id=row.name("conversationId"),
                extra={"film": film, "asked": column, **form.rest("liked")},
                **row.place,
            )
    if not told:
        raise row.error("no judgement: nobody said which films they liked", "initiatorQuestions")


FORMATS = (
    Format(
        "redial",
        "`messages`, `movieMentions`, `initiatorQuestions`",
        "liked 0 no, 1 yes, 2 not said",
        has("messages", "movieMentions", "initiatorQuestions"),
        _redial,
    ),
    Format(
        "interactions",
        "a user column, an item column, and a rating, a weight or nothing (MovieLens, Last.fm, RecBole)",
        "higher is better; a weight or presence needs a **rule**",
        lambda row: _column(row, _USER) is not None and _column(row, _ITEM) is not None,
        _interactions,
        InteractionOptions,
        key=_key,
        adjacent=False,
    ),
)
