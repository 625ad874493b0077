"""MetaRM in the loop against `meta_step`, which the conformance vectors check."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.func import functional_call
from torch.nn.functional import logsigmoid

from prefkit.comparisons import Comparison, Label, Ratings
from prefkit.errors import OptionError, PrefkitError
from prefkit.language import ModelOptions, RewardScorer, load_reward, load_scorer
from prefkit.objectives import make_objective, meta_step, metarm_difference
from prefkit.training import FitResult, MetaLearning, MetaOptions, TrainingOptions, fit

PAIRS = [Comparison.pair("Why?", f" Because of {word}.", f" No {word}.") for word in ("rain", "money", "law", "people")]
ASKED = [
    Comparison(("Who?",), (" You.", " Me, of course.", " They"), Ratings((0.0,) * 3)),
    Comparison(("When?",), (" Now.", " Never again."), Ratings((0.0,) * 2)),
]
PLAIN = {"optimizer": "sgd", "learning_rate": 0.05, "warmup": 0, "schedule": "constant", "max_grad_norm": 1e9}


def scorer() -> RewardScorer:
    made = load_reward(ModelOptions(path="builtin", kind="reward"))
    with torch.no_grad():
        made.head.weight.copy_(torch.linspace(-0.3, 0.3, made.width))
    return made


def train(
    folder: Path, meta: MetaLearning | None, model: RewardScorer | None = None, resume: bool = False, **options: Any
) -> FitResult:
    how = {**PLAIN, "batch_size": 4, "epochs": 3, "shuffle": False, "progress": False, "log_every": 1, **options}
    return fit(
        model or scorer(),
        PAIRS,
        make_objective("reward_model"),
        output=folder,
        options=TrainingOptions(**how),
        cache=folder.parent / "cache",
        meta=meta,
        resume=resume,
    )


def weights(result: FitResult) -> dict[str, torch.Tensor]:
    return load_file(result.run.model / "model.safetensors") | load_file(result.run.model / "head.safetensors")


def test_updates_are_those_of_the_meta_step(tmp_path: Path) -> None:
    options = MetaOptions(eta=0.5, batch_size=2)
    model = scorer()
    result = train(tmp_path / "run", MetaLearning(ASKED, options), model)

    plain = scorer()
    encoded = {id(record): plain.encode(record) for record in (*PAIRS, *ASKED)}

    def rewards(given: Any, records: Sequence[Comparison]) -> torch.Tensor:
        found = functional_call(plain, given, (plain.collate([encoded[id(record)] for record in records]),))
        return found.policy_logps

    def loss(given: Any) -> torch.Tensor:
        first, second = rewards(given, PAIRS).view(-1, 2).unbind(1)
        return -logsigmoid(first - second).mean()

    def difference(given: Any) -> torch.Tensor:
        parts = torch.split(rewards(given, ASKED), [3, 2])
        return torch.cat([metarm_difference(part[None]) for part in parts]).mean()

    moved = {name: weight.detach() for name, weight in plain.named_parameters() if weight.requires_grad}
    differences = []
    for _ in range(3):
        step = meta_step(moved, loss, difference, eta=0.5, alpha=0.05)
        differences.append(float(step.difference))
        moved = step.weights
    for name, weight in model.named_parameters():
        if name in moved:
            torch.testing.assert_close(weight.detach(), moved[name], rtol=1e-4, atol=1e-6)
    logged = [line["meta_difference"] for line in result.run.metrics if "loss" in line]
    assert logged == pytest.approx(differences, abs=1e-5)
    plainly = weights(train(tmp_path / "plain", None))
    found = weights(result)
    assert max(float((found[name] - plainly[name]).abs().max()) for name in found) > 1e-4


def test_no_step_is_plain_training_and_a_run_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    plain = weights(train(tmp_path / "plain", None))
    still = weights(train(tmp_path / "still", MetaLearning(ASKED, MetaOptions(eta=0.0))))
    assert all(torch.equal(plain[name], still[name]) for name in plain)

    def meta() -> MetaLearning:
        return MetaLearning(ASKED, MetaOptions(eta=0.3, batch_size=1), seed=3)

    whole = weights(train(tmp_path / "whole", meta(), save_every=1))
    part = train(tmp_path / "part", meta(), save_every=1)
    for left in (tmp_path / "part" / "checkpoints").iterdir():
        if not left.name.endswith("-1"):
            shutil.rmtree(left)
    resumed = weights(train(tmp_path / "part", meta(), save_every=1, resume=True))
    assert part.steps == 3
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_it_refuses(tmp_path: Path) -> None:
    alone = Comparison(("Who?",), (" You.",), Label(True), source="f", line=3)
    with pytest.raises(PrefkitError, match=r"no comparison can be used; the first problem: f:3: field 'responses'"):
        train(tmp_path / "a", MetaLearning([alone], MetaOptions()))
    with pytest.raises(OptionError, match="meta is for reward models"):
        fit(
            load_scorer(ModelOptions(path="builtin", reference="builtin")),
            PAIRS,
            make_objective("dpo"),
            output=tmp_path / "b",
            meta=MetaLearning(ASKED, MetaOptions()),
        )
    with pytest.raises(OptionError, match="eta must be at least 0"):
        MetaOptions.parse({"eta": -1}, "meta")
