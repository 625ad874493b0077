"""Networks on comparisons: what they learn, what they refuse."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import expit

from prefkit.errors import OptionError, PrefkitError
from prefkit.preference import (
    BradleyTerry,
    GeneralPreference,
    RewardNetwork,
    feedforward_scores,
    gpm_score,
    load_preference_model,
    save_preference_model,
    with_contexts,
)
from prefkit.preference.descent import minimise_by_gradient, rate_at

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 2, 2))
Y = (RNG.random(200) < 1 / (1 + np.exp(-(X[:, 0] - X[:, 1]) @ [1.0, 2.0]))).astype(float)


def test_a_network_without_hidden_layers_is_bradley_terry() -> None:
    network = RewardNetwork(hidden=(), epochs=2000, learning_rate=0.02).fit(X, Y)
    np.testing.assert_allclose(network.decision_function(X), BradleyTerry().fit(X, Y).decision_function(X), atol=1e-2)
    rewards = network.strengths(X)
    np.testing.assert_allclose(rewards[:, 0] - rewards[:, 1], network.decision_function(X), atol=1e-5)


def test_embeddings_give_the_decisions_and_candidates() -> None:
    model = GeneralPreference(dim=4, epochs=50).fit(X, Y)
    first, second = (torch.from_numpy(model.embed(X[:, side])) for side in (0, 1))
    np.testing.assert_allclose(first.norm(dim=1), 1, atol=1e-6)
    np.testing.assert_allclose(gpm_score(first, second) / model.tau_, model.decision_function(X), atol=1e-4)
    table = model.candidates(X[:5, 0]).table
    assert table.shape == (5, 5)
    expected = model.decision_function(np.stack([X[:1, 0], X[1:2, 0]], axis=1))
    assert float(table[0, 1]) == pytest.approx(expected[0], abs=1e-4)


def test_named_items_in_a_circle_are_learned() -> None:
    ring = [["a", "b"], ["b", "c"], ["c", "a"]]
    assert GeneralPreference(dim=2, hidden=(), epochs=200).fit(ring).score(ring) == 1.0
    assert RewardNetwork(hidden=(), epochs=200).fit(ring).score(ring) < 1.0


def test_gate_lets_the_prompt_choose_the_block() -> None:
    rng = np.random.default_rng(1)
    options = rng.normal(size=(400, 2, 2))
    prompts = rng.integers(2, size=400)
    y = (options[np.arange(400), 0, prompts] > options[np.arange(400), 1, prompts]).astype(float)
    context = np.eye(2)[prompts]
    gated = GeneralPreference(gate=True, dim=8, epochs=150, batch_size=100).fit(options, y, prompts=context)
    assert gated.score(options, y, prompts=context) > 0.85
    np.testing.assert_allclose(gated.eigenvalues(context).sum(axis=1), 1, atol=1e-6)
    assert gated.candidates(options[0], context[0]).table.shape == (2, 2)
    wide = GeneralPreference(gate=True, gate_scale=None, dim=4, epochs=1).fit(options, y, prompts=context)
    np.testing.assert_allclose(wide.eigenvalues(context).sum(axis=1), 2, atol=1e-6)


def test_temperature_can_be_learned() -> None:
    # The rewards have noise: a fixed temperature of 0.1 would be too sure.
    model = GeneralPreference(dim=2, hidden=(), tau="learned", epochs=500, learning_rate=0.02).fit(X, Y)
    assert model.tau_ != pytest.approx(0.1, abs=5e-3)
    assert model.log_likelihood(X, Y) > -0.69


def test_soft_labels_lead_to_their_probability() -> None:
    rows = np.tile(np.array([[[1.0], [0.0]]]), (10, 1, 1))
    model = RewardNetwork(hidden=(), epochs=500, learning_rate=0.05).fit(rows, np.full(10, 0.8))
    assert model.predict_proba(rows[:1])[0, 1] == pytest.approx(0.8, abs=1e-2)


def linear(pairs: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.random((pairs, 2, 3))
    return X, (rng.random(pairs) < 1 / (1 + np.exp(-((X[:, 0] - X[:, 1]) @ [6.0, -3.0, 0.0])))).astype(float)


ONE_FEATURE: dict[str, Any] = {"hidden": (), "learning_rate": 0.1, "epochs": 200, "zero_start": True}


def test_a_linear_reward_finds_the_likelihoods_optimum() -> None:
    X, y = linear()
    model = RewardNetwork(hidden=(), learning_rate=0.2, epochs=300).fit(X, y)
    found = np.array(list(model.explain().values()))
    # Newton's method on the same likelihood, written down here.
    differences, weights = X[:, 0] - X[:, 1], np.zeros(3)
    for _ in range(30):
        p = 1 / (1 + np.exp(-differences @ weights))
        weights += np.linalg.solve((differences * (p * (1 - p))[:, None]).T @ differences, differences.T @ (y - p))
    np.testing.assert_allclose(found, weights, atol=2e-2)
    assert model.score(X, y) == pytest.approx(((differences @ weights > 0) == y).mean(), abs=0.02)


def test_exchanging_the_options_and_the_labels_changes_nothing_but_the_sign() -> None:
    X, y = linear(100)
    one = RewardNetwork(epochs=50).fit(X, y)
    other = RewardNetwork(epochs=50).fit(X[:, ::-1], 1 - y)
    np.testing.assert_allclose(one.decision_function(X), -other.decision_function(X[:, ::-1]), atol=1e-5)


def test_soft_labels_of_one_half_teach_nothing() -> None:
    X, _ = linear(100)
    # Nothing but one half is refused, so one pair is judged both ways.
    X[1] = X[0]
    model = RewardNetwork(hidden=(), zero_start=True, epochs=50).fit(X, np.array([1.0, 0.0, *[0.5] * 98]))
    # Adam makes steps of rounding errors; a label would move weights by up to 50 times the rate.
    assert np.abs(model.decision_function(X)).max() < 5e-3


def test_a_margin_moves_the_reward_to_where_its_slope_vanishes() -> None:
    X, y = np.tile([[[1.0], [0.0]]], (100, 1, 1)), (np.arange(100) < 70).astype(float)
    for margin in (0.0, 1.5, -1.5):
        model = RewardNetwork(**ONE_FEATURE).fit(X, y, margins=np.full(100, margin))
        # 0.7 sigmoid(margin - w) = 0.3 sigmoid(margin + w)
        wanted = brentq(lambda w, m=margin: 0.7 * expit(m - w) - 0.3 * expit(m + w), -10, 10)
        assert model.explain()["feature 0"] == pytest.approx(wanted, abs=1e-2)


@pytest.mark.parametrize(
    ("smoothed", "margin", "smoothing"), [("all", 1.0, 0.1), ("negative", 1.0, 0.0), ("negative", -1.0, 0.1)]
)
def test_smoothing_takes_from_the_share_that_a_soft_label_leaves(
    smoothed: Any, margin: float, smoothing: float
) -> None:
    X = np.tile([[[1.0], [0.0]]], (4, 1, 1))
    model = RewardNetwork(**ONE_FEATURE, alpha=0.1, smoothed=smoothed)
    model.fit(X, np.full(4, 0.8), margins=np.full(4, margin))
    # The optimum of w - margin has the log-odds of the label, 0.8 turned round with the chance of the smoothing.
    share = 0.8 * (1 - smoothing) + 0.2 * smoothing
    assert model.explain()["feature 0"] - margin == pytest.approx(np.log(share / (1 - share)), abs=1e-2)


def test_weights_count() -> None:
    X, y = np.tile([[[1.0], [0.0]]], (4, 1, 1)), np.array([1.0, 1.0, 1.0, 0.0])
    assert RewardNetwork(**ONE_FEATURE).fit(X, y, [1, 1, 1, 3]).explain()["feature 0"] == pytest.approx(0, abs=1e-2)
    assert RewardNetwork(**ONE_FEATURE).fit(X, y).explain()["feature 0"] == pytest.approx(np.log(3), abs=1e-2)


def test_rewards_of_single_options_are_those_of_rows() -> None:
    X, y = linear(50)
    model = RewardNetwork(hidden=(4, 2), activation="relu", epochs=20, feature_names=("a", "b", "c")).fit(X, y)
    np.testing.assert_allclose(model.reward(X[:, 0]) - model.reward(X[:, 1]), model.decision_function(X), atol=1e-6)
    gradients = model.explain(X[:, 0])
    assert set(gradients) == {"a", "b", "c"}
    # The mean gradient, by central differences.
    step = 1e-2 * np.array([1.0, 0.0, 0.0])
    slope = (model.reward(X[:, 0] + step) - model.reward(X[:, 0] - step)) / 2e-2
    assert gradients["a"] == pytest.approx(slope.mean(), abs=5e-2)
    named = RewardNetwork(epochs=5).fit([["x", "y"], ["y", "z"]])
    assert named.reward(["x", "z"]).shape == (2,)


def test_names_of_features_are_kept_in_a_saved_model(tmp_path: Any) -> None:
    X, y = linear(50)
    model = RewardNetwork(hidden=(), epochs=5, feature_names=("a", "b", "c"), betas=(0.9, 0.95)).fit(X, y)
    loaded = load_preference_model(save_preference_model(model, tmp_path))
    assert loaded.explain() == model.explain()
    assert loaded.get_params() == model.get_params()


def test_what_cannot_be_learned_of_is_warned_of() -> None:
    X, y = linear(10)
    X[..., 1] = 2.0
    with pytest.warns(UserWarning, match="constant say nothing about a choice: 1"):
        RewardNetwork(epochs=1).fit(X, y)
    with pytest.warns(UserWarning, match="constant say nothing about a choice: b"):
        RewardNetwork(epochs=1, feature_names=("a", "b", "c")).fit(X, y)
    with pytest.warns(UserWarning, match="after a relu all rewards below 0 are equal"):
        RewardNetwork(epochs=1, output_activation="relu").fit(linear(10)[0], y)


def test_warmup_and_cosine_start_and_end_low() -> None:
    rates = [rate_at(step, 10, 0.2, "cosine") for step in range(10)]
    assert rates[0] < rates[1] <= 1
    assert rates[2] == pytest.approx(1.0)
    assert rates[-1] < 0.1
    # The first of ten updates, none of them with Adam's memory, moves the weight by the rate.
    weight = torch.nn.Parameter(torch.zeros(1))
    groups = [{"params": [weight], "lr": 1.0}]
    moved = {}
    for steps in (1, 2):
        weight.data.zero_()
        minimise_by_gradient(
            groups, lambda rows: weight.sum(), 1, steps=steps, batch_size=None, seed=0, device="cpu", warmup=0.5
        )
        moved[steps] = -weight.item()
    assert moved[1] == pytest.approx(1 / 1.5, rel=1e-3)
    assert moved[2] == pytest.approx(1 / 2 + 1.0, rel=1e-3)


def test_every_row_is_seen_once_a_pass_in_batches_of_nearly_equal_size() -> None:
    seen: list[list[int]] = []
    weight = torch.nn.Parameter(torch.zeros(1))

    def loss(rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows.tolist())
        return weight.sum()

    groups = [{"params": [weight], "lr": 1.0}]
    minimise_by_gradient(groups, loss, 10, steps=6, batch_size=4, seed=0, device="cpu")
    assert [len(rows) for rows in seen] == [4, 3, 3, 4, 3, 3]
    for batches in (seen[:3], seen[3:]):
        assert sorted(itertools.chain(*batches)) == list(range(10))
    assert seen[:3] != seen[3:]
    X, y = linear(10)
    assert len(RewardNetwork(epochs=5, batch_size=4).fit(X, y).loss_curve_) == 15


def test_a_clipped_gradient_has_the_norm_of_its_bound() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    groups = [{"params": [weight], "lr": 1.0}]
    how: dict[str, Any] = {"steps": 1, "batch_size": None, "seed": 0, "device": "cpu"}
    minimise_by_gradient(groups, lambda rows: 30 * weight[0] + 40 * weight[1], 1, clip=0.5, **how)
    assert weight.grad is not None
    np.testing.assert_allclose(weight.grad, [0.3, 0.4], rtol=1e-4)


def test_activations_stand_after_the_first_and_the_last_layer_only() -> None:
    weights = [torch.tensor([[2.0]]), torch.tensor([[-1.0]]), torch.tensor([[1.0]])]
    biases = [torch.zeros(1)] * 3
    features = torch.tensor([[1.0]])
    assert float(feedforward_scores(features, weights, biases, activation="relu")) == -2.0
    assert float(feedforward_scores(features, weights, biases, activation="relu", inner_activation="relu")) == 0.0
    assert float(feedforward_scores(features, weights, biases, activation="relu", output_activation="relu")) == 0.0
    with pytest.raises(OptionError, match="do not lead from 2 features to one score"):
        feedforward_scores(torch.zeros(1, 2), weights, biases)


@pytest.mark.parametrize(
    ("options", "activations"),
    [
        ({"activation": "relu"}, {"activation": "relu", "inner_activation": "relu"}),
        ({"activation": "relu", "inner_activation": None}, {"activation": "relu"}),
        ({"activation": None}, {"activation": None}),
        ({"output_activation": "sigmoid"}, {"inner_activation": "tanh", "output_activation": "sigmoid"}),
    ],
)
def test_a_fitted_network_is_the_function_of_its_layers(options: dict[str, Any], activations: dict[str, Any]) -> None:
    model = RewardNetwork(hidden=(4, 3), epochs=3, **options).fit(X, Y)
    layers = [model.module_.body.layers[place] for place in range(3)]
    with torch.no_grad():
        wanted = feedforward_scores(
            torch.from_numpy(X[:, 0]).float(),
            [layer.weight for layer in layers],
            [layer.bias for layer in layers],
            **activations,
        )
    np.testing.assert_allclose(model.reward(X[:, 0]), wanted, atol=1e-6)


def test_a_context_multiplies_with_features() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 2, 3))
    model = RewardNetwork(hidden=(), context_features=1, zero_start=True, epochs=1).fit(rows)
    for parameter in model.module_.parameters():
        parameter.data.zero_()
    model.module_.bilinear.data = torch.tensor([[1.0], [10.0]])
    assert model.reward([[1.0, 2.0, 3.0]]).tolist() == [63.0]
    with pytest.raises(OptionError, match="a reward that is not linear differ from place to place: give features"):
        model.explain()
    assert model.explain([[1.0, 2.0, 3.0]]) == {"feature 0": 3.0, "feature 1": 30.0, "feature 2": 21.0}
    joined = with_contexts(np.zeros((2, 2, 3)), np.array([[1.0], [2.0]]))
    assert joined[..., 3].tolist() == [[1.0, 1.0], [2.0, 2.0]]
    with pytest.raises(PrefkitError, match="each pair or option needs one context"):
        with_contexts(np.zeros((2, 2, 3)), np.zeros((3, 1)))


def test_a_context_decides_what_is_preferred() -> None:
    rng = np.random.default_rng(0)
    pairs, contexts = rng.normal(size=(300, 2, 2)), rng.normal(size=(300, 1))
    y = ((pairs[:, 0, 0] - pairs[:, 1, 0]) * contexts[:, 0] > 0).astype(float)
    told = with_contexts(pairs, contexts)
    assert (
        RewardNetwork(hidden=(), context_features=1, epochs=200, learning_rate=0.05).fit(told, y).score(told, y) > 0.95
    )
    assert RewardNetwork(hidden=(), epochs=200, learning_rate=0.05).fit(told, y).score(told, y) < 0.65


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
        (lambda: GeneralPreference(epochs=1).fit(X, Y).eigenvalues(np.ones((1, 2))), "fitted without prompts"),
        (lambda: RewardNetwork(epochs=1).fit(X, Y).decision_function(X, prompts=X[:, 0]), "fitted without prompts"),
        (lambda: RewardNetwork().fit(X, Y, prompts=X[:, 0]), "a reward is no function of the prompt"),
        (lambda: RewardNetwork().fit(np.ones((3, 2, 2))), "the same features in every comparison"),
        (lambda: RewardNetwork(hidden=(0,)).fit(X, Y), "hidden must be widths of at least 1"),
        (lambda: RewardNetwork(learning_rate=0).fit(X, Y), "learning_rate must be greater than 0"),
        (lambda: RewardNetwork(epochs=0).fit(X, Y), "epochs must be at least 1"),
        (lambda: RewardNetwork(batch_size=0).fit(X, Y), "batch_size must be at least 1, or None"),
        (lambda: RewardNetwork(clip=0.0).fit(X, Y), "clip must be greater than 0, or None"),
        (lambda: RewardNetwork(alpha=0.7).fit(X, Y), r"alpha must be in \[0, 0.5\]"),
        (lambda: RewardNetwork(smoothed="some").fit(X, Y), "smoothed must be all or negative, got 'some'"),
        (lambda: RewardNetwork(warmup=1.0).fit(X, Y), r"warmup must be in \[0, 1\)"),
        (lambda: RewardNetwork(schedule="linear").fit(X, Y), "schedule must be constant or cosine, got 'linear'"),
        (lambda: RewardNetwork(zero_start=True).fit(X, Y), "zero_start must be False with hidden layers"),
        (lambda: RewardNetwork(activation="sine").fit(X, Y), "unknown activation 'sine'"),
        (lambda: RewardNetwork(context_features=2).fit(X, Y), "context_features must be less than the 2 features"),
        (lambda: RewardNetwork(context_features=1).fit([["a", "b"]]), "less than the 0 features, got 1"),
        (lambda: RewardNetwork(feature_names=("a",)).fit(X, Y), "feature_names must name 2 features, got 1"),
        (lambda: RewardNetwork().fit(X, Y, margins=[1.0]), "margins must be one number a row"),
        (lambda: RewardNetwork().fit(X, Y, margins=np.full(200, np.inf)), "row 0: margins must be finite numbers"),
        (lambda: GeneralPreference().fit(X, Y, margins=np.ones(200)), "margins are for reward networks"),
        (lambda: RewardNetwork().fit(X, Y, -np.ones(200)), "row 0: sample_weight must be a finite number"),
        (
            lambda: RewardNetwork(feature_names=("a", "b")).fit(np.where(np.arange(2) == 1, np.nan, X), Y),
            "row 0, option 0, feature b must be a finite number, got nan",
        ),
        (lambda: RewardNetwork(epochs=1).fit(X, Y).reward(X[:, 0, :1]), "fitted to 2 features, got 1"),
        (lambda: RewardNetwork(epochs=1).fit(X, Y).explain(), "give features"),
        (lambda: RewardNetwork(epochs=1).fit([["a", "b"]]).explain(), "no feature explains"),
        (lambda: RewardNetwork(learning_rate=1e30, hidden=(), epochs=9).fit(1e9 * X, Y), "the fit diverged"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises((OptionError, PrefkitError), match=message):
        call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_networks_fit_on_a_gpu() -> None:
    model = GeneralPreference(epochs=50, device="cuda").fit(X, Y)
    assert model.score(X, Y) > 0.7
