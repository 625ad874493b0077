"""Intuitive Fine-Tuning: imitation in which a token weighs as much as the tokens that follow it fare badly.

Source: Hua et al. 2024 (Intuitive Fine-Tuning, arXiv 2405.11870), sections 4.2 and 4.3.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, FiniteFloat, model_validator
from torch import Tensor

from prefkit.errors import OptionError, unknown
from prefkit.objectives.parts import Part, Stateful
from prefkit.objectives.scorer import MixesInputs, TemporalResidual
from prefkit.objectives.scores import TokenScores
from prefkit.options import Options

Formulation = Literal["code", "eq21", "algorithm1"]
PropagationType = Literal["loss", "logps", "mask"]
PropagationNorm = Literal["L1", "L2", "softmax", "log"]
PropagationSide = Literal["left", "right"]

_FAR = 1e6
"""What masked places hold in prefix sums, so that their inverse counts for nothing."""

_TINY = 1e-12
"""Sums are no smaller than this where they are inverted without being compared to each other first."""


class IftOptions(Options):
    """Options of `ift`; defaults are those of the authors' code, which agree with the paper."""

    gamma: FiniteFloat = Field(0.95, ge=0, le=1, description="decay of the influence of later tokens")
    formulation: Formulation = Field("code", description="loss of the authors' code, of eq. 21, or of Algorithm 1")
    propagation_type: PropagationType = Field("loss", description="what is propagated (formulation code)")
    propagation_norm: PropagationNorm = Field("L1", description="how weights are sharpened (formulation code)")
    propagation_side: PropagationSide = Field("left", description="from later tokens, or from earlier ones (code)")
    detach_weights: bool = Field(False, description="no gradient through the weights, unlike the authors' code")
    max_lambda: FiniteFloat = Field(0.2, ge=0, le=1, description="share of the model's own prediction in its input")
    min_lambda: FiniteFloat = Field(0.2, ge=0, le=1, description="share at the beginning of a linear schedule")
    schedule: Literal["constant", "linear"] = Field("constant", description="of the share")
    warmup_steps: int = Field(150, ge=1, description="updates until a linear schedule is at its end")
    disturb_std: FiniteFloat = Field(
        0.0, ge=0, description="standard deviation of a factor of the share, a new one each update"
    )
    sampler: Literal["greedy", "topk", "nucleus"] = Field("greedy", description="which token is predicted")
    seed: int = Field(0, ge=0, description="of disturbances and samples")

    @model_validator(mode="after")
    def _in_order(self) -> IftOptions:
        if self.schedule == "linear" and self.min_lambda > self.max_lambda:
            raise ValueError(f"min_lambda must be at most max_lambda, got {self.min_lambda} and {self.max_lambda}")
        return self


def discounted_cumsum(
    x: Float[Tensor, "batch length"], gamma: float, side: PropagationSide = "left"
) -> Float[Tensor, "batch length"]:
    """Discounted sums along the last axis, in as many steps as the length has binary digits.

    Args:
        x: the values.
        gamma: decay a place, in [0, 1].
        side: "left" sums what follows, y_t = x_t + gamma y_{t+1}; "right" what went before, y_t = x_t + gamma y_{t-1}.

    Raises:
        OptionError: gamma lies outside [0, 1].
    """
    _check_gamma(gamma)
    total, shift = x, 1
    while shift < x.shape[-1]:
        factor = gamma**shift
        if side == "left":
            more = torch.nn.functional.pad(total[..., shift:], (0, shift))
        else:
            more = torch.nn.functional.pad(total[..., :-shift], (shift, 0))
        total, shift = total + factor * more, 2 * shift
    return total


def ift_weights(
    policy_token_logps: Float[Tensor, "batch length"],
    response_mask: Bool[Tensor, "batch length"] | Float[Tensor, "batch length"],
    *,
    gamma: float = 0.95,
    propagation_type: PropagationType = "loss",
    propagation_norm: PropagationNorm = "L1",
    propagation_side: PropagationSide = "left",
) -> Float[Tensor, "batch length"]:
    """Weights of the response tokens, which sum to their number in each row.

    "left" weighs a token by the discounted losses from it on. "right" weighs it by the inverse of those up to it, to
    which the least sum of the whole batch is added, so that rows depend on the batch that they are in.

    Args:
        policy_token_logps: log-probability of the true token at each place, in nats.
        response_mask: 1 at response tokens; place t scores the token that place t predicts.
        gamma: decay; 0 gives weight 1 to every token.
        propagation_type: losses divided by the number of tokens ("loss"), losses ("logps"), or the mask ("mask").
        propagation_norm: the sums themselves ("L1"), their squares, their softmax, or ln(sum + 1).
        propagation_side: see above.

    Raises:
        OptionError: an option is unknown or out of range, shapes differ, or a row has no response token.

    Source: the authors' code; the paper's Algorithm 1 leaves the normalisation open.
    """
    mask = _checked(policy_token_logps, response_mask, gamma)
    for name, value, known in (
        ("propagation_type", propagation_type, PropagationType),
        ("propagation_norm", propagation_norm, PropagationNorm),
        ("propagation_side", propagation_side, PropagationSide),
    ):
        if value not in get_args(known):
            raise OptionError(unknown(name, str(value), get_args(known)))
    if gamma == 0:
        return mask
    count = mask.sum(1, keepdim=True)
    losses = _losses(policy_token_logps, mask)
    source = {"loss": losses / count, "logps": losses, "mask": mask}[propagation_type]
    sums = discounted_cumsum(source, gamma, propagation_side)
    if propagation_side == "left":
        sharp = _sharpened(sums * mask, propagation_norm, mask)
    else:
        sums = torch.where(mask > 0, sums, _FAR)
        positive = sums[sums > 0]
        # Without any positive sum all tokens are alike, whatever is added.
        sums = sums + (positive.min() if len(positive) else 1.0)
        sharp = _inverted(sums, propagation_norm, mask)
    total = (sharp * mask).sum(1, keepdim=True)
    uniform = total == 0
    return torch.where(uniform, mask, sharp * mask * count / total.masked_fill(uniform, 1.0))


def _sharpened(sums: Tensor, norm: PropagationNorm, mask: Tensor) -> Tensor:
    if norm == "softmax":
        return sums.masked_fill(mask == 0, -math.inf).softmax(1)
    if norm == "log":
        return sums.log1p()
    # Weights do not depend on the scale of the sums; at this one, squares neither overflow nor vanish together.
    highest = sums.detach().amax(1, keepdim=True)
    scaled = sums / highest.masked_fill(highest == 0, 1.0)
    return scaled if norm == "L1" else scaled.square()


def _inverted(sums: Tensor, norm: PropagationNorm, mask: Tensor) -> Tensor:
    if norm == "softmax":
        return sums.clamp(min=_TINY).reciprocal().masked_fill(mask == 0, -math.inf).softmax(1)
    if norm == "log":
        return sums.clamp(min=_TINY).log1p().reciprocal()
    share = sums.detach().masked_fill(mask == 0, math.inf).amin(1, keepdim=True) / sums
    return share if norm == "L1" else share.square()


def ift_loss(
    policy_token_logps: Float[Tensor, "batch length"],
    response_mask: Bool[Tensor, "batch length"] | Float[Tensor, "batch length"],
    *,
    gamma: float = 0.95,
    propagation_type: PropagationType = "loss",
    propagation_norm: PropagationNorm = "L1",
    propagation_side: PropagationSide = "left",
    detach_weights: bool = False,
    formulation: Formulation = "code",
) -> Float[Tensor, " batch"]:
    """Intuitive Fine-Tuning's loss of each row. With l_t the negative log-probabilities of its N response tokens:

    - `code`: sum_t w_t l_t / N with the weights of `ift_weights`; gamma 0 is the mean of the losses.
    - `eq21`: sum_n sum_{i>=n} gamma^(i-n) l_i, which weighs token i by (1 - gamma^(i+1)) / (1 - gamma).
    - `algorithm1`: sum_t w_t l_t with w_t = sum_{i>=t} gamma^(i-t) l_i, quadratic in the losses. The paper prints the
      exponent N - t and no minus sign; its text and the authors' code mean this.

    Args:
        policy_token_logps: log-probability of the true token at each place, in nats.
        response_mask: 1 at response tokens.
        gamma: decay.
        propagation_type: see `ift_weights`, of `code` only.
        propagation_norm: see `ift_weights`, of `code` only.
        propagation_side: see `ift_weights`, of `code` only.
        detach_weights: no gradient through the weights of `code` and `algorithm1`.
        formulation: see above.

    Raises:
        OptionError: see `ift_weights`; the formulation is unknown.

    Source: Hua et al. 2024 (arXiv 2405.11870), eq. 21, Algorithm 1 and the authors' code.
    """
    mask = _checked(policy_token_logps, response_mask, gamma)
    losses = _losses(policy_token_logps, mask)
    match formulation:
        case "eq21":
            return (discounted_cumsum(losses, gamma) * mask).sum(1)
        case "algorithm1":
            weights = relation_weights(policy_token_logps, mask, gamma=gamma)
            return ((weights.detach() if detach_weights else weights) * losses).sum(1)
        case "code":
            weights = ift_weights(
                policy_token_logps,
                mask,
                gamma=gamma,
                propagation_type=propagation_type,
                propagation_norm=propagation_norm,
                propagation_side=propagation_side,
            )
            return ((weights.detach() if detach_weights else weights) * losses).sum(1) / mask.sum(1)
        case _:
            raise OptionError(unknown("formulation", str(formulation), get_args(Formulation)))


def relation_weights(
    policy_token_logps: Float[Tensor, "batch length"],
    response_mask: Bool[Tensor, "batch length"] | Float[Tensor, "batch length"],
    *,
    gamma: float = 0.95,
) -> Float[Tensor, "batch length"]:
    """Weights of Algorithm 1: the discounted losses from each response token on, not normalised; 0 elsewhere."""
    mask = _checked(policy_token_logps, response_mask, gamma)
    return discounted_cumsum(_losses(policy_token_logps, mask), gamma) * mask


def lambda_at_step(
    step: int,
    *,
    min_lambda: float = 0.2,
    max_lambda: float = 0.2,
    warmup_steps: int = 150,
    schedule: Literal["constant", "linear"] | None = None,
    noise: float | None = None,
    disturb_std: float = 0.0,
) -> float:
    """Share of the model's own prediction in its input at an update.

    Args:
        step: updates before this one.
        min_lambda: where a linear schedule begins.
        max_lambda: the share of a constant schedule, and where a linear one ends.
        warmup_steps: updates that a linear schedule takes.
        schedule: constant (also None) or linear.
        noise: a standard normal number that disturbs the share, lambda (1 + disturb_std noise); None for none.
        disturb_std: strength of the disturbance.

    Returns:
        The share, in [0, 1] whatever the disturbance.

    Raises:
        OptionError: a share lies outside [0, 1], or the schedule is unknown.

    Source: the authors' code; the disturbance is the paper's table 7.
    """
    for name, value in (("min_lambda", min_lambda), ("max_lambda", max_lambda)):
        if not 0 <= value <= 1:
            raise OptionError(f"{name} must be in [0, 1], got {value}")
    if schedule not in (None, "constant", "linear"):
        raise OptionError(unknown("schedule", str(schedule), ("constant", "linear")))
    share = max_lambda
    if schedule == "linear":
        share = min_lambda + (max_lambda - min_lambda) * min(1.0, step / warmup_steps)
    if noise is not None:
        share *= 1 + disturb_std * noise
    return min(1.0, max(0.0, share))


class IntuitiveFineTuning(Stateful):
    """The imitation part of Intuitive Fine-Tuning: `ift_loss` on log-probabilities from mixed inputs.

    In training the scorer mixes the policy's own predictions into its inputs as `residual` says; in evaluation it does
    not. Figures: `plain_nll` and `mixed_nll`, the losses a token before and after mixing, and `mixing`, the share.
    """

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = IftOptions.parse(options, "ift")
        self.residual = TemporalResidual(sampler=self.options.sampler)
        self.advance(0)

    def equip(self, scorer: object) -> None:
        """See `Stateful.equip`."""
        if not isinstance(scorer, MixesInputs):
            raise OptionError(f"objective 'ift' mixes input embeddings, which {type(scorer).__name__} cannot")
        scorer.residual = self.residual

    def advance(self, step: int) -> None:
        """See `Stateful.advance`."""
        options = self.options
        # A number of its own for each update, so that a run that is resumed goes on with the same ones.
        generator = torch.Generator().manual_seed(1_000_003 * options.seed + step)
        rate = lambda_at_step(
            step,
            min_lambda=options.min_lambda,
            max_lambda=options.max_lambda,
            warmup_steps=options.warmup_steps,
            schedule=options.schedule,
            noise=float(torch.randn((), generator=generator)),
            disturb_std=options.disturb_std,
        )
        self.residual.begin(rate, 1_000_003 * options.seed + step)

    def forward(self, tokens: TokenScores, lengths: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The loss of each response."""
        options, rows = self.options, len(lengths)
        logps, mask = tokens.table(tokens.policy_logps, rows)
        plain = tokens.policy_logps if tokens.plain_logps is None else tokens.plain_logps
        self.figures = {
            "plain_nll": -tokens.total(plain.detach(), rows) / lengths,
            "mixed_nll": -tokens.total(tokens.policy_logps.detach(), rows) / lengths,
            "mixing": logps.new_full((rows,), 0.0 if tokens.plain_logps is None else self.residual.rate),
        }
        return ift_loss(
            logps,
            mask,
            gamma=options.gamma,
            propagation_type=options.propagation_type,
            propagation_norm=options.propagation_norm,
            propagation_side=options.propagation_side,
            detach_weights=options.detach_weights,
            formulation=options.formulation,
        )


IFT = Part("ift", IntuitiveFineTuning, ("tokens", "lengths"), IftOptions, requires=frozenset({"temporal_residual"}))


def _losses(logps: Tensor, mask: Tensor) -> Tensor:
    """Negative log-probabilities, 0 outside the response."""
    return torch.where(mask > 0, -logps, 0.0)


def _checked(logps: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """The mask as numbers."""
    _check_gamma(gamma)
    if logps.shape != mask.shape:
        raise OptionError(
            f"log-probabilities and mask must have one shape, got {tuple(logps.shape)} and {tuple(mask.shape)}"
        )
    mask = mask.to(logps.dtype)
    empty = (mask.sum(1) == 0).nonzero()
    if len(empty):
        raise OptionError(f"row {int(empty[0])} has no response token")
    return mask


def _check_gamma(gamma: float) -> None:
    if not 0 <= gamma <= 1:
        raise OptionError(f"gamma must be in [0, 1], got {gamma}")
