"""Transport: links that compare distributions of a whole batch instead of one response with another.

The margins of a batch are sorted before they are compared, so a loss belongs to a quantile and not to a pair. What
differs from pair to pair, such as weights and soft labels, has no meaning here. A batch is that of one process and one
step: with one pair in it, these losses are DPO.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prefkit.objectives.links import Temperature
from prefkit.objectives.parts import Part, catalogue


def aot(
    margin: Float[Tensor, " batch"],
    ref_chosen_logps: Float[Tensor, " batch"],
    ref_rejected_logps: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " batch"]:
    """-log sigmoid(beta d), d the difference of the k-th smallest margins of the policy and of the reference.

    The policy's margins, log pi(chosen) - log pi(rejected), are to exceed the reference's as a distribution.

    Args:
        margin: difference of the log-ratios of both responses; the reference's margin is added to have the policy's.
        ref_chosen_logps: chosen responses under the reference.
        ref_rejected_logps: rejected responses under the reference.
        beta: temperature.

    Returns:
        The loss of each pair's quantile among the policy's margins.

    Source: Melnyk et al. 2024 (AOT, arXiv 2406.05882), paired.
    """
    reference = ref_chosen_logps - ref_rejected_logps
    policy, order = torch.sort(margin + reference)
    excess = policy - torch.sort(reference).values
    # Back in the order of the pairs, so that the exchanged pairs' losses stand beside these.
    return -F.logsigmoid(beta * excess[torch.argsort(order)])


def aot_unpaired(
    chosen: Float[Tensor, " batch"], rejected: Float[Tensor, " batch"], *, beta: float = 0.1
) -> Float[Tensor, " batch"]:
    """-log sigmoid(beta d), d the difference of the k-th smallest rewards of chosen and of rejected responses.

    Chosen and rejected responses need not belong together.

    Args:
        chosen: rewards of the chosen responses.
        rejected: rewards of the rejected ones.
        beta: temperature.

    Returns:
        The loss of each quantile, from the lowest to the highest.

    Source: Melnyk et al. 2024 (AOT, arXiv 2406.05882), unpaired.
    """
    return -F.logsigmoid(beta * (torch.sort(chosen).values - torch.sort(rejected).values))


TRANSPORT = catalogue(
    Part(
        "aot",
        aot,
        ("ref_chosen_logps", "ref_rejected_logps"),
        Temperature,
        across=True,
        fits=("log_ratio", "joint_log_ratio"),
    ),
    Part("aot_unpaired", aot_unpaired, ("chosen", "rejected"), Temperature, across=True),
)
