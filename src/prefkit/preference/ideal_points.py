"""Ideal points: people who prefer what is nearer to a point of their own, a mixture of a few shared prototypes.

Labels are -1 where the left response is preferred and +1 where the right one is. Scores follow: a negative one says
left. One must not be turned round without the other.

Source of all: Chen et al. 2024 (PAL, arXiv 2406.08469) and the authors' code, where that is named.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prefkit.errors import OptionError, PrefkitError, unknown
from prefkit.objectives import hinge

TokenWeighting: TypeAlias = Literal["mean", "cumulative", "only_last"]
"""How the tokens of a response share its loss."""

TOKEN_WEIGHTINGS = ("mean", "cumulative", "only_last")
"""Their names."""

MAX_SCALE = 100.0
"""Largest factor of cosines in `angle_logits`."""


class Mixture(NamedTuple):
    """Weights of the prototypes, and the points that they mix to."""

    weights: Float[Tensor, "batch k"]
    points: Float[Tensor, "batch d"]


def mixture_weights(logits: Float[Tensor, "batch k"], *, temperature: float = 1.0) -> Float[Tensor, "batch k"]:
    """softmax(logits / temperature).

    Raises:
        OptionError: the temperature is not positive.
    """
    if not temperature > 0:
        raise OptionError(f"temperature must be greater than 0, got {temperature}")
    return torch.softmax(logits / temperature, dim=-1)


def mix_ideal_points(
    logits: Float[Tensor, "batch k"], prototypes: Float[Tensor, "k d"], *, temperature: float = 1.0
) -> Mixture:
    """a_u = sum_k w_uk p_k with w_u on the simplex: the ideal point of each person.

    Args:
        logits: of each person's weights.
        prototypes: shared points.
        temperature: of the softmax.

    Raises:
        OptionError: the temperature is not positive.
    """
    weights = mixture_weights(logits, temperature=temperature)
    return Mixture(weights, weights @ prototypes)


def prompt_ideal_points(
    logits: Float[Tensor, "batch k"],
    prompt_points: Float[Tensor, "batch k d"],
    *,
    temperature: float = 1.0,
    hard: bool = False,
) -> Float[Tensor, "batch d"]:
    """a_u(x) = sum_k w_uk g_k(x): the ideal point of each person for a prompt.

    Args:
        logits: of each person's weights.
        prompt_points: g_k(x), the point of each prototype for the prompt.
        temperature: of the softmax.
        hard: take the prototype of the largest weight alone (the partition variant, at evaluation).

    Raises:
        OptionError: the temperature is not positive.
    """
    weights = mixture_weights(logits, temperature=temperature)
    if hard:
        weights = hardened(weights)
    return mix_prompt_points(weights, prompt_points)


def mix_prompt_points(
    weights: Float[Tensor, "batch k"], prompt_points: Float[Tensor, "batch k d"]
) -> Float[Tensor, "batch d"]:
    """sum_k w_uk g_k(x)."""
    return torch.einsum("bk,bkd->bd", weights, prompt_points)


def hardened(weights: Float[Tensor, "batch k"]) -> Float[Tensor, "batch k"]:
    """All weight on the largest one."""
    return F.one_hot(weights.argmax(-1), weights.shape[-1]).to(weights.dtype)


def check_mixture(weights: Float[Tensor, "*batch k"]) -> None:
    """Refuse weights that are not on the simplex.

    Raises:
        OptionError: names the first.
    """
    rows = weights.reshape(-1, weights.shape[-1])
    wrong = ((rows < 0).any(1) | ((rows.sum(1) - 1).abs() > 1e-6) | ~torch.isfinite(rows).all(1)).nonzero()
    if len(wrong):
        row = rows[int(wrong[0])].tolist()
        raise OptionError(f"mixture weights must be at least 0 and sum to 1, got {row}")


def distance_score(
    left: Float[Tensor, "*batch d"],
    right: Float[Tensor, "*batch d"],
    points: Float[Tensor, "*batch d"],
    *,
    normalise: bool = False,
) -> Float[Tensor, "*batch"]:
    """|left - a| - |right - a|: negative where the left response is nearer to the ideal point.

    Distances are not squared, as in the authors' code; the paper states squared ones.

    Args:
        left: embeddings.
        right: embeddings.
        points: ideal points, broadcast over tokens where they lack that axis.
        normalise: put everything on the unit sphere first (over features; the code's axis is another one).
    """
    if points.ndim == left.ndim - 1:
        points = points.unsqueeze(-2)
    if normalise:
        left, right, points = (F.normalize(x, dim=-1) for x in (left, right, points))
    found: Tensor = torch.linalg.vector_norm(left - points, dim=-1) - torch.linalg.vector_norm(right - points, dim=-1)
    return found


def angle_logits(
    left: Float[Tensor, "*batch d"],
    right: Float[Tensor, "*batch d"],
    points: Float[Tensor, "*batch d"],
    log_scale: Float[Tensor, ""],
) -> Float[Tensor, "*batch 2"]:
    """Scaled cosines of the ideal point with the left and the right response, as logits of the choice.

    Args:
        left: embeddings.
        right: embeddings.
        points: ideal points, broadcast over tokens where they lack that axis.
        log_scale: logarithm of the factor, which is capped at 100; starts at log(1 / 0.07).
    """
    if points.ndim == left.ndim - 1:
        points = points.unsqueeze(-2)
    point, one, two = (F.normalize(x, dim=-1) for x in (points, left, right))
    scale = log_scale.exp().clamp(max=MAX_SCALE)
    return scale * torch.stack([(point * one).sum(-1), (point * two).sum(-1)], dim=-1)


# --- losses


def check_labels(labels: Tensor) -> None:
    """Refuse labels other than -1 and +1.

    Raises:
        OptionError: names the first.
    """
    wrong = ((labels != 1) & (labels != -1)).flatten().nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise OptionError(
            f"label {row} must be -1 (left preferred) or 1 (right preferred), got {labels.flatten()[row].item()}"
        )


def hinge_loss(
    scores: Float[Tensor, "*batch"], labels: Float[Tensor, "*batch"], *, margin: float = 1.0
) -> Float[Tensor, "*batch"]:
    """max(0, margin - y s).

    Raises:
        OptionError: a label is not -1 or +1.
    """
    check_labels(labels)
    return hinge(labels * scores, beta=1.0, gamma=margin)


def smooth_hinge_loss(
    scores: Float[Tensor, "*batch"], labels: Float[Tensor, "*batch"], *, margin: float = 1.0, gamma: float = 5.0
) -> Float[Tensor, "*batch"]:
    """(margin - y s)_+^2 / (2 gamma) where y s >= margin - gamma, else margin - gamma / 2 - y s.

    Raises:
        OptionError: a label is not -1 or +1, or gamma is not positive.
    """
    check_labels(labels)
    if not gamma > 0:
        raise OptionError(f"gamma must be greater than 0, got {gamma}")
    short = margin - labels * scores
    # The square is of a clamped number, so that it is finite where the other branch is taken.
    return torch.where(short <= gamma, short.clamp(0, gamma) ** 2 / (2 * gamma), short - gamma / 2)


def logistic_loss(scores: Float[Tensor, "*batch"], labels: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """log(1 + exp(-y s)).

    Raises:
        OptionError: a label is not -1 or +1.
    """
    check_labels(labels)
    return -F.logsigmoid(labels * scores)


def user_weights(users: Sequence[Hashable], counts: Mapping[Hashable, int]) -> Float[Tensor, " batch"]:
    """1 / n_u, renormalised to sum 1 over the batch: every person counts alike, however many pairs each has.

    Args:
        users: who labelled each pair of the batch.
        counts: training pairs of each person.

    Raises:
        OptionError: a person has no count.
    """
    for user in users:
        if not counts.get(user, 0) > 0:
            raise OptionError(f"weights by person need the number of training pairs of each: none for {user!r}")
    weights = torch.tensor([1 / counts[user] for user in users], dtype=torch.float64)
    return weights / weights.sum()


def prototype_bound_loss(
    points: Float[Tensor, "k d"], *, upper_bound: float = 4.0, weight: float = 1.0
) -> Float[Tensor, ""]:
    """weight * sum_k max(0, |p_k| - upper_bound): keeps points from running away."""
    return weight * torch.relu(torch.linalg.vector_norm(points, dim=-1) - upper_bound).sum()


# --- tokens


def divergence_span(
    left: Int[Tensor, " tokens"], right: Int[Tensor, " tokens"], *, pad_id: int, num_padding_at_beginning: int = 0
) -> tuple[int, int]:
    """First token at which two rows differ, and the end of the longer one (exclusive).

    Args:
        left: tokens, padded at the end.
        right: tokens, padded to the same length.
        pad_id: the token of padding.
        num_padding_at_beginning: tokens of that kind which come before the text (1 for OPT).

    Returns:
        Identical rows give their last place.

    Raises:
        PrefkitError: the rows differ in length.
    """
    if left.shape != right.shape or left.ndim != 1 or not len(left):
        raise PrefkitError(
            f"two rows of tokens must be of one length, got {tuple(left.shape)} and {tuple(right.shape)}"
        )
    differ = (left != right).nonzero()
    if not len(differ):
        return len(left) - 1, len(left)

    def end(row: Tensor) -> int:
        pads = (row == pad_id).nonzero()[:, 0]
        return int(pads[num_padding_at_beginning]) if len(pads) > num_padding_at_beginning else len(row)

    return int(differ[0]), max(end(left), end(right))


def token_weights(
    start: Int[Tensor, " batch"], end: Int[Tensor, " batch"], tokens: int, weighting: TokenWeighting
) -> Float[Tensor, "batch tokens"]:
    """Share of each token of [start, end) in the loss of its row; 0 elsewhere.

    Args:
        start: first token that counts.
        end: the one behind the last.
        tokens: length of the rows.
        weighting: "mean", "cumulative" (the i-th token counts i + 1 times) or "only_last".

    Raises:
        PrefkitError: a span is empty or leaves its row.
        OptionError: the weighting is unknown.
    """
    wrong = ((start < 0) | (end <= start) | (end > tokens)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise PrefkitError(
            f"row {row}: the tokens from {int(start[row])} to {int(end[row])} (exclusive) must be at least one, within "
            f"the row's {tokens}"
        )
    places = torch.arange(tokens, device=start.device) - start[:, None]
    within = (places >= 0) & (places < (end - start)[:, None])
    match weighting:
        case "mean":
            shares = within.double()
        case "cumulative":
            shares = (places + 1).double() * within
        case "only_last":
            shares = (places == (end - start)[:, None] - 1).double()
        case _:
            raise OptionError(unknown("token weighting", weighting, TOKEN_WEIGHTINGS))
    return shares / shares.sum(1, keepdim=True)


def over_tokens(
    values: Float[Tensor, "batch tokens"],
    start: Int[Tensor, " batch"],
    end: Int[Tensor, " batch"],
    *,
    weighting: TokenWeighting = "cumulative",
) -> Float[Tensor, " batch"]:
    """A figure of every token (a loss, or whether it is right), weighed into one for each row; see `token_weights`."""
    weights = token_weights(start, end, values.shape[1], weighting).to(values)
    # What does not count is cut off before it is weighed: padding may hold anything.
    return (values.masked_fill(weights == 0, 0.0) * weights).sum(1)
