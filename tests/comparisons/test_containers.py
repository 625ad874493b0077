"""Containers: each of them gives the same rows, and damage is named instead of dropped."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from prefkit.comparisons.containers import _json_array, parse_cell, read_rows
from prefkit.errors import PrefkitError, RecordError

ROWS = [{"prompt": f"p{i}\u2028\u0085", "chosen": 'a, "b"\n', "rejected": "ü"} for i in range(300)]


def rows_of(path: Path) -> list[Any]:
    return [row for _, row in read_rows(path)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def arrow(rows: list[dict[str, Any]], path: Path, writer: Callable[..., Any]) -> None:
    table = pa.Table.from_pylist(rows)
    with writer(str(path), table.schema) as out:
        out.write_table(table, max_chunksize=77)


def table(rows: list[dict[str, Any]], path: Path, delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


WRITERS: dict[str, Callable[[Path], object]] = {
    "lines": lambda path: path.write_bytes(lines(ROWS)),
    "lines with CRLF": lambda path: path.write_bytes(lines(ROWS).replace(b"\n", b"\r\n")),
    "lines with mark and blanks": lambda path: path.write_bytes(
        b"\xef\xbb\xbf\n\n" + lines(ROWS).replace(b"\n", b"\n\n")
    ),
    "array": lambda path: path.write_text(json.dumps(ROWS)),
    "indented array": lambda path: path.write_text("\ufeff" + json.dumps(ROWS, indent=2, ensure_ascii=False)),
    "wrapped": lambda path: path.write_text(json.dumps({"data": ROWS})),
    "wrapped late": lambda path: path.write_text(json.dumps({"version": 1, "rows": ROWS}, indent=1)),
    "gzip": lambda path: path.write_bytes(gzip.compress(lines(ROWS))),
    "bzip2": lambda path: path.write_bytes(bz2.compress(lines(ROWS))),
    "xz": lambda path: path.write_bytes(lzma.compress(lines(ROWS))),
    "zstd": lambda path: path.write_bytes(zstandard.compress(lines(ROWS))),
    "compressed array": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "csv": lambda path: table(ROWS, path, ","),
    "tsv": lambda path: table(ROWS, path, "\t"),
    "semicolons": lambda path: table(ROWS, path, ";"),
    "parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), str(path)),
    "arrow file": lambda path: arrow(ROWS, path, pa.ipc.new_file),
    "arrow stream": lambda path: arrow(ROWS, path, pa.ipc.new_stream),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_container_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"  # the name says nothing about the container
    WRITERS[name](path)
    assert rows_of(path) == ROWS


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_an_array_may_be_cut_into_chunks_anywhere(size: int) -> None:
    rows = [{"a": -12.5e3, "b": [True, None, {}]}, {"c": '\U0001f600 \\ " ]}', "d": False}, {}] * 5
    for text in (json.dumps(rows), json.dumps(rows, indent=3)):
        chunks = (text[start : start + size] for start in range(0, len(text), size))
        assert [row for _, row in _json_array(chunks)] == rows


def test_numbers_are_lines_or_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b'\n{"a": 1}\n\n{"a": 2}\n')
    assert [number for number, _ in read_rows(path)] == [2, 4]
    path.write_bytes(b'a,b\n1,"x\ny"\n2,z\n')
    assert [number for number, _ in read_rows(path)] == [2, 4]
    path.write_bytes(b'[{"a": 1},\n\n\n{"a": 2}]')
    assert [number for number, _ in read_rows(path)] == [1, 2]


def test_single_documents(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text('{"prompt": "Hi", "n": 1}')
    assert rows_of(path) == [{"prompt": "Hi", "n": 1}]
    path.write_text('{"q1": {"a": 1},\n "q2": {"a": 2}}')
    assert rows_of(path) == [{"id": "q1", "a": 1}, {"id": "q2", "a": 2}]
    path.write_text("[]")
    assert rows_of(path) == []
    path.write_text("")
    assert rows_of(path) == []


@pytest.mark.parametrize(
    ("text", "bad", "problem"),
    [
        (b'{"a": 1}\n{"a": oops}\n{"a": 3}\n', 2, "bad JSON: Expecting value at column 7"),
        (b'{"a": 1}\n{"a": "cut', 2, "the last line is cut off"),
        (b'{"a": 1}\n[1]\n', 2, "expected a JSON object, got a list"),
        (b'{"a": 1, "a": 2}\n{"b": {"c": 1}}\n', 1, "occurs twice"),
        (b'{"a": 1} {"a": 2}\n{"a": 3}\n', 1, "more text after the object"),
        (b'{"a": "\xff"}\n{"a": 3}\n', 1, "not UTF-8"),
        (b'[{"a": 1}, 3]', 2, "expected a JSON object, got a number"),
        (b'[{"a": 1},\n {"a": oops}, {"a": 3}]', 2, "in the array on line 2: Expecting value"),
        (b'[{"a": 1}, {"a": "cut', 2, "Unterminated string"),
        (b'[{"a": 1}', 2, "the array is cut off"),
        (b'[{"a": 1} {"a": 2}]', 2, "expected ',' or ']'"),
        (b"a,b\n1,2\n3\n4,5\n", 3, "1 cells in a table of 2 columns"),
        ("[]".encode("utf-16"), 1, "UTF-16"),
        (b'{"a": ' + b"[" * 100_000 + b"\n{}\n", 1, "nested too deeply"),
    ],
)
def test_damage_is_named(text: bytes, bad: int, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(text)
    found = [(number, row) for number, row in read_rows(path) if isinstance(row, RecordError)]
    assert [number for number, _ in found] == [bad]
    assert problem in str(found[0][1])


def test_good_rows_around_a_bad_one_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b'{"a": 1}\n{"a": oops}\n{"a": 3}\n')
    assert [row for row in rows_of(path) if not isinstance(row, RecordError)] == [{"a": 1}, {"a": 3}]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_cut_compressed_file_is_named(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "rows"
    whole = compress(lines([{"a": i, "b": f"{i * 7919:x}"} for i in range(50_000)]))
    path.write_bytes(whole[: len(whole) // 2])
    found = rows_of(path)
    assert "damaged or cut off" in str(found[-1])


def test_odd_values_survive(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b'{"a": NaN, "b": "\\u0000", "c": "\\ud83d", "d": 12345678901234567890}\n')
    (row,) = rows_of(path)
    assert row["a"] != row["a"]
    assert (row["b"], row["c"], row["d"]) == ("\0", "\ud83d", 12345678901234567890)


def test_cells_are_parsed_as_data_and_never_evaluated() -> None:
    assert parse_cell('["a", null]') == ["a", None]
    assert parse_cell("['it''s', None, True]") == ["its", None, True]
    assert parse_cell("{'role': 'user'}") == {"role": "user"}
    for text in ("[__import__('os').getcwd()]", "plain", "[unclosed", "{}{}"):
        assert parse_cell(text) == text


def test_nothing_that_can_run_code_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "rows.pkl"
    path.write_bytes(pickle.dumps(ROWS))
    with pytest.raises(PrefkitError, match="can run code"):
        rows_of(path)
    np.savez(tmp_path / "rows.npz", a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(PrefkitError, match="object arrays"):
        rows_of(tmp_path / "rows.npz")


def test_array_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", obs_1=np.arange(6.0).reshape(3, 2), label=np.array([0, 1, 1]), note=np.array("x"))
    assert rows_of(tmp_path / "rows.npz")[1] == {"obs_1": [2.0, 3.0], "label": 1}


@pytest.mark.parametrize("text", ["196\t242\t3\t881250949\n", "196::242::3::881250949\n"])
def test_headerless_ratings(text: str, tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text(text)
    assert rows_of(tmp_path / "u.data") == [{"user": "196", "item": "242", "rating": "3", "timestamp": "881250949"}]


@pytest.mark.parametrize("kind", ["parquet", "arrow file"])
def test_damaged_tables(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    WRITERS[kind](path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PrefkitError, match="damaged"):
        rows_of(path)
