from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from tests.diagnostics import defects
from typer.testing import CliRunner

from prefkit.cli.audit import advise, audit
from prefkit.comparisons import load_comparisons, write_comparisons
from prefkit.diagnostics import CATEGORIES
from prefkit.errors import OptionError, PrefkitError
from prefkit.objectives import make_objective
from prefkit.recipes.audit import read_probes
from prefkit.recipes.run import RunConfig, run

app = typer.Typer()
app.command()(audit)
app.command()(advise)


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "grouped.jsonl"
    write_comparisons(defects.grouped(0), path)
    return path


@pytest.fixture(scope="module")
def trained(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "dpo"
    options = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-3, "progress": False, "log_every": 1}
    data = {"path": str(file), "limit": 40}
    run(RunConfig.parse({"data": data, "training": options, "output": str(folder), "report": {"samples": 0}}))
    return folder


def test_audit_of_data_alone(file: Path, tmp_path: Path) -> None:
    done = call("audit", file, "--output", tmp_path)
    assert done.exit_code == 0, done.output
    assert "Disagreement between people" in done.output
    page = json.loads((tmp_path / "audit.json").read_text())
    assert [s["heading"] for s in page["sections"]][:3] == ["Format and health", "Length and style", "Label noise"]
    assert (tmp_path / "audit.html").exists()
    assert any((tmp_path / "audit-data").iterdir())


def test_audit_of_a_run_shows_what_it_moved(file: Path, trained: Path, tmp_path: Path) -> None:
    done = call("audit", file, "--run", trained, "--output", tmp_path, "--rows", 20)
    assert done.exit_code == 0, done.output
    sections = json.loads((tmp_path / "audit.json").read_text())["sections"]
    headings = [s["heading"] for s in sections]
    moved = sections[headings.index("What training moved")]["parts"]
    gained = next(part["rows"] for part in moved if part["title"] == "First tokens that gained most")
    assert all(after > before for _, before, after in gained[:3])
    assert "The run, step by step" in headings
    with (tmp_path / "audit-pairs.csv").open() as pairs:
        rows = list(csv.DictReader(pairs))
    assert len(rows) == 20
    assert float(rows[0]["difficulty"]) == pytest.approx(
        float(rows[0]["rejected_logp"]) - float(rows[0]["chosen_logp"])
    )
    assert rows[0]["moved"] in CATEGORIES


def test_the_report_goes_on_where_the_model_can_score_nothing(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"prompt": "word " * 2000, "chosen": "yes", "rejected": "no"}) + "\n")
    done = call("audit", file, "--model", "builtin", "--output", tmp_path)
    assert done.exit_code == 0, done.output
    assert "Not told: the model could score no pair" in done.output


def test_a_run_of_other_data_is_refused(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    write_comparisons(defects.clean(5), other)
    done = call("audit", other, "--run", trained, "--output", tmp_path)
    assert isinstance(done.exception, PrefkitError)
    assert "was trained on other data" in str(done.exception)


def test_value_drift_goes_by_a_judge(file: Path, trained: Path, tmp_path: Path) -> None:
    probes = tmp_path / "probes.jsonl"
    probes.write_text('{"prompt": "Taxes?", "topic": "taxes"}\n{"prompt": "More taxes?", "topic": "taxes"}\n')
    options = ("--run", trained, "--rows", 5, "--values", probes, "--judge", "builtin", "--max-new-tokens", 4)
    done = call("audit", file, *options, "--output", tmp_path)
    assert done.exit_code == 0, done.output
    last = json.loads((tmp_path / "audit.json").read_text())["sections"][-1]
    assert last["heading"] == "Value drift"
    assert last["parts"][0]["title"] == "Stances: taxes"


def test_advice_comes_with_runs_that_can_be_begun(file: Path, tmp_path: Path) -> None:
    done = call("advise", file, "--output", tmp_path)
    assert done.exit_code == 0, done.output
    config = yaml.safe_load((tmp_path / "run.yaml").read_text())
    make_objective(RunConfig.parse(config).objective)
    # The largest group has a file of its own, of its annotators only.
    assert config["data"]["path"] == str(tmp_path / "group-1.jsonl") or config["data"]["path"] == str(
        tmp_path / "group-2.jsonl"
    )
    people = {comparison.annotator for comparison in load_comparisons(config["data"]["path"])}
    assert people == {f"person {number}" for number in range(5)}
    second = yaml.safe_load((tmp_path / "run-2.yaml").read_text())
    assert second["data"]["path"] == str(file)
    assert second["objective"]["kind"] == "dpo"


def test_advice_takes_the_reading_options_along(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("question,good,poor\nq,a b,c d\nr,e f,g h\n")
    columns = [f"--columns={name}" for name in ("prompt=question", "chosen=good", "rejected=poor")]
    done = call("advise", file, *columns, "--output", tmp_path)
    assert done.exit_code == 0, done.output
    config = RunConfig.parse(yaml.safe_load((tmp_path / "run.yaml").read_text()))
    assert config.data.columns == {"prompt": "question", "chosen": "good", "rejected": "poor"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reference", "builtin"], "give `model`, too"),
        (["--run", "x", "--reference", "builtin"], "give `run` or `reference`, not both"),
        (["--model", "builtin", "--values", "v.jsonl"], "a judge needs values: give both"),
        (["--model", "builtin", "--values", "v", "--judge", "builtin"], "before and after training"),
        (["--model", "builtin", "--beta", "0"], "beta must be greater than 0"),
        (["--run", "nowhere"], "nowhere holds no run"),
    ],
)
def test_bad_options_are_explained(file: Path, options: list[str], message: str) -> None:
    done = call("audit", file, *options)
    assert isinstance(done.exception, PrefkitError)
    assert message in str(done.exception)


def test_a_model_without_a_tokenizer_is_explained(file: Path, trained: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((trained / "model" / name).read_bytes())
    done = call("audit", file, "--model", bare)
    assert isinstance(done.exception, OptionError)
    assert "the tokenizer of" in str(done.exception)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "probes.jsonl:1: no JSON"),
        ('{"prompt": "a"}', "probes.jsonl:1: field 'topic': must be a text, got None"),
        ("", "holds no prompts"),
    ],
)
def test_bad_probes_are_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "probes.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(PrefkitError, match=message):
        read_probes(file)
