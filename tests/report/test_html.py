from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from prefkit.report import Curve, Report, Table, curves

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """Elements, what they refer to, and the text outside style sheets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def report() -> Report:
    plot = curves({HOSTILE: Curve([1, 2], [0.5, float("nan")]), "b": Curve([1], [1.0])}, title=HOSTILE)
    return Report(HOSTILE, HOSTILE).section(HOSTILE, HOSTILE, Table(["a"], [[HOSTILE]], HOSTILE), plot).section("Z", "")


def test_text_from_data_is_text(report: Report, tmp_path: Path) -> None:
    page = Page(report.write(tmp_path).read_text())
    assert not {"script", "img", "link", "iframe", "object"} & page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    # title, h1, summary, link of the section, heading, text, caption, cell, title and legend of the plot
    assert page.texts.count(HOSTILE) == 10


def test_the_page_needs_nothing_else(report: Report, tmp_path: Path) -> None:
    page = Page(report.write(tmp_path).read_text())
    refers = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset")]
    assert refers
    files = [value for value in refers if not value.startswith(("#", "data:"))]
    assert files == [f"report-data/0{n}-script-alert-1-script-img-src-x-onerror.csv" for n in (1, 2)]
    assert all((tmp_path / file).is_file() for file in files)
    assert ("http-equiv", "Content-Security-Policy") in page.attributes


def test_the_data_lie_beside_the_page(report: Report, tmp_path: Path) -> None:
    page = report.write(tmp_path / "runs" / "first.html")
    assert page == tmp_path / "runs" / "first.html"
    stored = json.loads(page.with_suffix(".json").read_text(), parse_constant=pytest.fail)
    table, plot = stored["sections"][0]["parts"]
    assert (table["kind"], table["rows"]) == ("table", [[HOSTILE]])
    assert (plot["kind"], plot["rows"][1]) == ("plot", [HOSTILE, 2.0, None, None, None])
    first, second = sorted((tmp_path / "runs" / "first-data").iterdir())
    assert list(csv.reader(first.open())) == [["a"], [HOSTILE]]
    assert len(list(csv.reader(second.open()))) == 4
