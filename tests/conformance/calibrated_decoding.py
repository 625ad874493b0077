"""Calibration of likelihoods to ratings, and the correlations by which it is judged."""

from __future__ import annotations

from typing import Any

from prefkit.diagnostics import correlations
from prefkit.objectives import calibration_objective


def objective(x: dict[str, Any]) -> dict[str, Any]:
    terms = calibration_objective(
        x["candidate_token_logps"],
        x["candidate_mask"],
        x["scores"],
        x["list_size"],
        length_normalise=x["length_normalise"],
        calibration_weight=x["beta"],
    )
    return {
        "losses": terms.weighted(x["alpha"], x["beta"], x["gamma"]),
        "calibration_loss": terms.calibration.mean(),
        "nll_best": terms.nll_best.mean(),
        "nll_worst": terms.nll_worst.mean(),
        "cpo_loss": terms.cpo.mean(),
        "pearson_per_group": terms.pearson,
    }


FUNCTIONS = {
    "calibration_objective": objective,
    "correlations": lambda x: correlations(x["x"], x["y"])._asdict(),
}
