"""How sure a reward model may be: ensembles of heads, dropout, temperatures, and the folders that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prefkit.comparisons import Comparison, Label, Probability
from prefkit.diagnostics import evaluate
from prefkit.errors import OptionError
from prefkit.language import (
    EnsembleHead,
    ModelOptions,
    RewardScorer,
    draw_rewards,
    load_reward,
    log_odds_table,
    pack,
    set_temperature,
    spread_of,
)
from prefkit.objectives import make_objective, odds_among
from prefkit.training import TrainingOptions, fit
from tests.language.encoders import build_encoder, joining, save
from tests.language.models import build, words
from tests.language.test_heads import cycles, options, spread, tastes
from tests.language.test_scorer import some_groups

PAIRS = cycles(2)


@pytest.mark.parametrize("head", [{"kind": "mlp", "hidden": 4}, {"kind": "general", "dim": 4}])
def test_an_ensemble_says_the_mean_of_its_members(head: Any) -> None:
    scorer = RewardScorer(build("llama"), words(), options(**head), ensemble=3)
    spread(scorer.head)
    assert scorer.members == 3
    inputs = pack(some_groups(), whole=True)
    scores = scorer(inputs)
    assert scores.members is not None
    torch.testing.assert_close(scores.policy_logps, scores.members.mean(1))
    assert isinstance(scorer.head, EnsembleHead)
    alone = []
    for place, member in enumerate(scorer.head.heads):
        single = RewardScorer(build("llama"), words(), member)(inputs)
        torch.testing.assert_close(scores.members[:, place], single.policy_logps, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(scores.each_member()[place].policy_logps, single.policy_logps, rtol=1e-4, atol=1e-5)
        alone.append(single)
    assert float(scores.members.std(1).min()) > 0 or head["kind"] == "general"
    if head["kind"] == "general":
        first = slice(0, 3)
        tables = torch.stack([odds_among(single.factors[first]) for single in alone])
        torch.testing.assert_close(odds_among(scores.factors[first]), tables.mean(0), rtol=1e-4, atol=1e-5)


def base(folder: Path) -> str:
    return save(build("llama"), words(), folder)


def test_each_member_has_its_own_weights_of_the_rows(tmp_path: Path) -> None:
    path = base(tmp_path / "base")
    scorer = load_reward(ModelOptions(kind="reward", path=path, trained="head", ensemble=3))
    how = TrainingOptions(
        **{"max_steps": 1, "batch_size": 6, "learning_rate": 1.0, "optimizer": "sgd", "schedule": "constant"},
        **{"warmup": 0, "seed": 5, "max_grad_norm": 1e9, "save_every": 0, "progress": False},
    )
    fit(scorer, PAIRS, make_objective("reward_model"), output=tmp_path / "run", options=how, cache=tmp_path)
    drawn = torch.empty(3, 6).exponential_(generator=torch.Generator().manual_seed(5))
    weights = drawn / drawn.mean(1, keepdim=True)
    states = scorer.last_states(scorer.collate([scorer.encode(pair) for pair in PAIRS])).view(6, 2, -1)
    # One step from 0 along minus the gradient of the mean over rows and members of w log(1 + exp(-d)).
    expected = weights @ (states[:, 0] - states[:, 1]) / 2 / 6 / 3
    got = torch.stack([member.weight.detach() for member in scorer.head.heads])
    torch.testing.assert_close(got, expected.detach(), rtol=1e-3, atol=1e-5)


def test_an_ensemble_is_saved_and_read(tmp_path: Path) -> None:
    people = {"kind": "ideal_points", "projector": "mlp0"}
    for head in ({"kind": "scalar"}, {"kind": "general", "tau": "learned"}, people):
        scorer = RewardScorer(build("llama"), words(), options(**head), ensemble=2, temperature=0.5)
        scorer.meet(["l1", "r1"])
        spread(scorer.head)
        folder = tmp_path / head["kind"]
        scorer.save(folder)
        again = load_reward(str(folder))
        assert (again.members, again.temperature) == (2, 0.5)
        inputs = scorer.collate([scorer.encode(record) for record in tastes(["l1"], 2)])
        one, two = scorer(inputs), again(inputs)
        assert torch.equal(one.members, two.members)
        assert one.factors is None or torch.equal(one.factors, two.factors)


def test_a_part_that_learns_is_not_taught_once_a_member(tmp_path: Path) -> None:
    scorer = RewardScorer(build("llama"), words(), ensemble=2)
    objective = make_objective({"kind": "reward_model", "noise": "latent"})
    with pytest.raises(OptionError, match="has a part that learns, 'latent', and an ensemble would teach it once a"):
        fit(scorer, PAIRS, objective, output=tmp_path / "run", cache=tmp_path)


def test_the_spread_is_of_differences() -> None:
    draws = torch.tensor([[1.0, 2.0], [11.0, 12.0], [5.0, 7.0]])
    centred = torch.tensor([[-0.5, 0.5], [-0.5, 0.5], [-1.0, 1.0]])
    torch.testing.assert_close(spread_of(draws), centred.std(0))
    torch.testing.assert_close(spread_of(draws[:, :1]), draws[:, :1].std(0))


def with_dropout(folder: Path, rate: float = 0.3) -> str:
    model = build_encoder("bert")
    model.config.hidden_dropout_prob = rate
    scorer = RewardScorerOf(folder / "base", model)
    scorer.save(folder / "rm")
    return str(folder / "rm")


def RewardScorerOf(folder: Path, model: Any) -> RewardScorer:  # reads as what it makes
    scorer = load_reward(save(model, joining("bert"), folder))
    spread(scorer.head)
    return scorer


def test_passes_with_dropout_vary_and_a_seed_fixes_them(tmp_path: Path) -> None:
    scorer = load_reward(ModelOptions(kind="reward", path=with_dropout(tmp_path), dropout=True)).eval()
    encoded = [scorer.encode(record) for record in tastes(["l1"], 2)]
    draws = draw_rewards(scorer, encoded, samples=4, seed=1)
    assert draws.shape == (4, 4)
    assert float(draws.std(0).min()) > 0
    assert torch.equal(draw_rewards(scorer, encoded, samples=4, seed=1), draws)
    assert not torch.equal(draw_rewards(scorer, encoded, samples=4, seed=2), draws)
    assert not any(module.training for module in scorer.modules())
    many = draw_rewards(scorer, encoded, samples=300)
    plain = scorer(scorer.collate(encoded)).policy_logps
    assert float((many.mean(0) - plain).abs().max()) < 5 * float(many.std(0).max())


def test_draws_of_what_cannot_vary_are_refused(tmp_path: Path) -> None:
    scorer = RewardScorer(build("llama"), words()).eval()
    encoded = [scorer.encode(PAIRS[0])]
    with pytest.raises(OptionError, match=r"has one head: give samples, .* or train it with model\.ensemble"):
        draw_rewards(scorer, encoded)
    with pytest.raises(OptionError, match="no dropout, so that all samples would be the same"):
        draw_rewards(scorer, encoded, samples=3)
    with pytest.raises(OptionError, match="samples must be at least 2, got 1"):
        draw_rewards(scorer, encoded, samples=1)
    with pytest.raises(OptionError, match=r"model\.ensemble must be at least 2, got 1"):
        ModelOptions.parse({"kind": "reward", "ensemble": 1}, "model")
    with pytest.raises(OptionError, match="ensemble applies only to `kind: reward`"):
        ModelOptions.parse({"ensemble": 2}, "model")
    with pytest.raises(OptionError, match="an ensemble is made of options of a head"):
        RewardScorer(build("llama"), words(), torch.zeros(32), ensemble=2)
    classifier = save(build_encoder("llama", labels=1), words(), tmp_path)
    with pytest.raises(OptionError, match=r"model\.ensemble is for a new reward model"):
        load_reward(ModelOptions(kind="reward", path=classifier, ensemble=2))


# -- temperature -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [{"kind": "mlp"}, {"kind": "general"}])
def test_a_temperature_divides_log_odds(head: Any, tmp_path: Path) -> None:
    scorer = RewardScorer(build("llama"), words(), options(**head)).eval()
    spread(scorer.head)
    scorer.save(tmp_path)
    set_temperature(tmp_path, 2.0)
    set_temperature(tmp_path, 2.0)  # on top of the first
    again = load_reward(str(tmp_path)).eval()
    assert again.temperature == 4.0
    np.testing.assert_allclose(log_odds_table(again, PAIRS[0]) * 4, log_odds_table(scorer, PAIRS[0]), rtol=1e-5)
    for bad in (0, -1.0, float("nan")):
        with pytest.raises(OptionError, match="temperature must be greater than 0"):
            set_temperature(tmp_path, bad)
        with pytest.raises(OptionError, match="temperature must be greater than 0"):
            RewardScorer(build("llama"), words(), temperature=bad)


def test_a_classifier_has_a_temperature_too(tmp_path: Path) -> None:
    path = save(build_encoder("llama", labels=1), words(), tmp_path / "hub")
    scorer = load_reward(path)
    scorer.save(tmp_path / "own")
    set_temperature(tmp_path / "own", 5.0)
    again = load_reward(str(tmp_path / "own"))
    inputs = scorer.collate([scorer.encode(pair) for pair in PAIRS])
    torch.testing.assert_close(again(inputs).policy_logps * 5, scorer(inputs).policy_logps)


def test_calibration_is_of_log_odds_and_soft_labels() -> None:
    head = torch.randn(32, generator=torch.Generator().manual_seed(0))
    scorer = RewardScorer(build("llama"), words(), head)
    records = [*PAIRS, Comparison(("w4",), ("w5", "w6"), Probability(0.3))]
    found = evaluate(scorer, records, per_token=False)
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, [1.0] * 6 + [0.7], rtol=1e-6)
    rewards: Tensor = scorer(scorer.collate([scorer.encode(record) for record in records])).policy_logps
    gaps = (rewards[0::2] - rewards[1::2]).detach().double().numpy()
    gaps[-1] *= -1  # the second response is the more probable one
    np.testing.assert_allclose(found.log_odds, gaps, rtol=1e-4, atol=1e-4)
    odds, p = found.log_odds / 3, found.probabilities
    likelihood = -(p * np.logaddexp(0, -odds) + (1 - p) * np.logaddexp(0, odds)).mean()
    assert found.calibration(3.0).log_likelihood.mean == pytest.approx(likelihood)


def test_a_single_response_has_a_reward(tmp_path: Path) -> None:
    scorer = RewardScorer(build("llama"), words(), options(kind="mlp"), ensemble=2).eval()
    draws = draw_rewards(scorer, [scorer.encode(Comparison(("w4",), ("w5",), Label(True)))])
    assert draws.shape == (2, 1)
    assert float(spread_of(draws)) > 0
    scorer.save(tmp_path)
    assert json.loads((tmp_path / "reward.json").read_text())["ensemble"] == 2
