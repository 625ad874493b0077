"""Packing: many prompts, each with several responses, in one row of tokens without padding.

A group is one prompt and the responses that share it. In the row a group stands as its prompt followed by its
responses; each response continues the prompt's positions, so that it sees the prompt and itself but not its
siblings. The last token of a response is predicted but never read, so it is not in the row.

    row        p p p p a a a b b | q q q c c
    positions  0 1 2 3 4 5 6 4 5 | 0 1 2 3 4      responses a (4 tokens), b (3 tokens), c (3 tokens)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

TokenIds = Sequence[int]

ROW_MULTIPLE = 128
"""Rows are padded at their end to a multiple of this. Matrix kernels are built and cached for each shape that occurs,
at a cost in time and memory: a few shapes cost little, a new one each step does not."""


class Span(NamedTuple):
    """A group's place in the row.

    Args:
        start: place of the first prompt token.
        prompt: number of prompt tokens.
        responses: number of tokens of each response that are in the row (as a rule one fewer than it has).
    """

    start: int
    prompt: int
    responses: tuple[int, ...]

    @property
    def split(self) -> int:
        """Place of the first response token."""
        return self.start + self.prompt

    @property
    def end(self) -> int:
        """Place after the last token."""
        return self.split + self.responses_length

    @property
    def responses_length(self) -> int:
        """Number of response tokens."""
        return sum(self.responses)


@dataclass(frozen=True)
class Layout:
    """Where the groups of a row stand. It travels through the model to every attention layer.

    Args:
        spans: the groups in their order.
        whole: the last token of each response is in the row, too, because its hidden state is wanted.
        memo: what one layer has worked out from the layout (masks) and the next ones can use again.
    """

    spans: tuple[Span, ...]
    whole: bool = False
    memo: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls, prompt_lengths: Tensor, group_sizes: Tensor, response_lengths: Tensor, whole: Tensor | None = None
    ) -> Layout:
        """The layout of a packed batch from its lengths (see `pack`)."""
        left_out = 1 if whole is None else 0
        lengths: Iterator[int] = iter(response_lengths.tolist())
        spans, start = [], 0
        for prompt, size in zip(prompt_lengths.tolist(), group_sizes.tolist(), strict=True):
            span = Span(start, prompt, tuple(next(lengths) - left_out for _ in range(size)))
            spans.append(span)
            start = span.end
        return cls(tuple(spans), whole is not None)

    def positions(self) -> Int[Tensor, " tokens"]:
        """Position of each token of the row in its own sequence, without the padding at the end."""
        return joined(
            own
            for span in self.spans
            for own in (range(span.prompt), *(range(span.prompt, span.prompt + length) for length in span.responses))
        )

    def predictors(self) -> Int[Tensor, " response_tokens"]:
        """For each response token, the place in the row whose hidden state predicts it."""
        places: list[range] = []
        for span in self.spans:
            place = span.split
            for length in span.responses:
                places += range(span.split - 1, span.split), range(place, place + length - self.whole)
                place += length
        return joined(places)

    def own(self) -> Int[Tensor, " held"]:
        """The places of the response tokens that the row holds."""
        return joined(range(span.split, span.end) for span in self.spans)

    def held(self) -> Int[Tensor, " held"]:
        """Which of all response tokens, one after the other, the row holds."""
        held: list[range] = []
        start = 0
        for span in self.spans:
            for length in span.responses:
                held.append(range(start, start + length))
                start += length if self.whole else length + 1
        return joined(held)

    def read(self) -> Int[Tensor, " read"]:
        """Places whose last hidden state is read: the last token of each prompt, and all response tokens."""
        return joined(range(span.split - 1, span.end) for span in self.spans)

    def unread(self) -> Int[Tensor, " unread"]:
        """The other places, which only give keys and values in the last layer."""
        return joined(range(span.start, span.split - 1) for span in self.spans)

    def groups(self) -> Int[Tensor, " tokens"]:
        """Group of each token of the row, padding not counted."""
        return _repeated(range(len(self.spans)), [span.end - span.start for span in self.spans])

    def owners(self) -> Int[Tensor, " tokens"]:
        """Response of each token of the row, padding not counted; -1 for prompt tokens."""
        owners: list[int] = []
        lengths: list[int] = []
        count = 0
        for span in self.spans:
            owners += [-1, *range(count, count + len(span.responses))]
            lengths += [span.prompt, *span.responses]
            count += len(span.responses)
        return _repeated(owners, lengths)

    def on(self, device: torch.device) -> Places:
        """All these indices on a device, worked out and sent there once."""
        if device not in self.memo:
            unread, read = self.unread(), self.read()
            indices = [self.predictors(), self.own(), self.held(), read, unread, torch.cat([unread, read]).argsort()]
            self.memo[device] = Places(*sent(indices, device))
        places: Places = self.memo[device]
        return places


class Places(NamedTuple):
    """The indices of a layout on one device; see the methods of `Layout`. `order` sorts unread and read together."""

    predictors: Tensor
    own: Tensor
    held: Tensor
    read: Tensor
    unread: Tensor
    order: Tensor


def sent(tensors: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """Vectors of one type on a device, in one transfer."""
    return torch.split(torch.cat(list(tensors)).to(device), [len(tensor) for tensor in tensors])


def joined(places: Iterable[range]) -> Int[Tensor, " places"]:
    """Places of several ranges, one after the other."""
    return torch.cat([torch.empty(0, dtype=torch.long), *(torch.arange(part.start, part.stop) for part in places)])


def _repeated(values: Sequence[int], lengths: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(torch.tensor(values, dtype=torch.long), torch.tensor(lengths, dtype=torch.long))


def pack(groups: Sequence[tuple[TokenIds, Sequence[TokenIds]]], *, whole: bool = False) -> dict[str, Tensor]:
    """Pack groups into one row.

    Args:
        groups: prompt tokens (at least one) and the tokens of each response (at least one each).
        whole: put the last token of each response into the row, too.

    Returns:
        `input_ids` and `position_ids` `[1, row]`, padded to a multiple of `ROW_MULTIPLE`; `prompt_lengths` and
        `group_sizes` `[groups]`; `response_lengths` `[responses]`; `targets` `[tokens]`, the tokens of all responses
        one after the other; `whole`, if so.
    """
    row: list[int] = []
    targets: list[int] = []
    for prompt, responses in groups:
        row.extend(prompt)
        for response in responses:
            row.extend(response if whole else response[:-1])
            targets.extend(response)
    lengths = {
        "prompt_lengths": torch.tensor([len(prompt) for prompt, _ in groups]),
        "group_sizes": torch.tensor([len(responses) for _, responses in groups]),
        "response_lengths": torch.tensor([len(response) for _, responses in groups for response in responses]),
    } | ({"whole": torch.tensor([True])} if whole else {})
    padding = (0, -len(row) % ROW_MULTIPLE)
    return {
        "input_ids": F.pad(torch.tensor([row]), padding),
        "position_ids": F.pad(Layout.of(**lengths).positions()[None], padding),
        "targets": torch.tensor(targets),
        **lengths,
    }
