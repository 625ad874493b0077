"""A recipe: the parts of a published system, and the experiment that checks what it claims.

An experiment runs once a seed and reports named figures; a claim compares two of them over all seeds. Everything else
(the loop, intervals, table, plot, files) is the same for all and lives here.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prefkit.diagnostics import Interval, mean_interval
from prefkit.errors import PrefkitError
from prefkit.report.cells import plain
from prefkit.report.plots import Plot
from prefkit.report.tables import Table

Figures: TypeAlias = Mapping[str, float]
"""What one seed measured, by name."""


@dataclass(frozen=True)
class Claim:
    """A statement about two figures that can turn out wrong.

    Args:
        text: the statement, in words.
        measured: name of the method's figure.
        baseline: name of the figure that it is compared with.
        holds: whether it holds, from both figures as arrays with one entry a seed.
    """

    text: str
    measured: str
    baseline: str
    holds: Callable[[NDArray[np.float64], NDArray[np.float64]], bool | np.bool]


@dataclass(frozen=True)
class Illustrated:
    """What one seed measured, with pictures of it; those of the first seed are kept.

    Args:
        figures: by name.
        pictures: by name of the file, without its ending.
    """

    figures: Figures
    pictures: Mapping[str, Plot]


@dataclass(frozen=True)
class Experiment:
    """A small reproduction of what a paper claims.

    Args:
        run: measures the figures of one seed, and may draw pictures; the same seed gives the same figures.
        claims: what is checked.
        plot: draws the figures, given by name with their intervals over seeds.
        seeds: number of seeds of the full form.
        quick_seeds: number of seeds of the short form.
    """

    run: Callable[[int], Figures | Illustrated]
    claims: Sequence[Claim]
    plot: Callable[[Mapping[str, Interval]], Plot]
    seeds: int = 10
    quick_seeds: int = 3


@dataclass(frozen=True)
class Recipe:
    """A published system.

    Args:
        slug: its name on the command line.
        title: what it is, in a few words.
        year: of its first publication.
        paper: where it was published.
        parts: what it is made of, as configurations by role; empty while it is planned.
        experiment: the check of its central claim; None while it is planned.
    """

    slug: str
    title: str
    year: int
    paper: str
    parts: Mapping[str, Any] = field(default_factory=dict)
    experiment: Experiment | None = None

    @property
    def state(self) -> Literal["ready", "planned"]:
        """Whether it can be reproduced."""
        return "planned" if self.experiment is None else "ready"


@dataclass(frozen=True)
class Verdict:
    """A claim, its two figures over the seeds, and whether it held."""

    claim: Claim
    baseline: Interval
    measured: Interval
    passed: bool


@dataclass(frozen=True)
class Reproduction:
    """What an experiment measured.

    Args:
        recipe: the recipe.
        figures: each figure by name, one value a seed.
        verdicts: one a claim.
        seconds: wall time.
        pictures: what the first seed looked like, by name.
    """

    recipe: Recipe
    figures: Mapping[str, Sequence[float]]
    verdicts: Sequence[Verdict]
    seconds: float
    pictures: Mapping[str, Plot] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every claim held."""
        return all(verdict.passed for verdict in self.verdicts)

    def table(self) -> Table:
        """One row a claim, figures with 95% intervals over seeds."""
        rows = [[v.claim.text, str(v.baseline), str(v.measured), v.passed] for v in self.verdicts]
        seeds = len(next(iter(self.figures.values())))
        return Table(["claim", "baseline", "measured", "pass"], rows, f"{self.recipe.title} ({seeds} seeds)")

    def plot(self) -> Plot:
        """The recipe's plot."""
        return _experiment(self.recipe).plot(_intervals(self.figures))

    def write(self, folder: Path) -> None:
        """Write `result.json`, `plot.svg` and the pictures to a folder, which is made if it does not exist."""
        folder.mkdir(parents=True, exist_ok=True)
        result = {
            "recipe": self.recipe.slug,
            "title": self.recipe.title,
            "paper": self.recipe.paper,
            "parts": self.recipe.parts,
            "passed": self.passed,
            "claims": [
                {"claim": v.claim.text, "baseline": v.baseline, "measured": v.measured, "passed": v.passed}
                for v in self.verdicts
            ],
            "figures": self.figures,
            "seconds": round(self.seconds, 3),
            "environment": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("prefkit", "torch", "numpy")},
            },
        }
        (folder / "result.json").write_text(json.dumps(plain(result), indent=2) + "\n", encoding="utf-8")
        for name, plot in {"plot": self.plot(), **self.pictures}.items():
            plot.figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def reproduce(
    recipe: Recipe,
    *,
    seeds: int | None = None,
    quick: bool = False,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Reproduction:
    """Run a recipe's experiment and judge its claims.

    Args:
        recipe: a recipe that is ready.
        seeds: number of seeds, from 0; the experiment's own number by default.
        quick: take the short form's number of seeds by default.
        track: passes the seeds on one by one, for a progress bar.

    Raises:
        PrefkitError: the recipe has no experiment yet, or there are no seeds.
    """
    experiment = _experiment(recipe)
    if seeds is None:
        seeds = experiment.quick_seeds if quick else experiment.seeds
    if seeds < 1:
        raise PrefkitError(f"seeds must be at least 1, got {seeds}")
    start = time.perf_counter()
    pictures: Mapping[str, Plot] = {}
    runs: list[Figures] = []
    for seed in track(range(seeds)):
        found = experiment.run(seed)
        if isinstance(found, Illustrated):
            pictures = pictures or found.pictures
            found = found.figures
        runs.append(found)
    figures = {name: [run[name] for run in runs] for name in runs[0]}
    intervals = _intervals(figures)
    verdicts = [
        Verdict(
            claim,
            intervals[claim.baseline],
            intervals[claim.measured],
            bool(claim.holds(np.array(figures[claim.measured]), np.array(figures[claim.baseline]))),
        )
        for claim in experiment.claims
    ]
    return Reproduction(recipe, figures, verdicts, time.perf_counter() - start, pictures)


def _intervals(figures: Mapping[str, Sequence[float]]) -> dict[str, Interval]:
    return {name: mean_interval(values) for name, values in figures.items()}


def _experiment(recipe: Recipe) -> Experiment:
    if recipe.experiment is None:
        raise PrefkitError(f"recipe '{recipe.slug}' is planned, there is nothing to reproduce yet")
    return recipe.experiment
