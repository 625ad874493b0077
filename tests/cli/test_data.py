"""`prefkit data` from the outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefkit.cli.data import data
from prefkit.comparisons import load_comparisons
from prefkit.errors import PrefkitError

ROWS: list[Any] = [
    {"prompt": "Hi?", "chosen": " a good answer", "rejected": " no"},
    {"prompt": "Hi?", "chosen": " no", "rejected": " no"},
    {"prompt": "Ho?", "chosen": " [b]yes[/b]", "rejected": " long and wrong"},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(data, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_check(file: Path) -> None:
    health = json.loads(run("check", file, "--json"))
    assert (health["format"], health["rows"], health["bad_rows"], health["prompts"]) == ("trl_preference", 2, 1, 2)
    assert health["longer_wins"]["share"] == 0.5
    assert health["examples"][0]["line"] == 2
    shown = run("check", file)
    assert "trl_preference" in shown
    assert f"{file}:2: field 'chosen': chosen equals rejected" in shown


def test_check_with_columns_and_options(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("question,one,two,vote\nHi?,a,b,L\nHo?,c,d,R\n")
    mapping = ["prompt=question", "response_a=one", "response_b=two", "winner=vote"]
    columns = [argument for pair in mapping for argument in ("--columns", pair)]
    health = json.loads(run("check", path, *columns, "--option", "outcomes={L: a, R: b}", "--json"))
    assert (health["rows"], health["first_wins"]["share"]) == (2, 0.5)


def test_convert(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "canonical.jsonl"
    assert "2 rows" in run("convert", file, out)
    assert len(list(load_comparisons(out, format="prefkit", on_bad="error"))) == 2
    skipped = [json.loads(line) for line in Path(f"{out}.skipped.jsonl").read_text().splitlines()]
    assert [row["line"] for row in skipped] == [2]
    run("convert", out, tmp_path / "trl.jsonl", "--to", "trl_preference", "--strategy", "best_worst")
    rows = [json.loads(line) for line in (tmp_path / "trl.jsonl").read_text().splitlines()]
    assert rows == [ROWS[0], ROWS[2]]
    run("convert", out, tmp_path / "kto.jsonl", "--to", "trl_unpaired")
    rows = [json.loads(line) for line in (tmp_path / "kto.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [True, False, True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out.jsonl", "--strategy", "adjacent"], "--strategy does not apply to --to prefkit"),
        (["out.jsonl", "--to", "trl_preference", "--threshold", "3"], "--threshold does not apply"),
        (["pairs.jsonl"], "is the file that is read"),
        (["out.jsonl", "--option", "criterion"], "expected name=value"),
        (["out.jsonl", "--format", "trl"], "unknown format 'trl'"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    before = file.read_text()
    with pytest.raises(PrefkitError, match=message):
        run("convert", "pairs.jsonl", *arguments)
    assert file.read_text() == before


def test_split(tmp_path: Path) -> None:
    path, parts = tmp_path / "many.jsonl", tmp_path / "parts"
    rows = [{"prompt": f"p{index % 50}", "chosen": f" a{index}", "rejected": " b"} for index in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "prompt": ""}]))
    run("split", path, parts, "--parts", "train=0.6,test=0.4", "--seed", 3)
    prompts = {
        name: [comparison.prompts[0] for comparison in load_comparisons(parts / f"{name}.jsonl")]
        for name in ("train", "test")
    }
    assert len(prompts["train"]) + len(prompts["test"]) == 200
    assert prompts["train"]
    assert prompts["test"]
    assert not set(prompts["train"]) & set(prompts["test"])
    assert json.loads((parts / "skipped.jsonl").read_text())["line"] == 201
    with pytest.raises(PrefkitError, match="share of 'train' must be a number"):
        run("split", path, parts, "--parts", "train=most")


def test_show(file: Path, tmp_path: Path) -> None:
    shown = run("show", file)
    assert "response 0: rank 0" in shown
    assert "[b]yes[/b]" in shown  # what looks like markup is text
    assert run("show", file, "-n", 1).count("prompt") == 1
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({**ROWS[0], "prompt": "x" * 5000}) + "\n")
    assert "[…]" in run("show", long)
    assert "[…]" not in run("show", long, "--whole")
    long.write_text(json.dumps({**ROWS[0], "prompt": ""}) + "\n")
    with pytest.raises(PrefkitError, match=r"no comparison can be used, 1 rows are bad; .*:1: field 'prompt'"):
        run("show", long)
