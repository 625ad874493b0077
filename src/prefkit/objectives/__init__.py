"""Objectives: pure functions from scores to per-example losses, and the score types that they take."""

from prefkit.objectives.compose import (
    DemonstrationObjective,
    LabelObjective,
    ListObjective,
    Objective,
    PairObjective,
)
from prefkit.objectives.links import hinge, logistic, probit, squared, weighted_logistic
from prefkit.objectives.listwise import all_pairs_loss, plackett_luce_loss
from prefkit.objectives.losses import (
    cdpo_loss,
    cpo_loss,
    dpo_loss,
    ipo_loss,
    ipo_loss_length_averaged,
    orpo_loss,
    rdpo_loss,
    robust_reward_model_loss,
    simpo_loss,
    slic_hinge_loss,
    slic_loss,
)
from prefkit.objectives.noise import (
    GradientWeights,
    conservative,
    flip_preferences,
    gradient_weights,
    induced_log_odds,
    robust,
    robust_loss,
    soft_labels,
)
from prefkit.objectives.parts import Part
from prefkit.objectives.presets import PRESETS, Preset, make_objective
from prefkit.objectives.regularisers import average_sft, sft
from prefkit.objectives.rewards import average_log_prob, average_log_ratio, log_odds, log_prob, log_ratio
from prefkit.objectives.scorer import Encoded, Inputs, Scorer, score_all
from prefkit.objectives.scores import (
    DemonstrationScores,
    Form,
    LabelScores,
    ListScores,
    PairScores,
    ResponseScores,
    Scores,
    Targets,
    TokenScores,
)
from prefkit.objectives.unpaired import kto_loss, kto_reference_point
from prefkit.objectives.weights import strength

__all__ = [
    "PRESETS",
    "DemonstrationObjective",
    "DemonstrationScores",
    "Encoded",
    "Form",
    "GradientWeights",
    "Inputs",
    "LabelObjective",
    "LabelScores",
    "ListObjective",
    "ListScores",
    "Objective",
    "PairObjective",
    "PairScores",
    "Part",
    "Preset",
    "ResponseScores",
    "Scorer",
    "Scores",
    "Targets",
    "TokenScores",
    "all_pairs_loss",
    "average_log_prob",
    "average_log_ratio",
    "average_sft",
    "cdpo_loss",
    "conservative",
    "cpo_loss",
    "dpo_loss",
    "flip_preferences",
    "gradient_weights",
    "hinge",
    "induced_log_odds",
    "ipo_loss",
    "ipo_loss_length_averaged",
    "kto_loss",
    "kto_reference_point",
    "log_odds",
    "log_prob",
    "log_ratio",
    "logistic",
    "make_objective",
    "orpo_loss",
    "plackett_luce_loss",
    "probit",
    "rdpo_loss",
    "robust",
    "robust_loss",
    "robust_reward_model_loss",
    "score_all",
    "sft",
    "simpo_loss",
    "slic_hinge_loss",
    "slic_loss",
    "soft_labels",
    "squared",
    "strength",
    "weighted_logistic",
]
