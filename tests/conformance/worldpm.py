"""Pairs from forums, style control, scaling fits, and choices by a reward."""

from __future__ import annotations

from typing import Any

import numpy as np

from prefkit import diagnostics, objectives
from prefkit.comparisons import forum_pairs
from prefkit.selection import best_of_n


def bt_loss(x: dict[str, Any]) -> dict[str, Any]:
    first, second, preferred = x["score_0"], x["score_1"], x["preferred"]
    sides = first.detach() * (1 - 2 * preferred), second.detach() * (1 - 2 * preferred)
    return {
        "losses": objectives.choice_loss(first, second, preferred),
        "accuracy": diagnostics.pairwise_accuracy(*sides),
    }


def style_difference(x: dict[str, Any]) -> dict[str, Any]:
    found = diagnostics.style_difference(x["style_0"], x["style_1"])
    return {"relative_difference": found.relative.tolist(), "normalised": found.normalised.tolist()}


def style_control(x: dict[str, Any]) -> dict[str, Any]:
    found = diagnostics.style_control(x["score_difference"], x["style"], x["preferred"], l2=x["l2"])
    return {**vars(found), "beta": found.beta.tolist()}


def phi(x: dict[str, Any]) -> dict[str, Any]:
    found = diagnostics.phi(x["first"], x["second"])
    return {"phi": found.phi, "counts": list(found.counts)}


def forum(x: dict[str, Any]) -> dict[str, Any]:
    found = forum_pairs(*(x[name].tolist() for name in ("upvotes", "downvotes", "accepted")))
    return {"score": found.scores, "pairs": [list(pair) for pair in found.pairs], "score_gaps": found.gaps}


def scaling(x: dict[str, Any]) -> dict[str, Any]:
    fit = diagnostics.scaling_fit(x["samples"], x["loss"])
    return {
        "coefficient": fit.coefficient,
        "exponent": fit.exponent,
        "r2_log_log": fit.r2_log_log,
        "semilog_slope_per_doubling": fit.slope_per_doubling,
        "semilog_r2": fit.slope_r2,
        "spearman_sign": float(np.sign(fit.spearman)),
    }


def group(x: dict[str, Any]) -> dict[str, Any]:
    best = best_of_n(x["scores"])
    return {
        "group_advantage": objectives.group_advantage(x["scores"].double()),
        "best_index": best,
        "best_length": x["lengths"].tolist()[best],
    }


FUNCTIONS = {
    "bt_loss": bt_loss,
    "style_difference": style_difference,
    "style_control_fit": style_control,
    "phi_coefficient": phi,
    "forum_pairs": forum,
    "scaling_fit": scaling,
    "group_advantage_and_best_of_n": group,
}
