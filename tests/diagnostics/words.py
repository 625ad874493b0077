"""A domain for the tests, small enough to work out by hand: words, and their letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefkit.comparisons import Comparison
from prefkit.errors import RecordError
from prefkit.objectives import ResponseScores


class WordScorer(torch.nn.Module):
    """A word costs its number of letters; the reference finds every word equally likely, at 4 nats."""

    def __init__(self, price: float = 1.0) -> None:
        super().__init__()
        self.price = price
        self.batches: list[int] = []
        self.modes: set[bool] = set()

    device = torch.device("cpu")

    def provide(self, needs: frozenset[str]) -> None:
        assert not needs

    def encode(self, comparison: Comparison) -> Mapping[str, Any]:
        if any("unreadable" in response for response in comparison.responses):
            raise RecordError("the response is unreadable", field="responses")
        texts = [str(response) for response in comparison.responses]
        return {"letters": [len(t.replace(" ", "")) for t in texts], "words": [len(t.split()) for t in texts]}

    def collate(self, encoded: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        self.batches.append(len(encoded))
        return {name: torch.tensor([n for item in encoded for n in item[name]]) for name in ("letters", "words")}

    def forward(self, inputs: Mapping[str, Tensor]) -> ResponseScores:
        self.modes.add(self.training)
        return ResponseScores(-self.price * inputs["letters"].float(), inputs["words"])

    def reference(self, inputs: Mapping[str, Tensor]) -> ResponseScores:
        return ResponseScores(-4.0 * inputs["words"].float(), inputs["words"])

    def encoding_key(self) -> str:
        return "words"

    def refresh_reference(self, *, keep: bool = False) -> None:
        raise AssertionError("an evaluation changes no reference")

    def reference_key(self) -> str:
        return "four"

    def save(self, folder: Path) -> None:
        raise AssertionError("an evaluation saves nothing")


def pair(chosen: str, rejected: str, prompt: str = "p", **more: Any) -> Comparison:
    return Comparison.pair(prompt, chosen, rejected, **more)


PAIRS = [
    pair("aa", "bbbb", "p", source="x.jsonl", line=1),  # -2 against -4: right
    pair("aaaaa bbb", "bbbbbb", "q"),  # -8 / 2 against -6 / 1: wrong as a whole, right per token
    pair("aaa", "bb b", "p"),  # -3 against -3: a tie; per token -3 against -1.5
]
