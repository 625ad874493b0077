"""Latent collective preference optimisation: the pairwise losses that it wraps, posteriors and reliabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prefkit import objectives as o

FIELDS = (
    "policy_chosen_logps",
    "policy_rejected_logps",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "chosen_lengths",
    "rejected_lengths",
)


def scored(x: Mapping[str, Any]) -> o.PairScores:
    return o.PairScores(**{name: x[name] for name in FIELDS if name in x}, annotators=x.get("annotator_ids"))


def config(kind: str, x: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": kind, **{name: x[name] for name in ("beta", "gamma") if name in x}}


def base(kind: str) -> Any:
    def adapter(x: Mapping[str, Any]) -> dict[str, Any]:
        objective = o.make_objective(config(kind, x))
        losses, swapped = objective(scored(x)), objective(scored(x).swapped())
        delta = o.induced_log_odds(losses, swapped)
        return {
            "losses": losses,
            "swapped_losses": swapped,
            "delta": delta,
            "preference_probability": torch.sigmoid(delta),
        }

    return adapter


def e_step(x: Mapping[str, Any]) -> dict[str, Any]:
    weights = o.label_confidence(x["delta"], x["eta"][x["annotator_ids"]])
    return {"preference_probability": torch.sigmoid(x["delta"]), "weights": weights}


def loss(x: Mapping[str, Any]) -> dict[str, Any]:
    objective = o.make_objective(config(x["base_loss"], x))
    return {"losses": o.latent_label_loss(objective(scored(x)), objective(scored(x).swapped()), x["weights"])}


def full_update(x: Mapping[str, Any]) -> dict[str, Any]:
    tallied = o.tally_labels(x["weights"], x["annotator_ids"], len(x["eta"]))
    return {"eta_new": o.mean_reliabilities(tallied, x["eta"])}


def ema_update(x: Mapping[str, Any]) -> dict[str, Any]:
    tallied = o.tally_labels(x["weights"], x["annotator_ids"], len(x["eta"]))
    return {"eta_new": o.moving_reliabilities(tallied, x["eta"], ema_alpha=x["ema_alpha"])}


def training_step(x: Mapping[str, Any]) -> dict[str, Any]:
    """One step of the composed objective, whose posteriors keep reliabilities as they are given."""
    latent = {"kind": "latent", "per_annotator": True, "ema_alpha": x["ema_alpha"], "clamp": 0}
    objective = o.make_objective({**config(x["base_loss"], x), "noise": latent})
    objective.prepare([str(k) for k in range(len(x["eta"]))])
    objective.double().noise.reliabilities.copy_(x["eta"].detach())
    losses = objective(scored(x))
    objective.after_update()
    return {
        "weights": objective.figures()["label_confidence"],
        "losses": losses,
        "eta_new": objective.noise.reliabilities,
    }


def reliability_operator(x: Mapping[str, Any]) -> dict[str, Any]:
    return {"trajectory": o.reliability_path(x["p"], x["eta0"], x["iterations"])}


FUNCTIONS = {
    **{f"{kind}_loss": base(kind) for kind in ("dpo", "ipo", "simpo", "cpo")},
    "lcpo_e_step": e_step,
    "lcpo_loss": loss,
    "lcpo_eta_full_update": full_update,
    "lcpo_eta_ema_update": ema_update,
    "lcpo_training_step": training_step,
    "lcpo_reliability_operator": reliability_operator,
}
