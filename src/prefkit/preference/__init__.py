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
from prefkit.preference.domain import FEATURE_FUNCTIONS, DomainReward, Wins, domain_features
from prefkit.preference.feature_rewards import FeatureRewardModel, vote_strength, with_contexts
from prefkit.preference.features import OPINION_SUMMARY, DomainFeatures
from prefkit.preference.network import FeedforwardReward, feedforward_scores

__all__ = [
    "FEATURE_FUNCTIONS",
    "OPINION_SUMMARY",
    "DecompositionBound",
    "DomainFeatures",
    "DomainReward",
    "FeatureRewardModel",
    "FeedforwardReward",
    "InferredContext",
    "MarginalPreference",
    "Wins",
    "aggregate",
    "decomposition_bound",
    "domain_features",
    "feedforward_scores",
    "infer_context",
    "marginal_preference",
    "vote_strength",
    "with_contexts",
]
