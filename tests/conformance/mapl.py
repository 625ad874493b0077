"""Preferences at several levels: terms for reward models and policies, and the rules of construction."""

from __future__ import annotations

from typing import Any

import torch

from prefkit import comparisons as c
from prefkit import objectives as o

SIDES = ("strong_prompt_chosen", "strong_prompt_rejected", "weak_prompt_chosen", "weak_prompt_rejected")


def rewards(x: dict[str, Any], *names: str) -> list[torch.Tensor]:
    return [x[f"{name}_rewards"] for name in names]


def implicit(x: dict[str, Any], *names: str) -> list[torch.Tensor]:
    return [x["beta"] * o.log_ratio(x[f"policy_{name}_logps"], x[f"ref_{name}_logps"]) for name in names]


def intra_rm(x: dict[str, Any]) -> dict[str, Any]:
    better, worse = rewards(x, "better_prompt", "worse_prompt")
    return {"loss": o.intra_loss(better, worse).mean(), "accuracy": (better > worse).double().mean()}


def intra_dpo(x: dict[str, Any]) -> dict[str, Any]:
    return {"losses": o.intra_loss(*implicit(x, "better_prompt", "worse_prompt"))}


def inter_rm(x: dict[str, Any]) -> dict[str, Any]:
    return {"losses": o.inter_loss(*rewards(x, *SIDES), inter_mode=x["mode"])}


def inter_dpo(x: dict[str, Any]) -> dict[str, Any]:
    return {"losses": o.inter_loss(*implicit(x, *SIDES), inter_mode=x["mode"])}


def total(x: dict[str, Any]) -> dict[str, Any]:
    original = o.robust_reward_model_loss(*rewards(x, "chosen", "rejected"), flip_rate=0.0)
    intra = o.intra_loss(*rewards(x, "better_prompt", "worse_prompt"))
    inter = o.inter_loss(*rewards(x, *SIDES))
    weights = {name: x[name] for name in ("intra_weight", "inter_weight")}
    return o.levels_loss(original, intra, inter, **weights)._asdict()


def validity(x: dict[str, Any]) -> dict[str, Any]:
    prompts = zip(x["better_prompt_instructions"], x["worse_prompt_instructions"], strict=True)
    found = [c.intra_valid(x["satisfied"].tolist(), list(map(int, b)), list(map(int, w))) for b, w in prompts]
    return {
        "all_versus_some_violated": [every for every, _ in found],
        "some_versus_none": [some for _, some in found],
        "valid": [any(rules) for rules in found],
    }


def inter_order(x: dict[str, Any]) -> dict[str, Any]:
    counts = [x[f"prompt{n}_{side}_satisfied"].tolist() for n in (1, 2) for side in ("chosen", "rejected")]
    found = [c.inter_order((a, b), (d, e)) for a, b, d, e in zip(*counts, strict=True)]
    return {"margin_difference": [difference for difference, _ in found], "stronger_prompt": [o for _, o in found]}


FUNCTIONS = {
    "mapl_intra_rm_loss": intra_rm,
    "mapl_intra_dpo_loss": intra_dpo,
    "mapl_inter_rm_loss": inter_rm,
    "mapl_inter_dpo_loss": inter_dpo,
    "mapl_total": total,
    "intra_prompt_pair_validity": validity,
    "inter_prompt_order": inter_order,
}
