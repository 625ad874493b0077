"""The short form of each experiment on preference models: one seed."""

import numpy as np
import pytest

from prefkit.recipes import context_pm, domain_rm, flr, secrets_rm, worldpm


def test_the_vote_finds_wrong_labels_and_flipping_them_helps() -> None:
    figures = secrets_rm.run(1)
    shares = [figures[f"wrong in fifth {place}"] for place in range(1, 6)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.8
    assert figures["flip"] > figures["baseline"] + 0.04


def test_a_blind_model_is_right_half_of_the_time_and_a_reading_one_nearly_always() -> None:
    figures = context_pm.run(0)
    assert figures["no context"] == pytest.approx(0.5, abs=1e-6)
    assert figures["context"] >= 0.97
    assert figures["slack of the bound"] >= 0


def test_reversals_hold_under_their_contexts() -> None:
    rng = np.random.default_rng(0)
    contexts = np.eye(6, 12)
    pairs, under = context_pm.reversals(50, contexts, rng)
    ahead = (pairs[:, 0] - pairs[:, 1]) @ contexts.T
    assert len(pairs) == 50
    assert (ahead[np.arange(50), under[:, 0]] > 0).all()
    assert (ahead[np.arange(50), under[:, 1]] < 0).all()


def test_fewer_pairs_do_for_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain_rm, "SIZES", (50, 200))
    figures = domain_rm.run(0)
    assert figures["domain 50"] > figures["text 200"] + 0.05
    assert figures["domain 200"] > figures["naive mean"] + 0.05


def test_objective_tests_scale_and_reliance_on_style_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worldpm, "SIZES", (256, 2048, 8192))
    figures = worldpm.run(0)
    losses = [figures[f"objective {size}"] for size in worldpm.SIZES]
    assert losses == sorted(losses, reverse=True)
    assert figures["objective exponent"] > 0.08
    assert -1 <= figures["phi of labels"] <= 1


def test_a_good_response_holds_the_key_word() -> None:
    rng = np.random.default_rng(0)
    prompts = rng.integers(flr.PROMPTS, size=200)
    for good in (True, False):
        words = flr.responses(prompts, good, rng)
        assert (flr.is_good(prompts, words) == good).all()
    tokens = flr.rows(np.array([2]), np.array([[1, 5]]), [flr.POSITIVE[1]])
    assert tokens.tolist() == [[flr.BEGIN, 4, 7, 11, 13, 14]]


def test_follow_ups_rank_responses() -> None:
    figures = flr.run(0)
    assert figures["FLR"] >= 0.8
    assert figures["DPO with FLR"] >= figures["start"] + 0.25
