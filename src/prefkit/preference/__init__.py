"""Preference models: how scores and features become choices."""

from prefkit.preference.context import (
    DecompositionBound,
    InferredContext,
    MarginalPreference,
    aggregate,
    decomposition_bound,
    infer_context,
    marginal_preference,
)
from prefkit.preference.feature_rewards import FeatureRewardModel, vote_strength, with_contexts
from prefkit.preference.features import OPINION_SUMMARY, DomainFeatures
from prefkit.preference.network import RewardNetwork, feedforward_scores

__all__ = [
    "OPINION_SUMMARY",
    "DecompositionBound",
    "DomainFeatures",
    "FeatureRewardModel",
    "InferredContext",
    "MarginalPreference",
    "RewardNetwork",
    "aggregate",
    "decomposition_bound",
    "feedforward_scores",
    "infer_context",
    "marginal_preference",
    "vote_strength",
    "with_contexts",
]
