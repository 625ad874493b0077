"""What `torchrun` runs for `test_processes.py`: fits in several processes, one after the other in one start."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from tests.training.tiny_domain import LetterScorer, comparisons

from prefkit.objectives import make_objective
from prefkit.training import FitResult, TrainingOptions, fit

OPTIONS: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-2, "log_every": 1, "save_every": 3, "progress": False}
ROWS = 13
"""With batches of 4 in all, the last one has a single row: one of two processes has none."""


def train(
    folder: Path, name: str, objective: str = "dpo", resume: bool = False, precision: str = "fp32", **options: Any
) -> FitResult:
    return fit(
        LetterScorer(dropout=0.0, precision=precision),
        comparisons(ROWS),
        make_objective(objective),
        output=folder / name,
        options=TrainingOptions(**{**OPTIONS, **options}),
        cache=folder / f"cache-{name}",
        resume=resume,
    )


def main(folder: Path) -> None:
    from prefkit.training import processes

    train(folder, "ddp", batch_size=2)
    train(folder, "ddp-accumulated", batch_size=1, gradient_accumulation=2)
    train(folder, "ddp-kto", objective="kto", batch_size=2)
    train(folder, "fsdp", batch_size=2, fsdp=True)
    train(folder, "fsdp-bf16", batch_size=2, fsdp=True, precision="bf16", max_steps=1)
    for name, more in (("ddp", {}), ("fsdp", {"fsdp": True})):
        resumed = folder / f"{name}-resumed"
        if processes.rank() == 0:
            shutil.copytree(folder / name, resumed)
            shutil.rmtree(resumed / "model")
            shutil.rmtree(resumed / "checkpoints" / "checkpoint-8")
        processes.wait()
        train(folder, f"{name}-resumed", batch_size=2, resume=True, **more)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
