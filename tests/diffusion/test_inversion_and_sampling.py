from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit import diffusion as d
from prefkit.errors import OptionError

DOUBLE = torch.float64
SCHEDULE = d.Schedule.from_betas(d.linear_betas(100, 1e-3, 0.12))
SPREAD = 0.5


def gaussian(x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
    """The exact noise model of samples from N(0, SPREAD^2): everything about it is known in closed form."""
    alpha, sigma = SCHEDULE.levels(t, x_t)
    return sigma * x_t / (alpha**2 * SPREAD**2 + sigma**2)


def clean(count: int = 64) -> Tensor:
    return SPREAD * torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


def test_inversion_leads_to_the_marginal_scale_and_better_with_more_steps() -> None:
    x0, t = clean(), torch.full((64,), 99)
    alpha, sigma = SCHEDULE.levels(t, x0)
    exact = x0 * (alpha**2 * SPREAD**2 + sigma**2).sqrt() / SPREAD
    errors = [float((d.ddim_invert(gaussian, x0, t, SCHEDULE, count=n) - exact).abs().mean()) for n in (5, 20, 99)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


def test_a_corrected_step_is_more_exact() -> None:
    x0, t = clean(), torch.full((64,), 99)
    alpha, sigma = SCHEDULE.levels(t, x0)
    exact = x0 * (alpha**2 * SPREAD**2 + sigma**2).sqrt() / SPREAD

    def error(found: Tensor) -> float:
        return float((found - exact).abs().mean())

    plain = error(d.ddim_invert(gaussian, x0, t, SCHEDULE, count=9))
    assert error(d.renoise_invert(gaussian, x0, t, SCHEDULE, count=9)) < plain
    assert error(d.renoise_invert(gaussian, x0, t, SCHEDULE, count=9, every_step=False)) != pytest.approx(plain)
    second = d.renoise_invert(gaussian, x0, t, SCHEDULE, count=9, average=False)
    assert error(second) != pytest.approx(error(d.renoise_invert(gaussian, x0, t, SCHEDULE, count=9)))


def test_every_sample_has_a_grid_that_ends_at_its_own_step() -> None:
    grid = d.inversion_grid(SCHEDULE, torch.tensor([1, 50, 99]), 5)
    assert grid.times[0].tolist() == [0, 0, 0]
    assert torch.equal(grid.alpha_from[0], torch.ones(3, dtype=DOUBLE))
    torch.testing.assert_close(grid.alpha_to[-1], SCHEDULE.alphas_cumprod[[1, 50, 99]])
    alone = d.ddim_invert(gaussian, clean(1), torch.tensor([50]), SCHEDULE, count=5)
    together = d.ddim_invert(gaussian, clean(1).expand(3, -1), torch.tensor([1, 50, 99]), SCHEDULE, count=5)
    torch.testing.assert_close(together[1], alone[0])


def test_the_released_grid_ends_at_its_first_level_from_t_on() -> None:
    schedule = d.Schedule.from_betas(d.scaled_linear_betas(1000, 0.00085, 0.012))
    grid = d.inversion_grid(schedule, torch.tensor([2, 401, 999]), 10, grid="released")
    assert grid.times[:, 0].tolist() == [-99, 1, 101, 201, 301, 401, 501, 601, 701, 801]
    moved = grid.alpha_to < grid.alpha_from
    assert moved.sum(0).tolist() == [2, 5, 10]
    last = torch.where(moved, grid.alpha_to, 1.0).amin(0)
    torch.testing.assert_close(last, schedule.alphas_cumprod[[101, 401, 901]])


def test_noise_in_an_inverted_sample() -> None:
    x0, t = clean(), torch.arange(1, 65)
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    x_t = SCHEDULE.add_noise(x0, noise, t)
    tau = d.effective_noise(x_t, x0, SCHEDULE.alphas_cumprod[t])
    torch.testing.assert_close(tau, noise)
    estimate = d.reparametrised_x0(x_t, tau, SCHEDULE.alphas_cumprod[t])
    torch.testing.assert_close(estimate.x0, x0)


def test_inversion_has_no_gradient() -> None:
    weight = torch.ones((), requires_grad=True, dtype=DOUBLE)
    x = d.ddim_invert(lambda x, t, c: weight * gaussian(x, t, c), clean(), torch.full((64,), 9), SCHEDULE)
    assert not x.requires_grad


def test_random_inversion_takes_its_noise() -> None:
    x0, t = clean(), torch.full((64,), 40)
    noise = torch.randn(5, 64, 2, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    one, other = (d.ddim_invert(gaussian, x0, t, SCHEDULE, count=5, eta=eta, noise=noise) for eta in (0.0, 0.1))
    assert 0 < float((one - other).abs().mean()) < 0.2
    assert torch.isfinite(other).all()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_spread_of_the_model(eta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, 2, generator=generator, dtype=DOUBLE)
    run = d.sample(gaussian, noise, SCHEDULE, eta=eta, generator=generator)
    assert float(run.sample.std()) == pytest.approx(SPREAD, rel=0.05)
    assert run.states.shape == (100, 4000, 2)
    assert torch.equal(run.states[0], noise)
    assert run.times[:, 0].tolist() == list(range(99, -1, -1))


def test_few_sampling_steps_with_offsets_and_clamp() -> None:
    noise = 5 * torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    run = d.sample(gaussian, noise, SCHEDULE, count=20, offsets=torch.tensor([0, 4, 2]), clamp=0.3)
    assert run.times[:, 1].tolist() == list(range(99, -1, -5))
    assert float(run.sample.abs().max()) <= 0.3


def test_denoising_undoes_inversion() -> None:
    x0 = clean()
    x_t = d.ddim_invert(gaussian, x0, torch.full((64,), 99), SCHEDULE, count=99)
    torch.testing.assert_close(d.sample(gaussian, x_t, SCHEDULE).sample, x0, atol=0.1, rtol=0)


def test_density_of_a_step_by_hand() -> None:
    x_t, eps = torch.tensor([[0.3, -0.2]], dtype=DOUBLE), torch.tensor([[0.1, 0.4]], dtype=DOUBLE)
    noise = torch.tensor([[1.0, -1.0]], dtype=DOUBLE)
    step = d.ddim_step_with_logprob(eps, x_t, 0.3, 0.5, noise=noise)
    again = d.ddim_step_with_logprob(eps, x_t, 0.3, 0.5, x_prev=step.sample)
    expected = torch.distributions.Normal(step.mean, step.std[:, None]).log_prob(step.sample).mean(1)
    torch.testing.assert_close(again.log_prob, expected)
    torch.testing.assert_close(step.log_prob, expected)


def test_predictions_of_any_kind_become_noise() -> None:
    schedule = d.Schedule.from_betas(d.linear_betas(100, 1e-3, 0.12), "sample")
    model = d.predicting_noise(lambda x_t, t, cond: cond, schedule)
    x0, t = clean(3), torch.tensor([5, 50, 90])
    noise = torch.ones(3, 2, dtype=DOUBLE)
    torch.testing.assert_close(model(schedule.add_noise(x0, noise, t), t, x0), noise)


def test_the_buffer_draws_whole_triples_and_can_be_restored() -> None:
    buffer = d.TrajectoryBuffer(3)
    states = torch.arange(8.0).reshape(4, 2, 1)
    times = torch.tensor([[9, 8], [7, 6], [5, 4], [3, 2]])
    buffer.push(d.Trajectory(states, 10 * states, times, states[0]))
    place, state, noise, t = buffer.draw(2, torch.Generator().manual_seed(0))
    assert sorted(place.tolist()) == [0, 1]
    for p, s, n, step in zip(
        place.tolist(), state.squeeze(1).tolist(), noise.squeeze(1).tolist(), t.tolist(), strict=True
    ):
        k = times[:, p].tolist().index(step)
        assert (s, n) == (states[k, p].item(), 10 * states[k, p].item())
    other = d.TrajectoryBuffer(3)
    other.restore(buffer.state())
    assert torch.equal(
        other.draw(5, torch.Generator().manual_seed(1))[1], buffer.draw(5, torch.Generator().manual_seed(1))[1]
    )


ZERO = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: d.ddim_invert(gaussian, clean(1), torch.tensor([0]), SCHEDULE), r"t must lie in \[1, 100\), got 0"),
        (lambda: d.ddim_invert(gaussian, clean(1), torch.tensor([100]), SCHEDULE), r"t must lie in \[1, 100\)"),
        (lambda: d.inversion_grid(SCHEDULE, torch.tensor([5]), 0), "number of inversion steps"),
        (lambda: d.inversion_grid(SCHEDULE, torch.tensor([5]), 5, grid="x"), "unknown grid 'x'"),
        (lambda: d.ddim_invert(gaussian, clean(1), torch.tensor([5]), SCHEDULE, eta=0.1), "needs noise for each"),
        (lambda: d.invert(gaussian, ZERO, d.Grid(*[torch.zeros(1, 2)] * 3)), "is 0 at a step of this grid"),
        (
            lambda: d.invert(gaussian, ZERO, d.Grid(torch.zeros(1, 2), torch.full((1, 2), 0.5), torch.ones(1, 2))),
            "must not grow along the grid",
        ),
        (lambda: d.invert(gaussian, ZERO, d.Grid(*[torch.ones(1, 2)] * 3), renoise="x"), "unknown renoise 'x'"),
        (lambda: d.effective_noise(ZERO, ZERO, 1.0), "exclude step 0"),
        (lambda: d.effective_noise(ZERO / 0, ZERO, 0.5), "not finite"),
        (lambda: d.ddim_step_with_logprob(ZERO, ZERO, 0.3, 0.5, eta=0.0, noise=ZERO), "eta must be greater than 0"),
        (lambda: d.ddim_step_with_logprob(ZERO, ZERO, 0.5, 0.3, noise=ZERO), "alpha_prev must be greater"),
        (lambda: d.ddim_step_with_logprob(ZERO, ZERO, 0.5, 1.0, noise=ZERO), "has no density"),
        (lambda: d.ddim_step_with_logprob(ZERO, ZERO, 0.3, 0.5), "give the next state, or the noise"),
        (lambda: d.sampling_times(10, 11), r"must lie in \[1, 10\], got 11"),
        (lambda: d.sampling_times(10, 5, torch.tensor([2])), r"offsets must lie in \[0, 2\)"),
        (lambda: d.TrajectoryBuffer(0), "at least 1 trajectory"),
        (lambda: d.TrajectoryBuffer(1).draw(1, torch.Generator()), "holds no trajectory"),
        (
            lambda: d.TrajectoryBuffer(1).push(d.Trajectory(ZERO[:, :, None], ZERO[:, :, None], ZERO, ZERO)),
            "times of a trajectory must descend",
        ),
        (
            lambda: d.TrajectoryBuffer(1).push(d.Trajectory(ZERO[:, :, None], ZERO[:, :, None], ZERO[:1], ZERO)),
            "one state, prediction and time",
        ),
        (lambda: d.select_experts([], 3), "no items to choose experts from"),
        (lambda: d.ema_decay(3, 1.5), r"decay must lie in \[0, 1\]"),
        (lambda: d.median_win_rate(ZERO, ZERO, ZERO, ZERO), "take an odd number"),
        (lambda: d.median_win_rate(ZERO, ZERO, ZERO, ZERO[:1]), "must be of one shape"),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call()
