"""The audit and the advice on generated data, and what they say where something is missing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.diagnostics import defects

from prefkit.comparisons import Comparison, Label, Ratings
from prefkit.diagnostics import (
    RULES,
    DataFindings,
    ModelFindings,
    advise,
    audit_data,
    audit_model,
    audit_report,
    rules_table,
)
from prefkit.errors import OptionError, PrefkitError
from prefkit.language import LanguageScorer, load_scorer
from prefkit.objectives import make_objective


@pytest.fixture(scope="module")
def scorer() -> LanguageScorer:
    return load_scorer("builtin").eval()


@pytest.fixture(scope="module")
def clean() -> DataFindings:
    return audit_data(defects.clean(0))


@pytest.mark.parametrize("finding", [name for name in defects.DEFECTS if name != "none"])
def test_the_defect_is_named_and_no_other(finding: str) -> None:
    assert defects.named(defects.DEFECTS[finding](100), None) == [finding]


def test_clean_data_have_no_defect(clean: DataFindings) -> None:
    assert [advice.rule.finding for advice in advise(clean)] == ["nothing in the way"]


def test_flipped_labels_are_told_from_a_model_where_nobody_judged_twice(scorer: LanguageScorer) -> None:
    records = defects.alone(defects.flipped(1))
    data = audit_data(records)
    assert data.reliability == "reliabilities need pairs that were judged at least twice; there are none"
    model = audit_model(scorer, records, data=data, rows=320, batch_size=32)
    (first, *_) = advise(data, model)
    assert first.rule.finding == "flipped labels"
    assert "by the model's states" in first.evidence.text
    assert first.objective["flip_rate"] == pytest.approx(0.25, abs=0.12)


def test_every_objective_of_a_rule_can_be_built() -> None:
    for rule in RULES:
        make_objective(rule.objective(0.2))
    assert len(rules_table().rows) == len(RULES)


def some(records: list[Comparison], scorer: LanguageScorer) -> ModelFindings:
    return audit_model(scorer, records, data=audit_data(records), rows=40, batch_size=16)


def test_what_a_model_says_is_of_the_sampled_rows(scorer: LanguageScorer) -> None:
    records = defects.alike(0)
    found = some(records, scorer)
    assert len(found.pairs) == 40
    for place, pair in enumerate(found.pairs[:5]):
        record = records[pair.row]
        encoded = scorer.encode(record)
        winner = record.judgement.index
        assert found.lengths[0, place] == len(encoded["response_ids"][winner])
    assert found.similarity.mean() > 0.6
    assert 0 < found.at_risk.mean() < 1
    assert not some(defects.clean(0), scorer).at_risk.any()
    assert found.noise == "an estimate of label noise needs at least 200 pairs, got 40"
    shares = set(np.round(found.alpha.numpy(), 3).tolist())
    assert shares <= {1.0, 0.667, 0.333}


def test_training_is_seen_to_move_the_pairs(scorer: LanguageScorer, clean: DataFindings) -> None:
    found = some(defects.clean(0), scorer)
    trained = replace(found, after=torch.stack([found.before[0] - 1, found.before[1] - 50]))
    report = audit_report("moved", clean, trained)
    (section,) = [s for s in report.sections if s.heading == "What training moved"]
    figures = dict(section.parts[0].rows)
    assert figures["both fell"].mean == 1
    assert figures["displaced: the loss fell, and chosen responses with it"] is True
    assert figures["flip rate: put right, of those ranked wrongly before"] > 0.5


def test_the_report_goes_on_where_something_is_missing(clean: DataFindings) -> None:
    bare = audit_data([Comparison.pair("q", f"good {i}", f"bad {i}") for i in range(5)])
    texts = {section.heading: section.text for section in audit_report("bare", bare).sections}
    assert "at least 4 annotators with 20 judgements" in texts["Disagreement between people"]
    assert "field `annotator`" in texts["Disagreement between people"]
    assert "no model was given (--model)" in texts["Label noise"]
    assert "three responses to one prompt" in texts["Circles"]
    assert "do not say how strongly" in texts["Preference strength"]
    assert len(audit_report("clean", clean).sections) == len(texts)


def test_single_judgements_have_no_winners() -> None:
    data = audit_data([Comparison(("q",), (f"r {i}",), Label(bool(i % 2))) for i in range(4)])
    assert data.decided == 0
    assert "No pair has a winner" in audit_report("labels", data).sections[1].text
    assert [advice.rule.finding for advice in advise(data)] == ["nothing in the way"]


def test_rated_lists_are_an_opportunity() -> None:
    records = [
        Comparison((f"q{i}",), (f"a {i} x", f"b {i} y", f"c {i} z"), Ratings((3.0, 2.0, 0.5)), rationale="because")
        for i in range(10)
    ]
    data = audit_data(records)
    found = {advice.rule.finding for advice in advise(data)}
    assert found == {"known strengths", "ranked lists", "rationales", "nothing in the way"}
    assert sorted(set(data.strengths)) == [1.0, 1.5, 2.5]


def test_the_page_has_data_beside_every_figure(tmp_path: object, scorer: LanguageScorer, clean: DataFindings) -> None:
    page = audit_report("<b>clean</b>", clean, some(defects.clean(0), scorer)).write(tmp_path)  # type: ignore[arg-type]
    text = page.read_text()
    assert "<b>clean</b>" not in text
    tables = sorted((page.parent / "report-data").iterdir())
    assert len(tables) >= 12
    assert all(table.read_text().count("\n") > 1 for table in tables)
    assert page.with_suffix(".json").exists()


def test_bad_input_is_explained(scorer: LanguageScorer, clean: DataFindings) -> None:
    with pytest.raises(PrefkitError, match="no comparison can be used"):
        audit_data([])
    with pytest.raises(OptionError, match="rows must be at least 1"):
        audit_model(scorer, defects.clean(0), data=clean, rows=0)
    with pytest.raises(OptionError, match="beta must be greater than 0"):
        audit_model(scorer, defects.clean(0), data=clean, beta=0)
    long = [Comparison.pair("q", "word " * 3000, "other " * 3000)]
    with pytest.raises(PrefkitError, match="could score no pair of 1 sampled comparisons; the first"):
        audit_model(scorer, long, data=audit_data(long))
