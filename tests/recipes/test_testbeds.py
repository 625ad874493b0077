from __future__ import annotations

import pytest
import torch

from prefkit.objectives import make_objective
from prefkit.recipes.testbeds import LogLinearBandit, bradley_terry, descend, log_linear_scores, minimise


def world(seed: int = 0) -> LogLinearBandit:
    return LogLinearBandit.sample(torch.Generator().manual_seed(seed), d=4, prompts=400, k=3)


def test_parameters_have_the_norm_that_was_asked_for() -> None:
    assert world().theta.norm().item() == pytest.approx(2.5)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_labels_follow_bradley_terry_and_the_flip_rate(rate: float) -> None:
    bandit = world()
    chosen, rejected = bandit.pairs(100_000, rate, torch.Generator().manual_seed(1))
    margin = (chosen - rejected) @ bandit.theta
    # Among pairs with |margin| near m, the chosen one is truly better in a share (1 - rate) s(m) + rate s(-m).
    near = (margin.abs() - 1.0).abs() < 0.1
    right = torch.sigmoid(torch.tensor(1.0)).item()
    expected = (1 - rate) * right + rate * (1 - right)
    share = (margin[near] > 0).double().mean().item()
    assert share == pytest.approx(expected, abs=4 * (0.25 / near.sum().item()) ** 0.5)


def test_flip_rates_may_be_one_a_pair() -> None:
    bandit = world()
    rates = torch.tensor([0.0, 1.0]).repeat_interleave(5000)
    chosen, rejected = bandit.pairs(10_000, rates, torch.Generator().manual_seed(1))
    better = ((chosen - rejected) @ bandit.theta > 0).double()
    assert better[:5000].mean() > 0.7
    assert better[5000:].mean() < 0.3


def test_accuracy_of_the_true_and_of_the_opposite_order() -> None:
    bandit = world()
    assert bandit.accuracy(2 * bandit.theta) == 1
    assert bandit.accuracy(-bandit.theta) == 0


def test_expected_reward_of_the_indifferent_and_of_the_greedy_policy() -> None:
    bandit = world()
    rewards = bandit.actions @ bandit.theta
    assert bandit.expected_reward(torch.zeros(4, dtype=torch.float64)) == pytest.approx(rewards.mean().item())
    greedy = rewards.max(dim=1).values.mean().item()
    assert bandit.expected_reward(1000 * bandit.theta) == pytest.approx(greedy, rel=1e-3)


def test_dpo_on_exact_probabilities_finds_the_reward() -> None:
    bandit = world()
    first, second = torch.randn(2, 500, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    probabilities = torch.sigmoid((first - second) @ bandit.theta)
    objective = make_objective({"kind": "dpo", "beta": 1.0})

    def loss(theta: torch.Tensor) -> torch.Tensor:
        scores = log_linear_scores(theta, first, second)
        return objective(type(scores)(**{**vars(scores), "probabilities": probabilities})).mean()

    torch.testing.assert_close(minimise(loss, 4), bandit.theta, rtol=1e-4, atol=1e-4)


def test_minimiser_of_a_parabola() -> None:
    target = torch.tensor([1.0, -2.0], dtype=torch.float64)
    torch.testing.assert_close(minimise(lambda theta: ((theta - target) ** 2).sum(), 2), target)


def test_better_responses_win_as_often_as_bradley_terry_says() -> None:
    first, second = torch.zeros(20_000, dtype=torch.long), torch.ones(20_000, dtype=torch.long)
    reward = torch.tensor([1.0, 0.0], dtype=torch.float64)
    chosen, rejected = bradley_terry(first, second, reward, torch.Generator().manual_seed(0))
    assert (chosen + rejected == 1).all()
    assert (chosen == 0).double().mean().item() == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=0.015)


def test_descent_reaches_the_minimum_step_by_step() -> None:
    target, at = torch.tensor([1.0, -2.0]), torch.zeros(2, requires_grad=True)
    steps = list(descend([at], lambda: ((at - target) ** 2).sum(), steps=300, learning_rate=0.05))
    assert steps == list(range(1, 301))
    torch.testing.assert_close(at.detach(), target, rtol=0, atol=1e-3)
