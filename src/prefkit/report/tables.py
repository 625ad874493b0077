"""Tables: one value a cell, shown in the terminal, in HTML, in Markdown and as CSV.

Cells may come from data, so every form escapes what it shows.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import rich.table
from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.text import Text

from prefkit.errors import PrefkitError
from prefkit.report.cells import is_number, markdown_text, parts, plain, printable, show


class Table:
    """Rows of values under named columns.

    Args:
        columns: names of the columns.
        rows: one value a column; columns of numbers (or of dataclasses of numbers, such as intervals) are aligned to
            the right.
        title: what the table shows.

    Raises:
        PrefkitError: a row has more or fewer values than there are columns.
    """

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
        self.columns = list(columns)
        self.rows = [list(row) for row in rows]
        self.title = title
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise PrefkitError(f"row {index} of table '{title}' has {len(row)} values for {len(columns)} columns")

    @classmethod
    def from_mapping(
        cls, values: Mapping[str, Any], title: str = "", columns: Sequence[str] = ("name", "value")
    ) -> Self:
        """A table of names and values."""
        return cls(columns, values.items(), title)

    def __rich__(self) -> rich.table.Table:
        """The table as `rich.print` shows it."""
        table = rich.table.Table(
            title=Text(printable(self.title)) if self.title else None, title_justify="left", box=SIMPLE_HEAD
        )
        for name, numeric in zip(self.columns, self._numeric(), strict=True):
            table.add_column(Text(printable(name)), justify="right" if numeric else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(printable(_unbroken(value))) for value in row))
        return table

    def html(self) -> Markup:
        """An HTML `<table>`, escaped."""
        kinds = [Markup(' class="number"') if numeric else "" for numeric in self._numeric()]

        def line(cell: str, values: Iterable[Any]) -> Markup:
            cells = (Markup(cell).format(kind, show(value)) for kind, value in zip(kinds, values, strict=True))
            return Markup("<tr>{}</tr>\n").format(Markup("").join(cells))

        caption = Markup("<caption>{}</caption>\n").format(self.title) if self.title else ""
        head = line('<th scope="col"{}>{}</th>', self.columns)
        body = Markup("").join(line("<td{}>{}</td>", row) for row in self.rows)
        return Markup("<table>\n{}<thead>\n{}</thead>\n<tbody>\n{}</tbody>\n</table>").format(caption, head, body)

    def markdown(self) -> str:
        """A Markdown table (GitHub's dialect), without the title."""
        rule = ["---:" if numeric else "---" for numeric in self._numeric()]
        lines = [[markdown_text(show(value)) for value in row] for row in [self.columns, *self.rows]]
        return "".join(f"| {' | '.join(line)} |\n" for line in [lines[0], rule, *lines[1:]])

    def csv(self) -> str:
        """Comma-separated values with a header, numbers in full precision; an interval takes one column a field."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows(zip(*([name, *column] for name, column in self._flat_columns()), strict=True))
        return stream.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """The table as values that JSON holds."""
        rows = [[plain(value) for value in row] for row in self.rows]
        return {"kind": "table", "title": self.title, "columns": self.columns, "rows": rows}

    def _numeric(self) -> list[bool]:
        columns = ([row[index] for row in self.rows if row[index] is not None] for index in range(len(self.columns)))
        return [bool(column) and all(is_number(value) for value in column) for column in columns]

    def _flat_columns(self) -> Iterable[tuple[str, list[Any]]]:
        for index, name in enumerate(self.columns):
            column = [row[index] for row in self.rows]
            kinds = [value for value in column if dataclasses.is_dataclass(value)]
            if not kinds:
                yield name, column
                continue
            for rank, part in enumerate(parts(kinds[0])):
                # A plain number among intervals is an estimate without one: it goes into the first field's column.
                yield (
                    f"{name} {part}",
                    [
                        parts(value).get(part) if dataclasses.is_dataclass(value) else value if rank == 0 else None
                        for value in column
                    ],
                )


def _unbroken(value: Any) -> str:
    """A cell in which an interval breaks, if it must, before its bounds and not between them."""
    return show(value).replace(", ", ",") if is_number(value) else show(value)
