from __future__ import annotations

from itertools import islice

import pytest
import torch

from prefkit.assets import comparisons_path
from prefkit.comparisons import Comparison, RecordError, load_comparisons
from prefkit.diagnostics import ches_of_comparisons, ches_score, score_states
from prefkit.diagnostics.states import NEEDS
from prefkit.errors import OptionError, PrefkitError
from prefkit.language import LanguageScorer, load_scorer
from prefkit.objectives import score_all


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    return list(islice(load_comparisons(comparisons_path("test")), 6))


@pytest.fixture
def scorer() -> LanguageScorer:
    return load_scorer("builtin").eval()


def test_scores_of_comparisons_are_those_of_padded_states(
    scorer: LanguageScorer, comparisons: list[Comparison]
) -> None:
    found = list(ches_of_comparisons(scorer, comparisons, batch_size=4))
    assert [(row.line, row.chosen) for row in found] == [(c.line, c.judgement.index) for c in comparisons]
    for row, comparison in zip(found, comparisons, strict=True):
        encoded = scorer.encode(comparison)
        states = scorer(scorer.collate([encoded])).tokens
        assert states is not None
        assert states.predictors is not None
        sides = [states.predictors[states.response == index][None] for index in (row.chosen, row.rejected)]
        masks = [torch.ones(side.shape[:2]) for side in sides]
        assert row.ches == pytest.approx(ches_score(*sides, *masks).item(), rel=1e-4)
        assert row.ln_ches == pytest.approx(ches_score(*sides, *masks, length_normalize=True).item(), rel=1e-3)


def test_the_pass_scores_as_before(scorer: LanguageScorer, comparisons: list[Comparison]) -> None:
    encoded = [scorer.encode(comparison) for comparison in comparisons]
    plain = torch.cat([part.policy_logps for part in score_all(scorer, encoded, batch_size=3)])
    scorer.provide(NEEDS)
    found = list(score_states(scorer, encoded, batch_size=3))
    torch.testing.assert_close(torch.cat([part.logps for part in found]), plain)
    torch.testing.assert_close(
        torch.cat([part.sums for part in score_states(scorer, encoded, batch_size=6, reference=True)]),
        torch.cat([part.sums for part in found]),
        rtol=1e-4,
        atol=1e-3,
    )


def test_what_cannot_be_encoded_is_set_aside_or_named(scorer: LanguageScorer) -> None:
    long = Comparison.pair("a question", "word " * 2000, "short", source="file", line=7)
    skipped: list[RecordError] = []
    assert list(ches_of_comparisons(scorer, [long], skipped=skipped)) == []
    assert (skipped[0].source, skipped[0].line) == ("file", 7)
    with pytest.raises(RecordError, match="file:7"):
        list(ches_of_comparisons(scorer, [long]))


def test_bad_input_is_explained(scorer: LanguageScorer, comparisons: list[Comparison]) -> None:
    with pytest.raises(PrefkitError, match=r"call scorer\.provide"):
        next(iter(score_states(scorer, [scorer.encode(comparisons[0])])))
    with pytest.raises(OptionError, match="batch_size must be at least 1"):
        next(iter(ches_of_comparisons(scorer, comparisons, batch_size=0)))
