"""Comparisons of trajectory fragments. A fragment is a response with one message part: its arrays, or where it stands.

Codes of the label differ between sources and are opposite to one another, so the direction is asked for.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prefkit.comparisons.formats.base import Format, has
from prefkit.comparisons.record import Comparison, Judgement, Probability, Ratings, Text
from prefkit.comparisons.rows import TIE, A, B, Row, as_list, assistant
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.options import Options


def fragment(**arrays: Any) -> Text:
    """A fragment as a response: an assistant message with one part of type "trajectory"."""
    return assistant([{"type": "trajectory", **arrays}])


class ArrayOptions(Options):
    """Options of `trajectory_arrays` and `trajectory_index`.

    Args:
        label: the column with the label.
        winner: what the label says: "second" is the probability that the second fragment wins (0 is the first, 1 the
            second), "first" the opposite, "one_hot" a pair of probabilities, first fragment first. Required.
        minus_one: what -1 stands for; required where it occurs.
    """

    label: str | None = None
    winner: Literal["first", "second", "one_hot"] | None = None
    minus_one: Literal["tie", "no_judgement"] | None = None


def _label(row: Row, options: ArrayOptions) -> Judgement:
    labels = [name for name in row if "label" in name.lower()]
    column = options.label or (labels[0] if len(labels) == 1 else None)
    if column is None or options.winner is None:
        raise OptionError(
            "trajectories: the file does not say what its label means; give the options label (one of: "
            f"{', '.join(labels) or 'none found'}) and winner: 'second' (0 is the first fragment, 1 the second), "
            "'first' (the opposite) or 'one_hot'"
        )
    if options.winner == "one_hot":
        pair = row.list_of(column)
        if len(pair) != 2 or abs(sum(pair) - 1.0) > 1e-6:
            raise row.error(f"must be two probabilities that add up to 1, got {pair}", column)
        probability = float(pair[0])
    else:
        if isinstance(row.get(column), list) and len(row[column]) == 1:
            row = Row({**row, column: row[column][0]}, row.source, row.line)
        number = row.number(column)
        if number == -1:
            if options.minus_one is None:
                raise OptionError(
                    "trajectories: the label -1 means 'about equal' in some sources and 'no preference given' in "
                    "others; give the option minus_one: 'tie' or 'no_judgement'"
                )
            if options.minus_one == "no_judgement":
                raise row.error("no judgement: the label is -1", column)
            return TIE
        if not 0 <= number <= 1:
            raise row.error(f"must lie in 0 .. 1, got {number:g}", column)
        probability = number if options.winner == "first" else 1.0 - number
    return {1.0: A, 0.0: B, 0.5: TIE}.get(probability) or Probability(probability)


def _arrays(row: Row, options: ArrayOptions) -> Iterator[Comparison]:
    judgement = _label(row, options)
    sides = [
        {
            key: row[f"{name}_{side}"]
            for key, name in (("obs", "obs"), ("acts", "action"), ("rews", "reward"))
            if f"{name}_{side}" in row
        }
        for side in (1, 2)
    ]
    names = [f"{name}_{side}" for name in ("obs", "action", "reward") for side in (1, 2)]
    yield Comparison(("",), tuple(fragment(**side) for side in sides), judgement, extra=row.rest(*names), **row.place)


def _index(row: Row, options: ArrayOptions) -> Iterator[Comparison]:
    """Fragments by the index of their first step in an episode store, without which they say nothing."""
    judgement = _label(row, options)
    starts = [int(row.number(column)) for column in ("start_1", "start_2")]
    yield Comparison(
        (row.name("env") or "",),
        tuple(fragment(start=start) for start in starts),
        judgement,
        extra=row.rest("start_1", "start_2"),
        **row.place,
    )


def _everything(row: Row, options: Options) -> Hashable:
    return "all"


def _pool(rows: list[Row], options: Options) -> Iterator[Comparison | RecordError]:
    """The first half of a pool of scored fragments is compared with its second half."""
    if len(rows) % 2:
        raise rows[0].error(f"a pool needs an even number of fragments, got {len(rows)}")
    half = len(rows) // 2
    for pair in zip(rows[:half], rows[half:], strict=True):
        try:
            yield Comparison(
                ("",),
                tuple(fragment(obs=row["obs"], acts=row["action"]) for row in pair),
                Ratings(tuple(row.number("label") for row in pair)),
                **pair[0].place,
            )
        except RecordError as error:
            yield error


class ImitationOptions(Options):
    """Options of `imitation`.

    Args:
        preferences: NumPy `.npy` file with the probability that the first fragment of each pair is preferred; the rows
            of the table are the fragments, two by two. Required: single trajectories hold no judgement.
    """

    preferences: str | None = None


@lru_cache(maxsize=4)
def _preferences(path: str) -> list[float]:
    if not Path(path).exists():
        raise PrefkitError(f"{path}: no such file (option preferences)")
    return [float(value) for value in np.load(path, allow_pickle=False).reshape(-1)]


def _pair_key(row: Row, options: Options) -> Hashable:
    return ((row.line or 1) - 1) // 2


def _imitation(rows: list[Row], options: ImitationOptions) -> Iterator[Comparison | RecordError]:
    if options.preferences is None:
        raise OptionError(
            "imitation: single trajectories hold no judgement; give the option preferences (a .npy file with the "
            "probability that the first of each two rows is preferred)"
        )
    first = rows[0]
    if len(rows) < 2:
        raise first.error("no judgement: a fragment without the second one of its pair")
    place, values = int(str(_pair_key(first, options))), _preferences(options.preferences)
    if place >= len(values):
        raise first.error(f"no judgement: {options.preferences} holds {len(values)} preferences")
    for row in rows:
        observations, actions = row["obs"], row.list_of("acts")
        if isinstance(observations, list) and len(observations) != len(actions) + 1:
            raise row.error(f"{len(observations)} observations for {len(actions)} actions; one more is needed", "obs")
    probability = values[place]
    yield Comparison(
        ("",),
        tuple(
            fragment(**{name: row[name] for name in ("obs", "acts", "rews", "terminal") if row.get(name) is not None})
            for row in rows
        ),
        {1.0: A, 0.0: B, 0.5: TIE}.get(probability) or Probability(probability),
        **first.place,
    )


def _is_arrays(row: Mapping[str, Any]) -> bool:
    return has("obs_1", "obs_2", "action_1", "action_2")(row) and as_list(row["obs_1"]) is not None


FORMATS = (
    Format(
        "trajectory_arrays",
        "`obs_1`, `obs_2`, `action_1`, `action_2` and a label",
        "0, 1, 0.5: tie; **direction required**",
        _is_arrays,
        _arrays,
        ArrayOptions,
        context=False,
    ),
    Format(
        "trajectory_index",
        "`start_1`, `start_2` and a label",
        "0, 1, 0.5: tie, or one-hot; **direction required**",
        has("start_1", "start_2"),
        _index,
        ArrayOptions,
        context=False,
    ),
    Format(
        "trajectory_pool",
        "`obs`, `action`, `label` score; the first half is compared with the second",
        "a score a fragment, higher is better",
        has("obs", "action", "label"),
        _pool,
        key=_everything,
        adjacent=False,
        context=False,
    ),
    Format(
        "imitation",
        "`obs`, `acts`, `terminal`",
        "probability that the first of two rows wins, in a file of its own; **required**",
        has("obs", "acts", "terminal"),
        _imitation,
        ImitationOptions,
        key=_pair_key,
        context=False,
    ),
)
