"""Attention of a packed row as sequences of different lengths in one FlashAttention kernel (CUDA, half precision).

A sequence is the tokens of a prompt, or those of one response, which ask the prompt's keys and their own. So the keys
of a prompt stand there once for itself and once for each of its responses; their gradients are summed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefkit.language.packing import Layout, joined, sent


class Sequences(NamedTuple):
    """The sequences of a row.

    Args:
        keys: which of the row's keys each sequence asks, one sequence after the other.
        own: where in `keys` each key of the row stands in the sequence that it belongs to.
        copies: of the keys of prompts in sequences of responses: which keys, and where in `keys`. Each key occurs at
            most once in each of them, so that sums do not depend on the order of threads.
        query_starts: where the queries of each sequence begin, and their number.
        key_starts: where the keys of each sequence begin, and their number.
        longest_query: tokens of the longest sequence.
        longest_keys: keys of the longest sequence.
    """

    keys: Int[Tensor, " asked"]
    own: Int[Tensor, " row"]
    copies: tuple[tuple[Int[Tensor, " copied"], Int[Tensor, " copied"]], ...]
    query_starts: Int[Tensor, " sequences_and_one"]
    key_starts: Int[Tensor, " sequences_and_one"]
    longest_query: int
    longest_keys: int


class Kernel(Protocol):
    """The part of `torch.nn.attention.varlen.varlen_attn` that is used here."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None,
        window_size: tuple[int, int],
    ) -> Tensor:
        """Attention of each sequence, its last query seeing its last key."""
        ...


@lru_cache(maxsize=1)
def _flash() -> Kernel | None:
    """The kernel, if this version of torch has it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    if "window_size" not in known:
        return None
    kernel: Any = varlen_attn
    return partial(kernel, enable_gqa=True) if "enable_gqa" in known else kernel


def applies(query: Tensor) -> bool:
    """Whether the kernel takes such queries."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and _flash() is not None
    )


def attend(
    query: Float[Tensor, "1 heads queries dim"],
    key: Float[Tensor, "1 kv_heads keys dim"],
    value: Float[Tensor, "1 kv_heads keys dim"],
    layout: Layout,
    *,
    read_only: bool,
    scaling: float | None,
    window: int | None,
    kernel: Kernel | None = None,
) -> Float[Tensor, "1 heads queries dim"]:
    """Attention of a packed row.

    Args:
        query: of all tokens of the row, or of those that are read (`Layout.read`); padding at the end.
        key: of all tokens of the row, padding at the end; if `read_only`, first of those that are not read.
        value: as `key`.
        layout: of the row.
        read_only: only the tokens that are read ask.
        scaling: of scores; by default 1 / sqrt(dim).
        window: how many tokens a token sees, itself among them; None for all before it.
        kernel: see `Kernel`.
    """
    memo = ("sequences", read_only)
    if memo not in layout.memo:
        layout.memo[memo] = _on(sequences(layout, query.shape[2], key.shape[2], read_only=read_only), query.device)
    found: Sequences = layout.memo[memo]
    kernel = kernel or _flash()
    assert kernel is not None
    asking, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    keys, values = _Repeated.apply(keys, values, found)  # type: ignore[no-untyped-call]  # torch's annotation is missing
    mixed = kernel(
        asking,
        keys,
        values,
        found.query_starts,
        found.key_starts,
        found.longest_query,
        found.longest_keys,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
    )
    return mixed.transpose(0, 1)[None]


def sequences(layout: Layout, queries: int, keys: int, *, read_only: bool = False) -> Sequences:
    """The sequences of a row; its padding is one of its own.

    Args:
        layout: of the row.
        queries: tokens that ask, padding included.
        keys: tokens that are asked, padding included.
        read_only: only the tokens that are read ask, and the keys of the others stand before theirs.
    """
    asked: list[range] = []
    own: list[tuple[range, int]] = []
    copies: list[list[tuple[range, range]]] = []
    query_lengths, key_lengths = [], []
    place = 0

    def ask(count: int, sources: Iterable[range]) -> list[range]:
        """A further sequence; where in `keys` each of its sources stands."""
        nonlocal place
        stand = []
        begun = place
        for source in sources:
            stand.append(range(place, place + len(source)))
            asked.append(source)
            place += len(source)
        query_lengths.append(count)
        key_lengths.append(place - begun)
        return stand

    # Where the next keys of the two kinds stand.
    unread, read = 0, sum(span.prompt - 1 for span in layout.spans) if read_only else 0
    for span in layout.spans:
        prompt = [range(unread, unread + span.prompt - 1), range(read, read + 1)] if read_only else []
        prompt = prompt or [range(read, read + span.prompt)]
        unread, read = unread + span.prompt - 1, prompt[-1].stop
        stand = ask(1 if read_only else span.prompt, prompt)
        own += zip(prompt, (where.start for where in stand), strict=True)
        for number, length in enumerate(span.responses):
            if not length:
                continue
            response = range(read, read + length)
            read += length
            *copied, where = ask(length, [*prompt, response])
            own.append((response, where.start))
            copies += [[]] * (number + 1 - len(copies))
            copies[number] = [*copies[number], *zip(prompt, copied, strict=True)]
    if read < keys:
        padding = range(read, keys)
        (where,) = ask(keys - read, [padding])
        own.append((padding, where.start))
    assert sum(query_lengths) == queries, (query_lengths, queries)
    own.sort(key=lambda pair: pair[0].start)
    return Sequences(
        joined(asked),
        joined(range(start, start + len(source)) for source, start in own),
        tuple(
            (joined(source for source, _ in pairs), joined(where for _, where in pairs)) for pairs in copies if pairs
        ),
        _starts(query_lengths),
        _starts(key_lengths),
        max(query_lengths),
        max(key_lengths),
    )


def _starts(lengths: list[int]) -> Int[Tensor, " sequences_and_one"]:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def _on(found: Sequences, device: torch.device) -> Sequences:
    """The same on a device, sent there at once."""
    keys, own, *copies = sent([found.keys, found.own, *(each for pair in found.copies for each in pair)], device)
    query_starts, key_starts = sent([found.query_starts, found.key_starts], device)
    pairs = tuple(zip(copies[::2], copies[1::2], strict=True))
    return found._replace(keys=keys, own=own, copies=pairs, query_starts=query_starts, key_starts=key_starts)


class _Repeated(torch.autograd.Function):
    """Keys and values as the sequences ask them."""

    @staticmethod
    def forward(ctx: Any, key: Tensor, value: Tensor, found: Sequences) -> tuple[Tensor, Tensor]:
        ctx.found = found
        return key.index_select(0, found.keys), value.index_select(0, found.keys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        found: Sequences = ctx.found
        both = torch.stack(grads, dim=1)
        whole = both.index_select(0, found.own)
        for sources, places in found.copies:
            whole.index_copy_(0, sources, whole.index_select(0, sources) + both.index_select(0, places))
        key, value = whole.unbind(1)
        return key, value, None
