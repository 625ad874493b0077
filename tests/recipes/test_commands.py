from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import prefkit.recipes
from prefkit.cli.recipes import recipes, reproduce
from prefkit.errors import PrefkitError
from prefkit.recipes import RECIPES

app = typer.Typer()
app.command()(recipes)
app.command()(reproduce)


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def test_list_as_json() -> None:
    listed = json.loads(call("recipes", "--json").stdout)
    assert [row["recipe"] for row in listed] == sorted(RECIPES)
    assert {"recipe": "rdpo", "state": "ready"}.items() <= listed[sorted(RECIPES).index("rdpo")].items()


def test_list_as_table() -> None:
    result = call("recipes")
    assert result.exit_code == 0
    assert all(slug in result.stdout for slug in RECIPES)


def test_rdpo_holds_in_its_short_form(tmp_path: Path) -> None:
    result = call("reproduce", "rdpo", "--quick", "--output", str(tmp_path))
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "rdpo" / "result.json").read_text())
    assert len(written["claims"]) == 9
    assert written["passed"]
    assert (tmp_path / "rdpo" / "plot.svg").exists()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = RECIPES["rdpo"]
    claims = [replace(claim, holds=lambda ours, theirs: False) for claim in ready.experiment.claims]
    experiment = replace(
        ready.experiment, claims=claims, run=lambda seed: dict.fromkeys(ready.experiment.run(0), float(seed))
    )
    monkeypatch.setattr(prefkit.recipes, "RECIPES", {"rdpo": replace(ready, experiment=experiment)})


@pytest.mark.usefixtures("failing")
def test_a_claim_that_fails_ends_with_status_1_after_writing(tmp_path: Path) -> None:
    result = call("reproduce", "--all", "--seeds", "2", "--output", str(tmp_path))
    assert result.exit_code == 1
    assert json.loads((tmp_path / "rdpo" / "result.json").read_text())["passed"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the name of one recipe, or --all"),
        (["rdpo", "--all"], "give the name of one recipe, or --all"),
        (["rdpo", "--quick", "--seeds", "3"], "give --quick or --seeds"),
        (["rpdo"], "unknown recipe 'rpdo'; did you mean 'rdpo'?"),
        (["rso"], "recipe 'rso' is planned"),
    ],
)
def test_bad_arguments_are_explained(arguments: list[str], message: str) -> None:
    result = call("reproduce", *arguments)
    assert isinstance(result.exception, PrefkitError)
    assert message in str(result.exception)
