"""Pipelines on a GPU: the numbers of the CPU, and a run in half precision with all that saves memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="pipelines need the extra 'diffusion'")

from prefkit import diffusion as d
from prefkit.diagnostics import evaluate
from prefkit.objectives import make_objective
from prefkit.training import TrainingOptions, fit
from tests.diffusion import tiny_pipelines as tiny
from tests.diffusion.test_pipelines import batch, caption, pairs

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
