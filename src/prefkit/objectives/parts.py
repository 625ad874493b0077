"""Parts: what an objective is composed of, each a pure function under the name by which configurations know it.

A part says which fields of the scores it reads, so that an objective knows what a run must provide, and which options
it takes, so that an option that no part takes is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from torch import Tensor, nn

from prefkit.comparisons import Companion, Comparison
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
}
"""Fields of the scores that are not always there, and what a run must provide to have them."""


@dataclass(frozen=True)
class Part:
    """A function of tensors with its options filled in.

    Args:
        name: how configurations call it.
        function: takes tensors by position and options by keyword.
        takes: fields of the scores that it reads, in the order of its arguments.
        options: the options it takes, typed.
        values: the values of the options.
        requires: what a run must provide besides what the fields imply; see `Objective.needs`.
        companions: makes further texts of a pair that are scored with it; takes the part's options by keyword.
        check: raises a `RecordError` for a comparison that the part cannot use; takes the part's options by keyword.
    """

    name: str
    function: Callable[..., Any]
    takes: tuple[str, ...] = ()
    options: type[Options] = Options
    values: Mapping[str, Any] = field(default_factory=dict)
    requires: frozenset[str] = frozenset()
    companions: Callable[..., Sequence[Companion]] | None = None
    check: Callable[..., None] | None = None

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
        return self.requires | {NEEDS[field] for field in self.takes if field in NEEDS}

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


def _of_one_process(tensor: Tensor) -> Tensor:
    """The sum over processes where there is one. A function with a name, so that objectives can be pickled."""
    return tensor


class Stateful(nn.Module):
    """A part that holds state or weights: it is moved, trained, saved and restored with its objective.

    A subclass takes the part's options in its constructor and the part's fields in `forward`.

    Attributes:
        part: what it was made from.
        total: sum of a tensor over all processes; replaced where there are several.
        figures: what it found out about the entries of the last batch, `[batch]` each, for metrics.
        row_figures: names of figures of which the last value of each row of the data is kept and reported.
    """

    part: Part
    row_figures: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.total: Callable[[Tensor], Tensor] = _of_one_process
        self.figures: dict[str, Tensor] = {}

    def prepare(self, annotators: Sequence[str]) -> None:
        """Learn what the data hold, before training.

        Args:
            annotators: names of the annotators in the order of their indices; empty if none were asked for.
        """

    def summary(self) -> Mapping[str, Any]:
        """What it learned, as JSON can hold it, for the report of a run."""
        return {}

    @property
    def name(self) -> str:
        """See `Part`."""
        return self.part.name

    @property
    def takes(self) -> tuple[str, ...]:
        """See `Part`."""
        return self.part.takes

    @property
    def values(self) -> Mapping[str, Any]:
        """See `Part`."""
        return self.part.values

    @property
    def needs(self) -> frozenset[str]:
        """See `Part`."""
        return self.part.needs

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
