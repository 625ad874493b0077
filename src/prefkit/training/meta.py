"""Meta-learning in the loop (MetaRM): gradients are taken where the responses of a policy lie further apart.

Before an update the weights go a step up the difference between the rewards of unlabelled responses; the labelled pairs
are scored there; and the gradient that they have there moves the weights from where they were. That is
`prefkit.objectives.meta_step` of first order, with the Trainer's optimizer, schedule and clipping for the second half.

Source: Wang et al. 2024, Secrets of RLHF in Large Language Models Part II (arXiv 2401.06080), section 4, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from prefkit.comparisons import Comparison
from prefkit.errors import PrefkitError, RecordError
from prefkit.objectives import Encoded, Scorer, encode_all, metarm_difference
from prefkit.objectives.meta import Normaliser
from prefkit.options import Options


class MetaOptions(Options):
    """How far, and on how much, a detour goes."""

    eta: float = Field(1e-3, ge=0, description="length of the step up the difference of rewards; 0 trains without it")
    batch_size: int = Field(4, ge=1, description="prompts whose responses a step looks at")
    normaliser: Normaliser = Field("k_squared", description="constant of the difference, see `metarm_difference`")


class MetaLearning:
    """The detour of each update.

    Args:
        comparisons: two or more responses to each prompt, such as `prefkit sample --candidates` writes; what is said
            about them is not looked at.
        options: how far it goes.
        seed: of the choice of prompts.
    """

    def __init__(self, comparisons: Iterable[Comparison], options: MetaOptions, *, seed: int = 0) -> None:
        self._comparisons, self._options, self._seed = comparisons, options, seed
        self._kept: list[tuple[nn.Parameter, Tensor]] = []

    def prepare(self, scorer: Scorer) -> list[RecordError]:
        """Encode the responses.

        Args:
            scorer: a reward model.

        Returns:
            What was set aside.

        Raises:
            PrefkitError: no comparison can be used.
        """
        aside: list[RecordError] = []
        self._collate = scorer.collate
        self._encoded: list[tuple[Encoded, int]] = []
        for comparison, encoded in encode_all(scorer, self._comparisons, aside):
            if (count := len(comparison.responses)) > 1:
                self._encoded.append((encoded, count))
                continue
            problem = "a difference of rewards needs at least 2 responses"
            aside.append(RecordError(problem, field="responses", source=comparison.source, line=comparison.line))
        if not self._encoded:
            first = f"; the first problem: {aside[0]}" if aside else ""
            raise PrefkitError(f"meta.data: no comparison can be used{first}")
        return aside

    def leave(self, model: nn.Module, step: int) -> Tensor:
        """Move the weights up the difference.

        Args:
            model: the scorer, or what DDP or FSDP2 made of it: then all processes call this, and go the same way.
            step: of the training, which decides the prompts.

        Returns:
            The difference, before the step.
        """
        if self._kept:
            raise PrefkitError("the weights have left already")
        rng = np.random.default_rng([self._seed, step])
        chosen = rng.permutation(len(self._encoded))[: self._options.batch_size]
        difference = self._difference(model, [self._encoded[place] for place in chosen])
        difference.backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    self._kept.append((weight, weight.detach().clone()))
                    weight.add_(weight.grad, alpha=self._options.eta)
                    weight.grad = None
        return difference.detach()

    def come_back(self) -> None:
        """Put the weights back; their gradients stay."""
        with torch.no_grad():
            for weight, kept in self._kept:
                weight.copy_(kept)
        self._kept = []

    def _difference(self, model: nn.Module, chosen: Sequence[tuple[Encoded, int]]) -> Tensor:
        inputs = self._collate([encoded for encoded, _ in chosen])
        device = next(model.parameters()).device
        rewards = model({name: tensor.to(device) for name, tensor in inputs.items()}).policy_logps
        parts = torch.split(rewards, [count for _, count in chosen])
        each = [metarm_difference(part[None], normaliser=self._options.normaliser) for part in parts]
        return torch.cat(each).mean()
