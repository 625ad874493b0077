"""Diffusion-DPO."""

from __future__ import annotations

from typing import Any

from prefkit import diffusion as d

PREDICTIONS = ("policy_chosen_pred", "policy_rejected_pred", "ref_chosen_pred", "ref_rejected_pred")
ERRORS = ("policy_chosen_err", "policy_rejected_err", "ref_chosen_err", "ref_rejected_err")


def outputs(found: d.PairLosses) -> dict[str, Any]:
    return {
        "losses": found.losses,
        "per_sample_loss": found.losses,
        "inside_term": found.inside,
        "logits": found.margin,
        "implicit_accuracy": found.accuracy,
    }


def from_predictions(x: dict[str, Any]) -> dict[str, Any]:
    return outputs(d.diffusion_dpo_loss(*(x[name] for name in (*PREDICTIONS, "noise")), beta=x["beta"]))


def from_errors(x: dict[str, Any]) -> dict[str, Any]:
    return outputs(d.diffusion_dpo_loss_from_errors(*(x[name] for name in ERRORS), beta=x["beta"]))


def as_in_diffusers(x: dict[str, Any]) -> dict[str, Any]:
    errors = (x[name] for name in ERRORS)
    return outputs(
        d.diffusion_dpo_loss_from_errors(*errors, beta=x["beta"], link=x["loss_type"], convention="diffusers")
    )


def add_noise(x: dict[str, Any]) -> dict[str, Any]:
    betas = d.scaled_linear_betas(x["num_train_timesteps"], x["beta_start"], x["beta_end"])
    schedule = d.Schedule.from_betas(betas)
    return {
        "x_t": schedule.add_noise(x["x0"], x["noise"], x["timesteps"]),
        "alphas_cumprod_t": schedule.alphas_cumprod[x["timesteps"]],
    }


def orientation(x: dict[str, Any]) -> dict[str, Any]:
    found = d.pair_orientation(x["label_0"])
    return {"kept_indices": found.kept, "winner_index": found.winner}


# The released code counts in float32, and so do the expected shares.
TOLERANCES = {"diffusion_dpo_loss": 1e-6}

FUNCTIONS = {
    "diffusion_dpo_loss": from_predictions,
    "diffusion_dpo_loss_from_errors": from_errors,
    "diffusers_dpo_loss": as_in_diffusers,
    "add_noise": add_noise,
    "enforce_zero_terminal_snr": lambda x: {"alphas_cumprod": d.zero_terminal_snr(x["betas"])},
    "learning_rate_rule": lambda x: {"lr": d.learning_rate_for(x["beta"])},
    "pair_orientation": orientation,
}
