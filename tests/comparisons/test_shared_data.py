"""Every public text preference set at hand, with its documented count, and every row that is set aside explained."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefkit.comparisons import Comparison, Comparisons, load_comparisons, pairs

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module", autouse=True)
def _data_is_there() -> None:
    if not DATA.is_dir():
        pytest.skip(f"the public data sets are not at {DATA}")


def rows(name: str) -> list[dict[str, Any]]:
    """Rows by the standard library, to compare with."""
    with gzip.open(DATA / name, "rt", encoding="utf-8", newline="") as file:
        return (
            list(csv.DictReader(file))
            if ".csv" in name
            else [json.loads(line) for line in file.read().split("\n") if line]
        )


def read(name: str, **how: Any) -> tuple[Comparisons, list[Comparison]]:
    comparisons = load_comparisons(DATA / name, **how)
    return comparisons, list(comparisons)


def reasons(comparisons: Comparisons) -> dict[str, int]:
    return dict(comparisons.skipped.reasons())


def first_wins(found: list[Comparison]) -> list[bool]:
    return [pair.chosen == 0 for comparison in found for pair in pairs(comparison)]


def test_hh_rlhf() -> None:
    comparisons = load_comparisons(str(DATA / "hh_rlhf" / "*.jsonl.gz"))
    found = list(comparisons)
    assert comparisons.format == "hh_rlhf"
    assert len(found) + len(comparisons.skipped) == 6434
    assert reasons(comparisons) == {
        "'chosen': chosen equals rejected": 29,
        "'chosen': ends with an empty answer": 3,
        "'rejected': ends with an empty answer": 4,
        "'rejected': ends with a human turn instead of an answer": 2,
    }
    source = {str(path): rows(f"hh_rlhf/{path.name}") for path in (DATA / "hh_rlhf").glob("*.gz")}
    for comparison in found:
        row = source[str(comparison.source)][int(comparison.line or 0) - 1]
        for index, side in enumerate(("chosen", "rejected")):
            prompt, answer = comparison.prompt_of(index), comparison.responses[index]
            assert isinstance(prompt, str)
            assert isinstance(answer, str)
            assert prompt + answer == row[side]
            assert prompt.endswith("\n\nAssistant:")
            assert "\n\nAssistant:" not in answer
            assert "\n\nHuman:" not in answer
    assert sum(comparison.joint for comparison in found) == 11
    # A reference figure of the data set: a longer last reply wins in 60.5% of helpful-base, ties counting half.
    base, helpful = read("hh_rlhf/helpful-base.jsonl.gz")
    lengths = [[len(str(text)) for text in comparison.responses] for comparison in helpful]
    wins = sum((a > b) + (a == b) / 2 for a, b in lengths)
    assert wins / len(lengths) == pytest.approx(0.605, abs=0.005)
    assert len(base.skipped) + len(helpful) == 1775


def test_tldr_comparisons() -> None:
    comparisons, found = read("tldr_comparisons/comparisons.jsonl.gz")
    given = rows("tldr_comparisons/comparisons.jsonl.gz")
    assert (comparisons.format, len(found), len(comparisons.skipped)) == ("summaries_flat", 1267, 0)
    assert first_wins(found) == [row["choice"] == 0 for row in given]
    assert [comparison.annotator for comparison in found] == [row["worker"] for row in given]


def test_pandalm() -> None:
    comparisons, found = read("pandalm/pandalm.jsonl.gz")
    empty = Counter(
        next((side for side in ("response1", "response2") if not row[side].strip()), "")
        for row in rows("pandalm/pandalm.jsonl.gz")
    )
    assert reasons(comparisons) == {f"'{side}': is empty": count for side, count in empty.items() if side}
    assert len(found) == 3 * (763 - len(comparisons.skipped))
    kept = [row for row in rows("pandalm/pandalm.jsonl.gz") if row["response1"].strip() and row["response2"].strip()]
    votes = [row[f"annotator{who}"] for row in kept for who in (1, 2, 3)]
    assert sum(not pairs(comparison) for comparison in found) == votes.count(0)
    assert sum(first_wins(found)) == votes.count(1)


def test_llmbar() -> None:
    comparisons, found = read("llmbar/llmbar.jsonl.gz")
    assert len(found) == 883
    assert [(row.line, row.field) for row in comparisons.skipped] == [
        (index, "responses" if row["output_1"] == row["output_2"] else name)
        for index, row in enumerate(rows("llmbar/llmbar.jsonl.gz"), 1)
        for name in ("output_1", "output_2")
        if not row[name].strip() or (name == "output_1" and row["output_1"] == row["output_2"])
    ]
    natural = [comparison for comparison in found if comparison.extra["subset"] == "natural"]
    lengths = [[len(text[0]["content"]) for text in comparison.responses] for comparison in natural]
    right = [(a > b) == first for (a, b), first in zip(lengths, first_wins(natural), strict=True)]
    assert sum(right) / len(right) == pytest.approx(0.565, abs=0.01)  # the set's own reference figure


def test_judgebench() -> None:
    comparisons, found = read("judgebench/judgebench.jsonl.gz")
    assert (comparisons.format, len(found), len(comparisons.skipped)) == ("judgebench", 350, 0)
    assert first_wins(found) == [row["label"][0] == "A" for row in rows("judgebench/judgebench.jsonl.gz")]


def test_rm_bench() -> None:
    comparisons, found = read("rm_bench/rm_bench.jsonl.gz")
    assert (comparisons.format, len(found), len(comparisons.skipped)) == ("best_of", 570, 0)
    won = [(pair.chosen, pair.rejected - 3, comparison) for comparison in found for pair in pairs(comparison)]
    assert len(won) == 9 * 570
    hard = [
        len(comparison.responses[i][0]["content"]) > len(comparison.responses[j + 3][0]["content"])
        for i, j, comparison in won
        if i < j
    ]
    assert sum(hard) / len(hard) == pytest.approx(0.083, abs=0.001)  # a length-only scorer, from the set's description


def test_hhh_alignment() -> None:
    comparisons, found = read("hhh_alignment/hhh.jsonl.gz")
    assert (comparisons.format, len(found), len(comparisons.skipped)) == ("trl_preference", 221, 0)
    longer = [len(str(comparison.responses[0])) > len(str(comparison.responses[1])) for comparison in found]
    assert sum(longer) / 221 == pytest.approx(0.633, abs=0.005)


def test_ukp_convarg_votes() -> None:
    """Votes, pairs, arguments and reasons are tables of their own: a join, then a column mapping."""
    text = {row["arg_id"]: row["text"] for row in rows("ukp_convarg/arguments.jsonl.gz")}
    pair = {row["pair_id"]: row for row in rows("ukp_convarg/pairs.csv.gz")}
    reason = {(row["pair_id"], row["worker"]): row["reason"] for row in rows("ukp_convarg/reasons.jsonl.gz")}
    votes = rows("ukp_convarg/votes.csv.gz")
    joined = [
        {
            **vote,
            "topic": pair[vote["pair_id"]]["topic"],
            "a": text[pair[vote["pair_id"]]["arg1"]],
            "b": text[pair[vote["pair_id"]]["arg2"]],
            "reason": reason[vote["pair_id"], vote["worker"]],
        }
        for vote in votes
    ]
    comparisons = load_comparisons(
        joined,
        columns={
            "prompt": "topic", "response_a": "a", "response_b": "b", "winner": "choice", "annotator": "worker",
            "rationale": "reason", "id": "pair_id",
        },
        options={"outcomes": {"a1": "a", "a2": "b", "equal": "tie"}},
    )  # fmt: skip
    found = list(comparisons)
    assert len(found) + len(comparisons.skipped) == 62267
    assert set(reasons(comparisons)) <= {"'responses': chosen equals rejected"}
    same = sum(row["a"] == row["b"] and row["choice"] != "equal" for row in joined)
    assert len(comparisons.skipped) == same
    counts = Counter(row["choice"] for row in joined if row["a"] != row["b"])
    different = [comparison for comparison in found if comparison.responses[0] != comparison.responses[1]]
    assert sum(first_wins(different)) == counts["a1"]
    assert sum(not pairs(comparison) for comparison in different) == counts["equal"]


def test_humour_pairs_as_soft_labels() -> None:
    text = {row["item"]: row["text"] for row in rows("humour_pairs/items.jsonl.gz")}

    class Joined:
        def __iter__(self) -> Iterator[dict[str, Any]]:
            for row in rows("humour_pairs/pairs.csv.gz"):
                a, b = int(row["votes_a"]), int(row["votes_b"])
                yield {
                    "prompt": "Say something funny.", "a": text[int(row["item_a"])], "b": text[int(row["item_b"])],
                    "p": a / (a + b), "votes": a + b,
                }  # fmt: skip

    comparisons = load_comparisons(
        Joined(),
        columns={"prompt": "prompt", "response_a": "a", "response_b": "b", "probability": "p", "weight": "votes"},
    )
    found = list(comparisons)
    assert (len(found), len(comparisons.skipped)) == (22401, 0)
    majority = sum(pair.probability * pair.weight for comparison in found for pair in pairs(comparison, ties="half"))
    assert majority / 90472 == pytest.approx(0.764, abs=0.001)  # the set's own reference figure


def test_realsumm_lists() -> None:
    reference = {row["doc"]: row["reference"] for row in rows("realsumm/references.jsonl.gz")}
    joined = [{**row, "reference": reference[row["doc"]]} for row in rows("realsumm/summaries.jsonl.gz")]
    comparisons = load_comparisons(
        joined,
        columns={"prompt": "Summarise: {reference}", "response": "summary", "rating": "litepyramid_recall"},
        options={"grouping": "file"},
    )
    found = list(comparisons)
    assert (len(found), len(comparisons.skipped)) == (63, 0)
    assert sum(len(comparison.responses) for comparison in found) == 1575


def test_newsroom_ratings() -> None:
    article = {row["article"]: row["text"] for row in rows("newsroom/articles.jsonl.gz")}
    kinds = ("informativeness", "relevance", "fluency", "coherence")
    joined = [
        {"text": article[row["article"]], "summary": row["summary"], "score": row[kind][who], "who": who, "kind": kind}
        for row in rows("newsroom/summaries.jsonl.gz")
        for kind in kinds
        for who in range(3)
    ]
    columns = {"prompt": "text", "response": "summary", "rating": "score", "annotator": "who", "criterion": "kind"}
    comparisons = load_comparisons(joined, columns=columns, options={"grouping": "file"})
    found = list(comparisons)
    assert (len(found), len(comparisons.skipped)) == (60 * 4 * 3, 0)
    assert {len(comparison.responses) for comparison in found} == {7}


def test_persona_evals() -> None:
    comparisons, found = read(
        "persona_evals/human_written_risk_evals.jsonl.gz",
        columns={"prompt": "question", "chosen": "matching_answer", "rejected": "not_matching_answer"},
    )
    assert (len(found), len(comparisons.skipped)) == (6084, 0)


def test_imagereward_rankings() -> None:
    comparisons, found = read("imagereward_test/rankings.jsonl.gz")
    assert (comparisons.format, len(found), len(comparisons.skipped)) == ("hpd", 354, 0)
    made = [pair for comparison in found for pair in pairs(comparison, ties="half")]
    ties = sum(pair.probability == 0.5 for pair in made)
    assert (len(made) - ties, ties) == (4764, 622)  # counts of the set's description


def test_movielens() -> None:
    comparisons, found = read("movielens_small/ratings.csv.gz")
    assert (comparisons.format, len(found)) == ("interactions", 610)
    assert sum(len(comparison.responses) for comparison in found) == 90478


@pytest.mark.parametrize(("minus_one", "used"), [("tie", 58000), ("no_judgement", 45863)])
def test_crowd_labels_need_their_direction(minus_one: str, used: int) -> None:
    options = {"winner": "second", "minus_one": minus_one}
    comparisons, found = read("crowd_rl_labels/labels.csv.gz", options=options)
    assert (len(found), len(comparisons.skipped)) == (used, 58000 - used)
    assert sum(first_wins(found)) == sum(row["human_label"] == "0" for row in rows("crowd_rl_labels/labels.csv.gz"))


def test_human_trajectories() -> None:
    found = read(
        "human_trajectory_prefs/hopper-medium-replay-v2.npz", options={"winner": "second", "label": "human_label"}
    )[1]
    assert len(found) == 35
    assert sum(not pairs(comparison) for comparison in found) == 17  # ties of the set's description
