"""Scorers on causal language models: what all of them share, and the log-probabilities of responses.

One prompt and its responses are processed once, as a group of a packed row (see `packing`). A model whose attention
cannot be shared that way takes the plain path, one padded sequence a response, with the same numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefkit.comparisons import Comparison
from prefkit.errors import OptionError, PrefkitError
from prefkit.language import attention
from prefkit.language.encoding import Encoder, EncodingOptions, vocabulary_size
from prefkit.language.head import Logits, logits_of, predicted_tokens, token_divergences, token_logps
from prefkit.language.last_layer import layers_of, trim
from prefkit.language.packing import ROW_MULTIPLE, Layout, TokenIds, pack
from prefkit.language.residual import mix_embeddings
from prefkit.objectives import Encoded, Inputs, ResponseScores, TemporalResidual, TokenScores

logger = logging.getLogger("prefkit")

Precision = Literal["fp32", "bf16"]
"""Numbers in which matrix products are computed: as the weights are stored, or in bfloat16 (mixed precision)."""


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device has products in bfloat16. A CPU without them imitates them, some forty times slower."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return device.type != "cpu" or supported is None or bool(supported())


BESIDE_REFERENCE = frozenset({"layers", "token_kl"})
"""What is read from the reference in the same forward pass: it is too much to be kept beforehand."""


class PackedScorer(nn.Module):
    """What every scorer on a causal language model shares: encoding, packed rows, precision, and the policy itself.

    Args:
        policy: the model to train or to measure, with or without a LoRA adapter.
        tokenizer: its tokenizer.
        encoding: how texts become tokens.
        precision: `fp32`, or `bf16` for mixed precision (weights stay as they are, matrix products are in bfloat16). On
            a CPU that has no such products, they are computed as for `fp32`, which is exacter and faster there.
        shared: process a prompt once for all its responses; False takes the plain path.

    Raises:
        OptionError: the vocabularies of policy and tokenizer do not fit together.
    """

    provided: frozenset[str]
    """What the scores can hold of what objectives need, see `prefkit.objectives.SCORED`."""

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        encoding: EncodingOptions | None = None,
        precision: Precision = "fp32",
        shared: bool = True,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.tokenizer, self.precision = tokenizer, precision
        self.config = policy.config
        self.encoder = self._make_encoder(encoding)
        size, known = self.config.vocab_size, vocabulary_size(tokenizer)
        if known > size:
            raise OptionError(f"the tokenizer has {known} tokens, the model only {size}; they do not belong together")
        self._no_split_modules = getattr(_causal_lm(policy), "_no_split_modules", None)
        self._trunks: dict[int, Trunk] = {id(policy): self._make_trunk(shared)}
        self._told = False
        self._wanted: frozenset[str] = frozenset()

    def _make_encoder(self, options: EncodingOptions | None) -> Encoder:
        return Encoder(self.tokenizer, getattr(self.config, "max_position_embeddings", None), options)

    def _make_trunk(self, shared: bool) -> Any:
        return Trunk(self._base, shared)

    @property
    def _base(self) -> PreTrainedModel:
        """The policy without an adapter."""
        return _causal_lm(self.policy)

    def provide(self, needs: frozenset[str]) -> None:
        """See `Scorer.provide`.

        Raises:
            OptionError: the scores lack something that is needed.
        """
        missing = needs - self.provided
        if missing:
            hint = "; train a reward model instead (model.kind: reward)" if "rewards" in missing else ""
            raise OptionError(f"scores of {self.kind} have no {', '.join(sorted(missing))}{hint}")
        self._wanted = needs
        self.encoder.joint = "joint" in needs

    kind: str
    """What messages call the scorer's model."""

    # -- encoding ---------------------------------------------------------------------------------------------------

    def encode(self, comparison: Comparison) -> Encoded:
        """Tokens of one comparison; see `Encoder.encode`."""
        return self.encoder.encode(comparison, steps="steps" in self._wanted)

    def encoding_key(self) -> str:
        """A digest of everything that decides the tokens."""
        return self.encoder.key() + (" steps" if "steps" in self._wanted else "")

    def collate(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pack encoded comparisons into one row; see `packing.pack`."""
        groups: list[tuple[TokenIds, Sequence[TokenIds]]] = []
        for item in encoded:
            prompts, responses = item["prompt_ids"], item["response_ids"]
            if len(prompts) == 1:
                groups.append((prompts[0], responses))
                continue
            # Neighbours with one prompt share it.
            for prompt, same in groupby(zip(prompts, responses, strict=True), key=itemgetter(0)):
                groups.append((prompt, [response for _, response in same]))
        packed = pack(groups, whole=self._whole())
        if "steps" in self._wanted:
            packed["steps"] = torch.tensor([step for item in encoded for own in item["step_ids"] for step in own])
        return packed

    def _whole(self) -> bool:
        """Whether the state at the last token of a response is wanted, too."""
        return "states" in self._wanted

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._computed_in() == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _computed_in(self) -> Precision:
        """The precision that the device has."""
        if self.precision == "bf16" and not multiplies_bf16(self.device):
            if not self._told:
                logger.warning("this CPU has no products in bfloat16: precision=bf16 computes in float32")
                self._told = True
            return "fp32"
        return self.precision

    # -- what loops and frameworks ask of the module ----------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        device: torch.device = next(self.policy.parameters()).device
        return device

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt is processed once for all its responses."""
        return self._trunks[id(self.policy)].shared

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the policy (or its adapter) and the tokenizer to a folder that `from_pretrained` loads.

        Args:
            folder: where to write.
            state: the module's full state, where this process holds only a shard of it.
        """
        own = None
        if state is not None:
            own = {name.removeprefix("policy."): part for name, part in state.items() if name.startswith("policy.")}
        self.policy.save_pretrained(folder, state_dict=own)
        self.tokenizer.save_pretrained(folder)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        self.policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs or {"use_reentrant": False})
        if isinstance(self.policy, PeftModel):
            self.policy.enable_input_require_grads()

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether the policy can do so."""
        return bool(getattr(_causal_lm(self.policy), "supports_gradient_checkpointing", False))


class LanguageScorer(PackedScorer):
    """Scores responses by their log-probability under a causal language model.

    Args:
        policy: see `PackedScorer`, as are the other options.
        tokenizer: its tokenizer.
        reference: a frozen model with the same vocabulary. Without one, the reference is the policy without its
            adapter, or, for a policy without adapter, the policy as it was given, until it is trained.
        encoding: how texts become tokens.
        precision: numbers in which matrix products are computed.
        shared: process a prompt once for all its responses; False takes the plain path.

    Attributes:
        width: size of the policy's hidden states.
        ref_width: size of the reference's hidden states.
        ref_depth: number of the reference's layers.
        residual: how the policy's own predictions are mixed into its inputs in training, if an objective asks for it.

    Raises:
        OptionError: the vocabularies of policy, reference and tokenizer do not fit together.
    """

    provided = frozenset({"tokens", "states", "predictors", "joint", "steps", "temporal_residual"}) | BESIDE_REFERENCE
    kind = "language models"

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        reference: PreTrainedModel | None = None,
        *,
        encoding: EncodingOptions | None = None,
        precision: Precision = "fp32",
        shared: bool = True,
    ) -> None:
        super().__init__(policy, tokenizer, encoding=encoding, precision=precision, shared=shared)
        # The reference is no submodule: it is not trained, sharded or saved with the policy.
        self._reference = (reference,) if reference is not None else ()
        if reference is not None:
            size, other = self.config.vocab_size, reference.config.vocab_size
            if other != size:
                raise OptionError(f"policy and reference must have one vocabulary, got {size} and {other} tokens")
            self._trunks[id(reference)] = Trunk(_causal_lm(reference), shared)
        self._untrained = _versions(policy)
        self._key: tuple[tuple[int, ...], str] | None = None
        self._snapshot: dict[str, Tensor] | None = None
        self.residual = TemporalResidual()
        frozen = _text_config(reference.config if reference is not None else self.config)
        self.width = int(_text_config(self.config).hidden_size)
        self.ref_width, self.ref_depth = int(frozen.hidden_size), int(frozen.num_hidden_layers)

    def provide(self, needs: frozenset[str]) -> None:
        """See `Scorer.provide`.

        Raises:
            OptionError: the scores lack something that is needed, or this model or its reference cannot give it.
        """
        super().provide(needs)
        if "steps" in needs and not self.tokenizer.is_fast:
            raise OptionError(f"{type(self.tokenizer).__name__} does not say where tokens stand: steps need a fast one")
        if needs & BESIDE_REFERENCE and not self._reference and not isinstance(self.policy, PeftModel):
            raise OptionError(
                "the objective reads the reference's distributions while the policy is trained, so the policy cannot "
                "be its own reference: give model.reference, or train an adapter (model.lora)"
            )
        name = type(_causal_lm(self.policy)).__name__
        if "layers" in needs and self._trunks[id(self._frozen)].layers is None:
            raise OptionError(f"the objective reads every layer of the reference, and those of {name} cannot be found")
        if "temporal_residual" in needs and not self._trunks[id(self.policy)].takes_embeddings:
            raise OptionError(f"the objective mixes input embeddings, and {name} takes no inputs_embeds")

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Where the policy goes, its reference goes, too.
        for reference in self._reference:
            reference._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no types here
        return self

    def forward(self, inputs: Inputs) -> ResponseScores:
        """Log-probabilities of all responses of a packed batch under the policy, and what else was asked for."""
        if self._wanted & BESIDE_REFERENCE:
            return self._score_beside_reference(inputs)
        if "temporal_residual" in self._wanted and self.training and self.residual.rate > 0:
            return self._score_mixed(inputs)
        return self._score(self.policy, inputs)

    @torch.no_grad()
    def reference(self, inputs: Inputs) -> ResponseScores:
        """The same under the frozen reference.

        Raises:
            PrefkitError: the reference is the policy itself and the policy has been trained.
        """
        if self._snapshot is not None or self._reference or isinstance(self.policy, PeftModel):
            with self._as_reference():
                return self._score(self._frozen, inputs)
        if _versions(self.policy) != self._untrained:
            raise PrefkitError("the policy has been trained since it was loaded; give a reference model")
        return self._score(self.policy, inputs)

    def reference_key(self) -> str:
        """A digest of the reference's weights and precision."""
        if self._snapshot is not None:
            if self._key is None:
                with self._as_it_was():
                    self._key = ((), self._digest(self.policy.named_parameters()))
            return self._key[1]
        model = self._frozen
        written = _versions(model)
        if self._key is None or self._key[0] != written:
            # All weights are read: seconds for a large model, and a run asks for each of its data sets.
            self._key = (written, self._digest(_frozen_weights(model)))
        return self._key[1]

    def refresh_reference(self, *, keep: bool = False) -> None:
        """Make the policy, as it is now, the frozen reference; see `Scorer.refresh_reference`.

        Kept are copies of the weights that are trained, of an adapter those of the adapter: they change places with
        the policy's own for as long as the reference scores.
        """
        if keep and (self._snapshot is not None or self._reference or isinstance(self.policy, PeftModel)):
            return
        for model in self._reference:
            del self._trunks[id(model)]
        self._reference, self._key = (), None
        self._snapshot = {
            name: weight.detach().clone() for name, weight in self.policy.named_parameters() if weight.requires_grad
        }

    @contextlib.contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """The policy with the weights that it had when it became the reference."""
        kept = self._snapshot or {}
        trained = {name: weight for name, weight in self.policy.named_parameters() if name in kept}
        now = {name: weight.data for name, weight in trained.items()}
        try:
            for name, weight in trained.items():
                weight.data = kept[name].to(weight.device)
            yield
        finally:
            for name, weight in trained.items():
                weight.data = now[name]

    def _digest(self, weights: Iterable[tuple[str, Tensor]]) -> str:
        """A digest of weights and precision."""
        digest = hashlib.sha256(self._computed_in().encode())
        for name, tensor in weights:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _score(self, model: nn.Module, inputs: Inputs) -> ResponseScores:
        trunk, targets = self._trunks[id(model)], inputs["targets"]
        with self._autocast():
            batch = trunk.batch(inputs)
            hidden = trunk.hidden(batch)
            logps = trunk.logps(hidden, batch, targets)
        return _totals(
            inputs,
            logps,
            states=hidden[batch.own] if batch.held is None else None,
            predictors=hidden[batch.predictors] if "predictors" in self._wanted else None,
        )

    def _score_mixed(self, inputs: Inputs) -> ResponseScores:
        """Scores with the policy's one-step-ahead predictions in its input embeddings (Intuitive Fine-Tuning)."""
        trunk, targets, residual = self._trunks[id(self.policy)], inputs["targets"], self.residual
        batch = trunk.batch(inputs)
        # Each pass has an autocast of its own: one that began without gradients would keep weights that have none.
        with torch.no_grad(), self._autocast():
            states = trunk.hidden(batch)[batch.predictors]
            ahead, plain = predicted_tokens(trunk.logits, states, targets, residual.choose, self.config.vocab_size)
            embeds = trunk.mixed(batch, ahead, residual.rate)
        with self._autocast():
            hidden = trunk.hidden(batch, embeds)
            logps = trunk.logps(hidden, batch, targets)
        own = hidden[batch.own] if batch.held is None else None
        return _totals(inputs, logps, states=own, plain_logps=plain)

    def _score_beside_reference(self, inputs: Inputs) -> ResponseScores:
        """Scores with those of the reference, and how far apart their distributions over the next token are."""
        trunk, frozen, targets = self._trunks[id(self.policy)], self._trunks[id(self._frozen)], inputs["targets"]

        def ref_logits(states: Tensor) -> Tensor:
            with contextlib.nullcontext() if isinstance(frozen.head, nn.Linear) else self._as_reference():
                return frozen.logits(states)

        with torch.no_grad(), self._autocast(), self._as_reference():
            ref_batch = frozen.batch(inputs)
            with frozen.recorded(ref_batch, "layers" in self._wanted) as layers:
                ref_hidden = frozen.hidden(ref_batch)[ref_batch.predictors]
            if layers:
                # The last layer is read as the output layer reads it, after the final norm.
                layers[-1] = ref_hidden
        batch = trunk.batch(inputs)
        with self._autocast():
            hidden = trunk.hidden(batch)
            logps, ref_logps, kl = token_divergences(
                trunk.logits, hidden[batch.predictors], ref_logits, ref_hidden, targets, self.config.vocab_size
            )
        return _totals(
            inputs,
            logps.clone(),
            ref_logps=ref_logps,
            kl=kl.clone(),
            states=hidden[batch.own] if batch.held is None else None,
            layers=torch.stack(layers, dim=1).float() if layers else None,
        )

    @property
    def _frozen(self) -> nn.Module:
        """The model that the reference is, or is a part of."""
        model: nn.Module = self._reference[0] if self._reference else self.policy
        return model

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[nn.Module]:
        """The reference as a model, for as long as the block lasts: its own weights, no adapter, no dropout."""
        with self._as_reference():
            yield self._frozen

    @contextlib.contextmanager
    def _as_reference(self) -> Iterator[None]:
        """The reference as it is scored with: its own weights, no adapter, no dropout."""
        if self._snapshot is not None:
            frozen: contextlib.AbstractContextManager[Any] = self._as_it_was()
        elif not self._reference and isinstance(self.policy, PeftModel):
            frozen = self.policy.disable_adapter()
        else:
            frozen = contextlib.nullcontext()
        with _evaluating(self._frozen), frozen:
            yield


class _Batch(NamedTuple):
    """A packed batch as a decoder takes it. Places count the tokens of all its sequences.

    Args:
        ids: `[1, row]`, or one padded sequence a response.
        arguments: masks and positions.
        predictors: for each response token, the place whose state predicts it.
        own: places of the response tokens that are there.
        held: which response tokens are there; None if all are.
    """

    ids: Tensor
    arguments: dict[str, Any]
    predictors: Tensor
    own: Tensor
    held: Tensor | None


class Trunk:
    """A causal language model, taken apart into the layers below the output layer and that layer.

    Args:
        model: a causal language model, or a sequence classifier on the layers of one, which has no output layer.
        share: process a prompt once for all its responses, where that gives the same numbers.

    Attributes:
        shared: whether it does.
    """

    def __init__(self, model: PreTrainedModel, share: bool) -> None:
        self.decoder, self.head = model.get_decoder(), model.get_output_embeddings()
        classifies = type(model).__name__.endswith("ForSequenceClassification")
        if (self.head is None and not classifies) or self.decoder is model:
            raise OptionError(f"{type(model).__name__} is no causal language model with an output layer")
        config = model.config
        self.scale = float(
            getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        )
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.layers = layers_of(self.decoder, _text_config(config).num_hidden_layers)
        self.takes_embeddings = "inputs_embeds" in inspect.signature(self.decoder.forward).parameters
        self.shared = False
        own = config._attn_implementation
        probe = _probe(config.vocab_size, next(model.parameters()).device)
        with torch.no_grad(), _evaluating(model):
            expected = self._probed(probe) if self.head is None else _own_logps(model, probe)
            if share and _can_share(model):
                try:
                    model.set_attn_implementation(attention.IMPLEMENTATION)
                    self.shared = True
                    self.shared = _agree(self._probed(probe), expected, model.dtype)
                except attention.UnsupportedAttentionError:
                    self.shared = False
            if self.shared:
                self._trim_last_layer(probe, expected, model)
            if not self.shared:
                model.set_attn_implementation(own)
                if share:
                    logger.warning(
                        f"{type(model).__name__} cannot share a prompt between responses: each is processed on its own"
                    )
                if not _agree(self._probed(probe), expected, model.dtype):
                    raise OptionError(
                        f"the log-probabilities of {type(model).__name__} cannot be taken from its states"
                    )

    def _trim_last_layer(self, probe: Inputs, expected: Tensor, model: PreTrainedModel) -> None:
        """Spare the last layer what nobody reads, if the numbers stay as they are."""
        if self.layers is None:
            return
        handles = trim(self.layers[-1])
        try:
            if _agree(self._probed(probe), expected, model.dtype):
                return
        except Exception as error:  # whatever an unknown layer raises when it is given part of a row
            logger.debug(f"the last layer of {type(model).__name__} is computed whole: {error}")
        for handle in handles:
            handle.remove()

    def pooled(self, inputs: Inputs, pooling: str = "last_token", pad: int | None = None) -> tuple[Tensor, Tensor]:
        """The state of each response of a whole row, and that at the end of its prompt, `[responses, dim]`.

        The output layer is not computed.

        Args:
            inputs: the row.
            pooling: the state at the `last_token` of a response, or the `mean` of those at all its tokens.
            pad: a token at which no response ends, so that the last one before it is looked for.
        """
        batch = self.batch(inputs)
        assert batch.held is None
        hidden, lengths = self.hidden(batch), inputs["response_lengths"]
        ends = lengths.cumsum(0)
        prompts = hidden[batch.predictors[ends - lengths]]
        if pooling == "mean":
            owner = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), lengths)
            sums = hidden.new_zeros(len(lengths), hidden.shape[1]).index_add(0, owner, hidden[batch.own])
            return sums / lengths[:, None], prompts
        last = ends - 1
        if pad is not None:
            owner = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), lengths)
            places = torch.arange(len(owner), device=hidden.device).masked_fill(inputs["targets"] == pad, -1)
            seen = torch.full_like(last, -1).scatter_reduce(0, owner, places, "amax")
            last = torch.where(seen >= 0, seen, last)
        return hidden[batch.own[last]], prompts

    def _probed(self, probe: Inputs) -> Tensor:
        batch = self.batch(probe)
        hidden = self.hidden(batch)
        if self.head is None:
            return hidden[batch.predictors].float()
        return self.logps(hidden, batch, probe["targets"])

    def batch(self, inputs: Inputs) -> _Batch:
        """A packed batch as this model's decoder takes it."""
        layout, device = _layout(inputs), inputs["input_ids"].device
        places = layout.on(device)
        held = None if layout.whole else places.held
        if not self.shared:
            padded, mask, predictors = _unpacked(inputs)
            # A token stands one place behind the state that predicts it.
            own = predictors + 1 if held is None else predictors[held] + 1
            return _Batch(padded, {"attention_mask": mask}, predictors, own, held)
        arguments = {
            "position_ids": inputs["position_ids"],
            # A mask that is given as four-dimensional is taken as it is: the layout says who sees whom.
            "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
            "layout": layout,
        }
        return _Batch(inputs["input_ids"], arguments, places.predictors, places.own, held)

    def hidden(self, batch: _Batch, embeds: Tensor | None = None) -> Tensor:
        """The last hidden states, `[places, dim]`; of a row, right only where they are read.

        Args:
            batch: the tokens.
            embeds: input embeddings to take in their stead.
        """
        given = {"input_ids": batch.ids} if embeds is None else {"inputs_embeds": embeds}
        states: Tensor = self.decoder(**given, **batch.arguments, use_cache=False).last_hidden_state
        return states.flatten(0, 1)

    def mixed(self, batch: _Batch, ahead: Tensor, rate: float) -> Tensor:
        """Input embeddings with a share of those of the tokens that were predicted in the place of the response's.

        Looked up without a gradient, as in the authors' code, which keeps a frozen copy of the table.
        """
        further = batch.ids.flatten().index_copy(0, batch.own, ahead if batch.held is None else ahead[batch.held])
        embed = self.decoder.get_input_embeddings()
        return mix_embeddings(embed(batch.ids), embed(further.view_as(batch.ids)), rate)

    @contextlib.contextmanager
    def recorded(self, batch: _Batch, wanted: bool) -> Iterator[list[Tensor]]:
        """The states of every layer that predict the response tokens, `[tokens, dim]` each, once the decoder has run.

        Hooks that are set now run after those that fill up a shortened last layer, so it is read as it is to be read;
        the `output_hidden_states` of transformers would be taken before.
        """
        found: list[Tensor] = []

        def keep(layer: nn.Module, args: Any, output: Any) -> None:
            states: Tensor = output[0] if isinstance(output, tuple) else output
            found.append(states.flatten(0, 1)[batch.predictors])

        handles = [layer.register_forward_hook(keep) for layer in self.layers or ()] if wanted else []
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    @property
    def logits(self) -> Logits:
        """From hidden states to logits."""
        return logits_of(self.head, self.scale, self.softcap)

    def logps(self, hidden: Tensor, batch: _Batch, targets: Tensor) -> Tensor:
        """Log-probabilities of the response tokens, `[tokens]`."""
        count = len(targets)
        padding = (0, -count % ROW_MULTIPLE)
        states = hidden.index_select(0, F.pad(batch.predictors, padding))
        logps = token_logps(self.head, states, F.pad(targets, padding), scale=self.scale, softcap=self.softcap)
        # A copy: FSDP2 hooks what a forward pass returns, and cannot hook a view.
        return logps[:count].clone()


def _totals(inputs: Inputs, logps: Tensor, **tokens: Tensor | None) -> ResponseScores:
    """Scores of responses from those of their tokens."""
    lengths = inputs["response_lengths"]
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=logps.device), lengths)

    def total(values: Tensor) -> Tensor:
        return torch.zeros(len(lengths), device=logps.device).index_add(0, owner, values)

    ref = tokens.get("ref_logps")
    return ResponseScores(
        total(logps),
        lengths,
        None if ref is None else total(ref),
        TokenScores(logps, owner, steps=inputs.get("steps"), **tokens),
    )


def _unpacked(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """One padded sequence a response: tokens and mask `[responses, longest]`, and the places that predict its
    tokens."""
    row, targets = inputs["input_ids"][0], inputs["targets"]
    layout = _layout(inputs)
    sequences: list[Tensor] = []
    prompts: list[int] = []
    start = 0
    for span in layout.spans:
        prompt = row[span.start : span.split]
        for read in span.responses:
            sequences.append(torch.cat([prompt, targets[start : start + read]]))
            prompts.append(span.prompt)
            start += read if layout.whole else read + 1
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    width = padded.shape[1]
    mask = (torch.arange(width) < lengths[:, None]).long().to(row.device)
    places = [
        torch.arange(index * width + prompt - 1, index * width + int(length) - layout.whole)
        for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    return padded, mask, torch.cat(places).to(row.device)


def _layout(inputs: Inputs) -> Layout:
    return Layout.of(inputs["prompt_lengths"], inputs["group_sizes"], inputs["response_lengths"], inputs.get("whole"))


def _own_logps(model: PreTrainedModel, inputs: Inputs) -> Tensor:
    """Log-probabilities of the response tokens by the model's own logits: what every other path has to equal."""
    padded, mask, predictors = _unpacked(inputs)
    logits = model(input_ids=padded, attention_mask=mask, use_cache=False).logits.flatten(0, 1)
    logps: Tensor = logits[predictors].float().log_softmax(1).gather(1, inputs["targets"][:, None]).squeeze(1)
    return logps


def _probe(vocabulary: int, device: torch.device) -> dict[str, Tensor]:
    """Two groups of random tokens, on which the paths through a model are compared before they are trusted."""
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=generator).tolist()

    probe = pack([(some(5), [some(4), some(6)]), (some(3), [some(2), some(5), some(1)])])
    return {name: tensor.to(device) for name, tensor in probe.items()}


def _agree(measured: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    # Half precision rounds differently along different paths; a wrong mask is off by far more than rounding.
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    return bool(torch.allclose(measured, expected, rtol=tolerance, atol=tolerance))


def _can_share(model: PreTrainedModel) -> bool:
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    return bool(model._supports_attention_backend) and kinds <= {"full_attention", "sliding_attention"}


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _causal_lm(model: nn.Module) -> PreTrainedModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _frozen_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and weights of a model without its adapter."""
    for name, parameter in _causal_lm(model).named_parameters():
        if ".lora_" not in name and ".modules_to_save." not in name:
            yield name, parameter


def _versions(model: nn.Module) -> tuple[int, ...]:
    """Changes whenever a weight is written in place."""
    return tuple(parameter._version for parameter in model.parameters())


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


attention.register()
