"""Where probability is at the first place of a response, over prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from prefkit.comparisons import Text
from prefkit.errors import PrefkitError
from prefkit.language.scorer import LanguageScorer


@torch.no_grad()
def first_token_logps(
    scorer: LanguageScorer, prompts: Iterable[Text], *, reference: bool = False
) -> Float[Tensor, " vocabulary"]:
    """Log of the mean distribution over the first token of a response.

    Args:
        scorer: whose policy, or reference, is asked.
        prompts: texts, or messages for the chat template; those longer than the model's context are left out.
        reference: ask the reference.

    Raises:
        PrefkitError: no prompt fits.
    """
    room = scorer.encoder.max_length
    total: Tensor | None = None
    count = 0
    training = scorer.policy.training
    scorer.policy.eval()
    try:
        with scorer.as_reference() if reference else contextlib.nullcontext(scorer.policy) as model:
            for prompt in prompts:
                tokens = scorer.encoder.prompt_tokens(prompt)
                if room is not None and len(tokens) >= room:
                    continue
                ids = torch.tensor([tokens], device=scorer.device)
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -1]
                found = logits.float().softmax(0)
                total = found if total is None else total + found
                count += 1
    finally:
        scorer.policy.train(training)
    if total is None:
        raise PrefkitError("no prompt fits into the model's context")
    mean: Tensor = (total / count).log()
    return mean
