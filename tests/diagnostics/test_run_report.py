from __future__ import annotations

from pathlib import Path

import pytest
from tests.diagnostics.words import PAIRS, WordScorer

from prefkit.diagnostics import evaluate, run_report
from prefkit.report import Plot, Report, Table

METRICS = [
    {"step": 10, "loss": 0.69, "reward_margin": 0.0, "chosen_logp_change": 0.0, "rejected_logp_change": 0.0},
    {"step": 20, "loss": 0.5, "reward_margin": 1.5, "chosen_logp_change": -1.0, "rejected_logp_change": -2.5},
    {"step": 20, "eval_loss": 0.6},
]


@pytest.fixture(scope="module")
def report() -> Report:
    before, after = (evaluate(WordScorer(price), PAIRS, reference=True) for price in (1.0, 2.0))
    return run_report(
        "A run",
        metrics=METRICS,
        before=before,
        after=after,
        samples=[{"prompt": "Say <hi>", "before": "hi", "after": "hello"}],
        settings={"objective": {"kind": "dpo", "beta": 0.1}, "seed": 0},
        skipped=[{"source": "x.jsonl", "line": 3, "field": "chosen", "problem": "is empty"}],
        environment={"python": "3.12"},
    )


def parts(report: Report, heading: str) -> list[Table | Plot]:
    return [part for section in report.sections if section.heading == heading for part in section.parts]


def test_every_part_has_its_place(report: Report) -> None:
    assert [section.heading for section in report.sections] == [
        "Held-out comparisons",
        "Training",
        "Continuations",
        "Rows set aside",
        "Settings",
        "Environment",
    ]
    assert all(section.text for section in report.sections)


def test_curves_are_those_of_the_metrics_with_chosen_and_rejected_apart(report: Report) -> None:
    plots = {plot.title: plot.data.rows for plot in parts(report, "Training")}
    assert [row[:3] for row in plots["Loss"]] == [["training", 10, 0.69], ["training", 20, 0.5], ["held out", 20, 0.6]]
    assert [row[:3] for row in plots["Log-probability change (nats)"]] == [
        ["chosen", 10, 0.0],
        ["chosen", 20, -1.0],
        ["rejected", 10, 0.0],
        ["rejected", 20, -2.5],
    ]
    assert "Reward accuracy" not in plots  # never logged


def test_tables_hold_what_was_given(report: Report) -> None:
    assert parts(report, "Continuations")[0].rows == [["Say <hi>", "hi", "hello"]]
    assert parts(report, "Rows set aside")[0].rows == [["x.jsonl", 3, "chosen", "is empty"]]
    assert parts(report, "Settings")[0].rows == [["objective.kind", "dpo"], ["objective.beta", 0.1], ["seed", 0]]
    assert parts(report, "Held-out comparisons")[0].columns == ["figure", "before", "after", "change"]


def test_the_page_is_written(report: Report, tmp_path: Path) -> None:
    page = report.write(tmp_path).read_text()
    assert "Say &lt;hi&gt;" in page
    assert page.count("<svg") == 5


def test_a_long_list_of_rows_set_aside_is_cut_and_says_so() -> None:
    (section,) = run_report("Many", skipped=[{"source": "x", "line": n, "problem": "p"} for n in range(250)]).sections
    assert len(section.parts[0].rows) == 100
    assert ": 250. The first 100 are shown" in section.text


def test_parts_without_data_are_left_out() -> None:
    assert run_report("Empty").sections == []
    only_after = run_report("After", after=evaluate(WordScorer(), PAIRS))
    assert [section.heading for section in only_after.sections] == ["Held-out comparisons"]
    assert "0.500" in only_after.summary


def test_what_the_objective_learned_and_doubts() -> None:
    """Values in a table, a group of them as bars from the lowest on, and the rows that it finds hardest to believe."""
    row_figures = [
        {"row": str(n), "place": f"x:{n}", "label_confidence": value} for n, value in enumerate(["0.9", "0.1", ""], 1)
    ]
    learned = {"latent": {"reliabilities": {"ann": 0.9, "bob": 0.6}}}
    found = run_report("A run", learned=learned, row_figures=row_figures)
    table, plot = parts(found, "What the objective learned")
    assert table.rows == [["latent.reliabilities.ann", 0.9], ["latent.reliabilities.bob", 0.6]]
    assert [row[:2] for row in plot.data.rows] == [["bob", 0.6], ["ann", 0.9]]
    (lowest,) = parts(found, "Rows, as the objective sees them")
    assert lowest.rows == [["x:2", 0.1], ["x:1", 0.9]]
    assert lowest.title == "Lowest label confidence of 2 rows"
