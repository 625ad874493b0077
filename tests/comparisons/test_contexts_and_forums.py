"""Contexts in prompts, votes of forums, and the formats of preference modelling."""

import json
from pathlib import Path

import pytest

from prefkit.comparisons import (
    Comparison,
    ContextOptions,
    Label,
    Ranking,
    Ratings,
    RecordError,
    Winner,
    WithContexts,
    drawn_pair,
    feedback_example,
    forum_pairs,
    load_comparisons,
    shuffled_contexts,
    with_context,
)
from prefkit.errors import OptionError, PrefkitError

CHAT = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Go"})


def told(prompt: object, **options: str) -> object:
    record = Comparison((prompt,), ("a", "b"), Winner(0))  # type: ignore[arg-type]
    return with_context(record, "be {brief}", ContextOptions.parse(options, "contexts")).prompts[0]


def test_a_context_stands_in_the_last_turn_of_the_user_or_in_a_system_message() -> None:
    assert told("Go") == "Context: be {brief}\n\nGo"
    assert told("Go", place="after", template="({context})") == "Go\n\n(be {brief})"
    assert told(CHAT)[2]["content"] == "Context: be {brief}\n\nGo"
    assert told(CHAT)[:2] == CHAT[:2]
    assert told(CHAT, place="system")[0] == {"role": "system", "content": "Context: be {brief}"}
    with_system = ({"role": "system", "content": "S"}, *CHAT)
    assert told(with_system, place="system")[0]["content"] == "S\n\nContext: be {brief}"


def test_what_cannot_say_a_context_is_refused() -> None:
    with pytest.raises(RecordError, match="a system message needs a prompt of messages"):
        told("Go", place="system")
    with pytest.raises(RecordError, match="no user's turn"):
        told(({"role": "assistant", "content": "x"},))
    with pytest.raises(OptionError, match=r"the template must hold \{context\} once"):
        ContextOptions.parse({"template": "Context"}, "contexts")
    with pytest.raises(RecordError, match="f:4: field 'criterion': a context is needed, a text, got None"):
        list(WithContexts([Comparison(("p",), ("a", "b"), Winner(0), source="f", line=4)]))


def test_dropout_has_one_fate_for_both_comparisons_of_a_reversal() -> None:
    records = [
        Comparison((f"p{k}",), ("a", "b"), Winner(side), criterion=f"c{side}") for k in range(200) for side in (0, 1)
    ]
    found = list(WithContexts(records, ContextOptions(dropout=0.3)))
    dropped = [new.prompts == old.prompts for new, old in zip(found, records, strict=True)]
    assert dropped[::2] == dropped[1::2]
    assert 0.2 < sum(dropped) / len(dropped) < 0.4
    assert list(WithContexts(records, ContextOptions(dropout=0.3))) == found


def test_shuffled_contexts_are_a_permutation() -> None:
    records = [Comparison(("p",), ("a", "b"), Winner(0), criterion=f"c{k}") for k in range(20)]
    found = [record.prompts[0] for record in shuffled_contexts(records, seed=1)]
    assert sorted(found) == sorted(f"Context: c{k}\n\np" for k in range(20))
    assert found != [f"Context: c{k}\n\np" for k in range(20)]


@pytest.mark.parametrize(
    ("votes", "problem"),
    [
        (([1], [0], [0, 1]), "got 1, 1 and 2 values"),
        (([1, -1], [0, 0], [0, 0]), "upvotes of reply 1 must be a whole number"),
        (([1, 0], [0.5, 0], [0, 0]), "downvotes of reply 0 must be a whole number"),
        (([1, 0], [0, 0], [0, 2]), "accepted of reply 1 must be 0 or 1"),
    ],
)
def test_bad_votes(votes: tuple[list[float], ...], problem: str) -> None:
    with pytest.raises(PrefkitError, match=problem):
        forum_pairs(*votes)


def test_a_drawn_pair_depends_on_seed_and_post_alone() -> None:
    pairs = forum_pairs([5, 3, 1, 0], [0] * 4, [0] * 4).pairs
    assert drawn_pair(pairs, 0, "post") == drawn_pair(pairs, 0, "post")
    assert {drawn_pair(pairs, seed, "post") for seed in range(60)} == set(pairs)


def read(tmp_path: Path, *rows: object, **how: object) -> list[Comparison]:
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return list(load_comparisons(str(file), **how))


POST = {"id": "p", "post": "Why?", "replies": [{"text": "x", "upvotes": 1}, {"text": "y", "upvotes": 4, "accepted": 1}]}


def test_forum_posts_give_one_pair_or_all_scores(tmp_path: Path) -> None:
    (one,) = read(tmp_path, POST)
    assert (one.responses[0][0]["content"], one.judgement, one.id) == ("y", Winner(0), "p")
    (every,) = read(tmp_path, POST, options={"pairs": "all"})
    assert every.judgement == Ratings((1.0, 5.0))
    assert one.strength is None


def test_forum_posts_without_a_winner_are_set_aside(tmp_path: Path) -> None:
    equal = {"post": "Why?", "replies": [{"text": "x", "upvotes": 1}, {"text": "y", "upvotes": 1}]}
    wrong = {"post": "Why?", "replies": [{"text": "x", "upvotes": -1}, {"text": "y", "upvotes": 1}]}
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, [POST, equal, wrong])))
    data = load_comparisons(str(file))
    assert len(list(data)) == 1
    assert [(row.line, row.field) for row in data.skipped.rows] == [(2, "replies"), (3, "replies")]


REVERSAL = {
    "prompt": "Tell me",
    "response_a": "short",
    "response_b": "long and winding",
    "criteria_x": "brevity",
    "criteria_y": "detail",
    "scenario_x": "in a hurry",
    "scenario_y": "at leisure",
    "id": 1,
}


@pytest.mark.parametrize(("exchanged", "winners"), [(False, [0, 1]), (True, [1, 0])])
def test_a_reversal_gives_two_opposite_comparisons(tmp_path: Path, exchanged: bool, winners: list[int]) -> None:
    found = read(tmp_path, REVERSAL, options={"context": "scenario", "exchanged": exchanged})
    assert [c.criterion for c in found] == ["in a hurry", "at leisure"]
    assert [c.judgement for c in found] == [Winner(winner) for winner in winners]


def test_written_feedback_becomes_a_demonstration_with_switched_roles(tmp_path: Path) -> None:
    (found,) = read(tmp_path, {"question": "Q?", "answer": "A.", "feedback": "Good."})
    assert [turn["role"] for turn in found.prompts[0]] == ["user", "assistant", "user"]
    assert [turn["content"] for turn in found.prompts[0]][1:] == ["Q?", "A."]
    assert (found.responses[0][0]["content"], found.judgement) == ("Good.", Label(True))
    assert feedback_example("Q?", "A.", "Good.").prompts == found.prompts
    with pytest.raises(RecordError, match="field 'answer': must not be empty"):
        feedback_example("Q?", " ", "Good.")


def test_candidates_are_equal_until_they_are_rewarded(tmp_path: Path) -> None:
    (found,) = read(tmp_path, {"prompt": "p", "candidates": ["a", "b", "c"]})
    assert found.judgement == Ratings((0.0, 0.0, 0.0))
    file = tmp_path / "data.jsonl"
    file.write_text(
        json.dumps({"prompt": "p", "candidates": ["a"]}) + "\n" + json.dumps({"prompt": "q", "candidates": ["a", "b"]})
    )
    data = load_comparisons(str(file))
    assert len(list(data)) == 1
    assert "at least two candidates" in data.skipped.rows[0].problem


@pytest.mark.parametrize("preferred", [1, 2])
def test_opinion_summaries_keep_the_scores_of_both_as_features(tmp_path: Path, preferred: int) -> None:
    row = {
        "unique-id": "u",
        "reviews": ["r1", "r2"],
        "summary-pairs": {
            "summary-one": {"summary-text": "one", "summary-score": {"relevance": 4}},
            "summary-two": {"summary-text": "two", "summary-score": {"relevance": None}},
        },
        "preference-data": preferred,
    }
    (found,) = read(tmp_path, row)
    assert found.judgement == Winner(preferred - 1)
    assert found.extra["features"] == [{"relevance": 4}, {"relevance": None}]


def test_synthetic_summaries_are_ranked_by_quality(tmp_path: Path) -> None:
    def summary(text: str, quality: str) -> dict[str, object]:
        marks = {name: name == quality for name in ("is-good", "is-sbad", "is-vbad")}
        return {"summary_text": text, "score": {"relevance": 3}, **marks}

    good, also, bad = summary("a", "is-good"), summary("b", "is-good"), summary("c", "is-vbad")
    (found,) = read(tmp_path, {"unique-id": "u", "reviews": ["r"], "summaries": [bad, good, also]})
    assert found.judgement == Ranking((1, 0, 0))
    assert found.extra["features"] == [{"relevance": 3}] * 3
    file = tmp_path / "data.jsonl"
    rows = [[good, also], [good, {**bad, "is-good": True}], [good, bad]]
    file.write_text("\n".join(json.dumps({"reviews": ["r"], "summaries": row}) for row in rows))
    data = load_comparisons(str(file))
    assert len(list(data)) == 1
    assert "fewer than two classes of quality" in data.skipped.rows[0].problem
    assert data.skipped.rows[1].field == "summaries[1]"
