"""The recipes that measure rather than train: their short forms, and the worlds that they rest on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prefkit.recipes import ches, dissecting, find_recipe, ranking_accuracy, reproduce, value_drifts


@pytest.mark.parametrize("slug", ["ranking-accuracy", "ches", "value-drifts"])
def test_the_short_form_holds(slug: str) -> None:
    found = reproduce(find_recipe(slug), quick=True)
    assert [verdict.claim.text for verdict in found.verdicts if not verdict.passed] == []
    assert found.plot().csv()


@pytest.mark.filterwarnings("ignore:the chains disagree")  # the chains are short here
def test_dissecting_recovers_a_judge_from_fewer_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PAIRS", 800), ("TEST_PAIRS", 500), ("WARMUP", 60), ("DRAWS", 80), ("COVERED", 2)):
        monkeypatch.setattr(dissecting, name, value)
    figures = dissecting.run(0)
    assert figures["correlation"] > 0.9
    assert figures["win rate with the best three"] > 0.7 > 0.3 > figures["win rate with the worst three"]
    assert 0.8 <= figures["coverage"] <= 1


def test_pairs_of_the_low_gap_have_one_stance() -> None:
    generator = torch.Generator().manual_seed(0)
    even = torch.full(value_drifts.SHAPE, 1 / 12, dtype=torch.float64).log()
    chosen, rejected = value_drifts.preferences("low gap", even, generator)
    assert torch.equal(chosen[0], rejected[0])
    support, oppose = value_drifts.preferences("support", even, generator)
    assert set(support[0].flatten().tolist()) == {0}
    assert set(oppose[0].flatten().tolist()) == {2}


def test_choices_follow_the_reward() -> None:
    found = ranking_accuracy.world(torch.Generator().manual_seed(0))
    assert torch.equal(found.chosen, 1 - found.rejected)
    logps = found.logps(found.reference)
    torch.testing.assert_close(logps.exp().sum(1), torch.ones(len(logps), dtype=torch.float64))


def test_samples_share_the_state_of_their_prompt() -> None:
    samples = ches.Samples(torch.Generator().manual_seed(0))
    for _ in range(5):
        ids_c, ids_r, chosen, rejected = samples.one()
        assert ids_c[0] != ids_r[0]
        assert torch.equal(chosen[0], rejected[0])
        assert 3 <= len(ids_c) <= 8


def test_sigmoid_does_not_overflow() -> None:
    assert dissecting.sigmoid(np.array([-1e3, 0.0, 1e3])).tolist() == [0, 0.5, 1]
