"""Preferences under contexts: closed forms and bad input."""

import math

import numpy as np
import pytest
import torch

from prefkit.diagnostics import reversal_metrics
from prefkit.errors import OptionError, PrefkitError
from prefkit.preference import aggregate, decomposition_bound, infer_context, marginal_preference


def double(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_mixture_of_opposite_preferences_is_indifferent_whatever_the_rewards() -> None:
    found = marginal_preference(double([[800.0, -800.0]]), double([[0.0, 0.0]]), double([[0.5, 0.5]]))
    assert float(found.prob) == pytest.approx(0.5)
    assert float(found.nll) == pytest.approx(math.log(2))


def test_one_context_is_bradley_terry_and_impossible_contexts_do_not_count() -> None:
    one = marginal_preference(double([[1.0]]), double([[0.0]]), double([[1.0]]))
    two = marginal_preference(double([[1.0, -5.0]]), double([[0.0, 5.0]]), double([[1.0, 0.0]]))
    assert float(one.prob) == pytest.approx(1 / (1 + math.exp(-1)))
    torch.testing.assert_close(two.prob, one.prob)


def test_the_bound_holds_and_is_met_where_only_contexts_differ() -> None:
    rng = np.random.default_rng(0)
    contexts = torch.from_numpy(rng.dirichlet(np.ones(4), (2, 100)))
    preferences = torch.from_numpy(rng.random((2, 100, 4)))
    found = decomposition_bound(contexts[0], contexts[1], preferences[0], preferences[1])
    assert (found.bound >= found.total_error).all()
    met = decomposition_bound(double([[1.0, 0.0]]), double([[0.0, 1.0]]), double([[1.0, 0.0]]), double([[1.0, 0.0]]))
    assert [float(value) for value in met] == [1.0, 0.0, 1.0, 1.0]


def test_posterior_follows_bayes_and_no_data_leave_the_prior() -> None:
    difference, labels = double([[math.log(3), 0.0]]), torch.tensor([1])
    found = infer_context(difference, labels, double([0.5, 0.5]))
    assert found.posterior.tolist() == pytest.approx([0.6, 0.4])
    assert found.map_context == 0
    none = infer_context(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    assert none.posterior.tolist() == pytest.approx([1 / 3] * 3)


def test_rules_may_choose_differently() -> None:
    # The second is far better in one context, a little worse in two others.
    utilities, prob = double([[1.0, 1.0, 0.0], [0.0, 0.0, 9.0]]), double([1 / 3, 1 / 3, 1 / 3])
    assert aggregate(utilities, prob).argmax() == 1
    assert aggregate(utilities, prob, "borda_hard").tolist() == pytest.approx([2 / 3, 1 / 3])
    assert float(aggregate(utilities, prob, "borda").sum()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: marginal_preference(double([[1.0]]), double([[1.0]]), double([[0.5]])), "sum to 1; row 0 sums to 0.5"),
        (lambda: marginal_preference(torch.zeros(1, 0), torch.zeros(1, 0), torch.zeros(1, 0)), "at least one"),
        (lambda: marginal_preference(double([[math.nan]]), double([[1.0]]), double([[1.0]])), r"rewards_1 at \(0, 0\)"),
        (lambda: aggregate(double([[1.0], [2.0]]), double([1.0]), "mean"), "unknown aggregation rule 'mean'"),
        (lambda: aggregate(double([[1.0]]), double([1.0]), "borda"), "at least 2, got 1"),
        (lambda: aggregate(double([[1.0], [math.inf]]), double([1.0])), "finite numbers"),
        (lambda: infer_context(double([[1.0]]), torch.tensor([2])), r"labels must be 0 or 1, got \[2\]"),
        (lambda: infer_context(double([[1.0, 2.0]]), torch.tensor([1]), double([1.0])), r"must be \[1, 1\]"),
        (lambda: infer_context(double([[math.nan]]), torch.tensor([1])), "finite numbers"),
        (
            lambda: decomposition_bound(double([[1.0]]), double([[1.0]]), double([[2.0]]), double([[0.5]])),
            "true_pref_prob must hold probabilities",
        ),
        (lambda: reversal_metrics([[1.0, 2.0]], [[1.0]]), r"\[pairs, 2\] twice"),
    ],
)
def test_bad_input(call: object, problem: str) -> None:
    with pytest.raises((PrefkitError, OptionError), match=problem):
        call()  # type: ignore[operator]


def test_a_tie_under_one_context_counts_half() -> None:
    found = reversal_metrics([[1.0, 1.0], [2.0, 1.0]], [[0.0, 1.0], [2.0, 1.0]])
    assert found.accuracy.tolist() == [0.75, 0.5]
    assert found.both_correct.tolist() == [0.0, 0.0]
    assert found.same_decision.tolist() == [0.0, 1.0]
