from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch

from prefkit.assets import comparisons_path
from prefkit.comparisons import load_comparisons
from prefkit.language import load_scorer
from prefkit.objectives import make_objective
from prefkit.recipes.lcpo import calibration_error, train
from prefkit.recipes.testbeds import LogLinearBandit
from prefkit.training import TrainingOptions, fit


def test_reliabilities_of_annotators_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    world = LogLinearBandit.sample(generator, d=4, norm=4.0, prompts=200, k=2)
    true = torch.tensor([0.95, 0.65])
    annotators = torch.arange(2000) % 2
    chosen, rejected = world.pairs(2000, 1 - true[annotators], generator)
    theta, found = train({"kind": "lcpo", "per_annotator": True}, chosen, rejected, annotators, seed=0)
    assert (found - true).abs().max() < 0.08
    assert world.accuracy(theta) > 0.9
    assert calibration_error(world, theta) < 0.08


def test_calibration_error_of_the_truth_and_of_indifference() -> None:
    world = LogLinearBandit.sample(torch.Generator().manual_seed(0), d=3, prompts=5, k=2)
    assert calibration_error(world, world.theta) == 0
    margin = (world.actions[:, 0] - world.actions[:, 1]) @ world.theta
    by_hand = (torch.sigmoid(margin) - 0.5).abs().mean().item()
    assert calibration_error(world, torch.zeros(3, dtype=torch.float64)) == pytest.approx(by_hand)


def test_it_trains_the_built_in_model(tmp_path: Path) -> None:
    records = list(islice(load_comparisons(str(comparisons_path("train"))), 4))
    result = fit(
        load_scorer("builtin"),
        records,
        make_objective("lcpo"),
        output=tmp_path / "run",
        options=TrainingOptions(max_steps=5, batch_size=4, learning_rate=1e-3, warmup=0, log_every=1, progress=False),
        cache=tmp_path / "cache",
    )
    first, last = result.run.metrics[0], result.metrics
    assert last["loss"] < first["loss"] - 0.05
    assert last["label_confidence"] > 0.9
    found = json.loads((result.run.folder / "objective.json").read_text())
    assert found["latent"]["reliability"] > 0.9
