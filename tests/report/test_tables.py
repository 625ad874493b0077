from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from prefkit.errors import PrefkitError
from prefkit.report import Table

HOSTILE = '<script>alert(1)</script> & "x" | [red]y[/red] \x1b[31m'


@dataclass(frozen=True)
class Span:
    mean: float
    low: float

    def __str__(self) -> str:
        return f"{self.mean} [{self.low}]"


@dataclass(frozen=True)
class Bounds:
    mean: float = 0.6

    def __str__(self) -> str:
        return "0.600 [0.500, 0.750]"


class Elements(HTMLParser):
    """The tags and the cell texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def terminal(table: Table) -> str:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(table)
    return console.file.getvalue()


def test_html_shows_hostile_text_and_holds_no_element_of_it() -> None:
    found = Elements(Table([HOSTILE], [[HOSTILE]], HOSTILE).html())
    assert {tag for tag, _ in found.tags} == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert found.texts.count(HOSTILE) == 3


def test_terminal_takes_markup_and_control_characters_literally() -> None:
    shown = terminal(Table(["a"], [[HOSTILE]]))
    assert "[red]y[/red]" in shown
    assert "\x1b" not in shown


def test_other_languages_and_symbols_reach_the_terminal() -> None:
    text = "é 漢字 \u00a0 👩\u200d🔬 →"
    assert text in terminal(Table(["a"], [[text]]))


def test_an_interval_breaks_before_its_bounds() -> None:
    console = Console(file=io.StringIO(), width=20, color_system=None)
    console.print(Table(["a"], [[Bounds()]]))
    assert console.file.getvalue().split()[-2:] == ["0.600", "[0.500,0.750]"]


def test_numbers_are_aligned_to_the_right_and_texts_to_the_left() -> None:
    lines = terminal(Table(["name", "figure"], [["a", 1.0], ["bb", 12345]])).splitlines()
    assert lines[1].split() == ["name", "figure"]
    starts = [line.index(text) for line, text in zip(lines[3:5], ("a", "bb"), strict=True)]
    ends = [line.rindex(text) + len(text) for line, text in zip(lines[3:5], ("1", "12345"), strict=True)]
    assert starts[0] == starts[1]
    assert ends[0] == ends[1] == lines[1].index("figure") + len("figure")
    tags = Elements(Table(["name", "figure"], [["a", 1.0]]).html()).tags
    assert [attributes.get("class") for tag, attributes in tags if tag == "td"] == [None, "number"]


def test_values_as_a_person_reads_them() -> None:
    rows = [[None, True, [], 0.123456, np.float32(0.5), 1234567, np.int64(3), ["a", 0.25], {"k": None}, Span(0.5, 0.1)]]
    table = Table([str(index) for index in range(10)], rows)
    shown = [text for text in Elements(table.html()).texts if text.strip()][10:]
    assert shown == ["–", "yes", "–", "0.1235", "0.5", "1234567", "3", "a, 0.25", "k: –", "0.5 [0.1]"]


def test_markdown_keeps_a_hostile_cell_in_its_place() -> None:
    lines = Table(["a|b", "n"], [["x|y\nz <b> [t](http://u) `c` *d*", 1]]).markdown().splitlines()
    assert lines[0] == r"| a\|b | n |"
    assert lines[1] == "| --- | ---: |"
    assert lines[2] == r"| x\|y<br>z &lt;b&gt; \[t\](http://u) \`c\` \*d\* | 1 |"


def test_csv_round_trips_and_gives_each_part_of_an_interval_a_column() -> None:
    text = Table(["name", "value"], [['a,"b"\n', Span(1 / 3, 0.1)], ["c", 2.0], [None, None]]).csv()
    assert list(csv.reader(io.StringIO(text))) == [
        ["name", "value mean", "value low"],
        ['a,"b"\n', repr(1 / 3), "0.1"],
        ["c", "2.0", ""],
        ["", "", ""],
    ]


def test_json_values_are_plain_and_not_finite_is_null() -> None:
    table = Table(
        ["a", "b"], [[Span(1.0, float("-inf")), np.float32(0.5)], [float("nan"), (1, {"x": np.int64(2)})]], "t"
    )
    assert table.to_dict() == {
        "kind": "table",
        "title": "t",
        "columns": ["a", "b"],
        "rows": [[{"mean": 1.0, "low": None}, 0.5], [None, [1, {"x": 2}]]],
    }


def test_a_row_of_the_wrong_length_is_named() -> None:
    with pytest.raises(PrefkitError, match="row 1 of table 'scores' has 3 values for 2 columns"):
        Table(["a", "b"], [[1, 2], [1, 2, 3]], "scores")


def test_from_mapping_is_one_row_a_name() -> None:
    table = Table.from_mapping({"a": 1, "b": "x"}, "t")
    assert (table.columns, table.rows, table.title) == (["name", "value"], [["a", 1], ["b", "x"]], "t")
