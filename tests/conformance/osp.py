"""Self-preferring: judgements, ranked pairs, and the loss on soft labels."""

from __future__ import annotations

from typing import Any

import torch

from prefkit import objectives as o

from .rdpo import LOGPS


def judge_matrix(x: dict[str, Any]) -> dict[str, Any]:
    return {"preference_matrix": o.judge_matrix(x["logit_first"], x["logit_second"])}


def ranked_pairs(x: dict[str, Any]) -> dict[str, Any]:
    judged, scheme = x["preference_matrix"], x["scheme"]
    found = o.ranked_pairs(judged, scheme=scheme)
    return {
        "win_rates": found.strengths,
        "ranking": found.ranking,
        "pairs": found.pairs,
        "soft_labels": found.labels,
        "win_rate_gap_labels": o.ranked_pairs(judged, scheme=scheme, label="gap_sigmoid").labels,
    }


def spce_loss(x: dict[str, Any]) -> dict[str, Any]:
    chosen, rejected, ref_chosen, ref_rejected = (x[name] for name in LOGPS)
    losses = o.spce_loss(chosen, rejected, ref_chosen, ref_rejected, x["soft_labels"], beta=x["beta"])
    sure = o.dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=x["beta"])
    swapped = o.dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta=x["beta"])
    return {"losses": losses, "predicted_preference": torch.sigmoid(o.induced_log_odds(sure, swapped))}


def optimal_policy(x: dict[str, Any]) -> dict[str, Any]:
    return {"optimal_log_probs": o.optimal_policy(x["win_rates"], x["ref_log_probs"], beta=x["beta"])}


def baseline_strengths(x: dict[str, Any]) -> dict[str, Any]:
    first = x["response_first_logit_first"], x["response_first_logit_second"]
    second = x["baseline_first_logit_first"], x["baseline_first_logit_second"]
    baseline = None if x["baseline"] < 0 else x["baseline"]
    return {
        "strengths": o.baseline_strengths(first, second, baseline=baseline),
        "strengths_one_order": o.baseline_strengths(first, baseline=baseline),
    }


def baseline_pairs(x: dict[str, Any]) -> dict[str, Any]:
    strengths, scheme = x["strengths"], x["scheme"]
    by_label = {
        label: o.ranked_pairs(strengths, scheme=scheme, label=label, clip=x["eps"])
        for label in ("bt", "gap", "gap_sigmoid")
    }
    against = o.ranked_pairs(strengths, scheme="vs_baseline", baseline=x["baseline"])
    return {
        "ranking": by_label["bt"].ranking,
        "pairs": by_label["bt"].pairs,
        **{f"labels_{label}": found.labels for label, found in by_label.items()},
        "vs_baseline_pairs": against.pairs,
        "vs_baseline_labels": against.labels,
    }


FUNCTIONS = {
    "osp_judge_matrix": judge_matrix,
    "osp_ranked_pairs": ranked_pairs,
    "spce_loss": spce_loss,
    "osp_optimal_policy": optimal_policy,
    "osp_baseline_strengths": baseline_strengths,
    "osp_baseline_pairs": baseline_pairs,
}
