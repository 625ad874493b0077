from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from prefkit.errors import OptionError
from prefkit.objectives import (
    PairScores,
    madpo_coefficient,
    madpo_loss,
    madpo_weight,
    make_objective,
    population_target_margin,
    reward_model_loss,
)

DOUBLE = torch.float64


def test_coefficient_at_tau_and_far_from_it() -> None:
    margins = torch.tensor([7.0, -7.0, 60.0, -1e6], dtype=DOUBLE)
    found = madpo_coefficient(margins, c_max=4.0, tau=7.0)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, 0.25, 0.25], dtype=DOUBLE))
    # at 0: 1/4 + (15/4) / (1 + 4 e^-7)
    assert madpo_coefficient(torch.zeros(1, dtype=DOUBLE), c_max=4.0, tau=7.0).item() == pytest.approx(
        0.25 + 3.75 / (1 + 4 * math.exp(-7))
    )


def test_smallest_factor_is_the_inverse_of_the_largest_by_default() -> None:
    margins = torch.linspace(-9, 9, 7)
    assert torch.equal(madpo_coefficient(margins, c_max=5.0), madpo_coefficient(margins, c_max=5.0, c_min=0.2))


def test_ablations_cut_off_at_one() -> None:
    margins = torch.tensor([0.5, 3.0])  # below and above tau
    both, amplify, dampen = (
        madpo_coefficient(margins, tau=2.0, mode=mode).tolist() for mode in ("both", "amplify", "dampen")
    )
    assert both[0] > 1 > both[1]
    assert amplify == [both[0], 1.0]
    assert dampen == [1.0, both[1]]


def test_weight_is_the_ratio_of_probabilities_above_minus_tau() -> None:
    margins = torch.tensor([-1.5, 0.5, 4.0], dtype=DOUBLE)
    c = madpo_coefficient(margins, tau=2.0)
    expected = torch.sigmoid(c * margins) / torch.sigmoid(margins)
    found = madpo_weight(margins, tau=2.0)
    torch.testing.assert_close(found, expected)
    assert found[0] < 1 < found[1]
    assert 0.9 < found[2] < 1


def test_the_cut_off_is_strict() -> None:
    below = torch.tensor([-2.0, -2.0 - 1e-9, -2.0 + 1e-9], dtype=DOUBLE)
    found = madpo_weight(below, tau=2.0, c_max=3.0)
    assert found[:2].tolist() == [1.0, 1.0]
    assert found[2].item() == pytest.approx(1, abs=1e-6)
    assert madpo_weight(torch.tensor([-1.0]), tau=0.0).item() == 1


@pytest.mark.parametrize("tau", [2.0, 200.0])
def test_finite_for_any_margin_in_float32(tau: float) -> None:
    margins = torch.tensor([-1e30, -1000.0, -104.0, -50.0, 0.0, 50.0, 1000.0, 1e30])
    assert madpo_weight(margins, tau=tau).isfinite().all()
    assert population_target_margin(margins, tau=tau).isfinite().all()


@pytest.mark.parametrize("h", [0.3, 1.7])
def test_target_margin_is_the_factor_times_the_margin_below_tau(h: float) -> None:
    margins = torch.tensor([h, -h], dtype=DOUBLE)
    expected = madpo_coefficient(margins, c_max=3.0, tau=2.0) * margins
    torch.testing.assert_close(population_target_margin(margins, c_max=3.0, tau=2.0), expected)


def test_target_margin_minimises_the_expected_loss() -> None:
    """By its derivative: sigmoid(h) w(h) sigmoid(-m) = sigmoid(-h) w(-h) sigmoid(m)."""
    h = torch.linspace(-6, 6, 13, dtype=DOUBLE)
    m = population_target_margin(h, c_max=3.0, tau=2.0)
    ours = torch.sigmoid(h) * madpo_weight(h, c_max=3.0, tau=2.0) * torch.sigmoid(-m)
    theirs = torch.sigmoid(-h) * madpo_weight(-h, c_max=3.0, tau=2.0) * torch.sigmoid(m)
    torch.testing.assert_close(ours, theirs)


def test_preset_is_the_function() -> None:
    logps = [torch.randn(4, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    rewards = torch.tensor([[1.0, 3.0, -2.0, 9.0], [0.0, 1.0, 1.0, 0.5]])
    objective = make_objective({"kind": "madpo", "c_max": 3.0, "tau": 2.0, "beta": 0.5})
    scores = PairScores(*logps, margins=rewards[0] - rewards[1])
    torch.testing.assert_close(objective(scores), madpo_loss(*logps, *rewards, c_max=3.0, tau=2.0, beta=0.5))
    assert objective.needs == {"reference", "margins"}


def test_reward_model_loss_by_hand() -> None:
    found = reward_model_loss(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 50.0]))
    assert found.tolist() == pytest.approx([math.log(2), 50.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c_max": 1.0}, "objective.c_max must be greater than 1.0, got 1.0"),
        ({"c_min": 1.0}, "objective.c_min must be less than 1.0, got 1.0"),
        ({"c_min": 0.0}, "objective.c_min must be greater than 0.0, got 0.0"),
        ({"lam": 0.0}, "objective.lam must be greater than 0.0, got 0.0"),
        ({"tau": -1.0}, "objective.tau must be at least 0.0, got -1.0"),
        ({"mode": "amplify only"}, "objective.mode: input should be 'both', 'amplify' or 'dampen'"),
    ],
)
def test_bad_options_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        make_objective({"kind": "madpo", **options})
    assert message in str(caught.value)


def test_options_of_the_functions_are_checked() -> None:
    with pytest.raises(OptionError, match="c_max must be greater than 1"):
        madpo_weight(torch.zeros(1), c_max=0.5)


def test_gradients_into_the_reward_model_are_refused() -> None:
    zero, rewards = torch.zeros(2), torch.zeros(2, requires_grad=True)
    with pytest.raises(OptionError, match="detach its rewards, it is frozen"):
        madpo_loss(zero, zero, zero, zero, rewards, zero)


def test_rewards_of_another_shape_are_refused() -> None:
    zero = torch.zeros(2)
    with pytest.raises(OptionError, match=r"of the losses' shape \(2,\), got \(3,\) and \(2,\)"):
        madpo_loss(zero, zero, zero, zero, torch.zeros(3), zero)


def test_missing_margins_are_named() -> None:
    zero = torch.zeros(2)
    with pytest.raises(OptionError, match="objective 'madpo' needs margins, which these PairScores lack"):
        make_objective("madpo")(PairScores(zero, zero, zero, zero))
