from __future__ import annotations

import pytest
import torch

from prefkit.errors import PrefkitError
from prefkit.language import LanguageScorer, first_token_logps, load_scorer


@pytest.fixture(scope="module")
def scorer() -> LanguageScorer:
    return load_scorer("builtin").eval()


def test_it_is_the_mean_of_what_the_model_says_after_each_prompt(scorer: LanguageScorer) -> None:
    prompts = ["Should schools open later?", "No"]
    plain = load_scorer("builtin")
    expected = []
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([plain.encoder.prompt_tokens(prompt)])
            expected.append(plain.policy(input_ids=ids).logits[0, -1].softmax(0))
    found = first_token_logps(scorer, prompts)
    torch.testing.assert_close(found.exp(), torch.stack(expected).mean(0), rtol=1e-4, atol=1e-7)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_reference_is_asked_as_it_was(scorer: LanguageScorer) -> None:
    other = load_scorer("builtin").policy
    pair = LanguageScorer(load_scorer("builtin").policy, scorer.tokenizer, other)
    with torch.no_grad():
        pair.policy.lm_head.weight.mul_(0.5)
    before = first_token_logps(pair, ["Yes"], reference=True)
    torch.testing.assert_close(before, first_token_logps(scorer, ["Yes"]))
    assert (first_token_logps(pair, ["Yes"]) - before).abs().max() > 0.1


def test_prompts_beyond_the_context_are_left_out(scorer: LanguageScorer) -> None:
    long = "word " * 3000
    torch.testing.assert_close(first_token_logps(scorer, [long, "Yes"]), first_token_logps(scorer, ["Yes"]))
    with pytest.raises(PrefkitError, match="no prompt fits"):
        first_token_logps(scorer, [long])
