"""TDPO, SparsePO and MaPO."""

from __future__ import annotations

from typing import Any

import torch

from prefkit import objectives as o

TDPO = ("chosen_logps_margin", "rejected_logps_margin", "chosen_position_kl", "rejected_position_kl")
OPTIONS = ("beta", "l1_reward", "l1_kl", "mask_mode", "mask_on_reward", "mask_on_kl")


def tdpo(x: dict[str, Any]) -> dict[str, Any]:
    return {
        "losses": o.tdpo_loss(*(x[name] for name in TDPO), beta=x["beta"], alpha=x["alpha"], variant=x["variant"]),
        "chosen_rewards": o.tdpo_rewards(x[TDPO[0]], x[TDPO[2]], beta=x["beta"]),
        "rejected_rewards": o.tdpo_rewards(x[TDPO[1]], x[TDPO[3]], beta=x["beta"]),
    }


def sequence_terms(x: dict[str, Any]) -> dict[str, Any]:
    margin, kl, logps = o.tdpo_sequence_terms(x["policy_logits"], x["ref_logits"], x["labels"])
    return {"logps_margin": margin, "position_kl": kl, "logps": logps}


def sparsepo(x: dict[str, Any]) -> dict[str, Any]:
    given: list[Any] = []
    for side in ("chosen", "rejected"):
        logits = (x[f"{name}_{side}_logits"] for name in ("policy", "ref"))
        _, ratios, kls = o.token_terms(*logits, x[f"{side}_labels"])
        masks = (x[f"{side}_{name}_mask"] for name in ("reward", "kl", "response"))
        given += [ratios, kls, *masks]
    return {"losses": o.sparsepo_loss(*given, **{name: x[name] for name in OPTIONS})}


def learned(x: dict[str, Any]) -> dict[str, Any]:
    layers = torch.stack(tensors(x["hidden_states"]), dim=2)
    rows, length, count, width = layers.shape
    mask = o.LearnedMask(x["kind"], count, width, dropout=0.0).double()
    state = {"weights.0": x["layer_weights"][:, None], "weights.1": x["layer_biases"][:, None]}
    if x["kind"] == "simple_all":
        state |= {"mixer": x["mixer_weights"], "norm.weight": x["layer_norm_weight"], "norm.bias": x["layer_norm_bias"]}
        mask.norm.eps = x["layer_norm_eps"]
    mask.load_state_dict(state)
    found = mask(layers.flatten(0, 1), torch.arange(rows).repeat_interleave(length), rows).view(rows, length)
    return {"mask": found, "sparsity_percent": o.sparsity(found, x["response_mask"])}


def tensors(value: Any) -> list[torch.Tensor]:
    return list(value)


FUNCTIONS = {
    "tdpo_loss": tdpo,
    "tdpo_sequence_terms": sequence_terms,
    "sparsepo_loss": sparsepo,
    "mapo_activation_mask": lambda x: {
        "mask": o.activation_mask(
            {kind: tensors(group) for kind, group in x["activations"].items()}, x["response_mask"]
        )
    },
    "sparse_mask_forward": learned,
}
