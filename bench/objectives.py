"""What an objective costs: processor time of an update with every named method over that of DPO, in one run.

Wall time on shared cores cannot tell 5%. The time that one thread computed can (several would wait for one another, and
waiting counts): updates of a method are compared with those of DPO just before and after it, each on the same batch.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from prefkit.comparisons import Comparison, Label, Ratings
from prefkit.errors import PrefkitError
from prefkit.language import LanguageScorer, ModelOptions, load_scorer
from prefkit.objectives import PRESETS, make_objective
from prefkit.report import Table
from prefkit.training import TrainingOptions, fit

STEPS, BATCH = 10, 4
UNPAIRED = ("kto", "bco")
"""Methods of single labelled responses: an update has the same responses, each with its label."""


def costs(workload: Path, repeats: int = 3, kinds: tuple[str, ...] = tuple(sorted(PRESETS))) -> Table:
    """One row a method: median of the ratios of its updates to those of DPO, with a 95% bootstrap interval."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as cache:
            return _costs(workload, repeats, kinds, Path(cache))
    finally:
        torch.set_num_threads(threads)


def _costs(workload: Path, repeats: int, kinds: tuple[str, ...], cache: Path) -> Table:
    model = str(workload / "model")
    scorer = load_scorer(ModelOptions(path=model, reference=model))
    rows = [json.loads(line) for line in (workload / "pairs.jsonl").open()][: STEPS * BATCH]
    ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
    refused: dict[str, str] = {}
    _updates(scorer, rows, "dpo", cache)  # fills the cache
    for _ in range(repeats):
        before = _updates(scorer, rows, "dpo", cache)
        for kind in [kind for kind in ratios if kind not in refused]:
            try:
                own = _updates(scorer, rows, kind, cache)
            except PrefkitError as error:
                refused[kind] = str(error).splitlines()[0][:70]
                continue
            after = _updates(scorer, rows, "dpo", cache)
            beside = (before + after) / 2
            # Batches of single responses are others than those of pairs: only their sums can be compared.
            ratios[kind] += [own.sum() / beside.sum()] if kind in UNPAIRED else (own / beside).tolist()
            before = after
    shown = [
        [kind, "", refused[kind]]
        if kind in refused
        else [kind, f"{np.median(found):.2f}x", "{:.2f}-{:.2f}".format(*_interval(found))]
        for kind, found in ratios.items()
    ]
    return Table(
        ["objective", "an update of DPO's", "95% interval"], shown, f"Cost of objectives, {workload.name}, fp32"
    )


def _interval(ratios: list[float]) -> tuple[float, float]:
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(low), float(high)


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


def _updates(scorer: LanguageScorer, rows: list[dict[str, str]], kind: str, cache: Path) -> np.ndarray:
    """Processor seconds of each update but the first: from one call of the objective to the next."""
    objective = make_objective(kind)
    marks: list[float] = []
    objective.register_forward_hook(lambda *_: marks.append(time.process_time()))
    alone = kind in UNPAIRED
    comparisons = [each for row in rows for each in (_labelled(row) if alone else [_said_in_every_way(row)])]
    options = TrainingOptions(
        batch_size=2 * BATCH if alone else BATCH,
        max_steps=STEPS,
        learning_rate=1e-6,
        save_every=0,
        progress=False,
        log_every=STEPS,
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(scorer, comparisons, objective, output=Path(folder, "run"), cache=cache, options=options)
    return np.diff(marks[-STEPS:])


def _labelled(row: dict[str, str]) -> list[Comparison]:
    return [Comparison((row["prompt"],), (row[side],), Label(side == "chosen")) for side in ("chosen", "rejected")]
