"""The objective of reward models: its loss by hand, what it needs, and rewards around 0."""

from __future__ import annotations

import math

import pytest
import torch

from prefkit.errors import OptionError
from prefkit.objectives import PairScores, centre, make_objective


def scores() -> PairScores:
    return PairScores(
        torch.tensor([1.0, -50.0, 1000.0], dtype=torch.float64, requires_grad=True),
        torch.tensor([0.5, 50.0, -1000.0], dtype=torch.float64, requires_grad=True),
    )


def test_loss_by_hand_and_finite_far_out() -> None:
    objective = make_objective({"kind": "reward_model", "gamma": 0.25})
    given = scores()
    losses = objective(given)
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-0.25)), 100.25, 0.0])
    losses.sum().backward()
    assert given.policy_chosen_logps.grad is not None
    slopes = [-1 / (1 + math.exp(0.25)), -1.0, 0.0]
    assert given.policy_chosen_logps.grad.tolist() == pytest.approx(slopes)


def test_it_needs_rewards_and_no_reference() -> None:
    assert make_objective("reward_model").needs == {"rewards"}


def test_centred_rewards() -> None:
    objective = make_objective({"kind": "reward_model", "auxiliary": [{"kind": "centre", "weight": 0.5}]})
    plain = make_objective("reward_model")
    assert (objective(scores()) - plain(scores())).tolist() == pytest.approx([0.5 * 1.5**2, 0.0, 0.0])
    term = centre(torch.tensor([1.0]), torch.tensor([2.0]))
    assert torch.equal(term, centre(torch.tensor([2.0]), torch.tensor([1.0])))
    assert float(term) == pytest.approx(0.09)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(OptionError, match=r"objective\.auxiliary\.0\.weight must be at least 0\.0, got -1"):
        make_objective({"kind": "reward_model", "auxiliary": [{"kind": "centre", "weight": -1}]})
