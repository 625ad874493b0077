"""How preference models without a closed form are fitted: gradient descent on the rows of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from prefkit.errors import PrefkitError

Network = TypeVar("Network", bound=nn.Module)

Schedule: TypeAlias = Literal["constant", "cosine"]
"""How the learning rate goes on after the warmup: as it is, or down to 0."""


def minimise_by_gradient(
    groups: Sequence[dict[str, Any]],
    loss: Callable[[Tensor], Tensor],
    rows: int,
    *,
    steps: int,
    batch_size: int | None,
    seed: int,
    device: str,
    betas: tuple[float, float] = (0.9, 0.999),
    warmup: float = 0.0,
    schedule: Schedule = "constant",
    clip: float | None = None,
) -> list[float]:
    """AdamW on the mean loss of rows, in batches that go through shuffled passes, or on all rows at once.

    Args:
        groups: parameters and their learning rates, as optimisers take them.
        loss: from the indices of rows to a scalar.
        rows: number of rows.
        steps: updates.
        batch_size: rows an update at most, see `batches`; None for all.
        seed: of the shuffling and of dropout.
        device: where the rows lie.
        betas: of AdamW.
        warmup: share of the updates over which the learning rate rises.
        schedule: how it goes on.
        clip: bound of the norm of the gradient; None for no bound.

    Returns:
        The loss of each update.

    Raises:
        PrefkitError: the loss is not finite in the end.
    """
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0, betas=betas)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at(step, steps, warmup, schedule))
    parameters = [parameter for group in groups for parameter in group["params"]]
    generator = torch.Generator().manual_seed(seed)
    everything = torch.arange(rows, device=device)
    parts = batches(rows, batch_size)

    def drawn() -> Iterator[Tensor]:
        while True:
            if parts == 1:
                yield everything
            else:
                yield from torch.randperm(rows, generator=generator).to(device).tensor_split(parts)

    history = []
    with seeded_region(seed + 1):  # dropout draws from the global generator
        for _, batch in zip(range(steps), drawn(), strict=False):
            optimiser.zero_grad()
            value = loss(batch)
            value.backward()  # type: ignore[no-untyped-call]  # torch's annotation is incomplete
            if clip is not None:
                nn.utils.clip_grad_norm_(parameters, clip)
            optimiser.step()
            rates.step()
            history.append(float(value.detach()))
    if history and not np.isfinite(history[-1]):
        raise PrefkitError("the fit diverged: its loss is not finite; lower learning_rate")
    return history


def batches(rows: int, batch_size: int | None) -> int:
    """Into how many batches a pass is divided: as few as `batch_size` allows, their sizes equal but for one row.

    No row is left out of a pass, and no batch is much smaller than the others.
    """
    return 1 if batch_size is None else math.ceil(rows / batch_size)


def rate_at(step: int, steps: int, warmup: float, schedule: Schedule) -> float:
    """Share of the learning rate at an update.

    Args:
        step: the update, from 0.
        steps: number of updates.
        warmup: share of the updates over which the rate rises.
        schedule: how it goes on.
    """
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def seeded(make: Callable[[], Network], seed: int) -> Network:
    """A network whose weights are fixed by a seed, which leaves the global generator as it was."""
    with seeded_region(seed):
        return make()


@contextmanager
def seeded_region(seed: int) -> Iterator[None]:
    """A region in which the global generators of torch start from a seed; they are put back behind it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
