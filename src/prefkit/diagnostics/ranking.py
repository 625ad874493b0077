"""Ranking: does a policy give preferred responses the higher likelihood, and how far could training bring it?

Ranking accuracy is on the policy itself; reward accuracy is on its ratio to the reference. A policy can have much of
the second and little of the first, because a pair that the reference ranks wrongly by many nats is put right only at a
loss near 0. All log-probabilities are in nats, summed over the response; lengths are in tokens, the end-of-sequence
token counted if it was scored.

Source: Chen et al. 2024, Preference Learning Algorithms Do Not Learn Preference Rankings (arXiv 2405.19534).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prefkit.errors import OptionError, PrefkitError

BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)
"""The paper's grid, for policies whose own beta is not known."""

CATEGORIES = ("correct->correct", "correct->incorrect", "incorrect->correct", "incorrect->incorrect")
"""How training moved a pair: ranked rightly by the reference, and by the policy."""

Quantity = Literal["probability", "normalized_probability", "logp", "normalized_logp"]
"""What two responses are compared by when they were judged equal; `normalized` is a token."""


class Accuracy(NamedTuple):
    """1 for each row that is ranked rightly, 0 for the others, and their mean."""

    per_example: Float[Tensor, " rows"]
    mean: Float[Tensor, ""]


class NWayAccuracy(NamedTuple):
    """Whether the order of all likelihoods is the people's, and the ranks by likelihood, 1 being the most likely."""

    policy_ranks: Int[Tensor, "rows n"]
    per_example: Float[Tensor, " rows"]
    mean: Float[Tensor, ""]


class Idealized(NamedTuple):
    """What the optimum of the preference objective would rank rightly.

    Args:
        optimal_log_ratio: log pi*(chosen) - log pi*(rejected), in nats.
        per_example: 1 where that is above 0.
        mean: their share.
    """

    optimal_log_ratio: Float[Tensor, " rows"]
    per_example: Float[Tensor, " rows"]
    mean: Float[Tensor, ""]


class IdealizedRange(NamedTuple):
    """Idealised ranking accuracy over a grid of beta: lowest, median and highest."""

    lowest: float
    median: float
    highest: float
    by_beta: Mapping[float, float]


class Difficulty(NamedTuple):
    """How hard each pair is for DPO.

    Args:
        nats: log pi_ref(rejected) - log pi_ref(chosen): above 0 where the reference ranks wrongly.
        loss_threshold: the loss at or below which the policy ranks the pair rightly.
    """

    nats: Float[Tensor, " rows"]
    loss_threshold: Float[Tensor, " rows"]


class IpoCondition(NamedTuple):
    """When IPO ranks a pair rightly.

    Args:
        c: log pi_ref(chosen) - log pi_ref(rejected), of the opposite sign to DPO's.
        sufficient_loss: a loss at or below which the pair is ranked rightly; -1 where no loss is low enough.
        zero_loss_is_wrong: 1 where the pair is ranked wrongly even at a loss of 0.
    """

    c: Float[Tensor, " rows"]
    sufficient_loss: Float[Tensor, " rows"]
    zero_loss_is_wrong: Float[Tensor, " rows"]


class Flips(NamedTuple):
    """How training moved the pairs.

    Args:
        category: index into `CATEGORIES` of each pair.
        fractions: share of each category.
        flip_rate: put right, as a share of those that the reference ranked wrongly; 0 where there are none.
        none_wrong: the reference ranked every pair rightly, so that the flip rate says nothing.
    """

    category: Int[Tensor, " rows"]
    fractions: Mapping[str, float]
    flip_rate: float
    none_wrong: bool

    @property
    def labels(self) -> list[str]:
        """The name of each pair's category."""
        return [CATEGORIES[index] for index in self.category.tolist()]


def ranking_accuracy(
    policy_chosen_logps: Float[Tensor, " rows"],
    policy_rejected_logps: Float[Tensor, " rows"],
    chosen_lengths: Int[Tensor, " rows"] | None = None,
    rejected_lengths: Int[Tensor, " rows"] | None = None,
    *,
    length_normalize: bool = False,
) -> Accuracy:
    """Whether the chosen response is at least as likely as the rejected one.

    Unlike `accuracy.ranking_wins`, which counts equal likelihoods half, equality is right here, as in the paper.

    Args:
        policy_chosen_logps: chosen responses under the policy.
        policy_rejected_logps: rejected responses under the policy.
        chosen_lengths: tokens of the chosen responses, at least 1; needed to normalise.
        rejected_lengths: tokens of the rejected responses.
        length_normalize: compare log-probabilities a token.

    Raises:
        PrefkitError: shapes differ, a value is not finite, or lengths are missing or below 1.

    Source: definition 2.3; normalised, eq. 15.
    """
    chosen, rejected = _logps(policy_chosen_logps=policy_chosen_logps, policy_rejected_logps=policy_rejected_logps)
    if length_normalize:
        chosen, rejected = _per_token(chosen, chosen_lengths), _per_token(rejected, rejected_lengths)
    return _accuracy(chosen >= rejected, chosen)


def reward_accuracy(
    policy_chosen_logps: Float[Tensor, " rows"],
    policy_rejected_logps: Float[Tensor, " rows"],
    ref_chosen_logps: Float[Tensor, " rows"],
    ref_rejected_logps: Float[Tensor, " rows"],
    *,
    beta: float = 1.0,
) -> Accuracy:
    """Whether training raised the chosen response more than the rejected one: beta log pi / pi_ref, strictly greater.

    Raises:
        OptionError: beta is not above 0.
        PrefkitError: shapes differ, or a value is not finite.

    Source: remark 2.5.
    """
    _positive("beta", beta)
    chosen, rejected, ref_chosen, ref_rejected = _four(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    return _accuracy(beta * (chosen - ref_chosen) > beta * (rejected - ref_rejected), chosen)


def ranking_accuracy_with_ties(
    policy_logps_1: Float[Tensor, " rows"],
    policy_logps_2: Float[Tensor, " rows"],
    alpha: Float[Tensor, " rows"],
    lengths_1: Int[Tensor, " rows"] | None = None,
    lengths_2: Int[Tensor, " rows"] | None = None,
    *,
    tie_tolerance: float = 0.01,
    quantity: Quantity = "normalized_probability",
) -> Accuracy:
    """Whether two responses are ranked as the raters did, who may be split evenly.

    Args:
        policy_logps_1: first responses under the policy.
        policy_logps_2: second responses.
        alpha: share of raters who prefer the first, in [0, 1]. At exactly one half the likelihoods have to be nearly
            equal, elsewhere their order has to be the majority's.
        lengths_1: tokens of the first responses; needed where the quantity is normalised.
        lengths_2: tokens of the second responses.
        tie_tolerance: how near is nearly equal, above 0.
        quantity: what is compared. Probabilities of long responses are all below the tolerance, so those a token are
            the default; the authors' code compares log-probabilities.

    Raises:
        OptionError: the tolerance is not above 0.
        PrefkitError: shapes differ, alpha is out of range, or lengths are missing or below 1.

    Source: definition C.1.
    """
    _positive("tie_tolerance", tie_tolerance)
    first, second = _logps(policy_logps_1=policy_logps_1, policy_logps_2=policy_logps_2)
    shares = _shares(alpha, first)
    if quantity.startswith("normalized"):
        first, second = _per_token(first, lengths_1), _per_token(second, lengths_2)
    one, two = (first.exp(), second.exp()) if quantity.endswith("probability") else (first, second)
    tied = (one - two).abs() < tie_tolerance
    # Logs have the order of the probabilities, and do not run out of small numbers.
    ordered = (first - second) * (shares - 0.5) > 0
    return _accuracy(torch.where(shares == 0.5, tied, ordered), first)


def ranking_accuracy_nway(
    policy_logps: Float[Tensor, "rows n"],
    human_ranks: Int[Tensor, "rows n"],
    lengths: Int[Tensor, "rows n"] | None = None,
    *,
    length_normalize: bool = False,
) -> NWayAccuracy:
    """Whether n responses have exactly the people's order; nothing is given for a part of it.

    Args:
        policy_logps: responses under the policy.
        human_ranks: 1 (best) to n, each once.
        lengths: tokens of each response; needed to normalise.
        length_normalize: compare log-probabilities a token.

    Raises:
        PrefkitError: shapes differ, ranks are no permutation of 1 to n, or lengths are missing or below 1.

    Source: definition A.8. Equal likelihoods share the lower rank of theirs, as in the authors' code.
    """
    if policy_logps.ndim != 2 or human_ranks.shape != policy_logps.shape:
        raise PrefkitError(
            f"policy_logps and human_ranks must be [rows, n] both, got {tuple(policy_logps.shape)} and "
            f"{tuple(human_ranks.shape)}"
        )
    count = policy_logps.shape[1]
    wanted = torch.arange(1, count + 1, device=human_ranks.device)
    bad = (human_ranks.sort(1).values != wanted).any(1).nonzero()[:, 0].tolist()
    if bad:
        raise PrefkitError(
            f"human_ranks[{bad[0]}] must hold each of 1 to {count} once, got {human_ranks[bad[0]].tolist()}"
        )
    (values,) = _logps(policy_logps=policy_logps)
    if length_normalize:
        values = _per_token(values, lengths)
    found = (values[:, None, :] >= values[:, :, None]).sum(2)
    right = _accuracy((found == human_ranks).all(1), values)
    return NWayAccuracy(found, *right)


def idealized_ranking(
    ref_chosen_logps: Float[Tensor, " rows"],
    ref_rejected_logps: Float[Tensor, " rows"],
    alpha: Float[Tensor, " rows"],
    chosen_lengths: Int[Tensor, " rows"] | None = None,
    rejected_lengths: Int[Tensor, " rows"] | None = None,
    *,
    beta: float = 0.1,
    eps: float = 1e-3,
    length_normalize: bool = False,
) -> Idealized:
    """How the minimiser of the DPO (or RLHF) objective ranks pairs with known shares of raters.

    m* = log pi_ref(chosen) - log pi_ref(rejected) + log(alpha / (1 - alpha)) / beta. That is the optimum on the
    population, with every pair fitted exactly: an upper end, not what a run can be expected to reach.

    Args:
        ref_chosen_logps: chosen responses under the reference.
        ref_rejected_logps: rejected responses.
        alpha: share of raters who prefer the chosen one, in [0, 1].
        chosen_lengths: tokens; needed to normalise.
        rejected_lengths: tokens of the rejected responses.
        beta: temperature of the objective, above 0.
        eps: takes the place of a share that is exactly 0; the other share stays as it is.
        length_normalize: the reference's log-probabilities a token; the preference term is not divided.

    Raises:
        OptionError: beta or eps is out of range.
        PrefkitError: shapes differ, alpha is out of range, or lengths are missing or below 1.

    Source: theorem 3.1, corollary 3.3; eps: appendix C.4.
    """
    _positive("beta", beta)
    if not 0 < eps < 1:
        raise OptionError(f"eps must lie in (0, 1), got {eps}")
    chosen, rejected = _logps(ref_chosen_logps=ref_chosen_logps, ref_rejected_logps=ref_rejected_logps)
    shares = _shares(alpha, chosen)
    if length_normalize:
        chosen, rejected = _per_token(chosen, chosen_lengths), _per_token(rejected, rejected_lengths)
    for_it, against = (torch.where(share == 0, eps, share).log() for share in (shares, 1 - shares))
    optimal = chosen - rejected + (for_it - against) / beta
    return Idealized(optimal, *_accuracy(optimal > 0, optimal))


def idealized_ranking_accuracy(
    ref_chosen_logps: Float[Tensor, " rows"],
    ref_rejected_logps: Float[Tensor, " rows"],
    alpha: Float[Tensor, " rows"],
    chosen_lengths: Int[Tensor, " rows"] | None = None,
    rejected_lengths: Int[Tensor, " rows"] | None = None,
    *,
    betas: Sequence[float] = BETAS,
    eps: float = 1e-3,
    length_normalize: bool = False,
) -> IdealizedRange:
    """Idealised ranking accuracy over a grid of temperatures; see `idealized_ranking`.

    Raises:
        OptionError: there is no temperature, or one is not above 0.
        PrefkitError: as `idealized_ranking`.
    """
    if not betas:
        raise OptionError("betas must name at least one temperature")
    found = {
        float(beta): float(
            idealized_ranking(
                ref_chosen_logps,
                ref_rejected_logps,
                alpha,
                chosen_lengths,
                rejected_lengths,
                beta=beta,
                eps=eps,
                length_normalize=length_normalize,
            ).mean
        )
        for beta in betas
    }
    ordered = torch.tensor(sorted(found.values()), dtype=torch.float64)
    return IdealizedRange(float(ordered[0]), float(ordered.quantile(0.5)), float(ordered[-1]), found)


def difficulty(
    ref_chosen_logps: Float[Tensor, " rows"],
    ref_rejected_logps: Float[Tensor, " rows"],
    *,
    beta: float = 0.1,
    gamma: float = 1.0,
) -> Difficulty:
    """How far the reference ranks each pair wrongly, and the DPO loss at which it is put right.

    Args:
        ref_chosen_logps: chosen responses under the reference.
        ref_rejected_logps: rejected responses.
        beta: temperature of the objective, above 0.
        gamma: weight of the reference in the objective, see `prefkit.objectives.dpo_gamma_loss`; 1 is DPO.

    Raises:
        OptionError: beta is not above 0.
        PrefkitError: shapes differ, or a value is not finite.

    Source: theorem 4.1: the pair is ranked rightly if and only if its loss is at most -log sigmoid(beta gamma c).
    """
    _positive("beta", beta)
    chosen, rejected = _logps(ref_chosen_logps=ref_chosen_logps, ref_rejected_logps=ref_rejected_logps)
    nats = rejected - chosen
    return Difficulty(nats, F.softplus(-beta * gamma * nats))


def ipo_condition(
    ref_chosen_logps: Float[Tensor, " rows"], ref_rejected_logps: Float[Tensor, " rows"], *, tau: float = 0.1
) -> IpoCondition:
    """When the loss of IPO says that a pair is ranked rightly, and when it cannot.

    Args:
        ref_chosen_logps: chosen responses under the reference.
        ref_rejected_logps: rejected responses.
        tau: IPO's temperature, above 0 (`beta` of the objective `ipo`).

    Raises:
        OptionError: tau is not above 0.
        PrefkitError: shapes differ, or a value is not finite.

    Source: proposition A.7.
    """
    _positive("tau", tau)
    chosen, rejected = _logps(ref_chosen_logps=ref_chosen_logps, ref_rejected_logps=ref_rejected_logps)
    c, target = chosen - rejected, 1 / (2 * tau)
    wrong = c < -target
    return IpoCondition(c, torch.where(wrong, -1.0, (c + target) ** 2), wrong.to(c.dtype))


def flip_report(
    policy_chosen_logps: Float[Tensor, " rows"],
    policy_rejected_logps: Float[Tensor, " rows"],
    ref_chosen_logps: Float[Tensor, " rows"],
    ref_rejected_logps: Float[Tensor, " rows"],
) -> Flips:
    """Which pairs training put right, and which it spoilt.

    Raises:
        PrefkitError: shapes differ, a value is not finite, or there is no pair.

    Source: section 4.1.
    """
    chosen, rejected, ref_chosen, ref_rejected = _four(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps
    )
    before, after = ref_chosen >= ref_rejected, chosen >= rejected
    category = 2 * (~before).long() + (~after).long()
    counts = torch.bincount(category, minlength=len(CATEGORIES)).tolist()
    wrong = counts[2] + counts[3]
    return Flips(
        category,
        {name: count / len(chosen) for name, count in zip(CATEGORIES, counts, strict=True)},
        counts[2] / wrong if wrong else 0.0,
        wrong == 0,
    )


# --- what is checked


def _accuracy(right: Tensor, like: Tensor) -> Accuracy:
    values = right.to(like.dtype)
    return Accuracy(values, values.mean())


def _logps(**named: Tensor) -> list[Tensor]:
    """The log-probabilities, once they are what they have to be."""
    tensors = dict(named)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise PrefkitError(
            "log-probabilities must have one shape, got " + ", ".join(f"{n} {s}" for n, s in shapes.items())
        )
    for name, tensor in tensors.items():
        if not tensor.numel():
            raise PrefkitError(f"{name} is empty: at least one row is needed")
        if not bool(torch.isfinite(tensor).all()):
            raise PrefkitError(f"{name} must be finite numbers, and one of them is not")
        if bool((tensor > 0).any()):
            warnings.warn(f"{name} holds a positive number, which no log-probability is", stacklevel=3)
    return [tensor if tensor.is_floating_point() else tensor.double() for tensor in tensors.values()]


def _four(policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> list[Tensor]:
    return _logps(
        policy_chosen_logps=policy_chosen,
        policy_rejected_logps=policy_rejected,
        ref_chosen_logps=ref_chosen,
        ref_rejected_logps=ref_rejected,
    )


def _per_token(logps: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        raise PrefkitError("a comparison per token needs the lengths of all responses")
    if lengths.shape != logps.shape:
        raise PrefkitError(f"each response has one length: got {tuple(lengths.shape)} for {tuple(logps.shape)}")
    if bool((lengths < 1).any()):
        raise PrefkitError("a response has at least one token; got a length below 1")
    return logps / lengths


def _shares(alpha: Tensor, like: Tensor) -> Tensor:
    if alpha.shape != like.shape:
        raise PrefkitError(f"each pair has one share alpha: got {tuple(alpha.shape)} for {tuple(like.shape)}")
    if not bool(((alpha >= 0) & (alpha <= 1)).all()):
        raise PrefkitError("alpha must lie in [0, 1]: it is the share of raters who prefer the response")
    return alpha.to(like.dtype)


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise OptionError(f"{name} must be greater than 0, got {value}")
