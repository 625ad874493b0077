"""Sampling: steps between noise levels along the implicit (DDIM) path, and whole runs from noise to a sample.

A denoiser is anything that predicts noise: `model(x_t, t, cond)`, with the step as it was trained. Runs keep their
states where they are asked to, for methods that learn from a model's own trajectories.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefkit.diffusion.schedules import Schedule, expand
from prefkit.errors import OptionError

NoiseModel: TypeAlias = Callable[[Tensor, Tensor, Any], Tensor]
"""The noise in a sample: from x_t `[batch, ...]`, its step `[batch]` and a condition to `[batch, ...]`."""


def move(
    x: Float[Tensor, " batch *dims"],
    eps: Float[Tensor, " batch *dims"],
    alpha_from: Float[Tensor, " batch"],
    alpha_to: Float[Tensor, " batch"],
) -> Float[Tensor, " batch *dims"]:
    """A sample at another noise level, on the path on which its noise stays what it is.

    Args:
        x: the sample.
        eps: its noise, as predicted.
        alpha_from: its cumulative alpha, greater than 0.
        alpha_to: the cumulative alpha to move to, of more noise (inversion) or of less (denoising).

    Source: Song et al. 2021 (DDIM, arXiv 2010.02502), eq. 12 with eta = 0.
    """
    a, b = expand(alpha_from, x), expand(alpha_to, x)
    return b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps


class Transition(NamedTuple):
    """A stochastic step towards less noise.

    Args:
        sample: the next state.
        mean: mean of its distribution.
        std: standard deviation, one a sample.
        log_prob: log-density of the next state, a mean over its dimensions, in nats.
        clean: the clean sample that was predicted.
    """

    sample: Float[Tensor, " batch *dims"]
    mean: Float[Tensor, " batch *dims"]
    std: Float[Tensor, " batch"]
    log_prob: Float[Tensor, " batch"]
    clean: Float[Tensor, " batch *dims"]


def ddim_step_with_logprob(
    eps: Float[Tensor, " batch *dims"],
    x_t: Float[Tensor, " batch *dims"],
    alpha_t: float | Float[Tensor, " batch"],
    alpha_prev: float | Float[Tensor, " batch"],
    *,
    eta: float = 1.0,
    x_prev: Float[Tensor, " batch *dims"] | None = None,
    noise: Float[Tensor, " batch *dims"] | None = None,
    clamp: float | None = None,
) -> Transition:
    """A step of the stochastic implicit sampler, and how likely it was.

    Args:
        eps: predicted noise.
        x_t: state.
        alpha_t: cumulative alpha of the state.
        alpha_prev: cumulative alpha of the next state, greater than `alpha_t` and less than 1.
        eta: share of the variance of the ancestral sampler; 1 is DDPM.
        x_prev: the next state, where it is known; constant.
        noise: standard normal, from which the next state is made otherwise.
        clamp: predicted clean samples are held to [-clamp, clamp]; None leaves them (as latents should be).

    Raises:
        OptionError: eta is not positive, the levels are out of order, or neither `x_prev` nor `noise` is given.

    Source: Song et al. 2021 (DDIM, arXiv 2010.02502), eqs. 12, 16; Black et al. 2023 (DDPO, arXiv 2305.13301).
    """
    if not eta > 0:
        raise OptionError(f"eta must be greater than 0 for a step with a density, got {eta}")
    if (x_prev is None) == (noise is None):
        raise OptionError("give the next state, or the noise to make it from")
    a, b = _level(alpha_t, x_t), _level(alpha_prev, x_t)
    if not bool(((b > a) & (a > 0)).all()):
        raise OptionError("alpha_prev must be greater than alpha_t, and alpha_t greater than 0")
    if not bool((b < 1).all()):
        raise OptionError("alpha_prev must be less than 1: the last step onto a clean sample has no density")
    mean, std, clean = _step(eps, x_t, a, b, eta, clamp)
    drawn = x_prev if noise is None else mean + expand(std, x_t) * noise
    assert drawn is not None
    sample = drawn.detach()
    deviation = expand(std, x_t)
    density = -((sample - mean) ** 2) / (2 * deviation**2) - deviation.log() - 0.5 * math.log(2 * math.pi)
    return Transition(sample, mean, std, density.flatten(1).mean(1), clean)


def _step(eps: Tensor, x_t: Tensor, a: Tensor, b: Tensor, eta: float, clamp: float | None) -> tuple[Tensor, ...]:
    """Mean, standard deviation and clean sample of a step from level a to level b, one each a sample."""
    at, to = expand(a, x_t), expand(b, x_t)
    clean = (x_t - (1 - at).sqrt() * eps) / at.sqrt()
    if clamp is not None:
        clean = clean.clamp(-clamp, clamp)
        # What is left of the state is its noise.
        eps = (x_t - at.sqrt() * clean) / (1 - at).sqrt()
    std = eta * ((1 - b) / (1 - a) * (1 - a / b)).clamp(min=0).sqrt()
    mean = to.sqrt() * clean + (1 - to - expand(std, x_t) ** 2).clamp(min=0).sqrt() * eps
    return mean, std, clean


def _level(alpha: float | Tensor, like: Tensor) -> Tensor:
    level = torch.as_tensor(alpha, dtype=like.dtype, device=like.device)
    return level.expand(len(like)) if level.ndim == 0 else level


@dataclass(frozen=True)
class Trajectory:
    """A sampling run: the state that the denoiser saw at each step, what it said, and when.

    Args:
        states: `[n, batch, ...]`, from pure noise on; the clean sample is not among them.
        noises: `[n, batch, ...]`, the noise that was predicted at each.
        times: `[n, batch]`, descending.
        sample: `[batch, ...]`, the clean sample at the end.
    """

    states: Float[Tensor, "n batch *dims"]
    noises: Float[Tensor, "n batch *dims"]
    times: Int[Tensor, "n batch"]
    sample: Float[Tensor, " batch *dims"]


def sampling_times(steps: int, count: int, offsets: Int[Tensor, " batch"] | None = None) -> Int[Tensor, "count batch"]:
    """Steps of a sampling run, descending: multiples of floor(T / N), with an offset for each run.

    Args:
        steps: T, number of training steps.
        count: N, number of sampling steps.
        offsets: added to all steps of a run, in [0, floor(T / N)), so that in the end every step is visited; by default
            the greatest, for one run.

    Raises:
        OptionError: there are more sampling than training steps, or an offset is out of range.

    Source: Wu et al. 2025 (Diffusion-DRO, arXiv 2510.18353), released code.
    """
    if not 1 <= count <= steps:
        raise OptionError(f"the number of sampling steps must lie in [1, {steps}], got {count}")
    stride = steps // count
    if offsets is None:
        offsets = torch.tensor([stride - 1])
    if not bool(((offsets >= 0) & (offsets < stride)).all()):
        raise OptionError(f"offsets must lie in [0, {stride}), got {offsets.tolist()}")
    base = torch.arange(count - 1, -1, -1, device=offsets.device) * stride
    return base[:, None] + offsets[None]


@torch.no_grad()
def sample(
    model: NoiseModel,
    x: Float[Tensor, " batch *dims"],
    schedule: Schedule,
    *,
    count: int | None = None,
    cond: Any = None,
    eta: float = 0.0,
    offsets: Int[Tensor, " batch"] | None = None,
    clamp: float | None = None,
    generator: torch.Generator | None = None,
) -> Trajectory:
    """Samples from noise, and the states on the way.

    Args:
        model: predicts noise.
        x: noise to begin with.
        schedule: variance-preserving.
        count: sampling steps; all training steps by default, which with eta = 1 is the ancestral sampler of DDPM.
        cond: passed on to the model.
        eta: randomness of each step, in [0, 1].
        offsets: of the steps, see `sampling_times`.
        clamp: predicted clean samples are held to [-clamp, clamp]; None leaves them.
        generator: source of randomness, if eta > 0.

    Raises:
        OptionError: see `sampling_times`.
    """
    times = sampling_times(schedule.steps, count or schedule.steps, None if offsets is None else offsets.to(x.device))
    times = times.to(x.device).expand(-1, len(x))
    alphas = schedule.alphas_cumprod.to(x.device, x.dtype)
    states, noises = [], []
    for place, t in enumerate(times):
        eps = model(x, t, cond)
        states.append(x)
        noises.append(eps)
        last = place == len(times) - 1
        to = torch.ones_like(alphas[t]) if last else alphas[times[place + 1]]
        mean, std, clean = _step(eps, x, alphas[t], to, eta, clamp)
        x = clean if last else mean
        if eta > 0 and not last:
            draw = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=_device(generator, x)).to(x.device)
            x = x + expand(std, x) * draw
    return Trajectory(torch.stack(states), torch.stack(noises), times.contiguous(), x)


def _device(generator: torch.Generator | None, like: Tensor) -> torch.device:
    return like.device if generator is None else generator.device


def predicting_noise(model: Callable[[Tensor, Tensor, Any], Tensor], schedule: Schedule) -> NoiseModel:
    """A denoiser of any prediction type as one that predicts noise."""

    def noise(x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return schedule.noise(model(x_t, t, cond), x_t, t)

    return noise


class TrajectoryBuffer:
    """The newest few trajectories of a policy, each with the state, prediction and time of every step.

    Args:
        size: trajectories that are kept.

    Attributes:
        states: `[kept, n, ...]`, oldest first.
        noises: `[kept, n, ...]`.
        times: `[kept, n]`.

    Raises:
        OptionError: size is below 1.

    Source: Diffusion-DRO's code (arXiv 2510.18353).
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise OptionError(f"a buffer keeps at least 1 trajectory, got {size}")
        self.size = size
        self.states = self.noises = self.times = torch.empty(0)

    def __len__(self) -> int:
        return len(self.states)

    def push(self, trajectory: Trajectory) -> None:
        """Add the trajectories of a batch, and forget the oldest.

        Raises:
            OptionError: times do not descend, or states, predictions and times do not belong together.
        """
        states, noises, times = trajectory.states, trajectory.noises, trajectory.times
        if states.shape != noises.shape or states.shape[:2] != times.shape:
            raise OptionError(
                "a trajectory needs one state, prediction and time a step and sample, got "
                f"{tuple(states.shape)}, {tuple(noises.shape)} and {tuple(times.shape)}"
            )
        if bool((times.diff(dim=0) >= 0).any()):
            raise OptionError("the times of a trajectory must descend: states and times are not aligned")
        new = [part.transpose(0, 1).detach() for part in (states, noises, times)]
        old = (self.states, self.noises, self.times)
        both = [torch.cat([kept, fresh]) if len(kept) else fresh for kept, fresh in zip(old, new, strict=True)]
        self.states, self.noises, self.times = (part[-self.size :] for part in both)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States of different trajectories, each at a step drawn uniformly.

        Args:
            count: how many; trajectories are repeated only if there are fewer.
            generator: source of randomness.

        Returns:
            Place of the trajectory, state, prediction and time.

        Raises:
            OptionError: there are no trajectories.
        """
        if not len(self):
            raise OptionError("the buffer holds no trajectory: push one first")
        if count <= len(self):
            place = torch.randperm(len(self), generator=generator)[:count]
        else:
            place = torch.randint(len(self), (count,), generator=generator)
        step = torch.randint(self.times.shape[1], (count,), generator=generator)
        place, step = place.to(self.states.device), step.to(self.states.device)
        return place, self.states[place, step], self.noises[place, step], self.times[place, step]

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"states": self.states, "noises": self.noises, "times": self.times}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self.states, self.noises, self.times = state["states"], state["noises"], state["times"]


def recorded(
    x_T: Float[Tensor, " batch *dims"],
    after: Float[Tensor, "n batch *dims"],
    noises: Float[Tensor, "n batch *dims"],
    times: Int[Tensor, " n *batch"],
) -> Trajectory:
    """A trajectory from what samplers report: the state after each step, not the one that the denoiser saw.

    Args:
        x_T: noise that the run began with.
        after: the state after each step; the last is the clean sample.
        noises: prediction at each step.
        times: of the steps, descending; one for all samples or one each.
    """
    states = torch.cat([x_T[None], after[:-1]])
    if times.ndim == 1:
        times = times[:, None].expand(-1, len(x_T))
    return Trajectory(states, noises, times, after[-1])


def select_experts(scores: Sequence[float] | Tensor, k: int) -> tuple[list[int], float]:
    """The items with the greatest scores, best first; of equal ones the later first.

    Args:
        scores: one an item (an image with a prompt).
        k: how many, at least 1 and at most all.

    Returns:
        Their places, and their mean score.

    Raises:
        OptionError: there are no items.

    Source: Diffusion-DRO's code (arXiv 2510.18353).
    """
    values = [float(score) for score in scores]
    if not values:
        raise OptionError("there are no items to choose experts from")
    order = sorted(range(len(values)), key=lambda place: (values[place], place), reverse=True)
    chosen = order[: min(max(k, 1), len(values))]
    return chosen, sum(values[place] for place in chosen) / len(chosen)


def ema_decay(step: int, decay: float = 0.9999) -> float:
    """Decay of a moving average of weights after an update, which starts at 0 and grows towards `decay`.

    Args:
        step: number of the update, from 1.
        decay: its greatest value, in [0, 1].

    Raises:
        OptionError: the decay is out of range.

    Source: the moving average of diffusers, without its warm-up option.
    """
    if not 0 <= decay <= 1:
        raise OptionError(f"decay must lie in [0, 1], got {decay}")
    before = max(0, step - 1)
    return 0.0 if before <= 0 else min(decay, (1 + before) / (10 + before))


class MedianWins(NamedTuple):
    """Which sample stands for each prompt, and the share of prompts that the first model wins."""

    index_a: Int[Tensor, " prompts"]
    index_b: Int[Tensor, " prompts"]
    wins: Float[Tensor, " prompts"]

    @property
    def win_rate(self) -> Float[Tensor, ""]:
        """Share of prompts in which the first model is strictly better."""
        return self.wins.mean()


def median_win_rate(
    selector_a: Float[Tensor, "prompts samples"],
    metric_a: Float[Tensor, "prompts samples"],
    selector_b: Float[Tensor, "prompts samples"],
    metric_b: Float[Tensor, "prompts samples"],
) -> MedianWins:
    """Win rate between two models, of each the sample whose selecting score is the median.

    Args:
        selector_a: score by which the first model's sample is selected.
        metric_a: score by which it is compared; another one, so that selection does not favour either.
        selector_b: the second model's.
        metric_b: the second model's.

    Raises:
        OptionError: the number of samples is even, or the shapes differ.

    Source: Wu et al. 2025 (Diffusion-DRO, arXiv 2510.18353), section 4.
    """
    if len({part.shape for part in (selector_a, metric_a, selector_b, metric_b)}) > 1:
        raise OptionError("selectors and metrics must be of one shape, [prompts, samples]")
    samples = selector_a.shape[1]
    if samples % 2 == 0:
        raise OptionError(f"the median of {samples} samples is no sample: take an odd number a prompt")
    first, second = (scores.argsort(dim=1, stable=True)[:, samples // 2] for scores in (selector_a, selector_b))
    better = metric_a.gather(1, first[:, None]) > metric_b.gather(1, second[:, None])
    return MedianWins(first, second, better[:, 0].to(metric_a.dtype))
