"""Steps: labelled ones (PRM800K, Math-Shepherd) and rated solutions (TPO). Text is used as it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from prefkit.comparisons.formats.base import Format, has, is_dict, is_list, is_text
from prefkit.comparisons.formats.training import stepwise
from prefkit.comparisons.record import Comparison, Ratings, StepLabels
from prefkit.comparisons.rows import Row
from prefkit.errors import RecordError
from prefkit.options import Options


class PRM800KOptions(Options):
    """Options of `prm800k`.

    Args:
        unit: "steps" gives the labelled solution as one record; "alternatives" compares the candidates of each step
            that share the steps before.
    """

    unit: Literal["steps", "alternatives"] = "steps"


_JUDGED = {"found_error": True, "solution": True, "bad_problem": False, "give_up": False}


def _chosen(step: Row) -> tuple[str, float | None] | None:
    """The completion with which the solution went on, and its rating."""
    index = step.get("chosen_completion")
    if index is not None:
        completions = step.objects("completions")
        if not isinstance(index, int) or not 0 <= index < len(completions):
            raise step.error(f"must be an index from 0 to {len(completions) - 1}, got {index!r}", "chosen_completion")
        return completions[index].text("text"), _rating(completions[index])
    human = step.get("human_completion")
    if isinstance(human, Mapping):
        return step.inside("human_completion").text("text"), None
    return (human, None) if isinstance(human, str) else None


def _rating(completion: Row) -> float | None:
    return None if completion.missing("rating") else completion.one_of("rating", {-1: -1.0, 0: 0.0, 1: 1.0})


def _prm800k(row: Row, options: PRM800KOptions) -> Iterator[Comparison | RecordError]:
    for flag in ("is_quality_control_question", "is_initial_screening_question"):
        if row.get(flag):
            raise row.error("no judgement: a control or screening question", flag)
    label = row.inside("label")
    if not label.missing("finish_reason") and not label.one_of("finish_reason", _JUDGED):
        raise label.error(f"no judgement: finished with {label['finish_reason']}", "finish_reason")
    problem = row.inside("question").text("problem")
    more: dict[str, Any] = {"annotator": row.name("labeler"), **row.place}
    path: list[str] = []
    ratings: list[float | None] = []
    for step in label.objects("steps"):
        completions = step.objects("completions") if step.get("completions") else []
        rated = [(completion, value) for completion in completions if (value := _rating(completion)) is not None]
        if options.unit == "alternatives" and len(rated) > 1:
            try:
                yield Comparison(
                    ("\n".join([problem, *path]) + "\n",),
                    tuple(completion.text("text") for completion, _ in rated),
                    Ratings(tuple(value for _, value in rated)),
                    **more,
                )
            except RecordError as error:
                yield step.error(error.problem, error.field)
        chosen = _chosen(step)
        if chosen is None:
            # Labelling stopped here: the last step's own candidates end the solution, later steps are unlabelled.
            if len(completions) == 1 and rated:
                path.append(completions[0].text("text"))
                ratings.append(rated[0][1])
            break
        path.append(chosen[0])
        ratings.append(chosen[1])
    if options.unit == "steps":
        if not path:
            raise label.error("no judgement: no step was chosen", "steps")
        parts = tuple(part if index == len(path) - 1 else part + "\n" for index, part in enumerate(path))
        yield Comparison((problem + "\n",), ("".join(parts),), StepLabels(tuple(ratings)), steps=(parts,), **more)


_MARK = "ки"
_STEP = re.compile(r"\bstep\s*1\s*:", re.IGNORECASE)


def _shepherd(row: Row, options: Options) -> Iterator[Comparison]:
    given, labelled = row.text("input"), row.text("label")
    start = _STEP.search(given)
    if start is None:
        raise row.error("has no 'Step 1:', so the question has no clear end", "input")
    pieces = given.split(_MARK)
    values: list[float | None] = []
    position = 0
    for index, piece in enumerate(pieces[:-1]):
        if not labelled.startswith(piece, position):
            raise row.error(f"differs from input before mark {index + 1}", "label")
        position += len(piece)
        # An older revision keeps the mark in front of the sign.
        position += len(kept) if (kept := labelled[position:][: len(_MARK) + 1]) == _MARK + " " else 0
        sign = labelled[position : position + 1]
        if sign not in ("+", "-"):
            raise row.error(f"must be '+' or '-' at mark {index + 1}, got {sign!r}", "label")
        values.append(1.0 if sign == "+" else -1.0)
        position += 1
    steps = [piece.strip() for piece in (pieces[0][start.start() :], *pieces[1:-1])]
    if not values or not all(steps):
        raise row.error("has a mark without a step before it, or no mark at all", "input")
    yield stepwise(row, given[: start.start()].rstrip(), steps, values, "\n")


class TreeListOptions(Options):
    """Options of `tpo`.

    Args:
        separator: what joins the prompt and the steps; the file does not store it.
    """

    separator: str = "\n"


def _tree_list(row: Row, options: TreeListOptions) -> Iterator[Comparison | RecordError]:
    prompt, found = row.text("prompt"), []
    for solution in row.objects("response_list"):
        try:
            steps = [solution.nested({"step": step}, f"response[{n}]").text("step") for n, step in _numbered(solution)]
            parts = (*(step + options.separator for step in steps[:-1]), steps[-1])
            found.append((parts, solution.number("score")))
        except RecordError as error:
            # A solution that the judge did not rate is left out, the others stand.
            yield error
    yield Comparison(
        (prompt + options.separator,),
        tuple("".join(parts) for parts, _ in found),
        Ratings(tuple(value for _, value in found)),
        steps=tuple(parts for parts, _ in found),
        extra=row.rest("prompt", "response_list"),
        **row.place,
    )


def _numbered(solution: Row) -> list[tuple[int, Any]]:
    steps = solution.list_of("response")
    if not steps:
        raise solution.error("has no steps", "response")
    return list(enumerate(steps))


FORMATS = (
    Format(
        "tpo",
        "`prompt`, `response_list` of objects with `response` (a list of steps) and `score`",
        "scores, higher is better",
        lambda row: has("prompt", "response_list")(row) and is_list(row, "response_list"),
        _tree_list,
        TreeListOptions,
    ),
    Format(
        "prm800k",
        "`question.problem`, `label.steps`",
        "-1 wrong, 0 neutral, 1 right, null not judged",
        lambda row: is_dict(row, "question", "label") and "problem" in row["question"] and "steps" in row["label"],
        _prm800k,
        PRM800KOptions,
    ),
    Format(
        "math_shepherd",
        f"`input` with {_MARK} marks, `label`, `task`",
        '"+" right, "-" wrong, at each mark',
        lambda row: has("input", "label", "task")(row) and is_text(row, "input", "label") and _MARK in row["input"],
        _shepherd,
    ),
)
