"""Ideal points for people who disagree."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from prefkit import preference as p


def mix_ideal_points(x: dict[str, Any]) -> dict[str, Any]:
    found = p.mix_ideal_points(x["user_logits"], x["prototypes"], temperature=x["temperature"])
    return {
        "weights": found.weights.detach(),
        "ideal_points": found.points.detach(),
        "loss": (x["upstream"] * found.points).sum(),
    }


def distance_score(x: dict[str, Any]) -> dict[str, Any]:
    scores = p.distance_score(x["left_embeddings"], x["right_embeddings"], x["ideal_points"])
    return {"distance_difference": scores.detach(), "loss": scores.sum()}


def angle_logits(x: dict[str, Any]) -> dict[str, Any]:
    scale = torch.as_tensor(x["logit_scale_log"], dtype=torch.float64).requires_grad_()
    logits = p.angle_logits(x["left_embeddings"], x["right_embeddings"], x["ideal_points"], scale)
    loss = F.cross_entropy(logits.flatten(0, 1), x["labels"].flatten())
    (gradient,) = torch.autograd.grad(loss, [scale], retain_graph=True)
    return {"logits": logits, "loss": loss, "grad_logit_scale_log": gradient}


def prompt_ideal_points(x: dict[str, Any]) -> dict[str, Any]:
    arguments = x["user_logits"], x["prompt_points"]
    return {
        "ideal_points": p.prompt_ideal_points(*arguments),
        "hard_ideal_points": p.prompt_ideal_points(*arguments, hard=True),
    }


def pair_losses(x: dict[str, Any]) -> dict[str, Any]:
    scores, labels = x["scores"], x["labels"]
    scores = scores.requires_grad_()
    found = {
        "hinge": p.hinge_loss(scores, labels, margin=x["margin"]),
        "smooth_hinge": p.smooth_hinge_loss(scores, labels, margin=x["margin"], gamma=x["gamma"]),
        "logistic": p.logistic_loss(scores, labels),
    }
    means = {name: losses.mean() for name, losses in found.items()}
    gradients = {
        f"grad_{name.removesuffix('_hinge')}_scores": torch.autograd.grad(mean, [scores])[0]
        for name, mean in means.items()
    }
    return {**{name: mean.detach() for name, mean in means.items()}, **gradients}


def over_tokens(losses: Any, right: Any, name: str, x: dict[str, Any]) -> dict[str, Any]:
    span = x["divergence_index"], x["end_index"]
    found: dict[str, Any] = {"accuracy_all_tokens": p.over_tokens(right.double(), *span, weighting="mean").mean()}
    for weighting in p.TOKEN_WEIGHTINGS:
        loss = p.over_tokens(losses, *span, weighting=weighting).mean()
        (gradient,) = torch.autograd.grad(loss, [x[name]], retain_graph=True)
        found |= {weighting: loss.detach(), f"grad_{name}_{weighting}": gradient}
    return found


def token_hinge_loss(x: dict[str, Any]) -> dict[str, Any]:
    scores, labels = x["token_scores"], x["labels"].detach()[:, None]
    return over_tokens(p.hinge_loss(scores, labels.expand(scores.shape)), labels * scores > 0, "token_scores", x)


def token_ce_loss(x: dict[str, Any]) -> dict[str, Any]:
    logits = x["token_logits"]
    labels = x["labels"][:, None].expand(logits.shape[:2])
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return over_tokens(losses, logits.argmax(-1) == labels, "token_logits", x)


def user_weighted_loss(x: dict[str, Any]) -> dict[str, Any]:
    weights = p.user_weights(x["user_ids"], x["user_counts"])
    hinge = (weights * p.hinge_loss(x["scores"], x["labels"])).sum()
    logistic = (weights * p.logistic_loss(x["scores"], x["labels"])).sum()
    return {"loss": hinge, "hinge_w": hinge, "logistic_w": logistic}


def prototype_bound_loss(x: dict[str, Any]) -> dict[str, Any]:
    return {"loss": p.prototype_bound_loss(x["points"], upper_bound=x["upper_bound"], weight=x["weight"])}


def divergence_span(x: dict[str, Any]) -> dict[str, Any]:
    rows = x["left_input_ids"], x["right_input_ids"]
    padding = {"pad_id": x["pad_id"], "num_padding_at_beginning": x["num_padding_at_beginning"]}
    start, end = p.divergence_span(*rows, **padding)
    return {"divergence_index": start, "end_index": end}


FUNCTIONS = {
    "mix_ideal_points": mix_ideal_points,
    "distance_score": distance_score,
    "angle_logits": angle_logits,
    "prompt_ideal_points": prompt_ideal_points,
    "pair_losses": pair_losses,
    "token_hinge_loss": token_hinge_loss,
    "token_ce_loss": token_ce_loss,
    "user_weighted_loss": user_weighted_loss,
    "prototype_bound_loss": prototype_bound_loss,
    "divergence_span": divergence_span,
}
