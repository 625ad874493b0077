"""Reward models: a causal language model with a scalar head on the state at the last token of a response.

Encoding, packed rows and shared prompts are those of the language scorer; the output layer is never computed. The
folder of a reward model holds the backbone as `from_pretrained` loads it, the head, and `reward.json`; nothing in it
runs code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefkit.comparisons import Comparison
from prefkit.errors import OptionError, RecordError
from prefkit.language.encoding import EncodingOptions
from prefkit.language.models import (
    REWARD_FILE,
    ModelOptions,
    is_reward_model,
    load_policy,
    load_tokenizer,
    resolve,
)
from prefkit.language.scorer import PackedScorer, Precision
from prefkit.objectives import Inputs, ResponseScores, Scorer, encode_all, score_all

_HEAD_FILE, _HEAD_NAME = "head.safetensors", "weight"
_FORMAT = 1


class RewardScorer(PackedScorer):
    """Scores responses by a learned reward, in log-odds: the difference of two is that of a Bradley-Terry choice.

    The reward is `w . h`, where h is the backbone's last hidden state at the response's last token. There is no bias:
    it would cancel in every comparison.

    Args:
        policy: the backbone, a causal language model with or without a LoRA adapter.
        tokenizer: its tokenizer.
        head: `[dim]`, the weights w; by default 0, so that training starts from indifference.
        encoding: how texts become tokens.
        precision: numbers in which the backbone's matrix products are computed; the head is always in float32.
        shared: process a prompt once for all its responses; False takes the plain path.

    Raises:
        OptionError: the vocabularies of backbone and tokenizer, or the widths of backbone and head, do not fit
            together.

    Source: Stiennon et al. 2020, Learning to summarize from human feedback (arXiv 2009.01325).
    """

    provided = frozenset({"rewards", "views"})
    kind = "reward models"

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        head: Float[Tensor, " dim"] | None = None,
        *,
        encoding: EncodingOptions | None = None,
        precision: Precision = "fp32",
        shared: bool = True,
    ) -> None:
        super().__init__(policy, tokenizer, encoding=encoding, precision=precision, shared=shared)
        width = policy.get_input_embeddings().weight.shape[1] if head is None else len(head)
        self.head = nn.Parameter(torch.zeros(width) if head is None else head.detach().float().clone())
        self._check_width()
        output, embeddings = policy.get_output_embeddings(), policy.get_input_embeddings()
        if output.weight is not embeddings.weight:
            # Nobody reads it: without gradients it is neither trained nor waited for.
            output.requires_grad_(False)

    def forward(self, inputs: Inputs) -> ResponseScores:
        """Rewards of all responses of a packed batch, in the place of log-probabilities."""
        states = self.last_states(inputs)
        views = None
        if "views" in self._wanted:
            # The first view is the one that is rewarded; without dropout a second pass would only repeat it.
            views = torch.stack([states, self.last_states(inputs) if self.training else states], 1)
        return ResponseScores(states @ self.head, inputs["response_lengths"], views=views)

    def last_states(self, inputs: Inputs) -> Float[Tensor, "responses dim"]:
        """What the head reads: the last hidden state at the last token of each response."""
        with self._autocast():
            states = self._trunks[id(self.policy)].last_states(inputs)
        return states.float()

    @property
    def width(self) -> int:
        """Size of the hidden states."""
        return len(self.head)

    def reference(self, inputs: Inputs) -> ResponseScores:
        """A reward model has none.

        Raises:
            OptionError: always.
        """
        raise OptionError(_NO_REFERENCE)

    def refresh_reference(self, *, keep: bool = False) -> None:
        """A reward model has none, and stages of a curriculum need none: nothing to do."""

    def reference_key(self) -> str:
        """A reward model has none.

        Raises:
            OptionError: always.
        """
        raise OptionError(_NO_REFERENCE)

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write backbone (or its adapter), tokenizer and head to a folder that `load_reward` loads.

        Args:
            folder: where to write.
            state: the module's full state, where this process holds only a shard of it.
        """
        super().save(folder, state)
        head = self.head if state is None else state["head"]
        save_file({_HEAD_NAME: head.detach().float().cpu().contiguous()}, folder / _HEAD_FILE)
        about = {"format": _FORMAT, "kind": "reward", "pooling": "last_token", "dim": len(head)}
        (folder / REWARD_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def _whole(self) -> bool:
        return True

    def _check_width(self) -> None:
        """Compare the head with the states themselves: not every backbone says how wide these are."""
        with torch.no_grad():
            inputs = self.collate([{"prompt_ids": [[0]], "response_ids": [[0]]}])
            inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            width = self._trunks[id(self.policy)].last_states(inputs).shape[1]
        if width != len(self.head):
            raise OptionError(f"the head takes states of width {len(self.head)}, the backbone's are {width} wide")


_NO_REFERENCE = (
    "a reward model has no reference: train it with an objective on rewards, such as `reward_model`, and measure it "
    "without one"
)


def load_reward(options: ModelOptions | str, encoding: EncodingOptions | None = None) -> RewardScorer:
    """Load a reward model, or make one of a causal language model, with a head that says nothing yet.

    Args:
        options: see `ModelOptions`; a string stands for its `path`.
        encoding: how texts become tokens.

    Raises:
        OptionError: the model cannot be found or loaded, its files do not fit together, or a reference is named.
    """
    if isinstance(options, str):
        options = ModelOptions(path=options, kind="reward")
    if options.reference is not None:
        raise OptionError("model.reference does not apply to a reward model, which is compared with none")
    head = _load_head(Path(resolve(options.path))) if is_reward_model(options.path) else None
    return RewardScorer(
        load_policy(options),
        load_tokenizer(options),
        head,
        encoding=encoding,
        precision=options.precision,
        shared=options.shared_prompt,
    )


def _load_head(folder: Path) -> Tensor:
    try:
        about = json.loads((folder / REWARD_FILE).read_text(encoding="utf-8"))
        head: Tensor = load_file(folder / _HEAD_FILE)[_HEAD_NAME]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise OptionError(f"the head of reward model '{folder}' cannot be read: {error}") from error
    known = isinstance(about, dict) and about.get("format") == _FORMAT and about.get("pooling") == "last_token"
    if not known or head.ndim != 1:
        raise OptionError(f"'{folder / REWARD_FILE}' is of a kind that this version does not know: {about}")
    return head


def annotate(
    comparisons: Iterable[Comparison],
    scorer: Scorer,
    *,
    batch_size: int = 8,
    skipped: list[RecordError] | None = None,
) -> Iterator[Comparison]:
    """The comparisons with `extra["rewards"]`, a reward a response, for objectives that take a reward model's margins.

    Args:
        comparisons: read once, a batch at a time.
        scorer: a reward model; put it into evaluation mode first.
        batch_size: comparisons a forward pass, at least 1.
        skipped: where comparisons that cannot be scored are set aside; without it, the first of them is an error.

    Yields:
        The comparisons in their order, rewards in the order of the responses.

    Raises:
        OptionError: the scorer is no reward model, or batch_size is below 1.
        RecordError: a comparison cannot be encoded.
    """
    if batch_size < 1:
        raise OptionError(f"batch_size must be at least 1, got {batch_size}")
    # Before anything is scored, and even if nothing is.
    scorer.provide(frozenset({"rewards"}))
    return _annotate(comparisons, scorer, batch_size, skipped)


def _annotate(
    comparisons: Iterable[Comparison], scorer: Scorer, batch_size: int, skipped: list[RecordError] | None
) -> Iterator[Comparison]:
    rows = encode_all(scorer, comparisons, skipped)
    while batch := list(islice(rows, batch_size)):
        (scores,) = score_all(scorer, [item for _, item in batch], batch_size=len(batch))
        rewards = iter(scores.policy_logps.tolist())
        for comparison, _ in batch:
            own = list(islice(rewards, len(comparison.responses)))
            yield replace(comparison, extra={**comparison.extra, "rewards": own})
