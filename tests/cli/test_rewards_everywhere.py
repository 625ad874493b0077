"""A saved preference model as reward of every other part: weights, strengths, best of N; from end to end."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefkit.assets import comparisons_path
from prefkit.cli import app
from prefkit.comparisons import Comparison, Label, Ratings, RecordError
from prefkit.language import ModelOptions, load_scorer, sample_candidates
from prefkit.recipes.rewarding import load_ranking, load_rewards, scored_by, what_ranks

QUICK = ("training.max_steps=2", "training.batch_size=4", "report.samples=0", "data.held_out=0")


def prefkit(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(*arguments: object) -> str:
    shown = prefkit(*arguments)
    assert shown.exit_code == 0, f"{shown.output}{shown.exception}"
    return str(shown.output)


def settings(*given: str) -> list[str]:
    return [word for setting in given for word in ("--set", setting)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with gzip.open(comparisons_path("test"), "rt", encoding="utf-8") as file:
        lines = file.readlines()
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(lines[::9]), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["reward", "preference"])
def model(request: pytest.FixtureRequest, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model on the built-in language model, and Bradley-Terry on words."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    own = (
        (*QUICK, "model.kind=reward", "training.learning_rate=1e-3")
        if request.param == "reward"
        else ("model.kind=preference", "model.estimator=bradley_terry", "features.size=50", "folds=2")
    )
    run("train", "--data", pairs, "--output", folder, *settings(*own))
    return folder / "model"


def test_weights_and_strengths(model: Path, pairs: Path, tmp_path: Path) -> None:
    rewarded, mined = tmp_path / "rewarded.jsonl", tmp_path / "mined.jsonl"
    run("score", model, pairs, "--output", tmp_path / "scores.jsonl", "--rewards-into", rewarded)
    run("train", "--data", rewarded, "--output", tmp_path / "madpo", *settings(*QUICK, "objective.kind=madpo"))
    steps = [json.loads(line) for line in (tmp_path / "madpo" / "metrics.jsonl").read_text().splitlines()]
    # Before the policy has moved, plain DPO's loss is log 2: what differs from it are the weights.
    assert abs(steps[0]["loss"] - math.log(2)) > 1e-3

    run("data", "mine", rewarded, "--pairs", "all", "--output", mined)
    rows = [json.loads(line) for line in mined.read_text().splitlines()]
    assert rows
    for row in rows:
        better, worse = row["extra"]["rewards"]
        assert row["strength"] == pytest.approx(better - worse)
    osp = ("objective.kind=osp", "objective.label=bt")
    run("train", "--data", mined, "--output", tmp_path / "osp", *settings(*QUICK, *osp))


def test_best_of_n(model: Path, pairs: Path, tmp_path: Path) -> None:
    prompts, output, kept = tmp_path / "prompts.txt", tmp_path / "samples.jsonl", tmp_path / "candidates.jsonl"
    prompts.write_text("How do I cook rice?\n\nWhere is the sea?\n")
    how = ("--max-new-tokens", 8, "--seed", 3, "--output", output)
    run("sample", "builtin", "--prompts", prompts, "--best-of", 4, "--reward", model, "--candidates", kept, *how)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["How do I cook rice?", "Where is the sea?"]
    candidates = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(candidates) == 2
    for line, row in zip(lines, candidates, strict=True):
        assert len(row["responses"]) == 4
        assert line["reward"] == max(row["extra"]["rewards"])
        assert line["response"] == row["responses"][row["extra"]["rewards"].index(line["reward"])]
    assert "2 pairs" in run("data", "mine", kept, "--output", tmp_path / "pairs.jsonl")
    meta = ("model.kind=reward", f"meta.data.path={kept}", "meta.eta=0.1")
    run("train", "--data", pairs, "--output", tmp_path / "meta", *settings(*QUICK, *meta))
    assert "meta_difference" in (tmp_path / "meta" / "metrics.jsonl").read_text()


def test_one_response_alone_has_the_reward_that_it_has_beside_others(model: Path) -> None:
    scored = load_rewards(str(model))
    texts = (" It rains a lot.", " People should think.", " No.")
    together = Comparison(("Why?",), texts, Ratings((0.0,) * 3))
    ((_, rewards),) = scored([together], [])
    for text, reward in zip(texts, rewards, strict=True):
        ((_, own),) = scored([Comparison(("Why?",), (text,), Label(True))], [])
        assert own == pytest.approx([reward], abs=1e-5)


def test_what_compares_has_no_reward_of_one_response(pairs: Path, tmp_path: Path) -> None:
    own = (
        "model.kind=preference",
        "model.estimator=general_preference",
        "model.epochs=5",
        "features.size=20",
        "folds=2",
    )
    run("train", "--data", pairs, "--output", tmp_path / "gpm", *settings(*own))
    skipped: list[RecordError] = []
    alone = Comparison(("Why?",), ("Because.",), Label(True), source="f", line=2)
    assert list(load_rewards(str(tmp_path / "gpm" / "model"))([alone], skipped)) == []
    assert [str(error) for error in skipped] == [
        "f:2: field 'responses': the model compares responses: one alone has no reward"
    ]


def test_a_preference_model_runs_a_benchmark(model: Path, pairs: Path) -> None:
    ranking = load_ranking(str(model))
    assert what_ranks(ranking, compared=False) == "reward"
    shown = run("evaluate", model, pairs, "--style")
    assert "(reward)" in shown
    assert "does not apply to a reward model" in str(
        prefkit("evaluate", model, pairs, "--style", "--as", "likelihood").exception
    )
    with pytest.raises(Exception, match="a judge gives no scores"):
        scored_by(ranking, "judge")


def test_samples_of_a_language_model(pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "samples.jsonl"
    run("sample", "builtin", "--prompts", pairs, "--temperature", 0, "--max-new-tokens", 4, "--output", output)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    prompts = {json.dumps(json.loads(line)["prompt"]) for line in pairs.read_text().splitlines()}
    assert {json.dumps(line["prompt"]) for line in lines} == prompts
    assert all(isinstance(line["response"], str) for line in lines)
    shown = run("sample", "builtin", "--prompt", "word " * 600, "--prompt", "Hello?", "--output", output)
    assert "set aside: prompts:1: its" in shown
    assert len(output.read_text().splitlines()) == 1


def test_candidates_depend_on_the_seed_and_not_on_their_neighbours() -> None:
    scorer = load_scorer(ModelOptions(path="builtin"))
    how: dict[str, Any] = {"max_new_tokens": 6, "seed": 1}
    first, second = sample_candidates(scorer, ["One?", "Two?"], 3, **how)
    assert first == next(sample_candidates(scorer, ["One?"], 3, **how))
    assert len(set(first)) > 1
    assert [first, second] != list(sample_candidates(scorer, ["One?", "Two?"], 3, **{**how, "seed": 2}))
    for wrong, message in (({"count": 0}, "count must be"), ({"count": 2, "temperature": 0}, "temperature must be")):
        with pytest.raises(Exception, match=message):
            next(sample_candidates(scorer, ["One?"], **wrong))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--best-of", 2), "--best-of and --reward go together"),
        (("--reward", "builtin"), "--best-of and --reward go together"),
        (("--best-of", 2, "--reward", "builtin"), "builtin is a language model"),
        (("--candidates", "x.jsonl"), "--candidates goes with --reward"),
        (("--guidance", 2), "--guidance is for images, which the model does not make"),
        (("--seed", 1, "--seed", 2), "several seeds are for pipelines"),
    ],
)
def test_options_that_do_not_fit(arguments: tuple[object, ...], problem: str, tmp_path: Path) -> None:
    asked = ("sample", "builtin", "--prompt", "Hello?", "--output", tmp_path / "samples.jsonl", *arguments)
    assert problem in str(prefkit(*asked).exception)
    assert "give prompts" in str(prefkit("sample", "builtin").exception)
