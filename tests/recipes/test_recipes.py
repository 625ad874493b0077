from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from prefkit.errors import PrefkitError
from prefkit.objectives import make_objective
from prefkit.recipes import RECIPES, Claim, Experiment, Recipe, find_recipe, reproduce
from prefkit.report.plots import Plot, bars

SPECS = Path(__file__).parents[3] / "shared" / "specs"
NOT_SYSTEMS = {"data-formats", "mdp-and-bandit-testbeds"}


def test_every_specified_system_is_listed() -> None:
    if not SPECS.exists():
        pytest.skip(f"the specifications are not at {SPECS}")
    assert set(RECIPES) == {file.stem for file in SPECS.glob("*.md")} - NOT_SYSTEMS


def test_paper_numbers_are_those_of_the_specifications() -> None:
    if not SPECS.exists():
        pytest.skip(f"the specifications are not at {SPECS}")
    for slug, recipe in RECIPES.items():
        opening = "".join((SPECS / f"{slug}.md").read_text().splitlines(keepends=True)[:2])
        assert recipe.paper.removeprefix("arXiv ") in opening, slug
        assert str(recipe.year) in opening, slug


def test_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(PrefkitError, match="unknown recipe 'rpdo'; did you mean 'rdpo'"):
        find_recipe("rpdo")


def test_planned_recipe_cannot_be_reproduced() -> None:
    planned = next(recipe for recipe in RECIPES.values() if recipe.state == "planned")
    with pytest.raises(PrefkitError, match="is planned, there is nothing to reproduce yet"):
        reproduce(planned)


@pytest.mark.parametrize("recipe", [r for r in RECIPES.values() if "objective" in r.parts], ids=lambda r: r.slug)
def test_objectives_of_recipes_can_be_built(recipe: Recipe) -> None:
    make_objective(recipe.parts["objective"])


def run(seed: int) -> Mapping[str, float]:
    return {"method": 1.0 + seed, "baseline": 2.0, "few": float(seed > 0)}


def plot(figures: Mapping[str, object]) -> Plot:
    return bars(figures, title="figures")


WINS = Claim("wins on average", "method", "baseline", lambda ours, theirs: ours.mean() >= theirs.mean())
LOSES = Claim("wins always", "method", "baseline", lambda ours, theirs: (ours > theirs).all())


def recipe(*claims: Claim) -> Recipe:
    return Recipe("toy", "A toy", 2024, "nowhere", experiment=Experiment(run, claims, plot, seeds=3, quick_seeds=2))


def test_figures_are_gathered_over_seeds_and_claims_judged() -> None:
    result = reproduce(recipe(WINS, LOSES))
    assert result.figures == {"method": [1, 2, 3], "baseline": [2, 2, 2], "few": [0, 1, 1]}
    assert [verdict.passed for verdict in result.verdicts] == [True, False]
    assert not result.passed
    assert reproduce(recipe(WINS)).passed
    # t(0.975, 2 degrees of freedom) / sqrt(3) = 4.30265 / 1.73205
    measured = result.verdicts[0].measured
    assert (measured.mean, measured.high) == (2, pytest.approx(2 + 2.48414, abs=1e-4))


def test_number_of_seeds() -> None:
    seen: list[int] = []

    def track(seeds: object) -> object:
        for seed in seeds:
            seen.append(seed)
            yield seed

    reproduce(recipe(WINS), quick=True, track=track)
    assert seen == [0, 1]
    assert len(reproduce(recipe(WINS), seeds=5).figures["method"]) == 5
    with pytest.raises(PrefkitError, match="seeds must be at least 1, got 0"):
        reproduce(recipe(WINS), seeds=0)


def test_results_are_written(tmp_path: Path) -> None:
    result = reproduce(recipe(WINS, LOSES))
    result.write(tmp_path / "new" / "toy")
    written = json.loads((tmp_path / "new" / "toy" / "result.json").read_text())
    assert written["passed"] is False
    assert written["figures"]["method"] == [1, 2, 3]
    assert [claim["passed"] for claim in written["claims"]] == [True, False]
    assert written["claims"][0]["baseline"] == {"mean": 2, "low": 2, "high": 2, "n": 3}
    assert "<svg" in (tmp_path / "new" / "toy" / "plot.svg").read_text()


def test_table_has_one_row_a_claim() -> None:
    table = reproduce(recipe(WINS, LOSES)).table()
    assert table.columns == ["claim", "baseline", "measured", "pass"]
    assert [(row[0], row[3]) for row in table.rows] == [("wins on average", True), ("wins always", False)]
