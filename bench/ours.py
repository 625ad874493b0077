"""Throughput of one training run on a workload folder: one JSON line on standard output.

The workload is made by a script that serves the peer as well: `model/`, and `pairs.jsonl` with `prompt`, `chosen`,
`rejected` and, for more than two responses, `responses`, best first.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from pathlib import Path

import torch

from prefkit.comparisons import Comparison, Ranking
from prefkit.language import ModelOptions, load_scorer
from prefkit.objectives import make_objective
from prefkit.training import TrainingOptions, fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", type=Path)
    parser.add_argument("--batch", type=int, default=4, help="comparisons a step")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--unshared", action="store_true", help="one sequence a response, as models without packing")
    parser.add_argument("--objective", default="dpo")
    args = parser.parse_args()

    rows = [json.loads(line) for line in (args.workload / "pairs.jsonl").open()]
    # The order in which the peer's sampler takes the rows, so that the losses can be compared step by step.
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(42)).tolist()
    comparisons = [comparison(rows[index]) for index in order]
    model = ModelOptions(
        path=str(args.workload / "model"), precision="bf16" if args.bf16 else "fp32", shared_prompt=not args.unshared
    )
    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            load_scorer(model),
            comparisons,
            make_objective(args.objective),
            output=Path(folder, "run"),
            cache=Path(folder, "cache"),
            options=TrainingOptions(
                batch_size=args.batch,
                learning_rate=1e-5,
                schedule="constant",
                warmup=0,
                shuffle=False,
                log_every=1,
                save_every=0,
                progress=False,
            ),
        )
        losses = [line["loss"] for line in result.run.metrics]
    print(
        json.dumps(
            {
                "program": "prefkit",
                "pairs_per_s": len(rows) / result.seconds,
                "train_s": result.seconds,
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "losses": losses[:4],
            }
        )
    )


def comparison(row: dict[str, object]) -> Comparison:
    """A workload's row."""
    responses = row.get("responses") or [row["chosen"], row["rejected"]]
    assert isinstance(responses, list)
    return Comparison((str(row["prompt"]),), tuple(responses), Ranking(tuple(range(len(responses)))))


if __name__ == "__main__":
    main()
