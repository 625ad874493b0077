"""Strength of preferences, losses with it, contrastive terms, and MetaRM."""

from __future__ import annotations

from typing import Any

from prefkit import objectives as o

SCORES = ("chosen_scores", "rejected_scores")


def strength(x: dict[str, Any]) -> dict[str, Any]:
    found = o.preference_strength(*(x[name].double() for name in SCORES))
    return {"strength_mean": found.mean, "strength_std": found.std, "vote_share": found.vote_share}


def flips(x: dict[str, Any]) -> dict[str, Any]:
    flipped = o.flip_weakest(x["strength_mean"], fraction=x["fraction"])
    return {
        "flip_mask": flipped.mask.int(),
        "group": o.strength_groups(x["strength_mean"], x["num_groups"]),
        "flipped_strength": flipped.strength,
    }


def swav(x: dict[str, Any]) -> dict[str, Any]:
    found = o.swav_loss(
        x["view_s"],
        x["view_t"],
        x["cluster_centres"],
        tau=x["tau"],
        epsilon=x["epsilon"],
        iterations=x["sinkhorn_iterations"],
    )
    return {"losses": found.losses, "codes_s": found.codes_s, "codes_t": found.codes_t}


def difference(x: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for normaliser in ("k_squared", "k_k_minus_1"):
        scores = x["scores"].detach().double().requires_grad_()
        found[normaliser] = o.metarm_difference(scores, normaliser=normaliser).mean()
        found[normaliser].backward()
        found[f"grad_scores_{normaliser}"] = scores.grad
    return found


def step(x: dict[str, Any]) -> dict[str, Any]:
    chosen, rejected, meta = (x[f"{name}_features"].double() for name in ("chosen", "rejected", "meta"))

    def loss(weights: Any) -> Any:
        return o.reward_model_loss(chosen @ weights["w"], rejected @ weights["w"]).mean()

    def spread(weights: Any) -> Any:
        return o.metarm_difference(meta @ weights["w"]).mean()

    first, second = (
        o.meta_step({"w": x["weights"].double()}, loss, spread, eta=x["eta"], alpha=x["alpha"], order=order)
        for order in (1, 2)
    )
    return {
        "difference": first.difference,
        "adapted_weights": first.adapted["w"],
        "loss_at_adapted": first.loss,
        "next_weights": first.weights["w"],
        "next_weights_second_order": second.weights["w"],
    }


FUNCTIONS = {
    "preference_strength": strength,
    "flip_bottom_fraction": flips,
    "label_smoothing_loss": lambda x: {
        "losses": o.smoothed_reward_loss(*(x[name] for name in SCORES), alpha=x["alpha"])
    },
    "adaptive_margin_loss": lambda x: {"losses": o.adaptive_margin_loss(*(x[name] for name in SCORES), x["margin"])},
    "soft_label_margin_loss": lambda x: {
        "losses": o.adaptive_margin_loss(
            *(x[name] for name in SCORES), x["strength_mean"], alpha=x["alpha"], smoothed="negative"
        )
    },
    "simcse_loss": lambda x: {"losses": o.simcse_loss(x["view_s"], x["view_t"], tau=x["tau"])},
    "swav_loss": swav,
    "contrastive_sets": lambda x: {
        f"{view}_set": o.contrastive_inputs(x["chosen_hidden"], x["rejected_hidden"], view)
        for view in ("pair", "difference")
    },
    "metarm_difference": difference,
    "metarm_step": step,
    "released_rm_loss": lambda x: {
        "losses": o.offset_reward_loss(x["score_difference"]),
        "exact_loss": o.smoothed_reward_loss(
            x["score_difference"].detach(), 0 * x["score_difference"].detach(), alpha=0.0
        ).mean(),
    },
}
