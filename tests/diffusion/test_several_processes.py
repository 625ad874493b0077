"""Pipelines in two processes: DDP and FSDP2 give the numbers of one process at the same batch."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from prefkit import diffusion as d
from prefkit.training import Run, processes
from tests.diffusion import tiny_pipelines as tiny
from tests.diffusion.test_pipelines import command, parquet, settings
from tests.torchrun import in_two_processes

SETTINGS: dict[str, Any] = {
    "training__epochs": 2, "training__log_every": 1, "training__progress": False,
    "model__scores__draws": 1, "report__samples": 1, "report__steps": 2, "objective__beta": 20.0,
}  # fmt: skip
FULL = {"training__learning_rate": 2e-3}
LORA = {"training__learning_rate": 2e-2, "model__lora__rank": 2}
ROWS = 5
"""With batches of 4 in all, the last one has a single row: one of two processes has none."""


def train(folder: Path, name: str, *more: str, **values: Any) -> None:
    """The command, with both processes' own report of what went wrong."""
    given = ["train", "--model", str(folder / "pipeline"), "--data", str(folder / "pairs.parquet"), *more]
    os.environ["PREFKIT_CACHE"] = str(folder / f"cache-{name}")
    command(*given, "--output", str(folder / name), *settings(**SETTINGS, **values))


def main(folder: Path) -> None:
    for name, more in (("ddp", {}), ("fsdp", {"training__fsdp": True})):
        given = {"training__batch_size": 2, **more}
        train(folder, name, **FULL, **given)
        train(folder, f"{name}-lora", **LORA, **given)
        resumed = folder / f"{name}-resumed"
        if processes.rank() == 0:
            shutil.copytree(folder / name, resumed)
            shutil.rmtree(resumed / "model")
            shutil.rmtree(resumed / "checkpoints" / "checkpoint-4")
        processes.wait()
        train(folder, f"{name}-resumed", "--resume", **FULL, **given)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    tiny.saved("sd", folder / "pipeline")
    parquet(folder, ROWS)
    in_two_processes("tests.diffusion.test_several_processes", folder)
    train(folder, "one", **FULL, training__batch_size=4)
    train(folder, "one-lora", **LORA, training__batch_size=4)
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(d.load_pipeline(str(run / "model")).denoiser.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("several", ["ddp", "fsdp", "ddp-lora", "fsdp-lora"])
def test_same_losses_and_pipeline_as_one_process(runs: Path, several: str) -> None:
    one = "one-lora" if several.endswith("lora") else "one"
    found, expected = ([line["loss"] for line in Run.open(runs / name).metrics] for name in (several, one))
    assert len(expected) == 4
    assert expected[-1] != pytest.approx(expected[0], abs=1e-3)
    assert found == pytest.approx(expected, abs=1e-5)
    assert (runs / several / "samples.png").is_file()
    assert (runs / several / "report.html").is_file()
    together, alone = weights(runs / several), weights(runs / one)
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_resumed_in_two_processes(runs: Path, name: str) -> None:
    whole, resumed = Run.open(runs / name), Run.open(runs / f"{name}-resumed")
    assert resumed.metrics == whole.metrics
    for file in (whole.model / "unet").iterdir():
        assert (resumed.model / "unet" / file.name).read_bytes() == file.read_bytes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
