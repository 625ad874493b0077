"""Named losses and presets against second implementations, in the operations of other trainers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prefkit.errors import OptionError
from prefkit.objectives import (
    PRESETS,
    SCORED,
    PairScores,
    cdpo_loss,
    cpo_loss,
    dpo_loss,
    gradient_weights,
    ipo_loss,
    ipo_loss_length_averaged,
    make_objective,
    orpo_loss,
    rdpo_loss,
    robust_loss,
    robust_reward_model_loss,
    simpo_loss,
    slic_hinge_loss,
    slic_loss,
)

# Those that look at nothing but the scores of whole responses.
PAIRWISE = [
    name for name, preset in PRESETS.items() if preset.form == "pairs" and not make_objective(name).needs & SCORED
]


def pairs(n: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64) -> PairScores:
    generator = torch.Generator().manual_seed(seed)
    logps = [-60 * torch.rand(n, generator=generator, dtype=dtype) - 1 for _ in range(4)]
    lengths = [torch.randint(5, 40, (n,), generator=generator) for _ in range(2)]
    return PairScores(*logps, *lengths)


def by_hand(s: PairScores) -> dict[str, Tensor]:
    """Losses at the presets' defaults, in the words of TRL's trainers (which call beta * h logits)."""
    pc, pr, rc, rr = s.policy_chosen_logps, s.policy_rejected_logps, s.ref_chosen_logps, s.ref_rejected_logps
    nc, nr = s.chosen_lengths, s.rejected_lengths
    h = (pc - pr) - (rc - rr)
    eps = 0.1
    log_odds = (pc / nc - pr / nr) - (torch.log1p(-torch.exp(pc / nc)) - torch.log1p(-torch.exp(pr / nr)))
    return {
        "dpo": -F.logsigmoid(0.1 * h),
        "cdpo": -F.logsigmoid(0.1 * h) * (1 - eps) - F.logsigmoid(-0.1 * h) * eps,
        "rdpo": (-F.logsigmoid(0.1 * h) * (1 - eps) + F.logsigmoid(-0.1 * h) * eps) / (1 - 2 * eps),
        "ipo": (h - 5.0) ** 2,
        "ipo_avg": ((pc - rc) / nc - (pr - rr) / nr - 5.0) ** 2,
        "slic": torch.relu(1 - 0.05 * h),
        "slic_hf": torch.relu(1 - pc + pr) - 0.1 * pc,
        "simpo": -F.logsigmoid(2.5 * (pc / nc - pr / nr) - 0.25),
        "cpo": -F.logsigmoid(0.1 * (pc - pr)) - pc,
        "orpo": -pc / nc - 0.1 * F.logsigmoid(log_odds),
    }


def test_every_pairwise_preset_has_a_second_implementation() -> None:
    assert set(by_hand(pairs())) == set(PAIRWISE)


@pytest.mark.parametrize("kind", PAIRWISE)
def test_preset_agrees_with_second_implementation(kind: str) -> None:
    scores = pairs()
    torch.testing.assert_close(make_objective(kind)(scores), by_hand(scores)[kind], rtol=1e-9, atol=1e-9)


NAMED: dict[str, Callable[..., Tensor]] = {
    "dpo": lambda s, **o: dpo_loss(*logps(s), **o),
    "cdpo": lambda s, **o: cdpo_loss(*logps(s), **o),
    "rdpo": lambda s, **o: rdpo_loss(*logps(s), **o),
    "ipo": lambda s, **o: ipo_loss(*logps(s), **o),
    "ipo_avg": lambda s, **o: ipo_loss_length_averaged(*logps(s), s.chosen_lengths, s.rejected_lengths, **o),
    "slic": lambda s, **o: slic_hinge_loss(*logps(s), **o),
    "slic_hf": lambda s, **o: slic_loss(*logps(s)[:2], sft_weight=0.1, **o),
    "simpo": lambda s, **o: simpo_loss(*logps(s)[:2], s.chosen_lengths, s.rejected_lengths, **o),
    "cpo": lambda s, **o: cpo_loss(*logps(s)[:2], **o),
    "orpo": lambda s, **o: orpo_loss(*logps(s)[:2], s.chosen_lengths, s.rejected_lengths, **o),
}


def logps(s: PairScores) -> tuple[Any, ...]:
    return s.policy_chosen_logps, s.policy_rejected_logps, s.ref_chosen_logps, s.ref_rejected_logps


@pytest.mark.parametrize("kind", PAIRWISE)
def test_function_and_preset_agree(kind: str) -> None:
    scores = pairs(seed=1)
    torch.testing.assert_close(NAMED[kind](scores, beta=0.3), make_objective({"kind": kind, "beta": 0.3})(scores))


@pytest.mark.parametrize("kind", PAIRWISE)
def test_gradcheck(kind: str) -> None:
    scores = pairs(4, seed=2)
    objective = make_objective(kind)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return objective(
            PairScores(
                chosen,
                rejected,
                scores.ref_chosen_logps,
                scores.ref_rejected_logps,
                scores.chosen_lengths,
                scores.rejected_lengths,
            )
        )

    inputs = (scores.policy_chosen_logps.requires_grad_(), scores.policy_rejected_logps.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("noise", [None, {"kind": "conservative", "flip_rate": 0.2}, {"kind": "robust"}])
@pytest.mark.parametrize("kind", PAIRWISE)
def test_losses_and_gradients_stay_finite_in_float32(kind: str, noise: Any) -> None:
    margins = torch.tensor([-1000.0, -50.0, 0.0, 50.0, 1000.0])
    chosen = (margins.clamp(max=0) - 1).requires_grad_()
    rejected = (-margins.clamp(min=0) - 1).requires_grad_()
    ones = torch.ones(5, dtype=torch.int64)
    scores = PairScores(
        chosen, rejected, -torch.ones(5), -torch.ones(5), ones, ones, probabilities=torch.full((5,), 0.9)
    )
    options = {"noise": noise} if noise else {}
    losses = make_objective({"kind": kind, "beta": 1.0, **options})(scores)
    assert losses.shape == (5,)
    assert losses.isfinite().all()
    for gradient in torch.autograd.grad(losses.sum(), (chosen, rejected)):
        assert gradient.isfinite().all()


@given(
    margins=st.lists(st.floats(-100, 100), min_size=1, max_size=8),
    beta=st.floats(0.01, 2),
    rates=st.lists(st.floats(0, 0.49), min_size=8, max_size=8),
)
def test_rdpo_is_unbiased_with_a_rate_a_pair(margins: list[float], beta: float, rates: list[float]) -> None:
    h, rate = torch.tensor(margins, dtype=torch.float64), torch.tensor(rates[: len(margins)], dtype=torch.float64)
    zero = torch.zeros_like(h)
    observed = rdpo_loss(h, zero, zero, zero, beta=beta, flip_rate=rate)
    flipped = rdpo_loss(zero, h, zero, zero, beta=beta, flip_rate=rate)
    clean = torch.tensor([beta * max(-m, 0) + math.log1p(math.exp(-beta * abs(m))) for m in margins]).double()
    mean = (1 - rate) * observed + rate * flipped
    torch.testing.assert_close(mean, clean, rtol=1e-6, atol=1e-6)


def test_without_flips_the_dpo_family_agrees_exactly() -> None:
    scores = pairs(dtype=torch.float32)
    dpo = dpo_loss(*logps(scores))
    assert torch.equal(cdpo_loss(*logps(scores), flip_rate=0.0), dpo)
    assert torch.equal(rdpo_loss(*logps(scores), flip_rate=0.0), dpo)


def test_robust_ipo_is_again_a_parabola() -> None:
    scores, rate, target = pairs(), 0.3, 5.0
    h = logps(scores)[0] - logps(scores)[1] - logps(scores)[2] + logps(scores)[3]
    closed_form = h**2 + target**2 - 2 * h * target / (1 - 2 * rate)
    torch.testing.assert_close(robust_loss(make_objective("ipo"), scores, flip_rate=rate), closed_form)
    composed = make_objective({"kind": "ipo", "noise": {"kind": "robust", "flip_rate": rate}})
    torch.testing.assert_close(composed(scores), closed_form)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.49])
def test_gradient_weights_are_the_gradients(rate: float) -> None:
    h = torch.linspace(-40, 40, 9, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(h)
    weights = gradient_weights(h.detach(), beta=0.3, flip_rate=rate)
    losses = {
        "dpo": dpo_loss(h, zero, zero, zero, beta=0.3),
        "cdpo": cdpo_loss(h, zero, zero, zero, beta=0.3, flip_rate=rate),
        "rdpo": rdpo_loss(h, zero, zero, zero, beta=0.3, flip_rate=rate),
    }
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss.sum(), h)
        torch.testing.assert_close(gradient, -0.3 * getattr(weights, name))


@settings(max_examples=30)
@given(shift=st.floats(-100, 100), seed=st.integers(0, 100))
def test_log_ratio_losses_ignore_what_both_models_share(shift: float, seed: int) -> None:
    scores = pairs(seed=seed)
    pc, pr, rc, rr = logps(scores)
    for loss in (dpo_loss, rdpo_loss, ipo_loss, slic_hinge_loss):
        torch.testing.assert_close(loss(pc + shift, pr, rc + shift, rr), loss(pc, pr, rc, rr), rtol=1e-7, atol=1e-7)


def test_difference_of_orientations_is_the_log_odds() -> None:
    scores = pairs()
    pc, pr, rc, rr = logps(scores)
    h = (pc - rc) - (pr - rr)
    closed_forms = {"dpo": 0.1 * h, "ipo": 2 * h / 0.1, "cpo": 1.1 * (pc - pr)}
    for kind, expected in closed_forms.items():
        objective = make_objective(kind)
        torch.testing.assert_close(objective(scores.swapped()) - objective(scores), expected, rtol=1e-9, atol=1e-9)


def test_reward_model_loss_takes_rewards_in_log_odds() -> None:
    losses = robust_reward_model_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), flip_rate=0.25)
    right, wrong = math.log1p(math.exp(-1)), math.log1p(math.exp(1))
    assert losses.tolist() == pytest.approx([1.5 * right - 0.5 * wrong, 1.5 * wrong - 0.5 * right])


@pytest.mark.parametrize("rate", [0.5, -0.1, float("nan"), torch.tensor([0.1, 0.6])])
def test_flip_rate_out_of_range(rate: Any) -> None:
    with pytest.raises(OptionError, match=r"flip_rate must lie in \[0, 0.5\)"):
        rdpo_loss(*(torch.zeros(2),) * 4, flip_rate=rate)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_beta_out_of_range(beta: float) -> None:
    with pytest.raises(OptionError, match="beta must be greater than 0"):
        dpo_loss(*(torch.zeros(2),) * 4, beta=beta)


def test_shapes_must_agree() -> None:
    with pytest.raises(OptionError, match=r"one shape, got \(2,\), \(3,\)"):
        cpo_loss(torch.zeros(2), torch.zeros(3))
