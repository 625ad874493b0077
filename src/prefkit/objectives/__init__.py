"""Objectives: pure functions from scores to per-example losses, and the score types that they take."""

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

__all__ = [
    "DemonstrationScores",
    "Encoded",
    "Form",
    "Inputs",
    "LabelScores",
    "ListScores",
    "PairScores",
    "ResponseScores",
    "Scorer",
    "Scores",
    "Targets",
    "TokenScores",
    "score_all",
]
