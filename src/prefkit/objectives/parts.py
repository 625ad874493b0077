"""Parts: what an objective is composed of, each a pure function under the name by which configurations know it.

A part says which fields of the scores it reads, so that an objective knows what a run must provide, and which options
it takes, so that an option that no part takes is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from jaxtyping import Float
from torch import Tensor, nn

from prefkit.comparisons import Companion, Comparison
from prefkit.objectives.scores import TokenScores
from prefkit.options import Options

NEEDS = {
    "ref_logps": "reference",
    "ref_chosen_logps": "reference",
    "ref_rejected_logps": "reference",
    "policy_kl_logps": "kl",
    "ref_kl_logps": "kl",
    "strengths": "strengths",
    "annotators": "annotators",
    "margins": "margins",
    "ratings": "ratings",
    "tokens": "tokens",
    "chosen_tokens": "tokens",
    "rejected_tokens": "tokens",
    "chosen_views": "views",
    "rejected_views": "views",
}
"""Fields of the scores that are not always there, and what a run must provide to have them."""


def needs_of(fields: Iterable[str]) -> frozenset[str]:
    """What a run must provide for an objective that reads these fields of the scores."""
    return frozenset(NEEDS[field] for field in fields if field in NEEDS)


@dataclass(frozen=True)
class Part:
    """A function of tensors with its options filled in.

    Args:
        name: how configurations call it.
        function: takes tensors by position and options by keyword, and gives a tensor; or a `Stateful` class.
        takes: fields of the scores that it reads, in the order of its arguments.
        options: the options it takes, typed.
        values: the values of the options.
        requires: what a run must provide besides what the fields imply; see `Objective.needs`.
        companions: makes further texts of a pair that are scored with it; takes the part's options by keyword.
        across: the loss of an entry depends on the others of its batch.
        fits: names of the rewards that a link can be composed with; any, if there are none.
        check: raises a `RecordError` for a comparison that the part cannot use; takes the part's options by keyword.
        pairwise: a ranking's loss is a mean over pairs, each of which can be exchanged.
        one_way: it looks at pairs as they were labelled; see `Stateful`.
    """

    name: str
    function: Callable[..., Any]
    takes: tuple[str, ...] = ()
    options: type[Options] = Options
    values: Mapping[str, Any] = field(default_factory=dict)
    requires: frozenset[str] = frozenset()
    companions: Callable[..., Sequence[Companion]] | None = None
    across: bool = False
    fits: tuple[str, ...] = ()
    check: Callable[..., None] | None = None
    pairwise: bool = False
    one_way: bool = False

    def __call__(self, *tensors: Any) -> Tensor:
        """Apply the function."""
        result: Tensor = self.function(*tensors, **self.values)
        return result

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.values.items())
        return f"{self.name}({values})" if values else self.name

    @property
    def needs(self) -> frozenset[str]:
        """What a run must provide."""
        return self.requires | needs_of(self.takes)

    def accompany(self, comparison: Comparison, chosen: int, rejected: int) -> Sequence[Companion]:
        """The further texts of a pair that are scored with it.

        Args:
            comparison: what was compared.
            chosen: place of the chosen response.
            rejected: place of the rejected one.

        Raises:
            RecordError: the comparison lacks what they are made of.
        """
        return () if self.companions is None else self.companions(comparison, chosen, rejected, **self.values)

    def refuse(self, comparison: Comparison) -> None:
        """Refuse a comparison that the part cannot use.

        Raises:
            RecordError: it lacks what the part needs; names the field.
        """
        if self.check is not None:
            self.check(comparison, **self.values)

    def made(self) -> Part | Stateful:
        """The part as an objective holds it: itself, or a module where its function is one."""
        if isinstance(self.function, type) and issubclass(self.function, Stateful):
            module = self.function(**self.values)
            module.part = self
            return module
        return self

    def set(self, values: Mapping[str, Any], where: str) -> Self:
        """The part with its options set.

        Args:
            values: plain values, as read from a configuration; options that are not named take their defaults.
            where: dotted path in the configuration, used in messages.

        Raises:
            OptionError: an option is unknown or out of range.
        """
        return replace(self, values=self.options.parse(values, where).model_dump())


def _alone(tensor: Tensor) -> Tensor:
    """The sum over all processes where there is one."""
    return tensor


class Stateful(nn.Module):
    """A part that holds state or weights: it is moved, trained, saved and restored with its objective.

    A subclass takes the part's options in its constructor and the part's fields in `forward`. It learns from batches
    only in training mode. What an update of the model is to change in it waits for `after_update`: then it does not
    matter how the update's batch was spread over processes and accumulated steps.

    Attributes:
        part: what it was made from.
        total: sum of a tensor over all processes; replaced where there are several.
        figures: what it found out about the entries of the last batch, `[batch]` each, for metrics.
        row_figures: names of figures of which the last value of each row of the data is kept and reported.
        one_way: it looks at pairs as they were labelled, so soft labels mean nothing to it, and, to a link, noise
            corrections neither.
        group: how the optimizer treats its weights ("lr", "weight_decay"), where that differs from the model's.
    """

    part: Part
    group: Mapping[str, float] = {}
    row_figures: tuple[str, ...] = ()
    one_way: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.total: Callable[[Tensor], Tensor] = _alone
        self.figures: dict[str, Tensor] = {}

    def prepare(self, annotators: Sequence[str]) -> None:
        """Learn what the data hold, before training.

        Args:
            annotators: names of the annotators in the order of their indices; empty if none were asked for.
        """

    def equip(self, scorer: object) -> None:
        """Meet the scorer, before anything is encoded: learn sizes, make weights, tell it how to give what is needed.

        Args:
            scorer: gives what the part needs; see `prefkit.objectives.scorer`.

        Raises:
            OptionError: it lacks what the part asks for.
        """

    def advance(self, step: int) -> None:
        """An update of the model begins.

        Args:
            step: updates before it, those of a run that was resumed included.
        """

    def after_update(self, pass_ended: bool) -> None:
        """Take in the batches since the last update of the model; all processes call it after each.

        Args:
            pass_ended: the update was the last of a pass over the data.
        """

    def charge(self) -> Tensor | None:
        """What its own state costs each entry of the last batch, `[batch]`, added to the loss; None for nothing."""
        return None

    def summary(self) -> Mapping[str, Any]:
        """What it learned, as JSON can hold it, for the report of a run."""
        return {}

    def token_figures(self, tokens: TokenScores, responses: int) -> Mapping[str, Float[Tensor, " tokens"]]:
        """What it makes of each token, to be looked at in the report of a run; nothing by default.

        Args:
            tokens: with everything that the part needs.
            responses: how many responses they belong to.
        """
        return {}

    @property
    def name(self) -> str:
        """See `Part`."""
        return self.part.name

    @property
    def takes(self) -> tuple[str, ...]:
        """See `Part`; a subclass of which an option decides what it reads says so here."""
        return self.part.takes

    @property
    def values(self) -> Mapping[str, Any]:
        """See `Part`."""
        return self.part.values

    @property
    def needs(self) -> frozenset[str]:
        """See `Part`."""
        return self.part.requires | needs_of(self.takes)

    def accompany(self, comparison: Comparison, chosen: int, rejected: int) -> Sequence[Companion]:
        """See `Part`."""
        return self.part.accompany(comparison, chosen, rejected)

    def refuse(self, comparison: Comparison) -> None:
        """See `Part`."""
        self.part.refuse(comparison)

    def __repr__(self) -> str:
        return repr(self.part)


AnyPart = Part | Stateful
"""A part as an objective holds it."""


def catalogue(*parts: Part) -> dict[str, Part]:
    """Parts of one kind by name."""
    return {part.name: part for part in parts}
