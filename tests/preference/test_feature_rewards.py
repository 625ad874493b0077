"""Reward models on features: what they learn, what they refuse, and what they write."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import expit

from prefkit.comparisons import Comparison, Winner
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.preference import (
    OPINION_SUMMARY,
    DomainFeatures,
    DomainReward,
    FeatureRewardModel,
    FeedforwardReward,
    domain_features,
    feedforward_scores,
    vote_strength,
    with_contexts,
)


def linear(pairs: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.random((pairs, 2, 3))
    return X, (rng.random(pairs) < 1 / (1 + np.exp(-((X[:, 0] - X[:, 1]) @ [6.0, -3.0, 0.0])))).astype(float)


def test_a_linear_reward_finds_the_likelihoods_optimum() -> None:
    X, y = linear()
    model = FeatureRewardModel(weight_decay=0.0, learning_rate=0.2, epochs=300).fit(X, y)
    found = np.array(list(model.explain().values()))
    # Newton's method on the same likelihood, written down here.
    differences, weights = X[:, 0] - X[:, 1], np.zeros(3)
    for _ in range(30):
        p = 1 / (1 + np.exp(-differences @ weights))
        weights += np.linalg.solve((differences * (p * (1 - p))[:, None]).T @ differences, differences.T @ (y - p))
    np.testing.assert_allclose(found, weights, atol=2e-2)
    assert model.score(X, y) == pytest.approx(((differences @ weights > 0) == y).mean(), abs=0.02)


def test_exchanging_the_responses_and_the_labels_changes_nothing_but_the_sign() -> None:
    X, y = linear(100)
    one = FeatureRewardModel(epochs=50).fit(X, y)
    other = FeatureRewardModel(epochs=50).fit(X[:, ::-1], 1 - y)
    np.testing.assert_allclose(one.decision_function(X), -other.decision_function(X[:, ::-1]), atol=1e-5)
    np.testing.assert_allclose(one.predict_proba(X).sum(1), 1.0)
    assert ((one.predict_proba(X)[:, 1] > 0.5) == one.predict(X)).all()


def test_soft_labels_of_one_half_teach_nothing() -> None:
    X, _ = linear(100)
    model = FeatureRewardModel(zero_start=True, weight_decay=0.0).fit(X, np.full(100, 0.5))
    assert np.abs(model.decision_function(X)).max() < 1e-6


def test_a_margin_moves_the_reward_to_where_its_slope_vanishes() -> None:
    X, y = np.tile([[[1.0], [0.0]]], (100, 1, 1)), (np.arange(100) < 70).astype(float)
    how = {"weight_decay": 0.0, "learning_rate": 0.1, "epochs": 200, "zero_start": True}
    for margin in (0.0, 1.5, -1.5):
        model = FeatureRewardModel(**how).fit(X, y, margins=np.full(100, margin))
        # 0.7 sigmoid(margin - w) = 0.3 sigmoid(margin + w)
        wanted = brentq(lambda w, m=margin: 0.7 * expit(m - w) - 0.3 * expit(m + w), -10, 10)
        assert model.explain()["feature 0"] == pytest.approx(wanted, abs=1e-2)


def test_weights_count() -> None:
    X, y = np.tile([[[1.0], [0.0]]], (4, 1, 1)), np.array([1.0, 1.0, 1.0, 0.0])
    how = {"weight_decay": 0.0, "learning_rate": 0.1, "epochs": 200, "zero_start": True}
    assert FeatureRewardModel(**how).fit(X, y, [1, 1, 1, 3]).explain()["feature 0"] == pytest.approx(0, abs=1e-2)
    assert FeatureRewardModel(**how).fit(X, y).explain()["feature 0"] == pytest.approx(np.log(3), abs=1e-2)


def test_a_saved_model_gives_the_same_rewards(tmp_path: Path) -> None:
    X, y = linear(50)
    model = FeatureRewardModel((4, 2), activation="relu", epochs=20, feature_names=("a", "b", "c")).fit(X, y)
    model.save(tmp_path / "m")
    loaded = FeatureRewardModel.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.decision_function(X), model.decision_function(X))
    assert loaded.get_params() == {**model.get_params(), "layers": [4, 2], "feature_names": ["a", "b", "c"]}
    assert set(model.explain(X[:, 0])) == {"a", "b", "c"}


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    X, y = linear(20)
    FeatureRewardModel(epochs=1).fit(X, y).save(tmp_path)
    about = json.loads((tmp_path / "feature_reward.json").read_text())
    (tmp_path / "feature_reward.json").write_text(json.dumps({**about, "features": 9}))
    with pytest.raises(OptionError, match="cannot be read"):
        FeatureRewardModel.load(tmp_path)
    (tmp_path / "feature_reward.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(OptionError, match="has format 99, this version knows 1"):
        FeatureRewardModel.load(tmp_path)
    with pytest.raises(OptionError, match="cannot be read"):
        FeatureRewardModel.load(tmp_path / "nowhere")


def test_parameters_can_be_read_and_set() -> None:
    model = FeatureRewardModel((3,), epochs=7)
    copy = FeatureRewardModel(**model.get_params())
    assert copy.get_params() == model.get_params()
    with pytest.raises(OptionError, match="unknown parameter 'epoch'; did you mean 'epochs'"):
        model.set_params(epoch=1)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"learning_rate": 0}, "learning_rate must be greater than 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"alpha": 0.7}, r"alpha must be in \[0, 0.5\]"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\)"),
        ({"zero_start": True, "layers": (3,)}, "zero_start must be False with hidden layers"),
        ({"activation": "gelu", "layers": (3,)}, "unknown activation 'gelu'"),
        ({"layers": (0,)}, "size at least 1"),
        ({"context_features": 3}, "context_features must be from 0 to less than the 3"),
        ({"feature_names": ("a",)}, "feature_names must name 3 features, got 1"),
    ],
)
def test_bad_options(options: dict[str, object], problem: str) -> None:
    X, y = linear(10)
    with pytest.raises(OptionError, match=problem):
        FeatureRewardModel(**options).fit(X, y)  # type: ignore[arg-type]


def test_bad_data_are_refused_with_row_and_feature() -> None:
    X, y = linear(10)
    model = FeatureRewardModel(epochs=1, feature_names=("a", "b", "c"))
    broken = X.copy()
    broken[4, 1, 2] = np.nan
    with pytest.raises(RecordError, match="X:5: field 'c': feature of response 1 must be a finite number, got nan"):
        model.fit(broken, y)
    with pytest.raises(RecordError, match="y:3: field 'y': must be the probability"):
        model.fit(X, np.where(np.arange(10) == 2, 2.0, y))
    with pytest.raises(PrefkitError, match="each pair needs one label"):
        model.fit(X, y[:9])
    with pytest.raises(PrefkitError, match=r"pairs must be \[pairs, 2, features\]"):
        model.fit(X[:, 0], y)
    with pytest.raises(PrefkitError, match="margins must hold one number a pair"):
        model.fit(X, y, margins=[1.0])
    with pytest.raises(RecordError, match="sample_weight:1: field 'sample_weight'"):
        model.fit(X, y, -np.ones(10))
    with pytest.raises(PrefkitError, match="not fitted yet"):
        FeatureRewardModel().reward(X[:, 0])
    fitted = model.fit(X, y)
    with pytest.raises(PrefkitError, match="fitted to 3 features, got 2"):
        fitted.reward(X[:, 0, :2])
    with pytest.raises(PrefkitError, match="give features"):
        FeatureRewardModel((3,), epochs=1).fit(X, y).explain()


def test_constant_features_and_a_relu_at_the_end_are_warned_of() -> None:
    X, y = linear(10)
    X[..., 1] = 2.0
    with pytest.warns(UserWarning, match="constant say nothing about a choice: feature 1"):
        FeatureRewardModel(epochs=1).fit(X, y)
    with pytest.warns(UserWarning, match="after a relu all rewards below 0 are equal"):
        FeatureRewardModel(epochs=1, output_activation="relu").fit(linear(10)[0], y)


def test_warmup_and_cosine_start_and_end_low() -> None:
    model = FeatureRewardModel(warmup=0.2, schedule="cosine")
    rates = [model._rate(step, 10) for step in range(10)]
    assert rates[0] < rates[1] <= 1
    assert rates[2] == pytest.approx(1.0)
    assert rates[-1] < 0.1


def test_activations_stand_after_the_first_and_the_last_layer_only() -> None:
    weights = [torch.tensor([[2.0]]), torch.tensor([[-1.0]]), torch.tensor([[1.0]])]
    biases = [torch.zeros(1)] * 3
    features = torch.tensor([[1.0]])
    assert float(feedforward_scores(features, weights, biases, activation="relu")) == -2.0
    assert float(feedforward_scores(features, weights, biases, activation="relu", inner_activation="relu")) == 0.0
    assert float(feedforward_scores(features, weights, biases, activation="relu", output_activation="relu")) == 0.0
    with pytest.raises(OptionError, match="do not lead from 2 features to one score"):
        feedforward_scores(torch.zeros(1, 2), weights, biases)


def test_a_context_multiplies_with_features() -> None:
    network = FeedforwardReward(3, context_features=1)
    assert network.bilinear is not None
    network.bilinear.data = torch.tensor([[1.0], [10.0]])
    assert network(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [63.0]
    joined = with_contexts(np.zeros((2, 2, 3)), np.array([[1.0], [2.0]]))
    assert joined[..., 3].tolist() == [[1.0, 1.0], [2.0, 2.0]]
    with pytest.raises(PrefkitError, match="each pair or response needs one context"):
        with_contexts(np.zeros((2, 2, 3)), np.zeros((3, 1)))


def test_votes_out_of_fold_find_flipped_labels_that_memorising_models_do_not() -> None:
    X, _ = linear(150)
    ahead = (X[:, 0] - X[:, 1]) @ [6.0, -3.0, 0.0]
    labels = (ahead > 0).astype(float)
    wrong = np.arange(150) % 5 == 0
    noisy = np.where(wrong, 1 - labels, labels)
    model = FeatureRewardModel(epochs=100)
    strength = vote_strength(model, X, noisy, members=3, folds=3).mean.numpy()
    assert (strength[wrong & (np.abs(ahead) > 1)] < 0).mean() > 0.9
    with pytest.raises(OptionError, match="folds from 2 to 150"):
        vote_strength(model, X, noisy, folds=1)


SCORES = dict.fromkeys(OPINION_SUMMARY, 2.5)


def test_features_are_ordered_by_name_and_scaled() -> None:
    domain = DomainFeatures(("a", "b"), low=1, high=3)
    assert domain.vectors([{"b": 1, "a": 3}]).tolist() == [[1.0, 0.0]]
    assert domain.naive_mean([{"b": None, "a": 2}]).tolist() == [0.5]


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        ({**SCORES, "tone": 1.0}, "scores:1: field 'tone': unknown feature 'tone'"),
        ({k: v for k, v in SCORES.items() if k != "relevance"}, "field 'relevance': the feature is absent"),
        ({**SCORES, "relevance": 6}, r"field 'relevance': must lie in \[0, 5\], got 6"),
        ({**SCORES, "relevance": None}, "field 'relevance': the value is missing: impute it"),
        ({**SCORES, "relevance": float("nan")}, "field 'relevance': the value is missing"),
        ({**SCORES, "relevance": "3"}, "field 'relevance': must be a number, got '3'"),
    ],
)
def test_bad_features_are_named(scores: dict[str, object], problem: str) -> None:
    with pytest.raises(RecordError, match=problem):
        DomainFeatures(OPINION_SUMMARY).vectors([scores])  # type: ignore[list-item]


def test_bad_domains() -> None:
    with pytest.raises(OptionError, match="different names, at least one"):
        DomainFeatures(("a", "a"))
    with pytest.raises(OptionError, match="low < high"):
        DomainFeatures(("a",), low=1, high=1)
    with pytest.raises(OptionError, match="unknown feature 'b'"):
        DomainFeatures(("a",), functions={"b": lambda prompt, response: 0.0})
    with pytest.raises(OptionError, match="unknown function of a feature 'word'; did you mean 'words'"):
        domain_features(["word"], ["word"])
    with pytest.raises(RecordError, match="all features are missing"):
        DomainFeatures(("a",)).naive_mean([{"a": None}])


def pair(number: int, better: str = "a long good answer") -> Comparison:
    return Comparison((f"question {number}",), (better, "bad"), Winner(0), source="f", line=number)


def test_a_users_own_function_is_a_feature_but_cannot_be_saved(tmp_path: Path) -> None:
    domain = DomainFeatures(("good",), high=1, functions={"good": lambda prompt, response: "good" in response})
    reward = DomainReward(domain).fit([pair(1), pair(2)])
    assert reward.score([pair(3)]) == 1.0
    assert reward.explain()["good"] > 0
    with pytest.raises(OptionError, match="feature 'good' is computed by a function of your own"):
        reward.save(tmp_path)


def test_a_saved_domain_reward_annotates_texts(tmp_path: Path) -> None:
    reward = DomainReward(domain_features(["words"], ["words"], {"words": (0, 10)})).fit([pair(1), pair(2)])
    reward.save(tmp_path / "m")
    loaded = DomainReward.load(tmp_path / "m")
    (one,), (other,) = (list(each.annotate([pair(3)])) for each in (reward, loaded))
    assert one.extra["rewards"] == other.extra["rewards"]
    assert one.extra["rewards"][0] > one.extra["rewards"][1]


def test_features_that_are_not_there_are_errors_or_set_aside() -> None:
    reward = DomainReward(DomainFeatures(("tone",)))
    with pytest.raises(RecordError, match="f:1: field 'tone': response 0: the feature is neither given nor computed"):
        reward.fit([pair(1)])
    skipped: list[RecordError] = []
    with pytest.raises(PrefkitError, match="no comparison has a preferred response and features; first: f:1"):
        reward.fit([pair(1)], skipped)
    short = Comparison(("q",), ("a", "b"), Winner(0), extra={"features": [{"tone": 1}]}, source="f", line=9)
    with pytest.raises(RecordError, match="f:9: field 'features': one mapping of features a response is needed, 2"):
        reward.fit([short])
