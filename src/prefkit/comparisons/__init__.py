"""Comparisons: what was compared, and what was said about it."""

from prefkit.comparisons.canonical import from_dict, rows_for, to_dict, write_comparisons
from prefkit.comparisons.companions import Companion
from prefkit.comparisons.formats import FORMATS
from prefkit.comparisons.health import Health, check_comparisons
from prefkit.comparisons.key_content import KeySpan, key_spans, rake_scores, remove_key_content, without_key_content
from prefkit.comparisons.pairing import Pair, adjacent, all_pairs, best_worst, labels, pairs, ranks
from prefkit.comparisons.reader import BadRow, Comparisons, Skipped, load_comparisons
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
from prefkit.comparisons.split import split_comparisons
from prefkit.errors import RecordError

__all__ = [
    "FORMATS",
    "BadRow",
    "Companion",
    "Comparison",
    "Comparisons",
    "Health",
    "Judgement",
    "KeySpan",
    "Label",
    "Message",
    "Pair",
    "Probability",
    "Ranking",
    "Ratings",
    "RecordError",
    "Skipped",
    "StepLabels",
    "Text",
    "Winner",
    "adjacent",
    "all_pairs",
    "best_worst",
    "check_comparisons",
    "from_dict",
    "key_spans",
    "labels",
    "load_comparisons",
    "pairs",
    "rake_scores",
    "ranks",
    "ranks_from_order",
    "remove_key_content",
    "rows_for",
    "split_comparisons",
    "to_dict",
    "without_key_content",
    "write_comparisons",
]
