"""Exports of annotation tools. What an answer means lies in the settings of the tool, so options are required."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from pydantic import Field

from prefkit.comparisons.containers import parse_cell
from prefkit.comparisons.formats.base import Format, is_dict, is_list
from prefkit.comparisons.record import Comparison, Judgement, Label, Ratings, Winner
from prefkit.comparisons.rows import BOTH_BAD, TIE, Row, as_list, as_name, assistant, ranking, user
from prefkit.errors import OptionError, RecordError
from prefkit.options import Options

_TIES = {"tie": TIE, "both_bad": BOTH_BAD}


# --- Argilla


class ArgillaOptions(Options):
    """Options of `argilla2`, `argilla2_flat` and `argilla1`; the export does not hold the settings they come from.

    Args:
        question: the question whose answers are read.
        prompt: the field that holds the prompt; None where the records have none.
        responses: the fields that hold the responses, in order.
        values: what an answer stands for, where it is not the name of a field: a field, "tie" or "both_bad"; for a
            single response "good" or "bad".
        ratings: instead of one question, which response field each rating question rates.
        status: answers with this status count.
    """

    question: str | None = None
    prompt: str | None = None
    responses: tuple[str, ...] = ()
    values: Mapping[str, str] = Field(default_factory=dict)
    ratings: Mapping[str, str] = Field(default_factory=dict)
    status: str = "submitted"


Answers: TypeAlias = list[tuple[Any, str | None]]
"""What was answered to a question, and by whom."""


def _argilla(
    row: Row, fields: Row, answers_to: Callable[[str], Answers], options: ArgillaOptions, questions: list[str]
) -> Iterator[Comparison | RecordError]:
    """One comparison an answer. Suggestions are model output and are not read."""
    if not options.ratings and (options.question is None or not options.responses):
        raise OptionError(
            "argilla: the export does not say which field an answer stands for; give the options question (one of: "
            f"{', '.join(questions) or 'none found'}), responses (field names in order), prompt, and values where the "
            "answers are not field names; or ratings (question: field)"
        )
    names = tuple(options.ratings.values()) or options.responses
    answers = _ratings(answers_to, options) if options.ratings else answers_to(str(options.question))
    if not answers:
        raise row.error(f"no judgement: no {options.status} answer", options.question)
    prompt = fields.said(options.prompt) if options.prompt is not None else ""
    texts = [fields.said(name) for name in names]
    prompts = ((user(prompt) if isinstance(prompt, str) and prompt else prompt),)
    responses = tuple(assistant(text) if isinstance(text, str) else text for text in texts)
    more: dict[str, Any] = {"id": row.name("id") or row.name("external_id"), **row.place}
    for value, annotator in answers:
        try:
            judgement = value if isinstance(value, Ratings) else _argilla_answer(row, value, options)
            yield Comparison(prompts, responses, judgement, annotator=annotator, **more)
        except RecordError as error:
            yield error


def _ratings(answers_to: Callable[[str], Answers], options: ArgillaOptions) -> Answers:
    """The ratings of everybody who rated all responses."""
    columns = [{who: value for value, who in answers_to(question)} for question in options.ratings]
    everywhere = [who for who in columns[0] if all(who in column for column in columns)]
    return [(Ratings(tuple(float(column[who]) for column in columns)), who) for who in everywhere]


def _argilla_answer(row: Row, value: Any, options: ArgillaOptions) -> Judgement:
    if isinstance(value, str):
        value = parse_cell(value)
    count = len(options.responses)
    if isinstance(value, Mapping) and "rank" in value:
        value = [{"value": name, "rank": rank} for name, rank in zip(value["value"], value["rank"], strict=True)]
    if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        ranks: dict[int, float] = {}
        for item in value:
            if item.get("rank") is None:
                raise row.error("no judgement: the ranking is not finished", options.question)
            place = _place(row, item.get("value"), options)
            if not isinstance(place, int) or place in ranks:
                raise row.error(f"'{item.get('value')}' must be one response, ranked once", options.question)
            ranks[place] = float(item["rank"])
        if len(ranks) != count:
            raise row.error(f"{len(ranks)} of {count} responses are ranked", options.question)
        return ranking([ranks[index] for index in range(count)])
    if count == 1:
        meaning = options.values.get(str(value), str(value))
        if meaning not in ("good", "bad"):
            raise row.error(
                f"the answer {value!r} to a single response must stand for 'good' or 'bad'; see the option values",
                options.question,
            )
        return Label(meaning == "good")
    place = _place(row, value[0] if isinstance(value, list | tuple) and len(value) == 1 else value, options)
    return Winner(place) if isinstance(place, int) else place


def _place(row: Row, value: Any, options: ArgillaOptions) -> int | Judgement:
    meaning = options.values.get(str(value), str(value))
    if meaning in options.responses:
        return options.responses.index(meaning)
    if meaning in _TIES and len(options.responses) == 2:
        return _TIES[meaning]
    raise row.error(
        f"the answer {value!r} is not the name of a response field; say in the option values what it stands for",
        options.question,
    )


def _argilla2(row: Row, options: ArgillaOptions) -> Iterator[Comparison | RecordError]:
    responses = row.inside("responses")

    def answers_to(question: str) -> Answers:
        return [
            (answer.need("value"), answer.name("user_id"))
            for answer in (responses.objects(question) if responses.get(question) else [])
            if answer.get("status", options.status) == options.status
        ]

    yield from _argilla(row, row.inside("fields"), answers_to, options, list(responses))


def _argilla2_flat(row: Row, options: ArgillaOptions) -> Iterator[Comparison | RecordError]:
    def answers_to(question: str) -> Answers:
        values = as_list(row.get(f"{question}.responses")) or []
        users = as_list(row.get(f"{question}.responses.users")) or [None] * len(values)
        states = as_list(row.get(f"{question}.responses.status")) or [options.status] * len(values)
        if not len(values) == len(users) == len(states):
            raise row.error("responses, users and status must be lists of one length", f"{question}.responses")
        return [
            (value, None if who is None else as_name(who))
            for value, who, state in zip(values, users, states, strict=True)
            if state == options.status
        ]

    questions = [name.removesuffix(".responses") for name in row if name.endswith(".responses")]
    yield from _argilla(row, row, answers_to, options, questions)


def _argilla1(row: Row, options: ArgillaOptions) -> Iterator[Comparison | RecordError]:
    def answers_to(question: str) -> Answers:
        return [
            (answer.need("value"), answer.name("user_id"))
            for answer in (row.objects(question) if row.get(question) else [])
            if answer.get("status") == options.status
        ]

    yield from _argilla(row, row, answers_to, options, [name for name in row if _is_answers(row[name])])


def _is_answers(value: Any) -> bool:
    answers = as_list(value)
    return bool(answers) and all(
        isinstance(answer, Mapping) and {"user_id", "value", "status"} <= set(answer) for answer in answers or []
    )


# --- Label Studio


class LabelStudioOptions(Options):
    """Options of `label_studio`; the labelling configuration that holds them is not part of an export.

    Args:
        prompt: the task field that holds the prompt; None where the tasks have none.
        left: the task field shown on the left (the first name in `toName`), for pairwise controls.
        right: the task field shown on the right.
        choices: what the choices of a control stand for: "left", "right", "tie" or "both_bad".
        ratings: which task field each rating control rates.
        items: the task field with the list of ranked items (`id` and `text`, `body` or `title`).
        bucket: the bucket of a ranker whose order is read; None where there is only one.
        control: the control whose result is read; None where there is only one.
    """

    prompt: str | None = None
    left: str | None = None
    right: str | None = None
    choices: Mapping[str, str] = Field(default_factory=dict)
    ratings: Mapping[str, str] = Field(default_factory=dict)
    items: str | None = None
    bucket: str | None = None
    control: str | None = None


def _label_studio(row: Row, options: LabelStudioOptions) -> Iterator[Comparison | RecordError]:
    data = row.inside("data")
    if not options.ratings and options.items is None and (options.left is None or options.right is None):
        raise OptionError(
            "label_studio: left and right are names in the labelling configuration, which the export does not hold; "
            f"give the options left and right (of the task fields: {', '.join(data)}), or ratings (control: field), "
            "or items (the field with the ranked list), and prompt"
        )
    annotations = row.objects("annotations")
    done = [
        annotation for annotation in annotations if not annotation.get("was_cancelled") and annotation.get("result")
    ]
    if not done:
        raise row.error("no judgement: every annotation is cancelled or empty", "annotations")
    for annotation in done:
        try:
            yield _annotation(row, data, annotation, options)
        except RecordError as error:
            yield error


def _annotation(row: Row, data: Row, annotation: Row, options: LabelStudioOptions) -> Comparison:
    prompt = "" if options.prompt is None else data.said(options.prompt)
    results = [
        result
        for result in annotation.objects("result")
        if options.control is None or result.get("from_name") == options.control
    ]
    judgement: Judgement
    if options.ratings:
        fields = list(options.ratings.values())
        scores = {
            options.ratings[result["from_name"]]: result.inside("value").number("rating")
            for result in results
            if result.get("from_name") in options.ratings
        }
        if absent := [field for field in fields if field not in scores]:
            raise annotation.error(f"no rating of '{absent[0]}'", "result")
        judgement = Ratings(tuple(scores[field] for field in fields))
        texts = [data.said(field) for field in fields]
    elif options.items is not None:
        judgement, texts = _ranked_items(data, annotation, results, options.items, options.bucket)
    else:
        judgement = _selected(annotation, results, options)
        texts = [data.said(str(options.left)), data.said(str(options.right))]
    return Comparison(
        (user(prompt) if isinstance(prompt, str) and prompt else prompt,),
        tuple(assistant(text) if isinstance(text, str) else text for text in texts),
        judgement,
        annotator=_who(annotation),
        id=row.name("id"),
        extra=data.rest(*(name for name in (options.prompt, options.left, options.right, options.items) if name)),
        **row.place,
    )


def _who(annotation: Row) -> str | None:
    who = annotation.get("completed_by")
    return as_name(who.get("id", who.get("email"))) if isinstance(who, Mapping) else annotation.name("completed_by")


def _selected(annotation: Row, results: list[Row], options: LabelStudioOptions) -> Judgement:
    words = {"left": Winner(0), "right": Winner(1), **_TIES}
    said: list[Judgement] = []
    for result in results:
        value = result.inside("value")
        if "selected" in value:
            said.append(value.one_of("selected", {"left": Winner(0), "right": Winner(1)}))
        for choice in as_list(value.get("choices")) or []:
            if choice not in options.choices:
                raise result.error(
                    f"unknown choice {choice!r}; say in the option choices whether it is left, right, tie or both_bad",
                    "value.choices",
                )
            said.append(value.nested({"choice": options.choices[choice]}, "choices").one_of("choice", words))
    # A separate choices control says "tie" where the pairwise control cannot.
    ties = [judgement for judgement in said if judgement in (TIE, BOTH_BAD)]
    if not said:
        raise annotation.error("no judgement: no pairwise or choices result", "result")
    verdicts = ties or said
    if any(verdict != verdicts[0] for verdict in verdicts):
        raise annotation.error("the results contradict each other; name one control with the option control", "result")
    return verdicts[0]


def _ranked_items(
    data: Row, annotation: Row, results: list[Row], field: str, bucket: str | None
) -> tuple[Judgement, list[Any]]:
    items = {
        item.name("id"): item.said(next((name for name in ("text", "body", "title") if name in item), "text"))
        for item in data.objects(field)
    }
    rankers = [result.inside("value").inside("ranker") for result in results if "ranker" in result.inside("value")]
    if len(rankers) != 1:
        raise annotation.error(
            f"needs one ranker result, got {len(rankers)}; name it with the option control", "result"
        )
    buckets = rankers[0]
    if bucket is None and len(buckets) != 1:
        raise annotation.error(
            f"the ranker has the buckets {', '.join(buckets)}; name one with the option bucket", "result"
        )
    order = [as_name(item) for item in buckets.list_of(bucket or next(iter(buckets)))]
    if len(set(order)) != len(order):
        raise annotation.error(f"the ranking repeats an item: {order}", "result")
    if absent := [item for item in order if item not in items]:
        raise annotation.error(f"the ranking holds '{absent[0]}', which is not in '{field}'", "result")
    return ranking(list(range(len(order)))), [items[item] for item in order]


def _short_form(row: Mapping[str, Any]) -> bool:
    return "annotation_id" in row and "annotator" in row and "lead_time" in row


def _label_studio_short(row: Row, options: LabelStudioOptions) -> Iterator[Comparison]:
    if options.control is None or options.left is None or options.right is None:
        raise OptionError(
            "label_studio_short: the export does not say what left and right are; give the options control (the column "
            f"with the answers), left, right and prompt (of the columns: {', '.join(row)})"
        )
    answer = row.text(options.control)
    words = {"left": Winner(0), "right": Winner(1), **_TIES}
    meaning = Row({options.control: options.choices.get(answer, answer)}, row.source, row.line)
    prompt = "" if options.prompt is None else row.said(options.prompt)
    texts = [row.said(options.left), row.said(options.right)]
    yield Comparison(
        (user(prompt) if isinstance(prompt, str) and prompt else prompt,),
        tuple(assistant(text) if isinstance(text, str) else text for text in texts),
        meaning.one_of(options.control, words),
        annotator=row.name("annotator"),
        id=row.name("annotation_id"),
        **row.place,
    )


FORMATS = (
    Format(
        "label_studio",
        "`data` object, `annotations` list with `result`",
        "left or right, choices, ratings or a ranking; **options required**",
        lambda row: is_dict(row, "data") and is_list(row, "annotations"),
        _label_studio,
        LabelStudioOptions,
        context=False,
    ),
    Format(
        "label_studio_short",
        "`annotation_id`, `annotator`, `lead_time` and the control's column",
        "left or right, or choices; **options required**",
        _short_form,
        _label_studio_short,
        LabelStudioOptions,
        context=False,
    ),
    Format(
        "argilla2",
        "`fields`, `responses` and `suggestions` objects",
        "rankings with ties, labels; **options required**",
        lambda row: is_dict(row, "fields", "responses"),
        _argilla2,
        ArgillaOptions,
        context=False,
    ),
    Format(
        "argilla2_flat",
        "columns ending in `.responses` and `.responses.users`",
        "rankings with ties, labels; **options required**",
        lambda row: any(f"{name}.users" in row for name in row if name.endswith(".responses")),
        _argilla2_flat,
        ArgillaOptions,
        context=False,
    ),
    Format(
        "argilla1",
        "a list column whose items hold `user_id`, `value`, `status`",
        "rankings with ties, labels; **options required**",
        lambda row: any(_is_answers(value) for value in row.values()),
        _argilla1,
        ArgillaOptions,
        context=False,
    ),
)
