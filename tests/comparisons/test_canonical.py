"""The canonical form loses nothing; other forms are what their trainers read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.comparisons import (
    Comparison,
    Label,
    Probability,
    Ranking,
    Ratings,
    RecordError,
    StepLabels,
    Winner,
    from_dict,
    load_comparisons,
    rows_for,
    to_dict,
    write_comparisons,
)
from prefkit.comparisons.canonical import dumps

text = st.text(min_size=1, max_size=12).filter(str.strip)
plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
content = text | st.lists(
    st.fixed_dictionaries({"type": st.just("image"), "image": st.binary(max_size=4)}), min_size=1, max_size=2
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": content}), min_size=1, max_size=3
).map(tuple)
said = text | messages
number = st.floats(-1e6, 1e6)
amount = st.floats(0, 1e6)


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    kind = draw(st.sampled_from([Winner, Ranking, Ratings, Probability, Label, StepLabels]))
    count = {Probability: 2, Label: 1, StepLabels: 1}.get(kind) or draw(st.integers(2, 4))
    steps = None
    judgement: Any
    if kind is Winner:
        judgement = Winner(draw(st.integers(0, count - 1)))
    elif kind is Ranking:
        judgement = Ranking(
            tuple(draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))), draw(st.booleans())
        )
    elif kind is Ratings:
        judgement = Ratings(tuple(draw(st.lists(number, min_size=count, max_size=count))))
    elif kind is Probability:
        judgement = Probability(draw(st.floats(0, 1)))
    elif kind is Label:
        judgement = Label(draw(st.booleans()))
    else:
        steps = (tuple(draw(st.lists(text, min_size=1, max_size=3))),)
        judgement = StepLabels(tuple(draw(st.none() | st.floats(-1, 1)) for _ in steps[0]))
    responses = ("".join(steps[0]),) if steps else tuple(draw(said) for _ in range(count))
    joint = draw(st.booleans()) and count > 1
    return Comparison(
        tuple(draw(said) for _ in range(count if joint else 1)),
        responses,
        judgement,
        steps=steps,
        annotator=draw(st.none() | text),
        criterion=draw(st.none() | text),
        rationale=draw(st.none() | text),
        strength=draw(st.none() | amount),
        weight=draw(amount),
        id=draw(st.none() | text),
        source=draw(st.none() | text),
        line=draw(st.none() | st.integers(1, 10**9)),
        extra=draw(st.dictionaries(text, plain | st.lists(plain, max_size=2) | st.binary(max_size=3), max_size=2)),
    )


@settings(max_examples=150, deadline=None)
@given(comparisons())
def test_round_trip_through_json(comparison: Comparison) -> None:
    assert from_dict(json.loads(dumps(to_dict(comparison)))) == comparison


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    written = [
        Comparison(("p",), ("a", "b", "c"), Ranking((1, 0, 1)), annotator="x", source="first.jsonl", line=7),
        Comparison(("p", "q"), ("a", "b"), Probability(0.25), extra={"image": b"\0\xff", "half": "ok"}),
    ]
    assert write_comparisons(written, tmp_path / "out.jsonl") == 2
    again = load_comparisons(tmp_path / "out.jsonl", on_bad="error")
    assert again.format == "prefkit"
    first, second = again
    assert first == written[0]
    assert (second.judgement, second.extra) == (written[1].judgement, written[1].extra)
    assert (second.source, second.line) == (str(tmp_path / "out.jsonl"), 2)


def test_an_order_is_read_too() -> None:
    row = {"prompt": "p", "responses": ["a", "b", "c"], "judgement": {"order": [2, 0, 1]}}
    assert from_dict(row).judgement == Ranking((1, 2, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"judgement": {"winner": "a"}}, "'judgement': must be one of {winner"),
        ({"judgement": {"winner": 5}}, "index from 0 to 1"),
        ({"judgement": {"order": [0, 0]}}, "each of 0..1 once"),
        ({"judgement": {"ratings": [1, None]}}, "'judgement'"),
        ({"judgment": {}}, "did you mean 'judgement'"),
        ({"responses": "ab"}, "'responses': must be a list"),
        ({"prompts": ["p"]}, "either prompt, or prompts"),
        ({"prompt": 3}, "'prompt': must be text"),
    ],
)
def test_wrong_canonical_rows(change: dict[str, Any], message: str) -> None:
    row = {"prompt": "p", "responses": ["a", "b"], "judgement": {"winner": 0}}
    with pytest.raises(RecordError, match=message):
        from_dict({**row, **change})


def test_trl_preference() -> None:
    ranked = Comparison(("p",), ("a", "b", "c"), Ratings((1.0, 2.0, 2.0)))
    assert list(rows_for(ranked, "trl_preference")) == [
        {"prompt": "p", "chosen": "b", "rejected": "a"},
        {"prompt": "p", "chosen": "c", "rejected": "a"},
    ]
    joint = Comparison(("\n\nHuman: x\n\nAssistant: 1 y", "\n\nHuman: x\n\nAssistant: 2 y"), (" a", " b"), Winner(1))
    assert list(rows_for(joint, "trl_preference")) == [
        {"prompt": "\n\nHuman: x\n\nAssistant:", "chosen": " 2 y b", "rejected": " 1 y a"}
    ]
    ask, one, two = ({"role": "user", "content": "x"}, *({"role": "assistant", "content": text} for text in "12"))
    chats = Comparison(((ask, one, ask), (ask, two, ask)), ((one,), (two,)), Winner(0))
    assert list(rows_for(chats, "trl_preference")) == [
        {"prompt": [ask], "chosen": [one, ask, one], "rejected": [two, ask, two]}
    ]
    with pytest.raises(RecordError, match="share no beginning"):
        list(rows_for(Comparison(("p", "q"), ("a", "b"), Winner(0)), "trl_preference"))


def test_trl_unpaired() -> None:
    rated = Comparison(("p",), ("a", "b"), Ratings((1.0, 4.0)))
    assert list(rows_for(rated, "trl_unpaired", threshold=3.0)) == [
        {"prompt": "p", "completion": "a", "label": False},
        {"prompt": "p", "completion": "b", "label": True},
    ]


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("before")
    with pytest.raises(RecordError, match="cannot give pairs"):
        write_comparisons([Comparison(("p",), ("a",), Label(True))], path, "trl_preference")
    assert path.read_text() == "before"


def test_what_json_cannot_hold() -> None:
    row = {"prompt": "p", "extra": {"nan": float("nan"), "half": "\ud83d"}}
    line = dumps(to_dict(Comparison(("p",), ("a",), Label(True), extra=row["extra"])))
    assert json.loads(line)["extra"] == {"nan": None, "half": "\ud83d"}
    line.encode()
