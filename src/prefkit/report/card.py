"""The model card: a README for a saved model that says what it was trained on, how, and with what result."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from prefkit.report.cells import markdown_text
from prefkit.report.tables import Table


def model_card(
    name: str,
    *,
    base_model: str,
    objective: str,
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    figures: Sequence[Table] = (),
    tags: Sequence[str] = (),
    license: str | None = None,
) -> str:
    """Write the card of a trained model, as Markdown with a YAML header.

    Args:
        name: name of the model.
        base_model: model that the training started from: a hub name or a folder.
        objective: name of the objective.
        data: what is known of the comparisons (source, rows, rows set aside, ...).
        settings: options of the run that a reader needs to repeat it.
        figures: tables of results.
        tags: further tags for model hubs.
        license: licence of the trained model, if known.

    Returns:
        The text of `README.md`.
    """
    header: dict[str, Any] = {
        "library_name": "transformers",
        "tags": ["prefkit", "preference-learning", objective, *tags],
    }
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base_model):  # hubs take names there, and reject folders
        header["base_model"] = base_model
    if license is not None:
        header["license"] = license
    sections = [
        f"# {markdown_text(name)}",
        f"{markdown_text(base_model)}, trained on comparisons with the objective {markdown_text(objective)}.",
        "## Data",
        Table.from_mapping(data, columns=("about", "value")).markdown(),
        "## Settings",
        Table.from_mapping(settings, columns=("option", "value")).markdown(),
    ]
    if figures:
        sections.append("## Results")
    for table in figures:
        sections += [f"**{markdown_text(table.title)}**", table.markdown()]
    front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(section.rstrip() for section in sections) + "\n"
