"""What holds for every preference model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

from prefkit.errors import OptionError, PrefkitError
from prefkit.preference import (
    BradleyTerry,
    Calibrated,
    Ensemble,
    GeneralPreference,
    IdealPoints,
    PreferenceModel,
    RewardNetwork,
    Thurstone,
    load_preference_model,
    save_preference_model,
)

ROWS, D, P = 120, 3, 2
Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A model, the input that it takes, and what else it needs to know of each row."""

    model: PreferenceModel
    named: bool = False
    needs: tuple[str, ...] = ()
    ties: bool = False
    wrong: dict[str, Any] = field(default_factory=dict)


CASES = {
    "bradley_terry, items": Case(BradleyTerry(), named=True, wrong={"ridge": -1.0}),
    "bradley_terry, features": Case(BradleyTerry(), wrong={"ridge": np.nan}),
    "rao_kupper, items": Case(BradleyTerry(ties="rao_kupper"), named=True, ties=True, wrong={"ties": "none"}),
    "davidson, features": Case(BradleyTerry(ties="davidson", ridge=0.1), ties=True, wrong={"ties": "none"}),
    "thurstone, items": Case(Thurstone(), named=True, wrong={"ridge": -1.0}),
    "thurstone, features": Case(Thurstone(), wrong={"ridge": -1.0}),
    "reward network": Case(RewardNetwork(epochs=60), wrong={"dropout": 1.0}),
    "reward network, items": Case(RewardNetwork(epochs=60), named=True, wrong={"activation": "sine"}),
    "reward network, linear in batches": Case(
        RewardNetwork(hidden=(), epochs=20, batch_size=32, learning_rate=0.05, warmup=0.1, schedule="cosine", clip=1.0),
        wrong={"warmup": 1.0},
    ),
    "reward network, contexts": Case(
        RewardNetwork(hidden=(8, 4), context_features=1, epochs=60, inner_activation=None),
        wrong={"context_features": 3},
    ),
    "general": Case(GeneralPreference(dim=4, epochs=60), wrong={"dim": 3}),
    "general, items": Case(GeneralPreference(dim=4, hidden=(), epochs=60), named=True, wrong={"tau": 0.0}),
    "general, gate": Case(GeneralPreference(gate=True, epochs=60), needs=("prompts",), wrong={"loss": "hinge"}),
    "general, regression": Case(GeneralPreference(loss="regression", target=2.0, epochs=60), wrong={"epochs": 0}),
    "ideal points": Case(IdealPoints(loss="logistic", steps=60), needs=("annotators",), wrong={"prototypes": 0}),
    "ideal points by prompt": Case(
        IdealPoints(variant="B", steps=60), needs=("annotators", "prompts"), wrong={"score_type": "norm"}
    ),
    "ensemble": Case(Ensemble(RewardNetwork(epochs=40), members=2), wrong={"members": 1}),
    "calibrated": Case(Calibrated(BradleyTerry(ridge=0.1)), wrong={"held_out": 0.0}),
}


def data(case: Case, seed: int = 0) -> tuple[Array, Array, dict[str, Any]]:
    """Comparisons by a reward with noise."""
    rng = np.random.default_rng(seed)
    reward = np.arange(5) / 2 if case.named else np.arange(D)
    X: Array
    if case.named:
        codes = np.array([rng.permutation(5)[:2] for _ in range(ROWS)])
        margins, X = reward[codes[:, 0]] - reward[codes[:, 1]], np.array(list("abcde"))[codes]
    else:
        X = rng.normal(size=(ROWS, 2, D))
        margins = (X[:, 0] - X[:, 1]) @ reward
    y = (rng.random(ROWS) < 1 / (1 + np.exp(-margins))).astype(float)
    if case.ties:
        y[::5] = 0.5
    more = {"annotators": [f"p{i % 4}" for i in range(ROWS)], "prompts": rng.normal(size=(ROWS, P))}
    return X, y, {name: more[name] for name in case.needs}


def head(given: dict[str, Any], rows: int) -> dict[str, Any]:
    return {name: values[:rows] for name, values in given.items()}


every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def fitted(case: Case) -> tuple[Any, Array, Array, dict[str, Any]]:
    X, y, given = data(case)
    return clone(case.model).fit(X, y, **given), X, y, given


@every
def test_constructor_only_stores_and_models_can_be_cloned(case: Case) -> None:
    parameters = case.model.get_params(deep=False)
    assert set(parameters) == set(inspect.signature(type(case.model)).parameters)
    copied = clone(case.model)
    assert copied is not case.model
    for name, value in parameters.items():
        if not isinstance(value, PreferenceModel):
            assert getattr(copied, name) == value


@every
def test_fit_returns_the_model_and_leaves_parameters_and_data_alone(case: Case) -> None:
    X, y, given = data(case)
    before, shown, outcomes = repr(case.model.get_params()), X.copy(), y.copy()
    model = clone(case.model)
    assert model.fit(X, y, **given) is model
    assert repr(model.get_params()) == before
    assert (shown == X).all()
    assert (y == outcomes).all()
    learned = {name for name in vars(model) if name not in model.get_params(deep=False)}
    assert all(name.endswith("_") or name.startswith("_") for name in learned)


@every
def test_predictions_are_probabilities_that_agree_with_one_another(case: Case) -> None:
    model, X, y, given = fitted(case)
    p = model.predict_proba(X, **given)
    assert p.shape == (ROWS, 3 if case.ties else 2)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-9)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X, **given)), p)
    margins = model.decision_function(X, **given)
    assert ((margins > 0) == (p[:, -1] > p[:, 0])).all()
    np.testing.assert_array_equal(model.predict(X, **given), model.classes_[p.argmax(axis=1)])
    assert model.score(X, y, **given) > (0.5 if case.ties else 0.7)
    assert model.log_likelihood(X, y, **given) > (-np.log(3) if case.ties else -np.log(2))


@every
def test_exchanged_options_have_exchanged_probabilities(case: Case) -> None:
    model, X, _, given = fitted(case)
    np.testing.assert_allclose(
        model.predict_proba(X[:, ::-1], **given)[:, ::-1], model.predict_proba(X, **given), atol=1e-6
    )


@every
def test_the_same_data_and_seed_give_the_same_model(case: Case) -> None:
    one, X, _, given = fitted(case)
    two = fitted(case)[0]
    np.testing.assert_array_equal(one.decision_function(X, **given), two.decision_function(X, **given))


@every
def test_a_second_fit_forgets_the_first(case: Case) -> None:
    model, X, y, given = fitted(case)
    model.fit(X[:, ::-1], y, **given)
    assert model.score(X, y, **given) < 0.5


@every
def test_a_saved_model_is_the_same(case: Case, tmp_path: Path) -> None:
    model, X, _, given = fitted(case)
    loaded = load_preference_model(save_preference_model(model, tmp_path / "model"))
    np.testing.assert_array_equal(loaded.predict_proba(X, **given), model.predict_proba(X, **given))
    assert repr(loaded.get_params()) == repr(model.get_params())
    assert {path.suffix for path in (tmp_path / "model").rglob("*") if path.is_file()} == {".json", ".safetensors"}


@every
def test_an_unfitted_model_says_so(case: Case) -> None:
    X, y, given = data(case)
    model = clone(case.model)
    for call in (model.predict, model.predict_proba, model.decision_function):
        with pytest.raises(NotFittedError, match="is not fitted yet"):
            call(X, **given)
    with pytest.raises(NotFittedError):
        model.score(X, y, **given)


@every
def test_a_parameter_out_of_range_is_named(case: Case) -> None:
    X, y, given = data(case)
    (name,) = case.wrong
    with pytest.raises(OptionError, match=name):
        clone(case.model).set_params(**case.wrong).fit(X, y, **given)


@every
def test_zero_weights_are_as_good_as_absent_rows(case: Case) -> None:
    X, y, given = data(case)
    weights = np.ones(ROWS)
    weights[60:] = 0.0
    if isinstance(case.model, Calibrated):
        pytest.skip("its split is drawn over all rows")
    if isinstance(case.model, Ensemble):
        pytest.skip("its weights are drawn for all rows")
    whole = clone(case.model).fit(X, y, weights, **given)
    part = clone(case.model).fit(X[:60], y[:60], **head(given, 60))
    np.testing.assert_allclose(
        whole.decision_function(X[:60], **head(given, 60)),
        part.decision_function(X[:60], **head(given, 60)),
        atol=1e-2,
    )


@every
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X, np.full(len(X), 0.5)), "ties"),
        (lambda X, y: (X, np.where(np.arange(len(X)) == 7, np.nan, y)), "row 7: y"),
        (lambda X, y: (X, np.where(np.arange(len(X)) == 7, 2, y)), "row 7: y"),
        (lambda X, y: (X, y[:-1]), "one number a row"),
        (lambda X, y: (X[:0], y[:0]), "got none"),
        (lambda X, y: (np.concatenate([X, X], axis=1), y), "two options, got 4"),
    ],
    ids=["all ties", "nan outcome", "outcome of 2", "too few outcomes", "no rows", "four options"],
)
def test_wrong_data_are_refused(case: Case, change: Callable[[Array, Array], Any], message: str) -> None:
    X, y, given = data(case)
    X, y = change(X, y)
    with pytest.raises(PrefkitError, match=message):
        clone(case.model).fit(X, y, **head(given, len(X)))


@every
def test_wrong_features_and_names_are_refused(case: Case) -> None:
    model, X, y, given = fitted(case)
    broken: Array = X.copy().astype(object) if case.named else X.copy()
    broken[3, 1] = None if case.named else np.nan
    with pytest.raises(PrefkitError, match="row 3, option 1"):
        clone(case.model).fit(broken, y, **given)
    with pytest.raises(PrefkitError, match="row 3, option 1"):
        model.predict(broken, **given)
    with pytest.raises(PrefkitError, match=r"row 0: 'z' was in no" if case.named else f"fitted to {D} features, got 1"):
        model.predict(np.array([["a", "z"]]) if case.named else X[:1, :, :1], **head(given, 1))


@pytest.mark.parametrize("name", ["bradley_terry, items", "bradley_terry, features", "general"])
def test_models_work_with_cross_validation_and_search(name: str) -> None:
    case = CASES[name]
    X, y, _ = data(case)
    scores = cross_val_score(clone(case.model), X, y, cv=3)
    assert scores.shape == (3,)
    assert np.isfinite(scores).all()
    if name.startswith("bradley_terry"):
        found = GridSearchCV(clone(case.model), {"ridge": [0.1, 1000.0]}, cv=3, scoring=likelihood).fit(X, y)
        assert found.best_params_ == {"ridge": 0.1}


def likelihood(model: PreferenceModel, X: Array, y: Array) -> float:
    return model.log_likelihood(X, y)
