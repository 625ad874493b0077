from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.training.tiny_domain import LetterScorer, comparisons
from torch.nn.functional import logsigmoid

from prefkit.comparisons import Companion, Comparison, Label, Ranking, Ratings
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.objectives import Companions, PairObjective, Part, Stateful, make_objective
from prefkit.training import FitResult, PairingOptions, Run, TrainingOptions, fit
from prefkit.training.targets import Selection, Selector

OPTIONS: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "save_every": 3, "progress": False}


def train(
    folder: Path,
    name: str = "run",
    *,
    objective: Any = "dpo",
    records: list[Comparison] | None = None,
    dropout: float = 0.1,
    scorer: LetterScorer | None = None,
    evaluation: list[Comparison] | None = None,
    resume: bool = False,
    **options: Any,
) -> FitResult:
    return fit(
        scorer or LetterScorer(dropout=dropout),
        comparisons(13) if records is None else records,
        objective if isinstance(objective, torch.nn.Module) else make_objective(objective),
        output=folder / name,
        options=TrainingOptions(**{**OPTIONS, **options}),
        evaluation=evaluation,
        cache=folder / "cache",
        resume=resume,
    )


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.model / "model.safetensors")


def test_loss_and_metrics_of_the_first_step_by_hand(tmp_path: Path) -> None:
    """One update of a model that is not its reference, against the definition of DPO, response by response."""
    scorer = LetterScorer(dropout=0.0)
    with torch.no_grad():
        scorer.layers[0].out.bias += 0.1  # type: ignore[union-attr,operator]  # a layer
    records = comparisons(4)

    def logp(record: Comparison, place: int, reference: bool) -> torch.Tensor:
        one = scorer.collate(
            [scorer.encode(replace(record, responses=(record.responses[place],), judgement=Label(True)))]
        )
        return (scorer.reference(one) if reference else scorer(one)).policy_logps[0].detach()

    change = torch.stack(
        [torch.stack([logp(r, place, False) - logp(r, place, True) for r in records]) for place in (0, 1)]
    )
    margin = 0.1 * (change[0] - change[1])
    by_hand = {
        "loss": -logsigmoid(margin).mean(),
        "chosen_logp_change": change[0].mean(),
        "rejected_logp_change": change[1].mean(),
        "kl": -change.mean(),
        "reward_margin": margin.mean(),
        "reward_accuracy": (margin > 0).float().mean(),
        "chosen_length": sum(len(r.responses[0]) for r in records) / 4,
        "rejected_length": sum(len(r.responses[1]) for r in records) / 4,
    }
    first = train(tmp_path, records=records, scorer=scorer, max_steps=1).run.metrics[0]
    expected = {name: float(value) for name, value in by_hand.items()}
    assert {name: first[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_training_moves_the_model_as_it_should(tmp_path: Path) -> None:
    result = train(tmp_path, epochs=4, evaluation=comparisons(5))
    first, last = result.run.metrics[0], result.metrics
    assert first["loss"] == pytest.approx(math.log(2), abs=0.05)
    assert last["loss"] < 0.3
    assert last["reward_margin"] > first["reward_margin"] + 1
    assert (result.steps, result.rows, result.skipped) == (16, 13, 0)
    evaluations = [line for line in result.run.metrics if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [4, 8, 12, 16]
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]


@pytest.mark.parametrize(("size", "accumulation"), [(2, 2), (1, 4)])
def test_accumulated_batches_equal_one_large_batch(tmp_path: Path, size: int, accumulation: int) -> None:
    # 13 rows: the last update of an epoch has a single one.
    whole = train(tmp_path, "whole", dropout=0.0, batch_size=4, epochs=2)
    parts = train(tmp_path, "parts", dropout=0.0, batch_size=size, gradient_accumulation=accumulation, epochs=2)
    for here, there in zip(parts.run.metrics, whole.run.metrics, strict=True):
        assert here.pop("epoch") <= 2 >= there.pop("epoch")
        assert here == pytest.approx(there, rel=1e-5, abs=1e-5)
    for name, tensor in weights(whole.run).items():
        torch.testing.assert_close(weights(parts.run)[name], tensor, rtol=1e-4, atol=1e-5)


class Dying(LetterScorer):
    """Interrupted in its ninth step."""

    def forward(self, inputs: Any) -> Any:
        self.steps = getattr(self, "steps", 0) + self.training
        if self.steps > 8:
            raise KeyboardInterrupt
        return super().forward(inputs)


def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    # Logging every 4 and saving every 3 updates: a checkpoint lies inside a window of metrics.
    options = {"epochs": 3, "log_every": 4, "evaluation": comparisons(3)}
    whole = train(tmp_path, "whole", **options)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "stopped", scorer=Dying(), **options)
    stopped = Run.open(tmp_path / "stopped")
    assert not stopped.finished
    result = train(tmp_path, "stopped", resume=True, **options)
    assert result.steps == 12

    def curve(run: Run) -> list[dict[str, Any]]:
        timing = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
        return [{name: value for name, value in line.items() if name not in timing} for line in run.metrics]

    assert curve(stopped) == curve(whole.run)
    assert all(torch.equal(tensor, weights(stopped)[name]) for name, tensor in weights(whole.run).items())


def test_the_state_of_an_objective_is_kept(tmp_path: Path) -> None:
    def counting() -> torch.nn.Module:
        objective = make_objective("dpo")
        objective.register_buffer("steps", torch.zeros(()))

        def count(module: Any, _: Any) -> None:
            module.steps += 1

        objective.register_forward_pre_hook(count)
        return objective

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, objective=counting(), scorer=Dying(), epochs=3)
    objective = counting()
    train(tmp_path, objective=objective, epochs=3, resume=True)
    assert objective.steps == 12


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    before = train(tmp_path, max_steps=3)
    saved, lines = weights(before.run), before.run.metrics
    after = train(tmp_path, max_steps=3, resume=True)
    assert (after.steps, after.run.metrics) == (3, lines)
    assert all(torch.equal(tensor, weights(after.run)[name]) for name, tensor in saved.items())


def test_a_run_is_resumed_with_the_options_and_data_it_was_begun_with(tmp_path: Path) -> None:
    train(tmp_path, max_steps=3)
    with pytest.raises(OptionError, match=r"was begun with training.learning_rate = 0.01, got 0.02"):
        train(tmp_path, max_steps=3, learning_rate=0.02, resume=True)
    with pytest.raises(PrefkitError, match="the data are not those"):
        train(tmp_path, max_steps=3, records=comparisons(12), resume=True)
    with pytest.raises(PrefkitError, match="the data are not those"):
        train(tmp_path, max_steps=3, records=[replace(r, weight=2.0) for r in comparisons(13)], resume=True)
    train(tmp_path, max_steps=3, keep_checkpoints=5, resume=True)


def test_a_folder_that_holds_another_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path, max_steps=1)
    with pytest.raises(PrefkitError, match="holds another run: continue it with --resume, or choose another folder"):
        train(tmp_path, max_steps=1)
    with pytest.raises(PrefkitError, match="holds no run"):
        Run.open(tmp_path / "cache")


def test_a_run_that_never_began_to_learn_may_be_begun_again(tmp_path: Path) -> None:
    with pytest.raises(PrefkitError, match="no comparison can be used"):
        train(tmp_path, records=[])
    assert train(tmp_path, max_steps=1).steps == 1


def test_resuming_where_nothing_was_begun_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert train(tmp_path, max_steps=1, resume=True).steps == 1
    assert "no good checkpoint" in caplog.text


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_rows_whose_loss_is_not_finite_are_named(tmp_path: Path, poison: str) -> None:
    class Poisoned(LetterScorer):
        def forward(self, inputs: Any) -> Any:
            scores = super().forward(inputs)
            # The fifth record's chosen response is the only one of its kind.
            bad = (inputs["ids"] == ord("?")).any(1)
            logps = torch.where(bad, torch.full_like(scores.policy_logps, torch.nan), scores.policy_logps)
            if poison == "gradient":
                logps = scores.policy_logps + (0 * scores.policy_logps).abs().sqrt() * bad
            return replace(scores, policy_logps=logps)

    records = comparisons(8)
    records[4] = Comparison.pair("say x:", "a?b", "ccc", source="pairs.jsonl", line=5)
    scorer = Poisoned(dropout=0.0)
    before = {name: weight.clone() for name, weight in scorer.named_parameters()}
    with pytest.raises(PrefkitError) as caught:
        train(tmp_path, scorer=scorer, records=records, shuffle=False, batch_size=8)
    named = [f"pairs.jsonl:{line}" for line in range(1, 9) if f"pairs.jsonl:{line} " in str(caught.value)]
    assert named == (["pairs.jsonl:5"] if poison == "loss" else [f"pairs.jsonl:{line}" for line in range(1, 9)])
    assert f"the {poison} is not finite at step 1" in str(caught.value)
    assert all(torch.equal(weight, before[name]) for name, weight in scorer.named_parameters())


def test_options_that_do_not_apply_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="eval_every applies only"):
        train(tmp_path, eval_every=2)
    with pytest.raises(OptionError, match="gradient_checkpointing does not apply"):
        train(tmp_path, gradient_checkpointing=True)
    with pytest.raises(OptionError, match="start them with torchrun"):
        train(tmp_path, fsdp=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError, match="trackio is not installed"):
        train(tmp_path, report_to=("trackio",))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("kto", {"loss", "kl", "chosen_logp_change", "rejected_logp_change"}),
        ("sft", {"loss", "logp", "length"}),
        ("simpo", {"loss", "chosen_logp", "rejected_logp", "reward_margin", "reward_accuracy"}),
        ("plackett_luce", {"loss", "kl", "chosen_logp_change", "reward_margin", "reward_accuracy"}),
    ],
)
def test_every_form_of_objective_trains(tmp_path: Path, objective: str, expected: set[str]) -> None:
    records = [
        Comparison((f"p{n}",), ("aeiou", "aei", "xyz", "xx")[: 2 + n % 3], Ranking((0, 1, 2, 2)[: 2 + n % 3]))
        for n in range(9)
    ]
    result = train(tmp_path, objective=objective, records=records, epochs=8, dropout=0.0)
    assert expected <= set(result.metrics)
    assert result.metrics["loss"] < result.run.metrics[0]["loss"] - 0.05


def test_mixed_precision_starts_at_the_reference(tmp_path: Path) -> None:
    scorer = LetterScorer(dropout=0.0, precision="bf16")
    result = train(tmp_path, scorer=scorer, max_steps=2)
    assert result.run.metrics[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert weights(result.run)["embed.weight"].dtype == torch.float32


def test_the_run_folder_tells_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["prefkit", "--set", "hub_token=abc", "hf_abcdefghijk", "data.jsonl"])
    long = Comparison.pair("p", "a" * 99, "b", source="pairs.jsonl", line=9)
    config = {"model": tmp_path / "m", "training": {"seed": 0}}
    result = fit(
        LetterScorer(),
        [*comparisons(3), long],
        make_objective("dpo"),
        evaluation=[*comparisons(2), replace(long, source="held_out.jsonl")],
        output=tmp_path / "run",
        options=TrainingOptions(progress=False),
        cache=tmp_path / "cache",
        config=config,
    )
    run = Run.open(tmp_path / "run")
    assert run.finished
    assert run.config == {"model": str(tmp_path / "m"), "training": {"seed": 0}}
    assert yaml.safe_load((run.folder / "config.yaml").read_text()) == run.config
    assert [(row["source"], row["line"]) for row in run.skipped] == [("pairs.jsonl", 9), ("held_out.jsonl", 9)]
    assert {row["problem"] for row in run.skipped} == {"99 letters, at most 64"}
    assert result.skipped == 2
    assert run.environment["command"] == ["prefkit", "--set", "hub_token=...", "...", "data.jsonl"]
    assert run.environment["packages"]["torch"] == torch.__version__
    assert (run.environment["seed"], run.environment["processes"]) == (0, 1)


def test_metrics_go_to_integrations_too(tmp_path: Path) -> None:
    train(tmp_path, max_steps=2, report_to=("tensorboard",))
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_nothing_in_a_run_folder_runs_code_when_it_is_read(tmp_path: Path) -> None:
    run = train(tmp_path, max_steps=3).run
    files = {path.name for path in run.folder.rglob("*") if path.is_file()}
    assert files == {
        "config.yaml", "environment.json", "metrics.jsonl", "skipped.jsonl", "manifest.json", "model.safetensors",
        "state.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
    }  # fmt: skip
    assert torch.load(run.checkpoints / "checkpoint-3" / "optimizer.pt", weights_only=True)["state"]


def test_workers_prepare_the_same_batches(tmp_path: Path) -> None:
    alone, helped = (train(tmp_path, f"{n}", dropout=0.0, workers=n, max_steps=2) for n in (0, 1))
    assert alone.run.metrics == helped.run.metrics


def test_the_terminal_is_told_how_to_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Terminated(LetterScorer):
        def forward(self, inputs: Any) -> Any:
            self.steps = getattr(self, "steps", 0) + 1
            if self.steps == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(inputs)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        train(tmp_path, scorer=Terminated(), epochs=2)
    assert caught.value.code == 143
    assert "the last checkpoint is that of step 3; go on with --resume" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4


class Taught(Stateful):
    """An auxiliary term with a weight of its own: the log-probability of its companions is to be explained by it."""

    row_figures = ("guess",)

    def __init__(self) -> None:
        super().__init__()
        self.guess = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    def prepare(self, annotators: Sequence[str]) -> None:
        assert list(annotators) == []

    def summary(self) -> dict[str, Any]:
        return {"seen": float(self.seen)}

    def forward(self, companions: Companions, pairs: int) -> torch.Tensor:
        error = (companions.policy_logps.detach() - self.guess) ** 2 * companions.label
        self.figures = {"guess": self.guess.detach().expand(pairs)}
        if self.training and torch.is_grad_enabled():
            self.seen += self.total(torch.tensor(float(len(error))))
        return error.new_zeros(pairs).index_add(0, companions.entry, error)


def echo(comparison: Comparison, chosen: int, rejected: int) -> list[Companion]:
    """Each response answers the other one."""
    sides = [str(comparison.responses[place]) for place in (chosen, rejected)]
    return [Companion(sides[0], sides[1], 2), Companion(sides[1], sides[0], 1)]


def taught() -> PairObjective:
    dpo = make_objective("dpo")
    assert isinstance(dpo, PairObjective)
    return PairObjective(
        dpo.reward, dpo.link, auxiliary=[Part("taught", Taught, companions=echo).made()], name="taught"
    )


def test_parts_with_weights_and_companions_are_trained_kept_and_restored(tmp_path: Path) -> None:
    whole = taught()
    result = train(tmp_path, objective=whole, epochs=2)
    part = whole.stateful[0]
    assert isinstance(part, Taught)
    assert float(part.guess.detach()) < -0.02
    assert float(part.seen) == 2 * 13 * 2
    assert json.loads((result.run.folder / "objective.json").read_text()) == {"taught": {"seen": 52.0}}
    rows = (result.run.folder / "rows.csv").read_text().splitlines()
    assert rows[0] == "row,place,guess"
    assert len(rows) == 14
    assert rows[1].startswith("1,pairs.jsonl:1,")
    assert "guess" in result.metrics

    resumed = taught()
    (tmp_path / "run" / "model" / "model.safetensors").unlink()
    last = sorted((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))[-1]
    shutil.rmtree(last)
    train(tmp_path, objective=resumed, epochs=2, resume=True)
    again = resumed.stateful[0]
    assert isinstance(again, Taught)
    assert torch.equal(again.guess, part.guess)
    assert torch.equal(again.seen, part.seen)


def test_an_objective_with_weights_is_not_sharded(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="objective 'taught' trains weights of its own"):
        train(tmp_path, objective=taught(), fsdp=True)


def test_margins_come_from_rewards_or_ratings(tmp_path: Path) -> None:
    bare = comparisons(1)[0]
    given = replace(bare, extra={"rewards": [0.5, -1.0]})
    rated = replace(bare, judgement=Ratings((4.0, 1.0)))
    short = replace(bare, extra={"rewards": [0.5]})
    selector = Selector("pairs", frozenset({"margins"}), PairingOptions())
    found = list(selector([given, rated, short, bare]))
    assert [one.entries["margins"] for one in found if isinstance(one, Selection)] == [[1.5], [3.0]]
    refused = [one for one in found if isinstance(one, RecordError)]
    assert [error.field for error in refused] == ["rewards", "rewards"]
