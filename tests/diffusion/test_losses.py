from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit import diffusion as d
from prefkit import objectives as o
from prefkit.errors import OptionError

DOUBLE = torch.float64


def draws(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, *shape, generator=generator, dtype=DOUBLE))


def test_conventions_differ_by_constant_factors() -> None:
    *predictions, noise = draws(5, 3, 2, 4)
    released = d.diffusion_dpo_loss(*predictions, noise, beta=3.0).inside
    diffusers = d.diffusion_dpo_loss(*predictions, noise, beta=1.5, convention="diffusers").inside
    paper = d.diffusion_dpo_loss(*predictions, noise, beta=1.5 / (100 * 8), convention="paper", steps=100).inside
    torch.testing.assert_close(released, diffusers)
    torch.testing.assert_close(released, paper)


def test_it_is_the_objective_of_the_same_name_on_scores() -> None:
    errors = [each.abs() for each in draws(4, 5)]
    scores = o.PairScores(*(d.score_of(error) for error in errors))
    found = d.diffusion_dpo_loss_from_errors(*errors, beta=7.0)
    torch.testing.assert_close(found.losses, o.make_objective({"kind": "dpo", "beta": 7.0})(scores))


def test_exchange_of_the_pair_negates_the_margin_and_a_weight_scales_it() -> None:
    chosen, rejected, ref_chosen, ref_rejected = (each.abs() for each in draws(4, 5))
    one = d.diffusion_dpo_loss_from_errors(chosen, rejected, ref_chosen, ref_rejected)
    other = d.diffusion_dpo_loss_from_errors(rejected, chosen, ref_rejected, ref_chosen)
    torch.testing.assert_close(one.margin, -other.margin)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0], dtype=DOUBLE)
    weighted = d.diffusion_dpo_loss_from_errors(chosen, rejected, ref_chosen, ref_rejected, weight=weight)
    torch.testing.assert_close(weighted.margin, weight * one.margin)


def test_members_may_have_noise_of_their_own() -> None:
    *predictions, noise, other = draws(6, 3, 4)
    found = d.diffusion_dpo_loss(*predictions, noise, rejected_noise=other, beta=2.0)
    errors = [d.denoising_error(p, n) for p, n in zip(predictions, (noise, other, noise, other), strict=True)]
    torch.testing.assert_close(found.losses, d.diffusion_dpo_loss_from_errors(*errors, beta=2.0).losses)


@pytest.mark.parametrize(("difference", "loss"), [(50.0, 50 * 2500.0), (1000.0, 1000 * 2500.0)])
def test_large_errors_give_finite_linear_losses(difference: float, loss: float) -> None:
    zero = torch.zeros(1)
    assert d.diffusion_dpo_loss_from_errors(zero + difference, zero, zero, zero).losses.item() == pytest.approx(loss)


def test_gradients() -> None:
    inputs = [each.requires_grad_() for each in draws(2, 2, 3)]
    ref = draws(2, 2, 3, seed=1)
    noise = draws(1, 2, 3, seed=2)[0]

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return d.diffusion_dpo_loss(chosen, rejected, *ref, noise, beta=2.0).losses

    assert torch.autograd.gradcheck(loss, inputs)


def test_effective_noises_have_no_gradient() -> None:
    tensors = [each.requires_grad_() for each in draws(6, 2, 3)]
    d.inpo_loss(*tensors, beta=2.0).losses.sum().backward()
    assert [each.grad is None for each in tensors] == [False] * 4 + [True] * 2


def test_negative_preference_optimisation_exchanges_the_pair() -> None:
    names = ("policy_chosen_err", "policy_rejected_err", "ref_chosen_err", "ref_rejected_err")
    given = dict(zip(names, draws(4, 3), strict=True))
    direct = d.npo_dpo_loss(**given, beta=3.0).losses
    wrapped = d.as_negative(d.diffusion_dpo_loss_from_errors)(**given, beta=3.0, convention="diffusers").losses
    torch.testing.assert_close(direct, wrapped)
    with pytest.raises(OptionError, match="by name"):
        d.as_negative(d.diffusion_dpo_loss_from_errors)(*given.values())


def test_ratios_beyond_the_clip_have_no_gradient_and_negative_exchanges_candidates() -> None:
    logp = torch.tensor([1.0, 0.02], dtype=DOUBLE, requires_grad=True)
    zero = torch.zeros(2, dtype=DOUBLE)
    d.spo_clipped_loss(logp, zero, zero, zero).sum().backward()
    assert logp.grad is not None
    assert (logp.grad != 0).tolist() == [False, True]
    torch.testing.assert_close(
        d.spo_clipped_loss(logp, zero, zero, zero, negative=True), d.spo_clipped_loss(zero, zero, logp, zero)
    )


def test_an_untrained_model_learns_from_experts_only_with_a_margin() -> None:
    expert, negative, noise, policy_noise = draws(4, 3, 2)
    for margin, learns in ((0.001, True), (0.0, False)):
        prediction = expert.clone().requires_grad_()
        found = d.dro_loss(prediction, negative, expert, negative, noise, policy_noise, margin=margin)
        assert found.difference.abs().max() == 0
        assert bool(found.active.any()) is learns
        found.losses.sum().backward()
        assert prediction.grad is not None
        assert bool((prediction.grad != 0).any()) is learns


def test_the_objective_slic_is_the_thresholded_ranking_loss() -> None:
    tensors = draws(6, 4, 2)
    found = d.dro_loss(*tensors, margin=0.3)
    expert, negative, ref_expert, ref_negative, noise, policy_noise = tensors
    pairs = ((expert, noise), (negative, policy_noise), (ref_expert, noise), (ref_negative, policy_noise))
    scores = o.PairScores(*(d.score_of(d.denoising_error(*pair)) for pair in pairs))
    objective = o.make_objective({"kind": "slic", "beta": 2.0, "gamma": 0.3})
    torch.testing.assert_close(found.losses, objective(scores))


ONE = torch.ones(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: d.diffusion_dpo_loss(ONE, ONE, ONE, ONE, torch.ones(3)), "must be of one shape"),
        (lambda: d.diffusion_dpo_loss_from_errors(ONE, ONE, ONE, torch.ones(3)), "must be of one shape"),
        (lambda: d.diffusion_dpo_loss_from_errors(ONE, ONE, ONE, ONE, beta=0.0), "beta must be greater than 0, got 0"),
        (lambda: d.diffusion_dpo_loss_from_errors(ONE * math.nan, ONE, ONE, ONE), "not a finite number"),
        (lambda: d.diffusion_dpo_loss_from_errors(ONE, ONE, ONE, ONE, convention="x"), "unknown convention 'x'"),
        (lambda: d.diffusion_dpo_loss_from_errors(ONE, ONE, ONE, ONE, link="ip"), "did you mean 'ipo'"),
        (lambda: d.pair_orientation(torch.tensor([1.0, 0.3])), "label_0 must be 0, 0.5 or 1"),
        (lambda: d.pair_orientation(torch.tensor([0.5, 0.5])), "all pairs are ties"),
        (lambda: d.dro_loss(*[ONE[:, None]] * 6, margin=-1.0), "margin must be at least 0, got -1"),
        (lambda: d.dro_loss(*[ONE[:, None]] * 6, form="x"), "unknown form 'x'"),
        (lambda: d.spo_clipped_loss(ONE, ONE, ONE, ONE, eps=1.0), r"eps must lie in \(0, 1\)"),
        (lambda: d.smpo_loss(*[ONE[:, None]] * 6, torch.ones(3)), "each pair needs one p_winner"),
        (lambda: d.learning_rate_for(0.0), "beta must be greater than 0"),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call()
