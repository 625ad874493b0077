"""Temporal residual connection: the model's own one-step-ahead prediction, mixed into the embeddings of its input.

Source: Hua et al. 2024 (Intuitive Fine-Tuning, arXiv 2405.11870), section 4.2, eq. 17.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefkit.errors import OptionError

IGNORED = -100
"""Label of tokens that are not part of a response."""


def one_step_ahead_ids(
    input_ids: Int[Tensor, "batch length"],
    labels: Int[Tensor, "batch length"],
    logits: Float[Tensor, "batch length vocabulary"],
) -> Int[Tensor, "batch length"]:
    """The tokens that the policy would have said in the place of those of the response.

    The token at place t is replaced by the best one under the logits at t - 1, so the prompt's last place decides the
    first token of the response. Prompt, padding and the first token of all stay as they are.

    Args:
        input_ids: the tokens.
        labels: -100 outside the response; not shifted.
        logits: the policy's; place t predicts token t + 1.

    Raises:
        OptionError: the three differ in length.
    """
    if not input_ids.shape == labels.shape == logits.shape[:2]:
        raise OptionError(
            "input_ids, labels and logits must have one batch size and length, got "
            f"{tuple(input_ids.shape)}, {tuple(labels.shape)} and {tuple(logits.shape[:2])}"
        )
    predicted = torch.cat([input_ids[:, :1], logits[:, :-1].argmax(2)], dim=1)
    return torch.where(labels != IGNORED, predicted, input_ids)


def mix_embeddings(
    inputs_embeds: Float[Tensor, "*shape"], further_embeds: Float[Tensor, "*shape"], rate: float
) -> Float[Tensor, "*shape"]:
    """(1 - rate) times the embeddings of the true tokens, plus rate times those of the predicted ones.

    Args:
        inputs_embeds: embeddings of the true tokens.
        further_embeds: embeddings of the predicted tokens.
        rate: the paper's lambda, from 0 (plain fine-tuning) to 1.

    Raises:
        OptionError: the rate lies outside [0, 1], or the shapes differ.
    """
    if not 0 <= rate <= 1:
        raise OptionError(f"lambda must be in [0, 1], got {rate}")
    if inputs_embeds.shape != further_embeds.shape:
        raise OptionError(
            f"the embeddings must have one shape, got {tuple(inputs_embeds.shape)} and {tuple(further_embeds.shape)}"
        )
    return (1 - rate) * inputs_embeds + rate * further_embeds
