"""Reward models: a language model with a head on the hidden states of a response.

On a causal model, encoding, packed rows and shared prompts are those of the language scorer, and the output layer is
never computed. A model that reads in both directions takes prompt and response as two texts (see `pairs`). The folder
of a reward model holds the backbone as `from_pretrained` loads it, the head and `reward.json`; nothing in it runs code.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from peft import PeftModel
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefkit.comparisons import Comparison
from prefkit.errors import OptionError, RecordError
from prefkit.language.encoding import Encoder, EncodingOptions
from prefkit.language.heads import (
    EnsembleHead,
    Groups,
    Head,
    HeadInputs,
    HeadOptions,
    IdealPointsHead,
    OwnHead,
    ScalarHead,
    ScalarHeadOptions,
    make_ensemble,
    make_head,
)
from prefkit.language.models import (
    REWARD_FILE,
    ModelOptions,
    Pooling,
    family_of,
    has_reward_file,
    load_policy,
    load_tokenizer,
    resolve,
)
from prefkit.language.pairs import PairEncoder, PairTrunk, positions_of
from prefkit.language.scorer import PackedScorer, Precision
from prefkit.objectives import (
    Encoded,
    Inputs,
    ResponseScores,
    Scorer,
    encode_all,
    has_dropout,
    odds_among,
    score_all,
)
from prefkit.options import Options

logger = logging.getLogger("prefkit")

_HEAD_FILE = "head.safetensors"
_FORMAT = 2
"""Of the folders that are written; see `_About` for those that are read."""

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
        ensemble: make so many heads of these options, and average what they say.
        temperature: rewards and log-odds are divided by it; see `prefkit.preference.fit_temperature`.
        encoding: how texts become tokens.
        pooling: the states that the head reads: that at the `last_token` of a response (the default), or the `mean` of
            those at its tokens.
        precision: numbers in which the backbone's matrix products are computed; the head is always in float32.
        shared: process a prompt once for all its responses; False takes the plain path.

    Raises:
        OptionError: the vocabularies of backbone and tokenizer, or the widths of backbone and head, do not fit
            together, or such states are not pooled so.

    Source: Stiennon et al. 2020, Learning to summarize from human feedback (arXiv 2009.01325).
    """

    provided = frozenset({"rewards", "separate_rewards", "views"})
    kind = "reward models"
    poolings: ClassVar[tuple[Pooling, ...]] = ("last_token", "mean")
    """How states may be pooled, the default first."""
    lacking: ClassVar[frozenset[str]] = frozenset()
    """What is not there of a classifier with its own head."""

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        head: Head | HeadOptions | Float[Tensor, " dim"] | None = None,
        *,
        ensemble: int | None = None,
        temperature: float = 1.0,
        encoding: EncodingOptions | None = None,
        pooling: Pooling | None = None,
        precision: Precision = "fp32",
        shared: bool = True,
    ) -> None:
        super().__init__(policy, tokenizer, encoding=encoding, precision=precision, shared=shared)
        self.pooling = pooling or self.poolings[0]
        if self.pooling not in self.poolings:
            raise OptionError(
                f"model.pooling: the states of {type(self._base).__name__} are pooled by {' or '.join(self.poolings)}, "
                f"not by {pooling}"
            )
        self._classifies = type(self._base).__name__.endswith("ForSequenceClassification")
        # A classifier on a causal model takes padding for no end of a text, even if it is the end token.
        self._pad: int | None = getattr(self.config, "pad_token_id", None) if self._classifies else None
        width = self._probed_width()
        if self._classifies and head is None:
            head = self._own_head(width)
            self.provided = self.provided - self.lacking
        if not temperature > 0:
            raise OptionError(f"temperature must be greater than 0, got {temperature}")
        self.temperature = temperature
        if ensemble is not None:
            if isinstance(head, Head | Tensor):
                raise OptionError("an ensemble is made of options of a head, not of one that is there already")
            head = make_ensemble(head or ScalarHeadOptions(), width, ensemble)
        elif isinstance(head, Options):
            head = make_head(head, width)
        elif not isinstance(head, Head):
            head = ScalarHead(width if head is None else len(head), weight=head)
        if width != head.width:
            raise OptionError(f"the head takes states of width {head.width}, the backbone's are {width} wide")
        self.head = head
        if head.compares:
            self.provided = self.provided - {"separate_rewards"}
            self.kind = f"reward models with a head `{head.kind}`"
        output, embeddings = policy.get_output_embeddings(), policy.get_input_embeddings()
        if output is not None and output.weight is not embeddings.weight:
            # Nobody reads it: without gradients it is neither trained nor waited for.
            output.requires_grad_(False)

    def encode(self, comparison: Comparison) -> Encoded:
        """Tokens of one comparison, and who judged, if the head asks.

        Raises:
            RecordError: it cannot be encoded, or has several prompts and the head compares responses to one.
        """
        if self.head.compares and comparison.joint:
            raise RecordError(f"a head `{self.head.kind}` compares responses to one prompt", field="prompts")
        if self.head.compares and len(comparison.responses) == 1:
            raise RecordError(
                f"a head `{self.head.kind}` compares responses: one alone has no reward", field="responses"
            )
        encoded = super().encode(comparison)
        return {**encoded, _ANNOTATOR: comparison.annotator or ""} if self.reads_people else encoded

    def encoding_key(self) -> str:
        """A digest of everything that decides what a comparison is encoded to."""
        return super().encoding_key() + (" people" if self.reads_people else "")

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pack encoded comparisons into one row, with the comparison of each response, and who judges it."""
        packed = self._packed(encoded)
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
        members = torch.stack([each.rewards for each in found.members], 1) if found.members else None
        factors = [each.factors for each in found.members if each.factors is not None]
        return ResponseScores(
            found.rewards / self.temperature,
            inputs["response_lengths"],
            views=views,
            factors=_scaled(found.factors, self.temperature),
            members=None if members is None else members / self.temperature,
            member_factors=_scaled(torch.stack(factors, 1), self.temperature) if factors else None,
        )

    def last_states(self, inputs: Inputs) -> Float[Tensor, "responses dim"]:
        """What the head reads of responses: the last hidden state at the last token of each."""
        return self._states(inputs)[0]

    def _packed(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        return super().collate(encoded)

    def _states(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        """What the head reads of responses and of their prompts."""
        with self._autocast():
            states, prompts = self._trunks[id(self.policy)].pooled(inputs, self.pooling, self._pad)
        return states.float(), prompts.float()

    def _own_head(self, width: int) -> Head:
        return OwnHead(width, self._base.score)

    @property
    def width(self) -> int:
        """Size of the hidden states."""
        return self.head.width

    @property
    def members(self) -> int:
        """Heads of an ensemble; 0 for none. See `prefkit.objectives.HasMembers`."""
        return len(self.head.heads) if isinstance(self.head, EnsembleHead) else 0

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
        if own:
            weights = {name: part.detach().float().cpu().contiguous() for name, part in own.items()}
            save_file(weights, folder / _HEAD_FILE)
        about = {
            "format": _FORMAT,
            "kind": "reward",
            "pooling": self.pooling,
            "dim": self.head.width,
            "head": None if isinstance(self.head, OwnHead) else self.head.options.model_dump(),
            "people": self.head.people,
            "ensemble": self.members or None,
            "temperature": self.temperature,
        }
        (folder / REWARD_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def _whole(self) -> bool:
        return True

    def _probed_width(self) -> int:
        """Look at the states themselves: not every backbone says how wide they are."""
        with torch.no_grad():
            inputs = self._packed([{"prompt_ids": [[0]], "response_ids": [[0]]}])
            inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            return int(self._states(inputs)[0].shape[1])


class PairRewardScorer(RewardScorer):
    """The same on a model that reads in both directions: an encoder, or a sequence classifier of one.

    Prompt and response are two texts, joined as the tokenizer joins them. Each response is read with its own copy of
    the prompt, since what the model makes of the prompt depends on the response. A head that reads prompts is told the
    state of the prompt alone.
    """

    poolings = ("cls", "mean", "last_token")
    lacking = frozenset({"views"})

    def _make_encoder(self, options: EncodingOptions | None) -> Encoder:
        return PairEncoder(self.tokenizer, positions_of(self._base), options)

    def _make_trunk(self, shared: bool) -> PairTrunk:
        if shared:
            logger.warning(
                f"{type(self._base).__name__} reads in both directions, so that a prompt cannot be shared between "
                "responses: each is processed on its own"
            )
        assert isinstance(self.encoder, PairEncoder)
        pad = self.tokenizer.pad_token_id
        return PairTrunk(self._base, self.encoder.frame, 0 if pad is None else pad)

    @property
    def _reading(self) -> PairTrunk:
        trunk: Any = self._trunks[id(self.policy)]
        assert isinstance(trunk, PairTrunk)
        return trunk

    def _packed(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        # The width is asked for before there is a head.
        head = getattr(self, "head", None)
        return self._reading.collate(encoded, isinstance(head, Head) and head.reads_prompts)

    def _states(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        if self._classifies:
            with self._autocast():
                logits: Tensor = self._base(**self._reading.arguments(inputs)).logits
            return logits.float(), None
        with self._autocast():
            states, prompts = self._reading.pooled(inputs, self.pooling)
        return states.float(), None if prompts is None else prompts.float()

    def _own_head(self, width: int) -> Head:
        # Between states and logits lie layers that only the classifier knows.
        return OwnHead(width)


_NO_REFERENCE = (
    "a reward model has no reference: train it with an objective on rewards, such as `reward_model`, and measure it "
    "without one"
)


def load_reward(options: ModelOptions | str, encoding: EncodingOptions | None = None) -> RewardScorer:
    """Load a reward model, or make one of a causal language model or an encoder, with a head that says nothing yet.

    A sequence classifier with one label is a reward model, too: its logit is the reward.

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
    saved = _read_folder(Path(resolve(options.path))) if has_reward_file(options.path) else None
    family = family_of(options)
    if saved is not None or family.classifier:
        for name in ("head", "pooling", "ensemble"):
            if getattr(options, name) is not None:
                raise OptionError(
                    f"model.{name} is for a new reward model; '{options.path}' is one with its own: leave it out"
                )
    if family.classifier and options.trained != "all":
        raise OptionError("model.trained does not apply to a classifier, whose head is part of it")
    policy = load_policy(options)
    if options.trained != "all":
        policy.requires_grad_(False)
    kind = PairRewardScorer if family.both_ways else RewardScorer
    scorer = kind(
        policy,
        load_tokenizer(options),
        options.head if saved is None else saved.head,
        encoding=encoding,
        pooling=options.pooling if saved is None else saved.pooling,
        ensemble=options.ensemble,
        temperature=1.0 if saved is None else saved.temperature,
        precision=options.precision,
        shared=options.shared_prompt,
    )
    if options.trained == "people":
        if not isinstance(scorer.head, IdealPointsHead):
            raise OptionError(f"model.trained: people needs a head `ideal_points`, this one is `{scorer.head.kind}`")
        scorer.head.freeze_tastes()
    return scorer


class _Folder(NamedTuple):
    """What the folder of a reward model says.

    Args:
        head: None for a classifier, which has its own.
        pooling: None for a classifier.
        temperature: see `RewardScorer`.
    """

    head: Head | None
    pooling: Pooling | None
    temperature: float


class _About(Options):
    """The file by which a folder is known."""

    format: Literal[1, 2]
    kind: Literal["reward"]
    pooling: Pooling
    dim: int = Field(ge=1)
    # Folders of the first format have a scalar head and do not say so.
    head: HeadOptions | None = ScalarHeadOptions()
    people: list[str] | None = None
    ensemble: int | None = Field(None, ge=2)
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)


def _read_folder(folder: Path) -> _Folder:
    path = folder / REWARD_FILE
    try:
        about = _About.parse(json.loads(path.read_text(encoding="utf-8")), str(path))
        if about.head is None:
            return _Folder(None, None, about.temperature)
        weights = load_file(folder / _HEAD_FILE)
        if about.ensemble is not None:
            head: Head = make_ensemble(about.head, about.dim, about.ensemble)
        else:
            head = make_head(about.head, len(weights["weight"]) if about.head.kind == "scalar" else about.dim)
        head.meet(about.people or ())
        head.load_state_dict(weights)
    except OptionError as error:
        raise OptionError(f"'{path}' is of a kind that this version does not know: {error}") from error
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise OptionError(f"the head of reward model '{folder}' cannot be read: {error}") from error
    return _Folder(head, about.pooling, about.temperature)


def set_temperature(folder: Path, temperature: float) -> None:
    """Divide all that a saved reward model says by a temperature, on top of the one that it has.

    Args:
        folder: of the model.
        temperature: greater than 0; see `prefkit.preference.fit_temperature`.

    Raises:
        OptionError: the temperature is not positive.
    """
    if not temperature > 0:
        raise OptionError(f"temperature must be greater than 0, got {temperature}")
    path = folder / REWARD_FILE
    about = json.loads(path.read_text(encoding="utf-8"))
    about["temperature"] = about.get("temperature", 1.0) * temperature
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _scaled(factors: Tensor | None, temperature: float) -> Tensor | None:
    """Factors whose products are divided by the temperature."""
    if factors is None:
        return None
    first, second = factors.unbind(-2)
    return torch.stack([first / temperature, second], dim=-2)


def draw_rewards(
    scorer: RewardScorer, encoded: Sequence[Encoded], *, samples: int | None = None, seed: int = 0
) -> Float[Tensor, "draws responses"]:
    """Rewards by every member of an ensemble, and in several passes with different dropout: what is not known varies.

    Args:
        scorer: an ensemble, or a model with dropout (load it with `dropout: true`), or both.
        encoded: comparisons as the scorer encoded them.
        samples: passes with dropout; None for one without.
        seed: of the dropout.

    Raises:
        OptionError: there is neither an ensemble nor dropout, or fewer than 2 samples.

    Source: Gal and Ghahramani 2016, Dropout as a Bayesian approximation; Lakshminarayanan et al. 2017 (ensembles).
    """
    dropping = [module for module in scorer.modules() if has_dropout(module)]
    if samples is None and not scorer.members:
        raise OptionError("the model has one head: give samples, to draw with dropout, or train it with model.ensemble")
    if samples is not None and samples < 2:
        raise OptionError(f"samples must be at least 2, got {samples}")
    if samples is not None and not dropping:
        raise OptionError("the model has no dropout, so that all samples would be the same")
    inputs = {name: tensor.to(scorer.device) for name, tensor in scorer.collate(encoded).items()}
    scorer.eval()
    drawn = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for module in dropping if samples is not None else ():
            # The module alone, not those inside it.
            module.training = True
        try:
            for _ in range(samples or 1):
                scores = scorer(inputs)
                drawn.append(scores.policy_logps[None] if scores.members is None else scores.members.T)
        finally:
            scorer.eval()
    return torch.cat(drawn).float().cpu()


def spread_of(draws: Float[Tensor, "draws responses"]) -> Float[Tensor, " responses"]:
    """Standard deviation of the rewards of the responses of one comparison over draws.

    Each draw is first freed of its mean over the responses, since only differences of rewards mean something; a
    response alone has nothing to differ from, and keeps its rewards as they are.

    Args:
        draws: see `draw_rewards`.
    """
    if draws.shape[1] > 1:
        draws = draws - draws.mean(1, keepdim=True)
    return draws.std(0)


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
