"""A domain for the tests: a causal model of letters, small enough to train in a second, with all that can go wrong
(dropout, tied weights, padding, layers to shard)."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prefkit.comparisons import Comparison
from prefkit.errors import RecordError
from prefkit.objectives import ResponseScores, TokenScores

WIDTH = 16


class Layer(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        past = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return x + self.drop(self.out(torch.tanh(self.mix(torch.cat([x, past], dim=2)))))


class LetterScorer(nn.Module):
    """Letters of the alphabet are tokens; a prompt and a response make one padded sequence."""

    _no_split_modules = ("Layer",)

    def __init__(self, seed: int = 0, dropout: float = 0.1, longest: int = 64, precision: str = "fp32") -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(128, WIDTH)
            self.layers = nn.ModuleList([Layer(dropout), Layer(dropout)])
            self.head = nn.Linear(WIDTH, 128, bias=False)
        self.head.weight = self.embed.weight
        self.longest, self.precision = longest, precision
        self.reference_passes = self.encoded = 0
        self._frozen = (copy.deepcopy(self.layers), copy.deepcopy(self.embed))

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def provide(self, needs: frozenset[str]) -> None:
        assert needs <= {"tokens"}

    def encode(self, comparison: Comparison) -> Mapping[str, Any]:
        self.encoded += 1
        prompts, responses = [], []
        for index, response in enumerate(comparison.responses):
            if len(response) > self.longest:
                raise RecordError(f"{len(response)} letters, at most {self.longest}", field="responses")
            prompts.append([ord(letter) for letter in str(comparison.prompt_of(index))])
            responses.append([ord(letter) for letter in str(response)])
        return {"prompts": prompts, "responses": responses}

    def collate(self, encoded: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        pairs = [pair for item in encoded for pair in zip(item["prompts"], item["responses"], strict=True)]
        width = max(len(prompt) + len(response) for prompt, response in pairs)
        ids = torch.zeros(len(pairs), width, dtype=torch.long)
        mask = torch.zeros(len(pairs), width, dtype=torch.bool)
        for row, (prompt, response) in enumerate(pairs):
            both = prompt + response
            ids[row, : len(both)] = torch.tensor(both)
            mask[row, len(prompt) : len(both)] = True
        return {"ids": ids, "mask": mask}

    def forward(self, inputs: Mapping[str, Tensor]) -> ResponseScores:
        return self._score(inputs, self.layers, self.embed)

    @torch.no_grad()
    def reference(self, inputs: Mapping[str, Tensor]) -> ResponseScores:
        self.reference_passes += 1
        layers, embed = self._frozen
        return self._score(inputs, layers.eval(), embed)

    def _score(self, inputs: Mapping[str, Tensor], layers: nn.ModuleList, embed: nn.Embedding) -> ResponseScores:
        ids, mask = inputs["ids"], inputs["mask"]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            x = embed(ids)
            for layer in layers:
                x = layer(x)
            logits = self.head(x) if layers is self.layers else x @ embed.weight.T
        logps = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
        read = mask[:, 1:]
        tokens = TokenScores(logps[read], read.nonzero()[:, 0])
        return ResponseScores((logps * read).sum(1), mask.sum(1), tokens=tokens)

    def encoding_key(self) -> str:
        return f"letters {self.longest}"

    def refresh_reference(self, *, keep: bool = False) -> None:
        if not keep:
            self._frozen = (copy.deepcopy(self.layers), copy.deepcopy(self.embed))

    def reference_key(self) -> str:
        digest = hashlib.sha256(self.precision.encode())
        for module in self._frozen:
            for tensor in module.state_dict().values():
                digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        folder.mkdir(parents=True)
        state = self.state_dict() if state is None else state
        save_file({name: state[name].clone() for name, _ in self.named_parameters()}, folder / "model.safetensors")


def comparisons(count: int, **more: Any) -> list[Comparison]:
    """Pairs in which the response with vowels is preferred, of different lengths."""
    generator = torch.Generator().manual_seed(1)

    def word(letters: str) -> str:
        length = int(torch.randint(3, 9, (1,), generator=generator))
        return "".join(letters[int(place)] for place in torch.randint(len(letters), (length,), generator=generator))

    return [
        Comparison.pair(f"say {word('xyz')}:", word("aeiou"), word("bcdfg"), source="pairs.jsonl", line=line, **more)
        for line in range(1, count + 1)
    ]
