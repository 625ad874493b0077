from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from prefkit import diffusion as d
from prefkit.errors import OptionError

DOUBLE = torch.float64


def test_uncertainty_falls_where_there_are_data() -> None:
    features = torch.tensor([[1.0, 0.0]] * 20 + [[0.0, 1.0]], dtype=DOUBLE)
    found = d.RewardUncertainty(features, 0.1)
    axes = torch.eye(2, dtype=DOUBLE)
    torch.testing.assert_close(found.norm(axes), torch.tensor([20.1, 1.1], dtype=DOUBLE) ** -0.5)
    torch.testing.assert_close(found.norm(axes, "released"), 1 / torch.tensor([20.1, 1.1], dtype=DOUBLE))


def test_the_fit_is_ridge_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 4, generator=generator, dtype=DOUBLE)
    rewards = torch.randn(30, generator=generator, dtype=DOUBLE)
    weights = d.RewardUncertainty(features, 0.5).fit(rewards).requires_grad_()
    ((features @ weights - rewards) ** 2).sum().add(0.5 * weights.square().sum()).backward()
    torch.testing.assert_close(weights.grad, torch.zeros(4, dtype=DOUBLE), atol=1e-12, rtol=0)


def test_the_bound_without_noise_is_that_of_the_penalty() -> None:
    found = d.RewardUncertainty(torch.ones(3, 1, dtype=DOUBLE), 0.25)
    query = torch.tensor([[2.0]], dtype=DOUBLE)
    assert found.bound(query, sigma=0.0, S=3.0, delta=0.1).item() == pytest.approx(2 / math.sqrt(3.25) * 0.5 * 3)


def test_a_reward_that_is_no_number_counts_for_nothing() -> None:
    found = d.normalised_advantages(torch.tensor([1.0, math.nan, 3.0]))
    assert found[1] == 0
    torch.testing.assert_close(found[[0, 2]], d.normalised_advantages(torch.tensor([1.0, 3.0])))


def test_the_clip_is_pessimistic_and_the_factor_multiplies() -> None:
    logs = torch.tensor([0.5, -0.5, 0.5, -0.5], dtype=DOUBLE, requires_grad=True)
    zero, gamma = torch.zeros(4, dtype=DOUBLE), torch.full((4,), 2.0, dtype=DOUBLE)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=DOUBLE)
    found = d.amplified_clipped_loss(logs, zero, advantages, gamma, clip_range=0.1)
    expected = [-2 * 1.1, -2 * math.exp(-0.5), 2 * math.exp(0.5), 2 * 0.9]
    assert found.losses.tolist() == pytest.approx(expected)
    found.losses.sum().backward()
    assert logs.grad is not None
    assert (logs.grad != 0).tolist() == [False, True, True, False]


ONE = torch.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: d.RewardUncertainty(torch.ones(3, 2), 0.0), "lam must be greater than 0"),
        (lambda: d.RewardUncertainty(torch.ones(3, 2) / 0, 1.0), "features must be finite"),
        (lambda: d.RewardUncertainty(torch.ones(3, 2)).norm(torch.ones(1, 3)), "must have 2 dimensions, got 3"),
        (lambda: d.RewardUncertainty(torch.ones(3, 2)).norm(torch.ones(1, 2), "l2"), "unknown norm 'l2'"),
        (
            lambda: d.RewardUncertainty(torch.ones(3, 2)).bound(torch.ones(1, 2), sigma=1.0, S=1.0, delta=1.0),
            r"delta must lie in \(0, 1\)",
        ),
        (lambda: d.amplification(-ONE), "at least 0"),
        (lambda: d.amplification(ONE, lo=2.0, hi=1.0), "0 <= lo <= hi"),
        (lambda: d.normalised_advantages(torch.ones(1)), "at least two rewards, got 1"),
        (lambda: d.normalised_advantages(torch.full((4,), math.nan)), "at least two rewards, got 0"),
        (lambda: d.amplified_clipped_loss(ONE, ONE, ONE, 0 * ONE), "gamma must be greater than 0"),
        (lambda: d.amplified_clipped_loss(ONE, ONE, ONE, ONE, clip_range=0.0), "clip_range must be greater"),
        (lambda: d.amplified_clipped_loss(ONE, ONE, ONE[:2], ONE), "must be of one shape"),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call()
