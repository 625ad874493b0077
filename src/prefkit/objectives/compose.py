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
from prefkit.objectives.parts import AnyPart, Stateful
from prefkit.objectives.scores import (
    Companions,
    DemonstrationScores,
    Form,
    LabelScores,
    ListScores,
    PairScores,
    Scores,
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
            inputs); "joint" (prompts of joint comparisons are scored with their
            responses).
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
        flat = [part for value in self.parts.values() for part in (value if isinstance(value, tuple) else (value,))]
        self.needs: frozenset[str] = frozenset().union(*(part.needs for part in flat))
        self.stateful = tuple(part for part in flat if isinstance(part, Stateful))
        # A part in a role of its own is a module of the objective by being its attribute; one in a list is not.
        listed = [part for value in self.parts.values() if isinstance(value, tuple) for part in value]
        self.terms = nn.ModuleList([part for part in listed if isinstance(part, Stateful)])

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

    def accompany(self, comparison: Comparison, chosen: int, rejected: int) -> list[tuple[int, Companion]]:
        """Further texts of a pair that are scored with it, each with the place of the part that asks for it."""
        return []

    def read(self, part: Any, scores: object, names: dict[str, str] | None = None) -> list[Tensor]:
        """The fields of the scores that a part takes.

        Args:
            part: the part; one without `takes` reads nothing.
            scores: the scores.
            names: what the scores call a field, where it differs.

        Raises:
            OptionError: the scores lack a field.
        """
        tensors = []
        for field in getattr(part, "takes", ()):
            name = names.get(field, field) if names else field
            tensor = getattr(scores, name)
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
        link: from margins, or from the rewards of both sides, to losses, see `links`.
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

    def losses(self, scores: PairScores) -> Float[Tensor, " batch"]:
        """See `Objective.losses`."""
        losses = self.pair_loss(scores)
        if self.noise is not None or scores.probabilities is not None:
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

    def accompany(self, comparison: Comparison, chosen: int, rejected: int) -> list[tuple[int, Companion]]:
        """See `Objective.accompany`."""
        return [
            (place, companion)
            for place, part in enumerate(self.auxiliary)
            for companion in part.accompany(comparison, chosen, rejected)
        ]

    def _auxiliary(self, place: int, part: AnyPart, scores: PairScores) -> Tensor:
        """An auxiliary term, `[batch]`: of the companions it asked for, then of the fields that it takes."""
        fields = self.read(part, scores)
        if (part.part if isinstance(part, Stateful) else part).companions is None:
            return part(*fields)
        pairs = len(scores.policy_chosen_logps)
        if scores.companions is None and pairs:
            raise OptionError(f"objective '{self.name}' needs companions, which these PairScores lack")
        # No pair of this batch may have any.
        given = scores.companions or ()
        return part(given[place] if place < len(given) else _none(scores), pairs, *fields)

    def pair_loss(self, scores: PairScores) -> Float[Tensor, " batch"]:
        """The loss of the pairs as if every label were right: neither noise, soft labels nor weights."""
        chosen, rejected = self._rewards(scores)
        losses = self.link(chosen, rejected) if "rejected" in self.link.takes else self.link(chosen - rejected)
        for regulariser in self.regularisers:
            losses = losses + regulariser(*self.read(regulariser, scores))
        return losses

    def rewards(self, scores: Scores) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Implicit rewards of chosen and rejected responses, times beta, detached."""
        assert isinstance(scores, PairScores)
        beta = self.link.values.get("beta", 1.0)
        with torch.no_grad():
            chosen, rejected = self._rewards(scores)
        return beta * chosen.detach(), beta * rejected.detach()

    def _rewards(self, scores: PairScores) -> tuple[Tensor, Tensor]:
        chosen, rejected = (
            self.reward(*self.read(self.reward, scores, names)) for names in (_SIDES["chosen"], _SIDES["rejected"])
        )
        return chosen, rejected


def _none(scores: PairScores) -> Companions:
    nothing = scores.policy_chosen_logps.detach()[:0]
    return Companions(nothing, nothing.long(), nothing.long(), nothing.long())


_SIDES = {
    side: {
        "policy_logps": f"policy_{side}_logps",
        "ref_logps": f"ref_{side}_logps",
        "lengths": f"{side}_lengths",
        "tokens": f"{side}_tokens",
        "side": f"{side}_side",
    }
    for side in ("chosen", "rejected")
}


class ListObjective(Objective[ListScores]):
    """A loss of ranked lists.

    Args:
        reward: reward form, see `rewards`.
        ranking: from rewards, ranks and mask to losses, see `listwise`.
        name: what messages call it.
    """

    form = "lists"
    view = ListScores

    def __init__(self, reward: AnyPart, ranking: AnyPart, name: str = "lists") -> None:
        super().__init__(name, reward=reward, ranking=ranking)
        self.reward, self.ranking = reward, ranking

    def losses(self, scores: ListScores) -> Float[Tensor, " batch"]:
        """See `Objective.losses`."""
        return self.ranking(self._rewards(scores), *self.read(self.ranking, scores))

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
    """A loss of single responses judged good or bad, against a reference point estimated from the batch.

    Args:
        reward: reward form, see `rewards`.
        utility: from rewards, reference point and labels to losses, see `unpaired`.
        name: what messages call it.
    """

    form = "labels"
    view = LabelScores

    def __init__(self, reward: AnyPart, utility: AnyPart, name: str = "labels") -> None:
        super().__init__(name, reward=reward, utility=utility)
        self.reward, self.utility = reward, utility
        self.needs |= {"kl"}

    def losses(self, scores: LabelScores) -> Float[Tensor, " batch"]:
        """See `Objective.losses`."""
        rewards = self.reward(*self.read(self.reward, scores))
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
