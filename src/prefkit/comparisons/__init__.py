"""Comparisons: what was compared, and what was said about it."""

from prefkit.comparisons.canonical import from_dict, rows_for, to_dict, write_comparisons
from prefkit.comparisons.companions import Companion
from prefkit.comparisons.contexts import ContextOptions, WithContexts, context_of, shuffled_contexts, with_context
from prefkit.comparisons.curriculum import Candidate, Curriculum, build_curriculum, curriculum_pairs, curriculum_stages
from prefkit.comparisons.formats import FORMATS
from prefkit.comparisons.formats.modelling import feedback_example, switched
from prefkit.comparisons.forum import ForumPairs, drawn_pair, forum_pairs
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
from prefkit.comparisons.judging import consistent_feedback
from prefkit.comparisons.key_content import KeySpan, key_spans, rake_scores, remove_key_content, without_key_content
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
from prefkit.comparisons.trees import TreeNode, WithSteps, list_from_tree, pair_of, split_steps, to_pairs
from prefkit.errors import RecordError

__all__ = [
    "FORMATS",
    "BadRow",
    "Candidate",
    "Companion",
    "Comparison",
    "Comparisons",
    "ContextOptions",
    "Curriculum",
    "ForumPairs",
    "Health",
    "InstructionFunction",
    "InterPair",
    "IntraPair",
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
    "TreeNode",
    "Winner",
    "WithContexts",
    "WithSteps",
    "add_instructions",
    "adjacent",
    "all_pairs",
    "best_worst",
    "build_curriculum",
    "build_inter_pairs",
    "build_intra_pairs",
    "check_comparisons",
    "consistent_feedback",
    "context_of",
    "curriculum_pairs",
    "curriculum_stages",
    "drawn_pair",
    "feedback_example",
    "forum_pairs",
    "from_dict",
    "generate_rationales",
    "inter_order",
    "intra_valid",
    "key_spans",
    "labels",
    "list_from_tree",
    "load_comparisons",
    "pair_of",
    "pairs",
    "rake_scores",
    "ranks",
    "ranks_from_order",
    "rationale_companions",
    "rationale_prompt",
    "remove_key_content",
    "rows_for",
    "shuffled_contexts",
    "split_comparisons",
    "split_steps",
    "switched",
    "to_dict",
    "to_pairs",
    "with_context",
    "without_key_content",
    "write_comparisons",
]
