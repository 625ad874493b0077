"""Intuitive Fine-Tuning's loss, weights and schedule, against the recurrences that define them."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from prefkit.errors import OptionError
from prefkit.objectives import (
    DemonstrationScores,
    TemporalResidual,
    TokenScores,
    discounted_cumsum,
    ift_loss,
    ift_weights,
    lambda_at_step,
    make_objective,
)


def losses(rows: int = 3, length: int = 11) -> Tensor:
    return -3 * torch.rand(rows, length, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("side", ["left", "right"])
def test_discounted_sums_follow_the_recurrence(gamma: float, side: str) -> None:
    x = losses()
    order = range(x.shape[1]) if side == "right" else reversed(range(x.shape[1]))
    expected, running = torch.empty_like(x), torch.zeros(len(x), dtype=x.dtype)
    for place in order:
        running = x[:, place] + gamma * running
        expected[:, place] = running
    torch.testing.assert_close(discounted_cumsum(x, gamma, side), expected)  # type: ignore[arg-type]  # both sides


def test_equation_21_is_its_closed_form() -> None:
    logps, gamma = losses(), 0.9
    factors = (1 - gamma ** torch.arange(1.0, 12.0, dtype=torch.float64)) / (1 - gamma)
    loss = ift_loss(logps, torch.ones_like(logps), gamma=gamma, formulation="eq21")
    torch.testing.assert_close(loss, (-logps * factors).sum(1))


def test_no_decay_is_supervised_fine_tuning() -> None:
    logps = losses()
    torch.testing.assert_close(ift_loss(logps, torch.ones_like(logps), gamma=0.0), -logps.mean(1))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("norm", ["L1", "L2", "softmax", "log"])
@pytest.mark.parametrize("kind", ["loss", "logps", "mask"])
@pytest.mark.parametrize("scale", [0.0, 1e-7, 1.0, 1e4])
def test_weights_are_finite_and_sum_to_the_tokens(side: str, norm: str, kind: str, scale: float) -> None:
    logps = (scale * losses()).float().requires_grad_()
    mask = torch.ones_like(logps)
    mask[0, :4] = mask[1, 5:] = 0
    how = {"propagation_type": kind, "propagation_norm": norm, "propagation_side": side}
    weights = ift_weights(logps, mask, **how)  # type: ignore[arg-type]  # all of them are known
    torch.testing.assert_close(weights.sum(1), mask.sum(1))
    assert (weights[mask == 0] == 0).all()
    ift_loss(logps, mask, **how).sum().backward()  # type: ignore[arg-type, no-untyped-call]  # as above; torch
    assert torch.isfinite(logps.grad).all()


def test_all_zero_losses_weigh_the_same() -> None:
    assert ift_weights(torch.zeros(1, 4), torch.ones(1, 4)).tolist() == [[1.0] * 4]


def test_detached_weights_take_no_gradient() -> None:
    logps = losses().requires_grad_()
    mask = torch.ones_like(logps)
    ift_loss(logps, mask, detach_weights=True).sum().backward()  # type: ignore[no-untyped-call]  # torch
    torch.testing.assert_close(logps.grad, -ift_weights(logps.detach(), mask) / 11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 1.5}, "gamma must be in [0, 1], got 1.5"),
        ({"propagation_type": "losses"}, "unknown propagation_type 'losses'; did you mean 'loss'"),
        ({"propagation_norm": "L3"}, "unknown propagation_norm 'L3'"),
        ({"propagation_side": "up"}, "unknown propagation_side 'up'"),
        ({"formulation": "eq22"}, "unknown formulation 'eq22'; did you mean 'eq21'"),
        ({"response_mask": torch.ones(2, 4)}, "must have one shape, got (2, 3) and (2, 4)"),
        ({"response_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}, "row 1 has no response token"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], message: str) -> None:
    given = {"policy_token_logps": -torch.ones(2, 3), "response_mask": torch.ones(2, 3)} | change
    with pytest.raises(OptionError, match=re.escape(message)):
        ift_loss(given.pop("policy_token_logps"), given.pop("response_mask"), **given)  # type: ignore[arg-type]


def test_schedule_by_hand() -> None:
    linear = {"min_lambda": 0.1, "max_lambda": 0.3, "warmup_steps": 100, "schedule": "linear"}
    shares = [lambda_at_step(step, **linear) for step in (0, 50, 100, 900)]  # type: ignore[arg-type]  # all are known
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.3])
    assert lambda_at_step(7, noise=1.0, disturb_std=0.5) == pytest.approx(0.3)
    assert lambda_at_step(7, noise=-9.0, disturb_std=0.5) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_lambda": 1.2}, "objective.max_lambda must be at most 1"),
        ({"gamma": -0.1}, "objective.gamma must be at least 0"),
        ({"schedule": "linear", "min_lambda": 0.5}, "min_lambda must be at most max_lambda, got 0.5 and 0.2"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        make_objective({"kind": "ift", **options})


def test_share_outside_its_range_is_refused() -> None:
    with pytest.raises(OptionError, match=re.escape("max_lambda must be in [0, 1], got 2")):
        lambda_at_step(0, max_lambda=2.0)


def test_objective_weighs_tokens_of_flat_scores() -> None:
    logps, lengths = losses(1, 5)[0], torch.tensor([2, 3])
    scores = DemonstrationScores(
        torch.stack([logps[:2].sum(), logps[2:].sum()]),
        lengths,
        tokens=TokenScores(logps, torch.tensor([0, 0, 1, 1, 1])),
    )
    found = make_objective("ift")(scores)
    alone = [ift_loss(part[None], torch.ones(1, len(part))) for part in (logps[:2], logps[2:])]
    torch.testing.assert_close(found, torch.cat(alone))


def test_share_of_an_update_depends_on_nothing_but_its_number() -> None:
    shares = []
    for steps in ([0, 1, 2], [2]):
        objective = make_objective({"kind": "ift", "disturb_std": 0.5})
        for step in steps:
            objective.advance(step)
        shares.append(objective.imitation.residual.rate)
    assert shares[0] == shares[1] != 0.2


def test_samplers() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0], [9.0, 1.0, 2.0]])
    assert TemporalResidual(sampler="greedy").choose(logits).tolist() == [1, 0]
    assert TemporalResidual(sampler="topk").choose(logits).tolist() == [2, 2]
    drawn = TemporalResidual(sampler="nucleus").choose(logits[:1].expand(20_000, 3))
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(shares, (logits[0] / 0.7).softmax(0), atol=0.01, rtol=0)
