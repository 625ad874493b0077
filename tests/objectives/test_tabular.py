from __future__ import annotations

from typing import Any

import pytest
import torch

from prefkit.errors import OptionError
from prefkit.objectives import (
    calibrate_reward,
    calibration_kl_identity,
    optimal_policy,
    optimal_policy_and_value,
    vpo_policy_objective,
    vpo_reward_objective,
)
from prefkit.recipes.testbeds import minimise

GENERATOR = torch.Generator().manual_seed(0)


def table(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


REWARD, LOG_REF, CALIBRATION = table(3, 4), table(3, 4).log_softmax(1), table(3, 4).softmax(1)
RHO = table(3).softmax(0)
PAIRS = (torch.tensor([0, 1, 2, 0]), torch.tensor([1, 0, 3, 2]), torch.tensor([0, 2, 1, 3]))


def test_no_other_policy_is_worth_more() -> None:
    beta = 0.7
    log_policy, best = optimal_policy_and_value(REWARD, LOG_REF, RHO, beta=beta)

    def worth(logs: torch.Tensor) -> torch.Tensor:
        return (RHO * (logs.exp() * (REWARD - beta * (logs - LOG_REF))).sum(1)).sum()

    torch.testing.assert_close(worth(log_policy), best)
    for scale in (0.01, 1.0):
        assert worth((log_policy + scale * table(3, 4)).log_softmax(1)) < best


def test_calibrated_rewards_have_mean_0_under_the_calibration_distribution() -> None:
    reward, shift = calibrate_reward(REWARD, CALIBRATION, RHO)
    assert (RHO[:, None] * CALIBRATION * reward).sum().item() == pytest.approx(0)
    torch.testing.assert_close(reward + shift, REWARD)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_forms_in_reward_and_in_policy_are_one_objective(sign: int) -> None:
    options = {"beta": 0.4, "alpha": 2.0, "sign": sign}
    in_reward = vpo_reward_objective(REWARD, LOG_REF, RHO, CALIBRATION, *PAIRS, **options)
    policy = optimal_policy(calibrate_reward(REWARD, CALIBRATION, RHO).reward, LOG_REF, beta=0.4)
    in_policy = vpo_policy_objective(policy, LOG_REF, RHO, CALIBRATION, *PAIRS, **options)
    torch.testing.assert_close(in_policy.loss, in_reward.loss)
    torch.testing.assert_close(in_policy.nll, in_reward.nll)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_value_of_the_estimate_moves_with_the_strength_of_the_term(sign: int) -> None:
    def estimated_value(alpha: float) -> float:
        def loss(free: torch.Tensor) -> torch.Tensor:
            reward = 2 * torch.tanh(free.reshape(3, 4) + 0.1 * REWARD)
            return vpo_reward_objective(
                reward, LOG_REF, RHO, CALIBRATION, *PAIRS, beta=0.5, alpha=alpha, sign=sign
            ).loss

        reward = 2 * torch.tanh(minimise(loss, 12).reshape(3, 4) + 0.1 * REWARD)
        return vpo_reward_objective(
            reward, LOG_REF, RHO, CALIBRATION, *PAIRS, beta=0.5, alpha=alpha, sign=sign
        ).value.item()

    values = [sign * estimated_value(alpha) for alpha in (0.0, 1.0, 4.0)]
    assert values == sorted(values)
    assert values[-1] > values[0] + 0.01


def test_the_mean_log_ratio_is_a_difference_of_divergences() -> None:
    policy = table(3, 4).log_softmax(1)
    ratio, reference, own = calibration_kl_identity(policy, LOG_REF, CALIBRATION)
    torch.testing.assert_close(ratio, reference - own)
    expected = torch.nn.functional.kl_div(LOG_REF, CALIBRATION, reduction="none").sum(1)
    torch.testing.assert_close(reference, expected)


def test_a_response_that_is_never_drawn_adds_nothing_to_a_divergence() -> None:
    certain = torch.eye(4, dtype=torch.float64)[:3]
    found = calibration_kl_identity(LOG_REF, LOG_REF, certain)
    torch.testing.assert_close(found.kl_to_policy, -LOG_REF.diagonal())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibrate_reward(REWARD, 2 * CALIBRATION, RHO), "calibration must hold probabilities that sum to 1"),
        (lambda: calibrate_reward(REWARD, CALIBRATION, RHO / 2), "rho must hold probabilities that sum to 1"),
        (lambda: optimal_policy_and_value(REWARD, LOG_REF, -RHO, beta=1.0), "rho must hold probabilities"),
        (lambda: optimal_policy(REWARD, LOG_REF + 1, beta=1.0), "log_ref must hold probabilities that sum to 1"),
        (lambda: optimal_policy(REWARD, LOG_REF, beta=0.0), r"beta must be greater than 0, got 0\.0"),
        (
            lambda: vpo_reward_objective(REWARD, LOG_REF, RHO, CALIBRATION, *PAIRS, beta=1.0, alpha=1.0, sign=0),
            "sign must be -1 .* or 1 .*, got 0",
        ),
    ],
)
def test_bad_tables_and_options_are_explained(call: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call()
