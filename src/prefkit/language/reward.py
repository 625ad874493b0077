"""Reward models: a causal language model with a head on the state at the last token of a response.

Encoding, packed rows and shared prompts are those of the language scorer; the output layer is never computed. The
folder of a reward model holds the backbone as `from_pretrained` loads it, the head, and `reward.json`; nothing in it
runs code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefkit.comparisons import Comparison
from prefkit.errors import OptionError, RecordError
from prefkit.language.encoding import EncodingOptions
from prefkit.language.heads import (
    Groups,
    Head,
    HeadInputs,
    HeadOptions,
    IdealPointsHead,
    ScalarHead,
    make_head,
)
from prefkit.language.models import (
    REWARD_FILE,
    ModelOptions,
    is_reward_model,
    load_policy,
    load_tokenizer,
    resolve,
)
from prefkit.language.scorer import PackedScorer, Precision
from prefkit.objectives import Encoded, Inputs, ResponseScores, Scorer, encode_all, odds_among, score_all
from prefkit.options import Options

_HEAD_FILE = "head.safetensors"
_FORMAT, _FORMATS = 2, (1, 2)
"""Of folders: what is written, and what is read."""

_ANNOTATOR, _GROUPS, _PEOPLE = "annotator", "comparisons", "people"
"""Of an encoded comparison, who judged; of a batch, the comparison of each response and who judges it."""


class RewardScorer(PackedScorer):
    """Scores responses by a learned reward, in log-odds: the difference of two is that of a Bradley-Terry choice.

    By default the reward is `w . h`, where h is the backbone's last hidden state at the response's last token. A head
    that compares gives log-odds of pairs instead (`ResponseScores.factors`), and for the reward of a response the mean
    of its log-odds against all responses of its comparison.

    Args:
        policy: the backbone, a causal language model with or without a LoRA adapter.
        tokenizer: its tokenizer.
        head: what makes rewards of hidden states, or options of a new head; `[dim]` numbers stand for a `ScalarHead` of
            them; by default one of 0, so that training starts from indifference.
        encoding: how texts become tokens.
        precision: numbers in which the backbone's matrix products are computed; the head is always in float32.
        shared: process a prompt once for all its responses; False takes the plain path.

    Raises:
        OptionError: the vocabularies of backbone and tokenizer, or the widths of backbone and head, do not fit
            together.

    Source: Stiennon et al. 2020, Learning to summarize from human feedback (arXiv 2009.01325).
    """

    provided = frozenset({"rewards", "separate_rewards", "views"})
    kind = "reward models"

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        head: Head | HeadOptions | Float[Tensor, " dim"] | None = None,
        *,
        encoding: EncodingOptions | None = None,
        precision: Precision = "fp32",
        shared: bool = True,
    ) -> None:
        super().__init__(policy, tokenizer, encoding=encoding, precision=precision, shared=shared)
        width = self._probed_width()
        if isinstance(head, Options):
            head = make_head(head, width)
        elif not isinstance(head, Head):
            head = ScalarHead(width if head is None else len(head), weight=head)
        if width != head.width:
            raise OptionError(f"the head takes states of width {head.width}, the backbone's are {width} wide")
        self.head = head
        if head.compares:
            self.provided = RewardScorer.provided - {"separate_rewards"}
            self.kind = f"reward models with a head `{head.kind}`"
        output, embeddings = policy.get_output_embeddings(), policy.get_input_embeddings()
        if output.weight is not embeddings.weight:
            # Nobody reads it: without gradients it is neither trained nor waited for.
            output.requires_grad_(False)

    def encode(self, comparison: Comparison) -> Encoded:
        """Tokens of one comparison, and who judged, if the head asks.

        Raises:
            RecordError: it cannot be encoded, or has several prompts and the head compares responses to one.
        """
        if self.head.compares and comparison.joint:
            raise RecordError(f"a head `{self.head.kind}` compares responses to one prompt", field="prompts")
        encoded = super().encode(comparison)
        return {**encoded, _ANNOTATOR: comparison.annotator or ""} if self.reads_people else encoded

    def encoding_key(self) -> str:
        """A digest of everything that decides what a comparison is encoded to."""
        return super().encoding_key() + (" people" if self.reads_people else "")

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pack encoded comparisons into one row, with the comparison of each response, and who judges it."""
        packed = super().collate(encoded)
        counts = torch.tensor([len(item["response_ids"]) for item in encoded])
        packed[_GROUPS] = torch.repeat_interleave(torch.arange(len(encoded)), counts)
        if self.head.people is not None:
            known = {name: place for place, name in enumerate(self.head.people)}
            people = torch.tensor([known.get(item[_ANNOTATOR], -1) for item in encoded])
            packed[_PEOPLE] = people.repeat_interleave(counts)
        return packed

    def forward(self, inputs: Inputs) -> ResponseScores:
        """Rewards of all responses of a packed batch, in the place of log-probabilities."""
        states, prompts = self._states(inputs)
        views = None
        if "views" in self._wanted:
            # The first view is the one that is rewarded; without dropout a second pass would only repeat it.
            views = torch.stack([states, self.last_states(inputs) if self.training else states], 1)
        groups = inputs.get(_GROUPS)
        if groups is None:
            # Packed without a comparison in sight: the responses to a prompt are those of one.
            sizes = inputs["group_sizes"]
            groups = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
        found = self.head(HeadInputs(states, groups, prompts, inputs.get(_PEOPLE)))
        return ResponseScores(found.rewards, inputs["response_lengths"], views=views, factors=found.factors)

    def last_states(self, inputs: Inputs) -> Float[Tensor, "responses dim"]:
        """What the head reads of responses: the last hidden state at the last token of each."""
        return self._states(inputs)[0]

    def _states(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        with self._autocast():
            states, prompts = self._trunks[id(self.policy)].pooled(inputs)
        return states.float(), prompts.float()

    @property
    def width(self) -> int:
        """Size of the hidden states."""
        return self.head.width

    @property
    def reads_people(self) -> bool:
        """Whether responses are scored for the person who judges."""
        return self.head.people is not None

    def meet(self, people: Sequence[str]) -> None:
        """Make room for people that are not known yet; see `prefkit.objectives.KnowsPeople`."""
        self.head.meet(people)

    def weight_groups(self) -> Groups:
        """Weights of the head that have a learning rate of their own; see `prefkit.objectives.GroupsWeights`."""
        return self.head.weight_groups()

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
        own = self.head.state_dict()
        if state is not None:
            own = {name: state[f"head.{name}"] for name in own}
        save_file({name: part.detach().float().cpu().contiguous() for name, part in own.items()}, folder / _HEAD_FILE)
        about = {
            "format": _FORMAT,
            "kind": "reward",
            "pooling": "last_token",
            "dim": self.head.width,
            "head": self.head.options.model_dump(),
            "people": self.head.people,
        }
        (folder / REWARD_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def _whole(self) -> bool:
        return True

    def _probed_width(self) -> int:
        """Look at the states themselves: not every backbone says how wide they are."""
        with torch.no_grad():
            inputs = super().collate([{"prompt_ids": [[0]], "response_ids": [[0]]}])
            inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            return int(self._states(inputs)[0].shape[1])


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
    saved = Path(resolve(options.path)) if is_reward_model(options.path) else None
    if saved is not None and options.head is not None:
        raise OptionError(f"model.head is for a new reward model; '{options.path}' has its head: leave it out")
    policy = load_policy(options)
    if options.trained != "all":
        policy.requires_grad_(False)
    scorer = RewardScorer(
        policy,
        load_tokenizer(options),
        options.head if saved is None else _load_head(saved),
        encoding=encoding,
        precision=options.precision,
        shared=options.shared_prompt,
    )
    if options.trained == "people":
        if not isinstance(scorer.head, IdealPointsHead):
            raise OptionError(f"model.trained: people needs a head `ideal_points`, this one is `{scorer.head.kind}`")
        scorer.head.freeze_tastes()
    return scorer


def _load_head(folder: Path) -> Head:
    try:
        about = json.loads((folder / REWARD_FILE).read_text(encoding="utf-8"))
        weights = load_file(folder / _HEAD_FILE)
        known = about["format"] in _FORMATS and about["pooling"] == "last_token"
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, KeyError | TypeError):
            raise OptionError(f"'{folder / REWARD_FILE}' is of a kind that this version does not know") from error
        raise OptionError(f"the head of reward model '{folder}' cannot be read: {error}") from error
    if not known:
        raise OptionError(f"'{folder / REWARD_FILE}' is of a kind that this version does not know: {about}")
    # Folders of the first format have a scalar head and do not say so.
    options = _Written.parse({"head": about.get("head", {"kind": "scalar"})}, str(folder / REWARD_FILE)).head
    try:
        head = make_head(options, len(weights["weight"]) if options.kind == "scalar" else int(about["dim"]))
        head.meet(about.get("people") or ())
        head.load_state_dict(weights)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise OptionError(f"the head of reward model '{folder}' cannot be read: {error}") from error
    return head


class _Written(Options):
    """The head of a folder."""

    head: HeadOptions


def response_states(scorer: RewardScorer, comparison: Comparison) -> NDArray[np.float64]:
    """`[responses, dim]`, the last hidden state of each response of a comparison: features for preference models.

    Args:
        scorer: a reward model, or a language model loaded as one.
        comparison: encoded and scored by itself.

    Raises:
        RecordError: it cannot be encoded.
    """
    inputs = {name: tensor.to(scorer.device) for name, tensor in scorer.collate([scorer.encode(comparison)]).items()}
    with torch.no_grad():
        return np.asarray(scorer.last_states(inputs).double().cpu().numpy())


def log_odds_table(scorer: RewardScorer, comparison: Comparison) -> NDArray[np.float64]:
    """`[responses, responses]`, log-odds that the response of the row is preferred to that of the column.

    Args:
        scorer: a reward model; put it into evaluation mode first.
        comparison: its responses are compared, its judgement is not looked at.

    Raises:
        RecordError: it cannot be encoded.
    """
    (scores,) = score_all(scorer, [scorer.encode(comparison)], batch_size=1)
    rewards = scores.policy_logps.double()
    odds = rewards[:, None] - rewards[None] if scores.factors is None else odds_among(scores.factors.double())
    return np.asarray(odds.numpy())


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
