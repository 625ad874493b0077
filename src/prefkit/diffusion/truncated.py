"""Truncated diffusion fine-tuning: a model that learns from the first steps of its own sampling runs.

A few denoising steps of a teacher, a noised state further up the same run, and the teacher's one-step estimate of the
clean sample as the target. No data and no whole samples are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prefkit.diffusion.followers import follower, restore, state_of
from prefkit.diffusion.guidance import guided
from prefkit.diffusion.inversion import reparametrised_x0
from prefkit.diffusion.sampling import NoiseModel, move, predicting_noise
from prefkit.diffusion.schedules import Schedule, expand
from prefkit.errors import OptionError, unknown
from prefkit.objectives import moving


class Rollout(NamedTuple):
    """Where truncated denoising ended.

    Args:
        x_t: the states.
        times: their steps; 0 for a run that has come to its end.
        target: the teacher's estimate of the clean samples.
        start_times: the steps that the runs began at.
    """

    x_t: Float[Tensor, " batch *dims"]
    times: Int[Tensor, " batch"]
    target: Float[Tensor, " batch *dims"]
    start_times: Int[Tensor, " batch"]


@torch.no_grad()
def truncated_rollout(
    teacher: NoiseModel,
    x: Float[Tensor, " batch *dims"],
    index: Int[Tensor, " batch"],
    schedule: Schedule,
    *,
    count: int = 25,
    steps: int | Int[Tensor, " batch"] = 5,
    guidance: float = -5.0,
    cond: Any = None,
    uncond: Any = None,
) -> Rollout:
    """A few deterministic denoising steps of the teacher, and its estimate of the clean sample at the end.

    Level j of the grid is step (j + 1) floor(T / N) - 1; from j = 0 a run goes to step 0 and stops there.

    Args:
        teacher: predicts noise.
        x: states to begin with.
        index: level of the grid that each is at, in [0, N).
        schedule: variance-preserving.
        count: N, levels of the grid.
        steps: K, denoising steps; one number, or one a run.
        guidance: w of e = e_c + w (e_c - e_u): 0 is the conditional prediction, -1 the unconditional one, below that
            the guidance points away from the condition. It serves the steps and the estimate.
        cond: condition of the teacher.
        uncond: its empty condition.

    Raises:
        OptionError: K or an index is out of range.

    Source: Wang et al. 2025 (Self-NPO, arXiv 2505.11777), released code; the estimate is always that of the last state.
    """
    most = int(torch.as_tensor(steps).max())
    least = int(torch.as_tensor(steps).min())
    if not (least >= 1 and most <= count):
        raise OptionError(f"the number of denoising steps must lie in [1, {count}], got {steps}")
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < count):
        raise OptionError(f"levels must lie in [0, {count}), got {int(index.min())} to {int(index.max())}")
    stride = schedule.steps // count
    alphas = schedule.alphas_cumprod.to(x.device, x.dtype)
    left = torch.as_tensor(steps, device=x.device).expand(len(x))

    def time(level: Tensor) -> Tensor:
        return ((level + 1) * stride - 1).where(level >= 0, 0)

    def predict(state: Tensor, level: Tensor) -> Tensor:
        if guidance == 0:
            return teacher(state, time(level), cond)
        if guidance == -1:
            return teacher(state, time(level), uncond)
        positive, negative = teacher(state, time(level), cond), teacher(state, time(level), uncond)
        return guided(positive, negative, 1 + guidance)

    level, start = index, time(index)
    for number in range(most):
        moving = (level >= 0) & (number < left)
        if not bool(moving.any()):
            break
        after = torch.where(moving, level - 1, level)
        moved = move(x, predict(x, level), alphas[time(level)], alphas[time(after)])
        x = torch.where(expand(moving.to(x.dtype), x) > 0, moved, x)
        level = after
    target = reparametrised_x0(x, predict(x, level), alphas[time(level)]).x0
    return Rollout(x, time(level), target, start)


def renoise_from_state(
    x_t: Float[Tensor, " batch *dims"],
    abar_t: Float[Tensor, " batch"],
    abar_s: Float[Tensor, " batch"],
    z: Float[Tensor, " batch *dims"],
) -> Float[Tensor, " batch *dims"]:
    """A state at a step s > t, from the state at step t and fresh noise.

    Args:
        x_t: states.
        abar_t: their cumulative alphas.
        abar_s: cumulative alphas of the later step, less than `abar_t`.
        z: standard normal.

    Raises:
        OptionError: s is not later than t.

    Source: Wang et al. 2025 (Self-NPO, arXiv 2505.11777).
    """
    if not bool((abar_s < abar_t).all()):
        raise OptionError("noise is added up to a later step: the cumulative alpha of s must be less than that of t")
    ratio = abar_s / abar_t
    fresh = ((1 - abar_s) - (1 - abar_t) * ratio).clamp(min=0).sqrt()
    return expand(ratio.sqrt(), x_t) * x_t + expand(fresh, x_t) * z


class TruncatedLosses(NamedTuple):
    """Losses of the student, one a sample, and its estimates of the clean samples."""

    losses: Float[Tensor, " batch"]
    x0: Float[Tensor, " batch *dims"]


def tdft_loss(
    policy_pred: Float[Tensor, " batch *dims"],
    x_s: Float[Tensor, " batch *dims"],
    x0_target: Float[Tensor, " batch *dims"],
    abar_s: Float[Tensor, " batch"],
    *,
    loss_type: Literal["huber", "l2"] = "huber",
    huber_c: float = 0.001,
) -> TruncatedLosses:
    """Distance of the student's clean estimate from the teacher's, a mean over the dimensions of each sample.

    Args:
        policy_pred: noise predicted by the student at x_s.
        x_s: states; constant.
        x0_target: the teacher's estimates; constant.
        abar_s: cumulative alphas of the states.
        loss_type: `huber`, sqrt(d^2 + c^2) - c, as in the launch scripts, or `l2`, d^2, as in the paper.
        huber_c: c.

    Raises:
        OptionError: the loss is unknown.

    Source: Wang et al. 2025 (Self-NPO, arXiv 2505.11777).
    """
    estimate = reparametrised_x0(x_s, policy_pred, abar_s).x0
    distance = (estimate - x0_target.detach()) ** 2
    if loss_type == "huber":
        distance = (distance + huber_c**2).sqrt() - huber_c
    elif loss_type != "l2":
        raise OptionError(unknown("loss_type", str(loss_type), ("huber", "l2")))
    return TruncatedLosses(distance.flatten(1).mean(1), estimate)


class TruncatedFineTuning:
    """The loop of truncated diffusion fine-tuning around any noise model.

    Args:
        model: the student; called as `model(x_t, t, cond)`.
        schedule: variance-preserving.
        count: N, levels of the teacher's grid.
        steps: K, denoising steps of a run at most; each run takes between 1 and K.
        guidance: w of the teacher, see `truncated_rollout`.
        start: `noise` begins with pure noise, so that no data are needed; `data` with a noised sample.
        teacher: `ema` averages the student's weights as it learns, `frozen` stays the model as it was.
        decay: of the average.
        loss_type: see `tdft_loss`.
        huber_c: see `tdft_loss`.

    Raises:
        OptionError: an option is out of range.

    Source: Wang et al. 2025 (Self-NPO, arXiv 2505.11777); what the paper leaves open is as in the released script, but
        for the start, which is data-free here.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        *,
        count: int = 25,
        steps: int = 5,
        guidance: float = -5.0,
        start: Literal["noise", "data"] = "noise",
        teacher: Literal["ema", "frozen"] = "ema",
        decay: float = 0.999,
        loss_type: Literal["huber", "l2"] = "huber",
        huber_c: float = 0.001,
    ) -> None:
        if not 1 <= steps < count:
            raise OptionError(f"steps must lie in [1, {count}) (the levels of the grid), got {steps}")
        if start not in ("noise", "data"):
            raise OptionError(unknown("start", str(start), ("noise", "data")))
        if teacher not in ("ema", "frozen"):
            raise OptionError(unknown("teacher", str(teacher), ("ema", "frozen")))
        if not math.isfinite(guidance):
            raise OptionError(f"guidance must be a finite number, got {guidance}")
        self.model, self.schedule, self.count, self.steps = model, schedule, count, steps
        self.guidance, self.start, self.decay = guidance, start, decay
        self.loss_type, self.huber_c = loss_type, huber_c
        self.averaged = teacher == "ema"
        self.teacher = follower(model)

    def losses(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator,
        *,
        cond: Any = None,
        uncond: Any = None,
        x0: Float[Tensor, " batch *dims"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """The student's losses on fresh runs of the teacher.

        Args:
            shape: of a batch of samples.
            generator: source of randomness.
            cond: condition of the samples.
            uncond: the empty condition.
            x0: clean samples, for `start="data"`.

        Raises:
            OptionError: the start needs samples and there are none, or the guidance needs an empty condition.
        """
        weight = next(self.model.parameters())

        def normal() -> Tensor:
            drawn = torch.randn(shape, generator=generator, device=generator.device)
            return drawn.to(weight.device, weight.dtype)

        def integers(low: Tensor, high: Tensor) -> Tensor:
            share = torch.rand(shape[0], generator=generator, device=generator.device).to(weight.device)
            return low + (share * (high - low)).long().clamp(max=(high - low - 1).max())

        if self.guidance != 0 and cond is not None and uncond is None:
            raise OptionError("the teacher's guidance needs the empty condition: give uncond, or guidance = 0")
        alphas = self.schedule.alphas_cumprod.to(weight.device, weight.dtype)
        ones = torch.ones(shape[0], dtype=torch.long, device=weight.device)
        if self.start == "data":
            if x0 is None:
                raise OptionError("start='data' begins with noised samples: give x0")
            index = integers(0 * ones, self.count * ones)
            stride = self.schedule.steps // self.count
            begin = self.schedule.add_noise(x0, normal(), (index + 1) * stride - 1)
        else:
            index, begin = (self.count - 1) * ones, normal()
        found = truncated_rollout(
            predicting_noise(self.teacher, self.schedule),
            begin,
            index,
            self.schedule,
            count=self.count,
            steps=integers(ones, (self.steps + 1) * ones),
            guidance=self.guidance,
            cond=cond,
            uncond=uncond,
        )
        later = integers(found.times + 1, self.schedule.steps * ones)
        x_s = renoise_from_state(found.x_t, alphas[found.times], alphas[later], normal())
        predicted = predicting_noise(self.model, self.schedule)(x_s, later, cond)
        return tdft_loss(
            predicted, x_s, found.target, alphas[later], loss_type=self.loss_type, huber_c=self.huber_c
        ).losses

    @torch.no_grad()
    def after_update(self) -> None:
        """Let the teacher follow the student; call it after every update."""
        if self.averaged:
            for kept, now in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
                kept.lerp_(now, 1 - self.decay)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold beside the model."""
        return state_of({"teacher": self.teacher}, moving(self.model)) if self.averaged else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` was taken."""
        restore({"teacher": self.teacher}, state)

    def offset(self, base: nn.Module) -> dict[str, Tensor]:
        """What the training added to a base model, for `guidance.merge_negative_weights`."""
        before = base.state_dict()
        return {name: weight - before[name] for name, weight in self.model.state_dict().items()}


def as_negative(step: Callable[..., Any]) -> Callable[..., Any]:
    """A preference loss that learns what people dislike: chosen and rejected arguments change places.

    Args:
        step: takes keyword arguments of which those of the two sides have `chosen` and `rejected` in their names.

    Source: Wang et al. 2025 (Diffusion-NPO, arXiv 2505.11245).
    """

    def negative(*args: Any, **given: Any) -> Any:
        if args:
            raise OptionError("give the scores of both sides by name, so that they can change places")
        return step(**{_other(name): value for name, value in given.items()})

    return negative


def _other(name: str) -> str:
    return name.replace("chosen", "rejected") if "chosen" in name else name.replace("rejected", "chosen")
