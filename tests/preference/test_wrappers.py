from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prefkit.errors import OptionError, PrefkitError
from prefkit.preference import (
    BradleyTerry,
    Calibrated,
    Ensemble,
    RewardNetwork,
    cross_fitted_temperature,
    fit_temperature,
    load_preference_model,
    save_preference_model,
    vote_strength,
)


def data(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, 2, 2))
    return X, (rng.random(rows) < 1 / (1 + np.exp(-(X[:, 0] - X[:, 1]).sum(axis=1)))).astype(float)


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_temperature_undoes_a_factor(factor: float) -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(size=20_000)
    y = rng.random(20_000) < 1 / (1 + np.exp(-odds))
    assert fit_temperature(factor * odds, y) == pytest.approx(factor, rel=0.08)


def test_calibration_makes_an_overfitted_network_less_sure() -> None:
    X, y = data(150)
    network = RewardNetwork(hidden=(64,), epochs=400)
    calibrated = Calibrated(network, held_out=0.3).fit(X, y)
    assert calibrated.temperature_ > 1.5
    test = data(1000, seed=1)
    assert calibrated.log_likelihood(*test) > calibrated.estimator_.log_likelihood(*test)
    assert calibrated.score(*test) == calibrated.estimator_.score(*test)


def test_groups_are_not_torn_apart() -> None:
    X, y = data(40)
    seen: list[int] = []

    class Recording(BradleyTerry):
        def fit(self, X, y=None, sample_weight=None, **given):  # type: ignore[no-untyped-def]
            seen.append(len(X))
            return super().fit(X, y, sample_weight)

    Calibrated(Recording(ridge=0.1), held_out=0.5).fit(X, y, groups=np.repeat([0, 1], [10, 30]))
    assert seen[0] in (10, 30)


def test_ensembles_average_probabilities_and_spread_with_little_data() -> None:
    few, many = data(30), data(2000)
    X, _ = data(100, seed=2)
    small = Ensemble(BradleyTerry(ridge=0.1), members=8).fit(*few)
    large = Ensemble(BradleyTerry(ridge=0.1), members=8).fit(*many)
    assert small.spread(X).mean() > 3 * large.spread(X).mean()
    members = np.mean([member.predict_proba(X) for member in small.members_], axis=0)
    np.testing.assert_allclose(small.predict_proba(X), members)


def test_the_spread_of_a_bootstrap_is_the_standard_error() -> None:
    X, y = data(2000)
    model = BradleyTerry().fit(X, y)
    probe = np.array([[[1.0, 0.0], [0.0, 0.0]]])
    found = Ensemble(BradleyTerry(), members=200).fit(X, y).spread(probe)[0]
    assert found == pytest.approx(model.standard_errors_[0], rel=0.2)


def test_dropout_samples_vary() -> None:
    X, y = data(100)
    model = RewardNetwork(dropout=0.2, epochs=50).fit(X, y)
    samples = model.sample_decisions(X, 10)
    assert samples.shape == (10, 100)
    assert (samples.std(axis=0) > 0).all()
    np.testing.assert_array_equal(samples, model.sample_decisions(X, 10))
    assert (model.decision_function(X) == model.decision_function(X)).all()
    with pytest.raises(OptionError, match="has no dropout"):
        RewardNetwork(epochs=1).fit(X, y).sample_decisions(X)


def test_bad_input_is_refused() -> None:
    X, y = data(20)
    with pytest.raises(PrefkitError, match="row 1: log-odds must be a finite number, got nan"):
        fit_temperature([1.0, np.nan], [1, 0])
    with pytest.raises(PrefkitError, match="every log-odds is 0"):
        fit_temperature([0.0, 0.0], [1, 0])
    y[::2] = 0.5
    with pytest.raises(OptionError, match="set ties='half'"):
        Calibrated(BradleyTerry(ties="davidson", ridge=0.1)).fit(X, y)
    with pytest.raises(PrefkitError, match="leaves one of the two parts empty"):
        Calibrated(BradleyTerry(), held_out=0.1).fit(X, y, groups=np.arange(20) % 2)


def test_a_temperature_is_tested_on_the_other_half() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=4000)
    y = (rng.random(4000) < 1 / (1 + np.exp(-truth))).astype(float)
    groups = np.arange(4000) // 4
    found = cross_fitted_temperature(3 * truth, y, groups=groups, seed=1)
    assert found.value == pytest.approx(fit_temperature(3 * truth, y))
    assert found.value == pytest.approx(3, rel=0.1)
    half = np.isin(groups, np.random.default_rng(1).permutation(1000)[:500])
    for part in (half, ~half):
        other = fit_temperature(3 * truth[~part], y[~part])
        np.testing.assert_allclose(found.log_odds[part], 3 * truth[part] / other)
    with pytest.raises(PrefkitError, match="1 is too few"):
        cross_fitted_temperature([1.0, 2.0], groups=["a", "a"])


def test_a_temperature_around_a_fitted_model(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(60, 2, 3))
    model = BradleyTerry(ridge=1.0).fit(X, X[:, 0, 0] > X[:, 1, 0])
    calibrated = Calibrated.around(model, 2.5)
    np.testing.assert_allclose(calibrated.decision_function(X) * 2.5, model.decision_function(X))
    save_preference_model(calibrated, tmp_path)
    np.testing.assert_allclose(load_preference_model(tmp_path).predict_proba(X), calibrated.predict_proba(X))
    with pytest.raises(OptionError, match="temperature must be greater than 0, got 0"):
        Calibrated.around(model, 0)
    ties = BradleyTerry(ties="davidson").fit([["a", "b"], ["b", "a"], ["a", "b"]], [1, 1, 0.5])
    with pytest.raises(OptionError, match="without ties as an outcome"):
        Calibrated.around(ties, 1.0)


def test_votes_out_of_fold_find_flipped_labels_that_memorising_models_do_not() -> None:
    X = np.random.default_rng(0).random((150, 2, 3))
    ahead = (X[:, 0] - X[:, 1]) @ [6.0, -3.0, 0.0]
    labels = (ahead > 0).astype(float)
    wrong = np.arange(150) % 5 == 0
    noisy = np.where(wrong, 1 - labels, labels)
    sure = wrong & (np.abs(ahead) > 1)
    model = RewardNetwork(hidden=(), learning_rate=0.05, weight_decay=0.05, epochs=100)
    strength = vote_strength(model, X, noisy, members=3, folds=3).mean.numpy()
    assert (strength[sure] < 0).mean() > 0.9
    weighed = vote_strength(BradleyTerry(ridge=1.0), X, noisy, members=3, folds=3, bootstrap=True)
    assert (weighed.mean.numpy()[sure] < 0).mean() > 0.9
    assert (weighed.std > 0).all()
    memorised = vote_strength(
        RewardNetwork(hidden=(128,), activation="relu", learning_rate=0.05, epochs=300), X, noisy, members=2
    )
    assert (memorised.mean.numpy()[sure] < 0).mean() < 0.5
    with pytest.raises(OptionError, match="folds must be from 2 to 150"):
        vote_strength(model, X, noisy, folds=1)
    with pytest.raises(OptionError, match="set bootstrap=True"):
        vote_strength(BradleyTerry(), X, noisy)
