"""Throughput of TRL's RewardTrainer on a workload folder: one JSON line on standard output.

Runs in the peer's environment, without prefkit. The head starts from 0, as ours does, so that losses can be compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", type=Path)
    parser.add_argument("--batch", type=int, default=4, help="pairs a step")
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()

    data = load_dataset("json", data_files=str(args.workload / "pairs.jsonl"), split="train")
    data = data.select_columns(["prompt", "chosen", "rejected"])
    path = args.workload / "model"
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, attn_implementation="sdpa")
    torch.nn.init.zeros_(model.score.weight)
    with tempfile.TemporaryDirectory() as out:
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(
                output_dir=out,
                per_device_train_batch_size=args.batch,
                max_steps=len(data) // args.batch,
                use_cpu=True,
                bf16=args.bf16,
                gradient_checkpointing=False,
                max_length=None,
                learning_rate=1e-5,
                lr_scheduler_type="constant",
                logging_steps=1,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(path),
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "program": "trl",
                "pairs_per_s": len(data) / seconds,
                "train_s": seconds,
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row][:4],
            }
        )
    )


if __name__ == "__main__":
    main()
