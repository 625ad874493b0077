"""Memory while a model is trained: what would be given back and fetched again in every step is kept."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
from collections.abc import Iterator

import torch

# Parameters of glibc's mallopt, and a value near the largest that it takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_GIBIBYTE = 1 << 30


@contextlib.contextmanager
def steady_memory(device: torch.device) -> Iterator[None]:
    """Spare a training loop two costs that have nothing to do with training.

    accelerate collects garbage when training begins and ends, which takes a quarter of a second each for the objects
    of all imported libraries: what exists already is taken out of the collector's sight for as long. And on a CPU the
    memory of a step's tensors goes back to the system at the end of the step, so that the next one touches new pages
    only (a sixth of the time of a step was seen to go there): from now on the process keeps it.

    Args:
        device: where the model is trained.
    """
    if device.type == "cpu":
        _keep_freed_memory()
    if gc.get_freeze_count():  # somebody else's, or an outer one
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _keep_freed_memory() -> None:
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
        mallopt(parameter, _GIBIBYTE)
