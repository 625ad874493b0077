from __future__ import annotations

import numpy as np
import pytest

from prefkit.recipes import gpm


def test_the_game_has_the_gaps_that_are_known_for_it() -> None:
    figures = gpm.game()
    gaps = [figures[f"gap of the average, T = {steps}"] for steps in gpm.STEPS]
    assert gaps == pytest.approx([0.66, 0.077, 0.073, 0.064], abs=2e-3)
    assert figures["gap of the last policy"] > 0.5


def test_each_response_is_preferred_to_the_next_one_round() -> None:
    options = gpm.cyclic(np.random.default_rng(0))
    assert options.shape == (60, 3, 16)
    found = gpm.pairs(options[:2])
    np.testing.assert_array_equal(found[0], options[0, [0, 1]])
    np.testing.assert_array_equal(found[-1], options[1, [2, 0]])


def test_transitive_pairs_have_the_better_response_first() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=16)
    utility = gpm.transitive(50, weights, rng) @ weights
    assert (utility[:, 0] > utility[:, 1]).all()


def test_embeddings_learn_the_circle_and_rewards_do_not() -> None:
    options = gpm.cyclic(np.random.default_rng(0))
    made = gpm.models(0)
    scores = {}
    for name in ("BT", "GPM 2"):
        made[name].set_params(epochs=150).fit(gpm.pairs(options[:40]))
        scores[name] = made[name].score(gpm.pairs(options[40:]))
    assert scores["GPM 2"] > 0.95
    assert scores["BT"] < 0.7
