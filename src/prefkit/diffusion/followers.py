"""Copies of a model in training that follow it, and what of them a checkpoint has to hold."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def follower(model: nn.Module) -> nn.Module:
    """A frozen copy of a model, in evaluation mode."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def state_of(copies: Mapping[str, nn.Module], names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of several copies of one model, each under the name of its copy.

    Args:
        copies: by name.
        names: which tensors, see `prefkit.objectives.moving`.
    """
    found, kept = {}, list(names)
    for title, each in copies.items():
        state = each.state_dict()
        found.update({f"{title} {name}": state[name] for name in kept})
    return found


@torch.no_grad()
def restore(copies: Mapping[str, nn.Module], state: Mapping[str, Tensor]) -> None:
    """Give copies the tensors that `state_of` took from them."""
    for title, each in copies.items():
        start = f"{title} "
        own = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
        each.load_state_dict(own, strict=False)
