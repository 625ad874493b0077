"""Containers: from a file, a folder or a data set to a stream of plain rows.

Every reader here yields `(number, row)`: the 1-based line (JSON Lines, CSV) or row (all others), and a mapping, or the
`RecordError` that says why there is none. Memory stays bounded by one row (JSON Lines, CSV), one element (JSON array)
or one batch of rows (Parquet, Arrow); only a JSON object that wraps its rows in an unusual way is read whole.
Compression and container are told by the first bytes, never by the file's name, and nothing that could run code when
it is opened (pickle) is opened.
"""

from __future__ import annotations

import ast
import bz2
import codecs
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from prefkit.errors import PrefkitError, RecordError

Numbered: TypeAlias = tuple[int, Mapping[str, Any] | RecordError]
"""A row with its number in the source, or what is wrong with it."""

_BATCH = 256
_WRAPPERS = ("data", "rows", "examples", "instances")
_WRAPPED_LIST = re.compile(r'\s*\{\s*"(?:' + "|".join(_WRAPPERS) + r')"\s*:\s*(?=\[)')
_PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".joblib"}
_BROKEN_STREAM = (EOFError, OSError, zlib.error, lzma.LZMAError)
# A row of a table can be longer than the csv module's default of 131,072 characters.
csv.field_size_limit(sys.maxsize)


def read_rows(path: Path) -> Iterator[Numbered]:
    """The rows of one file.

    Args:
        path: JSON array, JSON Lines, CSV, TSV (all of them plain or compressed with gzip, bzip2, xz or Zstandard),
            Parquet, Arrow, or NumPy `.npz` without object arrays.

    Yields:
        Number and row, or number and what is wrong with the row.

    Raises:
        PrefkitError: the file is missing, empty, or of a kind that could run code.
    """
    if not path.exists():
        raise PrefkitError(f"{path}: no such file")
    if path.suffix in _PICKLES:
        raise PrefkitError(f"{path}: a pickle can run code when it is opened; save the rows as JSON Lines or Parquet")
    with path.open("rb") as file:
        head = file.read(8)
    if head[:4] == b"PAR1":
        yield from _parquet(path)
    elif head[:6] == b"ARROW1" or head[:4] == b"\xff\xff\xff\xff":
        yield from _arrow(path, stream=head[:6] != b"ARROW1")
    elif head[:4] == b"PK\x03\x04" and path.suffix == ".npz":
        yield from _arrays(path)
    else:
        with _decompressed(path, head) as lines:
            yield from _guarded(_text(lines))


def parse_cell(text: str) -> Any:
    """A list or dict that stands in a text cell as JSON or as a Python literal; the text itself if it holds neither.

    Python literals are parsed as data, never evaluated.
    """
    stripped = text.strip()
    if stripped[:1] + stripped[-1:] not in ("[]", "{}"):
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(stripped)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text


def _decompressed(path: Path, head: bytes) -> IO[bytes]:
    if head[:2] == b"\x1f\x8b":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if head[:3] == b"BZh":
        return bz2.open(path, "rb")
    if head[:6] == b"\xfd7zXZ\x00":
        return lzma.open(path, "rb")
    if head[:4] == b"\x28\xb5\x2f\xfd":
        import zstandard

        stream = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)
        return cast(IO[bytes], io.BufferedReader(stream))
    return path.open("rb")


def _guarded(rows: Iterator[Numbered]) -> Iterator[Numbered]:
    """The rows as far as the compressed stream goes; a stream that breaks off is one more bad row."""
    number = 0
    try:
        for number, row in rows:
            yield number, row
    except _BROKEN_STREAM as error:
        yield number + 1, RecordError(f"the compressed file is damaged or cut off here ({error})")


def _text(file: IO[bytes]) -> Iterator[Numbered]:
    """JSON Lines, a JSON array or object, or a table, told apart by the first byte that is not blank."""
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(Any, file))
    start = buffered.peek(4)[:4]
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        yield 1, RecordError("the file is UTF-16; save it as UTF-8")
        return
    if start.startswith(codecs.BOM_UTF8):
        buffered.read(len(codecs.BOM_UTF8))
    skipped = 0
    while (line := buffered.readline(1 << 16)) and not line.strip():
        skipped += line.count(b"\n")
    first = line.lstrip()[:1]
    if first == b"[":
        yield from _json_array(_decoded(line, buffered))
    elif first == b"{":
        yield from _json_objects(line, buffered, skipped + 1)
    elif line:
        yield from _table(line, buffered, skipped)


def _decoded(start: bytes, file: IO[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
    yield decoder.decode(start)
    while chunk := file.read(1 << 16):
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


# --- JSON


class _Decoder:
    """JSON with repeated keys noticed (the last value would win in silence)."""

    def __init__(self) -> None:
        self._repeated: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            names = [name for name, _ in pairs]
            self._repeated += sorted({name for name in names if names.count(name) > 1})
        return row

    def element(self, text: str, position: int = 0) -> tuple[Mapping[str, Any] | RecordError, int]:
        """The object that starts at a position, and where it ends.

        Raises:
            json.JSONDecodeError: no JSON value starts there.
        """
        self._repeated.clear()
        value, end = self._decoder.raw_decode(text, position)
        if self._repeated:
            return RecordError("the key occurs twice in one object", field=self._repeated[0]), end
        if not isinstance(value, dict):
            return RecordError(f"expected a JSON object, got {_kind(value)}"), end
        return value, end


def _kind(value: object) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _json_objects(start: bytes, file: io.BufferedReader, number: int) -> Iterator[Numbered]:
    """JSON Lines, or one object that wraps the rows."""
    if wrapper := _WRAPPED_LIST.match(start.decode("utf-8", errors="replace")):
        yield from _json_array(_decoded(start[wrapper.end() :], file))
        return
    first = start if start.endswith(b"\n") else start + file.readline()
    lines = ((count, line) for count, line in enumerate(file, number + 1) if line.strip())
    second = next(lines, None)
    if second is None or (not second[1].lstrip().startswith(b"{") and not _complete(first)):
        rest = b"" if second is None else second[1] + b"".join(line for _, line in lines)
        yield from _json_document(first + rest, number)
        return
    yield number, _json_line(first)
    for count, line in itertools.chain([second], lines):
        yield count, _json_line(line)


def _complete(line: bytes) -> bool:
    try:
        json.loads(line.decode("utf-8", errors="replace"))
    except ValueError:
        return False
    return True


def _json_line(line: bytes) -> Mapping[str, Any] | RecordError:
    try:
        text = line.decode("utf-8").rstrip()
    except UnicodeDecodeError as error:
        return RecordError(f"the line is not UTF-8 (byte {error.start + 1})")
    try:
        row, end = _Decoder().element(text, len(text) - len(text.lstrip()))
    except json.JSONDecodeError as error:
        if not line.endswith(b"\n"):
            return RecordError(f"bad JSON ({error.msg} at column {error.colno}); the last line is cut off")
        return RecordError(f"bad JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return RecordError("bad JSON: nested too deeply")
    if text[end:].strip():
        return RecordError(f"bad JSON: more text after the object at column {end + 1}")
    return row


def _json_document(text: bytes, number: int) -> Iterator[Numbered]:
    """One object: a wrapper of rows, a mapping from ids to rows, or a single row."""
    whole = _json_line(text)
    if isinstance(whole, RecordError):
        yield number, whole
        return
    lists = [whole[name] for name in _WRAPPERS if isinstance(whole.get(name), list)]
    if lists:
        for index, row in enumerate(lists[0], 1):
            bad = RecordError(f"expected a JSON object, got {_kind(row)}")
            yield index, row if isinstance(row, dict) else bad
    elif whole and all(isinstance(row, dict) for row in whole.values()):
        for index, (name, row) in enumerate(whole.items(), 1):
            yield index, {"id": name, **row}
    else:
        yield number, whole


def _json_array(chunks: Iterator[str]) -> Iterator[Numbered]:
    """The elements of a JSON array, one at a time."""
    decoder, text, position, lines = _Decoder(), "", 0, 1

    def more() -> bool:
        """Drop what was read and append at least as much as is left, so that a long element is not parsed often."""
        nonlocal text, position, lines
        lines += text.count("\n", 0, position)
        parts, size = [text[position:]], 0
        for chunk in chunks:
            parts.append(chunk)
            size += len(chunk)
            if size > len(parts[0]):
                break
        text, position = "".join(parts), 0
        return size > 0

    def skip_blank() -> str:
        nonlocal position
        while True:
            while position < len(text) and text[position] in " \t\r\n":
                position += 1
            if position < len(text):
                return text[position]
            if not more():
                return ""

    def broken(what: str, at: int) -> RecordError:
        line = lines + text.count("\n", 0, at)
        return RecordError(f"bad JSON in the array on line {line}: {what}; the rest of the file cannot be read")

    skip_blank()
    position += 1  # the opening bracket, by which the container was recognised
    number = 0
    if skip_blank() == "]":
        return
    while True:
        number += 1
        skip_blank()
        while True:
            try:
                row, position = decoder.element(text, position)
                break
            except json.JSONDecodeError as error:
                # An error in the last few characters, or a string without an end, may only be the end of the chunk.
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(text) - 16
                if not (cut and more()):
                    yield number, broken(error.msg, error.pos)
                    return
            except RecursionError:
                yield number, broken("nested too deeply", position)
                return
        yield number, row
        mark = skip_blank()
        if mark == "]":
            return
        if mark != ",":
            what = "expected ',' or ']'" if mark else "the array is cut off"
            yield number + 1, broken(what, position)
            return
        position += 1


# --- tables


def _table(first: bytes, file: io.BufferedReader, skipped: int) -> Iterator[Numbered]:
    """A table with a header; MovieLens' headerless `user item rating time` lists are named."""
    if not first.endswith(b"\n"):
        first += file.readline()
    head = first.decode("utf-8", errors="surrogateescape")
    delimiter = max(("::", "\t", ",", ";"), key=head.count)
    single = "\x1f" if delimiter == "::" else delimiter

    def lines() -> Iterator[str]:
        for line in itertools.chain([first], file):
            text = line.decode("utf-8", errors="surrogateescape")
            yield text.replace("::", single) if delimiter == "::" else text

    cells = csv.reader(lines(), delimiter=single)
    names: list[str] = []
    line = skipped + 1
    try:
        for row in cells:
            if not names and len(row) == 4 and all(cell.strip().replace(".", "", 1).isdigit() for cell in row):
                names = ["user", "item", "rating", "timestamp"]
            elif not names:
                names, line = row, skipped + cells.line_num + 1
                continue
            if len(row) == len(names):
                yield line, dict(zip(names, row, strict=True))
            elif row:
                yield line, RecordError(f"{len(row)} cells in a table of {len(names)} columns")
            line = skipped + cells.line_num + 1
    except csv.Error as error:
        yield line, RecordError(f"bad CSV: {error}; the rest of the file cannot be read")


def _parquet(path: Path) -> Iterator[Numbered]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from _batches(file.iter_batches(batch_size=_BATCH))
    except pa.ArrowInvalid as error:
        raise PrefkitError(f"{path}: damaged Parquet file ({error})") from None


def _arrow(path: Path, *, stream: bool) -> Iterator[Numbered]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            if stream:
                yield from _batches(pa.ipc.open_stream(source))
            else:
                file = pa.ipc.open_file(source)
                yield from _batches(file.get_batch(index) for index in range(file.num_record_batches))
    except pa.ArrowInvalid as error:
        raise PrefkitError(f"{path}: damaged Arrow file ({error})") from None


def _batches(batches: Iterable[Any]) -> Iterator[Numbered]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH):
            for row in batch.slice(start, _BATCH).to_pylist():
                number += 1
                yield number, row


def _arrays(path: Path) -> Iterator[Numbered]:
    """One row an index of the first axis that the arrays share."""
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        try:
            arrays = {name: file[name] for name in file.files}
        except ValueError:
            raise PrefkitError(f"{path}: holds object arrays, which can run code when they are opened") from None
    lengths = [array.shape[0] for array in arrays.values() if array.ndim]
    count = max(set(lengths), key=lengths.count, default=0)
    columns = {name: array for name, array in arrays.items() if array.ndim and array.shape[0] == count}
    for index in range(count):
        yield index + 1, {name: array[index].tolist() for name, array in columns.items()}
