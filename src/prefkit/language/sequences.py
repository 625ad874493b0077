"""Sequences: log-probabilities of a prompt, of the response after it, and of both together, from a model's logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefkit.errors import OptionError


class SequenceLogps(NamedTuple):
    """Summed log-probabilities, in nats; `joint` is the sum of the other two.

    Args:
        joint: prompt and response, without the first token, which nothing predicts.
        conditional: the response given the prompt.
        instruction: the prompt without its first token.
    """

    joint: Float[Tensor, " batch"]
    conditional: Float[Tensor, " batch"]
    instruction: Float[Tensor, " batch"]


def sequence_logps(
    logits: Float[Tensor, "batch time vocabulary"],
    input_ids: Int[Tensor, "batch time"],
    attention_mask: Int[Tensor, "batch time"],
    prompt_lengths: Int[Tensor, " batch"],
) -> SequenceLogps:
    """Log-probabilities of padded sequences under a causal model: log pi(I, R) = log pi(I) + log pi(R | I).

    A scorer does the same without holding all logits; this is for logits that are there already.

    Args:
        logits: the model's output; what it says at one place is about the next one.
        input_ids: tokens, padded on the right.
        attention_mask: 1 where there is a token.
        prompt_lengths: tokens of the prompt, the begin token included.

    Raises:
        OptionError: a prompt is empty or longer than its sequence.

    Source: Bansal et al. 2024 (JPO, arXiv 2404.00530), section 3.
    """
    lengths = attention_mask.sum(1)
    wrong = ((prompt_lengths < 1) | (prompt_lengths > lengths)).nonzero()[:, 0].tolist()
    if wrong:
        row = wrong[0]
        raise OptionError(
            f"prompt_lengths[{row}] must lie from 1 to the sequence's {int(lengths[row])} tokens, got "
            f"{int(prompt_lengths[row])}"
        )
    exact = logits[:, :-1] if logits.dtype == torch.float64 else logits[:, :-1].float()
    logps = exact.log_softmax(-1).gather(2, input_ids[:, 1:, None]).squeeze(2)
    logps = logps.masked_fill(attention_mask[:, 1:] == 0, 0.0)
    answers = torch.arange(1, input_ids.shape[1], device=input_ids.device) >= prompt_lengths[:, None]
    joint, conditional = logps.sum(1), logps.masked_fill(~answers, 0.0).sum(1)
    return SequenceLogps(joint, conditional, logps.masked_fill(answers, 0.0).sum(1))
