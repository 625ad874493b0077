"""Likelihood of follow-ups as reward, pairs mined with it, and what is trained on them."""

from __future__ import annotations

from typing import Any

import torch

from prefkit import diagnostics, language, objectives
from prefkit.selection import mine_pairs

from .rdpo import LOGPS

SIDES = ("positive_token_logps", "positive_mask", "negative_token_logps", "negative_mask")


def category_reward(x: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for reduction in ("mean", "sum"):
        reward, positive, negative = language.flr_reward(*(x[name] for name in SIDES), reduction=reduction)
        found |= {
            f"positive_scores_{reduction}": positive,
            f"negative_scores_{reduction}": negative,
            f"reward_{reduction}": reward,
        }
    return found


def likelihood(x: dict[str, Any]) -> dict[str, Any]:
    logps = language.span_logps(x["sequence_logits"].double(), x["feedback_ids"], x["feedback_start"])
    row = logps[None], torch.ones_like(logps)[None]
    return {
        "token_logps": logps,
        "mean_logp": language.mean_logps(*row)[0],
        "sum_logp": language.mean_logps(*row, reduction="sum")[0],
    }


def mined(x: dict[str, Any]) -> dict[str, Any]:
    found = mine_pairs(x["rewards"], min_gap=x["min_gap"])
    return {
        "chosen": found.chosen.tolist(),
        "rejected": found.rejected.tolist(),
        "prompt_index": found.prompt.tolist(),
    }


def dpo(x: dict[str, Any]) -> dict[str, Any]:
    losses = objectives.dpo_loss(*(x[name] for name in LOGPS), beta=x["beta"])
    return {"losses": losses, "per_pair_loss": losses.detach()}


FUNCTIONS = {
    "flr_category_reward": category_reward,
    "flr_total_reward": lambda x: {"reward": language.total_reward(x["category_rewards"])},
    "followup_likelihood": likelihood,
    "official_code_score": lambda x: {
        "score": language.official_code_score(x["sequence_logits"].double(), x["feedback_ids"])
    },
    "mine_pairs": mined,
    "pairwise_accuracy": lambda x: {
        f"accuracy_ties_{name}": diagnostics.pairwise_accuracy(x["reward_chosen"], x["reward_rejected"], ties=share)
        for name, share in (("wrong", 0.0), ("half", 0.5))
    },
    "nl_feedback_sft_loss": lambda x: {"loss": language.feedback_loss(x["feedback_token_logps"], x["feedback_mask"])},
    "dpo_loss": dpo,
}
