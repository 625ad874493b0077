from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prefkit import diagnostics as d
from prefkit.diagnostics.posterior import _density
from prefkit.errors import OptionError, PrefkitError

NAMES = ("polite", "funny", "long")
TRUE = np.array([1.5, 0.0, -1.0])


def judged(rows: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    features = generator.integers(-1, 2, size=(rows, 3)).astype(np.float64)
    return features, (generator.random(rows) < 1 / (1 + np.exp(-features @ TRUE))).astype(np.int64)


@pytest.mark.parametrize("sampler", ["nuts", "hmc"])
@pytest.mark.parametrize(("rows", "scale"), [(5, 0.1), (40, 0.1), (50, 0.5)])
def test_samplers_come_to_the_integral(sampler: Any, rows: int, scale: float) -> None:
    features, labels = judged(rows, 3)
    mean, sd = d.exact_posterior(features[:, :2], labels, scale=scale)
    found = d.fit_posterior(features[:, :2], labels, scale=scale, sampler=sampler, warmup=200, draws=1000)
    assert found.mean == pytest.approx(mean, abs=0.12 * sd.max())
    assert found.sd == pytest.approx(sd, rel=0.15)
    assert found.rhat.max() < 1.05


def test_the_approximation_is_near_the_integral_where_there_are_many_rows() -> None:
    features, labels = judged(400)
    mean, sd = d.exact_posterior(features[:, :1], labels, scale=0.3)
    found = d.fit_posterior(features[:, :1], labels, scale=0.3, sampler="laplace_approx")
    assert found.mean == pytest.approx(mean, abs=0.3 * sd.max())
    assert found.sd == pytest.approx(sd, rel=0.25)


def test_the_sampled_density_is_the_log_posterior() -> None:
    features, labels = judged(30)
    alpha = torch.tensor([0.3, -40.0, 60.0], dtype=torch.float64, requires_grad=True)
    value = d.log_posterior(torch.tensor(features), torch.tensor(labels), alpha, scale=0.2)
    (slope,) = torch.autograd.grad(value, alpha)
    found, gradient = _density(features * (2 * labels - 1)[:, None], 0.2)(alpha.detach().numpy())
    assert float(found) - 3 * np.log(2 * 0.2) == pytest.approx(value.item())
    assert gradient == pytest.approx(slope.numpy())


def test_dissection_finds_what_a_judge_rewards() -> None:
    features, labels = judged(600)
    found = d.PreferenceDissection(NAMES, prior_scale=1.0, sampler="laplace_approx", folds=5).fit(features, labels)
    assert found.top(1) == (["polite"], ["long"])
    assert found.weights_[0] == pytest.approx(TRUE, abs=0.3)
    low, high = found.posteriors_["all"].interval()
    assert (low < TRUE).all()
    assert (high > TRUE).all()
    assert 0.7 < found.accuracies_["all"] < 0.9
    assert found.explain([[1, 0, -1]])[0] == pytest.approx(found.weights_[0] * [1, 0, -1])
    assert found.predict_proba([[0, 0, 0]]).tolist() == [0.5]
    assert found.similarity(found) == pytest.approx(1)
    assert found.table().rows[0][0] == "polite"


def test_scenarios_are_fitted_apart() -> None:
    features, labels = judged(400)
    where = ["code"] * 200 + ["advice"] * 200
    turned = np.concatenate([labels[:200], 1 - labels[200:]])
    found = d.PreferenceDissection(NAMES, prior_scale=1.0, sampler="laplace_approx", folds=2).fit(
        features, turned, where
    )
    assert found.scenarios_ == ("advice", "code")
    assert found.weights_[1, 0] > 0.5 > -0.5 > found.weights_[0, 0]
    assert found.degree().scenario_average[0] == pytest.approx(50, abs=10)
    with pytest.raises(PrefkitError, match="unknown scenario 'cod'; did you mean 'code'"):
        found.predict_proba(features, "cod")


def test_coverage_of_intervals_where_weights_come_from_the_prior() -> None:
    """Exact posteriors cover 95% on average; 20 sets of 20 weights: five standard errors below are 0.895."""
    hits = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        truth = generator.laplace(0, 0.5, size=20)
        features = generator.integers(-1, 2, size=(300, 20)).astype(np.float64)
        labels = generator.random(300) < 1 / (1 + np.exp(-features @ truth))
        found = d.fit_posterior(features, labels, scale=0.5, sampler="hmc", warmup=150, draws=250, seed=seed)
        low, high = found.interval()
        hits += ((low < truth) & (truth < high)).tolist()
    assert 0.895 < np.mean(hits) < 0.995


def test_both_orders_cancel_a_bias_for_the_first_slot() -> None:
    def judge(query: str, first: str, second: str) -> tuple[float, float]:
        return 5.0 + ("good" in first), 0.0 + ("good" in second)

    asked = [("q", "good", "bad"), ("q", "bad", "good"), ("q", "bad", "bad")]
    assert d.label_with_judge(judge, asked) == (["A", "B", "B"], 1)
    assert d.label_with_judge(judge, asked, both_orders=False)[0] == ["A", "A", "A"]


def test_manipulation_keeps_decided_pairs() -> None:
    found = d.manipulation_labels([0.9, 0.6, 0.1])
    assert (found.keep.tolist(), found.labels) == ([True, False, True], ["A", "A", "B"])
    assert d.manipulation_labels([0.9], direction="against").labels == ["B"]
    assert "must not show each of these properties" in d.system_message(["polite"], avoid=True)


def test_annotations_become_features() -> None:
    given = dict.fromkeys(d.PROPERTIES, 0) | {"repetitive": 1, "accuracy": {"Minor": 0, "Moderate": -1, "Severe": 1}}
    for name in ("non-repetitive", "no minor errors", "no moderate errors", "no severe errors"):
        del given[name]
    found = dict(zip(d.PROPERTIES, d.feature_vector(given), strict=True))
    assert found["non-repetitive"] == -1
    assert (found["no minor errors"], found["no moderate errors"], found["no severe errors"]) == (0, -1, 1)
    del given["polite"]
    with pytest.raises(PrefkitError, match="no annotation of 'polite'"):
        d.feature_vector(given)
    assert sum(map(abs, d.feature_vector({"polite": 1}, missing="zero"))) == 1


def test_groups_of_judges() -> None:
    judges = {"a": [[1.0, 2.0, 3.0]], "b": [[1.0, 2.0, 3.5]], "c": [[3.0, 2.0, 1.0]]}
    rows = d.group_similarity(judges, {"a": "small", "b": "small", "c": "large"}).rows
    assert [(row[:2], row[3]) for row in rows] == [(["large", "small"], 2), (["small", "small"], 1)]


def test_one_sided_labels_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="all 30 labels are 1"):
        d.fit_posterior(np.ones((30, 1)), np.ones(30), sampler="laplace_approx")


def test_chains_that_disagree_are_warned_of() -> None:
    features, labels = judged(300)
    twins = np.repeat(features, 10, axis=1)  # only the sum of ten weights is known
    with pytest.warns(UserWarning, match="the chains disagree"):
        d.fit_posterior(twins, labels, scale=1.0, sampler="hmc", warmup=1, draws=6)


def fitted() -> d.PreferenceDissection:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return d.PreferenceDissection(NAMES, sampler="laplace_approx", folds=2).fit(*judged(20))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: d.PreferenceDissection(prior_scale=0), OptionError, "prior_scale must be greater than 0"),
        (lambda: d.PreferenceDissection(folds=1), OptionError, "folds must be at least 2"),
        (lambda: d.PreferenceDissection(NAMES).top(), PrefkitError, "nothing was fitted"),
        (lambda: d.PreferenceDissection(NAMES).fit([[2.0, 0, 0]], [1]), PrefkitError, "row 0, 'polite' is 2.0"),
        (lambda: d.PreferenceDissection(NAMES).fit([[1.0, 0]], [1]), PrefkitError, r"features must be \[n, 3\]"),
        (lambda: d.PreferenceDissection(NAMES).fit([[1.0, 0, 0]], [2]), PrefkitError, "labels must be 0 or 1"),
        (lambda: d.PreferenceDissection(NAMES).fit([[1.0, 0, 0]], [1]), PrefkitError, "need at least 10"),
        (lambda: fitted().similarity(d.PreferenceDissection(("a",))), PrefkitError, "nothing was fitted"),
        (lambda: d.fit_posterior([[1.0]], [1], sampler="gibbs"), OptionError, "unknown sampler 'gibbs'"),  # type: ignore[arg-type]
        (lambda: d.fit_posterior([[1.0]], [1], draws=1), OptionError, "draws must be at least 4"),
        (lambda: d.fit_posterior([[1.0]], [0.5]), PrefkitError, "labels must be 0 or 1"),
        (lambda: d.exact_posterior(np.ones((4, 3)), np.ones(4)), OptionError, "one or two weights"),
        (lambda: d.judge_similarity([[1.0, 2]], [[1.0]]), PrefkitError, "same scenarios and properties"),
        (lambda: d.judge_similarity([[1.0]], [[1.0]], "cosine"), OptionError, "unknown similarity"),  # type: ignore[arg-type]
        (lambda: d.compare_likert([4], [0], "polite"), PrefkitError, r"must lie in 0\.\.3"),
        (lambda: d.compare_lengths([-1], [0]), PrefkitError, "at least 0"),
        (lambda: d.compare_query_specific({"polite": {}}), PrefkitError, "unknown property of a query"),
        (
            lambda: d.compare_query_specific({"showing empathetic": {"Response 1": "N/A", "Response 2": "1"}}),
            PrefkitError,
            "got 'N/A'",
        ),
        (lambda: d.compare_errors([{"applicable": [1, 1], "errors_a": {}, "errors_b": {}}]), PrefkitError, "pair 0"),
        (lambda: d.feature_vector({"polit": 1}, missing="zero"), PrefkitError, "did you mean 'polite'"),
        (lambda: d.manipulation_labels([0.5], margin=0.5), OptionError, "margin must lie"),
        (lambda: d.system_message([]), PrefkitError, "at least one property"),
        (lambda: d.normalize_diff([1], 0), OptionError, "threshold must be greater"),
    ],
)
def test_bad_input_is_explained(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
