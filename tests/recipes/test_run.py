"""What a run writes beyond its model: the page of the objective's own view of rows and tokens."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from prefkit.assets import comparisons_path
from prefkit.recipes.run import RunConfig, run


def sections(tmp_path: Path, **config: Any) -> dict[str, Any]:
    few = tmp_path / "few.jsonl"
    with gzip.open(comparisons_path("train"), "rt", encoding="utf-8") as file:
        few.write_text("".join(islice(file, 24)), encoding="utf-8")
    found = run(
        RunConfig.model_validate(
            {
                "data": {"path": str(few), "held_out": 0.3},
                "training": {"max_steps": 2, "batch_size": 2, "progress": False},
                "report": {"samples": 1, "max_new_tokens": 2},
                "output": str(tmp_path / "run"),
                **config,
            }
        )
    )
    assert found is not None
    page = json.loads(found.report.with_suffix(".json").read_text())
    return {section["heading"]: section["parts"] for section in page["sections"]}


def test_the_mask_of_held_out_tokens_is_shown(tmp_path: Path) -> None:
    model = {"path": "builtin", "lora": {"rank": 2}}
    found = sections(tmp_path, model=model, objective={"kind": "sparsepo", "mask_mode": "independent"})
    plots = found["Tokens, as the objective sees them"]
    assert [plot["title"] for plot in plots] == ["mask of log-ratios", "mask of divergences"]
    rows = plots[0]["rows"]
    assert {row[0] for row in rows} == {"1 chosen", "1 rejected"}
    assert all(row[3] >= 0 for row in rows)
    assert len({row[3] for row in rows}) > 10


def test_the_rows_that_the_objective_doubts_are_listed(tmp_path: Path) -> None:
    found = sections(tmp_path, objective={"kind": "lcpo"})
    (lowest,) = found["Rows, as the objective sees them"]
    assert lowest["columns"] == ["place", "label_confidence"]
    assert len(lowest["rows"]) == 4
    assert all("few.jsonl" in place and 0 <= value <= 1 for place, value in lowest["rows"])
    assert found["What the objective learned"][0]["rows"][0][0].endswith("reliability")


def test_held_out_demonstrations_are_not_ranked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": f"{n}", "responses": [" yes"], "judgement": {"good": True}} for n in range(8)]
    path = tmp_path / "demonstrations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = sections(tmp_path, data={"path": str(path), "held_out": 0.5}, objective={"kind": "sft"})
    assert "Held-out comparisons" not in found
    assert found["Training"]
    assert "no held-out comparison has two responses to rank" in caplog.text
