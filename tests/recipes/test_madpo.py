from __future__ import annotations

import logging
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from prefkit.assets import comparisons_path
from prefkit.comparisons import Comparison, load_comparisons
from prefkit.errors import PrefkitError
from prefkit.language import load_scorer
from prefkit.objectives import make_objective
from prefkit.recipes.madpo import World, target_distances
from prefkit.training import FitResult, TrainingOptions, fit


def test_minimisers_lie_near_their_targets() -> None:
    ours, plain = target_distances({"c_max": 3.0, "tau": 2.0}, torch.Generator().manual_seed(0))
    assert ours < 0.15 < plain


def world() -> World:
    return World.sample(torch.Generator().manual_seed(0), prompts=4, k=3, d=2)


def test_labels_follow_bradley_terry() -> None:
    bandit = world()
    prompts, chosen, rejected = bandit.pairs(20_000, torch.Generator().manual_seed(1)).unbind(1)
    assert (chosen != rejected).all()
    here = (prompts == 0) & (chosen + rejected == 1)
    share = (chosen[here] == 0).double().mean().item()
    expected = torch.sigmoid(bandit.rewards[0, 0] - bandit.rewards[0, 1]).item()
    assert share == pytest.approx(expected, abs=4 * (0.25 / int(here.sum())) ** 0.5)


def test_a_fitted_reward_model_finds_the_margins() -> None:
    bandit = world()
    pairs = bandit.pairs(20_000, torch.Generator().manual_seed(1))
    prompts, chosen, rejected = pairs.unbind(1)
    true = bandit.rewards[prompts, chosen] - bandit.rewards[prompts, rejected]
    assert (bandit.margins(pairs) - true).abs().max() < 0.3


def test_reward_of_the_indifferent_and_of_the_best_policy() -> None:
    bandit = world()
    assert bandit.reward(torch.full((4, 3), 1 / 3, dtype=torch.float64).log()) == pytest.approx(
        bandit.rewards.mean().item()
    )
    greedy = (1000 * bandit.rewards).log_softmax(1)
    assert bandit.reward(greedy) == pytest.approx(bandit.rewards.max(1).values.mean().item())


def train(folder: Path, records: list[Comparison], kind: str = "madpo") -> FitResult:
    return fit(
        load_scorer("builtin"),
        records,
        make_objective(kind),
        output=folder / "run",
        options=TrainingOptions(max_steps=5, batch_size=4, learning_rate=1e-3, warmup=0, log_every=1, progress=False),
        cache=folder / "cache",
    )


def rewarded(scale: float) -> list[Comparison]:
    records = islice(load_comparisons(str(comparisons_path("train"))), 4)
    return [replace(record, extra={"rewards": [scale, 0.0]}) for record in records]


def test_it_trains_the_built_in_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result = train(tmp_path, rewarded(1.0))
    assert result.metrics["loss"] < result.run.metrics[0]["loss"] - 0.05
    # At the reference the loss is w log 2, with w = sigmoid(c) / sigmoid(1), c = 0.5 + 1.5 / (1 + 2 e^(1 - ln 999)).
    assert result.run.metrics[0]["loss"] == pytest.approx(1.2042 * 0.693147, abs=2e-3)
    assert "reward margins" not in caplog.text


def test_the_baseline_trains_the_built_in_model(tmp_path: Path) -> None:
    result = train(tmp_path, rewarded(1.0), "beta_dpo")
    assert result.metrics["loss"] < result.run.metrics[0]["loss"] - 0.05
    assert result.metrics["kept"] == 0.75


def test_data_without_rewards_are_refused_with_the_field(tmp_path: Path) -> None:
    with pytest.raises(PrefkitError, match="field 'rewards': the objective needs a reward model's reward of each"):
        train(tmp_path, list(islice(load_comparisons(str(comparisons_path("train"))), 2)))
