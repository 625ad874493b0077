from __future__ import annotations

import yaml

from prefkit.report import Table, model_card


def card(**more):
    options = {"base_model": "org/base", "objective": "dpo", "data": {"rows": 640}, "settings": {"beta": 0.1}}
    return model_card("tiny", **{**options, **more})


def header(text: str) -> dict:
    assert text.startswith("---\n")
    return yaml.safe_load(text[4:].split("\n---\n")[0])


def test_header_is_what_model_hubs_read() -> None:
    assert header(card(license="apache-2.0", tags=["demo"])) == {
        "library_name": "transformers",
        "base_model": "org/base",
        "tags": ["prefkit", "preference-learning", "dpo", "demo"],
        "license": "apache-2.0",
    }


def test_a_folder_is_no_hub_name() -> None:
    text = card(base_model="/home/me/models/base")
    assert "base_model" not in header(text)
    assert "/home/me/models/base" in text


def test_card_says_data_objective_settings_and_figures() -> None:
    text = card(figures=[Table(["figure", "after"], [["ranking accuracy", 0.75]], "Held out")])
    for line in ("| rows | 640 |", "| beta | 0.1 |", "| ranking accuracy | 0.75 |", "**Held out**"):
        assert line in text.splitlines()
    assert "objective dpo" in text


def test_text_from_data_can_end_neither_header_nor_cell() -> None:
    text = card(objective="x\n---\ny: [", data={"source": "a | b\n<script>"})
    assert header(text)["tags"][-1] == "x\n---\ny: ["
    assert r"| source | a \| b<br>&lt;script&gt; |" in text
