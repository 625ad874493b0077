"""Preferences under contexts: mixtures, their error, aggregation, reversals, inference."""

from __future__ import annotations

from typing import Any

import torch

from prefkit import preference
from prefkit.diagnostics import reversal_metrics
from prefkit.objectives import reward_model_loss


def marginal(x: dict[str, Any]) -> dict[str, Any]:
    found = preference.marginal_preference(x["reward_1"], x["reward_2"], x["context_prob"])
    return {"prob": found.prob.detach(), "nll": found.nll.mean()}


def aggregated(x: dict[str, Any]) -> dict[str, Any]:
    rules = {"expected_utility": "expected_utility", "borda_soft": "borda", "borda_hard": "borda_hard"}
    found = {
        name: preference.aggregate(x["utilities"].double(), x["context_prob"].double(), rule)
        for name, rule in rules.items()
    }
    best = {f"best_{name}": int(found[name].argmax()) for name in ("expected_utility", "borda_hard")}
    return {**found, **best}


def reversal(x: dict[str, Any]) -> dict[str, Any]:
    under_x, under_y = x["reward_under_x"], x["reward_under_y"]
    chosen, rejected = torch.cat([under_x[:, 0], under_y[:, 1]]), torch.cat([under_x[:, 1], under_y[:, 0]])
    found = reversal_metrics(under_x.detach(), under_y.detach())
    return {
        "losses": reward_model_loss(chosen, rejected),
        **{name: float(values.mean()) for name, values in found._asdict().items()},
    }


def inferred(x: dict[str, Any]) -> dict[str, Any]:
    difference = torch.as_tensor(x["reward_difference"], dtype=torch.float64)
    labels = torch.as_tensor(x["labels"], dtype=torch.int64)
    return preference.infer_context(difference, labels, x["prior"].double())._asdict()


FUNCTIONS = {
    "marginal_preference": marginal,
    "decomposition_bound": lambda x: preference.decomposition_bound(
        x["true_context_prob"], x["model_context_prob"], x["true_pref_prob"], x["model_pref_prob"]
    )._asdict(),
    "aggregate_over_contexts": aggregated,
    "reversal_pair": reversal,
    "infer_context": inferred,
}
