"""Where the time of a training step goes, and what share of the machine's measured matrix speed it reaches."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.profiler import profile as watch
from torch.utils.flop_counter import FlopCounterMode

from prefkit.comparisons import Comparison
from prefkit.language import LanguageScorer, ModelOptions, load_scorer
from prefkit.language.scorer import multiplies_bf16
from prefkit.report import Table

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product",),
    "optimizer": ("aten::_fused_adamw", "aten::linalg_vector_norm"),
}
REST = "other (elementwise, copies)"
STEPS, BATCH = 4, 4


def profile(workload: Path, *, bf16: bool) -> Table:
    """Steps of DPO on a workload: shares of the time by kind of work, and matrix speed reached."""
    scorer = load_scorer(ModelOptions(path=str(workload / "model"), precision="bf16" if bf16 else "fp32"))
    rows = [json.loads(line) for line in (workload / "pairs.jsonl").open()][: STEPS * BATCH]
    encoded = [scorer.encode(Comparison.pair(row["prompt"], row["chosen"], row["rejected"])) for row in rows]
    batches = [scorer.collate(encoded[start : start + BATCH]) for start in range(0, len(encoded), BATCH)]
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=1e-5, fused=True)
    step(scorer, optimizer, batches[0])
    with FlopCounterMode(display=False) as counter:
        step(scorer, optimizer, batches[0])
    begun = time.perf_counter()
    step(scorer, optimizer, batches[0])
    seconds = time.perf_counter() - begun
    with watch(activities=[ProfilerActivity.CPU]) as seen:
        for batch in batches:
            step(scorer, optimizer, batch)
    spent: Counter[str] = Counter()
    for event in seen.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), REST)
        spent[kind] += event.self_cpu_time_total
    total = sum(spent.values())
    half = bf16 and multiplies_bf16(torch.device("cpu"))
    reached, peak = counter.get_total_flops() / seconds, matrix_peak(torch.bfloat16 if half else torch.float32)
    shares = [[kind, f"{time / total:.0%}"] for kind, time in spent.most_common()]
    speed = [
        ["matrix speed reached", f"{reached / 1e9:.0f} GFLOP/s"],
        ["measured matrix peak", f"{peak / 1e9:.0f} GFLOP/s"],
        ["share of the peak", f"{reached / peak:.0%}"],
    ]
    return Table(["where the time goes", "share"], shares + speed, f"{workload.name}, {'bf16' if bf16 else 'fp32'}")


def step(scorer: LanguageScorer, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    """One update with DPO's loss."""
    chosen, rejected = scorer(batch).policy_logps.view(-1, 2).unbind(1)
    (-F.logsigmoid(0.1 * (chosen - rejected)).mean()).backward()
    torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def matrix_peak(dtype: torch.dtype, size: int = 2048, repeats: int = 5) -> float:
    """Best speed of a large square matrix product on this machine, in operations a second."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = float("inf")
    for _ in range(repeats):
        begun = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best
