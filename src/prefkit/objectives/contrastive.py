"""Contrastive terms: states of a reward model that tell chosen from rejected responses, and one input from another.

Every input is seen twice, with different dropout. The two views of one input are to be alike and those of different
inputs are not (SimCSE), or both are to be assigned to the same cluster (SwAV).

Source: Wang et al. 2024, Secrets of RLHF in Large Language Models Part II (arXiv 2401.06080), section 3.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prefkit.errors import OptionError, unknown

View = Literal["pair", "difference"]
"""The inputs of a contrastive term: the states of both responses, or their differences in both directions."""


def contrastive_inputs(
    chosen: Float[Tensor, "batch dim"], rejected: Float[Tensor, "batch dim"], view: View = "pair"
) -> Float[Tensor, "inputs dim"]:
    """Inputs of a contrastive term, `[2 batch, dim]`.

    Args:
        chosen: last hidden states of the chosen responses.
        rejected: those of the rejected responses.
        view: "pair" takes [chosen; rejected], "difference" [chosen - rejected; rejected - chosen].

    Raises:
        OptionError: the view is unknown, or shapes differ.
    """
    if chosen.shape != rejected.shape:
        raise OptionError(f"both sides need states of one shape, got {tuple(chosen.shape)}, {tuple(rejected.shape)}")
    match view:
        case "pair":
            return torch.cat([chosen, rejected])
        case "difference":
            return torch.cat([chosen - rejected, rejected - chosen])
    raise OptionError(unknown("view", view, ("pair", "difference")))


def simcse_loss(
    view_s: Float[Tensor, "inputs dim"], view_t: Float[Tensor, "inputs dim"], *, tau: float = 0.05
) -> Float[Tensor, " inputs"]:
    """-log softmax over j of cos(s_i, t_j) / tau, at j = i: each view has to find its twin among all inputs.

    Args:
        view_s: one view of each input.
        view_t: the other one, in the same order.
        tau: temperature, above 0.

    Raises:
        OptionError: tau is not positive, or shapes differ.

    Source: Gao et al. 2021 (SimCSE, arXiv 2104.08821), eq. 1.
    """
    _check(view_s, view_t, tau=tau)
    similarities = F.normalize(view_s, dim=1) @ F.normalize(view_t, dim=1).T / tau
    return -similarities.log_softmax(1).diagonal()


class SwavLoss(NamedTuple):
    """Loss of each input, and the codes of both views, which have no gradient."""

    losses: Float[Tensor, " inputs"]
    codes_s: Float[Tensor, "inputs clusters"]
    codes_t: Float[Tensor, "inputs clusters"]


def swav_loss(
    view_s: Float[Tensor, "inputs dim"],
    view_t: Float[Tensor, "inputs dim"],
    centres: Float[Tensor, "clusters dim"],
    *,
    tau: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
) -> SwavLoss:
    """Swapped prediction: each view predicts the cluster of the other one.

    Args:
        view_s: one view of each input.
        view_t: the other one, in the same order.
        centres: of the clusters, taken at unit length. A balanced assignment needs as many inputs as clusters.
        tau: temperature of the predictions, above 0.
        epsilon: of the codes, see `sinkhorn_codes`.
        iterations: of the codes.

    Raises:
        OptionError: tau, epsilon or iterations is out of range, or shapes differ.

    Source: Caron et al. 2020 (SwAV, arXiv 2006.09882), eq. 2.
    """
    _check(view_s, view_t, tau=tau)
    if centres.ndim != 2 or centres.shape[1] != view_s.shape[1]:
        raise OptionError(f"centres must be as wide as the views, {view_s.shape[1]}, got {tuple(centres.shape)}")
    units = F.normalize(centres, dim=1)
    scores_s, scores_t = F.normalize(view_s, dim=1) @ units.T, F.normalize(view_t, dim=1) @ units.T
    codes_s, codes_t = (
        sinkhorn_codes(scores, epsilon=epsilon, iterations=iterations) for scores in (scores_s, scores_t)
    )
    logps_s, logps_t = (scores_s / tau).log_softmax(1), (scores_t / tau).log_softmax(1)
    return SwavLoss(-(codes_s * logps_t).sum(1) - (codes_t * logps_s).sum(1), codes_s, codes_t)


def sinkhorn_codes(
    scores: Float[Tensor, "inputs clusters"], *, epsilon: float = 0.05, iterations: int = 3
) -> Float[Tensor, "inputs clusters"]:
    """Soft assignment of inputs to clusters that uses all clusters about equally; rows sum to 1, no gradient.

    Args:
        scores: similarity of each input to each cluster.
        epsilon: above 0; the smaller, the harder the assignment.
        iterations: rounds of Sinkhorn's algorithm (first clusters, then inputs), at least 1.

    Raises:
        OptionError: epsilon or iterations is out of range.

    Source: Caron et al. 2020 (SwAV, arXiv 2006.09882), section 3.1.
    """
    if not epsilon > 0 or iterations < 1:
        raise OptionError(f"epsilon must be above 0 and iterations at least 1, got {epsilon} and {iterations}")
    # In logarithms, so that no row or column can vanish.
    codes = scores.detach() / epsilon
    for _ in range(iterations):
        codes = codes.log_softmax(0).log_softmax(1)
    return codes.exp()


def _check(view_s: Tensor, view_t: Tensor, *, tau: float) -> None:
    if not tau > 0:
        raise OptionError(f"tau must be greater than 0, got {tau}")
    if view_s.ndim != 2 or view_s.shape != view_t.shape:
        raise OptionError(f"two views of the same inputs are needed, got {tuple(view_s.shape)}, {tuple(view_t.shape)}")
