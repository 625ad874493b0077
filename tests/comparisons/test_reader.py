"""Sources, passes, bad rows and memory."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pytest

from prefkit.comparisons import Comparisons, load_comparisons
from prefkit.errors import OptionError, PrefkitError, RecordError

ROW = {"prompt": "Hi", "chosen": " yes", "rejected": " no"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def skipped(comparisons: Comparisons) -> list[str]:
    list(comparisons)
    return [f"{Path(row.source or '').name}:{row.line}:{row.field}: {row.problem}" for row in comparisons.skipped]


def test_sources(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", ROW), write(tmp_path / "b.jsonl", ROW, ROW)
    assert len(list(load_comparisons(one))) == 1
    assert len(list(load_comparisons(str(tmp_path / "*.jsonl")))) == 3
    assert [comparison.line for comparison in load_comparisons([one, str(two)])] == [1, 1, 2]
    assert len(list(load_comparisons([ROW, ROW]))) == 2
    assert len(list(load_comparisons(iter([ROW, ROW])))) == 2
    assert len(list(load_comparisons(two, limit=1))) == 1


def test_datasets(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([ROW, ROW])
    comparisons = load_comparisons(rows)
    assert [len(list(comparisons)) for _ in range(2)] == [2, 2]
    assert len(list(load_comparisons(rows.to_iterable_dataset()))) == 2
    rows.save_to_disk(tmp_path / "single")
    assert len(list(load_comparisons(tmp_path / "single"))) == 2
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "several")
    assert len(list(load_comparisons(tmp_path / "several", split="test"))) == 1
    with pytest.raises(OptionError, match=r"name one of its splits.*train, test"):
        load_comparisons(tmp_path / "several")
    arrow = next((tmp_path / "single").glob("*.arrow"))
    assert len(list(load_comparisons(arrow))) == 2


def test_names_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, configuration: str | None, *, split: str | None, streaming: bool) -> datasets.IterableDataset:
        assert (name, configuration, split, streaming) == ("someone/pairs", "small", "test", True)
        return datasets.Dataset.from_list([ROW, ROW]).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    comparisons = load_comparisons("someone/pairs:small", split="test")
    assert [len(list(comparisons)) for _ in range(2)] == [2, 2]

    def fail(*args: object, **more: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(PrefkitError, match=r"someone/pairs: no such file, and no data set .* \(offline\)"):
        load_comparisons("someone/pairs")


def test_each_iteration_is_a_fresh_pass(tmp_path: Path) -> None:
    comparisons = load_comparisons(write(tmp_path / "a.jsonl", ROW, "{", ROW))
    for _ in range(2):
        assert len(list(comparisons)) == 2
        assert len(comparisons.skipped) == 1
    assert (comparisons.format, comparisons.source) == ("trl_preference", str(tmp_path / "a.jsonl"))


def test_what_the_source_says_is_kept(tmp_path: Path) -> None:
    row = {**ROW, "annotator": 7, "id": 12345678901234567890, "margin": 2, "licence": "MIT", "big": 2**60, "none": None}
    (comparison,) = load_comparisons(write(tmp_path / "a.jsonl", row))
    assert (comparison.annotator, comparison.id, comparison.strength) == ("7", "12345678901234567890", 2.0)
    assert comparison.extra == {"margin": 2, "licence": "MIT", "big": str(2**60)}
    assert (comparison.source, comparison.line) == (str(tmp_path / "a.jsonl"), 1)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('{"prompt": ', "2:None: bad JSON: Expecting value at column 11"),
        ({"prompt": "Hi", "chosen": "a"}, "2:rejected: is missing"),
        ({**ROW, "chosen": None}, "2:chosen: is null"),
        ({**ROW, "chosen": "  "}, "2:chosen: is empty"),
        ({**ROW, "prompt": ""}, "2:prompt: is empty"),
        ({**ROW, "prompt": [{"role": "user", "content": " "}]}, "2:prompt: is empty"),
        ({**ROW, "chosen": [{"role": "assistant", "content": ""}], "rejected": [{"role": "assistant", "content": "b"}]},
         "2:responses: response 0 is empty"),
        ({**ROW, "chosen": " no"}, "2:chosen: chosen equals rejected; there is no preference in an identical pair"),
        ({**ROW, "chosen": 3}, "2:chosen: must be text or messages with role and content, got 3"),
        ({**ROW, "chosen": "\ud83d"}, "2:responses: holds bytes that are not UTF-8, or half of a surrogate pair"),
        ({**ROW, "margin": -1}, "2:margin: must be at least 0, got -1"),
        ({**ROW, "margin": "wide"}, "2:margin: must be a number, got 'wide'"),
    ],
)  # fmt: skip
def test_bad_rows_have_messages_of_their_own(row: Any, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROW, row if isinstance(row, str) else json.dumps(row), ROW)
    assert skipped(load_comparisons(path)) == [f"a.jsonl:{expected}"]
    with pytest.raises(RecordError) as caught:
        list(load_comparisons(path, on_bad="error"))
    line, field, problem = expected.split(":", 2)
    named = "" if field == "None" else f"field '{field}': "
    assert str(caught.value) == f"{path}:{line}: {named}{problem.strip()}"


def test_ratings_and_rankings_that_make_no_sense(tmp_path: Path) -> None:
    rated = write(tmp_path / "r.jsonl", '{"p": "x", "t": ["a", "b"], "s": [1, NaN]}')
    columns = {"prompt": "p", "responses": "t", "ratings": "s"}
    assert skipped(load_comparisons(rated, columns=columns)) == ["r.jsonl:1:s.1: must be a finite number, got nan"]
    ranked = write(
        tmp_path / "o.jsonl", {"p": "x", "t": ["a", "b"], "s": [0, 0]}, {"p": "x", "t": ["a", "b"], "s": [1]}
    )
    assert skipped(load_comparisons(ranked, columns={"prompt": "p", "responses": "t", "order": "s"})) == [
        "o.jsonl:1:s: a ranking of 2 responses must hold each of 0..1 once, got [0, 0]",
        "o.jsonl:2:s: a ranking of 2 responses must hold each of 0..1 once, got [1]",
    ]


def test_skipped_rows_are_written(tmp_path: Path) -> None:
    comparisons = load_comparisons(write(tmp_path / "a.jsonl", ROW, "{", {**ROW, "prompt": ""}))
    list(comparisons)
    comparisons.skipped.write(tmp_path / "skipped.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(row["source"], row["line"], row["field"]) for row in rows] == [
        (str(tmp_path / "a.jsonl"), 2, None),
        (str(tmp_path / "a.jsonl"), 3, "prompt"),
    ]
    assert comparisons.skipped.reasons()["'prompt': is empty"] == 1


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    with pytest.raises(PrefkitError, match=r"nothing\.jsonl: no such file"):
        load_comparisons(tmp_path / "nothing.jsonl")
    with pytest.raises(PrefkitError, match="no file matches"):
        load_comparisons(str(tmp_path / "*.nothing"))
    with pytest.raises(PrefkitError, match="holds no rows"):
        load_comparisons(write(tmp_path / "empty.jsonl"))
    with pytest.raises(RecordError, match=r"bad\.jsonl:1: bad JSON"):
        load_comparisons(write(tmp_path / "bad.jsonl", "{"))
    with pytest.raises(PrefkitError, match="`datasets` did not save"):
        load_comparisons(tmp_path)
    write(tmp_path / "a.jsonl", ROW)
    write(tmp_path / "b.jsonl", {"prompt": "x", "completion": "y", "label": True})
    with pytest.raises(PrefkitError, match="files of several formats"):
        load_comparisons(str(tmp_path / "[ab].jsonl"))


def test_options_that_do_not_apply(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROW)
    with pytest.raises(OptionError, match="unknown option of trl_preference 'criterion'"):
        load_comparisons(path, options={"criterion": "each"})
    with pytest.raises(OptionError, match="a file has no splits"):
        load_comparisons(path, split="train")
    with pytest.raises(OptionError, match="on_bad"):
        load_comparisons(path, on_bad="ignore")  # type: ignore[arg-type]  # the error is the point
    with pytest.raises(OptionError, match="limit must be at least 1"):
        load_comparisons(path, limit=0)
    with pytest.raises(OptionError, match="do not apply to the format"):
        load_comparisons(path, columns={"chosen": "chosen", "rejected": "rejected"}, format="shp")


@pytest.mark.parametrize("container", ["lines", "array"])
def test_memory_stays_bounded(container: str, tmp_path: Path) -> None:
    """A file of 40 MB streams in a few MB."""
    rows, filler = 4000, "x" * 5000
    path = tmp_path / "big.json.gz"
    opening, between, closing = ("", "\n", "\n") if container == "lines" else ("[", ",\n", "]")
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write(opening)
        for index in range(rows):
            row = {"prompt": f"{index}", "chosen": f"a{filler}", "rejected": f"b{filler}"}
            file.write(json.dumps(row) + (closing if index == rows - 1 else between))
    comparisons = load_comparisons(path)
    tracemalloc.start()
    count = sum(1 for _ in comparisons)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == rows
    assert peak < 4_000_000
