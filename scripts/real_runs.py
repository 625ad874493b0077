"""Train the built-in model with every offline system on real judgements, each on a set that has what the system reads.

    python scripts/real_runs.py ../shared/data --steps 100 --output runs/real

Writes the comparisons of each set in the canonical form, trains through `prefkit.recipes.run`, and prints a table with
the held-out ranking accuracy before and after, in the form in which the documentation shows it.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prefkit.recipes.run import RunConfig, run

Row = dict[str, Any]

# -- sets, in the canonical form ------------------------------------------------------------------------------------


def jsonl(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from (json.loads(line) for line in file)


def table(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def argument_votes(data: Path) -> Iterator[Row]:
    """Crowd workers' votes on arguments, a row a vote, with the worker and the reason."""
    folder = data / "ukp_convarg"
    arguments = {row["arg_id"]: row for row in jsonl(folder / "arguments.jsonl.gz")}
    reasons = {(row["pair_id"], row["worker"]): row["reason"] for row in jsonl(folder / "reasons.jsonl.gz")}
    for row in table(folder / "votes.csv.gz"):
        sides = [arguments[name] for name in row["pair_id"].rsplit("/", 1)[1].split("_")]
        if row["choice"] == "equal":
            continue
        debate, stance = sides[0]["debate"], sides[0]["stance"]
        yield {
            "prompt": f"Debate: {debate}\nSide: {stance}\nArgument:",
            "responses": [f" {side['text']}" for side in sides],
            "judgement": {"winner": int(row["choice"] == "a2")},
            "annotator": row["worker"],
            "rationale": reasons[row["pair_id"], row["worker"]] or None,
        }


def argument_shares(data: Path) -> Iterator[Row]:
    """The same, a row a pair: with the winner's share of the votes as strength and log-odds as rewards."""
    votes: dict[tuple[str, str, str], Counter[int]] = defaultdict(Counter)
    for row in argument_votes(data):
        votes[row["prompt"], row["responses"][0], row["responses"][1]][row["judgement"]["winner"]] += 1
    for (prompt, first, second), count in votes.items():
        winner, most = count.most_common(1)[0]
        yield {
            "prompt": prompt,
            "responses": [first, second],
            "judgement": {"winner": winner},
            "strength": most / count.total(),
            "extra": {"rewards": [math.log(count[side] + 0.5) for side in (0, 1)]},
        }


def problem_solutions(data: Path) -> Iterator[Row]:
    """Four models' solutions of mathematical problems, right or wrong, step by step."""
    problems: dict[str, list[Row]] = defaultdict(list)
    for row in jsonl(data / "gsm8k" / "model_solutions.jsonl.gz"):
        problems[row["question"]].append(row)
    for question, rows in problems.items():
        texts = list(dict.fromkeys(f" {row['solution'].strip()}" for row in rows))
        right = {f" {row['solution'].strip()}": float(row["is_correct"]) for row in rows}
        if len(texts) > 1 and len({right[text] for text in texts}) > 1:
            yield {
                "prompt": f"Question: {question}\nAnswer:",
                "responses": texts,
                "judgement": {"ratings": [right[text] for text in texts]},
                "steps": [re.split(r"(?<=\n)", text) for text in texts],
            }


def problem_pairs(data: Path) -> Iterator[Row]:
    """A right and a wrong solution of each problem."""
    for row in problem_solutions(data):
        ratings = row["judgement"]["ratings"]
        texts = [row["responses"][ratings.index(value)] for value in (1.0, 0.0)]
        yield {"prompt": row["prompt"], "responses": texts, "judgement": {"winner": 0}}


def worked_solutions(data: Path) -> Iterator[Row]:
    """Demonstrations: the solutions that people wrote."""
    for row in jsonl(data / "gsm8k" / "train.jsonl.gz"):
        text = re.sub(r"<<.*?>>", "", row["answer"])
        yield {
            "prompt": f"Question: {row['question']}\nAnswer:",
            "responses": [f" {text}"],
            "judgement": {"good": True},
        }


def translations(data: Path, most: int = 6) -> Iterator[Row]:
    """Systems' translations into English with people's scores."""
    folder = data / "wmt23_da"
    sources = {(row["lp"], row["seg"]): row["source"] for row in jsonl(folder / "sources.jsonl.gz")}
    scored: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for row in jsonl(folder / "outputs.jsonl.gz"):
        if row["score"] is not None and row["lp"] == "en-de" and len(row["target"]) < 400:
            scored[row["lp"], row["seg"]].setdefault(f" {row['target']}", row["score"])
    for key, texts in scored.items():
        chosen = dict(list(texts.items())[:most])
        if len(set(chosen.values())) > 1:
            yield {
                "prompt": f"English: {sources[key]}\nGerman:",
                "responses": list(chosen),
                "judgement": {"ratings": list(chosen.values())},
            }


def joint_translations(data: Path) -> Iterator[Row]:
    """Translations of different sources, of which people scored one at least 10 points higher."""
    rows = [(row, index) for row in translations(data) for index in range(len(row["responses"]))]
    for (one, i), (other, j) in zip(rows[::2], rows[len(rows) // 2 :], strict=False):
        gap = one["judgement"]["ratings"][i] - other["judgement"]["ratings"][j]
        if one["prompt"] != other["prompt"] and abs(gap) >= 10:
            yield {
                "prompts": [one["prompt"], other["prompt"]],
                "responses": [one["responses"][i], other["responses"][j]],
                "judgement": {"winner": int(gap < 0)},
            }


# -- systems, each with a set ---------------------------------------------------------------------------------------

LORA = {"model": {"path": "builtin", "lora": {"rank": 8, "targets": "all-linear"}}}
SYSTEMS: dict[str, tuple[Any, Row]] = {
    "rdpo": (argument_shares, {"objective": {"kind": "rdpo", "flip_rate": 0.2}}),
    "lcpo": (argument_votes, {"objective": {"kind": "lcpo"}}),
    "madpo": (argument_shares, {"objective": {"kind": "madpo"}}),
    "spo": (problem_pairs, {"objective": {"kind": "spo"}}),
    "dove": (joint_translations, {"objective": {"kind": "jpo"}}),
    "sparsepo": (argument_shares, {"objective": {"kind": "sparsepo"}, **LORA}),
    "ift": (worked_solutions, {"objective": {"kind": "ift"}}),
    "vpo": (argument_shares, {"objective": {"kind": "vpo"}}),
    "tpo": (problem_solutions, {"objective": {"kind": "tpo", "value_range": [0, 1]}}),
    "osp": (argument_shares, {"objective": {"kind": "osp"}}),
    "curry-dpo": (translations, {"objective": {"kind": "dpo"}, "curriculum": {"stages": 2}}),
    "rationales": (argument_votes, {"objective": {"kind": "rationale_dpo"}}),
    "mapl": (problem_pairs, {"objective": {"kind": "mapl"}}),
    "calibrated-decoding": (translations, {"objective": {"kind": "calibration"}}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of the sets")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows", type=int, default=1200, help="rows of a set at most, spread over it")
    parser.add_argument("--output", type=Path, default=Path("runs/real"))
    parser.add_argument("--only", nargs="*", default=list(SYSTEMS))
    args = parser.parse_args()
    for name in args.only:
        print(line(name, args), flush=True)


def line(name: str, args: argparse.Namespace) -> str:
    """Train one system and say what came of it, as a row of a table."""
    source, settings = SYSTEMS[name]
    path = args.output / f"{source.__name__}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in spread(source(args.data), args.rows)))
    config = RunConfig.model_validate(
        {
            "model": {"path": "builtin"},
            "data": {"path": str(path), "format": "prefkit", "held_out": 0.3},
            "encoding": {"too_long": "truncate_response"},
            "training": {"max_steps": args.steps, "batch_size": 4, "learning_rate": 3e-4, "progress": False},
            "report": {"samples": 0},
            "output": str(args.output / name),
            **settings,
        }
    )
    result = run(config)
    assert result is not None
    return json.dumps({"system": name, "set": source.__name__, **summary(result)})


def summary(result: Any) -> Row:
    """What the documentation shows of a run."""
    fit = result.fit
    metrics = [entry for entry in fit.run.metrics if "loss" in entry]
    shown = {"steps": fit.steps, "rows": fit.rows, "seconds": round(fit.seconds, 1)}
    shown |= {"first loss": round(metrics[0]["loss"], 4), "last loss": round(metrics[-1]["loss"], 4)}
    for when, found in (("before", result.before), ("after", result.after)):
        if found is not None:
            for figure in ("ranking_accuracy", "reward_accuracy"):
                if figure in found.summary:
                    shown[f"{figure} {when}"] = str(found.summary[figure])
    return shown


def spread(rows: Iterable[Row], most: int) -> list[Row]:
    """At most so many rows, from all parts of a set."""
    found = list(rows)
    return found[:: max(1, len(found) // most)][:most]


if __name__ == "__main__":
    main()
