"""Small models of every style that the library meets, with random weights, and a tokenizer for them."""

from __future__ import annotations

import copy

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

VOCABULARY = 97
_IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {
    **_IDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
# Windows are shorter than the sequences of the tests, so that a mask that ignores them gives wrong numbers.
_LAYERS = ["sliding_attention", "sliding_attention", "full_attention"]

SHARED = {
    "llama": LlamaConfig(**_SIZES),
    "qwen3": Qwen3Config(**_SIZES, head_dim=8),
    "gpt2": GPT2Config(**_IDS, n_embd=32, n_layer=3, n_head=4, n_positions=512),
    "gemma3": Gemma3TextConfig(**_SIZES, head_dim=8, sliding_window=7, layer_types=_LAYERS),
    "gemma3-softcap": Gemma3TextConfig(
        **_SIZES, head_dim=8, sliding_window=7, layer_types=_LAYERS, final_logit_softcapping=5.0
    ),
    "mistral": MistralConfig(**_SIZES, sliding_window=7),
    "cohere": CohereConfig(**_SIZES, logit_scale=0.25),
    "granite": GraniteConfig(**_SIZES, logits_scaling=4.0),
}
"""Styles whose attention lets responses share a prompt."""

PLAIN = {
    "mamba": MambaConfig(**_IDS, hidden_size=32, num_hidden_layers=2, state_size=4),
    "gemma2": Gemma2Config(**_SIZES, head_dim=8, sliding_window=7),
    "bloom": BloomConfig(**_IDS, hidden_size=32, n_layer=2, n_head=4),
}
"""Styles that take one sequence a response."""


def build(style: str) -> PreTrainedModel:
    """A model with weights large enough that its probabilities are far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy((SHARED | PLAIN)[style])).eval()
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def words(size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A tokenizer of words w4, w5, ... that are their own numbers."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, size)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
