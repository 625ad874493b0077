"""Benchmarks for reward models and judges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prefkit.comparisons.formats.base import Format, has, is_list, is_text
from prefkit.comparisons.formats.training import read_pair
from prefkit.comparisons.record import Comparison, Probability, Ranking, Winner
from prefkit.comparisons.rows import TIE, A, B, Row, as_list, assistant, user
from prefkit.errors import RecordError
from prefkit.options import Options


def _rewardbench(row: Row, options: Options) -> Iterator[Comparison]:
    yield read_pair(row, "prompt", "chosen", "rejected")


def _best_of(row: Row, options: Options) -> Iterator[Comparison]:
    """Every chosen answer beats every rejected one; RM-Bench's places are styles, so all combinations count."""
    chosen, rejected = row.list_of("chosen"), row.list_of("rejected")
    if not chosen or not rejected:
        raise row.error("is an empty list", "rejected" if chosen else "chosen")
    texts = [row.as_said(text, f"chosen[{index}]") for index, text in enumerate(chosen)]
    texts += [row.as_said(text, f"rejected[{index}]") for index, text in enumerate(rejected)]
    prompt = row.said("prompt")
    single = len(chosen) == 1
    yield Comparison(
        (user(prompt) if isinstance(prompt, str) else prompt,),
        tuple(assistant(text) if isinstance(text, str) else text for text in texts),
        Winner(0) if single else Ranking((0,) * len(chosen) + (1,) * len(rejected)),
        criterion=row.name("subset"),
        id=row.name("id"),
        extra=row.rest("prompt", "chosen", "rejected", "subset", "id"),
        **row.place,
    )


def _instruction(row: Row) -> tuple[dict[str, Any], ...]:
    question = row.text("instruction")
    if not row.missing("input"):
        question += "\n\n" + row.text("input")
    return ({"role": "user", "content": question},)


_VOTES = ("annotator1", "annotator2", "annotator3")


def _pandalm(row: Row, options: Options) -> Iterator[Comparison | RecordError]:
    prompt = _instruction(row)
    answers = assistant(row.text("response1")), assistant(row.text("response2"))
    for annotator in _VOTES:
        try:
            vote = row.one_of(annotator, {1: A, 2: B, 0: TIE})
        except RecordError as error:
            yield error
            continue
        yield Comparison(
            (prompt,),
            answers,
            vote,
            annotator=annotator,
            id=row.name("idx") or row.name("id"),
            extra=row.rest("instruction", "input", "response1", "response2", "idx", "id", *_VOTES),
            **row.place,
        )


def _llmbar(row: Row, options: Options) -> Iterator[Comparison]:
    yield Comparison(
        (user(row.text("input")),),
        (assistant(row.text("output_1")), assistant(row.text("output_2"))),
        row.one_of("label", {1: A, 2: B}),
        id=row.name("id"),
        extra=row.rest("input", "output_1", "output_2", "label", "id"),
        **row.place,
    )


def _judgebench(row: Row, options: Options) -> Iterator[Comparison]:
    yield Comparison(
        (user(row.text("question")),),
        (assistant(row.text("response_A")), assistant(row.text("response_B"))),
        row.one_of("label", {"a>b": A, "b>a": B, "a": A, "b": B}),
        id=row.name("pair_id"),
        extra=row.rest("question", "response_A", "response_B", "label", "pair_id"),
        **row.place,
    )


def _alpaca_eval(row: Row, options: Options) -> Iterator[Comparison]:
    if row.missing("preference"):
        raise row.error("no judgement: the judge's answer was not parsed", "preference")
    preference = row.number("preference")
    if preference != 0 and not 1 <= preference <= 2:
        raise row.error(f"must lie in 1 .. 2, or be 0 for a draw, got {preference:g}", "preference")
    # preference - 1 is the probability that the second output wins; 0 is a draw in old files.
    judgement = {0.0: TIE, 1.0: A, 1.5: TIE, 2.0: B}.get(preference) or Probability(2.0 - preference)
    yield Comparison(
        (user(row.text("instruction")),),
        (assistant(row.text("output_1")), assistant(row.text("output_2"))),
        judgement,
        annotator=row.name("annotator_index") or row.name("annotator"),
        extra=row.rest("instruction", "output_1", "output_2", "preference", "annotator_index", "annotator"),
        **row.place,
    )


def _string_lists(row: Mapping[str, Any]) -> bool:
    return "prompt" in row and all(
        (texts := as_list(row.get(side))) is not None and all(isinstance(text, str) for text in texts)
        for side in ("chosen", "rejected")
    )


FORMATS = (
    Format(
        "best_of",
        "`prompt`, `chosen` list of texts, `rejected` list of texts (RewardBench 2, RM-Bench)",
        "every chosen beats every rejected; the chosen are equal",
        lambda row: _string_lists(row) and is_list(row, "chosen", "rejected"),
        _best_of,
    ),
    Format(
        "rewardbench",
        "`prompt`, `chosen`, `rejected`, `subset`, `chosen_model`",
        "chosen wins",
        lambda row: has("prompt", "chosen", "rejected", "subset", "chosen_model")(row) and not _string_lists(row),
        _rewardbench,
    ),
    Format(
        "pandalm",
        "`instruction`, `response1`, `response2`, `annotator1`..`annotator3`",
        "1: first, 2: second, 0: tie, once per annotator",
        has("instruction", "response1", "response2", *_VOTES),
        _pandalm,
    ),
    Format(
        "llmbar",
        "`input`, `output_1`, `output_2`, `label`",
        "1: first, 2: second",
        lambda row: has("input", "output_1", "output_2", "label")(row) and "preference" not in row,
        _llmbar,
    ),
    Format(
        "judgebench",
        "`question`, `response_A`, `response_B`, `label`",
        '"A>B" or "A", "B>A" or "B"',
        lambda row: has("question", "response_A", "response_B", "label")(row) and is_text(row, "label"),
        _judgebench,
    ),
    Format(
        "alpaca_eval",
        "`instruction`, `output_1`, `output_2`, `preference`",
        "preference - 1 is the probability that the second wins; 1.5 and 0: tie",
        has("instruction", "output_1", "output_2", "preference"),
        _alpaca_eval,
    ),
)
