"""Robust DPO and the losses that it is compared with."""

from __future__ import annotations

from typing import Any

from prefkit import objectives as o
from prefkit.objectives.links import LINKS

LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
LENGTHS = ("chosen_lengths", "rejected_lengths")
BASES = {"sigmoid": "logistic", "ipo": "squared", "hinge": "hinge", "probit": "probit"}


def named(loss: Any, *tensors: str, **options: str) -> Any:
    def adapter(x: dict[str, Any]) -> dict[str, Any]:
        arguments = (x[name] for name in tensors)
        return {"losses": loss(*arguments, **{ours: x[theirs] for ours, theirs in options.items()})}

    return adapter


def robust_generic(x: dict[str, Any]) -> dict[str, Any]:
    base = o.make_objective({"kind": "dpo", "beta": x["beta"], "link": BASES[x["base"]]})
    scores = o.PairScores(*(x[name] for name in LOGPS))
    return {"losses": o.robust_loss(base, scores, flip_rate=x["epsilon"])}


def gradient_weights(x: dict[str, Any]) -> dict[str, Any]:
    weights = o.gradient_weights(x["margin"], beta=x["beta"], flip_rate=x["epsilon"])
    return {f"{name}_weight": weight for name, weight in weights._asdict().items()}


def unbiasedness(x: dict[str, Any]) -> dict[str, Any]:
    rate = x["epsilon"]
    loss, swapped = (LINKS["logistic"].function(margin, beta=x["beta"]) for margin in (x["margin"], -x["margin"]))
    observed, flipped = o.robust(loss, swapped, flip_rate=rate), o.robust(swapped, loss, flip_rate=rate)
    return {
        "expected_loss_under_flips": o.conservative(observed, flipped, flip_rate=rate),
        "clean_dpo_loss": loss,
    }


FUNCTIONS = {
    "dpo_loss": named(o.dpo_loss, *LOGPS, beta="beta"),
    "cdpo_loss": named(o.cdpo_loss, *LOGPS, beta="beta", flip_rate="epsilon"),
    "rdpo_loss": named(o.rdpo_loss, *LOGPS, beta="beta", flip_rate="epsilon"),
    "ipo_loss": named(o.ipo_loss, *LOGPS, beta="beta"),
    "ipo_loss_length_averaged": named(o.ipo_loss_length_averaged, *LOGPS, *LENGTHS, beta="beta"),
    "slic_hinge_loss": named(o.slic_hinge_loss, *LOGPS, beta="beta"),
    "robust_generic_loss": robust_generic,
    "gradient_weights": gradient_weights,
    "unbiasedness": unbiasedness,
    "robust_reward_model_loss": named(
        o.robust_reward_model_loss, "chosen_rewards", "rejected_rewards", flip_rate="epsilon"
    ),
}
