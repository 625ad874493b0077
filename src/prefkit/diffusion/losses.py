"""Losses on denoising errors: how well a denoiser predicts what a noised sample hides is the score of the sample.

A score is minus a squared error, in place of a log-probability; the losses are those of `prefkit.objectives` on these
scores, and nothing else. Conventions of the published codes differ by constant factors only, see `CONVENTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefkit.errors import OptionError, unknown
from prefkit.objectives import links, rewards, smoothed

Convention = Literal["released", "paper", "diffusers"]
"""How errors become scores: see `CONVENTIONS`."""

CONVENTIONS: tuple[Convention, ...] = ("released", "paper", "diffusers")
"""Ways in which published codes and papers scale the errors: half the mean, T times the sum, the mean."""

Link = Literal["sigmoid", "hinge", "ipo"]

LINKS: dict[str, Callable[..., Tensor]] = {"sigmoid": links.logistic, "hinge": links.hinge, "ipo": links.squared}
"""Links by the names that diffusion codes use."""


class PairLosses(NamedTuple):
    """Losses of pairs, and what they were made of.

    Args:
        losses: one a pair.
        margin: how much more the policy has gained on the chosen sample than on the rejected one.
        inside: the log-odds inside the link, beta times margin.
        accuracy: share of pairs in which it is greater than 0.
    """

    losses: Float[Tensor, " batch"]
    margin: Float[Tensor, " batch"]
    inside: Float[Tensor, " batch"]
    accuracy: Float[Tensor, ""]


def denoising_error(
    prediction: Float[Tensor, " batch *dims"],
    target: Float[Tensor, " batch *dims"],
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, " batch"]:
    """Squared error of each sample, over all dimensions but the first.

    Args:
        prediction: what the denoiser says.
        target: what it should say.
        reduction: mean or sum over the dimensions of a sample.

    Raises:
        OptionError: the shapes differ.
    """
    if prediction.shape != target.shape:
        raise OptionError(f"prediction and target must be of one shape, got {_shapes(prediction, target)}")
    squares = ((prediction - target) ** 2).flatten(1)
    return squares.mean(1) if reduction == "mean" else squares.sum(1)


def score_of(
    error: Float[Tensor, " batch"], *, convention: Convention = "released", steps: int = 1000
) -> Float[Tensor, " batch"]:
    """The score of a sample, which stands for its log-probability.

    Args:
        error: squared error; the mean over dimensions, for "paper" the sum.
        convention: -e / 2 ("released", Diffusion-DPO's code), -e ("diffusers"), or -T e ("paper").
        steps: T, number of training steps; for "paper" only.

    Raises:
        OptionError: the convention is unknown.

    Source: Wallace et al. 2023 (arXiv 2311.12908), eq. 14, and the released codes. Objectives multiply it by beta, so
        beta means in each convention what it means in its code.
    """
    factors = {"released": 0.5, "diffusers": 1.0, "paper": float(steps)}
    if convention not in factors:
        raise OptionError(unknown("convention", str(convention), factors))
    return -factors[convention] * error


def diffusion_dpo_loss(
    policy_chosen_pred: Float[Tensor, " batch *dims"],
    policy_rejected_pred: Float[Tensor, " batch *dims"],
    ref_chosen_pred: Float[Tensor, " batch *dims"],
    ref_rejected_pred: Float[Tensor, " batch *dims"],
    noise: Float[Tensor, " batch *dims"],
    *,
    beta: float = 5000.0,
    convention: Convention = "released",
    link: Link = "sigmoid",
    weight: Float[Tensor, " batch"] | None = None,
    rejected_noise: Float[Tensor, " batch *dims"] | None = None,
    steps: int = 1000,
) -> PairLosses:
    """Diffusion-DPO: DPO with minus the denoising error in place of the log-probability.

    Args:
        policy_chosen_pred: the policy's prediction at the noised preferred sample.
        policy_rejected_pred: the policy's at the other one.
        ref_chosen_pred: the frozen reference's at the preferred sample.
        ref_rejected_pred: the frozen reference's at the other one.
        noise: what was to be predicted, the same for both members of a pair.
        beta: temperature, in the units of the convention.
        convention: see `score_of`.
        link: `sigmoid`, `hinge` or `ipo`.
        weight: omega of each pair's step, which multiplies the margin; 1 by default.
        rejected_noise: what was to be predicted of the rejected sample, where each has its own.
        steps: T, for the convention "paper".

    Raises:
        OptionError: shapes differ, beta is not positive, an input is not finite, or a name is unknown.

    Source: Wallace et al. 2023 (arXiv 2311.12908), eq. 14 and released code.
    """
    targets = (noise, noise if rejected_noise is None else rejected_noise) * 2
    predictions = (policy_chosen_pred, policy_rejected_pred, ref_chosen_pred, ref_rejected_pred)
    reduction: Literal["mean", "sum"] = "sum" if convention == "paper" else "mean"
    errors = [
        denoising_error(one, target, reduction=reduction) for one, target in zip(predictions, targets, strict=True)
    ]
    return diffusion_dpo_loss_from_errors(
        *errors, beta=beta, convention=convention, link=link, weight=weight, steps=steps
    )


def diffusion_dpo_loss_from_errors(
    policy_chosen_err: Float[Tensor, " batch"],
    policy_rejected_err: Float[Tensor, " batch"],
    ref_chosen_err: Float[Tensor, " batch"],
    ref_rejected_err: Float[Tensor, " batch"],
    *,
    beta: float = 5000.0,
    convention: Convention = "released",
    link: Link = "sigmoid",
    weight: Float[Tensor, " batch"] | None = None,
    steps: int = 1000,
) -> PairLosses:
    """`diffusion_dpo_loss` from squared errors, reduced as the convention wants them; see `score_of`."""
    if link not in LINKS:
        raise OptionError(unknown("link", str(link), LINKS))
    margin = _margin(
        beta,
        *(
            score_of(error, convention=convention, steps=steps)
            for error in (policy_chosen_err, policy_rejected_err, ref_chosen_err, ref_rejected_err)
        ),
    )
    if weight is not None:
        margin = weight * margin
    return _pair_losses(LINKS[link](margin, beta=beta), margin, beta * margin, halves=convention == "diffusers")


def inpo_loss(
    policy_chosen_pred: Float[Tensor, " batch *dims"],
    policy_rejected_pred: Float[Tensor, " batch *dims"],
    ref_chosen_pred: Float[Tensor, " batch *dims"],
    ref_rejected_pred: Float[Tensor, " batch *dims"],
    tau_chosen: Float[Tensor, " batch *dims"],
    tau_rejected: Float[Tensor, " batch *dims"],
    *,
    beta: float = 2000.0,
    weight: Float[Tensor, " batch"] | None = None,
) -> PairLosses:
    """InPO: Diffusion-DPO at inverted samples, each with its own effective noise as the target.

    Args:
        policy_chosen_pred: see `diffusion_dpo_loss`, as are the other predictions.
        policy_rejected_pred: the policy's at the rejected sample.
        ref_chosen_pred: the reference's at the preferred sample.
        ref_rejected_pred: the reference's at the rejected sample.
        tau_chosen: effective noise of the preferred sample, see `inversion.effective_noise`; constant.
        tau_rejected: effective noise of the rejected sample; constant.
        beta: temperature, in the units of the released code.
        weight: of each pair's step, which multiplies the margin.

    Source: Lu et al. 2025 (DDIM-InPO, arXiv 2503.18454), released code.
    """
    return diffusion_dpo_loss(
        policy_chosen_pred,
        policy_rejected_pred,
        ref_chosen_pred,
        ref_rejected_pred,
        tau_chosen.detach(),
        rejected_noise=tau_rejected.detach(),
        beta=beta,
        weight=weight,
    )


class SmoothedLosses(NamedTuple):
    """Losses of pairs with smoothed labels; `weight` is the coefficient gamma (2 p - 1) of each margin."""

    losses: Float[Tensor, " batch"]
    inside: Float[Tensor, " batch"]
    weight: Float[Tensor, " batch"]
    accuracy: Float[Tensor, ""]


def smpo_loss(
    policy_chosen_pred: Float[Tensor, " batch *dims"],
    policy_rejected_pred: Float[Tensor, " batch *dims"],
    ref_chosen_pred: Float[Tensor, " batch *dims"],
    ref_rejected_pred: Float[Tensor, " batch *dims"],
    tau_chosen: Float[Tensor, " batch *dims"],
    tau_rejected: Float[Tensor, " batch *dims"],
    p_winner: Float[Tensor, " batch"],
    *,
    beta: float = 2000.0,
    gamma: float = 10.0,
) -> SmoothedLosses:
    """SmPO: InPO's loss with the margin of each pair multiplied by gamma (2 p - 1).

    Args:
        policy_chosen_pred: see `inpo_loss`, as are the other predictions and the effective noises.
        policy_rejected_pred: the policy's at the rejected sample.
        ref_chosen_pred: the reference's at the preferred sample.
        ref_rejected_pred: the reference's at the rejected sample.
        tau_chosen: effective noise of the preferred sample.
        tau_rejected: effective noise of the rejected sample.
        p_winner: probability that the sample called preferred is the better one; see
            `objectives.smoothed_preference_prob`. Below one half the pair is pushed the other way.
        beta: temperature, in the units of the released code.
        gamma: sensitivity; gamma = 1 and p = 1 is plain Diffusion-DPO.

    Raises:
        OptionError: a probability lies outside [0, 1], gamma or beta is not positive, or shapes differ.

    Source: Lu et al. 2025 (SmPO-Diffusion, arXiv 2506.02698), released code, with one weight a pair.
    """
    weight = smoothed.smoothing_coefficients(p_winner, gamma).coefficient
    if weight.shape != policy_chosen_pred.shape[:1]:
        raise OptionError(f"each pair needs one p_winner: {len(policy_chosen_pred)} pairs, got {tuple(weight.shape)}")
    found = inpo_loss(
        policy_chosen_pred,
        policy_rejected_pred,
        ref_chosen_pred,
        ref_rejected_pred,
        tau_chosen,
        tau_rejected,
        beta=beta,
        weight=weight,
    )
    return SmoothedLosses(found.losses, found.inside, weight, found.accuracy)


def npo_dpo_loss(
    policy_chosen_err: Float[Tensor, " batch"],
    policy_rejected_err: Float[Tensor, " batch"],
    ref_chosen_err: Float[Tensor, " batch"],
    ref_rejected_err: Float[Tensor, " batch"],
    *,
    beta: float = 500.0,
    convention: Convention = "diffusers",
) -> PairLosses:
    """Negative preference optimisation with DPO: the pair with its members exchanged.

    Args:
        policy_chosen_err: the policy's error on the sample that people prefer.
        policy_rejected_err: the policy's error on the other one.
        ref_chosen_err: the reference's error on the sample that people prefer.
        ref_rejected_err: the reference's error on the other one.
        beta: temperature, in the units of the convention.
        convention: see `score_of`; the released code has that of diffusers.

    Source: Wang et al. 2025 (Diffusion-NPO, arXiv 2505.11245), released code.
    """
    return diffusion_dpo_loss_from_errors(
        policy_rejected_err, policy_chosen_err, ref_rejected_err, ref_chosen_err, beta=beta, convention=convention
    )


def spo_clipped_loss(
    logp_0: Float[Tensor, " batch"],
    logp_ref_0: Float[Tensor, " batch"],
    logp_1: Float[Tensor, " batch"],
    logp_ref_1: Float[Tensor, " batch"],
    *,
    beta: float = 10.0,
    eps: float = 0.1,
    negative: bool = False,
) -> Float[Tensor, " batch"]:
    """DPO on two candidates of one sampling step, with ratios clipped to [1 - eps, 1 + eps].

    Args:
        logp_0: log-density of the transition to the better candidate under the policy, a mean over dimensions.
        logp_ref_0: the same under the reference.
        logp_1: that of the other candidate under the policy.
        logp_ref_1: the same under the reference.
        beta: temperature.
        eps: width of the clip, in (0, 1).
        negative: learn towards the worse candidate (negative preference optimisation).

    Raises:
        OptionError: beta or eps is out of range, or shapes differ.

    Source: Liang et al. 2024 (SPO, arXiv 2406.04314), and Diffusion-NPO's code.
    """
    if not 0 < eps < 1:
        raise OptionError(f"eps must lie in (0, 1), got {eps}")
    _check(beta, logp_0, logp_ref_0, logp_1, logp_ref_1)
    low, high = torch.log1p(torch.tensor([-eps, eps], dtype=torch.float64)).tolist()
    first, second = (
        rewards.log_ratio(logp, ref).clamp(low, high) for logp, ref in ((logp_0, logp_ref_0), (logp_1, logp_ref_1))
    )
    return links.logistic(second - first if negative else first - second, beta=beta)


class RankingLosses(NamedTuple):
    """Losses of expert samples ranked above the policy's own; `difference` is d, `active` where it exceeds -margin."""

    losses: Float[Tensor, " batch"]
    difference: Float[Tensor, " batch"]
    active: Bool[Tensor, " batch"]


def dro_loss(
    expert_pred: Float[Tensor, " batch *dims"],
    negative_pred: Float[Tensor, " batch *dims"],
    ref_expert_pred: Float[Tensor, " batch *dims"],
    ref_negative_pred: Float[Tensor, " batch *dims"],
    expert_noise: Float[Tensor, " batch *dims"],
    policy_noise: Float[Tensor, " batch *dims"],
    *,
    margin: float = 0.001,
    form: Literal["released", "paper"] = "released",
    weight: Float[Tensor, " batch"] | None = None,
) -> RankingLosses:
    """Diffusion-DRO: a hinge on how much more the model has gained on expert samples than on the policy's own.

    d is the change of the error on the expert sample less that on the policy's; the loss is max(d + margin, 0).

    Args:
        expert_pred: the trained model's prediction at the noised expert sample.
        negative_pred: the trained model's at a state of the policy's sampling run.
        ref_expert_pred: the reference's at the expert sample.
        ref_negative_pred: the reference's at the policy's state.
        expert_noise: the noise in the expert sample.
        policy_noise: what the policy itself predicted at its state; constant.
        margin: from which lead on a pair is left alone, in units of the mean squared error, at least 0; at 0 an
            untrained model has no gradient.
        form: `paper` is max(d, -margin), which is less by the margin and has the same gradients.
        weight: lambda of each pair's step, which multiplies d.

    Raises:
        OptionError: the margin is negative, shapes differ, or an input is not finite.

    Source: Wu et al. 2025 (Diffusion-DRO, arXiv 2510.18353), eq. 15, and released code.
    """
    if not margin >= 0:
        raise OptionError(f"margin must be at least 0, got {margin}")
    if form not in ("released", "paper"):
        raise OptionError(unknown("form", str(form), ("released", "paper")))
    errors = (
        denoising_error(expert_pred, expert_noise),
        denoising_error(negative_pred, policy_noise.detach()),
        denoising_error(ref_expert_pred, expert_noise),
        denoising_error(ref_negative_pred, policy_noise.detach()),
    )
    lead = _margin(1.0, *(score_of(error, convention="diffusers") for error in errors))
    if weight is not None:
        lead = weight * lead
    losses = links.hinge(lead, beta=1.0, gamma=margin)
    return RankingLosses(losses if form == "released" else losses - margin, -lead, (lead < margin).detach())


class UnclippedLosses(NamedTuple):
    """`dro_unclipped_loss` and its two terms."""

    losses: Float[Tensor, " batch"]
    imitation: Float[Tensor, " batch"]
    negative: Float[Tensor, " batch"]


def dro_unclipped_loss(
    expert_err: Float[Tensor, " batch"],
    negative_err: Float[Tensor, " batch"],
    ref_expert_err: Float[Tensor, " batch"],
    ref_negative_err: Float[Tensor, " batch"],
) -> UnclippedLosses:
    """`dro_loss` without its threshold: d itself, whose first term is supervised fine-tuning on the experts.

    Source: Wu et al. 2025 (arXiv 2510.18353), eq. 13.
    """
    _check(1.0, expert_err, negative_err, ref_expert_err, ref_negative_err)
    imitation = rewards.log_ratio(expert_err, ref_expert_err)
    negative = -rewards.log_ratio(negative_err, ref_negative_err)
    return UnclippedLosses(imitation + negative, imitation, negative)


class Orientation(NamedTuple):
    """Pairs that have a winner, and which image it is."""

    kept: Int[Tensor, " pairs"]
    winner: Int[Tensor, " pairs"]


def pair_orientation(label_0: Tensor) -> Orientation:
    """Winners of pairs from Pick-a-Pic's `label_0`: 1 is the first image, 0 the second; ties (0.5) are dropped.

    Raises:
        OptionError: a label is none of 0, 0.5 and 1, or all pairs are ties.
    """
    if not bool(((label_0 == 0) | (label_0 == 0.5) | (label_0 == 1)).all()):
        raise OptionError(f"label_0 must be 0, 0.5 or 1, got {sorted(set(label_0.tolist()) - {0, 0.5, 1})[:3]}")
    kept = (label_0 != 0.5).nonzero()[:, 0]
    if not len(kept):
        raise OptionError("all pairs are ties: there is nothing to learn a preference from")
    return Orientation(kept, (label_0[kept] == 0).long())


def _margin(beta: float, chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    _check(beta, chosen, rejected, ref_chosen, ref_rejected)
    return rewards.log_ratio(chosen, ref_chosen) - rewards.log_ratio(rejected, ref_rejected)


def _check(beta: float, *tensors: Tensor) -> None:
    if not beta > 0:
        raise OptionError(f"beta must be greater than 0, got {beta}")
    if len({tensor.shape for tensor in tensors}) > 1:
        raise OptionError(f"errors and scores must be of one shape, got {_shapes(*tensors)}")
    for tensor in tensors:
        if not bool(torch.isfinite(tensor).all()):
            raise OptionError("a denoising error is not a finite number; look at the inputs and the precision")


def _pair_losses(losses: Tensor, margin: Tensor, inside: Tensor, halves: bool) -> PairLosses:
    right = (inside.detach() > 0).to(inside.dtype)
    if halves:
        right = right + 0.5 * (inside.detach() == 0)
    return PairLosses(losses, margin, inside, right.mean())


def _shapes(*tensors: Any) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
