"""The language domain: scores for comparisons of texts under causal language models."""

from prefkit.language.encoding import Encoder, EncodingOptions, Lengths, Span, truncated_lengths
from prefkit.language.followup import (
    DEFAULT_BANK,
    FollowupBank,
    FollowupReward,
    FollowupRewards,
    FollowupScorer,
    feedback_loss,
    flr_reward,
    followup_logps,
    mean_logps,
    official_code_score,
    span_logps,
    total_reward,
)
from prefkit.language.head import label_logps, token_logps
from prefkit.language.heads import (
    HEADS,
    EnsembleHead,
    GeneralHead,
    Head,
    HeadInputs,
    HeadScores,
    IdealPointsHead,
    MlpHead,
    OwnHead,
    ScalarHead,
    make_head,
)
from prefkit.language.judge import JUDGE_TEMPLATE, LanguageJudge
from prefkit.language.models import BUILTIN, LoraOptions, ModelOptions, is_reward_model, load_scorer
from prefkit.language.next_token import first_token_logps
from prefkit.language.packing import Layout, pack
from prefkit.language.pairs import PairEncoder
from prefkit.language.residual import mix_embeddings, one_step_ahead_ids
from prefkit.language.reward import (
    PairRewardScorer,
    RewardScorer,
    annotate,
    draw_rewards,
    load_reward,
    log_odds_table,
    response_states,
    set_temperature,
    spread_of,
)
from prefkit.language.sampling import sample, sample_candidates, sampled_kl
from prefkit.language.scorer import BESIDE_REFERENCE, LanguageScorer, PackedScorer, Precision
from prefkit.language.sequences import SequenceLogps, sequence_logps
from prefkit.language.stance import stance_judge

__all__ = [
    "BESIDE_REFERENCE",
    "BUILTIN",
    "DEFAULT_BANK",
    "HEADS",
    "JUDGE_TEMPLATE",
    "Encoder",
    "EncodingOptions",
    "EnsembleHead",
    "FollowupBank",
    "FollowupReward",
    "FollowupRewards",
    "FollowupScorer",
    "GeneralHead",
    "Head",
    "HeadInputs",
    "HeadScores",
    "IdealPointsHead",
    "LanguageJudge",
    "LanguageScorer",
    "Layout",
    "Lengths",
    "LoraOptions",
    "MlpHead",
    "ModelOptions",
    "OwnHead",
    "PackedScorer",
    "PairEncoder",
    "PairRewardScorer",
    "Precision",
    "RewardScorer",
    "ScalarHead",
    "SequenceLogps",
    "Span",
    "annotate",
    "draw_rewards",
    "feedback_loss",
    "first_token_logps",
    "flr_reward",
    "followup_logps",
    "is_reward_model",
    "label_logps",
    "load_reward",
    "load_scorer",
    "log_odds_table",
    "make_head",
    "mean_logps",
    "mix_embeddings",
    "official_code_score",
    "one_step_ahead_ids",
    "pack",
    "response_states",
    "sample",
    "sample_candidates",
    "sampled_kl",
    "sequence_logps",
    "set_temperature",
    "span_logps",
    "spread_of",
    "stance_judge",
    "token_logps",
    "total_reward",
    "truncated_lengths",
]
