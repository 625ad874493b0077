"""Attention over a packed row: every response sees its prompt and itself, never another group or a sibling response.

`register` makes it an attention implementation of transformers under the name `IMPLEMENTATION`. A forward pass that
carries a `Layout` attends by groups; any other (generation, say) is the ordinary scaled-dot-product attention.
Sliding windows are taken from positions, not from places in the row, so they are exact as well.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prefkit.language.packing import Layout, Span

IMPLEMENTATION = "prefkit_packed"

# Arguments that change the scores in ways that the packed kernels do not compute (Gemma 2's soft cap, sinks, biases).
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")

# Responses of at least this many tokens attend one by one: the work saved outweighs the extra kernel calls (measured
# on CPU).
_LONG_RESPONSE = 128


class UnsupportedAttentionError(Exception):
    """The model's attention does something that cannot be shared between responses."""


def register() -> None:
    """Make the packed attention known to transformers; calling it again changes nothing."""
    AttentionInterface.register(IMPLEMENTATION, packed_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads row dim"],
    key: Float[Tensor, "1 kv_heads row dim"],
    value: Float[Tensor, "1 kv_heads row dim"],
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "1 row heads dim"], None]:
    """Attention of a packed row; the signature is that of transformers' attention interface.

    Raises:
        UnsupportedAttentionError: the layer asks for something that the packed kernels do not compute.
    """
    if layout is None:
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out
    unsupported = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if unsupported or not getattr(module, "is_causal", True):
        raise UnsupportedAttentionError(", ".join(unsupported) or "attention that is not causal")
    if query.is_cuda and not dropout and query.shape[-1] >= 16:  # what FlexAttention can do
        mixed = _flex(query, key, value, layout, scaling, sliding_window)
    else:
        groups = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        # The CPU's half-precision kernel is compiled anew for each length that occurs, and is no faster than float32.
        dtype = torch.float32 if query.device.type == "cpu" else query.dtype
        mixed = _by_groups(query.to(dtype), key.to(dtype), value.to(dtype), layout, dropout, scaling, sliding_window)
    return mixed.to(query.dtype).transpose(1, 2), None


def _by_groups(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float, scaling: float | None, window: int | None
) -> Tensor:
    """Two or more dense kernels a group: the prompt, then its responses together, or one by one when they are long."""
    parts: list[Tensor] = []
    padding = query.shape[2] - layout.spans[-1].end
    sizes = [*(span.end - span.start for span in layout.spans), padding]

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
        parts.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
            )
        )

    def mask(span: Span, responses: tuple[int, ...]) -> Tensor:
        # A window at least as long as the sequence hides nothing.
        reach = window if window is not None and window < span.prompt + max(responses, default=0) else None
        memo = (span.prompt, responses, reach)
        if memo not in layout.memo:
            layout.memo[memo] = _mask(*memo, query.device)
        found: Tensor = layout.memo[memo]
        return found

    # One split of the row, not a slice a group: the gradient of a slice is as long as what it was cut from.
    groups = zip(*(torch.split(tensor, sizes, dim=2)[:-1] for tensor in (query, key, value)), strict=True)
    for span, (q, k, v) in zip(layout.spans, groups, strict=True):
        long = max(span.responses) >= _LONG_RESPONSE
        lengths = [span.prompt, *(span.responses if long else [sum(span.responses)])]
        own_q, own_k, own_v = (torch.split(tensor, lengths, dim=2) for tensor in (q, k, v))
        windowed = window is not None and window < span.prompt
        attend(own_q[0], own_k[0], own_v[0], mask(span, ()) if windowed else None)
        if not long:
            if span.end > span.split:
                attend(own_q[1], k, v, mask(span, span.responses))
            continue
        for length, rq, rk, rv in zip(span.responses, own_q[1:], own_k[1:], own_v[1:], strict=True):
            if length:
                keys, values = torch.cat([own_k[0], rk], dim=2), torch.cat([own_v[0], rv], dim=2)
                attend(rq, keys, values, mask(span, (length,)))
    parts.append(query.new_zeros(*query.shape[:2], padding, value.shape[3]))
    return torch.cat(parts, dim=2)


def _mask(prompt: int, responses: tuple[int, ...], window: int | None, device: torch.device) -> Bool[Tensor, "q whole"]:
    """Which tokens of a group its response tokens see, or its prompt tokens if no responses are given."""
    layout = Layout((Span(0, prompt, responses),))
    _, owner = layout.owners(device)
    position = torch.tensor(layout.positions(), device=device)
    first = prompt if responses else 0
    distance = position[first:, None] - position[None, :]
    seen = (distance >= 0) & ((owner[None, :] == -1) | (owner[first:, None] == owner[None, :]))
    return seen if window is None else seen & (distance < window)


def _flex(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, window: int | None
) -> Tensor:
    """One block-sparse kernel for the whole row (CUDA)."""
    from torch.nn.attention.flex_attention import flex_attention

    if window not in layout.memo:
        layout.memo[window] = block_mask(layout, query.shape[2], window, query.device)
    mixed: Tensor = _compiled(flex_attention)(
        query,
        key,
        value,
        block_mask=layout.memo[window],
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed


@lru_cache(maxsize=1)
def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=True)


def block_mask(layout: Layout, row: int, window: int | None, device: torch.device) -> Any:
    """FlexAttention's block mask of a row of so many tokens."""
    from torch.nn.attention.flex_attention import create_block_mask

    group, owner = layout.owners(device)
    position = torch.tensor(layout.positions(), device=device)
    # Padding is a group of its own.
    group, owner, position = (F.pad(tensor, (0, row - len(tensor)), value=-1) for tensor in (group, owner, position))

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        distance = position[q] - position[k]
        seen = (group[q] == group[k]) & ((owner[k] == -1) | (owner[q] == owner[k])) & (distance >= 0)
        return seen if window is None else seen & (distance < window)

    return create_block_mask(sees, None, None, row, row, device=str(device))
