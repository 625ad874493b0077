"""Objectives: parts put together. One class for each form of data; a named method is a choice of parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prefkit.comparisons import Companion, Comparison
from prefkit.errors import OptionError
from prefkit.objectives.noise import soft_labels
from prefkit.objectives.parts import AnyPart, Part, Stateful
from prefkit.objectives.scores import (
    Companions,
    DemonstrationScores,
    Form,
    LabelScores,
    ListScores,
    PairScores,
    Scores,
    TokenScores,
)
from prefkit.objectives.unpaired import kto_reference_point

S = TypeVar("S", PairScores, ListScores, LabelScores, DemonstrationScores)


class Objective(nn.Module, ABC, Generic[S]):
    """From scores to one loss an example, multiplied by the examples' weights. Nothing is reduced.

    It is a module so that a part that holds state is moved, saved and restored with it.

    Args:
        name: what messages call it.
        parts: what it is composed of, by role.

    Attributes:
        form: what it compares.
        view: the scores that it takes.
        needs: what a run must provide. From the data: "annotators", "strengths", "margins" (a reward model's),
            "ratings", "kl" (mismatched responses). From the scorer: "reference", "tokens", and of single tokens
            "states", "layers", "token_kl", "steps"; "temporal_residual" (the policy's predictions are mixed into its
            inputs); "joint" (prompts of joint comparisons are scored with their responses); "rewards" (scores are a
            reward model's rewards, not log-probabilities); "separate_rewards" (each response has one of its own, and
            no pair is compared directly); "views" (states of two passes with different dropout).
        batch_mean: mean over the batch, for parts that need one; replaced by the mean over all processes where
            there are several.
    """

    form: ClassVar[Form]
    view: ClassVar[type[Any]]

    def __init__(self, name: str, **parts: Any) -> None:
        super().__init__()
        self.name = name
        self.parts = {role: part for role, part in parts.items() if part is not None and part != ()}
        self.batch_mean: Callable[[Tensor], Tensor] = torch.mean
        self._flat: tuple[AnyPart, ...] = tuple(
            part for value in self.parts.values() for part in (value if isinstance(value, tuple) else (value,))
        )
        self.needs: frozenset[str] = frozenset().union(*(part.needs for part in self._flat))
        self.stateful = tuple(part for part in self._flat if isinstance(part, Stateful))
        if "rewards" in self.needs and not self.compares:
            self.needs |= {"separate_rewards"}
        # Parts that stand alone in their role are attributes; a weight that has two names cannot be saved.
        terms = [part for value in self.parts.values() if isinstance(value, tuple) for part in value]
        self.terms = nn.ModuleList([part for part in terms if isinstance(part, nn.Module)])

    @property
    def compares(self) -> bool:
        """Whether the log-odds of a pair will do in the place of a reward of each response."""
        return False

    if TYPE_CHECKING:

        def __call__(self, scores: Scores) -> Float[Tensor, " batch"]:
            """See `forward`."""

    def forward(self, scores: Scores) -> Float[Tensor, " batch"]:
        """The weighted losses.

        Raises:
            OptionError: the scores are of another form, or lack a field that the objective reads.
        """
        if not isinstance(scores, self.view):
            raise OptionError(f"objective '{self.name}' takes {self.view.__name__}, got {type(scores).__name__}")
        losses = self.losses(scores)
        return losses if scores.weights is None else losses * scores.weights

    @abstractmethod
    def losses(self, scores: S) -> Float[Tensor, " batch"]:
        """The losses without the examples' weights."""

    def rewards(self, scores: Scores) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]] | None:
        """Implicit rewards of the better and the worse response, detached, for metrics; None where there are no two."""
        return None

    def figures(self) -> dict[str, Float[Tensor, " batch"]]:
        """What the parts found out about the entries of the last batch, detached, for metrics."""
        return {name: figure for part in self.stateful for name, figure in part.figures.items()}

    def row_figures(self) -> tuple[str, ...]:
        """Names of figures of which the last value of each row of the data is kept and reported."""
        return tuple(name for part in self.stateful for name in part.row_figures)

    def summary(self) -> dict[str, Any]:
        """What the parts learned, by part, for the report of a run."""
        return {part.name: found for part in self.stateful if (found := part.summary())}

    def token_figures(self, tokens: TokenScores, responses: int) -> dict[str, Float[Tensor, " tokens"]]:
        """What the parts make of each token; see `Stateful.token_figures`."""
        return {name: each for part in self.stateful for name, each in part.token_figures(tokens, responses).items()}

    def weight_groups(self) -> list[tuple[Mapping[str, float], list[nn.Parameter]]]:
        """The weights that it trains, in groups that the optimizer treats alike, and how it is to treat them."""
        groups = [(part.group, list(part.parameters())) for part in self.stateful]
        known = {id(weight) for _, weights in groups for weight in weights}
        groups.append(({}, [weight for weight in self.parameters() if id(weight) not in known]))
        return [(options, [weight for weight in weights if weight.requires_grad]) for options, weights in groups]

    def prepare(self, annotators: Sequence[str] = (), total: Callable[[Tensor], Tensor] | None = None) -> None:
        """Learn what the data hold and how tensors are summed over processes, before training."""
        for part in self.stateful:
            part.total = total or part.total
            part.prepare(annotators)

    def equip(self, scorer: object) -> None:
        """Let the parts meet the scorer, once it provides what they need and before anything is encoded."""
        for part in self.stateful:
            part.equip(scorer)

    def advance(self, step: int) -> None:
        """Tell the parts that an update of the model begins; `step` were made before it."""
        for part in self.stateful:
            part.advance(step)

    def after_update(self, pass_ended: bool = False) -> None:
        """Let the parts take in the batches since the last update of the model; see `Stateful.after_update`."""
        for part in self.stateful:
            part.after_update(pass_ended)

    def refuse(self, comparison: Comparison) -> None:
        """Refuse a comparison that a part cannot use.

        Raises:
            RecordError: it lacks what the part needs; names the field.
        """
        for part in self._flat:
            part.refuse(comparison)

    def accompany(self, comparison: Comparison, chosen: int, rejected: int) -> list[tuple[int, Companion]]:
        """Further texts of a pair that are scored with it, each with the place of the part that asks for it."""
        return []

    def read(
        self, part: Any, scores: object, names: dict[str, str] | None = None, leave: tuple[str, ...] = ()
    ) -> list[Tensor]:
        """The fields of the scores that a part takes.

        Args:
            part: the part; one without `takes` reads nothing.
            scores: the scores.
            names: what the scores call a field, where it differs.
            leave: fields that are no fields of the scores.

        Raises:
            OptionError: the scores lack a field.
        """
        tensors = []
        for field in (field for field in getattr(part, "takes", ()) if field not in leave):
            name = names.get(field, field) if names else field
            tensor = getattr(scores, name, None)
            if tensor is None:
                raise OptionError(f"objective '{self.name}' needs {name}, which these {type(scores).__name__} lack")
            tensors.append(tensor)
        return tensors

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{role}={part!r}' for role, part in self.parts.items())})"


class PairObjective(Objective[PairScores]):
    """A loss of pairs: link(reward of chosen - reward of rejected) + regularisers, corrected for noise, weighted, and
    auxiliary terms.

    A noise correction and a soft label act on all of the loss but the auxiliary terms: what depends on which response
    was called better is as uncertain as the label. Auxiliary terms are those that do not depend on it.

    Args:
        reward: reward form, see `rewards`.
        link: from margins, or from the rewards of both sides, and further fields, to losses; see `links`, `sides`.
        noise: correction for wrong labels, see `noise`.
        weights: weight of each pair beyond the one its record carries, see `weights`.
        regularisers: terms to add, see `regularisers`.
        auxiliary: terms to add that do not depend on which response is better, see `auxiliary`.
        name: what messages call it.
    """

    form = "pairs"
    view = PairScores

    def __init__(
        self,
        reward: AnyPart,
        link: AnyPart,
        noise: AnyPart | None = None,
        weights: AnyPart | None = None,
        regularisers: Sequence[AnyPart] = (),
        auxiliary: Sequence[AnyPart] = (),
        name: str = "pairs",
    ) -> None:
        super().__init__(
            name,
            reward=reward,
            link=link,
            noise=noise,
            weights=weights,
            regularisers=tuple(regularisers),
            auxiliary=tuple(auxiliary),
        )
        self.reward, self.link, self.noise, self.weights = reward, link, noise, weights
        self.regularisers, self.auxiliary = tuple(regularisers), tuple(auxiliary)
        if "joint" in self.needs and any(_plain(part).companions for part in self.auxiliary):
            raise OptionError(
                f"objective '{name}': an objective that scores prompts with their responses cannot take auxiliary "
                "terms with texts of their own, whose prompts would be scored, too; use reward: log_ratio"
            )
        self._check_link()

    @property
    def compares(self) -> bool:
        """See `Objective.compares`: of a model's own scores the link needs the difference alone."""
        reward, link = self.parts["reward"], self.parts["link"]
        return reward.name == "score" and "rejected" not in link.takes

    def losses(self, scores: PairScores) -> Float[Tensor, " batch"]:
        """See `Objective.losses`.

        Raises:
            OptionError: the link compares whole batches, and the pairs have weights or soft labels.
        """
        if self._across:
            for name, given in (("soft labels", scores.probabilities), ("weights", scores.weights)):
                if given is not None:
                    raise OptionError(self._sorted(f"{name} do not apply; leave them out of the data"))
        losses = self.pair_loss(scores)
        if self.noise is not None or scores.probabilities is not None:
            self._check_ways(soft=scores.probabilities is not None)
            swapped = self.pair_loss(scores.swapped())
            if scores.probabilities is not None:
                losses, swapped = (
                    soft_labels(losses, swapped, scores.probabilities),
                    soft_labels(swapped, losses, scores.probabilities),
                )
            if self.noise is not None:
                losses = self.noise(losses, swapped, *self.read(self.noise, scores))
        if self.weights is not None:
            losses = losses * self.weights(*self.read(self.weights, scores))
        for place, part in enumerate(self.auxiliary):
            losses = losses + self._auxiliary(place, part, scores)
        for state in self.stateful:
            if (charge := state.charge()) is not None:
                losses = losses + charge
        return losses

    @property
    def accompanied(self) -> bool:
        """Whether further texts are scored with each pair."""
        return any((p.part if isinstance(p, Stateful) else p).companions is not None for p in self.auxiliary)

    def _check_ways(self, soft: bool) -> None:
        """Refuse parts that have to know which response was called better, where that is not one of the two."""
        for part, what in ((self.link, "soft labels" if soft else "a noise correction"), (self.noise, "soft labels")):
            if getattr(part, "one_way", False) and (soft or part is self.link):
                raise OptionError(
                    f"objective '{self.name}': '{getattr(part, 'name', part)}' looks at pairs as they were labelled, "
                    f"and does not go with {what}"
                )

    def accompany(self, comparison: Comparison, chosen: int, rejected: int) -> list[tuple[int, Companion]]:
        """See `Objective.accompany`."""
        return [
            (place, companion)
            for place, part in enumerate(self.auxiliary)
            for companion in part.accompany(comparison, chosen, rejected)
        ]

    def _check_link(self) -> None:
        """Refuse compositions that make no sense with the link."""
        link, reward = _plain(self.link), self.reward
        fits, self._across = getattr(link, "fits", ()), getattr(link, "across", False)
        if fits and (reward.name not in fits or reward.values.get("divergence", "reverse_kl") != "reverse_kl"):
            raise OptionError(
                f"objective '{self.name}': link '{link.name}' adds the reference's log-probabilities back to the "
                f"reward, which must be {' or '.join(fits)} with divergence: reverse_kl, got {reward!r}"
            )
        if self._across and self.weights is not None:
            raise OptionError(self._sorted("weights of single pairs do not apply"))
        if self._across and self.noise is not None and (isinstance(self.noise, nn.Module) or self.noise.takes):
            raise OptionError(
                self._sorted("a noise correction with one flip_rate applies, not one that learns of pairs")
            )

    def _sorted(self, problem: str) -> str:
        return (
            f"objective '{self.name}': link '{self.link.name}' sorts a batch, its losses belong to quantiles, not to "
            f"pairs: {problem}"
        )

    def _auxiliary(self, place: int, part: AnyPart, scores: PairScores) -> Tensor:
        """An auxiliary term, `[batch]`: of the companions it asked for, then of the fields that it takes."""
        fields = self.read(part, scores)
        if _plain(part).companions is None:
            return part(*fields)
        pairs = len(scores.policy_chosen_logps)
        if scores.companions is None and pairs:
            raise OptionError(f"objective '{self.name}' needs companions, which these PairScores lack")
        # No pair of a batch may have any.
        found = scores.companions or ()
        return part(found[place] if place < len(found) else Companions.none(scores), pairs, *fields)

    def pair_loss(self, scores: PairScores) -> Float[Tensor, " batch"]:
        """The loss of the pairs as if every label were right: neither noise, soft labels nor weights."""
        if scores.odds is not None and self.compares:
            rewards: tuple[Tensor, ...] = (scores.odds,)
        else:
            chosen, rejected = self._rewards(scores)
            rewards = (chosen, rejected) if "rejected" in self.link.takes else (chosen - rejected,)
        losses = self.link(*rewards, *self.read(self.link, scores, leave=("chosen", "rejected")))
        for regulariser in self.regularisers:
            losses = losses + regulariser(*self.read(regulariser, scores))
        return losses

    def rewards(self, scores: Scores) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Implicit rewards of chosen and rejected responses, times beta, detached."""
        assert isinstance(scores, PairScores)
        beta = self.link.values.get("beta", 1.0)
        if scores.odds is not None and self.compares:
            # Half of the log-odds each, which is what mean log-odds against both come to.
            half = beta * scores.odds.detach() / 2
            return half, -half
        with torch.no_grad():
            chosen, rejected = self._rewards(scores)
        return beta * chosen.detach(), beta * rejected.detach()

    def _rewards(self, scores: PairScores) -> tuple[Tensor, Tensor]:
        chosen, rejected = (
            self.reward(*self.read(self.reward, scores, names)) for names in (_SIDES["chosen"], _SIDES["rejected"])
        )
        return chosen, rejected


def _plain(part: AnyPart) -> Part:
    """The part that a module was made from, or the part itself."""
    return part.part if isinstance(part, Stateful) else part


_SIDES = {
    side: {
        "policy_logps": f"policy_{side}_logps",
        "ref_logps": f"ref_{side}_logps",
        "lengths": f"{side}_lengths",
        "tokens": f"{side}_tokens",
        "other_lengths": f"{other}_lengths",
        "side": f"{side}_side",
    }
    for side, other in (("chosen", "rejected"), ("rejected", "chosen"))
}


class ListObjective(Objective[ListScores]):
    """A loss of ranked lists.

    Args:
        reward: reward form, see `rewards`.
        ranking: from rewards, ranks and mask to losses, see `listwise`.
        noise: correction for pairs of the list that are ordered wrongly, at one rate; see `noise`.
        name: what messages call it.

    Raises:
        OptionError: a part makes no sense for lists.
    """

    form = "lists"
    view = ListScores

    def __init__(self, reward: AnyPart, ranking: AnyPart, noise: AnyPart | None = None, name: str = "lists") -> None:
        super().__init__(name, reward=reward, ranking=ranking, noise=noise)
        self.reward, self.ranking, self.noise = reward, ranking, noise
        if "other_lengths" in reward.takes:
            raise OptionError(
                f"objective '{name}': reward '{reward.name}' goes by the length of the other response of a pair, and a "
                "response of a list has many others"
            )
        if "side" in reward.takes:
            raise OptionError(
                f"objective '{name}': reward '{reward.name}' treats chosen and rejected responses differently, and "
                "those of a list are neither"
            )
        if noise is not None and not _plain(ranking).pairwise:
            raise OptionError(
                f"objective '{name}': ranking '{ranking.name}' is no mean over pairs, and a rate of wrong labels says "
                "nothing of whole rankings: noise applies to ranking: all_pairs"
            )
        if noise is not None and (isinstance(noise, nn.Module) or noise.takes):
            raise OptionError(
                f"objective '{name}': noise '{noise.name}' learns of single pairs, and a list has one loss: a "
                "correction with one flip_rate applies"
            )

    def losses(self, scores: ListScores) -> Float[Tensor, " batch"]:
        """See `Objective.losses`."""
        rewards = self._rewards(scores)
        losses = self.ranking(rewards, *self.read(self.ranking, scores))
        if self.noise is None:
            return losses
        # All pairs exchanged: the mean over pairs of a correction at one rate is the correction of the means.
        swapped = self.ranking(rewards, *self.read(self.ranking, replace(scores, ranks=-scores.ranks)))
        return self.noise(losses, swapped)

    def rewards(self, scores: Scores) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Implicit rewards of a best-ranked and a worst-ranked response of each list, times beta, detached."""
        assert isinstance(scores, ListScores)
        rewards = self.ranking.values.get("beta", 1.0) * self._rewards(scores).detach()
        best = scores.ranks.masked_fill(~scores.mask, torch.iinfo(scores.ranks.dtype).max).argmin(1, keepdim=True)
        worst = scores.ranks.masked_fill(~scores.mask, -1).argmax(1, keepdim=True)
        return rewards.gather(1, best).squeeze(1), rewards.gather(1, worst).squeeze(1)

    def _rewards(self, scores: ListScores) -> Tensor:
        # Lengths of empty places may be 0; they are never read, but dividing by them would spoil gradients.
        lengths = None if scores.lengths is None else scores.lengths.masked_fill(~scores.mask, 1)
        return self.reward(*self.read(self.reward, replace(scores, lengths=lengths)))


class LabelObjective(Objective[LabelScores]):
    """A loss of single responses judged good or bad.

    Args:
        reward: reward form, see `rewards`.
        utility: from rewards and labels to losses, see `unpaired`; one that needs "kl" takes a reference point,
            estimated from the batch's mismatched responses, between the two.
        name: what messages call it.
    """

    form = "labels"
    view = LabelScores

    def __init__(self, reward: AnyPart, utility: AnyPart, name: str = "labels") -> None:
        super().__init__(name, reward=reward, utility=utility)
        self.reward, self.utility = reward, utility
        self._anchored = "kl" in utility.needs

    def losses(self, scores: LabelScores) -> Float[Tensor, " batch"]:
        """See `Objective.losses`."""
        rewards = self.reward(*self.read(self.reward, scores))
        if not self._anchored:
            return self.utility(rewards, scores.labels)
        others = self.reward(*self.read(self.reward, scores, _OTHERS))
        return self.utility(rewards, kto_reference_point(others, self.batch_mean), scores.labels)


_OTHERS = {"policy_logps": "policy_kl_logps", "ref_logps": "ref_kl_logps"}


class DemonstrationObjective(Objective[DemonstrationScores]):
    """A loss of responses that are to be imitated.

    Args:
        imitation: from scores to losses, see `regularisers`.
        name: what messages call it.
    """

    form = "demonstrations"
    view = DemonstrationScores

    def __init__(self, imitation: AnyPart, name: str = "demonstrations") -> None:
        super().__init__(name, imitation=imitation)
        self.imitation = imitation

    def losses(self, scores: DemonstrationScores) -> Float[Tensor, " batch"]:
        """See `Objective.losses`."""
        return self.imitation(*self.read(self.imitation, scores))
