"""Files of which no preference model can be learned: `prefkit train` says in which file, line and field."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from prefkit.cli import app
from prefkit.errors import PrefkitError

Row = dict[str, Any]


def rows() -> list[Row]:
    """Forty comparisons by four people, whose responses have embeddings of three numbers."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(40):
        better, worse = sorted(rng.normal(size=(2, 3)).tolist(), key=lambda e: -e[0] + rng.normal())
        made.append(
            {
                **{"prompt": f"q{number % 10}", "chosen": f"a{number}", "rejected": f"b{number}"},
                **{"annotator": f"p{number % 4}", "embeddings": [better, worse]},
            }
        )
    return made


def train(path: Path, made: list[Row], *settings: str) -> Result:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    arguments = ["train", "--data", str(path), "--output", str(path.parent / "run")]
    for setting in ("model.kind=preference", "features.kind=given", "folds=3", *settings):
        arguments += ["--set", setting]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def constant(made: list[Row]) -> None:
    for row in made:
        row["embeddings"] = [[1.0, 2.0, 3.0]] * 2


def one_annotator(made: list[Row]) -> None:
    for row in made:
        row["annotator"] = "ann"


def idle_annotator(made: list[Row]) -> None:
    for row in made:
        row["weight"] = float(row["annotator"] != "p2")


def all_ties(made: list[Row]) -> None:
    for row in made:
        row["winner"] = "tie"


def another_size(made: list[Row]) -> None:
    made[6]["embeddings"] = [[1.0, 2.0], [3.0, 4.0]]


WEIGHED = "data.columns={prompt: prompt, chosen: chosen, rejected: rejected, annotator: annotator, weight: weight}"
JUDGED = "data.columns={prompt: prompt, response_a: chosen, response_b: rejected, winner: winner}"
RATED = "data.columns={prompt: prompt, response_a: chosen, response_b: rejected, rating_a: a, rating_b: b}"
IDEAL = ("model.estimator=ideal_points", "model.steps=20")

REFUSED: dict[str, tuple[Callable[[list[Row]], None], tuple[str, ...], str]] = {
    "constant features": (
        constant,
        (),
        "FILE: field 'embeddings': both responses have the same features (given) in every comparison",
    ),
    "one annotator": (one_annotator, IDEAL, "FILE: field 'annotator': all comparisons are by one annotator, 'ann'"),
    "an annotator without judgements": (
        idle_annotator,
        (*IDEAL, WEIGHED),
        "FILE:3: field 'weight': no comparison of annotator 'p2' has a weight above 0",
    ),
    "all ties": (all_ties, (JUDGED,), "FILE: all 40 comparisons are ties: nothing is preferred"),
    "embedding sizes that differ": (
        another_size,
        (),
        "FILE:7: field 'embeddings': 2 numbers a response, those of the first comparison have 3",
    ),
    "odd dimension": (
        lambda made: None,
        ("model.estimator=general_preference", "model.dim=5"),
        "model: dim, the size of a preference embedding, must be even and at least 2, got 5",
    ),
}


@pytest.mark.parametrize(("change", "settings", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_files_of_which_nothing_can_be_learned_are_refused(
    change: Callable[[list[Row]], None], settings: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    made, path = rows(), tmp_path / "pairs.jsonl"
    change(made)
    with pytest.raises(PrefkitError, match=re.escape(message.replace("FILE", str(path)))):
        train(path, made, *settings)
    assert not (tmp_path / "run" / "model").exists()


def unequal(row: Row) -> None:
    row["embeddings"] = [[1.0, 2.0, 3.0], [4.0]]


SET_ASIDE: dict[str, tuple[Callable[[Row], Any], str]] = {
    "nan feature": (
        lambda row: row["embeddings"][1].__setitem__(2, float("nan")),
        "field 'embeddings': number 2 of response 1 must be finite, got nan",
    ),
    "null feature": (
        lambda row: row["embeddings"][0].__setitem__(0, None),
        "field 'embeddings': number 0 of response 0 must be finite, got nan",
    ),
    "sizes within a record": (
        unequal,
        "field 'embeddings': must hold a list of numbers for each of the 2 responses, all of one length",
    ),
    "absent": (lambda row: row.pop("embeddings"), "field 'embeddings': must hold a list of numbers"),
}


@pytest.mark.parametrize(("change", "message"), SET_ASIDE.values(), ids=SET_ASIDE.keys())
def test_single_records_are_set_aside_and_named(
    change: Callable[[Row], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    made, path = rows(), tmp_path / "pairs.jsonl"
    change(made[4])
    shown = train(path, made)
    assert "fitted to 39 pairs" in shown.output
    assert f"1 comparisons set aside; the first: {path}:5: {message}" in shown.output


def test_scores_that_are_no_number_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    made, path = rows(), tmp_path / "rated.jsonl"
    for row in made:
        row |= {"a": 2.0, "b": 1.0}
    made[8]["b"] = float("nan")
    shown = train(path, made, RATED)
    assert "fitted to 39 pairs" in shown.output
    assert f"1 comparisons set aside; the first: {path}:9: field 'b': must be a finite number, got nan" in shown.output
    for row in made:
        row["b"] = float("nan")
    with pytest.raises(PrefkitError, match=rf"no comparison can be read from .*{re.escape(str(path))}:1: field 'b'"):
        train(path, made, RATED)


def test_numbers_that_never_change_are_warned_of(tmp_path: Path) -> None:
    made, path = rows(), tmp_path / "pairs.jsonl"
    for row in made:
        for vector in row["embeddings"]:
            vector[1] = 7.0
    for estimator in ("bradley_terry", "reward_network"):
        more = ("model.epochs=20",) if estimator == "reward_network" else ()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(path, made, f"model.estimator={estimator}", *more)
        said = [str(warning.message) for warning in caught if warning.category is UserWarning]
        assert said == [f"{path}: field 'embeddings': numbers 1 are the same in all responses, and say nothing"]


def test_separable_judgements_are_penalised_with_a_warning(tmp_path: Path) -> None:
    made, path = rows(), tmp_path / "pairs.jsonl"
    for row in made:
        row["embeddings"].sort(key=lambda vector: -vector[0])
    with pytest.warns(UserWarning, match="the comparisons are separable: a combination of features never contradicts"):
        shown = train(path, made, "model.ridge=0")
    assert "fitted to 40 pairs" in shown.output
