"""Files of any layout: the canonical form, and a mapping from prefkit's names to a file's columns."""

from __future__ import annotations

import string
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from prefkit.comparisons.canonical import from_dict
from prefkit.comparisons.formats.base import Format, is_dict, is_list
from prefkit.comparisons.prompts import split_pair
from prefkit.comparisons.record import (
    Comparison,
    Judgement,
    Label,
    Probability,
    Ranking,
    Ratings,
    Text,
    Winner,
    ranks_from_order,
)
from prefkit.comparisons.rows import BOTH_BAD, TIE, A, B, Row, as_name, assistant, ranking, user
from prefkit.errors import OptionError, RecordError, unknown
from prefkit.options import Options


def _canonical(row: Row, options: Options) -> Iterator[Comparison]:
    # The file it is read from is where it stands now; where it came from is the file's business.
    try:
        yield from_dict({**row, "source": row.get("source", row.source), "line": row.get("line", row.line)})
    except RecordError as error:
        raise row.error(error.problem, error.field) from None


TARGETS = {
    "prompt": "the context; a column, or a template such as 'Title: {title}\\n{post}'",
    "chosen": "the better response",
    "rejected": "the worse response",
    "response_a": "the first of two responses",
    "response_b": "the second of two responses",
    "responses": "a list of responses",
    "response": "a single response",
    "winner": "a word or number (see the option `outcomes`), or an index into `responses`",
    "probability": "the probability that the first of two responses wins",
    "rating_a": "the rating of the first response, higher is better",
    "rating_b": "the rating of the second response",
    "ratings": "a list of ratings, higher is better",
    "ranks": "a list of ranks, lower is better, equal ranks tie",
    "order": "a list of indices, best first",
    "rating": "the rating of a single response; rows with one prompt, annotator and criterion are compared",
    "label": "true where a single response is good",
    "annotator": "who judged",
    "criterion": "what was judged",
    "rationale": "why",
    "strength": "how strongly, at least 0",
    "weight": "importance, at least 0",
    "id": "the record's name",
}


class ColumnOptions(Options):
    """Options of `columns`, the reader for files of any layout.

    Args:
        outcomes: what the words or numbers of `winner` stand for: "a", "b", "tie" or "both_bad".
        good: the values of `label` that mean good; all others must be in `bad`.
        bad: the values of `label` that mean bad.
        grouping: rows of single ratings that are compared "adjacent" to one another (one group in memory) or anywhere
            in the "file" (the file in memory).
    """

    outcomes: Mapping[str, Literal["a", "b", "tie", "both_bad"]] = {
        "a": "a",
        "b": "b",
        "tie": "tie",
        "both_bad": "both_bad",
    }
    good: tuple[str, ...] = ("true",)
    bad: tuple[str, ...] = ("false",)
    grouping: Literal["adjacent", "file"] = "adjacent"
    columns: Mapping[str, str] = Field(default_factory=dict, exclude=True)


_MEANINGS: dict[str, Judgement] = {"a": A, "b": B, "tie": TIE, "both_bad": BOTH_BAD}
_META = ("annotator", "criterion", "rationale", "id")
_SHAPES = (
    ("chosen", "rejected"),
    ("response_a", "response_b"),
    ("responses",),
    ("response", "rating"),
    ("response", "label"),
)


def check_columns(columns: Mapping[str, str]) -> None:
    """Whether a mapping is complete.

    Raises:
        OptionError: it has unknown names, or does not say what the responses or the outcome are.
    """
    for name in columns:
        if name not in TARGETS:
            raise OptionError(f"columns: {unknown('name', name, TARGETS)}")
    shape = next((shape for shape in _SHAPES if all(name in columns for name in shape)), None)
    if shape is None:
        wanted = "; ".join(" and ".join(names) for names in _SHAPES)
        raise OptionError(f"columns: say which columns hold the responses ({wanted}); got {', '.join(columns)}")
    outcomes = {
        "response_a": ("winner", "probability", "rating_a"),
        "responses": ("winner", "ratings", "ranks", "order"),
    }.get(shape[0])
    if outcomes and sum(name in columns for name in outcomes) != 1:
        raise OptionError(f"columns: say where the outcome is, with one of {', '.join(outcomes)}")
    if ("rating_a" in columns) != ("rating_b" in columns):
        raise OptionError("columns: rating_a and rating_b belong together")
    if "prompt" not in columns and shape != ("chosen", "rejected"):
        raise OptionError(
            "columns: say which column holds the prompt (only chosen and rejected may hold it themselves)"
        )


def _fill(row: Row, template: str) -> str | None:
    """A template's text; None where it has no fields, so that it is a column's name."""
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    if not fields or template in row:
        return None
    return template.format_map({name: as_name(row.need(name)) for name in fields})


def _said(row: Row, columns: Mapping[str, str], target: str) -> Text:
    filled = _fill(row, columns[target])
    return row.said(columns[target]) if filled is None else filled


def _used(columns: Mapping[str, str]) -> list[str]:
    return list(columns.values())


def _more(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    more: dict[str, Any] = {name: row.name(columns[name]) for name in _META if name in columns}
    for name in ("strength", "weight"):
        if name in columns and not row.missing(columns[name]):
            more[name] = row.number(columns[name])
    return {**more, "extra": row.rest(*_used(columns)), **row.place}


def _mapped(row: Row, options: ColumnOptions) -> Iterator[Comparison]:
    columns = options.columns
    more = _more(row, columns)
    if "chosen" in columns:
        prompt = _said(row, columns, "prompt") if "prompt" in columns else None
        names = columns["chosen"], columns["rejected"]
        prompts, responses = split_pair(row, prompt, row.said(names[0]), row.said(names[1]), names)
        yield Comparison(prompts, responses, A, **more)
        return
    prompt = _said(row, columns, "prompt")
    if "label" in columns:
        words = {_word(word): True for word in options.good} | {_word(word): False for word in options.bad}
        texts: list[Text] = [_said(row, columns, "response")]
        judgement: Judgement = Label(row.one_of(columns["label"], words))
    elif "response_a" in columns:
        texts = [_said(row, columns, "response_a"), _said(row, columns, "response_b")]
        judgement = _of_two(row, columns, options)
    else:
        given = row.list_of(columns["responses"])
        texts = [row.as_said(text, f"{columns['responses']}[{index}]") for index, text in enumerate(given)]
        judgement = _of_many(row, columns, len(texts))
    yield Comparison(*_together(prompt, texts), judgement, **more)


def _word(word: str) -> Any:
    """An outcome as the option names it: words in lower case, numbers as numbers."""
    try:
        return float(word)
    except ValueError:
        return word.strip().lower()


def _together(prompt: Text, texts: list[Text]) -> tuple[tuple[Text, ...], tuple[Text, ...]]:
    """Text as it stands where all is text; messages where anything is."""
    if isinstance(prompt, str) and all(isinstance(text, str) for text in texts):
        return (prompt,), tuple(texts)
    return (
        (user(prompt) if isinstance(prompt, str) else prompt,),
        tuple(assistant(text) if isinstance(text, str) else text for text in texts),
    )


def _of_two(row: Row, columns: Mapping[str, str], options: ColumnOptions) -> Judgement:
    if "winner" in columns:
        words = {_word(word): _MEANINGS[meaning] for word, meaning in options.outcomes.items()}
        judgement: Judgement = row.one_of(columns["winner"], words)
        return judgement
    if "probability" in columns:
        return Probability(_judged(row, columns["probability"]))
    return Ratings((_judged(row, columns["rating_a"]), _judged(row, columns["rating_b"])))


def _judged(row: Row, column: str) -> float:
    if row.get(column) is None or (isinstance(row[column], str) and row.missing(column)):
        raise row.error("no judgement", column)
    return row.number(column)


def _of_many(row: Row, columns: Mapping[str, str], count: int) -> Judgement:
    if "winner" in columns:
        return Winner(int(_judged(row, columns["winner"])))
    name = next(name for name in ("ratings", "ranks", "order") if name in columns)
    values = row.list_of(columns[name])
    numbered = Row({str(index): value for index, value in enumerate(values)}, row.source, row.line, f"{columns[name]}.")
    numbers = [numbered.number(index) for index in numbered]
    if name == "ratings":
        return Ratings(tuple(numbers))
    if name == "ranks":
        if len(numbers) != count:
            raise row.error(f"{len(numbers)} ranks for {count} responses", columns[name])
        return ranking(numbers)
    try:
        return Ranking(ranks_from_order([int(number) for number in numbers], count))
    except RecordError as error:
        raise row.error(error.problem, columns[name]) from None


def _group_key(row: Row, options: ColumnOptions) -> Hashable:
    columns = options.columns
    who = tuple(row.name(columns[name]) for name in ("annotator", "criterion") if name in columns)
    return (str(_said(row, columns, "prompt")), *who)


def _grouped(rows: list[Row], options: ColumnOptions) -> Iterator[Comparison | RecordError]:
    columns, rated = options.columns, []
    for row in rows:
        try:
            rated.append((_said(row, columns, "response"), _judged(row, columns["rating"])))
        except RecordError as error:
            yield error
    if len(rated) < 2:
        raise rows[0].error(
            "no judgement: the only rated response to its prompt; rows that are compared must be adjacent, or the "
            "option grouping must be 'file'"
        )
    prompts, responses = _together(_said(rows[0], columns, "prompt"), [text for text, _ in rated])
    more = _more(rows[0], columns)
    more["extra"] = (
        {name: [row.get(name) for row in rows] for name in rows[0] if name not in _used(columns)}
        if len(rated) == len(rows)
        else {}
    )
    yield Comparison(prompts, responses, Ratings(tuple(value for _, value in rated)), **more)


def _never(row: Mapping[str, Any]) -> bool:
    """A mapping is named, never detected."""
    return False


PREFKIT = Format(
    "prefkit",
    "`prompt` or `prompts`, `responses` list, `judgement` object",
    "the canonical form, see below",
    lambda row: is_list(row, "responses") and is_dict(row, "judgement"),
    _canonical,
)
COLUMNS = Format(
    "columns", "any, named by `columns`; never detected", "as mapped", _never, _mapped, ColumnOptions, specific=False
)
GROUPED = Format(
    "columns",
    "`response` and `rating` named by `columns`",
    "higher is better",
    _never,
    _grouped,
    ColumnOptions,
    key=_group_key,
    specific=False,
)
