"""The command in two processes: DDP and FSDP2 give the numbers of one process at the same batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.torchrun import TORCHRUN

from prefkit.training import Run

SETTINGS = [
    *("--data", "builtin"),
    *("--set", "training.max_steps=3", "--set", "training.learning_rate=1e-3", "--set", "training.log_every=1"),
    *("--set", "training.progress=false", "--set", "training.save_every=0", "--set", "training.eval_every=100"),
    *("--set", "report.samples=0", "--set", "data.limit=64"),
]


def train(folder: Path, *more: str, launcher: tuple[str, ...] = ()) -> Run:
    command = [sys.executable, *launcher, "-m", "prefkit.cli", "train", "--output", folder, *SETTINGS]
    for setting in more:
        command += ["--set", setting]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return Run.open(folder)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    one = train(tmp_path / "one", "training.batch_size=8")
    expected = [line["loss"] for line in one.metrics if "loss" in line]
    assert len(expected) == 3
    assert expected[-1] != pytest.approx(expected[0], abs=1e-3)
    for name, more in (("ddp", ()), ("fsdp", ("training.fsdp=true",))):
        several = train(tmp_path / name, "training.batch_size=4", *more, launcher=TORCHRUN)
        assert [line["loss"] for line in several.metrics if "loss" in line] == pytest.approx(expected, abs=1e-5), name
        assert (several.model / "model.safetensors").is_file()
