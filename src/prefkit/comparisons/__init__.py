"""Comparisons: what was compared, and what was said about it."""

from prefkit.comparisons.canonical import from_dict, rows_for, to_dict, write_comparisons
from prefkit.comparisons.companions import Companion
from prefkit.comparisons.formats import FORMATS
from prefkit.comparisons.health import Health, check_comparisons
from prefkit.comparisons.instructions import (
    InstructionFunction,
    InterPair,
    IntraPair,
    add_instructions,
    build_inter_pairs,
    build_intra_pairs,
    inter_order,
    intra_valid,
)
from prefkit.comparisons.pairing import Pair, adjacent, all_pairs, best_worst, labels, pairs, ranks
from prefkit.comparisons.rationales import generate_rationales, rationale_companions, rationale_prompt
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
    "InstructionFunction",
    "InterPair",
    "IntraPair",
    "Judgement",
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
    "add_instructions",
    "adjacent",
    "all_pairs",
    "best_worst",
    "build_inter_pairs",
    "build_intra_pairs",
    "check_comparisons",
    "from_dict",
    "generate_rationales",
    "inter_order",
    "intra_valid",
    "labels",
    "load_comparisons",
    "pairs",
    "ranks",
    "ranks_from_order",
    "rationale_companions",
    "rationale_prompt",
    "rows_for",
    "split_comparisons",
    "to_dict",
    "write_comparisons",
]
