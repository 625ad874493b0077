"""Scores: the plain tensors with fixed names and shapes that domains make and objectives take.

A domain scores responses, one after the other, in a flat `ResponseScores`. What an objective compares (pairs, lists,
labelled responses, demonstrations) is a view of these by index, so the same objective serves text, images and
recommendations. All log-probabilities are in nats, lengths in tokens (or in the domain's own steps).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.export import register_dataclass

Form = Literal["pairs", "lists", "labels", "demonstrations"]
"""What an objective compares: two responses, K ranked responses, single responses judged good or bad, or good ones
only."""


@dataclass(frozen=True)
class TokenScores:
    """Scores of single tokens, all responses of a batch one after the other.

    Args:
        policy_logps: log-probability of each response token under the policy.
        response: which response of the batch each token belongs to, non-decreasing.
        ref_logps: the same under the reference.
        kl: KL(reference, policy) of the distributions over the next token, summed over the vocabulary.
        states: the policy's last hidden state at each token.
        layers: the reference's hidden states that predict each token, of every layer.
        predictors: the last hidden state that predicts each token, which stands one place before it.
        steps: step of its response that each token belongs to, from 0; -1 outside all steps.
        plain_logps: the policy's log-probabilities with its inputs as they are, without gradient, where `policy_logps`
            are those with its own predictions mixed into them.
    """

    policy_logps: Float[Tensor, " tokens"]
    response: Int[Tensor, " tokens"]
    ref_logps: Float[Tensor, " tokens"] | None = None
    kl: Float[Tensor, " tokens"] | None = None
    states: Float[Tensor, "tokens dim"] | None = None
    layers: Float[Tensor, "tokens layers dim"] | None = None
    predictors: Float[Tensor, "tokens dim"] | None = None
    steps: Int[Tensor, " tokens"] | None = None
    plain_logps: Float[Tensor, " tokens"] | None = None

    def total(self, values: Float[Tensor, " tokens"], responses: int) -> Float[Tensor, " responses"]:
        """Sum of a value over the tokens of each response.

        Args:
            values: one a token.
            responses: how many responses there are.
        """
        return values.new_zeros(responses).index_add(0, self.response, values)

    def table(
        self, values: Float[Tensor, " tokens"], responses: int
    ) -> tuple[Float[Tensor, "responses longest"], Bool[Tensor, "responses longest"]]:
        """One row a response, padded with 0 at its end, and the mask of the tokens.

        Args:
            values: one a token.
            responses: how many responses there are.
        """
        lengths = torch.bincount(self.response, minlength=responses)
        mask = torch.arange(int(lengths.max()) if responses else 0, device=values.device) < lengths[:, None]
        return values.new_zeros(mask.shape).masked_scatter(mask, values), mask

    def of(self, responses: Int[Tensor, " n"], lengths: Int[Tensor, " all"]) -> TokenScores:
        """The tokens of some responses, one after the other; `response` counts these from 0.

        Args:
            responses: which responses of the batch, in the order that is wanted.
            lengths: tokens of every response of the batch.
        """
        device = lengths.device
        starts = lengths.cumsum(0) - lengths
        counts = lengths[responses]
        owner = torch.repeat_interleave(torch.arange(len(responses), device=device), counts)
        within = torch.arange(len(owner), device=device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        places = starts[responses][owner] + within
        chosen = {
            f.name: tensor[places]
            for f in fields(self)
            if f.name != "response" and (tensor := getattr(self, f.name)) is not None
        }
        return TokenScores(response=owner, **chosen)


@dataclass(frozen=True)
class Companions:
    """Scores of further texts that belong to pairs: variants of a response, a rationale, other prompts.

    Args:
        policy_logps: log-probability of each text given its prompt under the policy.
        lengths: its tokens.
        entry: the pair of the batch that it belongs to.
        label: what its maker says that it is.
        ref_logps: the same under the reference.
        last_states: the policy's last hidden state at its last token.
        mean_states: the mean of the policy's last hidden states over its tokens.
    """

    policy_logps: Float[Tensor, " texts"]
    lengths: Int[Tensor, " texts"]
    entry: Int[Tensor, " texts"]
    label: Int[Tensor, " texts"]
    ref_logps: Float[Tensor, " texts"] | None = None
    last_states: Float[Tensor, "texts dim"] | None = None
    mean_states: Float[Tensor, "texts dim"] | None = None

    @classmethod
    def none(cls, scores: PairScores) -> Self:
        """No texts, on the device of some scores."""
        nothing = scores.policy_chosen_logps.new_zeros(0)
        count = nothing.long()
        return cls(nothing, count, count, count, None if scores.ref_chosen_logps is None else nothing)


@dataclass(frozen=True)
class ResponseScores:
    """Scores of all responses of a batch, flat, in the order in which they were encoded.

    Args:
        policy_logps: log-probability of each response given its prompt, summed over its tokens.
        lengths: number of tokens of each response.
        ref_logps: the same as `policy_logps` under the frozen reference; None if the objective asks for no reference.
        tokens: scores of single tokens; None unless the objective asks for them.
        views: last hidden states of two forward passes with different dropout; None unless the objective asks for them.
        factors: of a model that compares responses instead of rewarding each: the inner product of one's first vector
            with another's second are the log-odds that the former is preferred. `policy_logps` are then the mean
            log-odds against all candidates.
        members: of an ensemble, what each of its members makes of the responses; `policy_logps` are the means.
        member_factors: the factors of each of its members, where they compare.
    """

    policy_logps: Float[Tensor, " responses"]
    lengths: Int[Tensor, " responses"]
    ref_logps: Float[Tensor, " responses"] | None = None
    tokens: TokenScores | None = None
    views: Float[Tensor, "responses 2 dim"] | None = None
    factors: Float[Tensor, "responses 2 dim"] | None = None
    members: Float[Tensor, "responses members"] | None = None
    member_factors: Float[Tensor, "responses members 2 dim"] | None = None

    def each_member(self) -> list[ResponseScores]:
        """The scores by each member of an ensemble; by itself, if there is none."""
        if self.members is None:
            return [self]
        factors = self.member_factors
        return [
            replace(
                self,
                policy_logps=self.members[:, number],
                factors=None if factors is None else factors[:, number],
                members=None,
                member_factors=None,
            )
            for number in range(self.members.shape[1])
        ]


# A forward pass returns these: FSDP2 has to find the tensors inside to hook their gradients.
register_dataclass(TokenScores)
register_dataclass(ResponseScores)


@dataclass(frozen=True)
class PairScores:
    """Scores of pairs.

    Args:
        policy_chosen_logps: log-probability of the response that was labelled better, under the policy.
        policy_rejected_logps: the same of the other response.
        ref_chosen_logps: the chosen response under the reference; None for objectives without one.
        ref_rejected_logps: the rejected response under the reference.
        chosen_lengths: tokens of the chosen response.
        rejected_lengths: tokens of the rejected response.
        probabilities: probability that the chosen response is the better one (soft label); None means 1 for every pair.
        weights: importance of each pair; None means 1 for every pair.
        strengths: how strongly the chosen response was preferred, on the data's scale; None if the data does not say.
        annotators: index of the person (or source) that labelled each pair; None if the data does not say.
        margins: a reward model's reward of the chosen response less that of the rejected one, in log-odds.
        chosen_tokens: tokens of the chosen responses, `response` being the pair; None unless asked for.
        rejected_tokens: tokens of the rejected responses.
        chosen_views: see `ResponseScores.views`, of the chosen responses.
        rejected_views: the same of the rejected responses.
        companions: further texts that belong to the pairs, one group for each auxiliary part of the objective, groups
            at the end that are empty left out; None if no part asks for any.
        odds: log-odds that the chosen response is preferred, by a model that compares the two; None if it scores each.
    """

    policy_chosen_logps: Float[Tensor, " batch"]
    policy_rejected_logps: Float[Tensor, " batch"]
    ref_chosen_logps: Float[Tensor, " batch"] | None = None
    ref_rejected_logps: Float[Tensor, " batch"] | None = None
    chosen_lengths: Int[Tensor, " batch"] | None = None
    rejected_lengths: Int[Tensor, " batch"] | None = None
    probabilities: Float[Tensor, " batch"] | None = None
    weights: Float[Tensor, " batch"] | None = None
    strengths: Float[Tensor, " batch"] | None = None
    annotators: Int[Tensor, " batch"] | None = None
    margins: Float[Tensor, " batch"] | None = None
    chosen_tokens: TokenScores | None = None
    rejected_tokens: TokenScores | None = None
    chosen_views: Float[Tensor, "batch 2 dim"] | None = None
    rejected_views: Float[Tensor, "batch 2 dim"] | None = None
    companions: tuple[Companions, ...] | None = None
    odds: Float[Tensor, " batch"] | None = None
    # What a reward whose gradient depends on the side is told of it.
    chosen_side: ClassVar[str] = "chosen"
    rejected_side: ClassVar[str] = "rejected"

    def swapped(self) -> Self:
        """The same pairs with the roles of the two responses exchanged.

        Log-probabilities, reference, lengths and tokens are, and log-odds change their sign; what was said of the pair
        (strength, annotator, a reward model's margin) stays as it is.
        """
        return replace(
            self,
            policy_chosen_logps=self.policy_rejected_logps,
            policy_rejected_logps=self.policy_chosen_logps,
            ref_chosen_logps=self.ref_rejected_logps,
            ref_rejected_logps=self.ref_chosen_logps,
            chosen_lengths=self.rejected_lengths,
            rejected_lengths=self.chosen_lengths,
            chosen_tokens=self.rejected_tokens,
            rejected_tokens=self.chosen_tokens,
            chosen_views=self.rejected_views,
            rejected_views=self.chosen_views,
            odds=None if self.odds is None else -self.odds,
        )


@dataclass(frozen=True)
class ListScores:
    """Scores of ranked lists of K responses; shorter lists are padded and masked.

    Args:
        policy_logps: log-probability of each response under the policy; any finite number where `mask` is False.
        ranks: rank of each response, 0 is best, equal ranks are ties.
        mask: which places hold a response.
        ref_logps: the responses under the reference.
        lengths: tokens of each response.
        weights: importance of each list.
        ratings: rating of each response on the data's scale; any finite number where `mask` is False.
        tokens: tokens of all responses, `response` being the place in the flattened lists, `row * k + column`.
    """

    policy_logps: Float[Tensor, "batch k"]
    ranks: Int[Tensor, "batch k"]
    mask: Bool[Tensor, "batch k"]
    ref_logps: Float[Tensor, "batch k"] | None = None
    lengths: Int[Tensor, "batch k"] | None = None
    weights: Float[Tensor, " batch"] | None = None
    ratings: Float[Tensor, "batch k"] | None = None
    tokens: TokenScores | None = None


@dataclass(frozen=True)
class LabelScores:
    """Scores of single responses that were judged good or bad.

    Args:
        policy_logps: log-probability of each response under the policy.
        labels: True where the response was judged good.
        ref_logps: the responses under the reference.
        lengths: tokens of each response.
        policy_kl_logps: log-probability, under the policy, of another record's response to the same prompt, from
            which KTO estimates its reference point; None if the objective does not ask for it.
        ref_kl_logps: the same under the reference.
        weights: importance of each response.
    """

    policy_logps: Float[Tensor, " batch"]
    labels: Bool[Tensor, " batch"]
    ref_logps: Float[Tensor, " batch"] | None = None
    lengths: Int[Tensor, " batch"] | None = None
    policy_kl_logps: Float[Tensor, " batch"] | None = None
    ref_kl_logps: Float[Tensor, " batch"] | None = None
    weights: Float[Tensor, " batch"] | None = None


@dataclass(frozen=True)
class DemonstrationScores:
    """Scores of responses that are simply to be imitated.

    Args:
        policy_logps: log-probability of each response under the policy.
        lengths: tokens of each response.
        ref_logps: the responses under the reference.
        weights: importance of each response.
        tokens: tokens of all responses, `response` being the place in the batch; None unless asked for.
    """

    policy_logps: Float[Tensor, " batch"]
    lengths: Int[Tensor, " batch"]
    ref_logps: Float[Tensor, " batch"] | None = None
    weights: Float[Tensor, " batch"] | None = None
    tokens: TokenScores | None = None


Scores = PairScores | ListScores | LabelScores | DemonstrationScores
"""What an objective takes; which of them, its form says."""


@dataclass(frozen=True)
class Targets:
    """What was said about the responses of a batch, as indices into its flat `ResponseScores`.

    Args:
        form: which view of the scores the objective takes.
        index: `[batch, 2]` (chosen, rejected) for pairs; `[batch, k]`, -1 where a list is shorter, for lists;
            `[batch, 2]` (response, another record's response, or -1) for labels; `[batch, 1]` for demonstrations.
        rows: which row of the training data each entry came from, for error messages.
        probabilities: see `PairScores`.
        weights: see `PairScores`.
        strengths: see `PairScores`.
        annotators: see `PairScores`.
        margins: see `PairScores`.
        companions: `[texts, 4]`: index of the text in the flat scores, entry, label, and auxiliary part.
        ranks: see `ListScores`.
        ratings: see `ListScores`.
        labels: see `LabelScores`.
    """

    form: Form
    index: Int[Tensor, "batch k"]
    rows: Int[Tensor, " batch"]
    probabilities: Float[Tensor, " batch"] | None = None
    weights: Float[Tensor, " batch"] | None = None
    strengths: Float[Tensor, " batch"] | None = None
    annotators: Int[Tensor, " batch"] | None = None
    margins: Float[Tensor, " batch"] | None = None
    companions: Int[Tensor, "texts 4"] | None = None
    ranks: Int[Tensor, "batch k"] | None = None
    ratings: Float[Tensor, "batch k"] | None = None
    labels: Bool[Tensor, " batch"] | None = None

    def to(self, device: torch.device | str) -> Targets:
        """The same targets on another device."""
        tensors: dict[str, Any] = {
            f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})

    def __len__(self) -> int:
        return len(self.index)

    def view(self, scores: ResponseScores) -> Scores:
        """The scores as the objective takes them."""
        policy, ref, lengths, tokens = scores.policy_logps, scores.ref_logps, scores.lengths, scores.tokens
        match self.form:
            case "pairs":
                chosen, rejected = self.index.unbind(1)
                return PairScores(
                    policy_chosen_logps=policy[chosen],
                    policy_rejected_logps=policy[rejected],
                    ref_chosen_logps=None if ref is None else ref[chosen],
                    ref_rejected_logps=None if ref is None else ref[rejected],
                    chosen_lengths=lengths[chosen],
                    rejected_lengths=lengths[rejected],
                    probabilities=self.probabilities,
                    weights=self.weights,
                    strengths=self.strengths,
                    annotators=self.annotators,
                    margins=self.margins,
                    chosen_tokens=tokens and tokens.of(chosen, lengths),
                    rejected_tokens=tokens and tokens.of(rejected, lengths),
                    chosen_views=None if scores.views is None else scores.views[chosen],
                    rejected_views=None if scores.views is None else scores.views[rejected],
                    companions=self._companions(scores),
                    odds=None if scores.factors is None else pair_odds(scores.factors, chosen, rejected),
                )
            case "lists":
                mask = self.index >= 0
                index = self.index.clamp(min=0)
                assert self.ranks is not None
                return ListScores(
                    policy_logps=policy[index],
                    ranks=self.ranks,
                    mask=mask,
                    ref_logps=None if ref is None else ref[index],
                    lengths=lengths[index],
                    weights=self.weights,
                    ratings=self.ratings,
                    tokens=tokens and _in_lists(tokens.of(self.index[mask], lengths), mask),
                )
            case "labels":
                own, other = self.index.unbind(1)
                with_kl = bool((other >= 0).all())
                assert self.labels is not None
                return LabelScores(
                    policy_logps=policy[own],
                    labels=self.labels,
                    ref_logps=None if ref is None else ref[own],
                    lengths=lengths[own],
                    policy_kl_logps=policy[other] if with_kl else None,
                    ref_kl_logps=ref[other] if with_kl and ref is not None else None,
                    weights=self.weights,
                )
            case "demonstrations":
                own = self.index[:, 0]
                return DemonstrationScores(
                    policy_logps=policy[own],
                    lengths=lengths[own],
                    ref_logps=None if ref is None else ref[own],
                    weights=self.weights,
                    tokens=tokens and tokens.of(own, lengths),
                )

    def _companions(self, scores: ResponseScores) -> tuple[Companions, ...] | None:
        """The texts of each auxiliary part, in the order of the parts."""
        if self.companions is None:
            return None
        found = []
        for part in range(int(self.companions[:, 3].max()) + 1 if len(self.companions) else 0):
            place, entry, label = self.companions[self.companions[:, 3] == part][:, :3].unbind(1)
            last, mean = _pooled(scores, place)
            ref = scores.ref_logps
            found.append(
                Companions(
                    scores.policy_logps[place],
                    scores.lengths[place],
                    entry,
                    label,
                    ref_logps=None if ref is None else ref[place],
                    last_states=last,
                    mean_states=mean,
                )
            )
        return tuple(found)


def pair_odds(
    factors: Float[Tensor, "responses 2 dim"], first: Int[Tensor, " pairs"], second: Int[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    """Log-odds that the first response of each pair is preferred to the second, see `ResponseScores.factors`."""
    return (factors[first, 0] * factors[second, 1]).sum(1)


def odds_among(factors: Float[Tensor, "responses 2 dim"]) -> Float[Tensor, "responses responses"]:
    """Log-odds that the response of the row is preferred to that of the column, see `ResponseScores.factors`."""
    odds = factors[:, 0] @ factors[:, 1].T
    # Rounding of the product must not make a response prefer itself.
    return (odds - odds.T) / 2


def _pooled(scores: ResponseScores, responses: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Last hidden state, and mean of the hidden states, of some responses."""
    if scores.tokens is None or scores.tokens.states is None:
        return None, None
    tokens, counts = scores.tokens.of(responses, scores.lengths), scores.lengths[responses]
    assert tokens.states is not None
    sums = tokens.states.new_zeros(len(responses), tokens.states.shape[1]).index_add(0, tokens.response, tokens.states)
    return tokens.states[counts.cumsum(0) - 1], sums / counts[:, None]


def _in_lists(tokens: TokenScores, mask: Tensor) -> TokenScores:
    """Tokens of the responses where the mask is True, counted by place in the lists."""
    places = mask.flatten().nonzero()[:, 0]
    return replace(tokens, response=places[tokens.response])
