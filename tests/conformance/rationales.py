"""Preference losses with rationales."""

from __future__ import annotations

from typing import Any

import torch

from prefkit import objectives as o
from prefkit.language import label_logps

from .rdpo import LOGPS

SIDES = ("policy_chosen_mean_logps", "policy_rejected_mean_logps", "policy_rationale_mean_logps")
TERMS = {"linear": "nll_mean", "logsigmoid": "softplus_mean"}


def rdpo(x: dict[str, Any]) -> dict[str, Any]:
    tensors = (x[name] for name in (*LOGPS, "policy_rationale_logps", "rationale_lengths"))
    options = {"beta": x["beta"], "rationale_weight": x["gamma"], "rationale_term": x["rationale_term"]}
    return {"losses": o.rationale_dpo_loss(*tensors, **options)}


def means(x: dict[str, Any]) -> list[torch.Tensor]:
    """Log-probabilities a token, as responses of one token."""
    logps = [x[name] for name in SIDES]
    return [*logps, *(torch.ones_like(each, dtype=torch.long) for each in logps)]


def rorpo(x: dict[str, Any]) -> dict[str, Any]:
    nll = torch.tensor(x["chosen_nll"], dtype=torch.float64, requires_grad=True)
    options = {"beta": x["beta"], "rationale_weight": x["gamma"], "rationale_term": TERMS[x["rationale_term"]]}
    loss = o.rationale_orpo_loss(*means(x), nll, **options).mean()
    chosen, rejected, _, ones, *_ = means(x)
    return {
        "loss": loss,
        "log_odds_ratio": o.log_odds(chosen, ones) - o.log_odds(rejected, ones),
        "grad_chosen_nll": torch.autograd.grad(loss, nll, retain_graph=True)[0],
    }


def rsimpo(x: dict[str, Any]) -> dict[str, Any]:
    return {"losses": o.rationale_simpo_loss(*means(x), beta=x["beta"], gamma=x["margin"], rationale_weight=x["gamma"])}


def batch_logps(x: dict[str, Any]) -> dict[str, Any]:
    return {"logps": label_logps(x["logits"], x["labels"], average=x["average_log_prob"])}


FUNCTIONS = {
    "rdpo_loss_code": rdpo,
    "rdpo_loss_paper": rdpo,
    "rorpo_loss": rorpo,
    "rsimpo_loss": rsimpo,
    "batch_logps": batch_logps,
}
