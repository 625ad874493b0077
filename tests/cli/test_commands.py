"""The commands from end to end on the built-in model: what they write, what they print, and how they refuse."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from prefkit.assets import comparisons_path, model_path
from prefkit.cli import app, main

QUICK = ("training.max_steps=2", "training.batch_size=4", "data.limit=12", "report.max_new_tokens=4")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A few of the built-in comparisons in a file of their own."""
    with gzip.open(comparisons_path("test"), "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[::9]))
    return path


def prefkit(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def settings(*more: str) -> list[str]:
    return [word for setting in (*QUICK, *more) for word in ("--set", setting)]


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """What a user reads when a command refuses: an error message without a traceback, and exit status 2."""
    monkeypatch.setattr("sys.argv", ["prefkit", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return shown


def test_train_writes_a_run_folder_and_a_model(tmp_path: Path, pairs: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {{path: {pairs}, held_out: 0.4}}\noutput: {tmp_path / 'run'}\nobjective: dpo\n")
    shown = prefkit("train", config, *settings("objective.beta=0.2", "training.learning_rate=1e-3"))
    assert shown.exit_code == 0, shown.output
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "model", "skipped.jsonl"} <= names
    assert {"environment.json", "report.html", "report.json"} <= names
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["objective"] == {"kind": "dpo", "beta": 0.2}
    assert resolved["training"]["learning_rate"] == 1e-3
    trained, base = (AutoModelForCausalLM.from_pretrained(path) for path in (run / "model", model_path()))
    assert not torch.equal(trained.get_input_embeddings().weight, base.get_input_embeddings().weight)
    AutoTokenizer.from_pretrained(run / "model")
    card = (run / "model" / "README.md").read_text()
    assert "dpo" in card
    assert "pairs.jsonl" in card
    assert "report.html" in shown.output.replace("\n", "")


def test_train_an_adapter_and_measure_it(tmp_path: Path, pairs: Path) -> None:
    run = tmp_path / "lora"
    shown = prefkit(
        *("train", "--model", "builtin", "--data", pairs, "--objective", "ipo", "--output", run),
        *settings("model.lora.rank=4", "model.precision=bf16"),
    )
    assert shown.exit_code == 0, shown.output
    assert (run / "model" / "adapter_config.json").is_file()
    figures, rows = tmp_path / "figures.json", tmp_path / "pairs.csv"
    shown = prefkit("evaluate", run / "model", pairs, "--output", figures, "--pairs", rows)
    assert shown.exit_code == 0, shown.output
    summary = json.loads(figures.read_text())["summary"]
    assert {"ranking_accuracy", "reward_accuracy", "reward_margin"} <= summary.keys()
    assert len(rows.read_text().splitlines()) == json.loads(figures.read_text())["pairs"] + 1


def test_resume_continues_or_says_that_the_folder_is_taken(
    tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", "--data", pairs, "--output", tmp_path / "run", *settings("training.save_every=1"))
    assert prefkit(*command).exit_code == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "holds another run: continue it with --resume" in refused(capsys, monkeypatch, *command)
    assert prefkit(*command, "--resume").exit_code == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_score_agrees_with_the_model_itself(tmp_path: Path, pairs: Path) -> None:
    out = tmp_path / "scores.jsonl"
    shown = prefkit("score", "builtin", pairs, "--output", out, "--tokens", "--limit", 3)
    assert shown.exit_code == 0, shown.output
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    model, tokenizer = (kind.from_pretrained(model_path()) for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert len(lines) == 3
    for line, row in zip(lines, rows, strict=False):
        prompt = tokenizer(row["prompt"])["input_ids"]
        for measured, text in zip(line["responses"], (row["chosen"], row["rejected"]), strict=True):
            response = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).squeeze(1)
            assert measured["tokens"] == len(response)
            assert measured["logp"] == pytest.approx(float(expected.sum()), rel=1e-4)
            assert measured["logp_per_token"] == pytest.approx(float(expected.mean()), rel=1e-4)
            assert measured["token_logps"] == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-4)


def test_bad_rows_are_named_and_the_others_go_on(tmp_path: Path, pairs: Path) -> None:
    lines = pairs.read_text().splitlines()
    lines[1:1] = ['{"prompt": "a", "chosen": "b", "rejected": "b"}', "{broken", '{"prompt": "a", "chosen": "b"}']
    pairs.write_text("\n".join(lines) + "\n")
    run = tmp_path / "run"
    assert prefkit("train", "--data", pairs, "--output", run, *settings()).exit_code == 0
    skipped = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert [row["line"] for row in skipped] == [2, 3, 4]
    shown = prefkit("evaluate", "builtin", pairs)
    assert "3 comparisons set aside" in shown.output
    assert "pairs.jsonl:3" in shown.output


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("objective.beta=0", "objective.beta must be greater than 0"),
        ("objective.betta=1", "unknown option of objective 'betta'; did you mean 'beta'?"),
        ("objective.kind=dpoo", "did you mean 'dpo'?"),
        ("trainign.epochs=1", "unknown option 'trainign'; did you mean 'training'?"),
        ("training.epoch=1", "unknown option of training 'epoch'; did you mean 'epochs'?"),
        ("training.batch_size=0", "training.batch_size must be at least 1, got 0"),
        ("encoding.max_length=99999", "encoding.max_length must be at most the model's context of 512 tokens"),
        ("data.format=trll", "unknown format 'trll'"),
        ("data.evaluation=missing.jsonl", "missing.jsonl"),
        ("pairing.threshold=1", "pairing.threshold does not apply to an objective that takes pairs"),
        ("model.path=no/such-model", "model 'no/such-model' cannot be loaded"),
        ("model.lora.targets=[nothing]", "model.lora.targets"),
        ("nonsense", "--set takes name=value, got 'nonsense'"),
    ],
)
def test_options_are_refused_with_what_would_be_right(
    setting: str,
    message: str,
    tmp_path: Path,
    pairs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("train", "--data", pairs, "--output", tmp_path / "run", "--set", setting)
    assert message in " ".join(refused(capsys, monkeypatch, *command).split())
    assert not (tmp_path / "run" / "model").exists()


def test_flip_rate_and_missing_data(
    tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "--data", pairs, "--objective", "rdpo", "--output", tmp_path / "run"]
    shown = refused(capsys, monkeypatch, *command, "--set", "objective.flip_rate=0.7")
    assert "objective.flip_rate must be less than 0.5, got 0.7" in shown
    assert "missing.jsonl" in refused(capsys, monkeypatch, "evaluate", "builtin", tmp_path / "missing.jsonl")
    assert "give a YAML file" in refused(capsys, monkeypatch, "train")


def test_unpaired_data_and_a_pairwise_objective(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "unpaired.jsonl"
    path.write_text('{"prompt": "2+2?", "completion": " 4", "label": true}\n' * 3)
    shown = refused(capsys, monkeypatch, "train", "--data", path, "--output", tmp_path / "run")
    assert "unpaired.jsonl:1" in shown


def test_help_shows_examples() -> None:
    for command in ("train", "score", "evaluate"):
        assert f"prefkit {command}" in prefkit(command, "--help").output


def test_train_in_stages(tmp_path: Path) -> None:
    path = tmp_path / "rated.jsonl"
    row = {"responses": ["the house", "a house house", "no", "the house is"]}
    rows = [
        {"prompt": f"Translate {word}:", **row, "judgement": {"ratings": [9, 4, 1, 7]}}
        for word in ("eins", "zwei", "drei")
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in rows))
    arguments = ["train", "--data", path, "--output", tmp_path / "run"]
    stages = settings("curriculum.stages=2", "training.learning_rate=1e-3", "model.lora.rank=2", "report.samples=1")
    shown = prefkit(*arguments, *stages)
    assert shown.exit_code == 0, shown.output
    run = tmp_path / "run"
    assert {"stage-1", "stage-2", "model", "metrics.jsonl", "report.html"} <= {each.name for each in run.iterdir()}
    assert yaml.safe_load((run / "config.yaml").read_text())["curriculum"]["reference"] == "previous"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {1, 2}
    assert "trained on 6 comparisons" in shown.output


def test_steps_are_split_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "solutions.jsonl"
    row = {"responses": ["Step 1: 6 Step 2: 7", "Step 1: 5 Step 2: 6"], "judgement": {"ratings": [100, -80]}}
    path.write_text("".join(json.dumps({"prompt": f"2*3+{n}?\n", **row}) + "\n" for n in range(4)))
    arguments = ["train", "--data", path, "--objective", "tpo", "--output", tmp_path / "run"]
    shown = prefkit(*arguments, *settings(r"data.steps='Step \d+:'", "training.learning_rate=1e-3", "report.samples=0"))
    assert shown.exit_code == 0, shown.output
    assert "trained on 4 comparisons" in shown.output
