"""What an objective costs: training time of every named method over that of DPO, on the same comparisons in one run."""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

from prefkit.comparisons import Comparison, Ratings
from prefkit.errors import PrefkitError
from prefkit.language import LanguageScorer, ModelOptions, load_scorer
from prefkit.objectives import PRESETS, make_objective
from prefkit.report import Table
from prefkit.training import TrainingOptions, fit

STEPS, BATCH = 6, 4


def costs(workload: Path, repeats: int = 3) -> Table:
    """One row a method: median of the ratios of its time to that of DPO just before and after it."""
    with tempfile.TemporaryDirectory() as cache:
        return _costs(workload, repeats, Path(cache))


def _costs(workload: Path, repeats: int, cache: Path) -> Table:
    model = str(workload / "model")
    scorer = load_scorer(ModelOptions(path=model, reference=model))
    rows = [json.loads(line) for line in (workload / "pairs.jsonl").open()][: STEPS * BATCH]
    comparisons = [_said_in_every_way(row) for row in rows]
    ratios: dict[str, list[float]] = {kind: [] for kind in sorted(PRESETS)}
    refused: dict[str, str] = {}
    _seconds(scorer, comparisons, "dpo", cache)  # fills the cache
    for _ in range(repeats):
        before = _seconds(scorer, comparisons, "dpo", cache)
        for kind in [kind for kind in ratios if kind not in refused]:
            try:
                own = _seconds(scorer, comparisons, kind, cache)
            except PrefkitError as error:
                refused[kind] = str(error).splitlines()[0][:70]
                continue
            after = _seconds(scorer, comparisons, "dpo", cache)
            ratios[kind].append(2 * own / (before + after))
            before = after
    shown = [
        [kind, "", refused[kind]]
        if kind in refused
        else [kind, f"{statistics.median(found):.2f}x", f"{min(found):.2f}-{max(found):.2f}"]
        for kind, found in ratios.items()
    ]
    return Table(["objective", "time of DPO's", "range"], shown, f"Cost of objectives, {workload.name}, fp32")


def _said_in_every_way(row: dict[str, str]) -> Comparison:
    """A pair with everything that some method reads."""
    return Comparison(
        (row["prompt"],),
        (row["chosen"], row["rejected"]),
        Ratings((2.0, 1.0)),
        annotator="one",
        rationale=row["chosen"],
        steps=tuple((text,) for text in (row["chosen"], row["rejected"])),
        extra={"rewards": [1.0, 0.0]},
    )


def _seconds(scorer: LanguageScorer, comparisons: list[Comparison], kind: str, cache: Path) -> float:
    objective = make_objective(kind)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingOptions(
            batch_size=BATCH, max_steps=STEPS, learning_rate=1e-6, save_every=0, progress=False, log_every=STEPS
        )
        result = fit(scorer, comparisons, objective, output=Path(folder, "run"), cache=cache, options=options)
    return result.seconds
