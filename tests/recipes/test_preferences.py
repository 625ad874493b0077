"""Preference models on files of comparisons: features, cross-validation, saving, scoring, and the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from prefkit.cli import app
from prefkit.comparisons import Comparison, Ratings
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.preference import Calibrated
from prefkit.recipes import find_recipe
from prefkit.recipes.preferences import (
    FeatureOptions,
    Featuriser,
    PreferenceConfig,
    evaluate_preference,
    load_preference,
    preference_rewards,
    run_preference,
)

GOOD, BAD = ("kind", "clear", "short"), ("rude", "vague", "long")


def write(path: Path, rows: int = 60, **more: Any) -> Path:
    """Comparisons under 20 prompts in which good words win; `more` maps a row's number to further fields."""
    rng = np.random.default_rng(0)
    with path.open("w") as out:
        for row in range(rows):
            record = {
                "prompt": f"question {row % 20}",
                "chosen": f"a {rng.choice(GOOD)} answer {rng.integers(9)}",
                "rejected": f"a {rng.choice(BAD)} answer {rng.integers(9)}",
            }
            out.write(json.dumps(record | {name: value(row) for name, value in more.items()}) + "\n")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl")


def config(file: Path, output: Path, model: dict[str, Any], **more: Any) -> PreferenceConfig:
    values = {"model": {"kind": "preference", **model}, "data": {"path": str(file)}, "output": str(output), **more}
    return PreferenceConfig.parse(values)


def held_out(table: Any, name: str) -> list[Any]:
    return next(row for row in table.rows if row[0] == name)[1:]


@pytest.mark.parametrize(
    "model",
    [
        {"estimator": "bradley_terry"},
        {"estimator": "thurstone", "ridge": 0.5},
        {"estimator": "reward_network", "epochs": 60},
        {"estimator": "general_preference", "epochs": 60, "dim": 4},
        {"estimator": "general_preference", "epochs": 60, "gate": True},
    ],
    ids=lambda model: "-".join(map(str, model.values())),
)
def test_models_of_words_generalise_to_new_prompts_and_are_saved(
    model: dict[str, Any], file: Path, tmp_path: Path
) -> None:
    result = run_preference(config(file, tmp_path / "run", model, features={"size": 40}))
    likelihood, accuracy, _ = held_out(result.table, model["estimator"])
    assert accuracy.mean > 0.95
    assert likelihood.mean > -0.65
    assert accuracy.n == 20
    assert held_out(result.table, "chance")[0].mean == pytest.approx(-np.log(2))
    assert result.report.exists()
    record = Comparison(("question 3",), ("a kind answer", "a rude answer", "a clear answer"), Ratings((2.0, 1.0, 2.0)))
    ((_, rewards, _),) = preference_rewards(load_preference(result.model), [record], [])
    assert min(rewards[0], rewards[2]) > rewards[1]
    assert evaluate_preference(result.model, [record]).accuracy.mean == 1.0


def test_people_who_disagree_need_ideal_points(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    rng = np.random.default_rng(0)
    with path.open("w") as out:
        for row in range(200):
            person = row % 8
            texts = [f"{rng.choice(GOOD)} {rng.integers(9)}", f"{rng.choice(BAD)} {rng.integers(9)}"]
            chosen, rejected = texts if person % 2 else texts[::-1]
            line = {"prompt": f"q{row % 25}", "chosen": chosen, "rejected": rejected, "who": f"p{person}"}
            out.write(json.dumps(line) + "\n")
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "annotator": "who"}
    made = config(
        path, tmp_path / "run", {"estimator": "ideal_points", "loss": "logistic"}, features={"size": 30}
    ).model_copy(update={"data": {"path": str(path), "columns": columns}})
    result = run_preference(PreferenceConfig.parse(made.model_dump()))
    assert held_out(result.table, "ideal_points")[1].mean > 0.9
    assert held_out(result.table, "bradley_terry")[1].mean < 0.6
    # An unknown person is judged as the mean of all, a known one by their own taste.
    pair = ("q1",), ("kind 1", "rude 1"), Ratings((1.0, 0.0))
    rewards = {
        name: next(preference_rewards(load_preference(result.model), [Comparison(*pair, annotator=name)], []))[1]
        for name in ("p0", "p1", "nobody")
    }
    assert rewards["p1"][0] > 0 > rewards["p0"][0]
    assert abs(rewards["nobody"][0]) < abs(rewards["p1"][0])
    assert evaluate_preference(result.model, [Comparison(*pair, annotator="nobody")]).accuracy.n == 1
    with pytest.raises(PrefkitError, match=r"no comparison can be used; .* the annotator is missing"):
        evaluate_preference(result.model, [Comparison(*pair)])


def opposed(path: Path) -> Path:
    """Twelve people, every other one of whom prefers bad words, on 60 pairs that all of them judge."""
    rng = np.random.default_rng(0)
    with path.open("w") as out:
        for pair in range(60):
            texts = [f"{rng.choice(GOOD)} {pair}", f"{rng.choice(BAD)} {pair}"]
            for person in range(12):
                chosen, rejected = texts if person % 2 else texts[::-1]
                line = {"prompt": f"q{pair % 20}", "chosen": chosen, "rejected": rejected, "annotator": f"p{person}"}
                out.write(json.dumps(line) + "\n")
    return path


def test_prototypes_are_chosen_and_new_people_met(tmp_path: Path) -> None:
    model = {"estimator": "ideal_points", "loss": "logistic", "steps": 80}
    made = {"choose": {"prototypes": [1, 2]}, "new_people": [0, 5], "folds": 3, "inner_folds": 2}
    file = opposed(tmp_path / "people.jsonl")
    result = run_preference(config(file, tmp_path / "run", model, features={"size": 12}, **made))
    assert load_preference(result.model)[0].prototypes == 2
    # Half of the others are always on either side: their majority is no ceiling for who knows the person.
    ceiling = held_out(result.table, "other annotators")[0].mean
    assert ceiling == pytest.approx(-np.log(2), abs=0.02)
    assert held_out(result.table, "ideal_points")[0].mean > ceiling + 0.3
    assert result.people is not None
    assert result.people.people == 12
    assert result.people.gains["ideal_points"][1].low > 0.1
    page = result.report.read_text()
    assert "prototypes = 2" in page
    assert "New people" in page


def test_features_may_come_with_the_records(tmp_path: Path) -> None:
    path = write(tmp_path / "given.jsonl", vectors=lambda row: [[1.0, row / 60], [0.0, 0.5]])
    features = {"kind": "given", "field": "vectors"}
    result = run_preference(config(path, tmp_path / "run", {"estimator": "bradley_terry"}, features=features))
    assert held_out(result.table, "bradley_terry")[1].mean == 1.0
    featuriser = load_preference(result.model)[1]
    with pytest.raises(RecordError, match="field 'vectors': must hold a list of numbers for each of the 2 responses"):
        featuriser.of(Comparison.pair("p", "a", "b"))
    skipped: list[RecordError] = []
    short = Comparison.pair("p", "a", "b", extra={"vectors": [[1.0], [2.0]]}, source="f", line=2)
    assert list(preference_rewards(load_preference(result.model), [short], skipped)) == []
    assert str(skipped[0]) == "f:2: 1 features, the model was fitted to 2"


def test_features_may_be_states_of_a_language_model() -> None:
    featuriser = Featuriser(FeatureOptions(kind="states"))
    found = featuriser.of(Comparison.pair("Once upon a time", " there was a dog.", " it rained."))
    assert found.shape[0] == 2
    assert np.isfinite(found).all()
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize("slug", ["gpm", "pal"])
def test_models_of_recipes_are_configurations(slug: str, file: Path, tmp_path: Path) -> None:
    config(file, tmp_path / "run", dict(find_recipe(slug).parts["model"]))


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ({"estimator": "bradley_tery"}, {}, "unknown estimator 'bradley_tery'; did you mean 'bradley_terry'"),
        ({"estimator": "thurstone", "rigde": 1}, {}, "unknown option of thurstone 'rigde'; did you mean 'ridge'"),
        ({"estimator": "bradley_terry"}, {"folds": 30}, "folds = 30, but the file has 20 prompts"),
        ({"estimator": "bradley_terry"}, {"features": {"kind": "words"}}, "features.kind"),
        ({"estimator": "bradley_terry"}, {"choose": {"ridge": []}}, "choose.ridge must list at least one value"),
        ({"estimator": "bradley_terry"}, {"choose": {"rigde": [1.0]}}, "did you mean 'ridge'"),
        ({"estimator": "bradley_terry"}, {"new_people": [2]}, "new_people is for ideal_points"),
        (
            {"estimator": "general_preference", "gate": True},
            {"features": {"kind": "given"}},
            "no comparison can be used",
        ),
    ],
)
def test_bad_configurations_are_refused(
    model: dict[str, Any], more: dict[str, Any], message: str, file: Path, tmp_path: Path
) -> None:
    with pytest.raises((OptionError, PrefkitError), match=message):
        run_preference(config(file, tmp_path / "run", model, **more))


def prefkit(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_commands_train_score_and_evaluate(file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    setting = ("--set", "model.kind=preference", "--set", "model.estimator=bradley_terry", "--set", "features.size=40")
    shown = prefkit("train", "--data", file, "--output", run, *setting)
    assert shown.exit_code == 0, shown.output
    assert "expected calibration error" in shown.output
    assert "fitted to 60 pairs" in shown.output
    scores, rewarded = tmp_path / "scores.jsonl", tmp_path / "rewarded.jsonl"
    shown = prefkit("score", run / "model", file, "--output", scores, "--rewards-into", rewarded)
    assert shown.exit_code == 0, shown.output
    lines = [json.loads(line) for line in scores.read_text().splitlines()]
    assert len(lines) == 60
    assert all(line["responses"][0]["reward"] > line["responses"][1]["reward"] for line in lines)
    assert "rewards" in json.loads(rewarded.read_text().splitlines()[0])["extra"]
    shown = prefkit("evaluate", run / "model", file, "--output", tmp_path / "figures.json")
    assert shown.exit_code == 0, shown.output
    assert "accuracy" in shown.output
    with pytest.raises(OptionError, match="--tokens, --samples and --followups are for language models"):
        prefkit("score", run / "model", file, "--tokens")
    with pytest.raises(OptionError, match="--resume does not apply"):
        prefkit("train", "--data", file, "--output", run, *setting, "--resume")
    (run / "model" / "features.json").write_text("{}")
    with pytest.raises(PrefkitError, match="the features of the preference model cannot be read"):
        prefkit("evaluate", run / "model", file)


@pytest.mark.parametrize("estimator", ["bradley_terry", "ideal_points"])
def test_an_ensemble_with_a_temperature(estimator: str, tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", annotator=lambda row: f"p{row % 3}")
    more = {"loss": "logistic", "steps": 40} if estimator == "ideal_points" else {}
    model = {"estimator": estimator, "ensemble": 3, **more}
    result = run_preference(config(file, tmp_path / "run", model, calibrate=True, features={"size": 20}))
    fitted, featuriser = load_preference(result.model)
    assert isinstance(fitted, Calibrated)
    assert len(fitted.estimator_.members_) == 3
    assert result.uncalibrated is not None
    assert held_out(result.table, f"{estimator}, calibrated")[0].mean == pytest.approx(
        result.calibration.log_likelihood.mean, abs=1e-9
    )
    records = [Comparison.pair("question 1", "a kind answer", "a rude answer", annotator="p1")]
    ((_, rewards, spread),) = preference_rewards(load_preference(result.model), records, [])
    assert spread is not None
    X = featuriser.of(records[0])[None]
    given = {"annotators": ["p1"]} if estimator == "ideal_points" else {}
    each = np.array([member.decision_function(X, **given)[0] for member in fitted.estimator_.members_])
    # Two responses: half of the log-odds each.
    assert spread == pytest.approx([each.std(ddof=1) / 2 / fitted.temperature_] * 2)
    assert rewards[0] == pytest.approx(fitted.decision_function(X, **given)[0] / 2)
    measured = evaluate_preference(result.model, [*records, *records])
    assert measured.uncalibrated is not None
    assert len(measured.plots()) == 2
    assert "without the temperature: expected calibration error" in [row[0] for row in measured.table().rows]


@pytest.mark.parametrize("members", [1, 2.5, True])
def test_an_ensemble_has_members(members: Any, file: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"ensemble must be a number of fits, at least 2"):
        config(file, tmp_path / "run", {"ensemble": members})


def test_commands_write_spread_and_reliability(file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    setting = ("--set", "model.kind=preference", "--set", "model.ensemble=2", "--set", "calibrate=true")
    shown = prefkit("train", "--data", file, "--output", run, *setting)
    assert "before the temperature" in shown.output
    scores, page = tmp_path / "scores.jsonl", tmp_path / "page.html"
    prefkit("score", run / "model", file, "--output", scores)
    line = json.loads(scores.read_text().splitlines()[0])
    assert all(response["spread"] > 0 for response in line["responses"])
    prefkit("evaluate", run / "model", file, "--report", page)
    assert page.read_text().count("<svg") >= 2
