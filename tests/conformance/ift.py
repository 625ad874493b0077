"""Intuitive Fine-Tuning."""

from __future__ import annotations

from typing import Any

from prefkit import language
from prefkit import objectives as o

HOW = ("gamma", "propagation_type", "propagation_norm", "propagation_side")


def tokens(x: dict[str, Any]) -> tuple[Any, Any]:
    return x["policy_token_logps"], x["response_mask"]


def loss(x: dict[str, Any]) -> dict[str, Any]:
    losses = o.ift_loss(*tokens(x), detach_weights=x["detach_weights"], **{name: x[name] for name in HOW})
    return {"per_sequence": losses, "loss": losses.mean()}


def eq21(x: dict[str, Any]) -> dict[str, Any]:
    losses = o.ift_loss(*tokens(x), gamma=x["gamma"], formulation="eq21")
    return {"per_sequence": losses, "loss": losses.mean()}


def algorithm1(x: dict[str, Any]) -> dict[str, Any]:
    losses = o.ift_loss(*tokens(x), gamma=x["gamma"], formulation="algorithm1")
    weights = o.relation_weights(*tokens(x), gamma=x["gamma"])
    return {"per_sequence": losses, "loss": losses.mean(), "weights": weights}


FUNCTIONS = {
    "discounted_cumsum": lambda x: {
        "suffix": o.discounted_cumsum(x["x"], x["gamma"]),
        "prefix": o.discounted_cumsum(x["x"], x["gamma"], "right"),
    },
    "ift_weights": lambda x: {"weights": o.ift_weights(*tokens(x), **{name: x[name] for name in HOW})},
    "ift_loss": loss,
    "ift_loss_eq21": eq21,
    "ift_loss_algorithm1": algorithm1,
    "one_step_ahead_ids": lambda x: {"further_ids": language.one_step_ahead_ids(**x)},
    "mix_embeddings": lambda x: {"mixed": language.mix_embeddings(x["inputs_embeds"], x["further_embeds"], x["lam"])},
    "lambda_at_step": lambda x: {"lambda": o.lambda_at_step(**x)},
}
