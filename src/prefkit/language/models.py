"""Loading causal language models for scoring and training, from a folder or a hub name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from pydantic import Field, field_validator, model_validator
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from prefkit.assets import model_path
from prefkit.errors import OptionError
from prefkit.language.encoding import EncodingOptions
from prefkit.language.heads import HeadOptions
from prefkit.language.scorer import LanguageScorer, Precision
from prefkit.options import Options

BUILTIN = "builtin"
"""Name of the small model that ships with the package."""

Pooling: TypeAlias = Literal["last_token", "mean", "cls"]
"""Which hidden states stand for a response."""

REWARD_FILE = "reward.json"
"""File by which a folder is known as that of a reward model; see `prefkit.language.reward`."""


class Family(NamedTuple):
    """What kind of model a folder or hub name is.

    Args:
        both_ways: it reads in both directions (BERT and its kin), instead of from left to right.
        classifier: it is a sequence classifier, with a head of its own.
    """

    both_ways: bool
    classifier: bool


class LoraOptions(Options):
    """A low-rank adapter (Hu et al., 2021) that is trained instead of the model's own weights.

    Args:
        rank: rank of the update of each matrix.
        alpha: scale of the update, `alpha / rank`.
        dropout: dropout before the adapter.
        targets: module names, or `all-linear` for every linear layer but the output layer.
    """

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | list[str] = "all-linear"


class ModelOptions(Options):
    """Which model, and how it is loaded.

    Args:
        kind: `lm` scores responses by their log-probability; `reward` is a reward model, with a head on the model.
        head: kind and options of a new reward model's head, see `prefkit.language.heads`; a scalar one by default.
        trained: of a reward model, train everything, the `head` on a frozen backbone, or, of ideal points, the weights
            of `people` alone.
        ensemble: heads of a new reward model, at least 2, on one pass of the backbone; each is trained with random
            weights of the rows (the Bayesian bootstrap). None for one head and no such weights.
        pooling: of a new reward model, the states that its head reads: that of the `last_token` of a response (the
            default), the `mean` over its tokens, or, of an encoder, that of the first token of all, `cls` (the default
            of encoders).
        path: folder or hub name of a causal language model or of a LoRA adapter; for a reward model also of an encoder
            or a sequence classifier with one label; `builtin` is the packaged small model.
        reference: folder or hub name of the frozen reference; by default the policy as it is loaded.
        revision: branch, tag or commit of a hub name.
        lora: train an adapter of this shape; None trains all weights.
        dtype: type in which weights are loaded; train all weights in float32.
        precision: `bf16` computes matrix products in bfloat16 (mixed precision), where the device has them.
        dropout: keep the model's own dropout; off by default, so that policy and reference differ by training alone.
        shared_prompt: process a prompt once for all its responses.
        trust_remote_code: run code that comes with the model. Off unless you have read that code.
    """

    kind: Literal["lm", "reward"] = "lm"
    head: HeadOptions | None = None
    trained: Literal["all", "head", "people"] = "all"
    pooling: Pooling | None = None
    ensemble: int | None = Field(None, ge=2)
    path: str = BUILTIN
    reference: str | None = None
    revision: str | None = None
    lora: LoraOptions | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    precision: Precision = "fp32"
    dropout: bool = False
    shared_prompt: bool = True
    trust_remote_code: bool = False

    @field_validator("head", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _applies(self) -> Self:
        if self.kind != "reward":
            for name in ("head", "trained", "pooling", "ensemble"):
                if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} applies only to `kind: reward`")
        if self.lora is not None and self.trained != "all":
            raise ValueError("`lora` trains an adapter of the backbone, `trained` leaves the backbone as it is")
        return self


def load_scorer(options: ModelOptions | str, encoding: EncodingOptions | None = None) -> LanguageScorer:
    """Load a policy (and a reference, if one is named) as a scorer.

    Args:
        options: see `ModelOptions`; a string stands for its `path`.
        encoding: how texts become tokens.

    Raises:
        OptionError: a model cannot be found or loaded, or the vocabularies do not fit together.
    """
    if isinstance(options, str):
        options = ModelOptions(path=options)
    if options.kind == "reward" or is_reward_model(options.path):
        raise OptionError(f"'{options.path}' is to be a reward model: load it with load_reward, or with kind 'reward'")
    if family_of(options).both_ways:
        raise OptionError(
            f"'{options.path}' reads in both directions and gives no likelihood of a text: model.kind: reward puts a "
            "head on it"
        )
    policy = load_policy(options)
    reference = None if options.reference is None else _load(options.reference, options, trainable=False)
    return LanguageScorer(
        policy,
        load_tokenizer(options),
        reference,
        encoding=encoding,
        precision=options.precision,
        shared=options.shared_prompt,
    )


def is_reward_model(path: str) -> bool:
    """Whether a folder holds a reward model, or a folder or hub name is a sequence classifier, which is one, too."""
    return has_reward_file(path) or family_of(ModelOptions(path=path)).classifier


def has_reward_file(path: str) -> bool:
    """Whether a folder holds a reward model that this package wrote."""
    return Path(resolve(path), REWARD_FILE).is_file()


def family_of(options: ModelOptions) -> Family:
    """What kind of model it is, by its configuration; a causal language model if that cannot be read.

    Raises:
        OptionError: it is an encoder with a decoder, which nothing here can load.
    """
    config = _config(resolve(options.path), options)
    if config is None:
        return Family(False, False)
    name = (getattr(config, "architectures", None) or [""])[0]
    if getattr(config, "is_encoder_decoder", False):
        raise OptionError(f"'{options.path}' is an encoder with a decoder ({name}): take a causal language model")
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    both_ways = masked and not getattr(config, "is_decoder", False) and not name.endswith("ForCausalLM")
    return Family(both_ways, name.endswith("ForSequenceClassification"))


def _config(path: str, options: ModelOptions) -> Any:
    """The configuration of a model, or of the model below an adapter; None if it cannot be read."""
    try:
        if Path(path, "adapter_config.json").is_file():
            path = resolve(str(PeftConfig.from_pretrained(path).base_model_name_or_path))
        return AutoConfig.from_pretrained(
            path, revision=options.revision or "main", trust_remote_code=options.trust_remote_code
        )
    except (OSError, ValueError, KeyError):
        # Loading the model itself says what is wrong.
        return None


def load_policy(options: ModelOptions) -> Any:
    """The model that is trained or measured, with a new adapter if one is asked for.

    Raises:
        OptionError: it cannot be found or loaded.
    """
    policy = _load(options.path, options)
    if not options.dropout:
        _disable_dropout(policy)
    if options.lora is not None:
        if isinstance(policy, PeftModel):
            policy = policy.merge_and_unload()
        policy = _with_adapter(policy, options.lora, family_of(options))
    return policy


def _load(name: str, options: ModelOptions, trainable: bool = True) -> Any:
    path = resolve(name)
    try:
        if Path(path, "adapter_config.json").is_file():
            base = PeftConfig.from_pretrained(path).base_model_name_or_path
            model = PeftModel.from_pretrained(_pretrained(resolve(str(base)), options), path, is_trainable=trainable)
        else:
            model = _pretrained(path, options)
    except (OSError, ValueError) as error:
        raise OptionError(f"model '{name}' cannot be loaded: {_first_line(error)}") from error
    if not trainable:
        model.requires_grad_(False)
        model.eval()
    return model


def _pretrained(path: str, options: ModelOptions) -> PreTrainedModel:
    family = family_of(options.model_copy(update={"path": path}))
    how = {
        "dtype": getattr(torch, options.dtype),
        "revision": options.revision or "main",
        "trust_remote_code": options.trust_remote_code,
    }
    kind = AutoModelForSequenceClassification if family.classifier else AutoModel
    kind = kind if family.classifier or family.both_ways else AutoModelForCausalLM
    model: PreTrainedModel = kind.from_pretrained(path, **how)
    if family.classifier and model.config.num_labels != 1:
        raise OptionError(
            f"'{path}' is a classifier of {model.config.num_labels} labels: a reward model has one, and its logit is "
            "the reward"
        )
    # Nobody reads it, and without it in the checkpoint it would be random.
    if kind is AutoModel and getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def load_tokenizer(options: ModelOptions) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        OptionError: it cannot be found or loaded.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            resolve(options.path),
            revision=options.revision or "main",
            trust_remote_code=options.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise OptionError(f"the tokenizer of '{options.path}' cannot be loaded: {_first_line(error)}") from error
    return tokenizer


def resolve(name: str) -> str:
    """Folder or hub name of a model, that of the built-in one for `builtin`."""
    return str(model_path()) if name == BUILTIN else name


def _with_adapter(policy: PreTrainedModel, lora: LoraOptions, family: Family) -> PeftModel:
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="SEQ_CLS" if family.classifier else "FEATURE_EXTRACTION" if family.both_ways else "CAUSAL_LM",
    )
    try:
        return get_peft_model(policy, config)
    except ValueError as error:
        raise OptionError(f"model.lora.targets: {_first_line(error)}") from error


def _disable_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
