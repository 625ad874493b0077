"""Value-incentivised preference optimisation: the loss, and its tabular forms."""

from __future__ import annotations

from typing import Any

from prefkit import objectives as o

from .rdpo import LOGPS

PAIRS = ("prompts", "chosen", "rejected")


def vpo_loss(x: dict[str, Any]) -> dict[str, Any]:
    options = {name: x[name] for name in ("beta", "alpha", "sign", "reduction")}
    found = o.vpo_loss(*(x[name] for name in (*LOGPS, "policy_cal_logps", "ref_cal_logps")), **options)
    return {"nll": found.nll, "regularizer": found.regulariser, "loss": found.loss}


def optimal_policy_and_value(x: dict[str, Any]) -> dict[str, Any]:
    found = o.optimal_policy_and_value(x["reward"], x["log_pi_ref"], x["rho"], beta=x["beta"])
    return {**found._asdict(), "loss": found.value}


def calibrate_reward(x: dict[str, Any]) -> dict[str, Any]:
    found = o.calibrate_reward(x["reward"], x["pi_cal"], x["rho"])
    return {"calibrated": found.reward, "shift": found.shift}


def vpo_reward_objective(x: dict[str, Any]) -> dict[str, Any]:
    tables = (x[name] for name in ("reward", "log_pi_ref", "rho", "pi_cal", *PAIRS))
    return o.vpo_reward_objective(*tables, **{name: x[name] for name in ("beta", "alpha", "sign")})._asdict()


def calibration_kl_identity(x: dict[str, Any]) -> dict[str, Any]:
    found = o.calibration_kl_identity(x["log_pi"], x["log_pi_ref"], x["pi_cal"])
    return {
        "mean_log_ratio": found.mean_log_ratio,
        "kl_cal_ref": found.kl_to_reference,
        "kl_cal_policy": found.kl_to_policy,
    }


FUNCTIONS = {
    "vpo_loss": vpo_loss,
    "optimal_policy_and_value": optimal_policy_and_value,
    "calibrate_reward": calibrate_reward,
    "vpo_reward_objective": vpo_reward_objective,
    "calibration_kl_identity": calibration_kl_identity,
}
