"""Training of the built-in model on a handful of comparisons, for tests that an objective trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from prefkit.assets import comparisons_path
from prefkit.comparisons import Comparison, load_comparisons
from prefkit.language import load_scorer
from prefkit.objectives import make_objective
from prefkit.training import FitResult, TrainingOptions, fit


def some_comparisons(count: int = 4, **more: Any) -> list[Comparison]:
    """The first of the built-in comparisons."""
    records = islice(load_comparisons(comparisons_path("train")), count)
    return [replace(record, **more) for record in records]


def train(folder: Path, objective: str | Mapping[str, Any], records: Sequence[Comparison], steps: int = 6) -> FitResult:
    """A few updates on all of the records at once."""
    options = TrainingOptions(
        batch_size=len(records), learning_rate=1e-3, epochs=steps, log_every=1, save_every=0, progress=False
    )
    return fit(
        load_scorer("builtin"),
        list(records),
        make_objective(objective),
        output=folder / "run",
        options=options,
        cache=folder / "cache",
    )


def losses(result: FitResult) -> list[float]:
    """The loss of each update."""
    return [line["loss"] for line in result.run.metrics if "loss" in line]
