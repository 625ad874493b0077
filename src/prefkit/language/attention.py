"""Attention over a packed row: every response sees its prompt and itself, never another group or a sibling response.

`register` makes it an attention implementation of transformers under the name `IMPLEMENTATION`. A forward pass that
carries a `Layout` attends by groups; any other (generation, say) is the ordinary scaled-dot-product attention.
Sliding windows are taken from positions, not from places in the row, so they are exact as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prefkit.language import varlen
from prefkit.language.packing import Layout, Span, sent

IMPLEMENTATION = "prefkit_packed"

# Arguments that change the scores in ways that the packed kernels do not compute (Gemma 2's soft cap, sinks, biases).
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")

# Attending to all responses of a group together takes one kernel, which also computes what siblings would see of each
# other and throws it away. One more kernel pays from so many such pairs of tokens (measured on a CPU).
_WASTED_PAIRS = 16_000


@dataclass(frozen=True)
class KeysOnly:
    """In the place of a layout: the tokens ask nothing, only their keys and values are wanted."""


@dataclass(frozen=True)
class LastLayer:
    """In the place of a layout: the row holds the tokens that are read (`Layout.read`), and here are the others.

    Args:
        layout: the layout of the whole row.
        row: tokens of the whole row.
        key: keys of the tokens that are not read.
        value: their values.
    """

    layout: Layout
    row: int
    key: Float[Tensor, "1 kv_heads unread dim"]
    value: Float[Tensor, "1 kv_heads unread dim"]


class KeysAndValues(Exception):  # no error: it ends a layer at the point from which nothing is wanted
    """Keys and values of tokens that ask nothing; raised by the attention of a layer that was given `KeysOnly`."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.key, self.value = key, value


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
    layout: Layout | KeysOnly | LastLayer | None = None,
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
    if isinstance(layout, KeysOnly):
        raise KeysAndValues(key, value)
    last = layout if isinstance(layout, LastLayer) else None
    row = layout.layout if isinstance(layout, LastLayer) else layout
    dtype = _dtype(query)
    asking, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if last is not None:
        last = replace(last, key=last.key.to(dtype), value=last.value.to(dtype))
    # Autocast would bring the kernels' inputs to half precision again, or not at all.
    with torch.autocast(query.device.type, enabled=False):
        if not dropout and varlen.applies(asking):
            if last is not None:
                key, value = torch.cat([last.key, key], dim=2), torch.cat([last.value, value], dim=2)
            how: dict[str, Any] = {"read_only": last is not None, "scaling": scaling, "window": sliding_window}
            mixed = varlen.attend(asking, key, value, row, **how)
        elif query.is_cuda and not dropout and query.shape[-1] >= 16:  # what FlexAttention can do
            mixed = _flex(asking, key, value, row, last, scaling, sliding_window)
        else:
            heads = query.shape[1]
            if last is not None:
                last = replace(last, key=_for_groups(last.key, heads), value=_for_groups(last.value, heads))
            key, value = _for_groups(key, heads), _for_groups(value, heads)
            mixed = _by_groups(asking, key, value, row, last, dropout, scaling, sliding_window)
    return mixed.to(query.dtype).transpose(1, 2), None


def _for_groups(keys: Tensor, heads: int) -> Tensor:
    """Keys (or values), one head for each head of the query."""
    repeated: Tensor = repeat_kv(keys, heads // keys.shape[1])
    return repeated


def _dtype(query: Tensor) -> torch.dtype:
    """Numbers in which attention is computed."""
    kind = query.device.type
    if kind == "cpu":
        # The CPU's half-precision kernel is compiled anew for each length that occurs, and is no faster than float32.
        return torch.float32
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


def _by_groups(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    last: LastLayer | None,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """A few dense kernels a group: the prompt, then its responses together, or one by one where that is less work."""
    parts: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, span: Span, first: int, responses: tuple[int, ...]) -> None:
        """Attention of the tokens of a group from its place `first` on, which see the prompt and these responses."""
        reach = window if window is not None and window < span.prompt + max(responses, default=0) else None
        causal = first == 0 and not responses and reach is None
        parts.append(
            F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=None if causal else _mask_of(layout, span.prompt, responses, reach, first, q.device),
                dropout_p=dropout,
                is_causal=causal,
                scale=scaling,
            )
        )

    # One split of the row, not a slice a group: the gradient of a slice is as long as what it was cut from.
    asking = [span.responses_length + (span.prompt if last is None else 1) for span in layout.spans]
    padding = query.shape[2] - sum(asking)
    groups = [torch.split(tensor, [*asking, padding], dim=2)[:-1] for tensor in (query, key, value)]
    if last is not None:
        unread = [span.prompt - 1 for span in layout.spans]
        groups[1:] = [
            tuple(torch.cat(both, dim=2) for both in zip(torch.split(before, unread, dim=2), own, strict=True))
            for before, own in zip((last.key, last.value), groups[1:], strict=True)
        ]
    for span, q, k, v in zip(layout.spans, *groups, strict=True):
        first = 0 if last is None else span.prompt - 1
        alone = _one_by_one(span)
        if last is not None and not alone:
            attend(q, k, v, span, first, span.responses)
            continue
        lengths = list(span.responses) if alone else [span.responses_length]
        own_q, own_k, own_v = (
            torch.split(tensor, [tensor.shape[2] - span.responses_length, *lengths], dim=2) for tensor in (q, k, v)
        )
        attend(own_q[0], own_k[0], own_v[0], span, first, ())
        if not alone:
            if span.responses_length:
                attend(own_q[1], k, v, span, span.prompt, span.responses)
            continue
        for length, rq, rk, rv in zip(span.responses, own_q[1:], own_k[1:], own_v[1:], strict=True):
            if length:
                keys, values = torch.cat([own_k[0], rk], dim=2), torch.cat([own_v[0], rv], dim=2)
                attend(rq, keys, values, span, span.prompt, (length,))
    parts.append(query.new_zeros(*query.shape[:2], padding, value.shape[3]))
    return torch.cat(parts, dim=2)


def _one_by_one(span: Span) -> bool:
    """Whether a group's responses attend one by one."""
    total = span.responses_length
    wasted = total * total - sum(length * length for length in span.responses)
    return wasted >= _WASTED_PAIRS * (len(span.responses) - 1) > 0


def _mask_of(
    layout: Layout, prompt: int, responses: tuple[int, ...], window: int | None, first: int, device: torch.device
) -> Tensor:
    memo = (prompt, responses, window, first)
    if memo not in layout.memo:
        layout.memo[memo] = _mask(*memo, device)
    found: Tensor = layout.memo[memo]
    return found


def _mask(
    prompt: int, responses: tuple[int, ...], window: int | None, first: int, device: torch.device
) -> Bool[Tensor, "q whole"]:
    """Which tokens of a group its tokens from the place `first` on see."""
    layout = Layout((Span(0, prompt, responses),))
    owner, position = layout.owners().to(device), layout.positions().to(device)
    distance = position[first:, None] - position[None, :]
    seen = (distance >= 0) & ((owner[None, :] == -1) | (owner[first:, None] == owner[None, :]))
    return seen if window is None else seen & (distance < window)


def _flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    last: LastLayer | None,
    scaling: float | None,
    window: int | None,
    kernel: Any = None,
) -> Tensor:
    """One block-sparse kernel for the whole row (CUDA, single precision)."""
    if last is not None:
        key, value = (_in_order(layout, *pair) for pair in ((last.key, key), (last.value, value)))
    memo = (window, last is None)
    if memo not in layout.memo:
        layout.memo[memo] = block_mask(
            layout, query.shape[2], key.shape[2], window, query.device, read_only=last is not None
        )
    mixed: Tensor = (kernel or _compiled())(
        query,
        key,
        value,
        block_mask=layout.memo[memo],
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed


def _in_order(layout: Layout, unread: Tensor, read: Tensor) -> Tensor:
    """Keys (or values) of the tokens of a row in their order."""
    places = layout.on(read.device)
    return torch.cat([unread, read[:, :, : len(places.read)]], dim=2).index_select(2, places.order)


@lru_cache(maxsize=1)
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def block_mask(
    layout: Layout, queries: int, keys: int, window: int | None, device: torch.device, *, read_only: bool = False
) -> Any:
    """FlexAttention's block mask of a row.

    Which blocks hold a pair of tokens that see each other is told from the first and last group, response and position
    of each block, without making the mask of all pairs of tokens.

    Args:
        layout: of the row.
        queries: tokens that ask, padding included.
        keys: tokens that are asked, padding included.
        window: sliding window.
        device: where the mask is wanted.
        read_only: only the tokens that are read ask (`Layout.read`).
    """
    from torch.nn.attention.flex_attention import BlockMask

    places = layout.on(device)
    facts = sent([layout.groups(), layout.owners(), layout.positions()], device)
    asking = tuple(fact[places.read] for fact in facts) if read_only else facts
    # Padding is a group of its own.
    k_group, k_owner, k_position = (F.pad(fact, (0, keys - len(fact)), value=-1) for fact in facts)
    q_group, q_owner, q_position = (F.pad(fact, (0, queries - len(fact)), value=-1) for fact in asking)

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        distance = q_position[q] - k_position[k]
        seen = (q_group[q] == k_group[k]) & ((k_owner[k] == -1) | (q_owner[q] == k_owner[k])) & (distance >= 0)
        return seen if window is None else seen & (distance < window)

    (q_groups, q_owners, q_positions), (k_groups, k_owners, k_positions) = (
        [_extremes(fact) for fact in side] for side in ((q_group, q_owner, q_position), (k_group, k_owner, k_position))
    )
    # A superset of the blocks that are needed: within a block every pair is asked once more.
    some = _overlap(q_groups, k_groups) & ((k_owners[0] == -1) | _overlap(q_owners, k_owners))
    some &= q_positions[1][:, None] >= k_positions[0]
    # And a subset of those in which every token sees every other, and no pair need be asked.
    every = (q_groups[0] == q_groups[1])[:, None] & (k_groups[0] == k_groups[1]) & (q_groups[0][:, None] == k_groups[0])
    every &= (k_owners[1] == -1) & (q_positions[0][:, None] >= k_positions[1])
    if window is not None:
        some &= q_positions[0][:, None] - k_positions[1] < window
        every &= q_positions[1][:, None] - k_positions[0] < window
    partial, full = (_listed(blocks) for blocks in (some & ~every, every))
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=_BLOCK, mask_mod=sees, seq_lengths=(queries, keys))


_BLOCK = 128
"""Tokens of a block of FlexAttention's mask."""


def _extremes(fact: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value in each block."""
    blocks = F.pad(fact, (0, -len(fact) % _BLOCK), value=-1).view(-1, _BLOCK)
    return blocks.amin(1), blocks.amax(1)


def _overlap(queries: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor]) -> Bool[Tensor, "q_blocks k_blocks"]:
    return (queries[0][:, None] <= keys[1]) & (keys[0] <= queries[1][:, None])


def _listed(blocks: Bool[Tensor, "q_blocks k_blocks"]) -> tuple[Tensor, Tensor]:
    """How many key blocks each query block has, and which come first, as `BlockMask` wants them."""
    count = blocks.sum(1, dtype=torch.int32)
    places = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True).to(torch.int32)
    return count[None, None], places.contiguous()[None, None]
