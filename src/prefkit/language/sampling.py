"""Continuations of prompts, sampled from a scorer's policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prefkit.comparisons import Text
from prefkit.language.scorer import LanguageScorer


def sample(
    scorer: LanguageScorer,
    prompts: Sequence[Text],
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """Sample one continuation of each prompt.

    Args:
        scorer: whose policy writes.
        prompts: texts, or messages for the chat template.
        max_new_tokens: tokens of a continuation at most.
        temperature: 0 is greedy.
        top_p: probability mass that is sampled from.
        seed: fixes the samples; each prompt's sample depends on no other prompt.

    Returns:
        The continuations without special tokens.
    """
    policy, tokenizer = scorer.policy, scorer.tokenizer
    how = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {"do_sample": False}
    training = policy.training
    policy.eval()
    texts = []
    # generate() draws from the global generator only: it is seeded inside, and put back after.
    with torch.random.fork_rng(), torch.no_grad():
        for prompt in prompts:
            torch.manual_seed(seed)
            ids = torch.tensor([scorer.encoder.prompt_tokens(prompt)], device=scorer.device)
            out = policy.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
                **how,
            )
            texts.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    policy.train(training)
    return texts
