"""Contexts: preferences that depend on an intent, criterion or person that a prompt alone does not tell.

A preference is modelled in two steps: which context holds, then what is preferred under it. Rewards are tensors whose
last dimension is the context; contexts may be anything that a reward model can be told.

Source: Pitis et al. 2024, Improving Context-Aware Preference Modeling for Language Models (arXiv 2407.14916).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prefkit.errors import OptionError, PrefkitError, unknown

Rule = Literal["expected_utility", "borda", "borda_hard"]
"""How utilities under several contexts become one ranking; see `aggregate`."""

_RULES = ("expected_utility", "borda", "borda_hard")
_TOLERANCE = 1e-4


class MarginalPreference(NamedTuple):
    """Probability that the first response is preferred, and minus its logarithm (nats)."""

    prob: Float[Tensor, " batch"]
    nll: Float[Tensor, " batch"]


def marginal_preference(
    rewards_1: Float[Tensor, "batch contexts"],
    rewards_2: Float[Tensor, "batch contexts"],
    context_prob: Float[Tensor, "batch contexts"],
) -> MarginalPreference:
    """Preference without a context: the mean of the preferences under each, p(1 > 2) = sum p(z) sigmoid(r_1z - r_2z).

    That is not the preference of mean rewards.

    Args:
        rewards_1: rewards of the first response under every context, in log-odds.
        rewards_2: rewards of the second one.
        context_prob: probability of each context; rows sum to 1.

    Raises:
        PrefkitError: shapes differ, there are no contexts, a reward is no finite number, or a row does not sum to 1.
    """
    _check_rewards(rewards_1, rewards_2)
    _check_distribution(context_prob, "context_prob", rewards_1.shape)
    terms = context_prob.log() + F.logsigmoid(rewards_1 - rewards_2)
    logp = torch.logsumexp(terms, -1)
    return MarginalPreference(logp.exp(), -logp)


class DecompositionBound(NamedTuple):
    """Where the error of a two-step model comes from, one number a query.

    Args:
        total_error: how far the modelled preference is from the true one.
        preference_error: mean error of the preference under a context, over the true contexts.
        context_error: total variation distance of the contexts.
        bound: the sum of the latter two, never less than the first; it may exceed 1.
    """

    total_error: Float[Tensor, " batch"]
    preference_error: Float[Tensor, " batch"]
    context_error: Float[Tensor, " batch"]
    bound: Float[Tensor, " batch"]


def decomposition_bound(
    true_context_prob: Float[Tensor, "batch contexts"],
    model_context_prob: Float[Tensor, "batch contexts"],
    true_pref_prob: Float[Tensor, "batch contexts"],
    model_pref_prob: Float[Tensor, "batch contexts"],
) -> DecompositionBound:
    """Bound of a preference's error by that under the true contexts and that of the contexts.

    Args:
        true_context_prob: true probability of each context; rows sum to 1.
        model_context_prob: the model's.
        true_pref_prob: true probability that the first response is preferred, under each context.
        model_pref_prob: the model's.

    Raises:
        PrefkitError: shapes differ, a row of contexts does not sum to 1, or a preference lies outside [0, 1].

    Source: section 3. The constants are those of the triangle inequality; whether the paper's agree is not certain.
    """
    shape = true_context_prob.shape
    for name, prob in (("true_context_prob", true_context_prob), ("model_context_prob", model_context_prob)):
        _check_distribution(prob, name, shape)
    for name, prob in (("true_pref_prob", true_pref_prob), ("model_pref_prob", model_pref_prob)):
        if prob.shape != shape or not bool(((prob >= 0) & (prob <= 1)).all()):
            raise PrefkitError(f"{name} must hold probabilities of shape {tuple(shape)}, got {tuple(prob.shape)}")
    true, modelled = true_context_prob * true_pref_prob, model_context_prob * model_pref_prob
    preference = (true_context_prob * (true_pref_prob - model_pref_prob).abs()).sum(-1)
    context = 0.5 * (true_context_prob - model_context_prob).abs().sum(-1)
    return DecompositionBound((true.sum(-1) - modelled.sum(-1)).abs(), preference, context, preference + context)


class InferredContext(NamedTuple):
    """What comparisons say about the context in which they were made.

    Args:
        log_likelihood: of the labels under each context, in nats.
        posterior: probability of each context.
        map_context: place of the most probable one, the first of equals.
    """

    log_likelihood: Float[Tensor, " contexts"]
    posterior: Float[Tensor, " contexts"]
    map_context: int


def infer_context(
    reward_difference: Float[Tensor, "n contexts"],
    labels: Int[Tensor, " n"],
    prior: Float[Tensor, " contexts"] | None = None,
) -> InferredContext:
    """Posterior over candidate contexts (criteria, profiles of people) from labelled comparisons, by Bayes' rule.

    Args:
        reward_difference: reward of the first response less that of the second, under every context; no comparison at
            all leaves the prior.
        labels: 1 where the first response was preferred, 0 where the second was.
        prior: probability of each context; uniform by default.

    Raises:
        PrefkitError: shapes differ, there are no contexts, a difference is no finite number, a label is neither 0 nor
            1, or the prior does not sum to 1.
    """
    n = len(labels)
    contexts = len(prior) if prior is not None else reward_difference.shape[-1]
    if n == 0:
        reward_difference = reward_difference.reshape(0, contexts)
    if reward_difference.ndim != 2 or reward_difference.shape != (n, contexts) or not contexts:
        raise PrefkitError(
            f"reward_difference must be [{n}, {contexts}], comparisons by contexts (at least one), got "
            f"{tuple(reward_difference.shape)}"
        )
    if not bool(torch.isfinite(reward_difference).all()):
        raise PrefkitError("reward_difference must hold finite numbers")
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise PrefkitError(f"labels must be 0 or 1, got {sorted(set(labels.tolist()))}")
    dtype = reward_difference.dtype if reward_difference.is_floating_point() else torch.float64
    if prior is None:
        prior = torch.full((contexts,), 1 / contexts, dtype=dtype, device=reward_difference.device)
    _check_distribution(prior, "prior", (contexts,))
    signs = (2 * labels - 1)[:, None]
    likelihood = F.logsigmoid(signs * reward_difference.to(dtype)).sum(0)
    posterior = (prior.log() + likelihood).softmax(0)
    return InferredContext(likelihood, posterior, int(posterior.argmax()))


def aggregate(
    utilities: Float[Tensor, "candidates contexts"],
    context_prob: Float[Tensor, " contexts"],
    rule: Rule = "expected_utility",
) -> Float[Tensor, " candidates"]:
    """One score a candidate from its utilities under several contexts, or to several people.

    Args:
        utilities: reward of each candidate under each context.
        context_prob: probability, or weight, of each context; sums to 1.
        rule: "expected_utility" is the mean utility, for which rewards must be on one scale under all contexts;
            "borda" the mean probability of beating another candidate, which depends on the candidates; "borda_hard"
            the same with preferences that are certain (ties one half), for which only the order counts.

    Raises:
        OptionError: the rule is unknown.
        PrefkitError: shapes differ, a utility is no finite number, context_prob does not sum to 1, or Borda's rule is
            asked for one candidate.
    """
    if rule not in _RULES:
        raise OptionError(unknown("aggregation rule", rule, _RULES))
    if utilities.ndim != 2 or not bool(torch.isfinite(utilities).all()):
        raise PrefkitError(f"utilities must be finite numbers [candidates, contexts], got {tuple(utilities.shape)}")
    _check_distribution(context_prob, "context_prob", utilities.shape[1:])
    if rule == "expected_utility":
        return utilities @ context_prob
    count = len(utilities)
    if count < 2:
        raise PrefkitError(f"rule '{rule}' compares candidates: it needs at least 2, got {count}")
    ahead = utilities[:, None] - utilities[None]
    wins = torch.sigmoid(ahead) if rule == "borda" else 0.5 * (torch.sign(ahead) + 1)
    # A candidate ties with itself in every context, which adds one half.
    return ((wins @ context_prob).sum(1) - 0.5) / (count - 1)


def _check_rewards(rewards_1: Tensor, rewards_2: Tensor) -> None:
    if rewards_1.shape != rewards_2.shape or rewards_1.ndim == 0 or not rewards_1.shape[-1]:
        raise PrefkitError(
            "both responses need rewards [batch, contexts] under the same contexts, at least one, got "
            f"{tuple(rewards_1.shape)} and {tuple(rewards_2.shape)}"
        )
    for side, rewards in ((1, rewards_1), (2, rewards_2)):
        bad = (~torch.isfinite(rewards)).nonzero().tolist()
        if bad:
            raise PrefkitError(f"rewards_{side} at {tuple(bad[0])} is no finite number")


def _check_distribution(prob: Tensor, name: str, shape: tuple[int, ...]) -> None:
    if tuple(prob.shape) != tuple(shape) or not prob.shape[-1]:
        raise PrefkitError(f"{name} must be of shape {tuple(shape)}, got {tuple(prob.shape)}")
    sums = prob.sum(-1)
    wrong = ((sums - 1).abs() > _TOLERANCE) | (prob < 0).any(-1) | ~torch.isfinite(sums)
    if bool(wrong.any()):
        first = wrong.reshape(-1).nonzero()[0, 0]
        raise PrefkitError(
            f"{name} must be at least 0 and sum to 1; row {int(first)} sums to {sums.reshape(-1)[first]}"
        )
