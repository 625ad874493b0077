"""Diagnostics: how do we know?"""

from prefkit.diagnostics.accuracy import (
    LABELS,
    implicit_rewards,
    kl_estimate,
    pair_figures,
    ranking_wins,
    summarise,
    win_rate,
    wins,
)
from prefkit.diagnostics.correlation import CalibrationFigures, Correlations, correlations, evaluate_calibration
from prefkit.diagnostics.evaluate import Evaluation, before_after, evaluate
from prefkit.diagnostics.intervals import (
    Interval,
    bootstrap_difference,
    bootstrap_interval,
    mean_interval,
    wilson_interval,
)
from prefkit.diagnostics.probabilities import Calibration, brier_score, calibration, expected_calibration_error
from prefkit.diagnostics.run_report import run_report

__all__ = [
    "LABELS",
    "Calibration",
    "CalibrationFigures",
    "Correlations",
    "Evaluation",
    "Interval",
    "before_after",
    "bootstrap_difference",
    "bootstrap_interval",
    "brier_score",
    "calibration",
    "correlations",
    "evaluate",
    "evaluate_calibration",
    "expected_calibration_error",
    "implicit_rewards",
    "kl_estimate",
    "mean_interval",
    "pair_figures",
    "ranking_wins",
    "run_report",
    "summarise",
    "wilson_interval",
    "win_rate",
    "wins",
]
