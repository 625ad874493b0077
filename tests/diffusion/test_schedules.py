from __future__ import annotations

import math

import pytest
import torch

from prefkit import diffusion as d
from prefkit.errors import OptionError

DOUBLE = torch.float64
BETAS = d.linear_betas(100, 1e-3, 0.12)


def points() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 6, 3, 2, generator=generator, dtype=DOUBLE)
    return x0, noise, torch.tensor([0, 1, 20, 50, 98, 99])


SCHEDULES = [
    *(d.Schedule.from_betas(BETAS, prediction) for prediction in ("epsilon", "v", "sample")),
    d.Schedule.flow_matching(100, shift=3.0),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.prediction)
def test_the_target_says_what_is_noise_and_what_is_clean(schedule: d.Schedule) -> None:
    x0, noise, t = points()
    x_t, target = schedule.add_noise(x0, noise, t), schedule.target(x0, noise, t)
    torch.testing.assert_close(schedule.noise(target, x_t, t), noise)
    known = t < 99 if schedule.prediction == "flow" else t >= 0
    torch.testing.assert_close(schedule.clean(target, x_t, t)[known], x0[known])


def test_variances_are_preserved_and_signal_to_noise_falls() -> None:
    schedule = SCHEDULES[0]
    torch.testing.assert_close(schedule.alphas**2 + schedule.sigmas**2, torch.ones(100, dtype=DOUBLE))
    assert (schedule.snr.diff() < 0).all()
    assert schedule.snr[0].item() == pytest.approx((1 - 1e-3) / 1e-3)


def test_few_step_schedules_end_in_noise_alone() -> None:
    schedule = d.Schedule.from_betas(BETAS, zero_snr=True)
    assert schedule.alphas_cumprod[-1] == 0
    assert schedule.alphas_cumprod[0].item() == pytest.approx(1 - 1e-3)
    assert (schedule.alphas_cumprod.diff() < 0).all()


def test_steps_of_few_step_models_and_refiners() -> None:
    assert d.few_step_times(torch.tensor([0, 1, 2, 3, 4])).tolist() == [249, 499, 749, 999, 249]
    assert d.refiner_times(torch.tensor([5, 205, 999])).tolist() == [5, 5, 199]


def test_flow_matching_shift_moves_towards_noise() -> None:
    plain, shifted = d.Schedule.flow_matching(10).sigmas, d.Schedule.flow_matching(10, shift=3.0).sigmas
    assert plain[4].item() == pytest.approx(0.5)
    assert shifted[4].item() == pytest.approx(0.75)
    assert shifted[-1] == 1


def test_offset_noise_has_a_mean_of_its_own() -> None:
    noise, draw = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 1, 1)
    assert torch.equal(d.offset_noise(noise, 0.1, draw), torch.full((2, 3, 4, 4), 0.1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: d.Schedule.from_betas(BETAS, "eps"), "unknown prediction type 'eps'"),
        (lambda: d.zero_terminal_snr(torch.tensor([0.1])), "at least two numbers"),
        (lambda: d.zero_terminal_snr(torch.tensor([0.1, 1.0])), r"in \(0, 1\)"),
        (lambda: d.Schedule.from_alphas_cumprod(torch.tensor([0.5, 0.6])), "never increase"),
        (lambda: d.Schedule(torch.tensor([math.nan]), torch.ones(1)), "finite alpha"),
        (lambda: d.Schedule.flow_matching(10, shift=0.0), "shift must be greater than 0"),
        (lambda: d.schedule_from({"schedule": "cosine"}), "unknown schedule 'cosine'"),
        (
            lambda: SCHEDULES[0].add_noise(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([100])),
            r"timesteps must lie in \[0, 100\), got 100",
        ),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call()  # type: ignore[operator]
