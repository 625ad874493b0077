"""Joint comparisons: the prompts of different prompts' responses are scored with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prefkit.comparisons import Comparison, Winner
from prefkit.errors import OptionError, RecordError
from prefkit.language import (
    Encoder,
    EncodingOptions,
    LanguageScorer,
    load_scorer,
    sequence_logps,
    truncated_lengths,
)
from prefkit.objectives import PairObjective, Part, make_objective
from prefkit.objectives.presets import CATALOGUE
from prefkit.training import TrainingOptions, fit
from tests.language.models import build, words

JOINT = Comparison(("w4 w5 w6", "w7 w8"), ("w9", "w10 w11"), Winner(1))
CONDITIONAL = Comparison.pair("w4 w5 w6", "w9", "w10 w11")


def joint_scorer() -> LanguageScorer:
    scorer = LanguageScorer(build("llama"), words())
    scorer.provide(frozenset({"joint"}))
    return scorer


def test_prompts_of_joint_comparisons_are_scored_after_their_first_token() -> None:
    encoder = Encoder(words(), None)
    encoder.joint = True
    assert encoder.encode(JOINT) == {"prompt_ids": [[4], [7]], "response_ids": [[5, 6, 9, 2], [8, 10, 11, 2]]}


def test_conditional_comparisons_are_scored_as_usual() -> None:
    encoder = Encoder(words(), None)
    usual = encoder.encode(CONDITIONAL)
    encoder.joint = True
    assert encoder.encode(CONDITIONAL) == usual
    assert usual["prompt_ids"] == [[4, 5, 6]]


def test_the_key_of_the_encoding_tells_the_two_apart() -> None:
    scorer = LanguageScorer(build("llama"), words())
    usual = scorer.encoding_key()
    scorer.provide(frozenset({"joint"}))
    assert scorer.encoding_key() != usual
    scorer.provide(frozenset())
    assert scorer.encoding_key() == usual


def test_scores_are_the_joint_log_probabilities_of_the_model() -> None:
    scorer = joint_scorer()
    scores = scorer(scorer.collate([scorer.encode(JOINT), scorer.encode(CONDITIONAL)]))
    ids = torch.tensor([[4, 5, 6, 9, 2], [7, 8, 10, 11, 2], [4, 5, 6, 9, 2]])
    found = sequence_logps(scorer.policy(ids).logits, ids, torch.ones_like(ids), torch.tensor([3, 2, 3]))
    torch.testing.assert_close(scores.policy_logps[:2], found.joint[:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores.policy_logps[2], found.conditional[2], rtol=1e-4, atol=1e-4)


def test_equal_prompts_cancel() -> None:
    scorer = joint_scorer()
    same = Comparison(("w4 w5 w6",) * 2, CONDITIONAL.responses, Winner(0))
    margins = []
    for comparison in (same, CONDITIONAL):
        chosen, rejected = scorer(scorer.collate([scorer.encode(comparison)])).policy_logps
        margins.append(chosen - rejected)
    torch.testing.assert_close(margins[0], margins[1], rtol=1e-4, atol=1e-4)


def test_padding_and_prompts_in_the_sums_of_a_sequence() -> None:
    """Uniform logits over 4 tokens: every token costs log 4."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    found = sequence_logps(torch.zeros(2, 4, 4), torch.ones(2, 4, dtype=torch.long), mask, torch.tensor([2, 3]))
    per_token = -torch.tensor(4.0).log()
    torch.testing.assert_close(found.joint, per_token * torch.tensor([3, 2]))
    torch.testing.assert_close(found.conditional, per_token * torch.tensor([2, 0]))
    torch.testing.assert_close(found.instruction, per_token * torch.tensor([1, 2]))


@pytest.mark.parametrize(("prompt", "tokens"), [(4, 3), (0, 3)])
def test_a_prompt_longer_than_its_sequence_is_named(prompt: int, tokens: int) -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    lengths = torch.tensor([2, prompt])
    with pytest.raises(OptionError, match=rf"prompt_lengths\[1\] must lie from 1 to .* {tokens} tokens, got {prompt}"):
        sequence_logps(torch.zeros(2, 4, 4), torch.ones(2, 4, dtype=torch.long), mask, lengths)


def test_each_side_is_cut_by_its_own_length() -> None:
    options = {"max_length": 200, "max_prompt_length": 128}
    assert truncated_lengths(150, 40, **options) == (150, 40)
    assert truncated_lengths(150, 60, **options) == (128, 60)
    assert truncated_lengths(10, 250, **options) == (10, 72)
    encoder = Encoder(words(), 8, EncodingOptions(too_long="truncate_both", max_prompt_length=3))
    long = Comparison(("w4 w5 w6 w7 w8", "w9"), ("w10 w11 w12 w13 w14", "w15"), Winner(0))
    encoded = encoder.encode(long)
    assert encoded["prompt_ids"] == [[6, 7, 8], [9]]
    assert encoded["response_ids"] == [[10, 11, 12, 13, 14], [15, 2]]


def test_equal_responses_to_different_prompts_may_be_cut() -> None:
    encoder = Encoder(words(), 4, EncodingOptions(too_long="truncate_both", max_prompt_length=2))
    encoder.encode(Comparison(("w4 w5 w6", "w7"), ("w8 w9 w10", "w8 w9 w10"), Winner(0)))
    with pytest.raises(RecordError, match="equal after truncation"):
        encoder.encode(Comparison(("w4 w5 w6",) * 2, ("w8 w9 w10", "w8 w9 w11"), Winner(0)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: truncated_lengths(10, 10, max_length=128, max_prompt_length=128),
        lambda: Encoder(words(), 128, EncodingOptions(too_long="truncate_both", max_prompt_length=128)),
    ],
)
def test_a_prompt_that_leaves_no_room_is_refused(make: object) -> None:
    with pytest.raises(OptionError, match=r"max_prompt_length must be less than max_length.* got 128 and 128"):
        make()


@pytest.mark.parametrize("options", [{"too_long": "truncate_both"}, {"max_prompt_length": 5}])
def test_both_options_of_a_cut_of_both_are_needed(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="truncate_both` and max_prompt_length go together"):
        EncodingOptions.parse(options, "encoding")


RECORDS = [
    Comparison(("Name a colour. ", "Name a fruit. "), ("Blue.", "Er, dunno."), Winner(0), source="j", line=1),
    Comparison(("Say hello. ", "Name a bird. "), ("Go away.", "A robin."), Winner(1), source="j", line=2),
    Comparison.pair("Name a tree. ", "An oak.", "Ugh.", source="j", line=3),
]
OPTIONS = TrainingOptions(epochs=4, batch_size=3, learning_rate=1e-3, warmup=0, log_every=1, progress=False)


def test_training_on_joint_and_conditional_comparisons(tmp_path: Path) -> None:
    done = fit(
        load_scorer("builtin"),
        RECORDS,
        make_objective("jpo"),
        output=tmp_path / "run",
        options=OPTIONS,
        cache=tmp_path / "cache",
    )
    losses = [line["loss"] for line in done.run.metrics]
    assert losses[0] == pytest.approx(0.693147, abs=1e-4)
    assert losses[-1] < losses[0] - 0.01


def test_scoring_the_responses_alone_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(
        load_scorer("builtin"),
        RECORDS,
        make_objective("dpo"),
        output=tmp_path / "run",
        options=OPTIONS.model_copy(update={"max_steps": 1}),
        cache=tmp_path / "cache",
    )
    assert caplog.text.count("some comparisons are of responses to different prompts") == 1


def test_texts_of_auxiliary_terms_are_refused() -> None:
    extra = Part("extra", lambda companions, pairs: torch.zeros(pairs), companions=lambda comparison, c, r: [])
    with pytest.raises(OptionError, match="cannot take auxiliary terms with texts of their own"):
        PairObjective(CATALOGUE["reward"]["joint_log_ratio"], CATALOGUE["link"]["logistic"], auxiliary=[extra])
