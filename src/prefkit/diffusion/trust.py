"""Trust in a reward: how certain a reward model with a linear last layer is of each sample, and learning by that.

The bound is that of ridge regression on the model's features. In policy-gradient fine-tuning it multiplies the loss of
each sample, so that rewards that can be relied on count for more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prefkit.diffusion.followers import follower, restore, state_of
from prefkit.diffusion.sampling import Trajectory, Transition, ddim_step_with_logprob, predicting_noise, sample
from prefkit.diffusion.schedules import Schedule
from prefkit.errors import OptionError, unknown
from prefkit.objectives import moving


class RewardUncertainty:
    """Uncertainty of a reward that is linear in features, from the features it was fitted on.

    Args:
        features: of the reward model's training data.
        lam: lambda, strength of the ridge penalty, above 0.

    Attributes:
        V: lambda I + sum of z z^T.
        V_inverse: its inverse.

    Raises:
        OptionError: lambda is not positive, or V cannot be inverted.

    Source: Liu et al. 2024 (PrefPaint, arXiv 2410.21966); the bound: Abbasi-Yadkori et al. 2011, theorem 2.
    """

    def __init__(self, features: Float[Tensor, "n dim"], lam: float = 0.01) -> None:
        if not lam > 0:
            raise OptionError(f"lam must be greater than 0, got {lam}")
        if features.ndim != 2 or not bool(torch.isfinite(features).all()):
            raise OptionError("features must be finite, one row a training sample")
        self.lam, self.features = lam, features
        self.V = (
            lam * torch.eye(features.shape[1], dtype=features.dtype, device=features.device) + features.T @ features
        )
        try:
            self.V_inverse: Tensor = torch.linalg.inv(self.V)
        except RuntimeError as error:
            raise OptionError("V is singular; choose a larger lam") from error

    def norm(
        self, z: Float[Tensor, "batch dim"], kind: Literal["paper", "released"] = "paper"
    ) -> Float[Tensor, " batch"]:
        """Uncertainty of samples.

        Args:
            z: their features.
            kind: `paper` is sqrt(z^T V^-1 z), to which the error bound belongs; `released` is |V^-1 z|, to which the
                published constants of `amplification` belong.

        Raises:
            OptionError: the kind is unknown, or the features have another size.
        """
        if z.shape[-1] != self.V.shape[0]:
            raise OptionError(f"features must have {self.V.shape[0]} dimensions, got {z.shape[-1]}")
        moved = z @ self.V_inverse
        if kind == "paper":
            return (moved * z).sum(-1).clamp(min=0).sqrt()
        if kind == "released":
            length: Tensor = torch.linalg.vector_norm(moved, dim=-1)
            return length
        raise OptionError(unknown("norm", str(kind), ("paper", "released")))

    def fit(self, rewards: Float[Tensor, " n"]) -> Float[Tensor, " dim"]:
        """Weights of the ridge regression on the training features: V^-1 sum of z r."""
        return self.V_inverse @ (self.features.T @ rewards)

    def bound(self, z: Float[Tensor, "batch dim"], *, sigma: float, S: float, delta: float) -> Float[Tensor, " batch"]:
        """How far the fitted reward is from the true one at most, with probability 1 - delta, for all samples at once.

        Args:
            z: features of the samples.
            sigma: scale of the (sub-Gaussian) noise of the training rewards.
            S: bound on the norm of the true weights.
            delta: probability that it does not hold, in (0, 1).

        Raises:
            OptionError: delta is out of range, or sigma or S is negative.
        """
        if not 0 < delta < 1 or sigma < 0 or S < 0:
            raise OptionError(f"delta must lie in (0, 1), sigma and S must be at least 0: got {delta}, {sigma}, {S}")
        logdet = torch.logdet(self.V) - len(self.V) * math.log(self.lam)
        radius = sigma * (2 * (0.5 * logdet - math.log(delta))).sqrt() + math.sqrt(self.lam) * S
        return self.norm(z) * radius


def amplification(
    u: Float[Tensor, " batch"], *, k: float = 0.05, b: float = 0.7, lo: float = 1.0, hi: float = 2.21
) -> Float[Tensor, " batch"]:
    """Factor of a sample's loss: exp(-k u + b), held to [lo, hi]. Trusted samples, of small u, count for more.

    Args:
        u: uncertainty, see `RewardUncertainty.norm`; the default constants belong to the kind "released".
        k: how fast the factor falls.
        b: its logarithm at u = 0.
        lo: its least value.
        hi: its greatest value.

    Raises:
        OptionError: an uncertainty is negative, or the bounds are out of order.

    Source: Liu et al. 2024 (PrefPaint, arXiv 2410.21966), released configuration.
    """
    if bool((u < 0).any()):
        raise OptionError("uncertainties must be at least 0")
    if not 0 <= lo <= hi:
        raise OptionError(f"the factor is held to [lo, hi] with 0 <= lo <= hi, got {lo} and {hi}")
    return torch.exp(-k * u + b).clamp(lo, hi)


def normalised_advantages(rewards: Float[Tensor, " batch"], *, clip: float = 10.0) -> Float[Tensor, " batch"]:
    """Rewards less their mean, over their (unbiased) standard deviation, held to [-clip, clip].

    A reward that is NaN counts for nothing: it is left out of mean and deviation, and its advantage is 0.

    Raises:
        OptionError: fewer than two rewards are numbers.

    Source: Black et al. 2023 (DDPO, arXiv 2305.13301); PrefPaint's code.
    """
    known = ~torch.isnan(rewards)
    valid = rewards[known]
    if len(valid) < 2:
        raise OptionError(f"advantages need at least two rewards, got {len(valid)}: a single one has no deviation")
    scaled = ((rewards - valid.mean()) / (valid.std() + 1e-7)).clamp(-clip, clip)
    return torch.where(known, scaled, 0.0)


class ClippedLosses(NamedTuple):
    """Losses of transitions, and their probability ratios."""

    losses: Float[Tensor, " batch"]
    ratio: Float[Tensor, " batch"]


def amplified_clipped_loss(
    log_probs: Float[Tensor, " batch"],
    old_log_probs: Float[Tensor, " batch"],
    advantages: Float[Tensor, " batch"],
    gamma: Float[Tensor, " batch"],
    *,
    clip_range: float = 1e-4,
) -> ClippedLosses:
    """Clipped policy gradient with a factor a sample: gamma max(-A rho, -A clip(rho, 1 - c, 1 + c)).

    The published code sums it over the batch.

    Args:
        log_probs: log-density of each transition under the trained model, a mean over dimensions.
        old_log_probs: the same under the model that sampled; constant.
        advantages: A; constant.
        gamma: factors, above 0, see `amplification`; constant.
        clip_range: c, which fits log-densities that are means.

    Raises:
        OptionError: a factor or the clip range is not positive, or the shapes differ.

    Source: Liu et al. 2024 (PrefPaint, arXiv 2410.21966); Schulman et al. 2017 (PPO, arXiv 1707.06347), eq. 7.
    """
    if not clip_range > 0:
        raise OptionError(f"clip_range must be greater than 0, got {clip_range}")
    if not bool((gamma > 0).all()):
        raise OptionError("gamma must be greater than 0 for every sample")
    if len({part.shape for part in (log_probs, old_log_probs, advantages, gamma)}) > 1:
        raise OptionError("log_probs, old_log_probs, advantages and gamma must be of one shape")
    ratio = torch.exp(log_probs - old_log_probs.detach())
    plain = -advantages.detach() * ratio
    held = -advantages.detach() * ratio.clamp(1 - clip_range, 1 + clip_range)
    return ClippedLosses(gamma.detach() * torch.maximum(plain, held), ratio)


def reward_regression_loss(
    predicted: Float[Tensor, " batch"], target: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Squared error of a reward model on (normalised) human scores."""
    return F.mse_loss(predicted, target, reduction="none")


class AmplifiedPolicyGradient:
    """Policy gradients on the transitions of sampling runs, with a factor for each sample by how certain its reward is.

    Args:
        model: what is trained; called as `model(x_t, t, cond)`.
        schedule: variance-preserving, with noise left at its first step.
        reward: from clean samples and the condition to rewards and their factors, see `amplification`.
        steps: of the stochastic sampler.
        transitions: of each run that are trained, drawn without replacement; the last step has no density.
        refresh: iterations between two refreshes of the copy that samples.
        clip_range: see `amplified_clipped_loss`.
        advantage_clip: see `normalised_advantages`.
        eta: randomness of the sampler, above 0.
        anchor: weight of the absolute difference of the transitions' means from those of the sampling copy; 0 in the
            released code.

    Raises:
        OptionError: an option is out of range.

    Source: Liu et al. 2024 (PrefPaint, arXiv 2410.21966); Black et al. 2023 (DDPO, arXiv 2305.13301).
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        reward: Callable[[Tensor, Any], tuple[Tensor, Tensor]],
        *,
        steps: int = 50,
        transitions: int = 5,
        refresh: int = 15,
        clip_range: float = 1e-4,
        advantage_clip: float = 10.0,
        eta: float = 1.0,
        anchor: float = 0.0,
    ) -> None:
        if not 1 <= transitions < steps <= schedule.steps:
            raise OptionError(
                f"transitions must be fewer than the {steps} steps of the sampler, and these at most "
                f"{schedule.steps}, got {transitions}"
            )
        if not eta > 0:
            raise OptionError(f"eta must be greater than 0: transitions need a density, got {eta}")
        if refresh < 1:
            raise OptionError(f"refresh must be at least 1 iteration, got {refresh}")
        self.model, self.schedule, self.reward = model, schedule, reward
        self.steps, self.transitions, self.refresh = steps, transitions, refresh
        self.clip_range, self.advantage_clip, self.eta, self.anchor = clip_range, advantage_clip, eta, anchor
        self.iterations = 0
        self.sampler = follower(model)

    def losses(
        self, shape: tuple[int, ...], generator: torch.Generator, cond: Any = None
    ) -> Iterator[Float[Tensor, " batch"]]:
        """Run the sampling copy, and give the losses of some transitions, one after the other.

        Each is computed when it is asked for, so the weights may be updated between two of them. The published code
        sums them over the batch; with a mean the learning rate has another meaning.

        Args:
            shape: of a batch of samples, at least two.
            generator: source of randomness, on the CPU.
            cond: condition of the samples.
        """
        weight = next(self.model.parameters())
        noise = torch.randn(shape, generator=generator).to(weight.device, weight.dtype)
        frozen = predicting_noise(self.sampler, self.schedule)
        run = sample(frozen, noise, self.schedule, count=self.steps, cond=cond, eta=self.eta, generator=generator)
        rewards, factors = self.reward(run.sample, cond)
        advantages = normalised_advantages(rewards.detach(), clip=self.advantage_clip)
        # A reward that is no number counts for nothing, whatever its factor.
        factors = torch.where(torch.isnan(factors), 1.0, factors.detach())
        chosen = torch.randperm(self.steps - 1, generator=generator)[: self.transitions].tolist()
        before = [self._transition(run.noises[place], run, place) for place in chosen]
        trained = predicting_noise(self.model, self.schedule)
        for place, old in zip(chosen, before, strict=True):
            now = self._transition(trained(run.states[place], run.times[place], cond), run, place)
            losses = amplified_clipped_loss(
                now.log_prob, old.log_prob, advantages, factors, clip_range=self.clip_range
            ).losses
            if self.anchor:
                losses = losses + self.anchor * (now.mean - old.mean).abs().flatten(1).mean(1)
            yield losses
        self.iterations += 1
        if self.iterations % self.refresh == 0:
            self.sampler.load_state_dict(self.model.state_dict())

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold beside the model."""
        copies = state_of({"sampler": self.sampler}, moving(self.model))
        return {**copies, "iterations": torch.tensor(self.iterations)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` was taken."""
        restore({"sampler": self.sampler}, state)
        self.iterations = int(state["iterations"])

    def _transition(self, eps: Tensor, run: Trajectory, place: int) -> Transition:
        alphas = self.schedule.alphas_cumprod.to(eps.device, eps.dtype)
        levels = alphas[run.times[place]], alphas[run.times[place + 1]]
        return ddim_step_with_logprob(eps, run.states[place], *levels, eta=self.eta, x_prev=run.states[place + 1])
