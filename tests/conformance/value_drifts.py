"""Stances, their drift, and the gap of a preference set."""

from __future__ import annotations

from typing import Any

from prefkit import diagnostics as d
from prefkit import objectives as o


def trajectory(x: dict[str, Any]) -> d.ValueTrajectory:
    return d.ValueTrajectory(tuple(x.get("steps", range(len(x["values"])))), x["values"])


def vector(x: dict[str, Any]) -> dict[str, Any]:
    return d.value_vector(x["stance_probs"], x["generation_mask"])._asdict()


def simpo(x: dict[str, Any]) -> dict[str, Any]:
    names = ("policy_chosen_logps", "policy_rejected_logps", "chosen_lengths", "rejected_lengths")
    return {"losses": o.simpo_loss(*(x[name] for name in names), beta=x["beta"], gamma=x["target_margin"])}


FUNCTIONS = {
    "stance_probabilities": lambda x: {"stance_probs": d.stance_probabilities(x["label_logprobs"])},
    "value_vector": vector,
    "drift_magnitude": lambda x: trajectory(x).magnitude(x["start"], x["end"])._asdict(),
    "drift_time": lambda x: trajectory(x).drift_times(x["fraction"])._asdict(),
    "value_gap": lambda x: d.value_gap(x["chosen_stance_probs"], x["rejected_stance_probs"])._asdict(),
    "simpo_loss": simpo,
}
