"""The last layer, computed only for the tokens whose state is read.

The output layer reads the last token of a prompt and the tokens of its responses. The other prompt tokens matter to the
last layer by their keys and values alone, so it need not compute their attention, nor their feed-forward part, which
is most of a layer's work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prefkit.language.attention import KeysAndValues, KeysOnly, LastLayer, UnsupportedAttentionError
from prefkit.language.packing import ROW_MULTIPLE, Layout


def layers_of(decoder: nn.Module, count: int) -> nn.ModuleList | None:
    """A decoder's layers; None if they are not in one list of that length."""
    lists = [module for module in decoder.children() if isinstance(module, nn.ModuleList) and len(module) == count]
    return lists[0] if len(lists) == 1 else None


def trim(layer: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
    """Make a layer compute only what is read when it is given a `Layout`; the other places of its output are 0.

    Calls without a layout are untouched. Whether a layer can be trimmed shows in its numbers: the caller compares them.
    """
    return (
        layer.register_forward_pre_hook(_shorten, with_kwargs=True),
        layer.register_forward_hook(_lengthen, with_kwargs=True),
    )


def _shorten(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    layout = kwargs.get("layout")
    if not isinstance(layout, Layout):
        return None
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    row, places = hidden.shape[1], layout.on(hidden.device)
    count = len(places.unread)
    if not count:
        return None  # every place is read where each prompt is one token
    unread, read = (_padded(where, row) for where in (places.unread, places.read))
    try:
        # The layer's own path from hidden states to keys and values: norms, projections, adapters, rotations.
        layer.forward(*_at(unread, args, row), **{**_at(unread, kwargs, row), "layout": KeysOnly()})
    except KeysAndValues as found:
        known = LastLayer(layout, row, found.key[:, :, :count], found.value[:, :, :count])
        return _at(read, args, row), {**_at(read, kwargs, row), "layout": known}
    raise UnsupportedAttentionError("the layer does not attend through the attention interface")


def _lengthen(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    known = kwargs.get("layout")
    if not isinstance(known, LastLayer):
        return None
    states: Tensor = output[0] if isinstance(output, tuple) else output
    places = known.layout.on(states.device).read
    whole = states.new_zeros(1, known.row, states.shape[2]).index_copy(1, places, states[:, : len(places)])
    return (whole, *output[1:]) if isinstance(output, tuple) else whole


def _padded(places: Tensor, row: int) -> Tensor:
    # Padded as rows are, and for the same reason.
    return F.pad(places, (0, -len(places) % ROW_MULTIPLE), value=row - 1)


def _at(places: Tensor, value: Any, row: int) -> Any:
    """What a layer is given, at these places of the row: hidden states, positions, rotations."""
    if isinstance(value, Tensor):
        return value.index_select(1, places) if value.ndim > 1 and value.shape[:2] == (1, row) else value
    if isinstance(value, tuple):
        return tuple(_at(places, inner, row) for inner in value)
    if isinstance(value, Mapping):
        return {name: _at(places, inner, row) for name, inner in value.items()}
    return value
