"""Pipelines on a GPU: the numbers of the CPU, and a run in half precision with all that saves memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("diffusers", reason="pipelines need the extra 'diffusion'")

from prefkit import diffusion as d
from prefkit.cli import app
from prefkit.diagnostics import evaluate
from prefkit.objectives import make_objective
from prefkit.training import Run, TrainingOptions, fit
from tests.diffusion import tiny_pipelines as tiny
from tests.diffusion.test_pipelines import (
    DEMONSTRATIONS,
    FAST,
    TRUNCATED,
    batch,
    caption,
    clip,
    command,
    pairs,
    parquet,
    settings,
    stop_at,
)
from tests.recipes import test_painting as painting

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("style", ["sd", "sdxl", "sd3", "dit"])
def test_scores_and_gradients_are_those_of_the_cpu(style: str, tmp_path: Path) -> None:
    folder = tiny.saved(style, tmp_path / style)
    found, inputs = [], {}
    for device in ("cpu", "cuda"):
        scorer = d.load_pipeline(d.PipelineOptions.parse({"path": folder, "posterior": "mean"})).to(device)
        # Encoded once: draws follow from the latents, and those of another device are rounded in another way.
        inputs = {name: tensor.to(device) for name, tensor in (inputs or batch(scorer, style)).items()}
        scorer.begin(0)
        scores = scorer(inputs).policy_logps
        (gradient,) = torch.autograd.grad(scores.sum(), next(w for w in scorer.parameters() if w.requires_grad))
        found.append((scores.detach().cpu(), gradient.cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("style", ["sd", "sd3"])
def test_a_run_in_half_precision_with_an_adapter_goes_on_where_it_stopped(style: str, tmp_path: Path) -> None:
    model = {
        "path": tiny.saved(style, tmp_path / "pipeline"),
        "precision": "bf16",
        "lora": {"rank": 2, "targets": ["to_q", "to_k", "to_v"]},
        "scores": {"draws": 1},
    }

    def run(resume: bool) -> Any:
        options = TrainingOptions(
            max_steps=5,
            batch_size=2,
            learning_rate=1e-3,
            save_every=3,
            progress=False,
            gradient_checkpointing=True,
            schedule="constant",
            warmup=0,
        )
        scorer = d.load_pipeline(d.PipelineOptions.parse(model))
        how: dict[str, Any] = {"output": tmp_path / "run", "cache": tmp_path / "c", "options": options}
        return scorer, fit(
            scorer, pairs(8, style), make_objective({"kind": "dpo", "beta": 500.0}), **how, resume=resume
        )

    _, first = run(resume=False)
    losses = [line["loss"] for line in first.run.metrics]
    scorer, result = run(resume=True)  # from the checkpoint of the third step
    assert result.steps == 5
    assert [line["loss"] for line in result.run.metrics] == pytest.approx(losses, rel=1e-3)
    assert scorer.device.type == "cuda"
    assert evaluate(scorer.eval(), pairs(4, style), reference=True, batch_size=2, per_token=False).summary
    images = d.draw_images(scorer, [caption(style)], [0], steps=2)
    assert images.isfinite().all()


@pytest.mark.parametrize("method", [DEMONSTRATIONS, TRUNCATED])
def test_a_run_without_pairs_goes_on_where_it_stopped(
    method: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["train", "--model", tiny.saved("sd", tmp_path / "sd"), "--data", parquet(tmp_path), *method, *FAST]
    given += settings(data__held_out=0.0, training__max_steps=5, training__log_every=1, training__save_every=2)
    went_on(given, tmp_path, monkeypatch)


def test_prefpaint_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.saved("inpainting", tmp_path / "pipeline")
    clip(tmp_path / "clip")
    judge = ["train", "--data", painting.rated(tmp_path), "--output", str(tmp_path / "judge"), *painting.REWARD]
    command(*judge, *settings(model__embedder=tmp_path / "clip"))
    given = ["train", "--model", str(tmp_path / "pipeline"), "--data", painting.to_fill(tmp_path), *painting.PAINT]
    given += settings(method__reward=tmp_path / "judge" / "model", training__save_every=2, training__max_steps=5)
    went_on(given, tmp_path, monkeypatch)


def went_on(given: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was stopped in its fifth round and resumed has the losses of one that was not."""
    command(*given, "--output", str(folder / "whole"))
    with monkeypatch.context() as patched:
        stop_at(5, patched)
        assert CliRunner().invoke(app, [*given, "--output", str(folder / "stopped")]).exit_code == 130
    command(*given, "--output", str(folder / "stopped"), "--resume")
    whole, stopped = (Run.open(folder / name).metrics for name in ("whole", "stopped"))
    assert len(whole) == 5
    # Kernels of a GPU do not add in one order.
    for here, there in zip(stopped, whole, strict=True):
        assert here == pytest.approx(there, rel=1e-3)
