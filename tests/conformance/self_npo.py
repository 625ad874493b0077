"""Self-NPO and Diffusion-NPO: negative models."""

from __future__ import annotations

from typing import Any

from prefkit import diffusion as d

from .diffusion_dpo import ERRORS, outputs


def schedule(x: dict[str, Any]) -> d.Schedule:
    given = x["alphas_cumprod"]
    return d.schedule_from(given) if isinstance(given, dict) else d.Schedule.from_alphas_cumprod(given)


def rollout(x: dict[str, Any]) -> dict[str, Any]:
    def model(state: Any, t: Any, bias: Any) -> Any:
        return state @ x["W"].T + bias + x["t_scale"] * t[:, None].double() / schedule(x).steps

    found = d.truncated_rollout(
        model,
        x["x_start"],
        x["index"],
        schedule(x),
        count=x["num_ddim_timesteps"],
        steps=x["K"],
        guidance=x["w"],
        cond=x["b_cond"],
        uncond=x["b_uncond"],
    )
    names = ("x_t", "timesteps", "x0_target", "start_timesteps")
    return dict(zip(names, found, strict=True))


def truncated(x: dict[str, Any]) -> dict[str, Any]:
    names = ("policy_pred", "x_s", "x0_target", "abar_s")
    found = d.tdft_loss(*(x[name] for name in names), loss_type=x["loss_type"], huber_c=x["huber_c"])
    return {"losses": found.losses, "x0_pred": found.x0}


def guided(x: dict[str, Any]) -> dict[str, Any]:
    return {"eps": d.guided(x["eps_pos"], x["eps_neg"], x["guidance_scale"], rescale=x["guidance_rescale"])}


def merged(x: dict[str, Any]) -> dict[str, Any]:
    weights = (x[name] for name in ("theta", "theta_pos", "delta"))
    return {"theta_neg": d.merge_negative_weights(*weights, alpha=x["alpha"], beta=x["beta"])}


def clipped(x: dict[str, Any]) -> dict[str, Any]:
    names = ("logp_0", "logp_ref_0", "logp_1", "logp_ref_1")
    return {"losses": d.spo_clipped_loss(*(x[name] for name in names), beta=x["beta"], eps=x["eps"])}


FUNCTIONS = {
    "tdft_rollout": rollout,
    "renoise_from_state": lambda x: {
        "x_s": d.renoise_from_state(*(x[name] for name in ("x_t", "abar_t", "abar_s", "z")))
    },
    "tdft_loss": truncated,
    "cfg_combine": guided,
    "merge_negative_weights": merged,
    "npo_dpo_loss": lambda x: outputs(d.npo_dpo_loss(*(x[name] for name in ERRORS), beta=x["beta"])),
    "spo_clipped_loss": clipped,
    "cfg_variance": lambda x: {"variance": d.guidance_variance(x["omega"], x["rho"])},
}
