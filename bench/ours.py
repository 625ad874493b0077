"""Throughput of one training or scoring run on a workload folder: one JSON line on standard output.

The workload is made by a script that serves the peer as well: `model/`, and `pairs.jsonl` with `prompt`, `chosen`,
`rejected` and, for more than two responses, `responses`, best first.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch

from prefkit.comparisons import Comparison, Ranking
from prefkit.language import LanguageScorer, ModelOptions, RewardScorer, load_reward, load_scorer
from prefkit.objectives import encode_all, make_objective, score_all
from prefkit.training import TrainingOptions, fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", type=Path)
    parser.add_argument("--batch", type=int, default=4, help="comparisons a step")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--unshared", action="store_true", help="one sequence a response, as models without packing")
    parser.add_argument("--reward", action="store_true", help="a reward model instead of a policy")
    parser.add_argument("--score", action="store_true", help="score all responses instead of training")
    parser.add_argument("--objective", help="what is trained with; dpo, or reward_model")
    args = parser.parse_args()

    rows = [json.loads(line) for line in (args.workload / "pairs.jsonl").open()]
    # The order in which the peer's sampler takes the rows, so that the losses can be compared step by step.
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(42)).tolist()
    comparisons = [comparison(rows[index]) for index in order]
    model = ModelOptions(
        path=str(args.workload / "model"),
        kind="reward" if args.reward else "lm",
        precision="bf16" if args.bf16 else "fp32",
        shared_prompt=not args.unshared,
    )
    scorer = load_reward(model) if args.reward else load_scorer(model)
    if args.score:
        seconds, numbers = scored(scorer, comparisons, args.batch)
    else:
        objective = args.objective or ("reward_model" if args.reward else "dpo")
        seconds, numbers = trained(scorer, comparisons, args.batch, objective)
    print(
        json.dumps(
            {
                "program": "prefkit",
                "pairs_per_s": len(rows) / seconds,
                "train_s": seconds,
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "losses": numbers[:4],
            }
        )
    )


def comparison(row: dict[str, object]) -> Comparison:
    """A workload's row."""
    responses = row.get("responses") or [row["chosen"], row["rejected"]]
    assert isinstance(responses, list)
    return Comparison((str(row["prompt"]),), tuple(responses), Ranking(tuple(range(len(responses)))))


def trained(
    scorer: LanguageScorer | RewardScorer, comparisons: list[Comparison], batch: int, objective: str
) -> tuple[float, list[float]]:
    """Seconds of training, and the losses."""
    options = TrainingOptions(
        batch_size=batch,
        learning_rate=1e-5,
        schedule="constant",
        warmup=0,
        shuffle=False,
        log_every=1,
        save_every=0,
        progress=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        where = {"output": Path(folder, "run"), "cache": Path(folder, "cache")}
        result = fit(scorer, comparisons, make_objective(objective), options=options, **where)
        return result.seconds, [line["loss"] for line in result.run.metrics]


def scored(
    scorer: LanguageScorer | RewardScorer, comparisons: list[Comparison], batch: int
) -> tuple[float, list[float]]:
    """Seconds of scoring encoded comparisons, and the first scores."""
    if isinstance(scorer, RewardScorer):  # a head of zeros would score everything alike
        torch.nn.init.normal_(scorer.head.weight, generator=torch.Generator().manual_seed(0))
    encoded = [item for _, item in encode_all(scorer.eval(), comparisons)]
    begun = time.perf_counter()
    found = torch.cat([scores.policy_logps for scores in score_all(scorer, encoded, batch_size=batch)])
    return time.perf_counter() - begun, found.tolist()


if __name__ == "__main__":
    main()
