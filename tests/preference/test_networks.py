from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from prefkit.errors import OptionError, PrefkitError
from prefkit.preference import BradleyTerry, GeneralPreference, RewardNetwork, gpm_score

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 2, 2))
Y = (RNG.random(200) < 1 / (1 + np.exp(-(X[:, 0] - X[:, 1]) @ [1.0, 2.0]))).astype(float)


def test_a_network_without_hidden_layers_is_bradley_terry() -> None:
    network = RewardNetwork(hidden=(), steps=2000, learning_rate=0.02).fit(X, Y)
    np.testing.assert_allclose(network.decision_function(X), BradleyTerry().fit(X, Y).decision_function(X), atol=1e-2)
    rewards = network.strengths(X)
    np.testing.assert_allclose(rewards[:, 0] - rewards[:, 1], network.decision_function(X), atol=1e-5)


def test_embeddings_give_the_decisions_and_candidates() -> None:
    model = GeneralPreference(dim=4, steps=50).fit(X, Y)
    first, second = (torch.from_numpy(model.embed(X[:, side])) for side in (0, 1))
    np.testing.assert_allclose(first.norm(dim=1), 1, atol=1e-6)
    np.testing.assert_allclose(gpm_score(first, second) / model.tau_, model.decision_function(X), atol=1e-4)
    table = model.candidates(X[:5, 0]).table
    assert table.shape == (5, 5)
    expected = model.decision_function(np.stack([X[:1, 0], X[1:2, 0]], axis=1))
    assert float(table[0, 1]) == pytest.approx(expected[0], abs=1e-4)


def test_named_items_in_a_circle_are_learned() -> None:
    ring = [["a", "b"], ["b", "c"], ["c", "a"]]
    assert GeneralPreference(dim=2, hidden=(), steps=200).fit(ring).score(ring) == 1.0
    assert RewardNetwork(hidden=(), steps=200).fit(ring).score(ring) < 1.0


def test_gate_lets_the_prompt_choose_the_block() -> None:
    rng = np.random.default_rng(1)
    options = rng.normal(size=(400, 2, 2))
    prompts = rng.integers(2, size=400)
    y = (options[np.arange(400), 0, prompts] > options[np.arange(400), 1, prompts]).astype(float)
    context = np.eye(2)[prompts]
    gated = GeneralPreference(gate=True, dim=8, steps=600, batch_size=100).fit(options, y, prompts=context)
    assert gated.score(options, y, prompts=context) > 0.85
    np.testing.assert_allclose(gated.eigenvalues(context).sum(axis=1), 1, atol=1e-6)
    assert gated.candidates(options[0], context[0]).table.shape == (2, 2)
    wide = GeneralPreference(gate=True, gate_scale=None, dim=4, steps=1).fit(options, y, prompts=context)
    np.testing.assert_allclose(wide.eigenvalues(context).sum(axis=1), 2, atol=1e-6)


def test_temperature_can_be_learned() -> None:
    # The rewards have noise: a fixed temperature of 0.1 would be too sure.
    model = GeneralPreference(dim=2, hidden=(), tau="learned", steps=500, learning_rate=0.02).fit(X, Y)
    assert model.tau_ != pytest.approx(0.1, abs=5e-3)
    assert model.log_likelihood(X, Y) > -0.69


def test_soft_labels_lead_to_their_probability() -> None:
    rows = np.tile(np.array([[[1.0], [0.0]]]), (10, 1, 1))
    model = RewardNetwork(hidden=(), steps=500, learning_rate=0.05).fit(rows, np.full(10, 0.8))
    assert model.predict_proba(rows[:1])[0, 1] == pytest.approx(0.8, abs=1e-2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GeneralPreference(dim=5).fit(X, Y), "must be even and at least 2, got 5"),
        (lambda: GeneralPreference(gate=True).fit(X, Y), "gate=True needs prompts"),
        (lambda: GeneralPreference().fit(X, Y, prompts=np.ones((200, 2))), "read by the gate only"),
        (lambda: GeneralPreference(gate=True).fit(X, Y, prompts=np.ones((3, 2))), r"\[200, p\], got shape \(3, 2\)"),
        (
            lambda: GeneralPreference(gate=True).fit(X, Y, prompts=np.full((200, 1), np.nan)),
            "row 0, prompt feature 0 must be a finite number",
        ),
        (lambda: GeneralPreference(steps=1).fit(X, Y).eigenvalues(np.ones((1, 2))), "fitted without prompts"),
        (lambda: RewardNetwork(steps=1).fit(X, Y).decision_function(X, prompts=X[:, 0]), "fitted without prompts"),
        (lambda: RewardNetwork().fit(X, Y, prompts=X[:, 0]), "a reward is no function of the prompt"),
        (lambda: RewardNetwork().fit(np.ones((3, 2, 2))), "the same features in every comparison"),
        (lambda: RewardNetwork(hidden=(0,)).fit(X, Y), "hidden must be widths of at least 1"),
        (lambda: RewardNetwork(learning_rate=1e30, hidden=(), steps=9).fit(1e9 * X, Y), "the fit diverged"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises((OptionError, PrefkitError), match=message):
        call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_networks_fit_on_a_gpu() -> None:
    model = GeneralPreference(steps=50, device="cuda").fit(X, Y)
    assert model.score(X, Y) > 0.7
