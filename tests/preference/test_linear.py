"""Strengths against a second implementation: likelihoods written out and searched, and saved fits of choix."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from prefkit.errors import OptionError, PrefkitError
from prefkit.preference import BradleyTerry, PlackettLuce, Thurstone

CHOIX = json.loads((Path(__file__).parent / "choix.json").read_text())
Array = NDArray[Any]


def world(n: int = 6, rows: int = 300, ties: float = 0.0, seed: int = 0) -> tuple[Array, Array]:
    """Comparisons of n items with outcomes 0 and 1, and a share of ties."""
    rng = np.random.default_rng(seed)
    strengths = rng.normal(size=n)
    X = np.array([rng.permutation(n)[:2] for _ in range(rows)])
    y = (rng.random(rows) < 1 / (1 + np.exp(strengths[X[:, 1]] - strengths[X[:, 0]]))).astype(float)
    y[rng.random(rows) < ties] = 0.5
    return X, y


def features(rows: int = 200, d: int = 3, seed: int = 1) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, 2, d))
    y = (rng.random(rows) < 1 / (1 + np.exp(-(X[:, 0] - X[:, 1]) @ np.arange(d)))).astype(float)
    return X, y


def half(m: float, y: float, t: float) -> float:
    return float(y * np.log1p(np.exp(-m)) + (1 - y) * np.log1p(np.exp(m)))


def probit(m: float, y: float, t: float) -> float:
    return float(-y * stats.norm.logcdf(m) - (1 - y) * stats.norm.logcdf(-m))


def rao_kupper(m: float, y: float, t: float) -> float:
    win, loss = 1 / (1 + np.exp(t - m)), 1 / (1 + np.exp(t + m))
    return float(-np.log({1.0: win, 0.0: loss, 0.5: 1 - win - loss}[y]))


def davidson(m: float, y: float, t: float) -> float:
    weights = {1.0: np.exp(m / 2), 0.0: np.exp(-m / 2), 0.5: np.exp(t)}
    return float(-np.log(weights[y] / sum(weights.values())))


MODELS: dict[str, tuple[Any, Callable[[float, float, float], float], bool]] = {
    "half": (BradleyTerry(), half, False),
    "ridge": (BradleyTerry(ridge=2.0), half, False),
    "probit": (Thurstone(), probit, False),
    "rao_kupper": (BradleyTerry(ties="rao_kupper"), rao_kupper, True),
    "davidson": (BradleyTerry(ties="davidson", ridge=0.5), davidson, True),
}


def reference(loss: Any, margins: Any, size: int, y: Array, ridge: float, tied: bool) -> Array:
    """Parameters by a quasi-Newton method on numerical gradients."""

    def total(theta: Array) -> float:
        tie = theta[-1] if tied else 0.0
        rows = sum(loss(m, outcome, tie) for m, outcome in zip(margins(theta[:size]), y, strict=True))
        return float(rows + ridge / 2 * theta[:size] @ theta[:size] + theta[:size].mean() ** 2 * (ridge == 0))

    start = np.append(np.zeros(size), [0.3] * tied)
    found = optimize.minimize(total, start, method="BFGS", options={"gtol": 1e-7})
    return np.asarray(found.x)


@pytest.mark.parametrize("name", MODELS)
def test_strengths_of_items_are_those_of_a_direct_search(name: str) -> None:
    model, loss, tied = MODELS[name]
    X, y = world(n=4, rows=60, ties=0.3)
    model.fit(X, y)
    expected = reference(loss, lambda theta: theta[X[:, 0]] - theta[X[:, 1]], 4, y, model.ridge, tied)
    np.testing.assert_allclose(model.coef_, expected[:4] - expected[:4].mean(), atol=2e-5)
    if tied:
        assert model.tie_ == pytest.approx(expected[-1], abs=2e-5)


@pytest.mark.parametrize("name", ["half", "probit", "davidson"])
def test_coefficients_of_features_are_those_of_a_direct_search(name: str) -> None:
    model, loss, tied = MODELS[name]
    X, y = features(80, 2)
    if tied:
        y[::7] = 0.5
    model.fit(X, y)
    differences = X[:, 0] - X[:, 1]

    def total(theta: Array) -> float:
        tie = theta[-1] if tied else 0.0
        rows = sum(loss(m, outcome, tie) for m, outcome in zip(differences @ theta[:2], y, strict=True))
        return float(rows + model.ridge / 2 * theta[:2] @ theta[:2])

    found = optimize.minimize(total, np.zeros(2 + tied), method="BFGS", options={"gtol": 1e-7}).x
    np.testing.assert_allclose(model.coef_, found[:2], atol=2e-5)


def test_fits_agree_with_choix() -> None:
    plain = BradleyTerry().fit(CHOIX["pairs"])
    np.testing.assert_allclose(plain.coef_, CHOIX["ilsr_pairwise"], atol=1e-9)
    # Its alpha has no half.
    penalised = BradleyTerry(ridge=0.5).fit(CHOIX["pairs"])
    np.testing.assert_allclose(penalised.coef_, CHOIX["opt_pairwise_alpha_0.25"], atol=1e-6)
    ranked = PlackettLuce().fit(CHOIX["rankings"])
    np.testing.assert_allclose(ranked.coef_, CHOIX["ilsr_rankings"], atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_standard_errors_are_those_of_the_numerical_curvature(name: str) -> None:
    model, loss, tied = MODELS[name]
    X, y = features(80, 2)
    if tied:
        y[::7] = 0.5
    model.fit(X, y)
    differences = X[:, 0] - X[:, 1]

    def total(theta: Array) -> float:
        tie = theta[-1] if tied else 0.0
        rows = sum(loss(m, outcome, tie) for m, outcome in zip(differences @ theta[:2], y, strict=True))
        return float(rows + model.ridge / 2 * theta[:2] @ theta[:2])

    at, size, step = np.append(model.coef_, [model.tie_] * tied), 2 + tied, 1e-4
    curvature = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            one, two = step * np.eye(size)[i], step * np.eye(size)[j]
            corners = total(at + one + two) - total(at + one - two) - total(at - one + two) + total(at - one - two)
            curvature[i, j] = corners / (4 * step**2)
    expected = np.sqrt(np.diag(np.linalg.inv(curvature)))[:2]
    np.testing.assert_allclose(model.standard_errors_, expected, rtol=1e-4)


def test_two_items_have_a_closed_form() -> None:
    model = BradleyTerry().fit([["a", "b"]] * 4, [1, 1, 1, 0])
    difference, error = model.difference("a", "b")
    assert difference == pytest.approx(np.log(3))
    assert error == pytest.approx(np.sqrt(1 / (4 * 0.75 * 0.25)))
    assert model.standard_errors_ == pytest.approx(np.full(2, error / 2))


def test_rankings_of_two_are_bradley_terry() -> None:
    X, y = world()
    ranks = np.stack([1 - y, y], axis=1).astype(int)
    np.testing.assert_allclose(PlackettLuce().fit(X, ranks).coef_, BradleyTerry().fit(X, y).coef_, atol=1e-9)
    F, y = features()
    ranks = np.stack([1 - y, y], axis=1).astype(int)
    ours, pairs = PlackettLuce().fit(F, ranks), BradleyTerry().fit(F, y)
    np.testing.assert_allclose(ours.coef_, pairs.coef_, atol=1e-9)
    np.testing.assert_allclose(ours.standard_errors_, pairs.standard_errors_, rtol=1e-6)
    assert ours.score(F, ranks) == pytest.approx(pairs.score(F, y))


def test_rankings_may_differ_in_length_and_tie() -> None:
    rankings = [["a", "b", "c"], ["b", "a"], ["c", "a", "b"], ["a", "c"]]
    model = PlackettLuce().fit(rankings)
    assert model.items_.tolist() == ["a", "b", "c"]
    assert model.predict_proba([["a", "b"]])[0] == pytest.approx(
        np.exp(model.coef_[:2]) / np.exp(model.coef_[:2]).sum()
    )
    assert model.predict_proba(rankings)[1, 2] == 0
    # A best-of-three choice says nothing of the other two.
    best = PlackettLuce(ridge=0.1).fit([["a", "b", "c"]], [[0, 1, 1]])
    assert best.coef_[1] == pytest.approx(best.coef_[2])
    assert best.coef_[0] > best.coef_[1]


def test_log_likelihood_of_a_ranking_is_a_product_of_choices() -> None:
    model = PlackettLuce(ridge=1.0).fit([["a", "b", "c"], ["b", "c", "a"]])
    a, b, c = np.exp(model.coef_)
    expected = np.log(a / (a + b + c)) + np.log(b / (b + c))
    assert model.log_likelihood([["a", "b", "c"]]) == pytest.approx(expected)
    assert model.log_likelihood_ == pytest.approx(2 * model.log_likelihood([["a", "b", "c"], ["b", "c", "a"]]))


def test_many_items_are_fitted_by_conjugate_gradients_to_the_same_strengths() -> None:
    from prefkit.preference import linear

    X, y = world(n=40, rows=1500, ties=0.1)
    for ties in ("half", "rao_kupper", "davidson"):
        exact = BradleyTerry(ties=ties).fit(X, y)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linear, "DENSE", 10)
            sparse = BradleyTerry(ties=ties).fit(X, y)
        np.testing.assert_allclose(sparse.coef_, exact.coef_, atol=1e-7)
        np.testing.assert_allclose(sparse.standard_errors_, exact.standard_errors_, rtol=1e-6)


def test_a_long_chain_of_items_is_fitted() -> None:
    n = 1700
    X = np.repeat(np.stack([np.arange(n - 1), np.arange(1, n)], axis=1), 4, axis=0)
    y = np.tile([1.0, 1.0, 1.0, 0.0], n - 1)
    model = BradleyTerry().fit(X, y)
    np.testing.assert_allclose(-np.diff(model.coef_), np.log(3), atol=1e-5)


def test_order_sides_and_names_do_not_matter() -> None:
    X, y = world(ties=0.2)
    model = BradleyTerry(ties="davidson").fit(X, y)
    order = np.random.default_rng(0).permutation(len(X))
    exchanged = BradleyTerry(ties="davidson").fit(X[order][:, ::-1], 1 - y[order])
    np.testing.assert_allclose(exchanged.coef_, model.coef_, atol=1e-9)
    named = BradleyTerry(ties="davidson").fit(np.array(list("fedcba"))[X], y)
    np.testing.assert_allclose(named.coef_[::-1], model.coef_, atol=1e-9)


def test_weights_are_repetitions() -> None:
    X, y = world()
    weights = np.random.default_rng(0).integers(1, 3, len(X))
    once = BradleyTerry().fit(X, y, weights)
    again = BradleyTerry().fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    np.testing.assert_allclose(once.coef_, again.coef_, atol=1e-9)


def test_soft_labels_are_shares() -> None:
    soft = BradleyTerry().fit([["a", "b"]], [0.75])
    assert soft.difference("a", "b")[0] == pytest.approx(np.log(3))


def test_probabilities_of_ties_sum_to_one_and_are_largest_between_equals() -> None:
    X, y = world(ties=0.3)
    for ties in ("rao_kupper", "davidson"):
        model = BradleyTerry(ties=ties).fit(X, y)
        p = model.predict_proba(X)
        np.testing.assert_allclose(p.sum(axis=1), 1)
        margins = np.abs(model.decision_function(X))
        assert p[margins.argmin(), 1] == p[:, 1].max()
        assert set(model.predict(X)) <= {0.0, 0.5, 1.0}
        # The expected number of ties is the observed one where nothing is penalised.
        assert p[:, 1].sum() == pytest.approx((y == 0.5).sum(), rel=1e-6 if ties == "davidson" else 0.1)


def test_disconnected_items_are_named() -> None:
    X = [["a", "b"], ["b", "a"], ["x", "y"], ["y", "x"]]
    with pytest.raises(PrefkitError, match=r"no comparison connects 2 groups of items.*\{a, b\}; \{x, y\}"):
        BradleyTerry().fit(X)
    with pytest.raises(PrefkitError, match=r"\{a, b\}; \{x, y\}"):
        PlackettLuce().fit(X)
    with pytest.warns(UserWarning, match="only the penalty relates 2 groups"):
        assert BradleyTerry(ridge=1.0).fit(X).coef_ == pytest.approx(np.zeros(4))


def test_an_item_that_never_loses_is_named_and_penalised() -> None:
    X = [["a", "b"], ["a", "c"], ["b", "c"], ["c", "b"]]
    for model in (BradleyTerry(), Thurstone(), PlackettLuce()):
        with pytest.warns(UserWarning, match=r"separable: 2 groups.*\{a\}; \{b, c\}"):
            model.fit(X)
        assert model.ridge_ > 0
        assert model.coef_[0] == model.coef_.max()
        assert np.isfinite(model.coef_).all()


def test_separable_features_are_penalised_with_a_warning() -> None:
    X, _ = features(50, 2)
    y = (X[:, 0, 0] > X[:, 1, 0]).astype(float)
    with pytest.warns(UserWarning, match="separable: a combination of features never contradicts"):
        model = BradleyTerry().fit(X, y)
    assert model.ridge_ > 0
    assert model.score(X, y) == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BradleyTerry().fit(*features())


def test_no_tie_in_a_model_of_ties() -> None:
    X, y = world()
    with pytest.warns(UserWarning, match="no comparison is a tie"):
        model = BradleyTerry(ties="rao_kupper").fit(X, y)
    np.testing.assert_allclose(model.coef_, BradleyTerry().fit(X, y).coef_)
    assert (model.predict_proba(X)[:, 1] == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BradleyTerry(ties="davids").fit([["a", "b"]]), "unknown treatment of ties 'davids'; did you mean"),
        (lambda: BradleyTerry(ridge=-1).fit([["a", "b"]]), "ridge must be at least 0, got -1"),
        (lambda: BradleyTerry().fit([["a", "a"]]), "row 0 compares 'a' with itself"),
        (lambda: BradleyTerry().fit([["a", None]]), "row 0, option 1: the name is missing"),
        (lambda: BradleyTerry().fit([["a", "b", "c"]]), "a row must compare two options, got 3; PlackettLuce"),
        (lambda: BradleyTerry().fit([]), "got none"),
        (lambda: BradleyTerry().fit(np.ones((3, 2))), "of floats, which are no names"),
        (lambda: BradleyTerry().fit([["a", "b"]], [0.5]), "all 1 comparisons are ties"),
        (lambda: BradleyTerry(ties="davidson").fit([["a", "b"]] * 2, [0.5, 0.5]), "all 2 comparisons are ties"),
        (lambda: BradleyTerry().fit([["a", "b"]], [1.5]), "row 0: y must be the probability .* got 1.5"),
        (lambda: BradleyTerry().fit([["a", "b"]], [np.nan]), "row 0: y must be the probability .* got nan"),
        (lambda: BradleyTerry().fit([["a", "b"]], [1, 0]), r"y must be one number a row \(1 rows\)"),
        (lambda: BradleyTerry().fit([["a", "b"]], None, [-1]), "row 0: sample_weight must be a finite number"),
        (lambda: BradleyTerry(ties="davidson").fit([["a", "b"]], [0.7]), "row 0: a model of ties takes outcomes"),
        (lambda: BradleyTerry().fit([[[1.0, 2], [3.0, np.nan]]]), "row 0, option 1, feature 1 must be a finite"),
        (lambda: BradleyTerry().fit([[[1.0, 2], [3.0]]]), "row 0: its options have features of different shapes"),
        (lambda: BradleyTerry().fit([[[1.0], [3.0]], [[1.0, 2], [3.0, 4]]]), "row 1: its options have features of sh"),
        (lambda: BradleyTerry().fit(np.ones((4, 2, 2)) * [[[1, 7], [2, 7]]]), "feature 1 is the same in both options"),
        (lambda: BradleyTerry().fit(features()[0].repeat(2, axis=2)), "features 0, 1, .* depend on one another"),
        (lambda: BradleyTerry().fit([["a", "b"]] * 2, [1, 0]).predict([["a", "z"]]), "row 0: 'z' was in no comparison"),
        (lambda: BradleyTerry().fit(*features()).predict([["a", "b"]]), "fitted to 3 features, got names"),
        (lambda: BradleyTerry().fit(*features()).predict(features(d=4)[0]), "fitted to 3 features, got 4"),
        (lambda: BradleyTerry().fit(*features()).leaderboard(), "a model of features knows no items"),
        (lambda: BradleyTerry().fit([["a", "b"]] * 2, [1, 0]).leaderboard(1.0), r"confidence must lie in \(0, 1\)"),
        (lambda: PlackettLuce().fit([["a"]]), "row 0: a ranking must hold at least two different items"),
        (lambda: PlackettLuce().fit([["a", "b", "a"]]), "row 0: a ranking must hold at least two different items"),
        (lambda: PlackettLuce().fit([["a", "b"]], [[0, 0]]), "all 1 rankings are ties"),
        (lambda: PlackettLuce().fit([["a", "b"]], [[0, 0.5]]), "row 0: rank 1 must be a whole number"),
        (lambda: PlackettLuce().fit([["a", "b"]], [0, 1]), r"y must be ranks of shape \(1, 2\)"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises((OptionError, PrefkitError), match=message):
        call()
