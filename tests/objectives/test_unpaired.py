from __future__ import annotations

import math

import pytest
import torch

from prefkit.errors import OptionError
from prefkit.objectives import DemonstrationScores, LabelScores, kto_reference_point, make_objective


def scores(**more: object) -> LabelScores:
    values = {
        "policy_logps": torch.tensor([-3.0, -8.0, -5.0]),
        "labels": torch.tensor([True, False, True]),
        "ref_logps": torch.tensor([-4.0, -6.0, -5.0]),
        "policy_kl_logps": torch.tensor([-1.0, -2.0, -6.0]),
        "ref_kl_logps": torch.tensor([-3.0, -5.0, -5.0]),
    }
    return LabelScores(**{**values, **more})


def test_kto_agrees_with_arithmetic_by_hand() -> None:
    objective = make_objective({"kind": "kto", "beta": 0.5, "desirable_weight": 2.0, "undesirable_weight": 3.0})
    z = (2 + 3 - 1) / 3
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731  # shorter here than a function
    expected = [
        2 * (1 - sigmoid(0.5 * (1 - z))),
        3 * (1 - sigmoid(0.5 * (z + 2))),
        2 * (1 - sigmoid(0.5 * (0 - z))),
    ]
    assert objective(scores()).tolist() == pytest.approx(expected)


def test_reference_point_is_at_least_zero_and_without_gradient() -> None:
    rewards = torch.tensor([-3.0, 1.0], requires_grad=True)
    point = kto_reference_point(rewards)
    assert point.item() == 0
    assert not point.requires_grad
    assert kto_reference_point(-rewards).item() == 1


def test_reference_point_takes_the_mean_that_training_sets() -> None:
    objective = make_objective({"kind": "kto", "beta": 1.0})
    objective.batch_mean = lambda values: values.sum() * 0 + 5.0
    losses = objective(scores())
    assert losses[0].item() == pytest.approx(1 / (1 + math.exp(1 - 5)))


def test_gradient_moves_good_up_and_bad_down() -> None:
    policy = torch.tensor([-3.0, -8.0, -5.0], requires_grad=True)
    other = torch.tensor([-1.0, -2.0, -6.0], requires_grad=True)
    losses = make_objective("kto")(scores(policy_logps=policy, policy_kl_logps=other))
    to_policy, to_other = torch.autograd.grad(losses.sum(), (policy, other), allow_unused=True)
    assert to_policy.sign().tolist() == [-1, 1, -1]
    assert to_other is None


@pytest.mark.parametrize("reward", [-1000.0, -50.0, 50.0, 1000.0])
def test_kto_stays_finite_in_float32(reward: float) -> None:
    policy = torch.full((3,), reward, requires_grad=True)
    losses = make_objective({"kind": "kto", "beta": 1.0})(scores(policy_logps=policy))
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


def test_missing_responses_for_the_reference_point_are_named() -> None:
    with pytest.raises(OptionError, match="objective 'kto' needs policy_kl_logps, which these LabelScores lack"):
        make_objective("kto")(scores(policy_kl_logps=None, ref_kl_logps=None))


def test_sft_is_the_mean_over_tokens_or_their_sum() -> None:
    demonstrations = DemonstrationScores(
        torch.tensor([-6.0, -8.0]), torch.tensor([3, 2]), weights=torch.tensor([1.0, 0.5])
    )
    assert make_objective("sft")(demonstrations).tolist() == [2.0, 2.0]
    assert make_objective({"kind": "sft", "imitation": "sft"})(demonstrations).tolist() == [6.0, 4.0]
