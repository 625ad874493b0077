"""Continuations of prompts, sampled from a scorer's policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from prefkit.comparisons import Text
from prefkit.errors import OptionError
from prefkit.language.scorer import LanguageScorer
from prefkit.objectives import score_all


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
    how = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {"do_sample": False}
    tokens = _sampled(scorer, prompts, [seed] * len(prompts), max_new_tokens, how)
    return [scorer.tokenizer.decode(written, skip_special_tokens=True) for _, written in tokens]


def sample_candidates(
    scorer: LanguageScorer,
    prompts: Iterable[Text],
    count: int,
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[list[str]]:
    """Sample several continuations of each prompt, those of one prompt in one batch.

    Args:
        scorer: whose policy writes.
        prompts: texts, or messages for the chat template.
        count: continuations a prompt, at least 1.
        max_new_tokens: tokens of a continuation at most.
        temperature: above 0.
        top_p: probability mass that is sampled from.
        seed: fixes the samples; those of a prompt depend on its place and on no other prompt.

    Yields:
        The continuations of each prompt without special tokens.

    Raises:
        OptionError: count is below 1, or the temperature is not positive.
    """
    if count < 1:
        raise OptionError(f"count must be at least 1, got {count}")
    if not temperature > 0:
        raise OptionError(f"temperature must be greater than 0 for several samples, got {temperature}")
    how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "num_return_sequences": count}
    for place, prompt in enumerate(prompts):
        found = _sampled(scorer, [prompt], [seed * 1_000_003 + place], max_new_tokens, how)
        yield [scorer.tokenizer.decode(written, skip_special_tokens=True) for _, written in found]


def sampled_kl(
    scorer: LanguageScorer,
    reference: LanguageScorer,
    prompts: Sequence[Text],
    *,
    samples: int = 16,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> float | None:
    """KL(policy || reference) of a continuation, in nats, estimated from continuations that the policy writes.

    The mean of log policy - log reference, which is unbiased and can be negative. It is that of the first
    `max_new_tokens` tokens, or fewer where the policy ends earlier.

    Args:
        scorer: whose policy writes.
        reference: whose reference it is compared with; may be the same scorer, if its reference is still there.
        prompts: taken in turn until there are enough samples.
        samples: number of continuations, at least 1.
        max_new_tokens: tokens of a continuation at most.
        seed: fixes the samples.

    Returns:
        The estimate; None if no prompt leaves room for a continuation.

    Raises:
        OptionError: samples is below 1.

    Source: Schulman (2020), Approximating KL divergence, estimator k1.
    """
    if samples < 1:
        raise OptionError(f"samples must be at least 1, got {samples}")
    room = scorer.encoder.max_length
    fitting = [p for p in prompts if room is None or len(scorer.encoder.prompt_tokens(p)) + max_new_tokens <= room]
    if not fitting:
        return None
    asked = [fitting[number % len(fitting)] for number in range(samples)]
    seeds = [seed * 1_000_003 + number for number in range(samples)]
    written = _sampled(scorer, asked, seeds, max_new_tokens, _PURE)
    ratios = []
    for prompt, response in written:
        encoded = [{"prompt_ids": [prompt], "response_ids": [response]}]
        (own,) = score_all(scorer, encoded, batch_size=1)
        (other,) = score_all(reference, encoded, batch_size=1, reference=True)
        ratios.append(float(own.policy_logps - other.policy_logps))
    return sum(ratios) / len(ratios)


_PURE = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
"""Samples from the policy itself, whatever settings a model brings along."""


def _sampled(
    scorer: LanguageScorer,
    prompts: Sequence[Text],
    seeds: Sequence[int],
    max_new_tokens: int,
    how: Mapping[str, Any],
) -> list[tuple[list[int], list[int]]]:
    """Tokens of each prompt and of the policy's continuations, the end-of-sequence token included."""
    policy, tokenizer = scorer.policy, scorer.tokenizer
    ends = policy.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id} if ends is None else set(ends) if isinstance(ends, list) else {ends}
    training = policy.training
    policy.eval()
    found = []
    # generate() draws from the global generator only: it is seeded inside, and put back after.
    with torch.random.fork_rng(), torch.no_grad():
        for prompt, seed in zip(prompts, seeds, strict=True):
            torch.manual_seed(seed)
            tokens = scorer.encoder.prompt_tokens(prompt)
            ids = torch.tensor([tokens], device=scorer.device)
            out = policy.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
                **how,
            )
            for row in out[:, len(tokens) :].tolist():
                # A sample that ends before the others of its batch is padded.
                end = next((place for place, token in enumerate(row) if token in ends), len(row))
                found.append((tokens, row[: end + 1]))
    policy.train(training)
    return found
