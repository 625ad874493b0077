"""Objectives side by side on the built-in model: what is measured and written, what is found again, what is refused."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import prefkit.recipes.compare as module
from prefkit.assets import comparisons_path
from prefkit.cli import app
from prefkit.comparisons import load_comparisons, split_comparisons
from prefkit.diagnostics import evaluate
from prefkit.errors import OptionError, PrefkitError
from prefkit.language import BUILTIN, EncodingOptions, LanguageScorer, LoraOptions, ModelOptions, load_scorer
from prefkit.objectives import make_objective
from prefkit.recipes.compare import (
    Cell,
    CompareOptions,
    ObjectiveComparison,
    Outcome,
    compare,
    pairwise_objectives,
)
from prefkit.recipes.run import DataOptions, comparisons, load, with_reference

QUICK: dict[str, Any] = {
    "training": {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "progress": False},
    "kl_samples": 2,
    "kl_tokens": 4,
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the built-in comparisons in a file of their own."""
    with gzip.open(comparisons_path("test"), "rt", encoding="utf-8") as file:
        lines = file.readlines()
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(lines[::12]))
    return path


def options(pairs: Path, folder: Path, objectives: Any = "dpo, ipo", **more: Any) -> CompareOptions:
    data = {"path": str(pairs), "held_out": 0.4}
    given = {**QUICK, "data": data, "objectives": objectives, "output": str(folder), "cache": str(folder / "cache")}
    return CompareOptions.parse({**given, **more})


@pytest.fixture(scope="module")
def found(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> ObjectiveComparison:
    return compare(options(pairs, tmp_path_factory.mktemp("comparison"), seeds=2))


def test_every_objective_has_every_seed_and_every_figure(found: ObjectiveComparison) -> None:
    assert [(o.cell.objective, o.seed) for o in found.outcomes] == [("dpo", 0), ("ipo", 0), ("dpo", 1), ("ipo", 1)]
    for outcome in found.outcomes:
        assert outcome.figures.keys() == module.FIGURES.keys()
        assert outcome.failed is None
        assert (outcome.folder / "model" / "config.json").is_file()
        assert not (outcome.folder / "checkpoints").exists()


def test_figures_are_those_of_the_saved_model_on_the_held_out_part(found: ObjectiveComparison, pairs: Path) -> None:
    held_out = split_comparisons(load_comparisons(pairs), {"train": 0.6, "held_out": 0.4})["held_out"]
    outcome = found.outcomes[-1]
    alone = load_scorer(ModelOptions(path=str(outcome.folder / "model"), reference="builtin"))
    expected = evaluate(alone, held_out, reference=True).summary
    for name, interval in expected.items():
        assert outcome.figures[name] == pytest.approx(interval.mean, rel=1e-4, abs=1e-4), name
    assert outcome.figures["reward_margin"] == pytest.approx(
        outcome.figures["chosen_logp_change"] - outcome.figures["rejected_logp_change"]
    )


def test_intervals_are_over_seeds_and_differences_are_paired(found: ObjectiveComparison) -> None:
    values = {
        kind: [o.figures["reward_margin"] for o in found.outcomes if o.cell.objective == kind]
        for kind in ("dpo", "ipo")
    }
    interval = found.intervals(Cell("ipo", 0.0))["reward_margin"]
    half = 12.7062 * np.std(values["ipo"], ddof=1) / np.sqrt(2)  # Student's t, one degree of freedom
    assert (interval.mean, interval.n) == (pytest.approx(np.mean(values["ipo"])), 2)
    assert interval.high - interval.mean == pytest.approx(half, rel=1e-4)
    gains = [
        o.figures["reward_accuracy"] - p.figures["reward_accuracy"]
        for o, p in zip(found.outcomes[1::2], found.outcomes[::2], strict=True)
    ]
    (row,) = next(t for t in found.tables() if "Difference from dpo" in t.title).rows
    assert row[0] == "ipo"
    assert row[-1].mean == pytest.approx(np.mean(gains))


def test_encodings_and_reference_scores_are_made_once(found: ObjectiveComparison) -> None:
    cache = Path(found.options.cache or "")
    assert len(list(cache.glob("encodings-*.arrow"))) == 1
    assert len(list(cache.glob("reference-*.arrow"))) == 1


def test_everything_is_written(found: ObjectiveComparison) -> None:
    folder = Path(found.options.output)
    results = json.loads((folder / "results.json").read_text())
    assert [row["objective"] for row in results["results"]] == ["dpo", "ipo"]
    assert len(results["runs"]) == 4
    assert results["results"][0]["figures"]["kl"]["n"] == 2
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["objective"] for row in rows] == ["dpo", "ipo"]
    assert float(rows[0]["reward accuracy mean"]) == results["results"][0]["figures"]["reward_accuracy"]["mean"]
    assert len((folder / "runs.csv").read_text().splitlines()) == 5
    assert (folder / "ranking_accuracy.svg").is_file()
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "Difference from dpo" in page


@pytest.mark.slow
def test_finished_runs_are_found_and_not_repeated(
    found: ObjectiveComparison, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(found.options.output)
    trained: list[Path] = []
    real = module.fit

    def watched(*args: Any, **kwargs: Any) -> Any:
        trained.append(kwargs["output"])
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "fit", watched)
    again = compare(options(pairs, folder, seeds=2))
    assert trained == []
    assert [o.figures for o in again.outcomes] == [o.figures for o in found.outcomes]
    shutil.rmtree(folder / "runs" / "ipo" / "seed-1")
    more = compare(options(pairs, folder, seeds=2))
    assert [path.relative_to(folder / "runs").as_posix() for path in trained] == ["ipo/seed-1"]
    kept = [{k: v for k, v in o.figures.items() if k != "seconds"} for o in more.outcomes]
    assert kept == [{k: v for k, v in o.figures.items() if k != "seconds"} for o in found.outcomes]


def test_a_folder_of_other_options_or_data_is_refused(found: ObjectiveComparison, pairs: Path, tmp_path: Path) -> None:
    folder = Path(found.options.output)
    with pytest.raises(OptionError, match=r"was begun with objective\.beta = None, got 0\.5"):
        compare(options(pairs, folder, {"dpo": {"beta": 0.5}}))
    other = tmp_path / "other.jsonl"
    other.write_text("".join(pairs.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(PrefkitError, match="holds a comparison on other data: choose another folder"):
        compare(options(other, folder))


@pytest.mark.slow
def test_options_of_single_objectives_and_what_they_learn(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.fit

    def with_summary(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        summary = {"latent": {"reliabilities": {"anna": 0.9}, "note": "text", "sure": True}}
        (Path(kwargs["output"]) / "objective.json").write_text(json.dumps(summary))
        return result

    monkeypatch.setattr(module, "fit", with_summary)
    objectives = [{"kind": "dpo", "name": "strong", "beta": 0.5}, {"kind": "sft", "training": {"learning_rate": 1e-4}}]
    result = compare(options(pairs, tmp_path, objectives, seeds=1, keep_models=False, kl_samples=0))
    config = [module.Run(o.folder).config for o in result.outcomes]
    assert [c["objective"] for c in config] == [{"kind": "dpo", "beta": 0.5}, {"kind": "sft"}]
    assert [c["training"]["learning_rate"] for c in config] == [1e-3, 1e-4]
    assert not any((o.folder / "model").exists() for o in result.outcomes)
    assert not any("kl" in o.figures for o in result.outcomes)
    assert [o.learned for o in result.outcomes] == [{"latent.reliabilities.anna": 0.9}] * 2
    assert result.intervals(Cell("strong", 0.0))["ranking_accuracy"].n == 1
    assert result.plots().keys() == {"ranking_accuracy", "ranking_accuracy_per_token", "reward_accuracy"}


@pytest.mark.slow
def test_flipped_labels_are_those_of_training_only(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, int]] = []
    real = module.flip_preferences

    def watched(records: Any, rate: float, seed: int) -> Any:
        flipped, mask = real(records, rate, seed)
        seen.append((rate, len(flipped)))
        return flipped, mask

    monkeypatch.setattr(module, "flip_preferences", watched)
    objectives = {"dpo": None, "rdpo": {"flip_rate": "injected"}}
    result = compare(options(pairs, tmp_path, objectives, seeds=1, flip=[0, 0.4], kl_samples=0))
    parts = split_comparisons(load_comparisons(pairs), {"train": 0.6, "held_out": 0.4})
    assert seen == [(0.4, len(list(parts["train"])))] * 2
    rates = [module.Run(o.folder).config["objective"].get("flip_rate") for o in result.outcomes]
    assert rates == [None, 0.0, None, 0.4]
    # At rate 0 the robust loss is DPO's.
    clean, robust, noisy, _ = [o.figures["reward_margin"] for o in result.outcomes]
    assert clean == pytest.approx(robust, abs=1e-4)
    assert noisy != pytest.approx(clean, abs=1e-4)
    plot = result.plots()["ranking_accuracy"]
    assert [row[:2] for row in plot.data.rows] == [["dpo", 0.0], ["dpo", 0.4], ["rdpo", 0.0], ["rdpo", 0.4]]
    assert len(list((tmp_path / "cache").glob("encodings-*.arrow"))) == 1


def learned(pairs: Path) -> ObjectiveComparison:
    def run(seed: int, value: float) -> Outcome:
        figures = {"ranking_accuracy": 0.6}
        return Outcome(Cell("latent", 0.2), seed, Path("x"), figures, {"latent.reliability": value})

    return ObjectiveComparison(options(pairs, Path("x"), "dpo", flip=[0.2, 0.3]), (run(0, 0.7), run(1, 0.8)), None)


def test_what_an_objective_learned_stands_beside_the_true_rate(pairs: Path) -> None:
    (row,) = next(t for t in learned(pairs).tables() if t.title == "What the objectives learned").rows
    assert row[:2] == ["latent", 0.2]
    assert row[2] == pytest.approx(0.8)
    assert row[3] == "latent.reliability"
    assert row[4].mean == pytest.approx(0.75)


def test_a_run_that_fails_is_reported_and_the_others_go_on(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.fit

    def failing(scorer: Any, records: Any, objective: Any, **how: Any) -> Any:
        if objective.name == "ipo":
            raise PrefkitError("the loss is not finite at step 1")
        return real(scorer, records, objective, **how)

    monkeypatch.setattr(module, "fit", failing)
    result = compare(options(pairs, tmp_path, seeds=1, kl_samples=0))
    assert [o.failed for o in result.outcomes] == [None, "the loss is not finite at step 1"]
    assert result.tables()[-1].rows == [["ipo", 0.0, 0, "the loss is not finite at step 1"]]
    assert "Failed runs" in (tmp_path / "report.html").read_text()
    with pytest.raises(PrefkitError, match="none of the 1 runs came to its end; the first: the loss is not finite"):
        compare(options(pairs, tmp_path / "none", "ipo", seeds=1))


def test_an_objective_that_reads_the_reference_in_every_step_gets_a_frozen_copy(pairs: Path, tmp_path: Path) -> None:
    found = compare(options(pairs, tmp_path, "dpo, tdpo1", seeds=1))
    assert [outcome.failed for outcome in found.outcomes] == [None, None]
    kept = ModelOptions(lora=LoraOptions(rank=2))  # an adapter's reference is the model below it
    for kind, model, reference in (
        ("tdpo1", ModelOptions(), BUILTIN),
        ("tdpo1", kept, None),
        ("dpo", ModelOptions(), None),
    ):
        assert with_reference(model, make_objective(kind)).reference == reference


def test_reward_models_are_compared_too(pairs: Path, tmp_path: Path) -> None:
    noisy = {"kind": "reward_model", "noise": {"kind": "robust", "flip_rate": 0.1}}
    (outcome,) = compare(options(pairs, tmp_path, [noisy], seeds=1, model={"kind": "reward"})).outcomes
    assert outcome.figures.keys() == {"ranking_accuracy", "seconds"}


def test_all_pairwise_are_those_that_need_comparisons_alone(pairs: Path, tmp_path: Path) -> None:
    names = pairwise_objectives()
    assert {"dpo", "cdpo", "rdpo", "ipo", "simpo", "cpo", "orpo", "slic_hf"} <= set(names)
    assert not {"reward_model", "kto", "plackett_luce", "sft"} & set(names)
    for name in names:
        assert make_objective(name).needs <= LanguageScorer.provided | {"reference"}
    chosen = options(pairs, tmp_path, {"all-pairwise": None, "dpo": {"beta": 0.5}}).objectives
    assert list(chosen) == names
    assert chosen["dpo"] == {"beta": 0.5}


@pytest.mark.parametrize(
    ("objectives", "more", "message"),
    [
        ("dpo,dppo", {}, r"objectives\.dppo\.kind: unknown objective 'dppo'; did you mean"),
        ({"dpo": {"betta": 1}}, {}, r"unknown option of objectives\.dpo 'betta'; did you mean 'beta'"),
        ({"dpo": {"training": {"epoch": 1}}}, {}, r"unknown option of objectives\.dpo\.training 'epoch'"),
        ({"dpo": {"training": {"seed": 1}}}, {}, "all objectives have the same seeds"),
        ({"dpo": {"training": 3}}, {}, r"objectives\.dpo\.training must hold options of training, got 3"),
        (["dpo", {"kind": "dpo", "beta": 1}], {}, "'dpo' stands there twice: give each a `name` of its own"),
        ([3], {}, "a name may have letters, digits"),
        ("", {}, "objectives: name at least one, such as dpo"),
        ("reward_model", {}, r"objectives\.reward_model needs rewards, which this model does not give"),
        ("dpo", {"model": {"kind": "reward"}}, "objective 'dpo' is on log-probabilities, which a reward model"),
        ("dpo", {"seeds": 0}, "seeds must be at least 1, got 0"),
        ("dpo", {"flip": [0.5]}, r"flip: flip_rate must lie in \[0, 0\.5\)"),
        ("dpo", {"flip": [0.1, 0.1]}, "a rate stands there twice"),
        ("dpo", {"flip": []}, "name at least one rate"),
        ("kto", {"pairing": {"strategy": "adjacent"}}, r"pairing\.strategy does not apply"),
        ("dpo", {"seed": 1}, "unknown option 'seed'; did you mean 'seeds'"),
    ],
)
def test_bad_options_are_explained_before_anything_runs(
    objectives: Any, more: Any, message: str, pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        compare(options(pairs, tmp_path / "new", objectives, **more))
    assert not (tmp_path / "new").exists()


def test_an_empty_part_is_refused(tmp_path: Path) -> None:
    """Two prompts cannot give a hundredth of them to the held-out part."""
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "chosen": " a", "rejected": " b"}) + "\n" for p in "xy"))
    with pytest.raises(OptionError, match="leaves the held-out part empty"):
        comparisons(DataOptions(path=str(path), held_out=0.01))


def test_rows_that_cannot_be_read_are_named_before_anything_is_trained(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps({"prompt": "x", "responses": [" a", " b"], "judgement": {"winner": 0}, "reward": 1}))
    with pytest.raises(PrefkitError, match=r"1 rows were set aside, the first because: .*'reward'"):
        comparisons(DataOptions(path=str(path), format="prefkit", held_out=0.5))


def test_something_is_held_out(pairs: Path) -> None:
    given = {"objectives": "dpo", "output": "x"}
    assert CompareOptions.parse({**given, "data": {"path": str(pairs)}}).data.held_out == module.HELD_OUT
    assert CompareOptions.parse({**given, "data": {"path": "builtin"}}).data.held_out == 0
    with pytest.raises(OptionError, match=r"give data\.held_out or data\.evaluation"):
        CompareOptions.parse({**given, "data": {"path": str(pairs), "held_out": 0}})


def test_a_part_without_comparisons_is_found_before_anything_runs(pairs: Path, tmp_path: Path) -> None:
    few = options(pairs, tmp_path, data={"path": str(pairs), "held_out": 0.01})
    with pytest.raises(PrefkitError, match="leaves the held-out part empty"):
        compare(few)


def test_several_processes_are_refused(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="prefkit compare is one process"):
        compare(options(pairs, tmp_path))


def test_a_seed_fixes_the_weights_of_a_new_adapter() -> None:
    def weights(seed: int) -> torch.Tensor:
        scorer = load(ModelOptions(lora={"rank": 2}), EncodingOptions(), seed)
        return next(weight for name, weight in scorer.named_parameters() if "lora_A" in name)

    state = torch.get_rng_state()
    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    assert torch.equal(torch.get_rng_state(), state)


def prefkit(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command(pairs: Path, tmp_path: Path) -> None:
    quick = (
        "data.held_out=0.4",
        "training.max_steps=1",
        "training.progress=false",
        "kl_samples=0",
        "objectives.ipo.beta=0.2",
    )
    shown = prefkit(
        *("compare", "--model", "builtin", "--data", pairs, "--objectives", "dpo,ipo", "--seeds", 1),
        *("--output", tmp_path / "out", *(word for setting in quick for word in ("--set", setting))),
    )
    assert shown.exit_code == 0, shown.output
    assert "Held-out accuracy" in shown.output
    assert json.loads((tmp_path / "out" / "results.json").read_text())["options"]["objectives"]["ipo"] == {"beta": 0.2}
    assert "give a YAML file, or --data" in str(prefkit("compare").exception)
    wrong = prefkit("compare", "--data", pairs, "--objectives", "dpo", "--output", tmp_path / "n", "--flip", "a")
    assert "--flip takes numbers such as 0,0.1,0.2, got 'a'" in str(wrong.exception)
    assert "objectives is required" in str(prefkit("compare", "--data", pairs, "--output", tmp_path / "n").exception)
