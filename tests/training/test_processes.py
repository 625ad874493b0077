"""Several processes give the numbers of one process with the same rows in a batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.torchrun import in_two_processes
from tests.training.processes_worker import train

from prefkit.training import Run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All fits in two processes, and beside them the same in one."""
    folder = tmp_path_factory.mktemp("processes")
    in_two_processes("tests.training.processes_worker", folder)
    train(folder, "one", batch_size=4)
    train(folder, "one-kto", objective="kto", batch_size=4)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("several", "one"), [("ddp", "one"), ("ddp-accumulated", "one"), ("ddp-kto", "one-kto"), ("fsdp", "one")]
)
def test_same_curve_and_weights_as_one_process(runs: Path, several: str, one: str) -> None:
    measured, expected = Run.open(runs / several), Run.open(runs / one)
    assert len(expected.metrics) == 8
    for here, there in zip(measured.metrics, expected.metrics, strict=True):
        # The Trainer counts batches, not updates, into its epochs.
        assert here.pop("epoch") <= 2.0 >= there.pop("epoch")
        assert here == pytest.approx(there, rel=1e-5, abs=1e-5)
    weights = load_file(measured.model / "model.safetensors")
    for name, tensor in load_file(expected.model / "model.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_resumed_in_two_processes(runs: Path, name: str) -> None:
    whole, resumed = Run.open(runs / name), Run.open(runs / f"{name}-resumed")
    assert resumed.metrics == whole.metrics
    for file in (whole.model / "model.safetensors").parent.iterdir():
        assert (resumed.model / file.name).read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_sharded_mixed_precision_starts_at_the_reference(runs: Path) -> None:
    assert Run.open(runs / "fsdp-bf16").metrics[0]["chosen_logp_change"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_sharded_checkpoints_hold_whole_tensors_once(runs: Path) -> None:
    checkpoint = runs / "fsdp" / "checkpoints" / "checkpoint-8"
    expected = {name: tensor.shape for name, tensor in load_file(runs / "one" / "model" / "model.safetensors").items()}
    assert {name: tensor.shape for name, tensor in load_file(checkpoint / "model.safetensors").items()} == expected
    assert "optimizer.pt" in json.loads((checkpoint / "manifest.json").read_text())["files"]
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    assert {name: entry["exp_avg"].shape for name, entry in state.items()} == expected
