"""The few things that the processes of one run say to each other; all of them do nothing in a single process."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from prefkit.errors import PrefkitError

T = TypeVar("T")


def count() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def device() -> torch.device:
    """Where this process computes fastest: its accelerator, or else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    # A run's processes have not met yet when its first pictures are drawn; the launcher has said who is who.
    return torch.device("cpu") if found is None else torch.device(found.type, int(os.environ.get("LOCAL_RANK", 0)))


def leave_at_exit() -> None:
    """Part from the other processes before the interpreter ends.

    Otherwise a thread of the group can outlive it, which aborts the process now and then; the launcher then ends the
    other processes, too, whatever they are still writing.
    """
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def wait() -> None:
    """Go on when all processes have come here."""
    if count() > 1:
        dist.barrier()


def in_first(work: Callable[[], T]) -> T:
    """Do something in the first process only, and give its result to all.

    Raises:
        PrefkitError: the first process raised it; all do.
    """
    if count() == 1:
        return work()
    box: list[Any] = [None]
    if rank() == 0:
        try:
            box[0] = work()
        except PrefkitError as error:
            box[0] = error
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], PrefkitError):
        raise box[0]
    result: T = box[0]
    return result


def total(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes; gradients flow."""
    if count() == 1:
        return tensor
    summed: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]  # torch has no types here
    return summed


class _Sum(torch.autograd.Function):
    """Every process's value goes into every process's sum, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone()
        dist.all_reduce(summed)
        return summed


def mean(values: Tensor) -> Tensor:
    """The mean over the entries of all processes, which may hold different numbers of them."""
    size = torch.tensor(float(values.numel()), device=values.device)
    return total(values.sum()) / total(size)
