"""Diffusion-DRO: experts ranked above the policy's own samples."""

from __future__ import annotations

from typing import Any

from prefkit import diffusion as d

NAMES = ("expert_pred", "negative_pred", "ref_expert_pred", "ref_negative_pred", "expert_noise", "policy_noise")
ERRORS = ("expert_err", "negative_err", "ref_expert_err", "ref_negative_err")


def loss(x: dict[str, Any]) -> dict[str, Any]:
    found = d.dro_loss(*(x[name] for name in NAMES), margin=x["margin"])
    paper = d.dro_loss(*(x[name] for name in NAMES), margin=x["margin"], form="paper")
    return {"losses": found.losses, "paper_loss": paper.losses.mean(), "per_sample_diff": found.difference}


def unclipped(x: dict[str, Any]) -> dict[str, Any]:
    found = d.dro_unclipped_loss(*(x[name] for name in ERRORS))
    return {"losses": found.losses, "sft_term": found.imitation.mean(), "negative_term": found.negative.mean()}


def trajectories(x: dict[str, Any]) -> dict[str, Any]:
    buffer = d.TrajectoryBuffer(x["size"])
    for number in range(1, x["num_commits"] + 1):
        scaled = (number * x[name] for name in ("x_T", "latents_after_step", "noise_pred"))
        buffer.push(d.recorded(*scaled, x["timesteps"]))
    return {"xt": buffer.states, "eps": buffer.noises, "t": buffer.times}


def win_rate(x: dict[str, Any]) -> dict[str, Any]:
    found = d.median_win_rate(*(x[name].double() for name in ("selector_a", "metric_a", "selector_b", "metric_b")))
    return {"index_a": found.index_a, "index_b": found.index_b, "win_rate": found.win_rate}


def times(x: dict[str, Any]) -> dict[str, Any]:
    return {"timesteps": d.sampling_times(x["num_train_timesteps"], x["num_inference_steps"], x["offsets"])}


FUNCTIONS = {
    "dro_loss": loss,
    "dro_unclipped_loss": unclipped,
    "perturbed_timesteps": times,
    "trajectory_alignment": trajectories,
    "select_experts": lambda x: dict(
        zip(("indices", "mean_score"), d.select_experts(x["scores"], x["k"]), strict=True)
    ),
    "ema_decay": lambda x: {"decay": d.ema_decay(x["step"], x["decay"])},
    "win_rate": win_rate,
}
