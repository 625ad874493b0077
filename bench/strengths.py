"""Bradley-Terry on a million comparisons of ten thousand items, against choix.

Each method runs in a process of its own, on the same comparisons, with the data in memory already: an array here, a
list of tuples there. Methods that do not end within the limit are stopped; the factor is then at least the limit's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from prefkit.report import Table

PEER = "choix==0.4.1"
ITEMS, COMPARISONS = 10_000, 1_000_000
SECONDS, FACTOR = 10.0, 3.0
"""Targets: our time, and how many times faster than the peer's best method."""

METHODS = ("lsr_pairwise", "ilsr_pairwise", "mm_pairwise", "rank_centrality", "opt_pairwise")
"""The peer's methods for data of this form; lsr and rank_centrality give no maximum of the likelihood."""


def compare(python: Path, folder: Path, *, repeats: int, limit: float) -> tuple[Table, bool]:
    """Time all methods.

    Args:
        python: interpreter of an environment with the peer.
        folder: where the comparisons are kept.
        repeats: runs of ours, of which the median counts.
        limit: seconds that a method of the peer may take.

    Returns:
        One row a method, and whether both targets were met.
    """
    from prefkit.report import Table  # not at the top: the peer's environment runs this file, and has no prefkit

    file = folder / "comparisons.npy"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        np.save(file, workload())
    ours = sorted(_timed([sys.executable, "-m", "bench.strengths", "ours", str(file)], None) for _ in range(repeats))
    seconds, coefficients = ours[len(ours) // 2]
    rows = [["prefkit BradleyTerry", f"{seconds:.2f}", "", ""]]
    factors = []
    for name in METHODS:
        taken, other = _timed([str(python), "-m", "bench.strengths", name, str(file)], limit)
        factors.append(taken / seconds)
        stopped = other is None
        gap = "" if stopped else f"{np.abs(np.array(other) - coefficients).max():.1e}"
        rows.append([f"choix {name}", ("> " if stopped else "") + f"{taken:.1f}", f"{factors[-1]:.1f}x", gap])
    met = seconds <= SECONDS and min(factors) >= FACTOR
    rows.append(["target", f"<= {SECONDS:g}", f">= {FACTOR:g}x of the best", "met" if met else "not met"])
    columns = ["method", "seconds", "times ours", "largest difference"]
    return Table(columns, rows, f"{COMPARISONS:,} comparisons of {ITEMS:,} items"), met


def workload() -> np.ndarray:
    """`[n, 2]`, the winner first: random pairs, strengths from a standard normal distribution."""
    rng = np.random.default_rng(0)
    strengths = rng.normal(size=ITEMS)
    first = rng.integers(ITEMS, size=COMPARISONS)
    second = (first + 1 + rng.integers(ITEMS - 1, size=COMPARISONS)) % ITEMS
    wins = rng.random(COMPARISONS) < 1 / (1 + np.exp(strengths[second] - strengths[first]))
    return np.stack([np.where(wins, first, second), np.where(wins, second, first)], axis=1)


def _timed(command: list[str], limit: float | None) -> tuple[float, list[float] | None]:
    """Seconds of the fit itself, and the coefficients; None where it was stopped or failed."""
    # Reading the comparisons and starting up are not part of the limit.
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=None if limit is None else limit + 15, check=False
        )
    except subprocess.TimeoutExpired:
        assert limit is not None
        return limit, None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["seconds"], found["coefficients"]


def main() -> None:
    """One fit: `python -m bench.strengths ours|METHOD FILE`."""
    name, data = sys.argv[1], np.load(sys.argv[2])
    if name == "ours":
        from prefkit.preference import BradleyTerry

        start = time.perf_counter()
        found = BradleyTerry().fit(data).coef_
    else:
        import choix

        comparisons = list(map(tuple, data.tolist()))
        start = time.perf_counter()
        found = getattr(choix, name)(ITEMS, comparisons)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "coefficients": (found - found.mean()).tolist()}))


if __name__ == "__main__":
    main()
