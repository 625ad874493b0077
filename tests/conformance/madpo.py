"""Margin-adaptive DPO, its reward model, and the baseline beta-DPO."""

from __future__ import annotations

from typing import Any

from prefkit import objectives as o

from .rdpo import LOGPS

OPTIONS = ("c_max", "c_min", "lam", "tau")


def options(x: dict[str, Any], *more: str) -> dict[str, Any]:
    return {name: x[name] for name in (*OPTIONS, *more)}


def loss(x: dict[str, Any]) -> dict[str, Any]:
    # The runner asks every input for gradients; the reward model's are constants.
    rewards = (x[name].detach() for name in ("chosen_rewards", "rejected_rewards"))
    return {"losses": o.madpo_loss(*(x[name] for name in LOGPS), *rewards, **options(x, "beta"))}


def batch_filter(x: dict[str, Any]) -> dict[str, Any]:
    found = o.beta_dpo_filter(x["margins"], centre=x["center"], scale=x["scale"], momentum=x["momentum"])
    return {
        "center": found.centre,
        "scale": found.scale,
        "scores": found.scores,
        "probabilities": found.probabilities,
    }


FUNCTIONS = {
    "coefficient": lambda x: {"coef": o.madpo_coefficient(x["reward_margin"], **options(x))},
    "weight": lambda x: {"weight": o.madpo_weight(x["reward_margin"], **options(x))},
    "madpo_loss": loss,
    "reward_model_loss": lambda x: {"losses": o.reward_model_loss(x["chosen_rewards"], x["rejected_rewards"])},
    "population_target_margin": lambda x: {
        "target_margin": o.population_target_margin(x["reward_margin"], **options(x))
    },
    "beta_dpo_batch_beta": lambda x: {
        "beta": o.beta_dpo_batch_beta(x["margins"], beta=x["beta0"], alpha=x["alpha"], centre=x["m0"])
    },
    "beta_dpo_filter": batch_filter,
}
