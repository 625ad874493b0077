"""Tree preference optimisation: list ranking on graded responses, with and without weights of steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prefkit import objectives as o
from prefkit.comparisons import Comparison, Ratings, ranks


def one(tensor: Tensor) -> Tensor:
    return tensor.double().unsqueeze(0)


def values_of(x: dict[str, Any]) -> Tensor:
    return o.normalise_values(one(x["values"]), 0.0, x["value_scale"])


def whole(values: Tensor) -> Tensor:
    return torch.ones(1, values.shape[-1], dtype=torch.bool)


def flat(x: dict[str, Any], policy: str, ref: Tensor) -> o.TokenScores:
    """Padded tokens as the library has them: one response after the other, steps counted from 0."""
    steps = x["step_index"]
    states = x.get("hidden_states", torch.zeros(*steps.shape, 1, dtype=torch.float64))
    return o.TokenScores(
        x[policy].flatten(),
        torch.arange(len(steps)).repeat_interleave(steps.shape[1]),
        ref_logps=ref.flatten(),
        states=states.flatten(0, 1),
        steps=steps.flatten() - 1,
    )


def plr(x: dict[str, Any]) -> dict[str, Any]:
    values = values_of(x)
    rewards = o.log_ratio(one(x["policy_logps"]), one(x["ref_logps"]))
    scores, mask = x["beta"] * rewards, whole(values)
    return {
        "scores": scores[0],
        "rank_positions": o.rank_positions(scores, mask)[0],
        "lambda_weights": o.lambda_weights(scores, values, mask)[0],
        "loss": o.graded_loss(rewards, values, mask, beta=x["beta"], value_range=None).mean(),
    }


def unweighted(x: dict[str, Any]) -> dict[str, Any]:
    values = tuple(x["values"].tolist())
    order = torch.tensor([ranks(Comparison(("prompt",), ("response",) * len(values), Ratings(values)))])
    rewards = o.log_ratio(one(x["policy_logps"]), one(x["ref_logps"]))
    objective = o.make_objective({"kind": "all_pairs", "beta": x["beta"]})
    return {"losses": objective.ranking(rewards, order, whole(x["values"]))}


def step_weights(x: dict[str, Any]) -> dict[str, Any]:
    zeros = torch.zeros(x["step_index"].shape, dtype=torch.float64)
    tokens = flat({**x, "policy": zeros}, "policy", zeros)
    steps = o.step_scores(tokens, whole(x["step_index"][:, 0]))
    return {"step_weights": o.adaptive_step_weights(steps.embeddings, steps.counts, torch.tensor([0]))[0]}


def step_score(x: dict[str, Any]) -> dict[str, Any]:
    tokens = flat(x, "token_logratios", torch.zeros_like(x["token_logratios"]))
    steps = o.step_scores(tokens, whole(x["step_index"][:, 0]))
    return {"scores": o.adaptive_step_score(steps, x["step_weights"].unsqueeze(0))[0]}


def official(x: dict[str, Any]) -> dict[str, Any]:
    tokens, values = flat(x, "policy_token_logps", x["ref_token_logps"]), values_of(x)
    mask, steps = whole(values), o.step_scores(tokens, whole(values))
    weights = o.adaptive_step_weights(steps.embeddings, steps.counts, torch.tensor([0]))
    loss = o.graded_steps_loss(tokens, values, mask, beta=x["beta"], value_range=None, adaptive="to_best")
    return {"scores": x["beta"] * o.adaptive_step_score(steps, weights)[0], "loss": loss.mean()}


def tpo(x: dict[str, Any]) -> dict[str, Any]:
    tokens, values = flat(x, "policy_token_logps", x["ref_token_logps"]), values_of(x)
    mask, steps = whole(values), o.step_scores(tokens, whole(values))
    options: dict[str, Any] = {"beta": x["beta"], "value_range": None}
    plain = o.graded_steps_loss(tokens, values, mask, weighted=False, **options).mean()
    (gradient,) = torch.autograd.grad(plain, x["policy_token_logps"], retain_graph=True)
    return {
        "margins": o.step_margins(steps, beta=x["beta"])[0],
        "lambda_weights": o.lambda_weights(x["beta"] * steps.ratios.sum(2), values, mask)[0],
        "loss": o.graded_steps_loss(tokens, values, mask, **options).mean(),
        "loss_unweighted": plain,
        "grad_policy_token_logps_unweighted": gradient,
    }


FUNCTIONS = {
    "plr_lambda_loss": plr,
    "plr_unweighted_loss": unweighted,
    "adaptive_step_weights": step_weights,
    "adaptive_step_score": step_score,
    "tpo_official_code_loss": official,
    "tpo_loss": tpo,
    "tpo_normalize_values": lambda x: {"normalized": o.normalise_values(x["values"], x["low"], x["high"])},
}
