from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from prefkit.cli import app, main
from prefkit.preference import BradleyTerry, load_preference_model

OUTCOMES = "outcomes={left: a, right: b, draw: tie}"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "results.csv"
    rows = ["x,y,left", "y,x,left", "x,z,left", "z,y,draw", "z,x,left", "y,z,right", "x,,left"]
    path.write_text("\n".join(["home,guest,outcome", *rows]) + "\n")
    return path


@pytest.fixture
def arena(tmp_path: Path) -> Path:
    path = tmp_path / "arena.jsonl"
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    other = [talk[0], {"role": "assistant", "content": "good day"}]
    rows = [("m1", "m2", "model_a"), ("m2", "m1", "model_a"), ("m1", "m2", "model_a"), ("m2", "m1", "tie")]
    with path.open("w") as out:
        for a, b, winner in rows:
            row = {"model_a": a, "model_b": b, "winner": winner, "conversation_a": talk, "conversation_b": other}
            out.write(json.dumps({**row, "judge": "p", "tstamp": 1.0}) + "\n")
    return path


def prefkit(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_a_table_of_results_is_ranked_and_written(table: Path, tmp_path: Path) -> None:
    written, drawn, saved = tmp_path / "board.json", tmp_path / "board.svg", tmp_path / "model"
    shown = prefkit(
        *("leaderboard", table, "--items", "home,guest", "--winner", "outcome", "--option", OUTCOMES, "--elo"),
        *("--cycles", "--output", written, "--plot", drawn, "--save", saved),
    )
    assert shown.exit_code == 0, shown.output
    assert "6 comparisons of 3 items" in shown.output
    assert "1 comparisons set aside" in shown.output
    assert "circular triples" in shown.output
    board = json.loads(written.read_text())
    assert (board["scale"], board["comparisons"]) == ("elo", 6)
    X = [["x", "y"], ["y", "x"], ["x", "z"], ["z", "y"], ["z", "x"], ["y", "z"]]
    model = BradleyTerry().fit(X, [1, 1, 1, 0.5, 1, 0])
    expected = {s.item: s.mean for s in model.leaderboard().elo().standings}
    assert {s["item"]: s["mean"] for s in board["standings"]} == pytest.approx(expected)
    assert "<svg" in drawn.read_text()
    np.testing.assert_allclose(load_preference_model(saved).coef_, model.coef_)


def test_battles_are_ranked_by_their_models(arena: Path) -> None:
    shown = prefkit("leaderboard", arena, "--ties", "davidson")
    assert shown.exit_code == 0, shown.output
    assert shown.output.index("m1") < shown.output.index("m2")
    assert "log nu of ties" in shown.output
    assert prefkit("leaderboard", arena, "--law", "thurstone").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--winner", "outcome"], "--winner needs the two columns"),
        (["--law", "thurstone", "--ties", "davidson"], "--ties applies to --law bradley_terry"),
        (["--law", "thurstone", "--elo"], "--elo applies to --law bradley_terry"),
        (["--items", "a,b"], "the name is missing"),
        (["--confidence", "1.5"], "confidence must lie in (0, 1)"),
    ],
)
def test_refusals(
    options: list[str],
    message: str,
    arena: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["prefkit", "leaderboard", str(arena), *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
