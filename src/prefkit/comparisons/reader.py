"""Reading comparisons: from any source, in any known format, as a stream that can be read again.

Rows that cannot be used are set aside, named by file, line and field, and counted.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from prefkit.comparisons.canonical import dumps
from prefkit.comparisons.containers import Numbered, read_rows
from prefkit.comparisons.formats import FORMATS, detect, find_format
from prefkit.comparisons.formats.base import Format
from prefkit.comparisons.formats.columns import GROUPED, check_columns
from prefkit.comparisons.pairing import ranks
from prefkit.comparisons.record import Comparison, Label, StepLabels
from prefkit.comparisons.rows import Row, blank
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.options import Options

Source: TypeAlias = str | Path | Sequence[str | Path] | Iterable[Mapping[str, Any]]
"""A path, a glob, several paths, a `datasets` folder or hub name, a `datasets.Dataset`, or any iterable of rows."""

_SAMPLE = 20
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FILE_ENDINGS = re.compile(
    r"\.(jsonl?|ndjson|[ct]sv|parquet|arrow|npz|txt|dat|data|inter|gz|bz2|xz|zst|pkl|pickle)$", re.I
)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was set aside.

    Args:
        source: file or data set.
        line: 1-based line or row.
        field: what was wrong, if it is one field.
        problem: what was wrong with it.
    """

    source: str | None
    line: int | None
    field: str | None
    problem: str

    def error(self) -> RecordError:
        """The error that it was."""
        return RecordError(self.problem, field=self.field, source=self.source, line=self.line)


class Skipped:
    """The rows that were set aside in the latest pass over a source."""

    def __init__(self) -> None:
        self.rows: list[BadRow] = []

    def add(self, error: RecordError) -> None:
        """Take note of a bad row."""
        self.rows.append(BadRow(error.source, error.line, error.field, error.problem))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[BadRow]:
        return iter(self.rows)

    def reasons(self) -> Counter[str]:
        """How often each problem occurred, with the values in it left out."""
        return Counter(_reason(row) for row in self.rows)

    def write(self, path: str | Path) -> None:
        """Write one JSON object a bad row (`skipped.jsonl`)."""
        with Path(path).open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(dumps(asdict(row)) + "\n" for row in self.rows)


def _reason(row: BadRow) -> str:
    problem = re.split(r", got |; ", row.problem)[0]
    problem = re.sub(r"\d+", "N", problem)
    field = re.sub(r"\[\d+\]", "[N]", row.field or "")
    return f"'{field}': {problem}" if field else problem


class Comparisons(Iterable[Comparison]):
    """Comparisons of a source, in its order. Each iteration is a fresh pass; nothing is kept in memory between rows.

    Made by `load_comparisons`.

    Args:
        source: what is read, in words.
        format: the name of the format, named or detected.
        skipped: rows set aside in the latest pass.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        source: str,
        known: Format,
        options: Options,
        on_bad: Literal["skip", "error"],
        limit: int | None,
    ) -> None:
        self.source, self.format, self.skipped = source, known.name, Skipped()
        self._parts, self._known, self._options, self._on_bad, self._limit = parts, known, options, on_bad, limit

    def __iter__(self) -> Iterator[Comparison]:
        self.skipped = Skipped()
        return islice(self._pass(self.skipped), self._limit)

    def __repr__(self) -> str:
        return f"Comparisons({self.source!r}, format={self.format!r})"

    def _pass(self, skipped: Skipped) -> Iterator[Comparison]:
        for part in self._parts:
            for found in _read(part, self._known, self._options):
                if isinstance(found, Comparison):
                    yield found
                    continue
                if self._on_bad == "error":
                    raise found
                skipped.add(found)


class Part:
    """One file or data set of a source: a name and rows that can be read again."""

    def __init__(self, name: str, rows: Path | Iterable[Mapping[str, Any]]) -> None:
        self.name, self._rows = name, rows

    def __iter__(self) -> Iterator[Numbered]:
        rows = self._rows
        return read_rows(rows) if isinstance(rows, Path) else enumerate(iter(rows), 1)


def load_comparisons(
    source: Source,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    split: str | None = None,
    on_bad: Literal["skip", "error"] = "skip",
    limit: int | None = None,
) -> Comparisons:
    """Comparisons of a file, folder or data set.

    Args:
        source: path, glob, list of paths, `datasets` folder or hub name ("name" or "name:configuration"), a
            `datasets.Dataset`, or an iterable of rows (one that can be iterated only once is kept in memory).
        format: name of the format; detected from the first rows if None.
        columns: for files of any other layout, which column holds what: a mapping from prefkit's names (prompt,
            chosen, rejected, ...) to column names or, for texts, templates such as "{title}\\n{post}".
        options: options of the format.
        split: split of a `datasets` folder or hub data set.
        on_bad: "skip" sets bad rows aside and counts them, "error" raises at the first one.
        limit: read at most this many comparisons.

    Returns:
        A stream that can be iterated again.

    Raises:
        PrefkitError: the source is missing or empty, its format is unknown or cannot be told, an option is wrong.
        RecordError: while iterating, with on_bad="error": a row cannot be used.
    """
    if on_bad not in ("skip", "error"):
        raise OptionError(f"on_bad must be 'skip' or 'error', got {on_bad!r}")
    if limit is not None and limit < 1:
        raise OptionError(f"limit must be at least 1, got {limit}")
    parts, name = _parts(source, split)
    if columns is not None:
        if format not in (None, "columns"):
            raise OptionError(f"columns map a file of any layout and do not apply to the format '{format}'")
        check_columns(columns)
        known = GROUPED if "rating" in columns else FORMATS["columns"]
        options = {**(options or {}), "columns": dict(columns)}
    elif format is not None:
        known = find_format(format)
        if known.name == "columns":
            raise OptionError("the format 'columns' needs columns=, which says which column holds what")
    else:
        known = _detect(parts, name)
    parsed = known.options.parse(options or {}, known.name)
    if known is GROUPED and getattr(parsed, "grouping", "") == "file":
        known = replace(known, adjacent=False)
    if columns is not None:
        _check_present(parts, columns, name)
    return Comparisons(parts, name, known, parsed, on_bad, limit)


def _detect(parts: Sequence[Part], name: str) -> Format:
    found: dict[str, str] = {}
    for part in parts:
        rows = [row for _, row in islice(part, _SAMPLE)]
        good = [row for row in rows if not isinstance(row, RecordError)]
        if good:
            found.setdefault(detect(good, part.name).name, part.name)
        elif rows and len(parts) == 1:
            number, bad = next(iter(part))
            assert isinstance(bad, RecordError)
            raise RecordError(bad.problem, field=bad.field, source=part.name, line=number)
    if len(found) > 1:
        seen = ", ".join(f"{where} is {what}" for what, where in found.items())
        raise PrefkitError(f"{name}: files of several formats ({seen}); read them one by one, or name one with format=")
    if not found:
        raise PrefkitError(f"{name}: holds no rows")
    return FORMATS[next(iter(found))]


def _check_present(parts: Sequence[Part], columns: Mapping[str, str], name: str) -> None:
    """Whether the named columns occur in the first rows, so that a misspelt one is not found on every single row."""
    rows = [row for _, row in islice(chain.from_iterable(parts), _SAMPLE) if not isinstance(row, RecordError)]
    present = {str(column) for row in rows for column in row}
    for target, column in columns.items():
        if rows and "{" not in column and column not in present:
            raise OptionError(f"columns.{target}: {name} has no column '{column}'; it has {', '.join(sorted(present))}")


# --- sources


def _parts(source: Source, split: str | None) -> tuple[list[Part], str]:
    if isinstance(source, str | Path):
        return _located(str(source), split), str(source)
    if _is_dataset(source):
        return _dataset(source, split, type(source).__name__), type(source).__name__
    if isinstance(source, Sequence) and source and all(isinstance(item, str | Path) for item in source):
        paths = [str(item) for item in source]
        return [part for path in paths for part in _located(path, split)], ", ".join(paths)
    if not isinstance(source, Iterable):
        raise PrefkitError(f"a source is a path, a data set or an iterable of rows, got {type(source).__name__}")
    rows = list(source) if iter(source) is source else source
    return [Part("rows", rows)], "rows"  # type: ignore[arg-type]  # the other members of the union were dealt with


def _located(name: str, split: str | None) -> list[Part]:
    path = Path(name)
    if path.is_dir():
        return _folder(path, split)
    if split is not None and (path.exists() or glob.has_magic(name)):
        raise OptionError(f"{name}: a file has no splits; split applies to datasets folders and hub data sets")
    if not path.exists() and glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True))
        if not matches:
            raise PrefkitError(f"{name}: no file matches")
        return [Part(match, Path(match)) for match in matches]
    if not path.exists() and _HUB_NAME.fullmatch(name.split(":")[0]) and not _FILE_ENDINGS.search(name):
        return _hub(name, split)
    if not path.exists():
        raise PrefkitError(f"{name}: no such file")
    return [Part(name, path)]


def _folder(path: Path, split: str | None) -> list[Part]:
    import datasets

    if not any((path / marker).exists() for marker in ("state.json", "dataset_dict.json")):
        raise PrefkitError(
            f"{path}: a folder that `datasets` did not save; name its files, for example '{path}/*.jsonl'"
        )
    return _dataset(datasets.load_from_disk(str(path)), split, str(path))


def _hub(name: str, split: str | None) -> list[Part]:
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, configuration or None, split=split, streaming=True)
    except Exception as error:
        # The library raises many kinds (no network, no such set, a script it refuses to run); the user sees one.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PrefkitError(f"{name}: no such file, and no data set of this name could be loaded ({reason})") from error
    return _dataset(loaded, split, name)


def _is_dataset(source: object) -> bool:
    return type(source).__module__.startswith("datasets.")


def _dataset(loaded: Any, split: str | None, name: str) -> list[Part]:
    if isinstance(loaded, dict):
        if split is None and len(loaded) == 1:
            split = next(iter(loaded))
        if split is None or split not in loaded:
            raise OptionError(f"{name}: name one of its splits with split=: {', '.join(loaded)}")
        loaded, name = loaded[split], f"{name}[{split}]"
    return [Part(name, loaded)]


# --- rows to comparisons


def _read(part: Part, known: Format, options: Options) -> Iterator[Comparison | RecordError]:
    if known.key is None:
        for number, fields in part:
            row = _row(fields, part.name, number)
            yield from [row] if isinstance(row, RecordError) else _results(row, known, options)
        return
    for group in _groups(part, known, options):
        yield from [group] if isinstance(group, RecordError) else _results(group, known, options)


def _row(fields: Mapping[str, Any] | RecordError, source: str, number: int) -> Row | RecordError:
    if isinstance(fields, RecordError):
        return RecordError(fields.problem, field=fields.field, source=source, line=number)
    if not isinstance(fields, Mapping):
        return RecordError(f"a row must be a mapping, got {type(fields).__name__}", source=source, line=number)
    return Row(fields, source, number)


def _groups(part: Part, known: Format, options: Options) -> Iterator[list[Row] | RecordError]:
    """Rows with one key: neighbours as they come, or, where they may stand anywhere, after the whole part was read."""
    assert known.key is not None
    bad: list[RecordError] = []

    def keyed() -> Iterator[tuple[Hashable, Row]]:
        for number, fields in part:
            row = _row(fields, part.name, number)
            try:
                if isinstance(row, RecordError):
                    raise row
                assert known.key is not None
                yield known.key(row, options), row
            except RecordError as error:
                bad.append(error)

    if known.adjacent:
        for _, group in groupby(keyed(), key=lambda pair: pair[0]):
            rows = [row for _, row in group]
            yield from bad
            bad.clear()
            yield rows
    else:
        together: dict[Hashable, list[Row]] = {}
        for key, row in keyed():
            together.setdefault(key, []).append(row)
        yield from together.values()
    yield from bad


def _results(row: Any, known: Format, options: Options) -> Iterator[Comparison | RecordError]:
    """The checked comparisons of a row or group."""
    place = row if isinstance(row, Row) else row[0]
    try:
        for found in known.read(row, options):
            problem = _problem(found, known) if isinstance(found, Comparison) else None
            yield found if problem is None else place.error(*problem)
    except RecordError as error:
        # An error of the record itself does not know where the row stands.
        yield error if error.line is not None else place.error(error.problem, error.field)


def _problem(comparison: Comparison, known: Format) -> tuple[str, str] | None:
    """What a reader objects to, beyond what a record refuses: (problem, field)."""
    if known.context and any(blank(prompt) for prompt in comparison.prompts):
        return "is empty", "prompt"
    for index, response in enumerate(comparison.responses):
        if blank(response):
            return f"response {index} is empty", "responses"
    for field, texts in (("prompt", comparison.prompts), ("responses", comparison.responses)):
        if not all(_encodes(text) for text in texts):
            return "holds bytes that are not UTF-8, or half of a surrogate pair", field
    judged_one = isinstance(comparison.judgement, Label | StepLabels)
    if not judged_one and not comparison.joint and len(set(ranks(comparison))) > 1:
        first = comparison.responses[0]
        if all(response == first for response in comparison.responses[1:]):
            return "chosen equals rejected; there is no preference in an identical pair", "responses"
    return None


def _encodes(text: Any) -> bool:
    if isinstance(text, str):
        if text.isascii():
            return True
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
        return True
    if isinstance(text, Mapping):
        return all(_encodes(value) for value in text.values())
    return all(_encodes(item) for item in text) if isinstance(text, list | tuple) else True
