from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prefkit import diffusion as d
from prefkit.errors import OptionError

DOUBLE = torch.float64
SCHEDULE = d.Schedule.from_betas(d.linear_betas(50, 1e-3, 0.2))


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.4, 0.1], [0.0, 0.5]]))

    def forward(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return x_t @ self.weight + (0 if cond is None else cond)


def test_a_scale_of_one_leaves_the_positive_branch_alone() -> None:
    positive, negative = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    guidance = d.NegativeGuidance(lambda x, t, c: c, lambda x, t, c: c, 1.0)
    torch.testing.assert_close(guidance(torch.zeros(3, 4), torch.zeros(3), (positive, negative)), positive)


def test_rescaling_restores_the_spread_of_the_positive_branch() -> None:
    positive, negative = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0))
    found = d.guided(positive, negative, 7.5, rescale=1.0)
    torch.testing.assert_close(found.std(1), positive.std(1))


def test_variance_of_the_guided_noise() -> None:
    u, w = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    v = 0.6 * u + 0.8 * w
    assert float(d.guided(u[:, None], v[:, None], 3.0).var()) == pytest.approx(d.guidance_variance(2.0, 0.6), rel=0.02)


def test_weights_are_merged_by_name() -> None:
    base, positive, delta = ({"a": torch.tensor([value]), "b": torch.tensor(2 * value)} for value in (1.0, 3.0, 10.0))
    merged = d.merge_negative_weights(base, positive, delta, alpha=0.5, beta=0.1)
    assert merged["a"].item() == 1 + 0.5 * 2 + 0.1 * 10
    assert merged["b"].item() == 2 * merged["a"].item()


def test_the_target_belongs_to_the_last_state() -> None:
    """The estimate of runs that have ended, which the published loop leaves at the state before."""
    model = Tiny().double()
    x = torch.ones(2, 2, dtype=DOUBLE)
    ended = d.truncated_rollout(model, x, torch.tensor([0, 1]), SCHEDULE, count=10, steps=5, guidance=0.0)
    assert ended.times.tolist() == [0, 0]
    eps = model(ended.x_t, ended.times, None)
    torch.testing.assert_close(ended.target, d.reparametrised_x0(ended.x_t, eps, SCHEDULE.alphas_cumprod[[0, 0]]).x0)


def test_runs_may_have_steps_of_their_own() -> None:
    model, x = Tiny().double(), torch.ones(2, 2, dtype=DOUBLE)
    index = torch.tensor([9, 9])
    both = d.truncated_rollout(model, x, index, SCHEDULE, count=10, steps=torch.tensor([1, 3]), guidance=0.0)
    assert both.times.tolist() == [44, 34]
    alone = d.truncated_rollout(model, x, index, SCHEDULE, count=10, steps=1, guidance=0.0)
    torch.testing.assert_close(both.x_t[0], alone.x_t[0])


def test_noise_added_to_a_state_makes_the_marginal_of_the_later_step() -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.full((100_000, 1), 2.0, dtype=DOUBLE)
    first, second = torch.randn(2, 100_000, 1, generator=generator, dtype=DOUBLE)
    t, s = torch.full((100_000,), 10), torch.full((100_000,), 30)
    x_s = d.renoise_from_state(
        SCHEDULE.add_noise(x0, first, t), SCHEDULE.alphas_cumprod[t], SCHEDULE.alphas_cumprod[s], second
    )
    assert float(x_s.mean()) == pytest.approx(2 * float(SCHEDULE.alphas[30]), abs=0.01)
    assert float(x_s.std()) == pytest.approx(float(SCHEDULE.sigmas[30]), rel=0.01)


@pytest.mark.parametrize("start", ["noise", "data"])
def test_truncated_fine_tuning_learns_and_its_teacher_follows(start: str) -> None:
    torch.manual_seed(0)
    model = Tiny()
    before = copy.deepcopy(model)
    loop = d.TruncatedFineTuning(model, SCHEDULE, count=10, steps=3, guidance=-1.0, start=start, decay=0.5)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    cond, x0 = torch.full((16, 2), 0.1), torch.zeros(16, 2)
    for _ in range(3):
        optimiser.zero_grad()
        losses = loop.losses((16, 2), generator, cond=cond, uncond=torch.zeros(16, 2), x0=x0)
        assert losses.shape == (16,)
        losses.mean().backward()
        optimiser.step()
        loop.after_update()
    moved = loop.offset(before)["weight"]
    assert moved.abs().max() > 0
    gap = (loop.teacher.weight - before.weight).abs().max()
    assert 0 < gap < moved.abs().max()


def test_a_frozen_teacher_stays() -> None:
    model = Tiny()
    loop = d.TruncatedFineTuning(model, SCHEDULE, count=10, steps=3, teacher="frozen")
    with torch.no_grad():
        model.weight.add_(1)
    loop.after_update()
    assert not torch.equal(loop.teacher.weight, model.weight)


LOOP = d.TruncatedFineTuning(Tiny(), SCHEDULE, count=10, steps=3, start="data")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: d.guided(torch.ones(1, 2), torch.ones(1, 2), float("nan")), "must be a finite number"),
        (lambda: d.guided(torch.ones(1, 2), torch.ones(1, 2), 2.0, rescale=2.0), r"rescale must lie in \[0, 1\]"),
        (lambda: d.NegativeGuidance(Tiny(), Tiny(), float("inf")), "must be a finite number"),
        (lambda: d.NegativeGuidance(Tiny(), Tiny(), 2.0)(torch.ones(1, 2), torch.ones(1), None), "two conditions"),
        (lambda: d.guidance_variance(1.0, 2.0), "rho is a correlation"),
        (lambda: d.merge_negative_weights(*[torch.ones(2)] * 3, alpha=1.5), r"alpha must lie in \[0, 1\], got 1.5"),
        (lambda: d.merge_negative_weights(torch.ones(2), torch.ones(2), torch.ones(3)), "differ in shape"),
        (
            lambda: d.merge_negative_weights({"a": torch.ones(1)}, {"a": torch.ones(1)}, {"b": torch.ones(1)}),
            "do not belong together",
        ),
        (lambda: d.TruncatedFineTuning(Tiny(), SCHEDULE, count=5, steps=5), r"steps must lie in \[1, 5\)"),
        (lambda: d.TruncatedFineTuning(Tiny(), SCHEDULE, start="x"), "unknown start 'x'"),
        (lambda: d.TruncatedFineTuning(Tiny(), SCHEDULE, teacher="x"), "unknown teacher 'x'"),
        (lambda: d.TruncatedFineTuning(Tiny(), SCHEDULE, guidance=float("nan")), "guidance must be a finite"),
        (lambda: LOOP.losses((2, 2), torch.Generator(), cond=torch.ones(2, 2)), "needs the empty condition"),
        (lambda: LOOP.losses((2, 2), torch.Generator()), "give x0"),
        (
            lambda: d.truncated_rollout(Tiny(), torch.ones(1, 2), torch.tensor([9]), SCHEDULE, count=5, steps=2),
            r"levels must lie in \[0, 5\)",
        ),
        (
            lambda: d.truncated_rollout(Tiny(), torch.ones(1, 2), torch.tensor([1]), SCHEDULE, count=5, steps=0),
            r"must lie in \[1, 5\], got 0",
        ),
        (lambda: d.renoise_from_state(*[torch.ones(1)] * 4), "up to a later step"),
        (lambda: d.tdft_loss(*[torch.ones(1, 1)] * 3, torch.ones(1), loss_type="l1"), "unknown loss_type 'l1'"),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call()
