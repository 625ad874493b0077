from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.test_fit import OPTIONS, weights
from tests.training.tiny_domain import LetterScorer

from prefkit.comparisons import Comparison, Ratings
from prefkit.errors import OptionError, PrefkitError
from prefkit.objectives import make_objective
from prefkit.training import (
    CurriculumOptions,
    CurriculumResult,
    Run,
    TrainingOptions,
    fit_curriculum,
    make_stages,
)


def rated(count: int = 6) -> list[Comparison]:
    """Lists in which more vowels make a better response."""
    texts = ("aeioua", "aeidbb", "xxccdd", "aeizzz")
    return [Comparison((f"say {'xyz' * (n + 1)}:",), texts, Ratings((9, 5, 1, 3)), line=n + 1) for n in range(count)]


def train(
    folder: Path,
    name: str = "run",
    *,
    objective: Any = "dpo",
    scorer: LetterScorer | None = None,
    resume: bool = False,
    stages: Any = None,
    how: Any = None,
    **options: Any,
) -> CurriculumResult:
    scorer = scorer or LetterScorer(dropout=0.0)
    chosen = CurriculumOptions.parse(how or {})
    return fit_curriculum(
        scorer,
        make_stages(scorer, rated(), chosen).stages if stages is None else stages,
        make_objective(objective),
        output=folder / name,
        reference=chosen.reference,
        options=TrainingOptions(**{**OPTIONS, "warmup": 0, **options}),
        resume=resume,
        cache=folder / "cache",
    )


def stage_starts(result: CurriculumResult) -> list[float]:
    return [stage.run.metrics[0]["loss"] for stage in result.stages]


def test_each_stage_starts_at_its_reference(tmp_path: Path) -> None:
    result = train(tmp_path, batch_size=6)
    # One update a stage: each is measured before anything was learned in it.
    assert stage_starts(result) == pytest.approx([math.log(2)] * 3, abs=1e-4)
    assert (result.fit.steps, result.fit.rows, len(result.stages)) == (3, 18, 3)


def test_against_the_first_model_later_stages_start_ahead(tmp_path: Path) -> None:
    result = train(tmp_path, batch_size=6, how={"reference": "sft"}, epochs=3, learning_rate=3e-2)
    first, *later = stage_starts(result)
    assert first == pytest.approx(math.log(2), abs=1e-4)
    assert all(loss < 0.6 for loss in later)


def test_the_last_model_is_that_of_the_run(tmp_path: Path) -> None:
    result = train(tmp_path)
    run = result.fit.run
    for name, tensor in weights(result.stages[-1].run).items():
        assert torch.equal(weights(run)[name], tensor)
    assert not torch.equal(weights(result.stages[0].run)["embed.weight"], weights(run)["embed.weight"])
    assert [(line["stage"], line["step"]) for line in run.metrics if "loss" in line] == [
        (1, 1), (1, 2), (2, 3), (2, 4), (3, 5), (3, 6),
    ]  # fmt: skip
    assert run.config["curriculum"] == {"stages": 3, "reference": "previous"}


@pytest.mark.parametrize("objective", ["ipo", "simpo", "plackett_luce", "kto"])
def test_any_objective_can_be_trained_in_stages(tmp_path: Path, objective: str) -> None:
    result = train(tmp_path, objective=objective)
    assert len(result.stages) == 3
    assert all(math.isfinite(loss) for loss in stage_starts(result))


class Dying(LetterScorer):
    """Interrupted in its fourth step, the second of the second stage."""

    def forward(self, inputs: Any) -> Any:
        self.steps = getattr(self, "steps", 0) + self.training
        if self.steps > 3:
            raise KeyboardInterrupt
        return super().forward(inputs)


@pytest.mark.parametrize("how", [{}, {"reference": "sft"}])
def test_a_stopped_curriculum_goes_on_to_the_same_numbers(tmp_path: Path, how: Any) -> None:
    whole = train(tmp_path, "whole", how=how, save_every=1)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "stopped", how=how, scorer=Dying(dropout=0.0), save_every=1)
    assert Run(tmp_path / "stopped" / "stage-1").finished
    assert not Run(tmp_path / "stopped").finished
    resumed = train(tmp_path, "stopped", how=how, resume=True, save_every=1)
    for name, tensor in weights(whole.fit.run).items():
        assert torch.equal(weights(resumed.fit.run)[name], tensor)
    assert [line["loss"] for line in resumed.fit.run.metrics if "loss" in line] == [
        line["loss"] for line in whole.fit.run.metrics if "loss" in line
    ]
    # A run that has come to its end can be asked for again.
    assert train(tmp_path, "stopped", how=how, resume=True, save_every=1).fit.steps == 6


def test_other_options_cannot_be_resumed(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(PrefkitError, match="holds another run"):
        train(tmp_path)
    with pytest.raises(OptionError, match=r"begun with curriculum.reference = 'previous', got 'sft'"):
        train(tmp_path, how={"reference": "sft"}, resume=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stages": []}, "a curriculum needs at least one stage"),
        ({"fsdp": True}, "training.fsdp does not apply to a curriculum"),
    ],
)
def test_messages(tmp_path: Path, given: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        train(tmp_path, **given)


def test_the_reference_decides_what_is_easy(tmp_path: Path) -> None:
    scorer = LetterScorer(dropout=0.0)
    records = [*rated(2), Comparison(("p",), ("a" * 99, "b"), Ratings((1, 2)), source="f", line=7)]
    built = make_stages(scorer, records, CurriculumOptions(criterion="logp"), batch_size=2)
    scores = scorer.reference(scorer.collate([scorer.encode(records[0])])).policy_logps.tolist()
    gaps = sorted((scores[0] - other for other in scores[1:]), reverse=True)
    assert [stage[0].extra["gap"] for stage in built.stages] == pytest.approx(gaps, abs=1e-4)
    assert [str(error) for error in built.skipped] == ["f:7: field 'responses': 99 letters, at most 64"]
    hard_first = make_stages(scorer, rated(), CurriculumOptions(order="hard_first"))
    assert [stage[0].extra["gap"] for stage in hard_first.stages] == [4, 6, 8]


def test_what_was_set_aside_is_listed(tmp_path: Path) -> None:
    scorer = LetterScorer(dropout=0.0)
    built = make_stages(scorer, [*rated(2), Comparison.pair("p", "a", "b", source="f", line=3)], CurriculumOptions())
    result = fit_curriculum(
        scorer,
        built.stages,
        make_objective("dpo"),
        output=tmp_path / "run",
        options=TrainingOptions(**OPTIONS),
        cache=tmp_path / "cache",
        skipped=built.skipped,
    )
    assert result.fit.skipped == 1
    (line,) = result.fit.run.skipped
    assert (line["source"], line["line"], line["field"]) == ("f", 3, "judgement")
    assert json.loads((result.fit.run.folder / "environment.json").read_text())["seed"] == 0
