"""Parts: what an objective is composed of, each a pure function under the name by which configurations know it.

A part says which fields of the scores it reads, so that an objective knows what a run must provide, and which options
it takes, so that an option that no part takes is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from torch import Tensor

from prefkit.options import Options

NEEDS = {
    "ref_logps": "reference",
    "ref_chosen_logps": "reference",
    "ref_rejected_logps": "reference",
    "policy_kl_logps": "kl",
    "ref_kl_logps": "kl",
    "strengths": "strengths",
    "annotators": "annotators",
    "tokens": "tokens",
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
    """

    name: str
    function: Callable[..., Tensor]
    takes: tuple[str, ...] = ()
    options: type[Options] = Options
    values: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *tensors: Any) -> Tensor:
        """Apply the function."""
        return self.function(*tensors, **self.values)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.values.items())
        return f"{self.name}({values})" if values else self.name

    @property
    def needs(self) -> frozenset[str]:
        """What a run must provide."""
        return frozenset(NEEDS[field] for field in self.takes if field in NEEDS)

    def set(self, values: Mapping[str, Any], where: str) -> Self:
        """The part with its options set.

        Args:
            values: plain values, as read from a configuration; options that are not named take their defaults.
            where: dotted path in the configuration, used in messages.

        Raises:
            OptionError: an option is unknown or out of range.
        """
        return replace(self, values=self.options.parse(values, where).model_dump())


def catalogue(*parts: Part) -> dict[str, Part]:
    """Parts of one kind by name."""
    return {part.name: part for part in parts}
