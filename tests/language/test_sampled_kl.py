"""The KL divergence from what a policy writes, against the divergence of its own probabilities."""

from __future__ import annotations

import pytest
import torch

from prefkit.errors import OptionError
from prefkit.language import EncodingOptions, LanguageScorer, sampled_kl
from tests.language.models import build, words


def moved() -> LanguageScorer:
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(5.0)
    return LanguageScorer(model, words())


def test_one_token_agrees_with_the_exact_divergence() -> None:
    policy, reference = moved(), LanguageScorer(build("llama"), words())
    prompt = torch.tensor([policy.encoder.prompt_tokens("w5 w6 w7")])
    with torch.no_grad():
        own, other = (s.policy(input_ids=prompt).logits[0, -1].double().log_softmax(0) for s in (policy, reference))
    exact = (own.exp() * (own - other)).sum()
    deviation = ((own.exp() * (own - other) ** 2).sum() - exact**2).sqrt()
    estimate = sampled_kl(policy, reference, ["w5 w6 w7"], samples=200, max_new_tokens=1, seed=1)
    assert exact > 0.05
    assert estimate is not None
    assert abs(estimate - float(exact)) < 4 * float(deviation) / 200**0.5


def test_a_policy_is_at_no_distance_from_itself_and_a_seed_fixes_the_estimate() -> None:
    same = LanguageScorer(build("llama"), words())
    assert sampled_kl(same, same, ["w5", "w6 w7"], samples=3, max_new_tokens=5) == pytest.approx(0, abs=1e-4)
    policy = moved()
    first, again, other = (
        sampled_kl(policy, same, ["w5", "w6 w7"], samples=3, max_new_tokens=5, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_prompts_without_room_are_left_out() -> None:
    short = LanguageScorer(build("llama"), words(), encoding=EncodingOptions(max_length=4))
    assert sampled_kl(short, short, ["w5 w6 w7"], samples=1, max_new_tokens=2) is None
    with pytest.raises(OptionError, match="samples must be at least 1, got 0"):
        sampled_kl(short, short, ["w5"], samples=0)
