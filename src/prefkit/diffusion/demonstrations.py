"""Learning from demonstrations: experts' samples ranked above what the policy itself makes, with no pairs at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prefkit.diffusion.followers import follower, restore, state_of
from prefkit.diffusion.losses import denoising_error, dro_loss, dro_unclipped_loss
from prefkit.diffusion.sampling import TrajectoryBuffer, ema_decay, predicting_noise, sample
from prefkit.diffusion.schedules import Schedule
from prefkit.errors import OptionError
from prefkit.objectives import moving

Predictor = Callable[..., Tensor]


class RankedDemonstrations:
    """The loop of Diffusion-DRO around any denoiser.

    Args:
        model: what is trained; called as `model(x_t, t, cond)`.
        schedule: variance-preserving.
        margin: lead from which on a pair is left alone, in units of the mean squared error; None has no threshold.
        refresh: updates between two refreshes of the policy that gives the negatives; None never refreshes it.
        steps: of the sampler of negatives, without guidance.
        buffer: trajectories that are kept.
        decay: of the moving average of the weights, see `ema_decay`.
        clamp: predicted clean samples are held to [-clamp, clamp] in sampling; None for latents.

    Attributes:
        average: the moving average, which is what is used in the end.
        active: share of the last batch that the threshold let through.

    Raises:
        OptionError: an option is out of range.

    Source: Wu et al. 2025 (Diffusion-DRO, arXiv 2510.18353), algorithm 1.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        *,
        margin: float | None = 0.001,
        refresh: int | None = 1,
        steps: int = 20,
        buffer: int = 4,
        decay: float = 0.9999,
        clamp: float | None = None,
    ) -> None:
        if margin is not None and not margin >= 0:
            raise OptionError(f"margin must be at least 0, got {margin}")
        if refresh is not None and refresh < 1:
            raise OptionError(f"refresh must be at least 1 update, got {refresh}")
        if not 1 <= steps <= schedule.steps:
            raise OptionError(f"steps must lie in [1, {schedule.steps}], got {steps}")
        self.model, self.schedule, self.margin, self.refresh = model, schedule, margin, refresh
        self.steps, self.decay, self.clamp = steps, decay, clamp
        self.buffer, self.updates, self.active = TrajectoryBuffer(buffer), 0, 0.0
        self.reference, self.policy, self.average = (follower(model) for _ in range(3))

    @torch.no_grad()
    def explore(self, shape: tuple[int, ...], generator: torch.Generator, cond: Any = None) -> None:
        """Run the policy and keep its trajectories.

        Args:
            shape: of a batch of samples.
            generator: source of randomness, on the CPU.
            cond: condition of the samples.
        """
        weight = next(self.model.parameters())
        noise = torch.randn(shape, generator=generator).to(weight.device, weight.dtype)
        offsets = torch.randint(self.schedule.steps // self.steps, (shape[0],), generator=generator)
        model = predicting_noise(self.policy, self.schedule)
        how: dict[str, Any] = {"count": self.steps, "offsets": offsets.to(weight.device), "clamp": self.clamp}
        self.buffer.push(sample(model, noise, self.schedule, cond=cond, **how))

    def losses(
        self,
        experts: Callable[[Tensor], tuple[Float[Tensor, " batch *dims"], Any]],
        count: int,
        generator: torch.Generator,
    ) -> Float[Tensor, " batch"]:
        """Losses of states of the kept trajectories, each beside an expert's sample at the same step.

        Args:
            experts: from places in the buffer to clean expert samples, and the condition that both share.
            count: pairs.
            generator: source of randomness, on the CPU.

        Raises:
            OptionError: no trajectory is kept, or there is no expert.
        """
        place, state, policy_noise, t = self.buffer.draw(count, generator)
        x0, cond = experts(place)
        if len(x0) != len(place):
            raise OptionError(f"{len(place)} states need as many expert samples, got {len(x0)}")
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        both, times = torch.cat([self.schedule.add_noise(x0, noise, t), state]), t.repeat(2)
        told = None if cond is None else _twice(cond)
        trained = predicting_noise(self.model, self.schedule)(both, times, told).chunk(2)
        with torch.no_grad():
            frozen = predicting_noise(self.reference, self.schedule)(both, times, told).chunk(2)
        if self.margin is None:
            self.active = 1.0
            noises = (noise, policy_noise)
            errors = [denoising_error(p, n) for side in (trained, frozen) for p, n in zip(side, noises, strict=True)]
            return dro_unclipped_loss(*errors).losses
        found = dro_loss(trained[0], trained[1], frozen[0], frozen[1], noise, policy_noise, margin=self.margin)
        self.active = float(found.active.float().mean())
        return found.losses

    @torch.no_grad()
    def after_update(self) -> None:
        """Move the average, and refresh the policy when it is time; call it after every update."""
        self.updates += 1
        decay = ema_decay(self.updates, self.decay)
        for kept, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
            kept.lerp_(now, 1 - decay)
        if self.refresh is not None and self.updates % self.refresh == 0:
            self.policy.load_state_dict(self.model.state_dict())

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold beside the model."""
        kept = {"states": self.buffer.states, "noises": self.buffer.noises, "times": self.buffer.times}
        return {
            **state_of(self._copies, moving(self.model)),
            **{f"buffer {name}": tensor for name, tensor in kept.items()},
            "updates": torch.tensor(self.updates),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` was taken."""
        restore(self._copies, state)
        device = next(self.model.parameters()).device
        kept = (state[f"buffer {name}"].to(device) for name in ("states", "noises", "times"))
        self.buffer.states, self.buffer.noises, self.buffer.times = kept
        self.updates = int(state["updates"])

    @property
    def _copies(self) -> dict[str, nn.Module]:
        return {"policy": self.policy, "average": self.average}


def _twice(cond: Any) -> Any:
    """The condition of a batch for the batch and once more."""
    if isinstance(cond, Tensor):
        return torch.cat([cond, cond])
    return {name: torch.cat([value, value]) for name, value in cond.items()}
