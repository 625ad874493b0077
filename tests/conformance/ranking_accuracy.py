"""Ranking accuracy, its ideal, and what makes a pair hard."""

from __future__ import annotations

from typing import Any

from prefkit import diagnostics as d
from prefkit import objectives as o

POLICY = ("policy_chosen_logps", "policy_rejected_logps")
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
LENGTHS = ("chosen_lengths", "rejected_lengths")


def of(x: dict[str, Any], *names: str) -> list[Any]:
    return [x[name] for name in names]


def with_ties(x: dict[str, Any]) -> dict[str, Any]:
    quantity = "normalized_probability" if x["length_normalize"] else "probability"
    found = d.ranking_accuracy_with_ties(
        *of(x, "policy_logps_1", "policy_logps_2", "alpha", "lengths_1", "lengths_2"),
        tie_tolerance=x["tie_tolerance"],
        quantity=quantity,
    )
    return found._asdict()


def nway(x: dict[str, Any]) -> dict[str, Any]:
    return d.ranking_accuracy_nway(
        x["policy_logps"], x["human_ranks"], x["lengths"], length_normalize=x["length_normalize"]
    )._asdict()


def idealized(x: dict[str, Any]) -> dict[str, Any]:
    options = {name: x[name] for name in ("beta", "eps", "length_normalize")}
    return d.idealized_ranking(*of(x, *REFERENCE, "alpha", *LENGTHS), **options)._asdict()


def threshold(x: dict[str, Any]) -> dict[str, Any]:
    found = d.difficulty(*of(x, *REFERENCE), beta=x["beta"])
    return {"c": found.nats, "loss_threshold": found.loss_threshold}


def equivalence(x: dict[str, Any]) -> dict[str, Any]:
    return {
        "losses": o.dpo_gamma_loss(*of(x, *POLICY, *REFERENCE), beta=x["beta"], ref_weight=x["gamma"]),
        "loss_threshold": d.difficulty(*of(x, *REFERENCE), beta=x["beta"], gamma=x["gamma"]).loss_threshold,
        "ranked_correctly": d.ranking_accuracy(*of(x, *POLICY)).per_example,
    }


def ipo(x: dict[str, Any]) -> dict[str, Any]:
    losses = o.ipo_loss(*of(x, *POLICY, *REFERENCE), beta=x["tau"])
    return {"losses": losses, **d.ipo_condition(*of(x, *REFERENCE), tau=x["tau"])._asdict()}


def flips(x: dict[str, Any]) -> dict[str, Any]:
    found = d.flip_report(*of(x, *POLICY, *REFERENCE))
    return {"labels": found.labels, "fractions": found.fractions, "flip_rate": found.flip_rate}


FUNCTIONS = {
    "ranking_accuracy": lambda x: d.ranking_accuracy(
        *of(x, *POLICY, *LENGTHS), length_normalize=x["length_normalize"]
    )._asdict(),
    "reward_accuracy": lambda x: d.reward_accuracy(*of(x, *POLICY, *REFERENCE), beta=x["beta"])._asdict(),
    "ranking_accuracy_with_ties": with_ties,
    "ranking_accuracy_nway": nway,
    "idealized_ranking_accuracy": idealized,
    "dpo_flip_threshold": threshold,
    "dpo_flip_equivalence": equivalence,
    "ipo_ranking_condition": ipo,
    "dpo_gamma_loss": lambda x: {
        "losses": o.dpo_gamma_loss(*of(x, *POLICY, *REFERENCE), beta=x["beta"], ref_weight=x["gamma"])
    },
    "flip_categories": flips,
}
