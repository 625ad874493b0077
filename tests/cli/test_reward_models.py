"""Reward models on the command line: trained, measured, and made to give a file its rewards."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.language.encoders import build_encoder, joining, save
from tests.language.models import words
from typer.testing import CliRunner

from prefkit.assets import comparisons_path
from prefkit.cli import app
from prefkit.comparisons import load_comparisons
from prefkit.language import load_reward

QUICK = ("training.max_steps=2", "training.batch_size=4", "training.progress=false", "model.kind=reward")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with gzip.open(comparisons_path("test"), "rt", encoding="utf-8") as file:
        lines = file.readlines()
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(lines[::14]))
    return path


def prefkit(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def train(pairs: Path, folder: Path, *settings: str) -> Any:
    given = [word for setting in (*QUICK, *settings) for word in ("--set", setting)]
    return prefkit("train", "--data", pairs, "--output", folder, *given)


@pytest.fixture(scope="module")
def run(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "rm"
    shown = train(pairs, folder, "data.held_out=0.4", "training.learning_rate=1e-3")
    assert shown.exit_code == 0, shown.output
    assert "ranking accuracy" in shown.output
    assert "Sampled continuations" not in shown.output
    return folder


def test_train_makes_a_reward_model(run: Path) -> None:
    assert (run / "model" / "reward.json").is_file()
    assert (run / "report.html").is_file()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = {name: value for line in lines for name, value in line.items()}
    assert {"chosen_reward", "rejected_reward", "reward_margin", "reward_accuracy"} <= last.keys()
    assert not {"chosen_logp", "eval_chosen_logp"} & last.keys()
    assert load_reward(str(run / "model")).head.weight.abs().max() > 0


def test_score_writes_rewards_and_gives_them_to_a_file(run: Path, pairs: Path, tmp_path: Path) -> None:
    scores, rewarded = tmp_path / "scores.jsonl", tmp_path / "rewarded.jsonl"
    shown = prefkit("score", run / "model", pairs, "--output", scores, "--rewards-into", rewarded)
    assert shown.exit_code == 0, shown.output
    lines = [json.loads(line) for line in scores.read_text().splitlines()]
    records = list(load_comparisons(pairs))
    scorer = load_reward(str(run / "model")).eval()
    for line, record, back in zip(lines, records, load_comparisons(rewarded), strict=True):
        with torch.no_grad():
            rewards = scorer(scorer.collate([scorer.encode(record)])).policy_logps.tolist()
        assert [response["reward"] for response in line["responses"]] == pytest.approx(rewards, rel=1e-4, abs=1e-5)
        assert back.extra["rewards"] == [response["reward"] for response in line["responses"]]
        assert (back.responses, back.judgement) == (record.responses, record.judgement)


def test_evaluate_ranks_by_reward(run: Path, pairs: Path, tmp_path: Path) -> None:
    shown = prefkit("evaluate", run / "model", pairs, "--output", tmp_path / "figures.json")
    assert shown.exit_code == 0, shown.output
    assert json.loads((tmp_path / "figures.json").read_text())["summary"].keys() == {"ranking_accuracy"}


def test_what_does_not_apply_is_refused(run: Path, pairs: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        return str(prefkit(*arguments).exception)

    out = ("--output", tmp_path / "scores.jsonl")
    assert "scores of language models have no rewards" in refused(
        "score", "builtin", pairs, "--rewards-into", tmp_path / "r.jsonl", *out
    )
    assert "--tokens does not apply" in refused("score", run / "model", pairs, "--tokens", *out)
    assert "model.reference does not apply" in refused("evaluate", run / "model", pairs, "--reference", "builtin")
    assert not any(tmp_path.iterdir())
    assert "objective 'dpo' is on log-probabilities" in str(
        train(pairs, tmp_path / "dpo", "objective.kind=dpo").exception
    )
    assert "is a reward model: set model.kind=reward" in str(
        train(pairs, tmp_path / "lm", f"model.path={run / 'model'}", "model.kind=lm").exception
    )
    assert "train a reward model instead (model.kind: reward)" in str(
        train(pairs, tmp_path / "rm", "objective.kind=reward_model", "model.kind=lm").exception
    )


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three responses a prompt, ranked by one of two people."""
    rows = [
        {
            "prompts": [f"Describe a {thing}"],
            "responses": [f"It is a {thing}.", f"A {thing}!", f"Some {thing} or other, who knows."],
            "judgement": {"ranks": [0, 1, 2] if person == "ann" else [2, 1, 0]},
            "annotator": person,
        }
        for thing in ("cat", "dog", "tree", "house")
        for person in ("ann", "bob")
    ]
    path = tmp_path_factory.mktemp("judged") / "judged.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_embeddings_are_trained_and_compare_all_candidates(judged: Path, tmp_path: Path) -> None:
    shown = train(judged, tmp_path / "run", "model.head.kind=general", "model.head.dim=4", "data.held_out=0.3")
    assert shown.exit_code == 0, shown.output
    scores = tmp_path / "scores.jsonl"
    assert prefkit("score", tmp_path / "run" / "model", judged, "--output", scores).exit_code == 0
    for line in map(json.loads, scores.read_text().splitlines()):
        odds = torch.tensor([response["odds"] for response in line["responses"]])
        assert odds.shape == (3, 3)
        torch.testing.assert_close(odds, -odds.T)
        assert [response["reward"] for response in line["responses"]] == pytest.approx(odds.mean(1).tolist(), abs=1e-5)
    assert prefkit("evaluate", tmp_path / "run" / "model", judged).exit_code == 0


def test_people_have_rewards_of_their_own(judged: Path, tmp_path: Path) -> None:
    head = ("model.head.kind=ideal_points", "model.head.annotator_rate=0.5", "training.max_steps=4")
    shown = train(judged, tmp_path / "run", *head, "data.held_out=0.3")
    assert shown.exit_code == 0, shown.output
    scores = tmp_path / "scores.jsonl"
    assert prefkit("score", tmp_path / "run" / "model", judged, "--output", scores).exit_code == 0
    lines = [json.loads(line) for line in scores.read_text().splitlines()]
    ann, bob = ([response["reward"] for response in line["responses"]] for line in lines[:2])
    assert ann != pytest.approx(bob)


@pytest.mark.parametrize("style", ["bert", "llama"])
def test_a_classifier_from_elsewhere_scores_and_is_measured(style: str, tmp_path: Path) -> None:
    tokenizer = joining(style) if style == "bert" else words()
    folder = save(build_encoder(style, labels=1), tokenizer, tmp_path / "model")
    rows = [{"prompt": f"w{i} w9", "chosen": f"w{i + 20}", "rejected": f"w{i + 40} w5"} for i in range(10, 16)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = tmp_path / "scores.jsonl"
    shown = prefkit("score", folder, tmp_path / "pairs.jsonl", "--output", scores)
    assert shown.exit_code == 0, shown.output
    own = load_reward(folder).eval()
    for line, record in zip(scores.read_text().splitlines(), load_comparisons(tmp_path / "pairs.jsonl"), strict=True):
        with torch.no_grad():
            expected = own(own.collate([own.encode(record)])).policy_logps.tolist()
        assert [response["reward"] for response in json.loads(line)["responses"]] == pytest.approx(expected, abs=1e-4)
    shown = prefkit("evaluate", folder, tmp_path / "pairs.jsonl")
    assert shown.exit_code == 0, shown.output
    assert "ranking accuracy" in shown.output


def test_an_ensemble_with_a_temperature(pairs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = ("model.ensemble=3", "calibrate=true", "data.held_out=0.5", "training.learning_rate=1e-3")
    shown = train(pairs, folder, *settings, "training.max_steps=4")
    assert shown.exit_code == 0, shown.output
    assert "before the temperature" in shown.output
    page = json.loads((folder / "report.json").read_text())
    (section,) = [each for each in page["sections"] if each["heading"] == "Calibration"]
    assert len(section["parts"]) == 3
    temperature = json.loads((folder / "model" / "reward.json").read_text())["temperature"]
    assert temperature not in (0.0, 1.0)

    scores = tmp_path / "scores.jsonl"
    shown = prefkit("score", folder / "model", pairs, "--output", scores)
    assert shown.exit_code == 0, shown.output
    scorer = load_reward(str(folder / "model")).eval()
    records = list(load_comparisons(pairs))
    for line, record in zip(map(json.loads, scores.read_text().splitlines()), records, strict=True):
        with torch.no_grad():
            members = scorer(scorer.collate([scorer.encode(record)])).members
        centred = members - members.mean(0)
        assert [found["reward"] for found in line["responses"]] == pytest.approx(members.mean(1).tolist(), abs=1e-4)
        assert [found["spread"] for found in line["responses"]] == pytest.approx(centred.std(1).tolist(), abs=1e-4)

    shown = prefkit(
        *("evaluate", folder / "model", pairs),
        *("--output", tmp_path / "figures.json", "--report", tmp_path / "page.html"),
    )
    assert shown.exit_code == 0, shown.output
    assert "before the temperature" in shown.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["calibration"]["rows"][0][0] == "expected calibration error"
    assert (tmp_path / "page.html").read_text().count("<svg") >= 2


def test_samples_with_dropout(pairs: Path, tmp_path: Path) -> None:
    # The head starts from 0, so the adapter has no gradient in the first step.
    settings = ("model.lora.rank=2", "model.lora.dropout=0.2", "training.learning_rate=1e-2", "training.max_steps=5")
    assert train(pairs, tmp_path / "run", *settings).exit_code == 0
    found = []
    for seed in (0, 0, 1):
        scores = tmp_path / "scores.jsonl"
        how = ("--samples", 3, "--seed", seed, "--output", scores, "--limit", 2)
        shown = prefkit("score", tmp_path / "run" / "model", pairs, *how)
        assert shown.exit_code == 0, shown.output
        found.append(scores.read_text())
    assert found[0] == found[1] != found[2]
    assert all(r["spread"] > 0 for line in map(json.loads, found[0].splitlines()) for r in line["responses"])


def test_uncertainty_that_does_not_apply_is_refused(run: Path, pairs: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        return str(prefkit(*arguments).exception)

    out = ("--output", tmp_path / "scores.jsonl")
    assert "--samples is for reward models" in refused("score", "builtin", pairs, "--samples", 3, *out)
    assert "the model has no dropout" in refused("score", run / "model", pairs, "--samples", 3, *out)
    assert "--report is for reward and preference models" in refused(
        "evaluate", "builtin", pairs, "--report", tmp_path / "r.html"
    )
    assert "calibrate is for reward models" in str(train(pairs, tmp_path / "a", "calibrate=true").exception)
    assert "calibrate is for reward models" in str(
        train(pairs, tmp_path / "b", "calibrate=true", "data.held_out=0.4", "model.kind=lm").exception
    )
