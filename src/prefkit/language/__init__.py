"""The language domain: scores for comparisons of texts under causal language models."""

import os

# Matrix kernels for half precision on the CPU are kept for every shape that occurs, up to 1024 of them with their
# buffers: hundreds of megabytes when lengths vary. Few are ever used again. Read when the first such kernel runs.
os.environ.setdefault("LRU_CACHE_CAPACITY", "16")

from prefkit.language.encoding import Encoder, EncodingOptions, Lengths, truncated_lengths
from prefkit.language.head import label_logps, token_logps
from prefkit.language.models import BUILTIN, LoraOptions, ModelOptions, is_reward_model, load_scorer
from prefkit.language.next_token import first_token_logps
from prefkit.language.packing import Layout, pack
from prefkit.language.residual import mix_embeddings, one_step_ahead_ids
from prefkit.language.reward import RewardScorer, annotate, load_reward
from prefkit.language.sampling import sample, sampled_kl
from prefkit.language.scorer import LanguageScorer, PackedScorer, Precision
from prefkit.language.sequences import SequenceLogps, sequence_logps
from prefkit.language.stance import stance_judge

__all__ = [
    "BUILTIN",
    "Encoder",
    "EncodingOptions",
    "LanguageScorer",
    "Layout",
    "Lengths",
    "LoraOptions",
    "ModelOptions",
    "PackedScorer",
    "Precision",
    "RewardScorer",
    "SequenceLogps",
    "annotate",
    "first_token_logps",
    "is_reward_model",
    "label_logps",
    "load_reward",
    "load_scorer",
    "mix_embeddings",
    "one_step_ahead_ids",
    "pack",
    "sample",
    "sampled_kl",
    "sequence_logps",
    "stance_judge",
    "token_logps",
    "truncated_lengths",
]
