"""Comparisons: what was compared, and what was said about it."""

from prefkit.comparisons.record import (
    Comparison,
    Judgement,
    Label,
    Message,
    Probability,
    Ranking,
    Ratings,
    StepLabels,
    Text,
    Winner,
    ranks_from_order,
)
from prefkit.errors import RecordError

__all__ = [
    "Comparison",
    "Judgement",
    "Label",
    "Message",
    "Probability",
    "Ranking",
    "Ratings",
    "RecordError",
    "StepLabels",
    "Text",
    "Winner",
    "ranks_from_order",
]
