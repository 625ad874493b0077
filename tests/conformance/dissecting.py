"""Annotated properties compared, and the regression of choices on them."""

from __future__ import annotations

from typing import Any

from prefkit import diagnostics as d


def compared(found: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(found, name).tolist() for name in names}


def errors(x: dict[str, Any]) -> dict[str, Any]:
    return d.compare_errors(x["pairs"])._asdict()


def probability(x: dict[str, Any]) -> dict[str, Any]:
    found = d.preference_probability(x["features"], x["alpha"])
    return {"prob_a_preferred": found, "prediction": found.round()}


def degree(x: dict[str, Any]) -> dict[str, Any]:
    found = d.degree_of_preference(x["alpha"])
    top, last = d.ranked_properties(found.scenario_average)
    return {**compared(found, "degree", "scenario_average"), "top3": top, "last3": last}


def posterior(x: dict[str, Any]) -> dict[str, Any]:
    # Samplers are held to this within their own error in tests/diagnostics.
    mean, sd = d.exact_posterior(x["features"], x["labels"], scale=x["scale"])
    return {"posterior_mean": mean.tolist(), "posterior_sd": sd.tolist()}


def similarity(x: dict[str, Any]) -> dict[str, Any]:
    return {
        metric: d.judge_similarity(x["alpha_judge_1"], x["alpha_judge_2"], metric)
        for metric in ("pearson", "spearman", "normed_l1", "normed_l2")
    }


def label_filter(x: dict[str, Any]) -> dict[str, Any]:
    found = d.preference_probability(x["features"], x["alpha"])
    toward, against = (d.manipulation_labels(found, margin=x["margin"], direction=way) for way in ("toward", "against"))
    return {"keep": toward.keep.tolist(), "label_toward": toward.labels, "label_against": against.labels}


FUNCTIONS = {
    "compare_likert": lambda x: compared(
        d.compare_likert(x["scores_a"], x["scores_b"], x["property"]), "comparison", "diff"
    ),
    "compare_length": lambda x: compared(
        d.compare_lengths(x["words_a"], x["words_b"]), "comparison", "diff", "norm_diff"
    ),
    "compare_errors": errors,
    "normalize_diff": lambda x: {"norm_diff": d.normalize_diff(x["diff"], x["threshold"], x["way"]).tolist()},
    "compare_query_specific": lambda x: d.compare_query_specific(x["annotation"]),
    "feature_vector": lambda x: {"features": d.feature_vector(x["comparison"], missing="zero")},
    "preference_probability": probability,
    "degree_of_preference": degree,
    "log_posterior": lambda x: {
        "log_posterior": d.log_posterior(x["features"], x["labels"], x["alpha"], scale=x["scale"])
    },
    "posterior_mean": posterior,
    "judge_similarity": similarity,
    "swap_and_average_labels": lambda x: {
        "labels": d.swap_and_average_labels(x["score_a_b_order_ab"], x["score_a_b_order_ba"])[0]
    },
    "fold_bounds": lambda x: {"held_out": [list(b) for b in d.fold_bounds(x["num_examples"], x["num_folds"])]},
    "dpo_label_filter": label_filter,
}

TOLERANCES = {
    # The vectors integrate over eight scales of the prior on each side, which leaves out about this share of a standard
    # deviation; they ask for 0.02 themselves.
    "posterior_mean": 1e-6
}
