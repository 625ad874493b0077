"""Scaling studies: the same training over sizes of data and models, with tests by family, and a law fitted to each.

Source: Wang et al. 2025, WorldPM: Scaling Human Preference Modeling (arXiv 2505.10527).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefkit.comparisons import load_comparisons
from prefkit.diagnostics import SCALING_COLUMNS, Interval, ScalingReport, bootstrap_interval, evaluate, scaling_report
from prefkit.errors import OptionError
from prefkit.recipes.run import RunConfig, load, run, saved_model
from prefkit.report import Table
from prefkit.report.cells import plain
from prefkit.report.plots import Curve, Plot, curves


@dataclass(frozen=True)
class ScalingStudy:
    """What a study measured.

    Args:
        sizes: training comparisons.
        losses: by family, model and size: mean loss of a pair, in nats, with a 95% interval over prompts.
        accuracies: the same of accuracy.
        reports: the law of each family.
        models: number of weights of each model, by its path.
    """

    sizes: tuple[int, ...]
    losses: Mapping[str, Mapping[str, Sequence[Interval]]]
    accuracies: Mapping[str, Mapping[str, Sequence[Interval]]]
    reports: Mapping[str, ScalingReport]
    models: Mapping[str, int]

    def tables(self) -> list[Table]:
        """The losses and accuracies, and the laws fitted to the losses."""
        rows: list[list[Any]] = [
            [family, model, size, loss, self.accuracies[family][model][place]]
            for family, by_model in self.losses.items()
            for model, losses in by_model.items()
            for place, (size, loss) in enumerate(zip(self.sizes, losses, strict=True))
        ]
        laws = [row for report in self.reports.values() for row in report.rows()]
        return [
            Table(["tests", "model", "training comparisons", "loss (nats)", "accuracy"], rows, "Losses"),
            Table(list(SCALING_COLUMNS), laws, "Power laws"),
        ]

    def plot(self) -> Plot:
        """Losses over the number of training comparisons, on doubling axes."""
        lines = {
            f"{family}, {Path(model).name or model}": Curve(
                np.log2(self.sizes).tolist(),
                [loss.mean for loss in losses],
                [loss.low for loss in losses],
                [loss.high for loss in losses],
            )
            for family, by_model in self.losses.items()
            for model, losses in by_model.items()
        }
        return curves(lines, title="Test loss", x="log2 of training comparisons", y="loss (nats)")

    def to_dict(self) -> dict[str, Any]:
        """The figures as values that JSON holds."""
        return {
            "sizes": list(self.sizes),
            "models": dict(self.models),
            "losses": plain(self.losses),
            "accuracies": plain(self.accuracies),
            "trends": {family: report.trend for family, report in self.reports.items()},
            "exponents": {
                family: {f"{size:g}": plain(fit.exponent_interval) for size, fit in report.fits.items()}
                for family, report in self.reports.items()
            },
        }

    def write(self, folder: Path) -> None:
        """Write `result.json` and `plot.svg`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        self.plot().figure.savefig(folder / "plot.svg", metadata={"Date": None})


def scaling_study(
    config: RunConfig,
    sizes: Sequence[int],
    tests: Mapping[str, str],
    models: Sequence[str] = (),
    *,
    keep: bool = False,
    progress: Callable[[str], None] = lambda done: None,
) -> ScalingStudy:
    """Train reward models on growing parts of the data, one pass each, and fit power laws to their test losses.

    Args:
        config: of one run of a reward model; its `data.limit` and `model.path` are set for each, and each run's folder
            stands in its `output`.
        sizes: training comparisons, at least 3 different ones; the first ones of the data are taken.
        tests: file of comparisons by the name of its family.
        models: paths of the models; that of the configuration by default.
        keep: keep the trained models; without it only the figures stay.
        progress: told what was trained.

    Raises:
        OptionError: the configuration is not of a reward model, or there are too few sizes or no tests.
    """
    if config.model.kind != "reward":
        raise OptionError("a scaling study trains reward models: set model.kind=reward")
    ordered = tuple(sorted(set(sizes)))
    if len(ordered) < 3 or ordered[0] < 1:
        raise OptionError(f"a scaling law needs at least 3 different sizes of at least 1, got {list(sizes)}")
    if not tests:
        raise OptionError("a scaling study needs tests, name=file")
    paths = tuple(models) or (config.model.path,)
    losses: dict[str, dict[str, list[Interval]]] = {family: {path: [] for path in paths} for family in tests}
    accuracies: dict[str, dict[str, list[Interval]]] = {family: {path: [] for path in paths} for family in tests}
    weights: dict[str, int] = {}
    for number, path in enumerate(paths):
        for size in ordered:
            folder = Path(config.output) / f"model-{number}-{size}"
            own = config.model_copy(
                update={
                    "model": config.model.model_copy(update={"path": path}),
                    "data": config.data.model_copy(update={"limit": size}),
                    "output": str(folder),
                }
            )
            result = run(own)
            assert result is not None
            scorer = load(saved_model(own.model, result.fit.run.model), own.encoding).eval()
            weights[path] = sum(parameter.numel() for parameter in scorer.parameters())
            for family, file in tests.items():
                found = evaluate(scorer, load_comparisons(file), batch_size=own.training.batch_size, per_token=False)
                ahead = (found.scores.policy_chosen_logps - found.scores.policy_rejected_logps).double().numpy()
                losses[family][path].append(bootstrap_interval(np.logaddexp(0, -ahead), clusters=found.prompts))
                accuracies[family][path].append(found.summary["ranking_accuracy"])
            if not keep:
                shutil.rmtree(folder)
            progress(f"{path}: {size} comparisons")
    reports = {
        family: scaling_report(
            ordered,
            {float(weights[path]): [loss.mean for loss in by_size] for path, by_size in by_model.items()},
            family,
        )
        for family, by_model in losses.items()
    }
    return ScalingStudy(ordered, losses, accuracies, reports, weights)
