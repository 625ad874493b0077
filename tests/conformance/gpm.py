"""General preference embeddings, and optimisation of policies on their scores."""

from __future__ import annotations

from typing import Any

import torch

from prefkit import objectives as o
from prefkit import preference as p


def scores_of(x: dict[str, Any], *, first: str = "chosen_embedding", second: str = "rejected_embedding") -> Any:
    return p.gpm_score(x[first], x[second])


def gpm_score(x: dict[str, Any]) -> dict[str, Any]:
    return {"score": scores_of(x), "operator": p.skew_operator(x["chosen_embedding"].shape[-1])}


def gpm_loss(x: dict[str, Any]) -> dict[str, Any]:
    losses = p.gpm_loss(scores_of(x), tau=x["tau"], margin=0.0 if x["margin"] is None else x["margin"])
    return {"losses": losses, "prob_mean": torch.exp(-losses).mean()}


def gpm_gated_loss(x: dict[str, Any]) -> dict[str, Any]:
    eigenvalues = p.gate(x["gate_logits"])
    scores = p.gpm_score(x["chosen_embedding"], x["rejected_embedding"], eigenvalues)
    losses = p.gpm_loss(scores, tau=x["tau"])
    return {"eigenvalues": eigenvalues, "score": scores, "losses": losses, "prob_mean": torch.exp(-losses).mean()}


def gpm_regression_loss(x: dict[str, Any]) -> dict[str, Any]:
    scores = scores_of(x)
    return {
        "losses": p.gpm_regression_loss(scores, x["target_margin"], tau=x["tau"]),
        "prob_mean": torch.exp(-p.gpm_loss(scores, tau=x["tau"])).mean(),
    }


def gpm_soft_label_loss(x: dict[str, Any]) -> dict[str, Any]:
    scores, target = scores_of(x, first="embedding_i", second="embedding_j"), x["target_prob"].detach()
    loss = p.gpm_soft_label_loss(scores, target, tau=x["beta"]).mean()
    gradients = torch.autograd.grad(loss, [x["embedding_i"], x["embedding_j"]], retain_graph=True)
    certain = bool(((target == 0) | (target == 1)).any())
    return {
        "ce_loss": loss,
        "mse_loss": None if certain else p.gpm_soft_regression_loss(scores, target, tau=x["beta"]).mean(),
        "grad_chosen_embedding": gradients[0],
        "grad_rejected_embedding": gradients[1],
    }


def candidate_scores(x: dict[str, Any]) -> dict[str, Any]:
    found = p.candidate_scores(x["embeddings"], tau=x["tau"])
    return {
        "score_table": found.table,
        "score_vs_policy": found.versus_policy,
        "win_prob_vs_policy": found.win_probability,
        "rank_score": found.rank,
        "best": found.best,
        "worst": found.worst,
    }


def embeddings_from_scores(x: dict[str, Any]) -> dict[str, Any]:
    embeddings = p.embeddings_from_scores(x["score_matrix"])
    return {"embeddings": embeddings, "reconstructed": p.score_table(embeddings)}


def gpo_loss(x: dict[str, Any]) -> dict[str, Any]:
    arguments = x["policy_logps"], x["ref_logps"], x["score_vs_policy"]
    how = {"beta": x["beta"], "log_z": x["log_z"]}
    normalised = o.gpo_loss(*arguments, lengths=x["lengths"], gamma=x["gamma"], **how).mean()
    (gradient,) = torch.autograd.grad(normalised, [x["policy_logps"]])
    return {"losses": o.gpo_loss(*arguments, **how), "ln_loss": normalised.detach(), "ln_grad_policy_logps": gradient}


def gpo_pair_loss(x: dict[str, Any]) -> dict[str, Any]:
    sides = [x[f"{model}_{side}_logps"] for model in ("policy", "ref") for side in ("chosen", "rejected")]

    def loss(chosen: Any, rejected: Any) -> Any:
        return o.gpo_pair_loss(*sides, chosen, rejected, beta=x["beta"]).mean()

    gpo = loss(x["score_chosen"], x["score_rejected"])
    sppo = loss(x["prob_chosen"] - 0.5, x["prob_rejected"] - 0.5)
    return {"loss": gpo, "gpo_loss": gpo, "sppo_loss": sppo}


def mwu_step(x: dict[str, Any]) -> dict[str, Any]:
    table, policy = x["score_matrix"], x["policy"]
    return {
        "next_policy": p.multiplicative_weights_step(table, policy, eta=x["eta"]),
        "score_vs_policy": p.score_versus_policy(table, policy),
        "duality_gap": p.duality_gap(table, policy),
    }


FUNCTIONS = {
    "gpm_score": gpm_score,
    "gpm_loss": gpm_loss,
    "gpm_gated_loss": gpm_gated_loss,
    "gpm_regression_loss": gpm_regression_loss,
    "gpm_soft_label_loss": gpm_soft_label_loss,
    "embeddings_from_scores": embeddings_from_scores,
    "candidate_scores": candidate_scores,
    "gpo_loss": gpo_loss,
    "gpo_pair_loss": gpo_pair_loss,
    "mwu_step": mwu_step,
}
