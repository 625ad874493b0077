"""The canonical form of a comparison as a JSON object, and the forms that other trainers read.

`from_dict(to_dict(comparison)) == comparison` for every field. JSON has no bytes (images): they become base64.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from prefkit.comparisons.pairing import Strategy, labels, pairs
from prefkit.comparisons.prompts import turns_shared
from prefkit.comparisons.record import (
    Comparison,
    Judgement,
    Label,
    Probability,
    Ranking,
    Ratings,
    StepLabels,
    Text,
    Winner,
    ranks_from_order,
)
from prefkit.comparisons.rows import assistant, user
from prefkit.errors import OptionError, RecordError, unknown

Target: TypeAlias = Literal["prefkit", "trl_preference", "trl_unpaired"]
"""What `convert` writes: the canonical form, which loses nothing, or the columns of TRL's trainers."""

_BYTES = "base64"
_SCALARS = ("annotator", "criterion", "rationale", "strength", "id", "source", "line")


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """The canonical JSON object of a comparison; fields that say nothing are left out."""
    prompts = [_plain(prompt) for prompt in comparison.prompts]
    row: dict[str, Any] = {"prompts": prompts} if comparison.joint else {"prompt": prompts[0]}
    row["responses"] = [_plain(response) for response in comparison.responses]
    row["judgement"] = _judgement(comparison.judgement)
    if comparison.steps is not None:
        row["steps"] = [None if steps is None else list(steps) for steps in comparison.steps]
    row |= {name: value for name in _SCALARS if (value := getattr(comparison, name)) is not None}
    if comparison.weight != 1.0:
        row["weight"] = comparison.weight
    if comparison.extra:
        row["extra"] = _plain(comparison.extra)
    return row


def from_dict(row: Mapping[str, Any]) -> Comparison:
    """The comparison of a canonical JSON object.

    Raises:
        RecordError: a field is missing, unknown, or of the wrong kind.
    """
    known = {"prompt", "prompts", "responses", "judgement", "steps", "weight", "extra", *_SCALARS}
    if strange := [name for name in row if name not in known]:
        raise RecordError(unknown("field", strange[0], known), field=strange[0])
    if ("prompt" in row) == ("prompts" in row):
        raise RecordError("give either prompt, or prompts (one a response)", field="prompt")
    steps = row.get("steps")
    given = row["prompts"] if "prompts" in row else [row["prompt"]]
    return Comparison(
        tuple(_text(prompt, "prompt") for prompt in _list(given, "prompts")),
        tuple(_text(response, "responses") for response in _list(row.get("responses"), "responses")),
        _from_judgement(row.get("judgement")),
        steps=None if steps is None else tuple(None if part is None else tuple(part) for part in steps),
        weight=row.get("weight", 1.0),
        extra=_back(row.get("extra", {})),
        **{name: row.get(name) for name in _SCALARS},
    )


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise RecordError(f"must be a list, got {value!r:.100}", field=field)
    return value


def _text(value: Any, field: str) -> Text:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise RecordError(f"must be text or a list of messages, got {value!r:.100}", field=field)
    return tuple(_back(message) for message in value)


def _judgement(judgement: Judgement) -> dict[str, Any]:
    match judgement:
        case Winner(index):
            return {"winner": index}
        case Ranking(ranks, both_bad):
            return {"ranks": list(ranks)} | ({"both_bad": True} if both_bad else {})
        case Ratings(values):
            return {"ratings": list(values)}
        case Probability(first):
            return {"probability": first}
        case Label(good):
            return {"good": good}
        case StepLabels(values):
            return {"step_labels": list(values)}


def _from_judgement(value: Any) -> Judgement:
    match value:
        case {"winner": int(index)}:
            return Winner(index)
        case {"ranks": [*ranks]} if all(type(rank) is int for rank in ranks):
            return Ranking(tuple(ranks), bool(value.get("both_bad", False)))
        case {"order": [*order]} if all(type(index) is int for index in order):
            return Ranking(ranks_from_order(order, len(order)))
        case {"ratings": [*ratings]} if all(_number(rating) for rating in ratings):
            return Ratings(tuple(ratings))
        case {"probability": int(first) | float(first)}:
            return Probability(first)
        case {"good": bool(good)}:
            return Label(good)
        case {"step_labels": [*steps]} if all(step is None or _number(step) for step in steps):
            return StepLabels(tuple(steps))
    raise RecordError(
        "must be one of {winner: index}, {ranks: [0, ...]}, {ratings: [number, ...]}, {probability: number}, "
        f"{{good: true}}, {{step_labels: [number, ...]}}, got {value!r:.200}",
        field="judgement",
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """A value as JSON holds it."""
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode("ascii")}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    # JSON has no NaN or infinity, and knows no dates.
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _back(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {_BYTES} and isinstance(value[_BYTES], str):
            return base64.b64decode(value[_BYTES])
        return {key: _back(item) for key, item in value.items()}
    return [_back(item) for item in value] if isinstance(value, list) else value


def text_key(text: Text) -> str:
    """A prompt or response as one text that is the same for equal ones."""
    return text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, sort_keys=True, default=_plain)


# --- writing


def dumps(row: Mapping[str, Any]) -> str:
    """One line of JSON; text stays readable, but half a surrogate pair, which UTF-8 cannot hold, is escaped."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(row)
    return line


def rows_for(
    comparison: Comparison,
    target: Target,
    strategy: Strategy = "all",
    min_margin: float = 0.0,
    threshold: float | None = None,
) -> Iterator[dict[str, Any]]:
    """The rows of one comparison in a target form.

    Args:
        comparison: what is written.
        target: "prefkit" (one row), "trl_preference" (one row a pair; ties give none), "trl_unpaired" (one a response).
        strategy: which pairs, see `pairs`.
        min_margin: smallest gap of a pair, see `pairs`.
        threshold: rating from which a response is good, see `labels`.

    Raises:
        RecordError: the judgement does not fit the target, or a pair is joint and the target has one prompt column.
    """
    if target == "prefkit":
        yield to_dict(comparison)
    elif target == "trl_preference":
        for pair in pairs(comparison, strategy, min_margin):
            sides = [
                (comparison.prompt_of(index), comparison.responses[index]) for index in (pair.chosen, pair.rejected)
            ]
            (prompt, chosen), (other, rejected) = sides
            if prompt != other:
                prompt, chosen, rejected = _unjoin(comparison, sides)
            yield {"prompt": _plain(prompt), "chosen": _plain(chosen), "rejected": _plain(rejected)}
    elif target == "trl_unpaired":
        for index, good in labels(comparison, threshold):
            yield {
                "prompt": _plain(comparison.prompt_of(index)),
                "completion": _plain(comparison.responses[index]),
                "label": good,
            }
    else:
        raise OptionError(unknown("target", target, ("prefkit", "trl_preference", "trl_unpaired")))


def _unjoin(comparison: Comparison, sides: list[tuple[Text, Text]]) -> tuple[Text, Text, Text]:
    """Two conversations that part before the last turn: the turns they share, and the rest of each."""
    first, second = (_whole(prompt, response) for prompt, response in sides)
    shared = turns_shared(first, second)
    if not shared:
        raise RecordError(
            "the two responses answer different prompts that share no beginning, and the columns of trl_preference "
            "have one prompt; write the canonical form instead",
            field="prompts",
            source=comparison.source,
            line=comparison.line,
        )
    return first[:shared], first[shared:], second[shared:]


def _whole(prompt: Text, response: Text) -> Text:
    if isinstance(prompt, str) and isinstance(response, str):
        return prompt + response
    before = user(prompt) if isinstance(prompt, str) else prompt
    return (*before, *(assistant(response) if isinstance(response, str) else response))


def write_comparisons(
    comparisons: Iterable[Comparison], path: str | Path, target: Target = "prefkit", **how: Any
) -> int:
    """Write comparisons as JSON Lines.

    Args:
        comparisons: what is written.
        path: the file; it appears whole, when everything is written.
        target: see `rows_for`, which also takes the remaining arguments.

    Returns:
        The number of rows written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    count = 0
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        for comparison in comparisons:
            for row in rows_for(comparison, target, **how):
                file.write(dumps(row) + "\n")
                count += 1
    partial.replace(path)
    return count
