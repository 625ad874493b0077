"""The language scorer: log-probabilities of responses under a causal language model.

One prompt and its responses are processed once, as a group of a packed row (see `packing`). A model whose attention
cannot be shared that way takes the plain path, one padded sequence a response, with the same numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefkit.comparisons import Comparison
from prefkit.errors import OptionError, PrefkitError
from prefkit.language import attention
from prefkit.language.encoding import Encoder, EncodingOptions, vocabulary_size
from prefkit.language.head import token_logps
from prefkit.language.last_layer import last_layer, trim
from prefkit.language.packing import ROW_MULTIPLE, Layout, TokenIds, pack
from prefkit.objectives import Encoded, Inputs, ResponseScores, TokenScores

logger = logging.getLogger("prefkit")

Precision = Literal["fp32", "bf16"]
"""Numbers in which matrix products are computed: as the weights are stored, or in bfloat16 (mixed precision)."""


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device has products in bfloat16. A CPU without them imitates them, some forty times slower."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return device.type != "cpu" or supported is None or bool(supported())


_PROVIDED = frozenset({"tokens", "states", "steps"})
"""What the scores can hold of what objectives need, see `prefkit.objectives.SCORED`."""


class LanguageScorer(nn.Module):
    """Scores responses by their log-probability under a causal language model.

    Args:
        policy: the model to train or to measure, with or without a LoRA adapter.
        tokenizer: its tokenizer.
        reference: a frozen model with the same vocabulary. Without one, the reference is the policy without its
            adapter, or, for a policy without adapter, the policy as it was given, until it is trained.
        encoding: how texts become tokens.
        precision: `fp32`, or `bf16` for mixed precision (weights stay as they are, matrix products are in bfloat16). On
            a CPU that has no such products, they are computed as for `fp32`, which is exacter and faster there.
        shared: process a prompt once for all its responses; False takes the plain path.

    Raises:
        OptionError: the vocabularies of policy, reference and tokenizer do not fit together.
    """

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
        super().__init__()
        self.policy = policy
        # The reference is no submodule: it is not trained, sharded or saved with the policy.
        self._reference = (reference,) if reference is not None else ()
        self.tokenizer, self.precision = tokenizer, precision
        self.config = policy.config
        self.encoder = Encoder(tokenizer, getattr(self.config, "max_position_embeddings", None), encoding)
        self._check_vocabulary(reference)
        self._no_split_modules = getattr(_causal_lm(policy), "_no_split_modules", None)
        self._trunks = {id(model): _Trunk(_causal_lm(model), shared) for model in (policy, *self._reference)}
        self._untrained = _versions(policy)
        self._key: tuple[tuple[int, ...], str] | None = None
        self._snapshot: dict[str, Tensor] | None = None
        self._told = False
        self._wanted: frozenset[str] = frozenset()

    def provide(self, needs: frozenset[str]) -> None:
        """See `Scorer.provide`.

        Raises:
            OptionError: a language model's scores lack something that is needed.
        """
        missing = needs - _PROVIDED
        if missing:
            raise OptionError(f"scores of language models have no {', '.join(sorted(missing))}")
        if "steps" in needs and not self.tokenizer.is_fast:
            raise OptionError(f"{type(self.tokenizer).__name__} does not say where tokens stand: steps need a fast one")
        self._wanted = needs

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
        packed = pack(groups, whole="states" in self._wanted)
        if "steps" in self._wanted:
            packed["steps"] = torch.tensor([step for item in encoded for own in item["step_ids"] for step in own])
        return packed

    # -- scores -----------------------------------------------------------------------------------------------------

    def forward(self, inputs: Inputs) -> ResponseScores:
        """Log-probabilities of all responses of a packed batch under the policy."""
        return self._score(self.policy, inputs)

    @torch.no_grad()
    def reference(self, inputs: Inputs) -> ResponseScores:
        """The same under the frozen reference.

        Raises:
            PrefkitError: the reference is the policy itself and the policy has been trained.
        """
        if self._snapshot is not None:
            with self._as_it_was():
                return self._score(self.policy, inputs)
        if self._reference:
            return self._score(self._reference[0], inputs)
        if isinstance(self.policy, PeftModel):
            with self.policy.disable_adapter():
                return self._score(self.policy, inputs)
        if _versions(self.policy) != self._untrained:
            raise PrefkitError("the policy has been trained since it was loaded; give a reference model")
        return self._score(self.policy, inputs)

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

    def reference_key(self) -> str:
        """A digest of the reference's weights and precision."""
        if self._snapshot is not None:
            if self._key is None:
                with self._as_it_was():
                    self._key = ((), self._digest(self.policy.named_parameters()))
            return self._key[1]
        model = self._reference[0] if self._reference else self.policy
        written = _versions(model)
        if self._key is None or self._key[0] != written:
            # All weights are read: seconds for a large model, and a run asks for each of its data sets.
            self._key = (written, self._digest(_frozen_weights(model)))
        return self._key[1]

    def _digest(self, weights: Iterable[tuple[str, Tensor]]) -> str:
        """A digest of weights and precision."""
        digest = hashlib.sha256(self._computed_in().encode())
        for name, tensor in weights:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _score(self, model: nn.Module, inputs: Inputs) -> ResponseScores:
        trunk = self._trunks[id(model)]
        with self._autocast():
            logps, states = trunk.score(inputs)
        lengths = inputs["response_lengths"]
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=logps.device), lengths)
        totals = torch.zeros(len(lengths), device=logps.device).index_add(0, owner, logps)
        return ResponseScores(
            totals, lengths, tokens=TokenScores(logps, owner, states=states, steps=inputs.get("steps"))
        )

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
        own = None if state is None else {name.removeprefix("policy."): tensor for name, tensor in state.items()}
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

    def _check_vocabulary(self, reference: PreTrainedModel | None) -> None:
        size, known = self.config.vocab_size, vocabulary_size(self.tokenizer)
        if known > size:
            raise OptionError(f"the tokenizer has {known} tokens, the model only {size}; they do not belong together")
        if reference is not None and reference.config.vocab_size != size:
            raise OptionError(
                f"policy and reference must have one vocabulary, got {size} and {reference.config.vocab_size} tokens"
            )


class _Trunk:
    """A causal language model, taken apart into the layers below the output layer and that layer."""

    def __init__(self, model: PreTrainedModel, share: bool) -> None:
        self.decoder, self.head = model.get_decoder(), model.get_output_embeddings()
        if self.head is None or self.decoder is model:
            raise OptionError(f"{type(model).__name__} is no causal language model with an output layer")
        config = model.config
        self.scale = float(
            getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        )
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.shared = False
        own = config._attn_implementation
        probe = _probe(config.vocab_size, next(model.parameters()).device)
        with torch.no_grad(), _evaluating(model):
            expected = _own_logps(model, probe)
            if share and _can_share(model):
                try:
                    model.set_attn_implementation(attention.IMPLEMENTATION)
                    self.shared = _agree(self._shared(probe)[0], expected, model.dtype)
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
                if not _agree(self._plain(probe)[0], expected, model.dtype):
                    raise OptionError(
                        f"the log-probabilities of {type(model).__name__} cannot be taken from its states"
                    )

    def _trim_last_layer(self, probe: Inputs, expected: Tensor, model: PreTrainedModel) -> None:
        """Spare the last layer what nobody reads, if the numbers stay as they are."""
        layer = last_layer(self.decoder, model.config.num_hidden_layers)
        if layer is None:
            return
        handles = trim(layer)
        try:
            if _agree(self._shared(probe)[0], expected, model.dtype):
                return
        except Exception as error:  # whatever an unknown layer raises when it is given part of a row
            logger.debug(f"the last layer of {type(model).__name__} is computed whole: {error}")
        for handle in handles:
            handle.remove()

    def score(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the response tokens of a packed batch, `[tokens]`, and in a whole row their states."""
        return self._shared(inputs) if self.shared else self._plain(inputs)

    def _shared(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        layout = _layout(inputs)
        ids = inputs["input_ids"]
        hidden = self.decoder(
            input_ids=ids,
            position_ids=inputs["position_ids"],
            # A mask that is given as four-dimensional is taken as it is: the layout says who sees whom.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device),
            use_cache=False,
            layout=layout,
        ).last_hidden_state[0]
        logps = self._head(hidden, torch.tensor(layout.predictors(), device=ids.device), inputs["targets"])
        return logps, hidden[torch.tensor(layout.own(), device=ids.device)] if layout.whole else None

    def _plain(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        padded, mask, predictors = _unpacked(inputs)
        hidden = self.decoder(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state.flatten(0, 1)
        # The state at a token stands one place behind the one that predicts it.
        return self._head(hidden, predictors, inputs["targets"]), hidden[predictors + 1] if "whole" in inputs else None

    def _head(self, hidden: Tensor, predictors: Tensor, targets: Tensor) -> Tensor:
        count = len(targets)
        padding = (0, -count % ROW_MULTIPLE)
        states = hidden.index_select(0, F.pad(predictors, padding))
        logps = token_logps(self.head, states, F.pad(targets, padding), scale=self.scale, softcap=self.softcap)
        # A copy: FSDP2 hooks what a forward pass returns, and cannot hook a view.
        return logps[:count].clone()


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
