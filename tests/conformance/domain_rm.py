"""Domain features, networks on them, and learning from stored responses."""

from __future__ import annotations

import math
from typing import Any

import torch

from prefkit import objectives as o
from prefkit.preference import OPINION_SUMMARY, DomainFeatures, feedforward_scores


def features(x: dict[str, Any]) -> dict[str, Any]:
    domain = DomainFeatures(OPINION_SUMMARY)
    rows = domain.vectors(x["scores"], missing=True).tolist()
    return {
        "features": [[None if math.isnan(value) else value for value in row] for row in rows],
        "naive_mean": domain.naive_mean(x["scores"]).tolist(),
    }


def network(x: dict[str, Any]) -> dict[str, Any]:
    weights = [torch.as_tensor(weight).double().detach().requires_grad_() for weight in x["weights"]]
    biases = [torch.as_tensor(bias).double() for bias in x["biases"]]
    activations = {"activation": x["activation"], "output_activation": x["activation"]}
    preferred, unpreferred = (
        feedforward_scores(x[name], weights, biases, **activations) for name in ("preferred", "unpreferred")
    )
    loss = o.reward_model_loss(preferred, unpreferred).mean()
    (gradient,) = torch.autograd.grad(loss, weights[:1], retain_graph=True)
    return {
        "preferred_score": preferred.detach(),
        "unpreferred_score": unpreferred.detach(),
        "reward_preferred": torch.sigmoid(preferred.detach()),
        "loss": loss,
        "grad_first_weight": gradient,
    }


def advantages(x: dict[str, Any]) -> dict[str, Any]:
    arguments = (x["values"], x["token_rewards"], x["mask"])
    clean = o.gae(*arguments, gamma=x["gamma"], lam=x["lambda"])
    released = o.gae(*arguments, gamma=x["gamma"], lam=x["lambda"], mode="released")
    return {
        **clean._asdict(),
        "released_advantages": released.advantages,
        "released_returns": released.returns,
    }


def trajectory(x: dict[str, Any]) -> dict[str, Any]:
    found = o.limited_trajectory_pg(
        x["token_logps"], x["mask"], x["score"], x["ce_loss"], supervised_weight=x["supervised_weight"]
    )
    return {"loss": found.loss, "rl_loss": found.rl_loss, "mean_logp": found.mean_logps}


FUNCTIONS = {
    "feature_vector": features,
    "feedforward_reward": network,
    "pairwise_loss": lambda x: {"losses": o.reward_model_loss(x["win"], x["lose"])},
    "token_rewards": lambda x: {
        "token_rewards": o.token_rewards(
            x["token_logps"],
            x["ref_token_logps"],
            x["mask"],
            x["score"],
            kl_beta=x["kl_beta"],
            kl_mode=x["kl_mode"],
        )
    },
    "gae": advantages,
    "limited_trajectory_pg": trajectory,
}
