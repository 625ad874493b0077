"""What training tells an objective that learns beside the model, and what it keeps of it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.tiny_domain import LetterScorer, comparisons

from prefkit.comparisons import Comparison
from prefkit.errors import PrefkitError
from prefkit.objectives import make_objective
from prefkit.training import FitResult, Run, TrainingOptions, fit

OPTIONS: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "progress": False}


def judged(n: int, names: tuple[str, ...] = ("anna", "ben"), start: int = 0) -> list[Comparison]:
    return [replace(c, annotator=names[i % len(names)]) for i, c in enumerate(comparisons(start + n)[start:])]


def train(
    folder: Path,
    records: list[Comparison],
    *,
    scorer: LetterScorer | None = None,
    evaluation: list[Comparison] | None = None,
    resume: bool = False,
    objective: dict[str, Any] | None = None,
    **options: Any,
) -> FitResult:
    return fit(
        scorer or LetterScorer(dropout=0.0),
        records,
        make_objective({"kind": "lcpo", "per_annotator": True, **(objective or {})}),
        output=folder,
        options=TrainingOptions(**{**OPTIONS, **options}),
        evaluation=evaluation,
        cache=folder.parent / "cache",
        resume=resume,
    )


def reliabilities(run: Run) -> dict[str, float]:
    found = json.loads((run.folder / "objective.json").read_text())["latent"]["reliabilities"]
    assert isinstance(found, dict)
    return found


def test_reliabilities_and_posteriors_are_reported_by_name_and_row(tmp_path: Path) -> None:
    result = train(tmp_path / "run", judged(9), epochs=2)
    found = reliabilities(result.run)
    assert list(found) == ["anna", "ben"]
    assert all(0 < value < 1 and value != 0.9 for value in found.values())
    with (result.run.folder / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == [str(n) for n in range(1, 10)]
    assert all(0 < float(row["label_confidence"]) < 1 for row in rows)
    line = result.metrics
    assert line["label_reliability of anna"] == pytest.approx(line["label_reliability"], abs=0.2)
    assert {"label_confidence", "label_suspected"} <= set(line)


def test_how_a_batch_is_spread_over_steps_does_not_matter(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", judged(12), epochs=2)
    parts = train(tmp_path / "parts", judged(12), epochs=2, batch_size=2, gradient_accumulation=2)
    assert reliabilities(parts.run) == pytest.approx(reliabilities(whole.run), abs=1e-5)


def test_evaluation_moves_nothing_and_its_annotators_keep_their_places(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", judged(12), epochs=2)
    # The evaluation data name the annotators in another order, and one who is new.
    held_out = judged(6, ("carl", "ben", "anna"), start=12)
    watched = train(tmp_path / "watched", judged(12), epochs=2, evaluation=held_out, eval_every=1)
    assert reliabilities(watched.run) == reliabilities(alone.run)
    last = [line for line in watched.run.metrics if "eval_loss" in line][-1]
    found = reliabilities(watched.run)
    assert last["eval_label_reliability"] == pytest.approx((0.9 + found["ben"] + found["anna"]) / 3, abs=1e-6)


@pytest.mark.parametrize("update", ["ema", "full"])
def test_a_pass_ends_where_its_last_update_does(tmp_path: Path, update: str) -> None:
    """13 rows in batches of 4 make 4 updates; the checkpoint of the fourth holds the new reliabilities."""
    run = train(tmp_path / "run", judged(13), max_steps=5, save_every=1, objective={"update": update}).run
    _, fourth, fifth = (
        load_file(run.checkpoints / f"checkpoint-{step}" / "state.safetensors")["objective.noise.reliabilities"]
        if step > 3
        else torch.full((2,), 0.9)
        for step in (3, 4, 5)
    )
    assert (fourth != 0.9).all()
    assert torch.equal(fourth, fifth) == (update == "full")


class Dying(LetterScorer):
    """Interrupted in its sixth step, in the second pass."""

    def forward(self, inputs: Any) -> Any:
        self.steps = getattr(self, "steps", 0) + self.training
        if self.steps > 6:
            raise KeyboardInterrupt
        return super().forward(inputs)


@pytest.mark.parametrize("update", ["ema", "full"])
def test_a_resumed_run_has_the_same_reliabilities(tmp_path: Path, update: str) -> None:
    options: dict[str, Any] = {"epochs": 3, "save_every": 1, "objective": {"update": update}}
    whole = train(tmp_path / "whole", judged(13), **options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", judged(13), scorer=Dying(dropout=0.0), **options)
    resumed = train(tmp_path / "stopped", judged(13), resume=True, **options)
    assert reliabilities(resumed.run) == reliabilities(whole.run)


def test_data_without_annotators_are_refused_with_the_field(tmp_path: Path) -> None:
    with pytest.raises(PrefkitError, match="field 'annotator': the objective needs to know who judged"):
        train(tmp_path / "run", comparisons(3))
