"""Reports: one HTML page that needs nothing else, the same content as JSON, and the numbers of every part as CSV."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Self, TypeAlias

import jinja2

from prefkit.report.plots import Plot
from prefkit.report.tables import Table

Part: TypeAlias = Table | Plot


@dataclass(frozen=True)
class Section:
    """A heading, what its figures mean, and the figures."""

    heading: str
    text: str
    parts: tuple[Part, ...]


class Report:
    """A page of sections, in the order in which they are added.

    Args:
        title: title of the page.
        summary: one or two sentences below it.
    """

    def __init__(self, title: str, summary: str = "") -> None:
        self.title = title
        self.summary = summary
        self.sections: list[Section] = []

    def section(self, heading: str, text: str, *parts: Part) -> Self:
        """Add a section.

        Args:
            heading: its heading.
            text: what its figures mean, in a sentence.
            parts: tables and plots, in their order.
        """
        self.sections.append(Section(heading, text, parts))
        return self

    def write(self, target: Path | str) -> Path:
        """Write the page and its data.

        Args:
            target: a file ending in `.html`, or a folder, in which the page is called `report.html`. Beside it go
                the same name ending in `.json`, and a folder of CSV files, one a table or plot.

        Returns:
            The path of the page.
        """
        target = Path(target)
        page = target if target.suffix == ".html" else target / "report.html"
        tables = page.with_name(f"{page.stem}-data")
        tables.mkdir(parents=True, exist_ok=True)
        files: dict[Part, str] = {}
        for part in (part for section in self.sections for part in section.parts):
            if part not in files:
                name = f"{len(files) + 1:02}-{_slug(part.title)}.csv"
                (tables / name).write_text(part.csv(), encoding="utf-8")
                files[part] = f"{tables.name}/{name}"
        template = resources.files("prefkit.report").joinpath("page.html").read_text(encoding="utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        page.write_text(environment.from_string(template).render(report=self, files=files), encoding="utf-8")
        page.with_suffix(".json").write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False), encoding="utf-8")
        return page

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON holds."""
        return {
            "title": self.title,
            "summary": self.summary,
            "sections": [
                {"heading": section.heading, "text": section.text, "parts": [part.to_dict() for part in section.parts]}
                for section in self.sections
            ],
        }


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower())[:40].strip("-") or "table"
