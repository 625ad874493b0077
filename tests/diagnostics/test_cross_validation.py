"""Cross-validation of preference models over groups and over people, and the ceiling that people set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from prefkit.diagnostics import (
    Candidate,
    CrossValidation,
    Judgements,
    annotator_ceiling,
    cross_validate,
    expected_calibration_error,
    held_out_figures,
    new_people,
)
from prefkit.errors import OptionError, PrefkitError
from prefkit.preference import BradleyTerry, Calibrated, IdealPoints


def judged(people: int = 24, each: int = 40, opposed: bool = True, seed: int = 0) -> Judgements:
    """People who judge options by their first feature; every other person by its opposite."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(60, 3))
    person = np.repeat(np.arange(people), each)
    X = np.array([rng.choice(60, 2, replace=False) for _ in person])
    sign = np.where(person % 2 == 1, -1.0, 1.0) if opposed else 1.0
    ahead = 3 * sign * (features[X[:, 0], 0] - features[X[:, 1], 0])
    y = (rng.random(len(X)) < 1 / (1 + np.exp(-ahead))).astype(float)
    groups = rng.integers(12, size=len(X))
    return Judgements(X, y, groups, annotators=[f"p{number}" for number in person], features=features)


def test_figures_are_those_worked_out_by_hand() -> None:
    odds = np.log([3.0, 3.0, 1 / 3, 1.0])
    found = held_out_figures(odds, [1.0, 0.0, 0.5, 1.0], weights=[2.0, 1.0, 1.0, 1.0])
    terms = [2 * math.log(0.75), math.log(0.25), 0.5 * (math.log(0.25) + math.log(0.75)), math.log(0.5)]
    assert found.log_likelihood.mean == pytest.approx(sum(terms) / 5)
    # Two right, one wrong, a tie that does not count, and even odds, which are half right.
    assert found.accuracy.mean == pytest.approx(2.5 / 4)


def test_calibration_error_is_that_of_both_sides_of_every_pair() -> None:
    rng = np.random.default_rng(0)
    odds, y = rng.normal(size=300), rng.integers(2, size=300).astype(float)
    p = 1 / (1 + np.exp(-odds))
    both = expected_calibration_error(np.concatenate([p, 1 - p]), np.concatenate([y, 1 - y]))
    assert held_out_figures(odds, y).calibration.mean == pytest.approx(both)
    assert held_out_figures(-odds, 1 - y).calibration.mean == pytest.approx(both)


def test_no_model_sees_the_group_that_it_predicts() -> None:
    # Every group has options of its own: whoever has seen the group knows all, others know nothing.
    rng = np.random.default_rng(0)
    X = np.array([[2 * group, 2 * group + 1] for group in range(20) for _ in range(30)])
    y = np.repeat(rng.integers(2, size=20), 30).astype(float)
    data = Judgements(X, y, np.repeat(np.arange(20), 30), features=np.eye(40))
    found = cross_validate({"linear": Candidate(BradleyTerry(ridge=0.1))}, data, folds=5)
    assert np.abs(found.odds["linear"]).max() < 1e-9


def test_candidates_are_chosen_inside_the_training_part() -> None:
    data = judged(opposed=False)
    told = Candidate(BradleyTerry(ridge=1.0), columns=[0], name="first")
    noise = Candidate(BradleyTerry(ridge=1.0), columns=[1, 2], name="others")
    found = cross_validate({"chosen": [noise, told], "noise": noise}, data, folds=3)
    assert found.chosen["chosen"] == ["first"] * 3
    assert found.gain("chosen", "noise").low > 0.2
    table = found.table("noise")
    assert table.columns[2] == "gain over noise"
    assert table.rows[1][2] is None


def test_models_of_people_tell_apart_who_disagrees() -> None:
    ideal = Candidate(IdealPoints(prototypes=2, loss="logistic", steps=100))
    found = cross_validate({"linear": Candidate(BradleyTerry(ridge=1.0)), "ideal": ideal}, judged(), folds=3)
    assert found.gain("ideal", "linear").low > 0.2
    assert found.figures("ideal").accuracy.low > 0.75


def test_a_calibrated_model_of_people_is_told_who_judges() -> None:
    data = judged()
    fitted = Candidate(Calibrated(IdealPoints(prototypes=2, loss="logistic", steps=60))).fit(data)
    assert held_out_figures(fitted.log_odds(data), data.y).accuracy.mean > 0.75


def test_pooling_gives_the_mean_of_each_pair_and_changes_no_fit() -> None:
    X = np.array([[0, 1], [0, 1], [0, 1], [1, 2]])
    data = Judgements(X, [1.0, 0.0, 0.5, 1.0], np.zeros(4), [2.0, 1.0, 1.0, 3.0], items=np.array([0, 0, 0, 1]))
    pooled = data.pooled()
    assert pooled.y.tolist() == [2.5 / 4, 1.0]
    assert pooled.counts.tolist() == [4.0, 3.0]
    plain = BradleyTerry(ridge=1.0).fit(data.X, data.y, data.counts)
    assert np.allclose(Candidate(BradleyTerry(ridge=1.0)).fit(data).model.coef_, plain.coef_)


def test_the_ceiling_predicts_each_judgement_from_the_others_on_its_pair() -> None:
    # Of three that agree each sees two on its side; the odd one out sees three against it.
    items = np.array(["a"] * 4 + ["b"] * 3 + ["c"])
    y = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    X = np.array([[0, 1]] * 4 + [[1, 2]] * 3 + [[0, 2]])
    odds = annotator_ceiling(Judgements(X, y, items, items=items))
    assert (odds[:3] > 0).all()
    assert odds[3] > odds[0]
    assert (odds[4:7] < 0).all()
    assert np.isnan(odds[7])
    weighted = Judgements(X[[0, 3, 4, 7]], y[[0, 3, 4, 7]], items[[0, 3, 4, 7]], [3.0, 1.0, 3.0, 1.0])
    with pytest.raises(PrefkitError, match="items"):
        annotator_ceiling(weighted)
    rows = Judgements(weighted.X, weighted.y, weighted.groups, weighted.weights, items=items[[0, 3, 4, 7]])
    assert np.allclose(annotator_ceiling(rows)[:3], odds[[0, 3, 4]], atol=1e-4)


def test_a_ceiling_of_coin_flips_is_chance() -> None:
    rng = np.random.default_rng(0)
    items = np.repeat(np.arange(400), 3)
    X = np.stack([2 * items, 2 * items + 1], axis=1)
    data = Judgements(X, rng.integers(2, size=1200).astype(float), items, items=items)
    likelihood = held_out_figures(annotator_ceiling(data), data.y).log_likelihood
    assert likelihood.mean == pytest.approx(-math.log(2), abs=0.01)


def test_rows_that_a_model_cannot_predict_are_no_part_of_its_figures() -> None:
    data = Judgements(np.array([[0, 1], [1, 2], [0, 2]]), [1.0, 1.0, 0.0], np.arange(3))
    found = CrossValidation(data, {"some": np.array([1.0, 1.0, np.nan]), "all": np.array([1.0, 1.0, 5.0])})
    assert found.figures("some").accuracy.mean == 1.0
    assert found.figures("all").accuracy.mean == pytest.approx(2 / 3)
    assert found.gain("all", "some").mean == 0.0


def test_new_people_are_learned_from_few_labels() -> None:
    ideal = Candidate(IdealPoints(prototypes=2, loss="logistic", steps=120))
    found = new_people({"ideal": ideal}, judged(), labels=(0, 2, 10), folds=3)
    assert found.people == 24
    after = [each.mean for each in found.accuracy["ideal"]]
    assert after[2] > 0.75 > 0.6 > after[0]
    assert found.gains["ideal"][2].low > 0.1
    # Nothing is known of people by nobody: even odds, and everybody's model does not learn of them.
    assert found.log_likelihood["alone"][0].mean == pytest.approx(-math.log(2))
    assert found.log_likelihood["everybody"][0] == found.log_likelihood["everybody"][2]
    assert found.log_likelihood["alone"][2].mean > found.log_likelihood["alone"][0].mean
    # Without labels half of the people that are known say the opposite of the other half.
    likely = found.log_likelihood["ideal, as known people"]
    assert likely[0].mean == pytest.approx(-math.log(2), abs=0.05)
    assert likely[1].mean > found.log_likelihood["ideal"][1].mean
    assert likely[2].mean > -0.5
    assert len(found.table().rows) == 12
    assert "ideal" in found.plot().csv()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": [1.0, 2.0]}, "row 1"),
        ({"groups": np.arange(3)}, "groups must have one entry"),
        ({"annotators": ["a"]}, "annotators must name"),
        ({"items": np.arange(1)}, "items must have one entry"),
        ({"features": np.eye(2)}, "from 0 to 1"),
        ({"X": [["a", "a"], ["a", "b"]]}, "with itself"),
    ],
)
def test_wrong_judgements_are_named(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"X": np.array([[0, 1], [1, 2]]), "y": [1.0, 0.0], "groups": np.arange(2)}
    with pytest.raises(PrefkitError, match=message):
        Judgements(**{**given, **change})


def test_wrong_options_are_named() -> None:
    data = judged(people=3, each=4)
    linear = Candidate(BradleyTerry(ridge=1.0))
    with pytest.raises(OptionError, match="number of groups"):
        cross_validate({"linear": linear}, data, folds=50)
    with pytest.raises(OptionError, match="candidate"):
        cross_validate({"linear": []}, data, folds=2)
    with pytest.raises(PrefkitError, match="row 1: log-odds"):
        held_out_figures([0.0, np.nan], [1.0, 1.0])
    with pytest.raises(OptionError, match="at least 0"):
        new_people({}, data, labels=(-1,), folds=2)
    with pytest.raises(OptionError, match="nobody has 99"):
        new_people({}, data, labels=(99,), folds=2)
    with pytest.raises(PrefkitError, match="annotators"):
        new_people({}, Judgements(data.X, data.y, data.groups, features=data.features))
