from __future__ import annotations

from itertools import permutations

import pytest
import torch

from prefkit.language import LanguageScorer, load_scorer, stance_judge


@pytest.fixture(scope="module")
def scorer() -> LanguageScorer:
    return load_scorer("builtin").eval()


def test_labels_are_scored_a_token_over_all_orders(scorer: LanguageScorer) -> None:
    found = stance_judge(scorer)("taxes", "Higher taxes?", "Yes, they are fair.")
    plain, expected = load_scorer("builtin"), torch.zeros(3)
    labels = ("support", "neutral", "oppose")
    for order in permutations(labels):
        asked = (
            "Topic: taxes\nQuestion: Higher taxes?\nAnswer: Yes, they are fair.\n\n"
            f"Which stance does the answer take on the topic? One of: {', '.join(order)}.\nStance:"
        )
        start = plain.encoder.prompt_tokens(asked)
        for place, label in enumerate(labels):
            word = plain.tokenizer(f" {label}", add_special_tokens=False)["input_ids"]
            ids = [*start, *word, plain.tokenizer.eos_token_id]
            with torch.no_grad():
                logps = plain.policy(input_ids=torch.tensor([ids])).logits[0].log_softmax(1)
            own = [logps[at - 1, ids[at]] for at in range(len(start), len(ids))]
            expected[place] += torch.stack(own).mean() / 6
    assert found == pytest.approx(expected.tolist(), abs=1e-3)


def test_what_cannot_be_judged_is_none(scorer: LanguageScorer) -> None:
    judge = stance_judge(scorer)
    assert judge("taxes", "Higher taxes?", "  ") is None
    assert judge("taxes", "Higher taxes?", "word " * 3000) is None
