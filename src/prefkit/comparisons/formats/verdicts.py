"""Judges' verdicts that are stored apart from the texts: FastChat and Arena-Hard. Questions and answers are joined."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from prefkit.comparisons.containers import parse_cell, read_rows
from prefkit.comparisons.formats.base import Format, has
from prefkit.comparisons.record import Comparison, Judgement, Message, Ratings
from prefkit.comparisons.rows import TIE, A, B, Row, as_list, assistant, user
from prefkit.errors import OptionError, RecordError
from prefkit.options import Options


class VerdictOptions(Options):
    """Options of the formats that hold verdicts and no texts.

    Args:
        questions: file that gives each `question_id` (or `uid`) its `turns` (or `prompt`).
        answers: files that give, for each `question_id` (or `uid`) and `model_id` (or `model`), the answers of its
            turns in `choices`, or the conversation in `messages`.
        baseline: the model the others are compared with, for Arena-Hard rows that do not name it.
    """

    questions: str | None = None
    answers: tuple[str, ...] = ()
    baseline: str | None = None


Texts = dict[str | tuple[str | None, str | None], list[str]]


@lru_cache(maxsize=4)
def _texts(options: VerdictOptions) -> Texts:
    """Turns by question, and answers by question and model. Held in memory: benchmarks of this kind are small."""
    if options.questions is None or not options.answers:
        raise OptionError(
            "this format holds verdicts and no texts; give the options questions (a file) and answers (files) so that "
            "they can be joined"
        )
    texts: Texts = {}
    for row in _rows(options.questions):
        texts[_question(row) or ""] = [_content(turn) for turn in as_list(row.get("turns")) or [row.text("prompt")]]
    for path in options.answers:
        for row in _rows(path):
            model = row.name("model_id") or row.name("model")
            texts[_question(row), model] = _answer_turns(row)
    return texts


def _rows(path: str) -> Iterator[Row]:
    for number, row in read_rows(Path(path)):
        if isinstance(row, RecordError):
            raise RecordError(row.problem, field=row.field, source=path, line=number)
        yield Row(row, path, number)


def _question(row: Row) -> str | None:
    return row.name("question_id") or row.name("uid")


def _content(turn: Any) -> str:
    """A turn as text: stored as it is, or in `content`, and there perhaps in `answer`."""
    while isinstance(turn, dict):
        turn = turn.get("content", turn.get("answer"))
    return str(turn)


def _answer_turns(row: Row) -> list[str]:
    if "messages" in row:
        return [_content(message) for message in row.list_of("messages") if message.get("role") == "assistant"]
    return [_content(turn) for turn in row.objects("choices")[0].list_of("turns")]


def _sides(row: Row, options: VerdictOptions, models: list[str | None], turn: int) -> dict[str, Any]:
    """Prompts and responses of models in a turn; from the second turn on each model has its own context."""
    texts, question = _texts(options), _question(row)
    asked = texts.get(question or "")
    if asked is None:
        raise row.error(f"question '{question}' is not in {options.questions}", "question_id")
    prompts, responses = [], []
    for model in models:
        said = texts.get((question, model))
        if said is None or len(said) < turn or len(asked) < turn:
            raise row.error(f"no answer of model '{model}' to question '{question}' (turn {turn}) in the answers")
        context: tuple[Message, ...] = ()
        for place in range(turn - 1):
            context = (*context, *user(asked[place]), *assistant(said[place]))
        prompts.append((*context, *user(asked[turn - 1])))
        responses.append(assistant(said[turn - 1]))
    same = all(prompt == prompts[0] for prompt in prompts)
    return {"prompts": tuple(prompts[:1] if same else prompts), "responses": tuple(responses)}


def _judge(row: Row) -> str | None:
    judge = parse_cell(row["judge"]) if isinstance(row.get("judge"), str) else row.get("judge")
    return "/".join(str(part) for part in judge) if isinstance(judge, list | tuple) else row.name("judge")


def _turn(row: Row) -> int:
    return int(row.number("turn")) if not row.missing("turn") else 1


def _pairs(row: Row, options: VerdictOptions) -> Iterator[Comparison]:
    """Both games are stored under the models' names; two different verdicts are a tie."""
    words: dict[str, Judgement | None] = {"model_1": A, "model_2": B, "tie": TIE, "error": None}
    verdicts = [row.one_of(field, words) for field in ("g1_winner", "g2_winner")]
    for field, verdict in zip(("g1_winner", "g2_winner"), verdicts, strict=True):
        if verdict is None:
            raise row.error("no judgement: the judge's answer was not parsed", field)
    yield Comparison(
        **_sides(row, options, [row.name("model_1"), row.name("model_2")], _turn(row)),
        judgement=verdicts[0] if verdicts[0] == verdicts[1] else TIE,
        annotator=_judge(row),
        id=_question(row),
        extra=row.rest("judge", "question_id", "uid", "g1_judgment", "g2_judgment"),
        **row.place,
    )


def _grade_key(row: Row, options: Options) -> Hashable:
    return _question(row), _turn(row), _judge(row)


def _grades(rows: list[Row], options: VerdictOptions) -> Iterator[Comparison | RecordError]:
    graded = []
    for row in rows:
        score = row.number("score")
        if score == -1:
            yield row.error("no judgement: the judge's answer was not parsed", "score")
        elif not 1 <= score <= 10:
            yield row.error(f"must lie in 1 .. 10, or be -1 for no judgement, got {score:g}", "score")
        else:
            graded.append(row)
    if len(graded) < 2:
        raise rows[0].error("no judgement: fewer than two models have a grade for this question", "score")
    yield Comparison(
        **_sides(graded[0], options, [row.name("model") for row in graded], _turn(graded[0])),
        judgement=Ratings(tuple(row.number("score") for row in graded)),
        annotator=_judge(graded[0]),
        id=_question(graded[0]),
        extra={"models": [row.name("model") for row in graded]},
        **graded[0].place,
    )


_GAMES: dict[str, tuple[Judgement, float | None]] = {
    "a>>b": (A, 2.0),
    "a>b": (A, 1.0),
    "a=b": (TIE, None),
    "b>a": (B, 1.0),
    "b>>a": (B, 2.0),
}


def _arena_hard(row: Row, options: VerdictOptions) -> Iterator[Comparison | RecordError]:
    """Scores are not mapped back: in game 1 A is the baseline, in game 2 A is the model."""
    baseline = row.name("baseline") or options.baseline
    if baseline is None:
        raise OptionError("arena_hard: the rows do not name the model they are compared with; give the option baseline")
    model = row.name("model")
    games = as_list(row.need("games")) or []
    for index, game in enumerate(games):
        try:
            if game is None:
                raise row.error("no judgement", f"games[{index}]")
            judgement, strength = row.nested(game, f"games[{index}]").one_of("score", _GAMES)
            yield Comparison(
                **_sides(row, options, [baseline, model] if index == 0 else [model, baseline], 1),
                judgement=judgement,
                strength=strength,
                annotator=_judge(row),
                id=_question(row),
                extra={"model": model, "baseline": baseline, "game": index + 1},
                **row.place,
            )
        except RecordError as error:
            yield error


FORMATS = (
    Format(
        "fastchat_pairs",
        "`model_1`, `model_2`, `g1_winner`, `g2_winner`",
        "model_1, model_2, tie; two different verdicts: tie; error: no judgement",
        has("model_1", "model_2", "g1_winner", "g2_winner"),
        _pairs,
        VerdictOptions,
    ),
    Format(
        "fastchat_grades",
        "`model`, `judgment`, `score`, `turn`",
        "1..10; -1: not parsed",
        has("question_id", "model", "judgment", "score", "turn"),
        _grades,
        VerdictOptions,
        key=_grade_key,
        adjacent=False,
    ),
    Format(
        "arena_hard",
        "`model`, `games` list with `score`",
        '"A>>B" .. "B>>A"; A is the baseline in game 1, the model in game 2',
        lambda row: has("model", "games")(row) and as_list(row["games"]) is not None,
        _arena_hard,
        VerdictOptions,
    ),
)
