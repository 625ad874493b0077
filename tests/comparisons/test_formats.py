"""Every format with a known winner, on either side, and its ties, oddities and errors.

Rows are made up after the published schemas; `GOOD` is the better answer by construction.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefkit.comparisons import (
    FORMATS,
    Comparison,
    Label,
    Probability,
    Ranking,
    Ratings,
    StepLabels,
    Winner,
    labels,
    load_comparisons,
    pairs,
)
from prefkit.errors import OptionError, PrefkitError

GOOD, BAD = "A good answer.", "Rubbish."


def said(text: Any) -> Any:
    """The content of a response."""
    return text if isinstance(text, str) else text[-1]["content"]


def read(rows: Any, **how: Any) -> list[Comparison]:
    return list(load_comparisons(rows if isinstance(rows, list) else [rows], on_bad="error", **how))


def problems(rows: Any, **how: Any) -> list[str]:
    comparisons = load_comparisons(rows if isinstance(rows, list) else [rows], **how)
    list(comparisons)
    return [f"{row.line}:{row.field}: {row.problem}" for row in comparisons.skipped]


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def sides(swap: bool) -> tuple[str, str]:
    return (BAD, GOOD) if swap else (GOOD, BAD)


def chat(answer: str) -> list[dict[str, str]]:
    return [message("user", "Hi"), message("assistant", answer)]


# One row a format that has two sides, with the good answer on the first or, swapped, on the second.
TWO_SIDED: dict[str, Callable[[str, str, bool], dict[str, Any]]] = {
    "tinker": lambda a, b, swap: {
        "comparison": {
            "prompt_conversation": [message("user", "Hi")],
            "completion_A": [message("assistant", a)],
            "completion_B": [message("assistant", b)],
        },
        "label": "B" if swap else "A",
    },
    "halos": lambda a, b, swap: {
        "prompt_id": 1,
        "prompt": [message("user", "Hi")],
        "output_A": [message("assistant", a)],
        "output_B": [message("assistant", b)],
        "label": 0 if swap else 1,
        "type": "pairwise_feedback",
    },
    "shp": lambda a, b, swap: {
        "post_id": "x1",
        "history": "Can I freeze dough?",
        "human_ref_A": a,
        "human_ref_B": b,
        "labels": 0 if swap else 1,
        "score_ratio": 3.0,
    },
    "webgpt": lambda a, b, swap: {
        "question": {"full_text": "Why?"},
        "answer_0": a,
        "answer_1": b,
        "score_0": -0.5 if swap else 0.5,
        "score_1": 0.5 if swap else -0.5,
    },
    "summaries": lambda a, b, swap: {
        "info": {"id": "t1", "title": "Car", "post": "My car broke.", "subreddit": "cars"},
        "summaries": [{"text": a, "policy": "p"}, {"text": b, "policy": "q"}],
        "choice": 1 if swap else 0,
        "worker": "w1",
        "extra": {"confidence": 7 if swap else 3},
    },
    "summaries_flat": lambda a, b, swap: {
        "post": "My car broke.",
        "summary_0": a,
        "summary_1": b,
        "choice": 1 if swap else 0,
    },
    "helpsteer2": lambda a, b, swap: {
        "prompt": "2+2?",
        "response_1": a,
        "response_2": b,
        "preference_strength": 3 if swap else -3,
    },
    "helpsteer3": lambda a, b, swap: {
        "context": [message("user", "2+2?")],
        "response1": a,
        "response2": b,
        "overall_preference": 1 if swap else -1,
    },
    "arena": lambda a, b, swap: {
        "question_id": "q1",
        "model_a": "m1",
        "model_b": "m2",
        "winner": "model_b" if swap else "model_a",
        "conversation_a": chat(a),
        "conversation_b": json.dumps(chat(b)),
        "turn": 1,
    },
    "mt_bench": lambda a, b, swap: {
        "question_id": 81,
        "model_a": "m1",
        "model_b": "m2",
        "winner": "model_b" if swap else "model_a",
        "judge": "expert_3",
        "conversation_a": chat(a),
        "conversation_b": chat(b),
        "turn": 1,
    },
    "arena_one_hot": lambda a, b, swap: {
        "prompt": '["Hi"]',
        "response_a": json.dumps([a]),
        "response_b": json.dumps([b]),
        "winner_model_a": int(not swap),
        "winner_model_b": int(swap),
        "winner_tie": 0,
    },
    "llmbar": lambda a, b, swap: {"input": "Hi", "output_1": a, "output_2": b, "label": 2 if swap else 1},
    "judgebench": lambda a, b, swap: {
        "pair_id": "p",
        "question": "Hi",
        "response_A": a,
        "response_B": b,
        "label": "B>A" if swap else "A>B",
    },
    "alpaca_eval": lambda a, b, swap: {
        "instruction": "Name a bird.",
        "output_1": a,
        "generator_1": "base",
        "output_2": b,
        "generator_2": "mine",
        "annotator": "judge",
        "preference": 1.92 if swap else 1.08,
    },
    "distilabel": lambda a, b, swap: {
        "instruction": "Hi",
        "generations": [a, b],
        "ratings": [1, 5] if swap else [5, 1],
    },
    "nectar": lambda a, b, swap: {
        "prompt": "\n\nHuman: Hi\n\nAssistant: ",
        "answers": [
            {"answer": a, "model": "m1", "rank": 2.0 if swap else 1.0},
            {"answer": b, "model": "m2", "rank": 1.0 if swap else 2.0},
        ],
    },
    "ultrafeedback": lambda a, b, swap: {
        "instruction": "Name a bird.",
        "completions": [
            {
                "model": "m",
                "response": text,
                "annotations": {"helpfulness": {"Rating": rating}, "honesty": {"Rating": "N/A"}},
            }
            for text, rating in ((a, "1" if swap else "5"), (b, "5" if swap else "1"))
        ],
    },
    "prism_conversations": lambda a, b, swap: {
        "conversation_id": "c1",
        "user_id": "u1",
        "conversation_history": [
            {"turn": 0, "role": "user", "content": "Hi"},
            {"turn": 0, "role": "model", "content": a, "score": 10 if swap else 90, "if_chosen": not swap},
            {"turn": 0, "role": "model", "content": b, "score": 90 if swap else 10, "if_chosen": swap},
        ],
    },
    "openassistant_trees": lambda a, b, swap: {
        "message_tree_id": "t",
        "prompt": {
            "text": "Hi",
            "role": "prompter",
            "replies": [
                {"text": a, "role": "assistant", "rank": int(swap), "replies": []},
                {"text": b, "role": "assistant", "rank": int(not swap), "replies": []},
            ],
        },
    },
    "prefkit": lambda a, b, swap: {"prompt": "Hi", "responses": [a, b], "judgement": {"winner": int(swap)}},
    "label_studio": lambda a, b, swap: {
        "id": 1,
        "data": {"prompt": "Hi", "text1": a, "text2": b},
        "annotations": [
            {
                "completed_by": 3,
                "was_cancelled": False,
                "result": [
                    {"from_name": "pw", "type": "pairwise", "value": {"selected": "right" if swap else "left"}},
                ],
            }
        ],
    },
    "label_studio_short": lambda a, b, swap: {
        "prompt": "Hi",
        "text1": a,
        "text2": b,
        "pw": "right" if swap else "left",
        "annotator": 1,
        "annotation_id": 2,
        "lead_time": 1.5,
    },
    "argilla2": lambda a, b, swap: {
        "id": "r1",
        "fields": {"prompt": "Hi", "one": a, "two": b},
        "responses": {
            "best": [
                {"value": [{"value": "one", "rank": 1 + swap}, {"value": "two", "rank": 2 - swap}], "user_id": "u1"}
            ]
        },
        "suggestions": {"best": {"value": None}},
    },
    "argilla2_flat": lambda a, b, swap: {
        "prompt": "Hi",
        "one": a,
        "two": b,
        "best.responses": ["two" if swap else "one", "two"],
        "best.responses.users": ["u1", "u2"],
        "best.responses.status": ["submitted", "draft"],
    },
    "argilla1": lambda a, b, swap: {
        "prompt": "Hi",
        "one": a,
        "two": b,
        "best": [
            {"user_id": "u1", "value": {"rank": [1 + swap, 2 - swap], "value": ["one", "two"]}, "status": "submitted"},
            {"user_id": "u2", "value": {"rank": [1, 1], "value": ["one", "two"]}, "status": "discarded"},
        ],
    },
}
_ARGILLA = {"question": "best", "prompt": "prompt", "responses": ["one", "two"]}
OPTIONS: dict[str, dict[str, Any]] = {
    "label_studio": {"prompt": "prompt", "left": "text1", "right": "text2"},
    "label_studio_short": {"prompt": "prompt", "left": "text1", "right": "text2", "control": "pw"},
    "argilla2": _ARGILLA,
    "argilla2_flat": _ARGILLA,
    "argilla1": _ARGILLA,
}


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("name", TWO_SIDED)
def test_known_winner_on_either_side(name: str, swap: bool) -> None:
    first, second = sides(swap)
    comparisons = load_comparisons([TWO_SIDED[name](first, second, swap)], options=OPTIONS.get(name), on_bad="error")
    assert comparisons.format == name
    (comparison,) = comparisons
    assert [said(text).strip() for text in comparison.responses] == [first, second]
    (pair,) = pairs(comparison)
    assert said(comparison.responses[pair.chosen]).strip() == GOOD
    assert comparison.line == 1


# Formats whose columns say which side is better: the order of the columns in the file must not matter.
CHOSEN: dict[str, dict[str, Any]] = {
    "hh_rlhf": {"chosen": f"\n\nHuman: Hi\n\nAssistant: {GOOD}", "rejected": f"\n\nHuman: Hi\n\nAssistant: {BAD}"},
    "stack_exchange": {"qid": 7, "question": "Hi", "response_j": GOOD, "response_k": BAD},
    "orca_pairs": {"system": "", "input": "Hi", "chosen": GOOD, "rejected": BAD, "status": "swapped", "rating": [5, 9]},
    "rewardbench": {"prompt": "Hi", "chosen": GOOD, "rejected": BAD, "subset": "s", "chosen_model": "m"},
    "best_of": {"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD, "Bad."], "num_correct": 1},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
    },
    "alpaca": {"instruction": "Hi", "input": "", "chosen": GOOD, "rejected": BAD},
    "binarized": {
        "prompt": "Hi",
        "chosen": chat(GOOD),
        "rejected": chat(BAD),
        "score_chosen": 8.0,
        "score_rejected": 3.0,
    },
    "trl_preference": {"prompt": "Hi", "chosen": GOOD, "rejected": BAD},
    "joint": {"i_chosen": "Hi", "r_chosen": GOOD, "i_reject": "Bye", "r_reject": BAD},
}


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("name", CHOSEN)
def test_named_sides(name: str, swap: bool) -> None:
    row = dict(reversed(CHOSEN[name].items())) if swap else CHOSEN[name]
    comparisons = load_comparisons([row], on_bad="error")
    assert comparisons.format == name
    (comparison,) = comparisons
    assert said(comparison.responses[pairs(comparison)[0].chosen]).strip() == GOOD


def test_every_format_is_tested() -> None:
    elsewhere = {
        "columns", "openrlhf", "trl_unpaired", "trl_stepwise", "prm800k", "math_shepherd", "pku_saferlhf", "pandalm",
        "helpsteer", "prism_utterances", "openassistant", "fastchat_pairs", "fastchat_grades", "arena_hard", "pickapic",
        "hpd", "redial", "interactions", "trajectory_arrays", "trajectory_index", "trajectory_pool", "imitation",
        "tpo", "curriculum", "forum", "rpr", "written_feedback", "candidates", "opinpref",
        "promptopinsumm", "image_pairs",
    }  # fmt: skip
    assert {*TWO_SIDED, *CHOSEN} | elsewhere == set(FORMATS)


def test_every_format_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for known in FORMATS.values():
        options = [name for name in known.options.model_fields if name != "columns"]
        row = next((line for line in page.splitlines() if line.startswith(f"| `{known.name}` |")), "")
        assert f"| {known.tells} | {known.outcome} |" in row
        assert [name for name in options if f"`{name}`" not in row] == []


# --- ties, both bad, no judgement


TIED: dict[str, dict[str, Any]] = {
    "tinker": {"label": "Tie"},
    "helpsteer2": {"preference_strength": 0},
    "helpsteer3": {"overall_preference": 0},
    "webgpt": {"score_0": 0.0, "score_1": 0.0},
    "arena": {"winner": "tie"},
    "mt_bench": {"winner": "tie"},
    "arena_one_hot": {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1},
    "alpaca_eval": {"preference": 1.5},
    "distilabel": {"ratings": [3, 3]},
    "halos": {"label": 0, "reward_A": 0.5, "reward_B": 0.5},
    "orca_pairs": {"status": "tie"},
    "binarized": {"score_chosen": 5.0, "score_rejected": 5.0},
}


@pytest.mark.parametrize("name", TIED)
def test_ties(name: str) -> None:
    row = CHOSEN[name] if name in CHOSEN else TWO_SIDED[name](GOOD, BAD, False)
    (comparison,) = read({**row, **TIED[name]}, options=OPTIONS.get(name))
    assert pairs(comparison) == []
    assert [pair.probability for pair in pairs(comparison, ties="half")] == [0.5]
    assert not (isinstance(comparison.judgement, Ranking) and comparison.judgement.both_bad)


def test_old_alpaca_eval_draw() -> None:
    (comparison,) = read({**TWO_SIDED["alpaca_eval"](GOOD, BAD, False), "preference": 0})
    assert pairs(comparison) == []


@pytest.mark.parametrize("word", ["tie (bothbad)", "both_bad", "bothbad"])
def test_both_bad_is_not_a_tie(word: str) -> None:
    (comparison,) = read({**TWO_SIDED["arena"](GOOD, BAD, False), "winner": word})
    assert comparison.judgement == Ranking((0, 0), both_bad=True)
    assert labels(comparison) == [(0, False), (1, False)]


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("arena", {"winner": "draw"}, "unknown outcome 'draw'"),
        ("arena", {"winner": None}, "no judgement"),
        ("tinker", {"label": "C"}, "unknown outcome 'C'"),
        ("shp", {"labels": 2}, "unknown outcome 2"),
        ("llmbar", {"label": 0}, "unknown outcome 0"),
        ("helpsteer3", {"overall_preference": 7}, "-3 .. 3"),
        ("helpsteer2", {"preference_strength": float("nan")}, "no judgement"),
        ("alpaca_eval", {"preference": None}, "no judgement"),
        ("alpaca_eval", {"preference": 0.4}, "1 .. 2"),
        ("arena_one_hot", {"winner_tie": 1}, "exactly one"),
        ("arena_one_hot", {"response_b": "[null]"}, "is null"),
        ("distilabel", {"ratings": [None, 3]}, "no judgement"),
        ("webgpt", {"score_1": 0.5}, "add up to 0"),
        ("mt_bench", {"turn": 2}, "turn 2 was judged"),
    ],
)
def test_unknown_outcomes_are_errors(name: str, change: dict[str, Any], problem: str) -> None:
    found = problems({**TWO_SIDED[name](GOOD, BAD, False), **change}, format=name)
    assert len(found) == 1
    assert problem in found[0]


# --- required options


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_directions_outside_the_file_are_asked_for(name: str) -> None:
    with pytest.raises(OptionError, match="give the option"):
        read(TWO_SIDED[name](GOOD, BAD, False))


def test_label_studio_controls() -> None:
    task = TWO_SIDED["label_studio"](GOOD, BAD, False)
    result = task["annotations"][0]["result"]
    result.append({"from_name": "ch", "type": "choices", "value": {"choices": ["Same"]}})
    (comparison,) = read(task, options={**OPTIONS["label_studio"], "choices": {"Same": "tie"}})
    assert comparison.judgement == Ranking((0, 0))
    assert comparison.annotator == "3"
    assert "unknown choice 'Same'" in problems(task, options=OPTIONS["label_studio"])[0]
    result[:] = [
        {"from_name": "r1", "type": "rating", "value": {"rating": 2}},
        {"from_name": "r2", "type": "rating", "value": {"rating": 4}},
    ]
    (comparison,) = read(task, options={"prompt": "prompt", "ratings": {"r1": "text1", "r2": "text2"}})
    assert comparison.judgement == Ratings((2.0, 4.0))
    task["data"]["items"] = [{"id": "x", "text": BAD}, {"id": "y", "text": GOOD}]
    result[:] = [{"from_name": "rk", "type": "ranker", "value": {"ranker": {"rank": ["y", "x"]}}}]
    (comparison,) = read(task, options={"prompt": "prompt", "items": "items"})
    assert said(comparison.responses[pairs(comparison)[0].chosen]) == GOOD
    result[0]["value"]["ranker"]["rank"] = ["y", "y"]
    assert "repeats an item" in problems(task, options={"prompt": "prompt", "items": "items"})[0]
    task["annotations"][0]["was_cancelled"] = True
    assert "no judgement" in problems(task, options={"prompt": "prompt", "items": "items"})[0]


def test_argilla_answers() -> None:
    row = TWO_SIDED["argilla2"](GOOD, BAD, False)
    answer = row["responses"]["best"][0]
    answer["value"] = [{"value": "one", "rank": 1}, {"value": "two", "rank": 1}]
    assert read(row, options=_ARGILLA)[0].judgement == Ranking((0, 0))
    answer["value"] = [{"value": "one", "rank": 1}, {"value": "two", "rank": None}]
    assert "not finished" in problems(row, options=_ARGILLA)[0]
    answer["value"] = "A"
    assert "say in the option values" in problems(row, options=_ARGILLA)[0]
    assert read(row, options={**_ARGILLA, "values": {"A": "two"}})[0].judgement == Winner(1)
    assert read(row, options={**_ARGILLA, "values": {"A": "both_bad"}})[0].judgement == Ranking((0, 0), both_bad=True)
    row["responses"] = {"q1": [{"value": 2, "user_id": "u"}], "q2": [{"value": 5, "user_id": "u"}]}
    (comparison,) = read(row, options={"prompt": "prompt", "ratings": {"q1": "one", "q2": "two"}})
    assert comparison.judgement == Ratings((2.0, 5.0))
    row["responses"] = {"best": [{"value": "good", "user_id": "u"}]}
    (comparison,) = read(row, options={"question": "best", "prompt": "prompt", "responses": ["one"]})
    assert comparison.judgement == Label(True)


@pytest.mark.parametrize(
    ("winner", "label", "chosen"),
    [
        ("second", [0.0], 0),
        ("second", 1, 1),
        ("first", 1, 0),
        ("first", 0, 1),
        ("one_hot", [1, 0], 0),
        ("one_hot", [0, 1], 1),
    ],
)
def test_trajectory_arrays(winner: str, label: Any, chosen: int) -> None:
    row = {"obs_1": [[0.0]], "obs_2": [[1.0]], "action_1": [[0.0]], "action_2": [[1.0]], "label": label}
    with pytest.raises(OptionError, match="winner"):
        read(row)
    (comparison,) = read(row, options={"winner": winner})
    assert [pair.chosen for pair in pairs(comparison)] == [chosen]
    assert said(comparison.responses[1])[0]["obs"] == [[1.0]]


def test_trajectory_index_and_pool() -> None:
    row = {"start_1": 5, "start_2": 9, "human_label": -1}
    with pytest.raises(OptionError, match="minus_one"):
        read(row, options={"winner": "second"})
    assert read(row, options={"winner": "second", "minus_one": "tie"})[0].judgement == Ranking((0, 0))
    assert "no judgement" in problems(row, options={"winner": "second", "minus_one": "no_judgement"})[0]
    pool = [{"obs": [[k]], "action": [[k]], "label": score} for k, score in enumerate([1.0, 5.0, 2.0, 3.0])]
    assert [comparison.judgement for comparison in read(pool)] == [Ratings((1.0, 2.0)), Ratings((5.0, 3.0))]


def test_imitation(tmp_path: Any) -> None:
    rows = [{"obs": [[0.0], [k]], "acts": [[k]], "infos": None, "terminal": False, "rews": [0.1]} for k in range(4)]
    with pytest.raises(OptionError, match="preferences"):
        read(rows)
    np.save(tmp_path / "p.npy", np.array([0.25, 0.5], dtype=np.float32))
    first, second = read(rows, options={"preferences": str(tmp_path / "p.npy")})
    assert first.judgement == Probability(0.25)
    assert pairs(second) == []
    rows[0]["obs"] = [[0.0]]
    assert "one more is needed" in problems(rows, options={"preferences": str(tmp_path / "p.npy")})[0]


# --- training libraries


def test_trl_unpaired() -> None:
    rows = [
        {"prompt": "2+2?", "completion": " 4", "label": True},
        {"prompt": "2+2?", "completion": " 5", "label": False},
    ]
    good, bad = read(rows)
    assert (good.judgement, bad.judgement) == (Label(True), Label(False))
    assert "unknown outcome 'maybe'" in problems({**rows[0], "label": "maybe"})[0]


def test_trl_stepwise() -> None:
    row = {"prompt": "2+2*3?", "completions": ["2*3=6.", "2+6=9."], "labels": [True, False]}
    (comparison,) = read(row)
    assert comparison.judgement == StepLabels((1.0, -1.0))
    assert comparison.steps == (("2*3=6.\n", "2+6=9."),)
    assert comparison.responses == ("2*3=6.\n2+6=9.",)
    with pytest.raises(OptionError, match="scale"):
        read({**row, "labels": [1, 0]})
    assert read({**row, "labels": [1, 0]}, options={"scale": "signed"})[0].judgement == StepLabels((1.0, 0.0))
    assert read({**row, "labels": [0.75, 0]}, options={"scale": "probability"})[0].judgement == StepLabels((0.5, -1.0))
    assert "1 labels for 2 completions" in problems({**row, "labels": [True]})[0]


def test_trl_images_fill_their_places() -> None:
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    row = {"prompt": prompt, "chosen": [message("assistant", GOOD)], "rejected": [message("assistant", BAD)]}
    (comparison,) = read({**row, "images": ["a.png"]})
    assert comparison.prompts[0][0]["content"][0] == {"type": "image", "image": "a.png"}
    assert "2 images for 1 image placeholders" in problems({**row, "images": ["a.png", "b.png"]})[0]


def test_margin_is_a_strength() -> None:
    assert read({**CHOSEN["trl_preference"], "margin": 2.5})[0].strength == 2.5
    assert read(CHOSEN["binarized"])[0].strength == 5.0


def test_alpaca_variants() -> None:
    row = {**CHOSEN["alpaca"], "instruction": "Add.", "input": "2 and 2", "history": [["Hi", "Hello"]], "system": "S"}
    (comparison,) = read(row)
    assert [said([turn]) for turn in comparison.prompts[0]] == ["S", "Hi", "Hello", "Add.\n2 and 2"]
    (old,) = read({"instruction": "Hi", "output": [GOOD, BAD]})
    assert said(old.responses[pairs(old)[0].chosen]) == GOOD
    assert "the chosen and the rejected" in problems({"instruction": "Hi", "output": [GOOD]})[0]
    (kto,) = read({"instruction": "Hi", "output": GOOD, "kto_tag": False})
    assert kto.judgement == Label(False)


def test_sharegpt_variants() -> None:
    row = CHOSEN["sharegpt"]
    turns = [{"from": "human", "value": "<image>What?"}]
    assert "1 <image> marks for 0 images" in problems({**row, "conversations": turns})[0]
    assert len(read({**row, "conversations": turns, "images": ["a.png"]})) == 1
    even = [*row["conversations"], {"from": "gpt", "value": "Yes?"}]
    assert "odd number of turns" in problems({**row, "conversations": even})[0]
    (kto,) = read({"conversations": even, "kto_tag": True})
    assert (kto.judgement, said(kto.responses[0])) == (Label(True), "Yes?")


def test_openrlhf() -> None:
    row = {"q": "Hi", "good": GOOD, "bad": BAD}
    keys = {"chosen_key": "good", "rejected_key": "bad", "prompt_key": "q", "template": "User: {}\nAssistant: "}
    (comparison,) = read(row, format="openrlhf", options=keys)
    assert comparison.prompts == ("User: Hi\nAssistant: ",)
    assert comparison.responses == (GOOD, BAD)
    (label,) = read(
        {"q": "Hi", "a": GOOD, "l": 1},
        format="openrlhf",
        options={"prompt_key": "q", "chosen_key": "a", "label_key": "l"},
    )
    assert label.judgement == Label(True)


def test_halos_unpaired() -> None:
    row = {"prompt_id": 1, "prompt": [message("user", "Hi")], "output": [message("assistant", GOOD)], "label": 0}
    assert read({**row, "type": "binary_feedback"})[0].judgement == Label(False)


# --- where the prompt ends


def test_transcripts_are_split_at_the_last_turn() -> None:
    both = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant:"
    row = {"chosen": both + " The sky is blue.", "rejected": both + " The sky is bread."}
    (comparison,) = read(row)
    assert comparison.prompts == (both,)
    assert comparison.responses == (" The sky is blue.", " The sky is bread.")
    # One answer that is the beginning of the other is still an answer of its own.
    (shorter,) = read({"chosen": both + " The sky is blue.", "rejected": both + " The sky"})
    assert shorter.responses == (" The sky is blue.", " The sky")


def test_transcripts_with_different_contexts_are_joint() -> None:
    one, two = "\n\nHuman: Hi\n\nAssistant:", "\n\nHuman: Ho\n\nAssistant:"
    (comparison,) = read({"chosen": one + " a", "rejected": two + " b"})
    assert comparison.prompts == (one, two)


@pytest.mark.parametrize(
    ("rejected", "problem"),
    [
        ("\n\nHuman: Hi\n\nAssistant: a", "chosen equals rejected"),
        ("\n\nHuman: Hi\n\nAssistant:  ", "empty answer"),
        ("\n\nHuman: Hi\n\nAssistant: b\n\nHuman: Bye", "human turn"),
        ("\n\nHuman: Hi", "has no"),
    ],
)
def test_broken_transcripts(rejected: str, problem: str) -> None:
    assert problem in problems({"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": rejected})[0]


def test_implicit_prompts_of_plain_text() -> None:
    (comparison,) = read({"chosen": "The sky is blue", "rejected": "The sky is brown"})
    assert (comparison.prompts, comparison.responses) == (("The sky is",), (" blue", " brown"))
    (prefix,) = read({"chosen": "The sky is", "rejected": "The sky is blue"})
    assert (prefix.prompts, prefix.responses) == (("The sky",), (" is", " is blue"))
    (turns,) = read({"chosen": "User: Hi\nAssistant: The a", "rejected": "User: Hi\nAssistant: The b"})
    assert turns.prompts == ("User: Hi\nAssistant:",)
    assert "share no beginning" in problems({"chosen": "blue", "rejected": "brown"})[0]
    # A mark inside one answer does not move the cut into it.
    (quoting,) = read({"chosen": "User: Hi\nAssistant: I\nBot: x", "rejected": "User: Hi\nAssistant: You"})
    assert (quoting.prompts, quoting.responses) == (("User: Hi\nAssistant:",), (" I\nBot: x", " You"))
    assert "empty answer" in problems({"chosen": "User: Hi\nAssistant:", "rejected": "User: Hi\nAssistant: You"})[0]
    nothing = {"prompt": None, "chosen": "The sky is blue", "rejected": "The sky is brown"}
    assert problems(nothing) == ["1:prompt: is null"]


def test_implicit_prompts_of_messages() -> None:
    row = {"chosen": chat(GOOD), "rejected": chat(BAD)}
    (implicit,) = read(row)
    (repeated,) = read({**row, "prompt": "Hi"})
    (listed,) = read({**row, "prompt": [message("user", "Hi")]})
    for comparison in (implicit, repeated, listed):
        assert comparison.prompts == ((message("user", "Hi"),),)
        assert comparison.responses == ((message("assistant", GOOD),), (message("assistant", BAD),))
    other = [message("user", "Ho"), message("assistant", BAD)]
    (joint,) = read({"chosen": chat(GOOD), "rejected": other})
    assert joint.joint
    assert problems({"chosen": chat(GOOD), "rejected": chat(GOOD)})[0].endswith("identical pair")
    mixed = problems({"prompt": "Hi", "chosen": GOOD, "rejected": chat(BAD)})
    assert "both be text or both be messages" in mixed[0]


def test_role_names_and_one_element_lists() -> None:
    row = {"prompt": [{"role": "Human", "content": "Hi"}], "chosen": [GOOD], "rejected": BAD}
    (comparison,) = read({**row}, format="trl_preference")
    assert comparison.prompts[0][0]["role"] == "user"
    assert comparison.responses == ((message("assistant", GOOD),), (message("assistant", BAD),))


# --- grouped rows and conversations


def test_helpsteer_groups_adjacent_rows() -> None:
    prompt = "Hi<extra_id_1>Assistant\nHello<extra_id_1>User\n2+2?"
    row = {"prompt": prompt, "coherence": 4, "complexity": 0, "verbosity": 1}
    rows = [
        {**row, "response": BAD, "helpfulness": 1, "correctness": 2},
        {**row, "response": GOOD, "helpfulness": 4, "correctness": 2},
        {**row, "prompt": "Alone?", "response": GOOD, "helpfulness": 4, "correctness": 2},
    ]
    comparisons = load_comparisons(rows, options={"criterion": "each"})
    by_criterion = {comparison.criterion: comparison for comparison in comparisons}
    assert list(by_criterion) == ["helpfulness", "correctness", "coherence"]
    assert [turn["role"] for turn in by_criterion["helpfulness"].prompts[0]] == ["user", "assistant", "user"]
    assert [pair.chosen for pair in pairs(by_criterion["helpfulness"])] == [1]
    assert pairs(by_criterion["correctness"]) == []
    assert [(row.line, row.problem[:12]) for row in comparisons.skipped] == [(3, "no judgement")]


def test_helpsteer3_votes() -> None:
    votes = [{"score": -3, "reasoning": "right sum"}, {"score": 2, "reasoning": "nicer"}]
    row = {**TWO_SIDED["helpsteer3"](GOOD, BAD, False), "individual_preference": votes}
    first, second = read(row, options={"individual": True})
    assert (first.judgement, first.strength, first.rationale) == (Winner(0), 3.0, "right sum")
    assert second.judgement == Winner(1)


def test_pku_gives_one_comparison_a_criterion() -> None:
    row = {"prompt": "Hi", "response_0": GOOD, "response_1": BAD, "better_response_id": 1, "safer_response_id": 0}
    better, safer = read(row)
    assert (better.criterion, better.judgement) == ("helpfulness", Winner(1))
    assert (safer.criterion, safer.judgement) == ("harmlessness", Winner(0))
    assert "unknown outcome 2" in problems({**row, "better_response_id": 2})[0]


def test_pandalm_keeps_the_votes() -> None:
    row = {"idx": 0, "instruction": "I", "input": "x", "response1": GOOD, "response2": BAD}
    votes = read({**row, "annotator1": 1, "annotator2": 2, "annotator3": 0})
    assert [vote.judgement for vote in votes] == [Winner(0), Winner(1), Ranking((0, 0))]
    assert [vote.annotator for vote in votes] == ["annotator1", "annotator2", "annotator3"]


def test_prism_follows_the_chosen_path() -> None:
    row = {"conversation_id": "c1", "user_id": "u1", "interaction_id": "i1", "turn": 0, "user_prompt": "Hi"}
    rows = [
        {**row, "within_turn_id": 1, "model_response": BAD, "score": 90, "if_chosen": False},
        {**row, "within_turn_id": 2, "model_response": GOOD, "score": 90, "if_chosen": True},
        {**row, "conversation_id": "c2", "within_turn_id": 1, "model_response": "x", "score": 1, "if_chosen": True},
        {
            **row,
            "turn": 1,
            "user_prompt": "And?",
            "within_turn_id": 1,
            "model_response": "y",
            "score": 5,
            "if_chosen": True,
        },
        {
            **row,
            "turn": 1,
            "user_prompt": "And?",
            "within_turn_id": 2,
            "model_response": "z",
            "score": 7,
            "if_chosen": False,
        },
    ]
    comparisons = load_comparisons(rows)
    first, second = comparisons
    assert first.judgement == Ratings((90.0, 90.0))
    assert [said([turn]) for turn in second.prompts[0]] == ["Hi", GOOD, "And?"]
    assert [row.line for row in comparisons.skipped] == [3]
    chosen = next(iter(load_comparisons(rows, options={"judgement": "chosen"})))
    assert chosen.judgement == Winner(1)


def test_openassistant_compares_siblings() -> None:
    def post(name: str, parent: str | None, role: str, text: str, rank: int | None) -> dict[str, Any]:
        return {
            "message_id": name, "parent_id": parent, "role": role, "text": text, "rank": rank, "message_tree_id": "a"
        }  # fmt: skip

    rows = [
        post("b", "a", "assistant", BAD, 1),
        post("c", "a", "assistant", GOOD, 0),
        post("d", "a", "assistant", "unranked", None),
        post("a", None, "prompter", "Hi", None),
        post("e", "c", "prompter", "More?", 0),
        post("f", "c", "prompter", "Why?", 1),
        post("g", "e", "assistant", "first", 0),
        post("h", "e", "assistant", "second", 1),
    ]
    first, second = read(rows)
    assert [said(text) for text in first.responses] == [BAD, GOOD]
    assert first.judgement == Ranking((1, 0))
    assert [said([turn]) for turn in second.prompts[0]] == ["Hi", GOOD, "More?"]
    lost = [row for row in rows if row["message_id"] != "a"]
    assert "not in the file" in problems(lost)[0]


def test_nectar_ranks_and_space() -> None:
    (comparison,) = read(TWO_SIDED["nectar"](GOOD, BAD, False))
    assert comparison.prompts == ("\n\nHuman: Hi\n\nAssistant:",)
    assert comparison.responses == (f" {GOOD}", f" {BAD}")


def test_ultrafeedback_options() -> None:
    row = TWO_SIDED["ultrafeedback"](GOOD, BAD, False)
    row["completions"][0] |= {"custom_system_prompt": "Be brief.", "overall_score": 8.0}
    row["completions"][1] |= {"overall_score": 10.0}
    (joint,) = read(row)
    assert joint.joint
    (shared,) = read(row, options={"system_prompts": False})
    assert not shared.joint
    assert "10 contradicts" in problems(row, options={"criterion": "overall"})[0]
    assert "fewer than two" in problems(row, options={"criterion": "honesty"})[0]
    row["completions"][1]["overall_score"] = 1.0
    assert read(row, options={"criterion": "overall"})[0].judgement == Ratings((8.0, 1.0))


def test_confidence_is_a_strength() -> None:
    row = TWO_SIDED["summaries"](GOOD, BAD, False)
    (comparison,) = read(row)
    assert comparison.prompts == ("SUBREDDIT: r/cars\n\nTITLE: Car\n\nPOST: My car broke.\n\nTL;DR:",)
    assert comparison.strength == 2.0
    assert comparison.annotator == "w1"


# --- steps


def test_prm800k() -> None:
    steps = [
        {
            "completions": [
                {"text": "2*3=6", "rating": 1},
                {"text": "2+2=4", "rating": -1},
                {"text": "?", "rating": None},
            ],
            "human_completion": None,
            "chosen_completion": 0,
        },
        {"completions": [{"text": "2+6=9", "rating": -1}], "human_completion": None, "chosen_completion": None},
    ]
    row = {"question": {"problem": "2+2*3?"}, "label": {"steps": steps, "finish_reason": "found_error"}}
    (solution,) = read(row)
    assert solution.steps == (("2*3=6\n", "2+6=9"),)
    assert solution.judgement == StepLabels((1.0, -1.0))
    (alternatives,) = read(row, options={"unit": "alternatives"})
    assert alternatives.prompts == ("2+2*3?\n",)
    assert alternatives.judgement == Ratings((1.0, -1.0))
    assert "control or screening" in problems({**row, "is_quality_control_question": True})[0]
    assert "give_up" in problems({**row, "label": {**row["label"], "finish_reason": "give_up"}})[0]


@pytest.mark.parametrize("kept", ["", "ки "])
def test_math_shepherd(kept: str) -> None:
    row = {
        "input": "2+2*3? Step 1: 2*3=6 ки\nStep 2: 2+6=9 ки",
        "label": f"2+2*3? Step 1: 2*3=6 {kept}+\nStep 2: 2+6=9 {kept}-",
        "task": "GSM8K",
    }
    (comparison,) = read(row)
    assert comparison.prompts == ("2+2*3?\n",)
    assert comparison.judgement == StepLabels((1.0, -1.0))
    assert comparison.steps == (("Step 1: 2*3=6\n", "Step 2: 2+6=9"),)
    assert "no 'Step 1:'" in problems({**row, "input": "2+2*3? 6 ки", "label": "2+2*3? 6 +"})[0]


def test_rated_solutions_keep_their_steps() -> None:
    row = {
        "prompt": "2+2*3?",
        "response_list": [
            {"response": ["Step 1: 6", "Step 2: 8"], "score": 100},
            {"response": ["Step 1: 4"], "score": "-60"},
            {"response": ["Step 1: 5"], "score": None},
        ],
        "answer": "8",
    }
    comparisons = load_comparisons([row])
    (comparison,) = comparisons
    assert comparisons.format == "tpo"
    assert comparison.prompts == ("2+2*3?\n",)
    assert comparison.responses == ("Step 1: 6\nStep 2: 8", "Step 1: 4")
    assert comparison.steps == (("Step 1: 6\n", "Step 2: 8"), ("Step 1: 4",))
    assert comparison.judgement == Ratings((100.0, -60.0))
    assert comparison.extra == {"answer": "8"}
    assert problems(row) == ["1:response_list[2].score: is null"]
    assert "has no steps" in problems({**row, "response_list": [{"response": [], "score": 1}]})[0]


def stage(good: str, bad: str, *roles: str) -> dict[str, Any]:
    return {
        "conversation": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "chosen_content": good, "rejected_content": bad},
            *({"role": role, "content": "more"} for role in roles),
        ]
    }


def test_published_curricula_say_how_hard_their_pairs_are() -> None:
    row = {"easy": stage(GOOD, BAD), "medium": stage(GOOD, BAD, "user"), "hard": stage(GOOD, "So, so.")}
    comparisons = load_comparisons([row])
    found = list(comparisons)
    assert comparisons.format == "curriculum"
    assert [one.extra["difficulty"] for one in found] == ["easy", "hard"]
    assert [said(one.responses[pairs(one)[0].chosen]) for one in found] == [GOOD, GOOD]
    assert found[1].prompts == ((message("user", "Hi"),),)
    assert problems(row) == ["1:medium.conversation: must be one turn of the user and one of the assistant"]


# --- benchmarks, battles, verdicts


def test_best_of_compares_all_combinations() -> None:
    row = {"prompt": "Hi", "chosen": ["a", "b"], "rejected": ["c", "d"], "domain": "chat"}
    (comparison,) = read(row)
    assert [(pair.chosen, pair.rejected) for pair in pairs(comparison)] == [(0, 2), (0, 3), (1, 2), (1, 3)]


def test_later_turns_have_contexts_of_their_own() -> None:
    row = TWO_SIDED["mt_bench"]("a1", "b1", False)
    for side, answer in (("a", "a2"), ("b", "b2")):
        row[f"conversation_{side}"] += [message("user", "More?"), message("assistant", answer)]
    (first,) = read(row)
    assert [said(text) for text in first.responses] == ["a1", "b1"]
    assert not first.joint
    (second,) = read({**row, "turn": 2})
    assert second.joint
    assert [said(text) for text in second.responses] == ["a2", "b2"]


@pytest.fixture
def texts(tmp_path: Any) -> dict[str, Any]:
    questions, answers = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    questions.write_text('{"question_id": 81, "turns": ["Hi", "More?"]}\n')
    rows = [
        {"question_id": 81, "model_id": model, "choices": [{"turns": [text, text + "!"]}]}
        for model, text in (("m1", GOOD), ("m2", BAD))
    ]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"questions": str(questions), "answers": [str(answers)]}


def test_fastchat(texts: dict[str, Any]) -> None:
    row = {"question_id": 81, "model_1": "m1", "model_2": "m2", "judge": ["g", "pair"], "turn": 1}
    with pytest.raises(OptionError, match="questions"):
        read({**row, "g1_winner": "model_1", "g2_winner": "model_1"})
    for winner, chosen in (("model_1", 0), ("model_2", 1)):
        (comparison,) = read({**row, "g1_winner": winner, "g2_winner": winner}, options=texts)
        assert [pair.chosen for pair in pairs(comparison)] == [chosen]
        assert said(comparison.responses[0]) == GOOD
    (tie,) = read({**row, "g1_winner": "model_1", "g2_winner": "tie"}, options=texts)
    assert tie.judgement == Ranking((0, 0))
    assert "no judgement" in problems({**row, "g1_winner": "error", "g2_winner": "tie"}, options=texts)[0]
    grade = {"question_id": 81, "judge": ["g", "single"], "judgment": "..", "turn": 2}
    graded = [{**grade, "model": "m1", "score": 9}, {**grade, "model": "m2", "score": 3}]
    (comparison,) = read(graded, options=texts)
    assert comparison.judgement == Ratings((9.0, 3.0))
    assert comparison.joint
    assert "not parsed" in problems([graded[0], {**graded[1], "score": -1}], options=texts)[0]


def test_arena_hard_games_are_not_mapped_back(texts: dict[str, Any]) -> None:
    row = {"question_id": 81, "model": "m1", "judge": "g", "games": [{"score": "B>>A"}, {"score": "A>B"}]}
    with pytest.raises(OptionError, match="baseline"):
        read(row, options=texts)
    both = read(row, options={**texts, "baseline": "m2"})
    assert [said(comparison.responses[pairs(comparison)[0].chosen]) for comparison in both] == [GOOD, GOOD]
    assert [comparison.strength for comparison in both] == [2.0, 1.0]
    assert "no judgement" in problems({**row, "games": [None]}, options={**texts, "baseline": "m2"})[0]


# --- images, interactions, dialogues


def test_pickapic() -> None:
    row = {"caption": "a red fox", "jpg_0": b"0", "jpg_1": b"1", "has_label": True, "are_different": True, "user_id": 5}
    for first, chosen in ((1, [0]), (0, [1]), (0.5, [])):
        (comparison,) = read({**row, "label_0": first, "label_1": 1 - first})
        assert [pair.chosen for pair in pairs(comparison)] == chosen
    assert said(comparison.responses[0]) == [{"type": "image", "image": b"0"}]
    labelled = {**row, "label_0": 1, "label_1": 0}
    assert "no judgement" in problems({**labelled, "has_label": False})[0]
    assert "images are equal" in problems({**labelled, "are_different": False})[0]


@pytest.mark.parametrize("sides", [("chosen_image", "rejected_image"), ("image_chosen", "image_rejected")])
@pytest.mark.parametrize("caption", ["caption", "prompt"])
def test_image_pairs(caption: str, sides: tuple[str, str]) -> None:
    row = {caption: "a red fox", sides[1]: {"bytes": b"1", "path": None}, sides[0]: "a.png", "rewards": [2.0, 1.0]}
    comparisons = load_comparisons([row], on_bad="error")
    assert comparisons.format == "image_pairs"
    (comparison,) = comparisons
    assert said(comparison.responses[pairs(comparison)[0].chosen]) == [{"type": "image", "image": "a.png"}]
    assert comparison.extra == {"rewards": [2.0, 1.0]}
    assert "is null" in problems({**row, sides[1]: None})[0]


def test_hpd() -> None:
    row = {"prompt": "a fox", "image_path": ["a.png", "b.png"]}
    for marks, chosen in (([1, 0], 0), ([0, 1], 1)):
        assert pairs(read({**row, "human_preference": marks})[0])[0].chosen == chosen
    (ranked,) = read({"prompt": "a fox", "images": ["a", "b", "c"], "ranking": [4, 1, 1]})
    assert ranked.judgement == Ranking((1, 0, 0))
    votes = [{"rank": [1, 2], "user_hash": "u"}, {"rank": [2, 1], "user_hash": "v"}]
    first, second = read({**row, "rank": [1, 1], "raw_annotations": votes})
    assert (first.annotator, first.judgement, second.judgement) == ("u", Ranking((0, 1)), Ranking((1, 0)))
    assert "3 ranks for 2 images" in problems({**row, "rank": [1, 2, 3]})[0]


def test_interactions() -> None:
    rows = [
        {"userId": user, "movieId": item, "rating": rating, "timestamp": 1}
        for user, item, rating in ((1, 10, 5.0), (2, 10, 1.0), (1, 11, 2.0), (1, 12, 2.0))
    ]
    comparisons = load_comparisons(rows)
    (comparison,) = comparisons
    assert (comparison.prompts, comparison.responses) == (("1",), ("10", "11", "12"))
    assert comparison.judgement == Ratings((5.0, 2.0, 2.0))
    assert len(comparisons.skipped) == 1
    good = read(rows, options={"rule": "threshold", "threshold": 3})
    assert [label.judgement for label in good] == [Label(value) for value in (True, False, False, False)]
    with pytest.raises(OptionError, match="threshold"):
        read(rows, options={"rule": "threshold"})
    observed = read(rows, options={"rule": "observed", "negatives": 3})
    assert {pair.prompts[0] for pair in observed} == {"2"}  # user 1 has seen everything
    assert {pair.responses[1] for pair in observed} <= {"11", "12"}
    with pytest.raises(OptionError, match="observed"):
        read([{"userID": 1, "artistID": 2, "weight": 13883}])


def test_redial() -> None:
    row = {
        "conversationId": "1",
        "initiatorWorkerId": 1,
        "respondentWorkerId": 2,
        "movieMentions": {"77": "Up (2009)", "78": "Jaws"},
        "messages": [{"text": "I loved @77", "senderWorkerId": 1}, {"text": "Nice", "senderWorkerId": 2}],
        "initiatorQuestions": {"77": {"suggested": 0, "seen": 1, "liked": 1}, "78": {"liked": 2}},
        "respondentQuestions": {"77": {"liked": 0}},
    }
    mine, theirs = read(row)
    assert (mine.responses, mine.judgement, mine.annotator) == (("Up (2009)",), Label(True), "1")
    assert (theirs.judgement, theirs.annotator) == (Label(False), "2")
    assert "no judgement" in problems({**row, "initiatorQuestions": [], "respondentQuestions": []})[0]


# --- columns


@pytest.mark.parametrize("swap", [False, True])
def test_columns_of_two_responses(swap: bool) -> None:
    first, second = sides(swap)
    row = {"q": "Hi", "left": first, "right": second, "vote": "R" if swap else "L", "who": 3, "p": 0.2 if swap else 0.8}
    base = {"prompt": "q", "response_a": "left", "response_b": "right", "annotator": "who"}
    (voted,) = read(row, columns={**base, "winner": "vote"}, options={"outcomes": {"L": "a", "R": "b"}})
    (probable,) = read(row, columns={**base, "probability": "p"})
    for comparison in (voted, probable):
        assert comparison.responses[pairs(comparison)[0].chosen] == GOOD
        assert comparison.annotator == "3"
    assert pairs(probable)[0].probability == pytest.approx(0.8)
    assert "unknown outcome" in problems(row, columns={**base, "winner": "vote"})[0]
    (plain,) = read({**row, "vote": "B" if swap else "A"}, columns={**base, "winner": "vote"})
    assert plain.responses[pairs(plain)[0].chosen] == GOOD
    rated = {**row, "ra": 1 if swap else 4, "rb": 4 if swap else 1}
    (scored,) = read(rated, columns={**base, "rating_a": "ra", "rating_b": "rb"})
    assert scored.responses[pairs(scored)[0].chosen] == GOOD


def test_columns_of_labels_and_pairs() -> None:
    row = {"q": "Hi", "text": GOOD, "other": BAD, "ok": "yes"}
    columns = {"prompt": "q", "response": "text", "label": "ok"}
    assert read(row, columns=columns, options={"good": ["yes"], "bad": ["no"]})[0].judgement == Label(True)
    assert read({**row, "ok": False}, columns=columns)[0].judgement == Label(False)
    assert "unknown outcome 'yes'" in problems(row, columns=columns)[0]
    (pair,) = read(row, columns={"prompt": "q", "chosen": "text", "rejected": "other"})
    assert (pair.prompts, pair.responses, pair.judgement) == (("Hi",), (GOOD, BAD), Winner(0))
    (best,) = read(
        {"q": "Hi", "all": ["a", "b", "c"], "best": 2}, columns={"prompt": "q", "responses": "all", "winner": "best"}
    )
    assert best.judgement == Winner(2)


def test_columns_of_lists_and_ratings() -> None:
    row = {"q": "Hi", "texts": [BAD, GOOD, "c"], "scores": [1, 5, 5], "places": [3, 1, 2], "best_first": [1, 2, 0]}
    base = {"prompt": "Ask: {q}", "responses": "texts"}
    assert read(row, columns={**base, "ratings": "scores"})[0].judgement == Ratings((1.0, 5.0, 5.0))
    (ranked,) = read(row, columns={**base, "ranks": "places"})
    assert (ranked.judgement, ranked.prompts) == (Ranking((2, 0, 1)), ("Ask: Hi",))
    assert read(row, columns={**base, "order": "best_first"})[0].judgement == Ranking((2, 0, 1))
    repeated = problems({**row, "best_first": [1, 1, 0]}, columns={**base, "order": "best_first"})
    assert repeated == ["1:best_first: a ranking of 3 responses must hold each of 0..2 once, got [1, 1, 0]"]
    assert "finite" in problems({**row, "scores": [1, float("nan"), 2]}, columns={**base, "ratings": "scores"})[0]


def test_columns_of_single_ratings_are_grouped() -> None:
    rows = [{"q": q, "text": text, "score": score} for q, text, score in (("x", "a", 1), ("y", "b", 2), ("x", "c", 3))]
    columns = {"prompt": "q", "response": "text", "rating": "score"}
    assert len(problems(rows, columns=columns)) == 3
    comparisons = load_comparisons(rows, columns=columns, options={"grouping": "file"})
    (comparison,) = comparisons
    assert comparison.judgement == Ratings((1.0, 3.0))
    assert [row.line for row in comparisons.skipped] == [2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"promt": "q", "chosen": "a", "rejected": "b"}, "did you mean 'prompt'"),
        ({"prompt": "q", "response_a": "a", "response_b": "b"}, "winner, probability, rating_a"),
        ({"prompt": "q"}, "which columns hold the responses"),
        ({"responses": "a", "ranks": "b"}, "holds the prompt"),
        ({"prompt": "missing", "chosen": "a", "rejected": "b"}, "no column 'missing'"),
    ],
)
def test_incomplete_columns(columns: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load_comparisons([{"q": "Hi", "a": GOOD, "b": BAD}], columns=columns)


# --- detection


def test_detection_asks_instead_of_guessing() -> None:
    with pytest.raises(PrefkitError, match="no known format has the columns foo"):
        load_comparisons([{"foo": 1}])
    both = {**TWO_SIDED["shp"](GOOD, BAD, False), **TWO_SIDED["judgebench"](GOOD, BAD, False), "labels": 1}
    with pytest.raises(PrefkitError, match="fits the formats shp and judgebench"):
        load_comparisons([both])
    with pytest.raises(PrefkitError, match="row 1 looks like shp and row 2 looks like tinker"):
        load_comparisons([TWO_SIDED["shp"](GOOD, BAD, False), TWO_SIDED["tinker"](GOOD, BAD, False)])
    with pytest.raises(PrefkitError, match="row 2 looks like no known format"):
        load_comparisons([TWO_SIDED["shp"](GOOD, BAD, False), {"foo": 1}])
    with pytest.raises(PrefkitError, match="did you mean 'helpsteer3'"):
        load_comparisons([both], format="helpster3")


def test_a_bad_row_does_not_hide_the_format() -> None:
    good = TWO_SIDED["shp"](GOOD, BAD, False)
    broken = {name: value for name, value in good.items() if name != "labels"}
    assert load_comparisons([broken, good]).format == "shp"
    rows = [{"conversations": None, "kto_tag": True}, {"conversations": chat(GOOD), "kto_tag": True}]
    assert load_comparisons(rows).format == "sharegpt"


def test_joint_preferences() -> None:
    row = CHOSEN["joint"]
    (comparison,) = read(row)
    assert (comparison.joint, comparison.prompts, comparison.judgement) == (True, ("Hi", "Bye"), Winner(0))
    (comparison,) = read({**row, "i_reject": "Hi"})
    assert (comparison.joint, comparison.prompts) == (False, ("Hi",))
    (comparison,) = read({**row, "r_reject": GOOD})  # the same answer to another instruction
    assert comparison.responses == (GOOD, GOOD)
    wrapped = "### Instructions: {}\n\n### Response:"
    (comparison,) = read(row, options={"template": wrapped})
    assert comparison.prompts[1] == "### Instructions: Bye\n\n### Response:"
    with pytest.raises(OptionError, match=r"template must hold \{\} where the instruction stands"):
        read(row, options={"template": "Instruction:"})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"r_chosen": None}, "r_chosen: is null"),
        ({"i_reject": " "}, "i_reject: is empty"),
        ({"r_reject": ""}, "r_reject: is empty"),
        ({"i_reject": 3}, "i_reject: must be text, got 3"),
        ({"i_reject": "Hi", "r_reject": GOOD}, "r_chosen: chosen equals rejected"),
        ({"feedback": 2}, "feedback: is a tie, and i_chosen and i_reject name a winner"),
    ],
)
def test_bad_joint_preferences(change: dict[str, Any], problem: str) -> None:
    found = problems([CHOSEN["joint"], {**CHOSEN["joint"], **change}])
    assert len(found) == 1
    assert found[0].startswith(f"2:{problem}")


def test_joint_preference_without_a_field() -> None:
    short = {name: value for name, value in CHOSEN["joint"].items() if name != "i_reject"}
    assert problems([CHOSEN["joint"], short]) == ["2:i_reject: is missing"]
