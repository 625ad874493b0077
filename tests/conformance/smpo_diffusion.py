"""SmPO: smoothed labels and ReNoise inversion."""

from __future__ import annotations

from typing import Any

from prefkit import diffusion as d
from prefkit import objectives as o

from .diffusion_dpo import PREDICTIONS
from .inpo import inverted


def preference(x: dict[str, Any]) -> dict[str, Any]:
    found = o.smoothed_preference_prob(x["score_0"], x["score_1"], x["score_min"], x["score_max"])
    return {"winner_index": found.winner, "p_winner": found.probability}


def loss(x: dict[str, Any]) -> dict[str, Any]:
    names = (*PREDICTIONS, "tau_chosen", "tau_rejected", "p_winner")
    found = d.smpo_loss(*(x[name] for name in names), beta=x["beta"], gamma=x["gamma"])
    return {
        "losses": found.losses,
        "per_sample_loss": found.losses,
        "inside_term": found.inside,
        "weight": found.weight,
    }


FUNCTIONS = {
    "renoise_inversion": lambda x: inverted(x, renoise="every"),
    "smoothed_preference_prob": preference,
    "smpo_loss": loss,
    "smoothing_coefficients": lambda x: o.smoothing_coefficients(x["p_winner"], x["gamma"])._asdict(),
}
