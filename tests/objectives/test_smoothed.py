from __future__ import annotations

import math

import pytest
import torch

from prefkit.errors import OptionError
from prefkit.objectives import PairScores, make_objective, smoothed_preference_prob, smoothing_coefficients

DOUBLE = torch.float64
RANGE = (0.0, 2.0)


def scores(margins: list[float], policy: list[float]) -> PairScores:
    zero = torch.zeros(len(margins), dtype=DOUBLE)
    chosen = torch.tensor(policy, dtype=DOUBLE, requires_grad=True)
    return PairScores(chosen, zero, zero, zero, margins=torch.tensor(margins, dtype=DOUBLE))


def test_the_objective_is_the_logistic_loss_of_a_scaled_margin() -> None:
    objective = make_objective({"kind": "smpo", "beta": 0.5, "sensitivity": 4.0, "score_range": 2.0})
    found = objective(scores([1.0, -0.4], [2.0, 3.0]))
    for loss, margin, gap in zip(found.tolist(), (2.0, 3.0), (0.5, -0.2), strict=True):
        coefficient = 4 * (2 / (1 + math.exp(-gap)) - 1)
        assert loss == pytest.approx(math.log1p(math.exp(-0.5 * coefficient * margin)))


def test_a_tie_has_no_gradient() -> None:
    given = scores([0.0], [2.0])
    (gradient,) = torch.autograd.grad(make_objective("smpo")(given).sum(), given.policy_chosen_logps)
    assert gradient.item() == 0


def test_a_scorer_that_disagrees_with_the_label_pushes_the_other_way() -> None:
    given = scores([-1.0], [0.0])
    (gradient,) = torch.autograd.grad(make_objective("smpo")(given).sum(), given.policy_chosen_logps)
    assert gradient.item() > 0


def test_the_first_wins_only_by_a_greater_score() -> None:
    found = smoothed_preference_prob(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 0.0, 2.0]), *RANGE)
    assert found.winner.tolist() == [1, 0, 1]
    assert found.probability.tolist() == pytest.approx([0.5, math.e / (math.e + 1), math.e / (math.e + 1)])


def test_temperature_divides_the_scaled_scores() -> None:
    found = smoothed_preference_prob(torch.tensor([2.0]), torch.tensor([0.0]), *RANGE, temperature=0.5)
    assert found.probability.item() == pytest.approx(1 / (1 + math.exp(-2)))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([0.0], [1.0], 1.0, 1.0), {}, "score_max must be greater than score_min, got 1.0 and 1.0"),
        (([0.0], [1.0], 0.0, 1.0), {"temperature": 0.0}, "temperature must be greater than 0"),
        (([0.0], [1.0, 2.0], 0.0, 1.0), {}, "each pair needs two scores"),
        (([math.nan], [1.0], 0.0, 1.0), {}, "scores must be finite numbers"),
    ],
)
def test_bad_scores(arguments: tuple[list[float], list[float], float, float], options: dict, message: str) -> None:
    first, second, *bounds = arguments
    with pytest.raises(OptionError, match=message):
        smoothed_preference_prob(torch.tensor(first), torch.tensor(second), *bounds, **options)


def test_bad_coefficients() -> None:
    with pytest.raises(OptionError, match=r"p_winner must lie in \[0, 1\]"):
        smoothing_coefficients(torch.tensor([1.2]), 10.0)
    with pytest.raises(OptionError, match="gamma must be greater than 0, got 0"):
        smoothing_coefficients(torch.tensor([0.5]), 0.0)
