"""Diagnostics: how do we know?"""

from prefkit.diagnostics.accuracy import (
    LABELS,
    implicit_rewards,
    kl_estimate,
    pair_figures,
    pairwise_accuracy,
    ranking_wins,
    summarise,
    win_rate,
    wins,
)
from prefkit.diagnostics.benchmarks import (
    BENCHMARKS,
    Benchmark,
    BenchmarkResult,
    Ranked,
    Ranker,
    by_scores,
    run_benchmark,
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
from prefkit.diagnostics.reversal import Reversals, reversal_metrics
from prefkit.diagnostics.run_report import run_report
from prefkit.diagnostics.scaling import SCALING_COLUMNS, ScalingFit, ScalingReport, scaling_fit, scaling_report
from prefkit.diagnostics.style import (
    STYLE_FEATURES,
    Phi,
    StyleControl,
    StyleDifference,
    phi,
    style_control,
    style_difference,
    style_features,
)

__all__ = [
    "BENCHMARKS",
    "LABELS",
    "SCALING_COLUMNS",
    "STYLE_FEATURES",
    "Benchmark",
    "BenchmarkResult",
    "CalibrationFigures",
    "Correlations",
    "Evaluation",
    "Interval",
    "Phi",
    "Ranked",
    "Ranker",
    "Reversals",
    "ScalingFit",
    "ScalingReport",
    "StyleControl",
    "StyleDifference",
    "before_after",
    "bootstrap_difference",
    "bootstrap_interval",
    "by_scores",
    "correlations",
    "evaluate",
    "evaluate_calibration",
    "implicit_rewards",
    "kl_estimate",
    "mean_interval",
    "pair_figures",
    "pairwise_accuracy",
    "phi",
    "ranking_wins",
    "reversal_metrics",
    "run_benchmark",
    "run_report",
    "scaling_fit",
    "scaling_report",
    "style_control",
    "style_difference",
    "style_features",
    "summarise",
    "wilson_interval",
    "win_rate",
    "wins",
]
