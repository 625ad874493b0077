"""InPO: losses at inverted samples."""

from __future__ import annotations

from typing import Any

import torch

from prefkit import diffusion as d

from .diffusion_dpo import PREDICTIONS, outputs

# The released code counts in float32, and so do the expected shares.
TOLERANCES = {"inpo_loss": 1e-6}


def noise_model(x: dict[str, Any]) -> Any:
    """The linear model of the vectors."""
    return lambda state, t, _: state @ x["W"].T + x["b"] + x["t_scale"] * t[:, None].double() / x["num_train_timesteps"]


def grid(x: dict[str, Any]) -> d.Grid:
    batch = len(x["x0"])
    return d.Grid(*(x[name][:, None].expand(-1, batch) for name in ("model_times", "alpha_from", "alpha_to")))


def inverted(x: dict[str, Any], **options: Any) -> dict[str, Any]:
    state = d.invert(noise_model(x), x["x0"].double(), grid(x), **options)
    return {"x_t": state, "effective_noise": d.effective_noise(state, x["x0"], x["alpha_t"])}


def loss(x: dict[str, Any]) -> dict[str, Any]:
    names = (*PREDICTIONS, "tau_chosen", "tau_rejected")
    return outputs(d.inpo_loss(*(x[name] for name in names), beta=x["beta"]))


def reparametrised(x: dict[str, Any]) -> dict[str, Any]:
    found = d.reparametrised_x0(x["x_t"], x["eps"], x["alpha_t"])
    return {
        "x0_t": found.x0,
        "sigma_t": found.sigma,
        "tau": d.effective_noise(x["x_t"], x["x0"], x["alpha_t"]),
        "squared_error": d.denoising_error(found.x0, x["x0"], reduction="sum"),
    }


FUNCTIONS = {
    "ddim_inversion": lambda x: inverted(x, eta=x["eta"], noise=torch.as_tensor(x["noise"]).double()),
    "inpo_loss": loss,
    "reparametrized_x0": reparametrised,
}
