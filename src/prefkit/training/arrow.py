"""Rows of numbers and nested lists in an Arrow file: written as a stream, read at random through a memory map."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

_BATCH = 128
"""Rows held in memory while writing."""

_PATIENCE = 64 * _BATCH
"""Rows to look at before a column that has held no number yet is believed to hold none."""


class RowWriter:
    """Writes rows, of which only a few are in memory at a time.

    Args:
        path: the file.
        schema: types of the columns; None takes them from the first rows. A value that a row lacks is null.
    """

    def __init__(self, path: Path, schema: pa.Schema | None = None) -> None:
        self._path, self._schema = path, schema
        self._rows: list[Mapping[str, Any]] = []
        self._writer: Any = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row."""
        self._rows.append(row)
        if len(self._rows) % _BATCH == 0:
            self._flush()

    def _flush(self, final: bool = False) -> None:
        seen = dict.fromkeys(name for row in self._rows for name in row)
        names = list(seen) if self._schema is None else self._schema.names
        columns = {name: [row.get(name) for row in self._rows] for name in names}
        batch = pa.RecordBatch.from_pydict(columns, schema=self._schema)
        if self._writer is None:
            typed = all(_holds_values(field.type) for field in batch.schema)
            if not (typed or final or len(self._rows) >= _PATIENCE):
                return
            self._schema = batch.schema
            self._writer = pa.ipc.new_file(str(self._path), batch.schema)
        self._writer.write_batch(batch)
        self._rows = []

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and (self._rows or self._writer is None):
            self._flush(final=True)
        if self._writer is not None:
            self._writer.close()


class Rows:
    """The rows of an Arrow file, as plain Python values.

    Args:
        path: a file that a `RowWriter` wrote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        sizes = (self._reader.get_batch(index).num_rows for index in range(self._reader.num_record_batches))
        self._ends = list(accumulate(sizes))

    def __reduce__(self) -> tuple[type[Rows], tuple[Path]]:
        return Rows, (self.path,)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int) -> dict[str, Any]:
        number = bisect.bisect_right(self._ends, row)
        batch = self._reader.get_batch(number)
        place = row - self._ends[number] + batch.num_rows
        return {name: _plain(column[place]) for name, column in zip(batch.schema.names, batch.columns, strict=True)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[row] for row in range(len(self)))


def _holds_values(kind: pa.DataType) -> bool:
    return _holds_values(kind.value_type) if pa.types.is_list(kind) else not pa.types.is_null(kind)


def _plain(value: pa.Scalar) -> Any:
    """A Python value; through NumPy, which is ten times as fast as Arrow's own conversion for long lists."""
    if not isinstance(value, pa.ListScalar):
        return value.as_py()
    inner = value.values
    if inner is None:
        return None
    if pa.types.is_list(inner.type):
        return [_plain(item) for item in inner]
    if inner.null_count or not pa.types.is_primitive(inner.type):
        return inner.to_pylist()
    return inner.to_numpy(zero_copy_only=False).tolist()
