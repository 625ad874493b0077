"""Preference training against TRL's DPOTrainer (throughput, memory), and leaderboards against choix: `make bench`.

Programs run alternately, each in a process of its own; what is reported is the median of the ratios of paired runs,
of training time only. The peer is installed into an environment of its own, beside the packages of this one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import prefkit
from bench import diffusion, strengths
from bench.objectives import costs
from bench.profile import profile
from prefkit.language.scorer import multiplies_bf16
from prefkit.report import Table

HERE = Path(__file__).parent
OUT = HERE / "out"
YARDSTICK = HERE.parents[1] / "shared" / "bench"
PEERS = ("trl==1.16.0", strengths.PEER)
REWARD_PEER = "trl_reward.py"


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Args:
        name: what the table calls it.
        workload: what is trained on.
        options: of `bench.ours`.
        speed: how many times faster it is to be.
        memory: which share of the memory it may take at most.
        peer: program that it is compared with; None for the own path without sharing.
    """

    name: str
    workload: str
    options: tuple[str, ...]
    speed: float
    memory: float | None = None
    peer: str | None = "trl_dpo.py"


CASES = (
    Case("small, bf16", "small", ("--bf16",), 5.0, 0.65),
    Case("small, fp32", "small", (), 4.0),
    Case("medium, bf16", "medium", ("--bf16",), 2.0, 0.55),
    Case("small, 8 responses, fp32", "eight", ("--objective", "plackett_luce"), 3.0, peer=None),
    Case("reward model, small, bf16", "small", ("--reward", "--bf16"), 3.0, peer=REWARD_PEER),
    Case("reward model, small, fp32", "small", ("--reward",), 3.0, peer=REWARD_PEER),
    Case("scoring 8 responses, reward model, fp32", "eight", ("--reward", "--score"), 2.0, peer=None),
    Case("scoring 8 responses, policy, fp32", "eight", ("--score",), 2.0, peer=None),
)
WORKLOADS = {
    "small": "",
    "medium": "--hidden 512 --layers 8 --vocab 32000 --prompt 100 200 --response 150 300 --pairs 16",
    "eight": "--responses 8 --pairs 32",
}
"""Options of the script that makes the workloads."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="paired runs of each case")
    parser.add_argument(
        "--yardstick", type=Path, default=HERE.parents[1] / "shared" / "bench", help="the peer's scripts"
    )
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--no-profile", action="store_true")
    parser.add_argument("--no-objectives", action="store_true", help="leave out what each objective costs")
    parser.add_argument("--no-strengths", action="store_true", help="leave out leaderboards")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds that a method of choix may take")
    parser.add_argument(
        "--diffusion", type=Path, help="only this: Diffusion-DPO against the script of diffusers at PATH"
    )
    args = parser.parse_args()
    if args.diffusion is not None:
        table = diffusion.compare(args.diffusion, _peer(), OUT / "diffusion", _run, args.repeats)
        Console(width=None if sys.stdout.isatty() else 150).print(table)
        return
    if not (args.yardstick / "trl_dpo.py").is_file():
        sys.exit(f"{args.yardstick} holds no trl_dpo.py: give the folder of the peer's scripts with --yardstick")

    # As wide as the table: in a log, rich would take 80 columns and break every cell.
    console, results = Console(width=None if sys.stdout.isatty() else 150), []
    peer = _peer()
    imitated = not multiplies_bf16(torch.device("cpu"))
    if imitated:
        console.print(
            "This CPU has no products in bfloat16: prefkit computes its bf16 cases in float32, and so does the peer, "
            "which would be tens of times slower with imitated ones."
        )
    for case in CASES:
        if args.only and args.only not in case.name:
            continue
        folder = _workload(case.workload, args.yardstick)
        ours, theirs = [], []
        for number in range(args.repeats):
            console.print(f"{case.name}: run {number + 1} of {args.repeats}", style="dim")
            ours.append(_run([sys.executable, "-m", "bench.ours", folder, *case.options]))
            if case.peer is None:
                command = [sys.executable, "-m", "bench.ours", folder, *case.options, "--unshared"]
            else:
                options = ["--bf16"] if "--bf16" in case.options and not imitated else []
                options += [] if case.peer == REWARD_PEER else ["--precompute"]
                script = (HERE / "peers" if case.peer == REWARD_PEER else args.yardstick) / case.peer
                command = [peer, script, folder, *options]
            theirs.append(_run(command))
        results.append(_result(case, ours, theirs))
    OUT.mkdir(exist_ok=True)
    (OUT / "results.json").write_text(json.dumps(results, indent=1))
    console.print(_table(results))
    for result in results:
        console.print(
            f"{result['case']}: losses or scores {_losses(result['losses'])} "
            f"against {_losses(result['other losses'])}; largest difference {result['loss difference']:.1e}",
            highlight=False,
        )
    if not args.no_profile:
        for name, bf16 in (("small", True), ("small", False), ("medium", True)):
            console.print(profile(_workload(name, args.yardstick), bf16=bf16))
    if not args.no_strengths:
        table, _ = strengths.compare(peer, OUT / "strengths", repeats=args.repeats, limit=args.limit)
        console.print(table)
    if not args.no_objectives:
        console.print(costs(_workload("small", args.yardstick)))


def _result(case: Case, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    speeds = [a["pairs_per_s"] / b["pairs_per_s"] for a, b in zip(ours, theirs, strict=True)]
    memories = [a["peak_rss_mb"] / b["peak_rss_mb"] for a, b in zip(ours, theirs, strict=True)]
    losses, other = ours[0]["losses"], theirs[0]["losses"]
    return {
        "case": case.name,
        "against": "TRL" if case.peer else "unshared",
        "pairs/s": statistics.median(run["pairs_per_s"] for run in ours),
        "other pairs/s": statistics.median(run["pairs_per_s"] for run in theirs),
        "speed": statistics.median(speeds),
        "speeds": speeds,
        "speed target": case.speed,
        "memory": statistics.median(memories),
        "peak MB": statistics.median(run["peak_rss_mb"] for run in ours),
        "memory target": case.memory,
        "losses": losses,
        "other losses": other,
        "loss difference": max(abs(a - b) for a, b in zip(losses, other, strict=True)),
    }


def _table(results: list[dict[str, Any]]) -> Table:
    columns = ["case", "against", "comparisons/s", "other", "speed", "range", "target", "memory", "target", "met"]
    rows = []
    for r in results:
        met = r["speed"] >= r["speed target"] and (r["memory target"] is None or r["memory"] <= r["memory target"])
        spread = f"{min(r['speeds']):.2f}-{max(r['speeds']):.2f}"
        bound = "" if r["memory target"] is None else f"<= {r['memory target']}x"
        rows.append(
            [
                *(r["case"], r["against"], round(r["pairs/s"], 2), round(r["other pairs/s"], 2)),
                *(f"{r['speed']:.2f}x", spread, f">= {r['speed target']}x", f"{r['memory']:.2f}x", bound),
                "yes" if met else "no",
            ]
        )
    return Table(columns, rows, "Training and scoring, medians of paired runs")


def _losses(losses: list[float]) -> str:
    return " ".join(f"{loss:.5f}" for loss in losses)


def _peer() -> Path:
    """The interpreter of an environment that holds the peer and sees the packages of this one."""
    folder = HERE.parent / ".venv-bench"
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists() or ready.read_text() != "\n".join(PEERS):
        venv.create(folder, with_pip=True, clear=True)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *PEERS], check=True)
        ready.write_text("\n".join(PEERS))
    return python


def _workload(name: str, yardstick: Path) -> Path:
    folder = OUT / name
    if not (folder / "pairs.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, yardstick / "make_workload.py", folder, *WORKLOADS[name].split()]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def _run(command: list[Any]) -> dict[str, Any]:
    """Run a program and read its last line. Caches are new for each run: the peer's ignores the precision."""
    # The peer's environment sees what is installed in this one, but not what is installed as a link to its sources.
    sources = os.pathsep.join(filter(None, (str(Path(prefkit.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": cache, "PREFKIT_CACHE": cache}
        environment["PYTHONPATH"] = sources
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=HERE.parent)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
