"""PrefPaint: rewards that are trusted as far as they are certain."""

from __future__ import annotations

from typing import Any

import torch

from prefkit import diffusion as d
from prefkit import objectives as o


def step(x: dict[str, Any]) -> dict[str, Any]:
    found = d.ddim_step_with_logprob(
        x["eps"], x["x_t"], x["alpha_t"], x["alpha_prev"], eta=x["eta"], x_prev=x["x_prev"].detach()
    )
    return {
        "mean": found.mean,
        "std": found.std[0].detach(),
        "log_prob": found.log_prob,
        "pred_x0": found.clean,
        "grad_eps": torch.autograd.grad(found.log_prob.sum(), x["eps"])[0],
    }


def uncertainty(x: dict[str, Any]) -> dict[str, Any]:
    found = d.RewardUncertainty(x["train_features"], x["lam"])
    return {
        "V": found.V,
        "V_inverse": found.V_inverse,
        "paper_norm": found.norm(x["query"], "paper"),
        "released_norm": found.norm(x["query"], "released"),
    }


def clipped(x: dict[str, Any]) -> dict[str, Any]:
    names = ("log_probs", "old_log_probs", "advantages", "gamma")
    found = d.amplified_clipped_loss(*(x[name] for name in names), clip_range=x["clip_range"])
    return {"loss": found.losses.sum(), "ratio": found.ratio}


def bound(x: dict[str, Any]) -> dict[str, Any]:
    found = d.RewardUncertainty(x["features"], x["lam"])
    theta = found.fit(x["rewards"])
    return {
        "theta_hat": theta,
        "prediction": x["query"] @ theta,
        "paper_norm": found.norm(x["query"]),
        "bound": found.bound(x["query"], sigma=x["sigma"], S=x["S"], delta=x["delta"]),
    }


def reward_losses(x: dict[str, Any]) -> dict[str, Any]:
    regression = d.reward_regression_loss(x["pred"], x["target"]).mean()
    ranking = o.reward_model_loss(x["pred_better"], x["pred_worse"]).mean()
    return {
        "regression_loss": regression,
        "ranking_loss": ranking,
        "grad_pred": torch.autograd.grad(regression, x["pred"])[0],
        "grad_pred_better": torch.autograd.grad(ranking, x["pred_better"])[0],
    }


FUNCTIONS = {
    "ddim_step_logprob": step,
    "advantages": lambda x: {"advantages": d.normalised_advantages(x["rewards"], clip=x["clip"])},
    "reward_uncertainty": uncertainty,
    "amplification": lambda x: {"gamma": d.amplification(x["u"], k=x["k"], b=x["b"], lo=x["lo"], hi=x["hi"])},
    "amplified_clipped_loss": clipped,
    "ridge_reward_bound": bound,
    "pairwise_and_regression_losses": reward_losses,
}
