"""Small models that read in both directions, with random weights, and tokenizers with the conventions of theirs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from tests.language.models import VOCABULARY

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODERS = {
    "bert": BertConfig(**_SIZES, pad_token_id=0, max_position_embeddings=64),
    "roberta": RobertaConfig(**_SIZES, pad_token_id=0, max_position_embeddings=64, type_vocab_size=1),
    "modernbert": ModernBertConfig(
        **_SIZES, pad_token_id=0, cls_token_id=1, sep_token_id=2, max_position_embeddings=64, local_attention=8
    ),
}
CAUSAL = {
    "llama": LlamaConfig(**_SIZES, pad_token_id=0, num_key_value_heads=2, max_position_embeddings=128),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=2, n_embd=32, n_layer=2, n_head=4
    ),
}


def build_encoder(style: str, labels: int | None = None) -> PreTrainedModel:
    """A model with weights far from 0; with labels a sequence classifier."""
    torch.manual_seed(0)
    config: Any = copy.deepcopy((ENCODERS | CAUSAL)[style])
    if labels is not None:
        config.num_labels = labels
    kind = AutoModel if labels is None else AutoModelForSequenceClassification
    model: PreTrainedModel = kind.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def joining(style: str, longest: int = 10**30) -> PreTrainedTokenizerFast:
    """Words w4, w5, ...; two texts are joined as models of the style have them."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    middle = "</s> </s>" if style == "roberta" else "</s>"
    second = "0" if style == "roberta" else "1"
    marks = " ".join(f"{mark}:0" for mark in middle.split())
    backend.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0 </s>:0",
        pair=f"<s>:0 $A:0 {marks} $B:{second} </s>:{second}",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        model_max_length=longest,
        model_input_names=["input_ids", "attention_mask", *(["token_type_ids"] if style == "bert" else [])],
    )


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    """Write a folder as people bring it from the hub."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
