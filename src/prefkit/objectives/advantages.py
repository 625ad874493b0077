"""Advantages: how much better a response, or a token of it, was than expected, for learning from rewards.

Tensors of tokens are `[batch, time]`, padded on the right; masks are 1 where there is a token. Log-probabilities are
in nats.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from prefkit.errors import OptionError, PrefkitError, unknown

KlMode = Literal["instruct-gpt", "abs", "square"]
"""How a token's divergence from the reference is estimated: the log-ratio, its absolute value, half its square."""


def group_advantage(scores: Float[Tensor, "*groups size"]) -> Float[Tensor, "*groups size"]:
    """(r - mean) / std over each group of responses to one prompt; 0 in a group of equal scores.

    Args:
        scores: rewards; the standard deviation divides by the group's size.

    Raises:
        PrefkitError: a group is empty, or a score is no finite number.

    Source: Shao et al. 2024 (GRPO, arXiv 2402.03300); Wang et al. 2025 (WorldPM, arXiv 2505.10527), eq. 3.
    """
    if scores.ndim == 0 or scores.shape[-1] == 0 or not bool(torch.isfinite(scores).all()):
        raise PrefkitError(f"a group needs at least one score, all of them finite; got {scores}")
    constant = (scores == scores[..., :1]).all(-1, keepdim=True)
    spread = scores.std(-1, correction=0, keepdim=True)
    centred = scores - scores.mean(-1, keepdim=True)
    return torch.where(constant, torch.zeros_like(scores), centred / torch.where(constant, 1.0, spread))


def token_rewards(
    token_logps: Float[Tensor, "batch time"],
    ref_token_logps: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    score: Float[Tensor, " batch"],
    *,
    kl_beta: float = 0.2,
    kl_mode: KlMode = "instruct-gpt",
) -> Float[Tensor, "batch time"]:
    """Reward of each token: a charge for leaving the reference, and the response's score at its last token.

    Args:
        token_logps: log-probabilities under the policy.
        ref_token_logps: the same under the reference.
        mask: 1 where there is a token, at least one in each row.
        score: reward of each response.
        kl_beta: factor of the charge.
        kl_mode: see `KlMode`.

    Raises:
        OptionError: kl_mode is unknown.
        PrefkitError: shapes differ, or a row has no token.

    Source: Stiennon et al. 2020 (arXiv 2009.01325); Zhang et al. 2024 (domain reward models, arXiv 2402.15473), the
    authors' code.
    """
    _check(token_logps, ref_token_logps, mask)
    ratio = token_logps - ref_token_logps
    match kl_mode:
        case "instruct-gpt":
            divergence = ratio
        case "abs":
            divergence = ratio.abs()
        case "square":
            divergence = 0.5 * ratio.square()
        case _:
            raise OptionError(unknown("kl_mode", kl_mode, ("instruct-gpt", "abs", "square")))
    present = mask.to(ratio.dtype)
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask > 0, places, -1).amax(1, keepdim=True)
    at_end = (places == last).to(ratio.dtype)
    return -kl_beta * divergence * present + at_end * score.to(ratio.dtype)[:, None]


class Advantages(NamedTuple):
    """Advantage of each token, and the return that its value should have predicted."""

    advantages: Float[Tensor, "batch time"]
    returns: Float[Tensor, "batch time"]


def gae(
    values: Float[Tensor, "batch time"],
    rewards: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    *,
    gamma: float = 0.99,
    lam: float = 0.95,
    mode: Literal["clean", "released"] = "clean",
) -> Advantages:
    """Generalised advantage estimation inside the mask: A_t = sum_l (gamma lam)^l delta_{t+l}, returns A + V.

    Args:
        values: what each token was expected to be worth; no gradient.
        rewards: see `token_rewards`; no gradient.
        mask: 1 where there is a token, at least one in each row.
        gamma: discount, in [0, 1].
        lam: weight of longer sums, in [0, 1].
        mode: "released" does what the code of arXiv 2402.15473 does, for parity with it only: advantages are
            standardised over all places, padding included, and returns are these plus the value of the next token.

    Raises:
        OptionError: gamma, lam or mode is out of range.
        PrefkitError: shapes differ, or a row has no token.

    Source: Schulman et al. 2015 (arXiv 1506.02438), eq. 16.
    """
    _check(values, rewards, mask)
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise OptionError(f"gamma and lam must lie in [0, 1], got {gamma} and {lam}")
    if mode not in ("clean", "released"):
        raise OptionError(unknown("mode", mode, ("clean", "released")))
    present = mask.to(values.dtype)
    held, earned = values.detach() * present, rewards.detach() * present
    following = torch.cat([held[:, 1:], torch.zeros_like(held[:, :1])], 1)
    deltas = (earned + gamma * following - held) * present
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for place in reversed(range(deltas.shape[1])):
        running = deltas[:, place] + gamma * lam * running
        advantages[:, place] = running
    advantages = advantages * present
    if mode == "clean":
        return Advantages(advantages, (advantages + held) * present)
    standardised = (advantages - advantages.mean()) / advantages.std()
    return Advantages(standardised, standardised + following)


class TrajectoryLoss(NamedTuple):
    """Losses on stored responses.

    Args:
        loss: all of it.
        rl_loss: the part that learns from rewards.
        mean_logps: log-probability a token of each response.
    """

    loss: Float[Tensor, ""]
    rl_loss: Float[Tensor, ""]
    mean_logps: Float[Tensor, " batch"]


def limited_trajectory_pg(
    token_logps: Float[Tensor, "batch time"],
    mask: Float[Tensor, "batch time"],
    score: Float[Tensor, " batch"],
    ce_loss: float | Float[Tensor, ""],
    *,
    supervised_weight: float = 0.35,
) -> TrajectoryLoss:
    """Policy gradient on stored responses beside a supervised loss: nothing is sampled during training.

    The mean over responses of -score times log-probability a token, and w ce + (1 - w) of it.

    Args:
        token_logps: log-probabilities of the stored responses under the policy.
        mask: 1 where there is a token, at least one in each row.
        score: reward of each response, constant.
        ce_loss: cross-entropy of demonstrations, in nats a token.
        supervised_weight: w, in [0, 1].

    Raises:
        OptionError: the weight is out of range.
        PrefkitError: shapes differ, or a row has no token.

    Source: Zhang et al. 2024 (domain reward models, arXiv 2402.15473), the authors' code.
    """
    if not 0 <= supervised_weight <= 1:
        raise OptionError(f"supervised_weight must lie in [0, 1], got {supervised_weight}")
    _check(token_logps, token_logps, mask)
    if score.shape != token_logps.shape[:1]:
        raise PrefkitError(f"each response needs one score: got {tuple(score.shape)} for {len(token_logps)} responses")
    present = mask.to(token_logps.dtype)
    means = (token_logps * present).sum(1) / present.sum(1)
    rl_loss = -(score.detach() * means).mean()
    return TrajectoryLoss((1 - supervised_weight) * rl_loss + supervised_weight * ce_loss, rl_loss, means)


class PpoLosses(NamedTuple):
    """Losses of a policy and of its values."""

    policy: Float[Tensor, ""]
    value: Float[Tensor, ""]


def ppo_losses(
    token_logps: Float[Tensor, "batch time"],
    old_token_logps: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    old_values: Float[Tensor, "batch time"],
    estimated: Advantages,
    mask: Float[Tensor, "batch time"],
    *,
    clip: float = 0.2,
) -> PpoLosses:
    """Clipped losses of policy and values, a mean over tokens in each response, then over responses.

    Args:
        token_logps: log-probabilities under the policy.
        old_token_logps: those under the policy that the advantages were estimated for; constant.
        values: of the tokens.
        old_values: those that the advantages were estimated with; constant.
        estimated: see `gae`.
        mask: 1 where there is a token, at least one in each row.
        clip: how far ratio and value may move at once, above 0.

    Raises:
        OptionError: clip is not positive.
        PrefkitError: shapes differ, or a row has no token.

    Source: Schulman et al. 2017 (PPO, arXiv 1707.06347), eq. 7.
    """
    if not clip > 0:
        raise OptionError(f"clip must be greater than 0, got {clip}")
    for other in (old_token_logps, values, old_values):
        _check(token_logps, other, mask)
    present = mask.to(token_logps.dtype)

    def mean(losses: Tensor) -> Tensor:
        return ((losses * present).sum(1) / present.sum(1)).mean()

    ratio = torch.exp((token_logps - old_token_logps.detach()) * present)
    gains = estimated.advantages.detach()
    policy = -torch.minimum(gains * ratio, gains * ratio.clamp(1 - clip, 1 + clip))
    before, returns = old_values.detach(), estimated.returns.detach()
    clipped = before + (values - before).clamp(-clip, clip)
    value = 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
    return PpoLosses(mean(policy), mean(value))


def _check(first: Tensor, second: Tensor, mask: Tensor) -> None:
    if first.ndim != 2 or not first.shape == second.shape == mask.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (first, second, mask))
        raise PrefkitError(f"tokens and mask must be of one shape [batch, time], got {shapes}")
    empty = (mask.sum(1) == 0).nonzero()[:, 0].tolist()
    if empty:
        raise PrefkitError(f"row {empty[0]} of the mask has no token")
