"""Meta-learning of reward models: labels that help to tell apart what the present policy writes count more.

The model first takes a step that spreads the rewards of unlabelled responses of the policy, and is then corrected by
the gradient that the labelled pairs have there.

Source: Wang et al. 2024, Secrets of RLHF in Large Language Models Part II (arXiv 2401.06080), section 4, algorithm 1;
Dou et al. 2024 (MetaRM, arXiv 2405.00438).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from prefkit.errors import OptionError, PrefkitError, unknown

Weights: TypeAlias = Mapping[str, Tensor]
"""The weights of a model by name, as `dict(model.named_parameters())` gives them."""

Normaliser = Literal["k_squared", "k_k_minus_1"]
"""What the sum over pairs of k responses is divided by: k^2 / 2, or the number of pairs."""


def metarm_difference(
    scores: Float[Tensor, "prompts k"], *, normaliser: Normaliser = "k_squared"
) -> Float[Tensor, " prompts"]:
    """How far the rewards of each prompt's responses are apart: c sum over pairs of sigmoid(|r_i - r_j|).

    Args:
        scores: rewards of k responses to each prompt.
        normaliser: "k_squared" takes c = 2 / k^2, "k_k_minus_1" the mean over pairs; it only scales the step.

    Raises:
        OptionError: the normaliser is unknown.
        PrefkitError: there are fewer than 2 responses a prompt, or a reward is no finite number.
    """
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise PrefkitError(f"each prompt needs at least 2 responses, scores [prompts, k], got {tuple(scores.shape)}")
    if not bool(torch.isfinite(scores).all()):
        raise PrefkitError("rewards must be finite numbers")
    k = scores.shape[1]
    pairs = k * (k - 1) / 2
    divisors = {"k_squared": k * k / 2, "k_k_minus_1": pairs}
    if normaliser not in divisors:
        raise OptionError(unknown("normaliser", normaliser, divisors))
    first, second = torch.triu_indices(k, k, 1, device=scores.device).unbind(0)
    spread = torch.sigmoid((scores[:, first] - scores[:, second]).abs())
    return spread.sum(1) / divisors[normaliser]


class MetaStep(NamedTuple):
    """One step of meta-learning.

    Args:
        weights: after the step.
        adapted: where the gradient of the labelled pairs was taken.
        difference: what was increased on the way there, before it.
        loss: of the labelled pairs there.
    """

    weights: dict[str, Tensor]
    adapted: dict[str, Tensor]
    difference: Float[Tensor, ""]
    loss: Float[Tensor, ""]


def meta_step(
    weights: Weights,
    loss: Callable[[Weights], Float[Tensor, ""]],
    difference: Callable[[Weights], Float[Tensor, ""]],
    *,
    eta: float,
    alpha: float,
    order: Literal[1, 2] = 1,
) -> MetaStep:
    """One step: w' = w + eta grad J(w), then w <- w - alpha grad L at w'.

    Args:
        weights: w, by name; they are not changed.
        loss: L, of labelled pairs, from weights (for a module, with `torch.func.functional_call`).
        difference: J, of the policy's responses, from weights; see `metarm_difference`.
        eta: length of the way up, at least 0; 0 is plain gradient descent.
        alpha: learning rate, at least 0.
        order: 1 applies the gradient with respect to w' to w, as the paper does; 2 differentiates through w'.

    Raises:
        OptionError: eta, alpha or order is out of range.
    """
    if not (eta >= 0 and alpha >= 0 and order in (1, 2)):
        raise OptionError(f"eta and alpha must be at least 0 and order 1 or 2, got {eta}, {alpha}, {order}")
    with torch.enable_grad():
        start = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        spread = difference(start)
        up = torch.autograd.grad(spread, list(start.values()), create_graph=order == 2, materialize_grads=True)
        adapted = {name: weight + eta * step for (name, weight), step in zip(start.items(), up, strict=True)}
        if order == 1:
            adapted = {name: weight.detach().requires_grad_() for name, weight in adapted.items()}
        value = loss(adapted)
        taken = start if order == 2 else adapted
        down = torch.autograd.grad(value, list(taken.values()), materialize_grads=True)
    return MetaStep(
        {name: weight.detach() - alpha * step for (name, weight), step in zip(start.items(), down, strict=True)},
        {name: weight.detach() for name, weight in adapted.items()},
        spread.detach(),
        value.detach(),
    )
