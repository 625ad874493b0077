"""Metrics of a training step, from the scores that the loss is made of: no pass over the model or the vocabulary.

Sums are kept on the device until they are asked for, so that no step waits for them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prefkit.objectives import DemonstrationScores, LabelScores, ListScores, PairScores, Scores
from prefkit.training import processes


def measure(
    scores: Scores, losses: Tensor, rewards: tuple[Tensor, Tensor] | None, score: str = "logp"
) -> dict[str, Tensor]:
    """Figures of each entry, nan where one does not apply.

    Args:
        scores: what the objective took.
        losses: what it gave, `[batch]`.
        rewards: its implicit rewards of the better and the worse response, if it has them.
        score: what the scores are: `logp`, or `reward` of a reward model, which takes its place in the names.

    Returns:
        `[batch]` each. `loss`. `chosen_logp_change` and `rejected_logp_change`: log-probability under the policy minus
        that under the reference, in nats; without a reference, `chosen_logp` and `rejected_logp`. `kl`: reference
        minus policy, the mean over the responses of an entry, an estimate of KL(reference, policy) as far as the
        responses are the reference's own; for KTO, policy minus reference of mismatched responses. `reward_margin`,
        and `reward_accuracy`, the share of entries in which the better response has the higher reward, ties counting
        half. Of pairs by log-probability: `ranking_accuracy`, the share in which the policy finds the better response
        at least as likely; `put_right`, of those that the reference ranks wrongly, and `spoilt`, of those that it ranks
        rightly, the share that the policy ranks otherwise; `chosen_fell` and `both_fell`, the shares in which the
        better response, or both, are less likely than under the reference (displacement). Lengths in tokens.
    """
    change = score if _without_reference(scores) else f"{score}_change"
    figures = {"loss": losses}
    match scores:
        case PairScores():
            chosen, rejected = scores.policy_chosen_logps, scores.policy_rejected_logps
            if score == "logp":
                figures |= _moved(scores)
            if scores.ref_chosen_logps is not None and scores.ref_rejected_logps is not None:
                chosen, rejected = chosen - scores.ref_chosen_logps, rejected - scores.ref_rejected_logps
                figures["kl"] = -(chosen + rejected) / 2
            figures |= {f"chosen_{change}": chosen, f"rejected_{change}": rejected}
            better, worse = rewards if rewards is not None else (chosen, rejected)
            figures |= _margin(better - worse)
            if scores.chosen_lengths is not None and scores.rejected_lengths is not None:
                figures |= {"chosen_length": scores.chosen_lengths, "rejected_length": scores.rejected_lengths}
        case ListScores():
            value = scores.policy_logps - (scores.ref_logps if scores.ref_logps is not None else 0)
            if scores.ref_logps is not None:
                figures["kl"] = -_mean(value, scores.mask)
            worst = scores.ranks.masked_fill(~scores.mask, -1).amax(1, keepdim=True)
            best_value = _mean(value, scores.mask & (scores.ranks == 0))
            worst_value = _mean(value, scores.mask & (scores.ranks == worst))
            figures |= {f"chosen_{change}": best_value, f"rejected_{change}": worst_value}
            better, worse = rewards if rewards is not None else (best_value, worst_value)
            figures |= _margin(better - worse)
        case LabelScores():
            value = scores.policy_logps - (scores.ref_logps if scores.ref_logps is not None else 0)
            nothing = torch.full_like(value, torch.nan)
            figures |= {
                f"chosen_{change}": torch.where(scores.labels, value, nothing),
                f"rejected_{change}": torch.where(scores.labels, nothing, value),
            }
            if scores.policy_kl_logps is not None and scores.ref_kl_logps is not None:
                figures["kl"] = scores.policy_kl_logps - scores.ref_kl_logps
        case DemonstrationScores():
            figures["logp"], figures["length"] = scores.policy_logps, scores.lengths
            if scores.ref_logps is not None:
                figures["logp_change"] = scores.policy_logps - scores.ref_logps
    return {name: figure.detach() for name, figure in figures.items()}


def _without_reference(scores: Scores) -> bool:
    """Whether the objective was given no reference."""
    return (scores.ref_chosen_logps if isinstance(scores, PairScores) else scores.ref_logps) is None


def _moved(scores: PairScores) -> dict[str, Tensor]:
    """Where training took the pairs: what it ranks rightly, what it put right or spoilt, and what it displaced."""
    chosen, rejected = scores.policy_chosen_logps, scores.policy_rejected_logps
    right = (chosen >= rejected).to(chosen.dtype)
    if scores.ref_chosen_logps is None or scores.ref_rejected_logps is None:
        return {"ranking_accuracy": right}
    before = scores.ref_chosen_logps >= scores.ref_rejected_logps
    fell = chosen < scores.ref_chosen_logps
    return {
        "ranking_accuracy": right,
        "put_right": right.masked_fill(before, torch.nan),
        "spoilt": (1 - right).masked_fill(~before, torch.nan),
        "chosen_fell": fell.to(chosen.dtype),
        "both_fell": (fell & (rejected < scores.ref_rejected_logps)).to(chosen.dtype),
    }


def _margin(margin: Tensor) -> dict[str, Tensor]:
    return {"reward_margin": margin, "reward_accuracy": (margin.sign() + 1) / 2}


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the masked values of each row, `[batch]`."""
    return values.masked_fill(~mask, 0).sum(1) / mask.sum(1)


class Meter:
    """Means of figures over steps and processes.

    Attributes:
        sums: `[figures, 2]`, sum and number of entries of this process; None before the first step.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: Tensor | None = None

    def add(self, figures: dict[str, Tensor]) -> None:
        """Take in the figures of a step, `[batch]` each."""
        self.names = list(figures)
        exact = torch.float32 if figures["loss"].device.type == "mps" else torch.float64
        values = torch.stack([figure.to(exact) for figure in figures.values()])
        step = torch.stack([values.nansum(1), (~values.isnan()).sum(1)], dim=1)
        self.sums = step if self.sums is None else self.sums.to(step.device) + step

    def total(self) -> Tensor | None:
        """The sums of all processes."""
        return None if self.sums is None else processes.total(self.sums)

    def means(self) -> dict[str, Any]:
        """The means so far; start over."""
        total = self.total()
        self.sums = None
        if total is None:
            return {}
        sums, counts = total.cpu().unbind(1)
        return {
            name: float(value / count) for name, value, count in zip(self.names, sums, counts, strict=True) if count > 0
        }
