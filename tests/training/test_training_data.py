from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.training.tiny_domain import LetterScorer, comparisons

from prefkit.comparisons import Comparison, Label, Probability, Ranking, Ratings, load_comparisons
from prefkit.errors import OptionError, PrefkitError
from prefkit.objectives import Form
from prefkit.training import PairingOptions, TrainingData, prepare
from prefkit.training.arrow import Rows, RowWriter
from prefkit.training.data import Batches

THREE = Comparison(("p",), ("a", "bb", "ccc"), Ranking((1, 0, 2)), source="three.jsonl", line=4, weight=2.0)
PAIR = Comparison.pair("q", "good", "bad", source="pair.jsonl", line=7)


def made(tmp_path: Path, records: list[Comparison], form: Form, needs: str = "", **pairing: Any) -> TrainingData:
    return prepare(
        LetterScorer(longest=8),
        records,
        form=form,
        needs=frozenset(needs.split()),
        pairing=PairingOptions(**pairing),
        cache=tmp_path / "cache",
        skipped=tmp_path / "skipped.jsonl",
    )


def batch(data: TrainingData, *rows: int) -> Any:
    return data.collate(LetterScorer(), [data[row] for row in rows])["targets"]


def letters(data: TrainingData, row: int) -> list[str]:
    return ["".join(map(chr, ids)) for ids in data[row]["encoded"]["responses"]]


def test_pairs_point_at_the_responses_of_their_batch(tmp_path: Path) -> None:
    data = made(tmp_path, [THREE, PAIR], "pairs")
    targets = batch(data, 1, 0)
    # The pair has responses 0 and 1 of the batch; the three of the ranking are 2, 3, 4: b over a, b over c, a over c.
    assert sorted(targets.index.tolist()) == [[0, 1], [2, 4], [3, 2], [3, 4]]
    assert targets.rows.tolist() == [1, 0, 0, 0]
    assert targets.weights.tolist() == [1.0, 2.0, 2.0, 2.0]
    assert targets.probabilities is None
    assert data.where(0) == "three.jsonl:4"


def test_only_responses_that_are_looked_at_are_encoded(tmp_path: Path) -> None:
    data = made(tmp_path, [THREE], "pairs", strategy="best_worst")
    assert letters(data, 0) == ["bb", "ccc"]
    assert batch(data, 0).index.tolist() == [[0, 1]]


def test_soft_labels_strengths_and_annotators(tmp_path: Path) -> None:
    soft = Comparison(("p",), ("a", "b"), Probability(0.3), strength=2.0, annotator="Eve")
    hard = Comparison.pair("p", "c", "d", strength=1.0, annotator="Ada")
    data = made(tmp_path, [soft, hard], "pairs", needs="strengths annotators")
    targets = batch(data, 0, 1)
    assert targets.index.tolist() == [[1, 0], [2, 3]]
    torch.testing.assert_close(targets.probabilities, torch.tensor([0.7, 1.0]))
    assert targets.strengths.tolist() == [2.0, 1.0]
    assert [data.annotators[place] for place in targets.annotators] == ["Eve", "Ada"]
    assert targets.weights is None


def test_annotators_that_are_known_keep_their_places(tmp_path: Path) -> None:
    records = [Comparison.pair("p", "a", "b", annotator=name) for name in ("new", "Ben", "Eve")]
    data = prepare(
        LetterScorer(),
        records,
        form="pairs",
        needs=frozenset({"annotators"}),
        annotators=("Eve", "Ben"),
        cache=tmp_path,
    )
    assert batch(data, 0, 1, 2).annotators.tolist() == [2, 1, 0]
    assert data.annotators == ("Eve", "Ben", "new")


@pytest.mark.parametrize(("large", "warned"), [(1, False), (2, True)])
def test_margins_that_are_no_log_odds_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, large: int, warned: bool
) -> None:
    rewards = [[25.0, 0.0]] * large + [[20.0, 0.0]] * (20 - large)
    records = [Comparison.pair("p", "a", "b", extra={"rewards": pair}) for pair in rewards]
    data = made(tmp_path, records, "pairs", needs="margins")
    assert batch(data, 0, 19).margins.tolist() == [25.0, 20.0]
    found = "2 of 20 reward margins exceed 20 in absolute value" in caplog.text
    assert found == warned


def test_lists_are_padded(tmp_path: Path) -> None:
    targets = batch(made(tmp_path, [THREE, PAIR], "lists"), 0, 1)
    assert targets.index.tolist() == [[0, 1, 2], [3, 4, -1]]
    assert targets.ranks.tolist() == [[1, 0, 2], [0, 1, 0]]


def test_labels_come_with_a_response_of_the_next_record(tmp_path: Path) -> None:
    records = [Comparison((f"p{n}",), (f"answer{n}",), Label(n != 1)) for n in range(3)]
    data = made(tmp_path, records, "labels", needs="kl")
    assert [letters(data, row) for row in range(3)] == [
        ["answer0", "answer1"],
        ["answer1", "answer2"],
        ["answer2", "answer0"],
    ]
    targets = batch(data, 0, 1, 2)
    assert targets.index.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert targets.labels.tolist() == [True, False, True]


def test_ratings_become_labels_at_a_threshold(tmp_path: Path) -> None:
    rated = Comparison(("p",), ("a", "b", "c"), Ratings((1.0, 4.0, 3.0)))
    targets = batch(made(tmp_path, [rated], "labels", threshold=3.0), 0)
    assert targets.labels.tolist() == [False, True, True]
    assert targets.index.tolist() == [[0, -1], [1, -1], [2, -1]]


def test_demonstrations_are_the_best_responses(tmp_path: Path) -> None:
    good, bad = (Comparison(("p",), ("x",), Label(good)) for good in (True, False))
    data = made(tmp_path, [THREE, good, bad], "demonstrations")
    assert [letters(data, row) for row in range(len(data))] == [["bb"], ["x"]]
    assert data.skipped == 1


def test_records_that_cannot_be_used_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tie = Comparison(("p",), ("a", "b"), Ratings((1.0, 1.0)), source="x.jsonl", line=2)
    long = Comparison.pair("p", "a" * 9, "b", source="x.jsonl", line=3)
    label = Comparison(("p",), ("a",), Label(True), source="x.jsonl", line=4)
    data = made(tmp_path, [PAIR, tie, long, label], "pairs")
    assert (len(data), data.skipped) == (1, 3)
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert sorted(line["line"] for line in lines) == [2, 3, 4]
    said = {line["line"]: line for line in lines}
    assert said[3] == {"source": "x.jsonl", "line": 3, "field": "responses", "problem": "9 letters, at most 8"}
    assert "preferred" in said[2]["problem"]
    assert "unpaired" in said[4]["problem"]


def test_rows_that_the_reader_set_aside_are_named_too(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": f"good{n}", "rejected": "bad" * n} for n in range(1, 4)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*map(json.dumps, rows), '{"prompt": ']) + "\n")
    read = load_comparisons(tmp_path / "rows.jsonl")
    for _ in range(2):
        (tmp_path / "skipped.jsonl").unlink(missing_ok=True)
        data = made(tmp_path, read, "pairs")  # type: ignore[arg-type]  # a stream
        lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
        assert sorted((line["line"], line["field"]) for line in lines) == [(3, "responses"), (4, None)]
        assert (len(data), data.skipped) == (2, 2)


def test_unpaired_data_for_a_pairwise_objective_is_an_error(tmp_path: Path) -> None:
    label = Comparison(("p",), ("a",), Label(True), source="x.jsonl", line=1)
    with pytest.raises(PrefkitError, match=r"no comparison can be used.*x\.jsonl:1.*unpaired"):
        made(tmp_path, [label], "pairs")


def test_nothing_that_can_be_encoded_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PrefkitError, match=r"no comparison can be used.*9 letters, at most 8"):
        made(tmp_path, [Comparison.pair("p", "a" * 9, "b")], "pairs")


def test_no_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PrefkitError, match="there are none"):
        made(tmp_path, [], "pairs")


def test_a_reference_point_needs_two_records(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="one record is too few"):
        made(tmp_path, [Comparison(("p",), ("a",), Label(True))], "labels", needs="kl")


def test_a_generator_is_refused(tmp_path: Path) -> None:
    records: Any = iter([PAIR])
    with pytest.raises(PrefkitError, match="not a generator"):
        made(tmp_path, records, "pairs")


def test_encodings_are_kept_and_shared_between_objectives(tmp_path: Path) -> None:
    records = comparisons(5)
    for form, expected in (("pairs", 5), ("pairs", 0), ("lists", 0), ("demonstrations", 5)):
        scorer = LetterScorer()
        data = prepare(scorer, records, form=form, cache=tmp_path)  # type: ignore[arg-type]  # a literal
        assert (form, scorer.encoded) == (form, expected)
        assert len(data) == 5
    other = LetterScorer(longest=63)
    prepare(other, records, form="pairs", cache=tmp_path)
    assert other.encoded == 5


def test_damaged_encodings_are_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = prepare(LetterScorer(), comparisons(5), form="pairs", cache=tmp_path)
    whole = data.encodings.path.read_bytes()
    data.encodings.path.write_bytes(whole[:-20])
    scorer = LetterScorer()
    prepare(scorer, comparisons(5), form="pairs", cache=tmp_path)
    assert scorer.encoded == 5
    assert data.encodings.path.read_bytes() == whole


class Stream:
    """Comparisons that are never all in memory."""

    def __iter__(self) -> Iterator[Comparison]:
        for number in range(1000):
            yield Comparison.pair(f"p{number}", "a" * 2000, "b" * 2000)


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    # 1000 rows of 4000 letters are 32 MB as encoded; 128 of them, which are held at a time, 4 MB.
    tracemalloc.start()
    data = prepare(LetterScorer(longest=4000), Stream(), form="pairs", cache=tmp_path)  # type: ignore[arg-type]  # iterable
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data) == 1000
    assert data.encodings.path.stat().st_size > 30e6
    assert peak < 12e6


def processes_of(monkeypatch: pytest.MonkeyPatch, rows: int, size: int, count: int, seed: int | None) -> list[Batches]:
    made = []
    for rank in range(count):
        monkeypatch.setattr("prefkit.training.processes.rank", lambda rank=rank: rank)
        monkeypatch.setattr("prefkit.training.processes.count", lambda: count)
        made.append(Batches(rows, size, seed))
    return made


@pytest.mark.parametrize(("rows", "size", "count"), [(13, 2, 2), (12, 3, 2), (1, 4, 3), (7, 1, 7)])
def test_processes_share_the_batches_of_one(monkeypatch: pytest.MonkeyPatch, rows: int, size: int, count: int) -> None:
    [one] = processes_of(monkeypatch, rows, size * count, 1, seed=5)
    many = processes_of(monkeypatch, rows, size, count, seed=5)
    for epoch in range(2):
        for batches in (one, *many):
            batches.epoch = epoch
        assert sorted(row for batch in one for row in batch) == list(range(rows))
        for whole, *parts in zip(one, *many, strict=True):
            assert sorted(whole) == sorted(row for part in parts for row in part)
            assert all(len(part) <= size for part in parts)
        assert len(one) == len(list(one)) == len(many[0])


def test_order_depends_on_seed_and_epoch_only() -> None:
    first, again, other = Batches(50, 8, 0), Batches(50, 8, 0), Batches(50, 8, 1)
    assert list(first) == list(again) != list(other)
    again.epoch = 1
    assert list(first) != list(again)
    assert [row for batch in Batches(50, 8, None) for row in batch] == list(range(50))


def test_a_process_without_rows_scores_something_and_adds_nothing(tmp_path: Path) -> None:
    for form in ("pairs", "lists", "labels", "demonstrations"):
        data = made(tmp_path, [THREE, PAIR], form)  # type: ignore[arg-type]  # a literal
        collated = data.collate(LetterScorer(), [])
        assert len(collated["targets"]) == 0
        scores = LetterScorer()(collated["inputs"])
        losses = collated["targets"].view(scores)
        assert len(getattr(losses, "policy_logps", getattr(losses, "policy_chosen_logps", None))) == 0


rows_of = st.lists(
    st.tuples(st.lists(st.lists(st.integers(0, 2**40), max_size=4), max_size=3), st.booleans(), st.text())
)


@given(rows_of)
def test_rows_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.arrow"
    kept = [dict(zip(("nested", "flag", "text"), row, strict=True)) for row in rows]
    with RowWriter(path) as writer:
        for row in kept:
            writer.append(row)
    assert list(Rows(path)) == kept


def test_a_column_may_be_empty_at_first(tmp_path: Path) -> None:
    kept = [{"n": n, "list": [] if n < 700 else [n], "late": None if n < 300 else float(n)} for n in range(1000)]
    with RowWriter(tmp_path / "rows.arrow") as writer:
        for row in kept:
            writer.append(row)
    read = Rows(tmp_path / "rows.arrow")
    assert [read[n] for n in (999, 0, 300, 127, 128, 700)] == [kept[n] for n in (999, 0, 300, 127, 128, 700)]
    assert [row["n"] for row in read] == list(range(1000))
    assert read._reader.schema.field("list").type == pa.list_(pa.int64())
