"""The scorer: what loops, selection and diagnostics ask of a domain.

They know no domain. A domain (language, diffusion, ...) implements `Scorer`; training, checkpoints, the reference
cache and every measurement then work for it unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from prefkit.comparisons import Comparison
from prefkit.objectives.scores import ResponseScores, TokenScores

Encoded = Mapping[str, Any]
"""The responses of one comparison, encoded by a domain: a flat mapping of names to numbers and (nested) lists of
numbers that Arrow can hold. It says everything that scoring needs; the judgement is kept beside it by the caller."""

Inputs = Mapping[str, Tensor]
"""A collated batch as the scorer's forward pass takes it: tensors only, so that it moves between devices and
processes."""


SCORED = frozenset({"tokens", "states", "layers", "token_kl", "steps", "joint"})
"""What objectives need that only a scorer can give; see `Objective.needs`."""


@runtime_checkable
class Scorer(Protocol):
    """How good is each response? A domain's answer, with the model that is being trained inside.

    A scorer is a `torch.nn.Module`: its forward pass takes `Inputs` and gives `ResponseScores` (without the
    reference's), so that DDP and FSDP2 can wrap it. `reference` scores under the frozen reference (a second model,
    or the policy without its adapter).
    """

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        ...

    def provide(self, needs: frozenset[str]) -> None:
        """Give what an objective needs of the scorer from now on, see `SCORED`; called before anything is encoded.

        Raises:
            OptionError: this scorer cannot give it.
        """
        ...

    def encode(self, comparison: Comparison) -> Encoded:
        """Encode the responses of one comparison, once.

        Raises:
            RecordError: the comparison cannot be encoded (empty response, longer than the context, ...).
        """
        ...

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pack encoded comparisons into one forward pass. Responses keep their order: comparison by comparison."""
        ...

    def __call__(self, inputs: Inputs) -> ResponseScores:
        """Score a batch under the policy, with gradients."""
        ...

    def reference(self, inputs: Inputs) -> ResponseScores:
        """Score a batch under the frozen reference, without gradients."""
        ...

    def encoding_key(self) -> str:
        """A digest of everything that decides how comparisons are encoded (tokenizer, template, lengths, ...)."""
        ...

    def refresh_reference(self, *, keep: bool = False) -> None:
        """Make the policy, as it is now, the frozen reference from now on.

        Args:
            keep: only make sure that the reference that there is outlives the training of the policy.
        """
        ...

    def reference_key(self) -> str:
        """A digest of the reference's weights and numeric precision."""
        ...

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the trained model to a folder that the domain's own libraries load.

        Args:
            folder: where to write.
            state: the module's full state, where this process holds only a shard of it.
        """
        ...


def score_all(
    scorer: Scorer, encoded: Iterable[Encoded], *, batch_size: int, reference: bool = False
) -> Iterator[ResponseScores]:
    """Score comparisons without gradients, a batch at a time, in their order.

    Args:
        scorer: scores the responses; put it into evaluation mode first.
        encoded: comparisons as the scorer encoded them.
        batch_size: comparisons a forward pass.
        reference: score under the reference instead of the policy.

    Yields:
        The scores of one batch, on the CPU, in float32.
    """
    forward = scorer.reference if reference else scorer
    rows = iter(encoded)
    while batch := list(islice(rows, batch_size)):
        inputs = {name: tensor.to(scorer.device) for name, tensor in scorer.collate(batch).items()}
        with torch.no_grad():
            scores = forward(inputs)
        tokens = scores.tokens
        yield ResponseScores(
            scores.policy_logps.float().cpu(),
            scores.lengths.cpu(),
            tokens=tokens and TokenScores(tokens.policy_logps.float().cpu(), tokens.response.cpu()),
        )
