from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prefkit.comparisons import Comparison, Ratings, RecordError, Winner
from prefkit.errors import OptionError, PrefkitError
from prefkit.language import load_scorer
from prefkit.objectives import (
    ListScores,
    calibration_objective,
    calibration_terms,
    make_objective,
    pearson_loss,
)
from prefkit.training import TrainingOptions, fit

LOGPS = [[-3.0, -5.0, -4.5, -9.0], [-2.0, -1.0, -7.0, 0.0]]
RATINGS = [[0.9, 0.2, 0.5, 0.4], [0.1, 0.8, 0.3, 0.0]]
LENGTHS = [[3, 2, 4, 6], [2, 1, 5, 0]]
MASK = [[True] * 4, [True, True, True, False]]


def scores(logps: Any = LOGPS, ratings: Any = RATINGS, mask: Any = MASK, lengths: Any = LENGTHS) -> ListScores:
    logps = torch.tensor(logps, dtype=torch.float64) if not isinstance(logps, Tensor) else logps
    return ListScores(
        policy_logps=logps,
        ranks=torch.zeros(logps.shape, dtype=torch.long),
        mask=torch.tensor(mask),
        lengths=torch.tensor(lengths),
        ratings=torch.tensor(ratings, dtype=torch.float64),
    )


def test_objective_agrees_with_numpy() -> None:
    found = make_objective({"kind": "calibration", "nll_weight": 0.5, "calibration_weight": 2.0, "cpo_weight": 3.0})(
        scores()
    )
    for row, n in enumerate((4, 3)):
        logps, q = np.array(LOGPS[row][:n]), np.array(RATINGS[row][:n])
        best, worst = q.argmax(), q.argmin()
        z = [(x - x.mean()) / (x.std(ddof=1) + 1e-6) for x in (logps, q)]
        nll = -logps[best] / LENGTHS[row][best]
        cpo = math.log1p(math.exp(-0.1 * (logps[best] - logps[worst])))
        assert found[row].item() == pytest.approx(0.5 * nll - 2.0 * (z[0] * z[1]).mean() + 3.0 * cpo)


def test_pearson_is_that_of_numpy_and_is_reported() -> None:
    objective = make_objective("calibration")
    objective(scores())
    expected = [np.corrcoef(LOGPS[0], RATINGS[0])[0, 1], np.corrcoef(LOGPS[1][:3], RATINGS[1][:3])[0, 1]]
    given = scores()
    assert (-pearson_loss(given.policy_logps, given.ratings, given.mask)).tolist() == pytest.approx(expected)
    assert objective.figures()["pearson"].tolist() == pytest.approx(expected)
    assert objective.figures()["flat_list"].tolist() == [0, 0]


def test_lengths_are_taken_out_by_the_reward() -> None:
    objective = make_objective({"kind": "calibration", "reward": "average_log_prob", "nll_weight": 0.0})
    objective(scores())
    average = np.array(LOGPS[0]) / np.array(LENGTHS[0])
    assert objective.figures()["pearson"][0].item() == pytest.approx(np.corrcoef(average, RATINGS[0])[0, 1])


def test_only_the_first_candidates_count() -> None:
    few = make_objective({"kind": "calibration", "candidates": 3})(scores())
    same = make_objective("calibration")(scores(mask=[[True, True, True, False]] * 2))
    assert few.tolist() == pytest.approx(same.tolist())


def test_gradient_of_correlation() -> None:
    given = scores()

    def loss(logps: Tensor) -> Tensor:
        return make_objective({"kind": "calibration", "cpo_weight": 1.0})(scores(logps))

    assert torch.autograd.gradcheck(loss, (given.policy_logps.clone().requires_grad_(),))


@pytest.mark.parametrize("logps", [[[-5.0] * 4], [[-3.0, -5.0, -4.0, -2.0]]])
def test_flat_list_has_no_correlation_and_no_gradient(logps: list[list[float]]) -> None:
    ratings = [[0.1, 0.5, 0.3, 0.9]] if len(set(logps[0])) == 1 else [[0.8] * 4]
    policy = torch.tensor(logps, requires_grad=True)
    objective = make_objective({"kind": "calibration", "nll_weight": 0.0})
    loss = objective(scores(policy, ratings, [[True] * 4], [[1] * 4]))
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert policy.grad is not None
    assert policy.grad.tolist() == [[0.0] * 4]
    assert objective.figures()["flat_list"].tolist() == [1]


@pytest.mark.parametrize("size", [50.0, 1000.0])
def test_extreme_log_probabilities_stay_finite(size: float) -> None:
    policy = torch.tensor([[-size, -1.0, -2.0, 0.0]], requires_grad=True)
    loss = make_objective({"kind": "calibration", "cpo_weight": 1.0})(
        scores(policy, [[0.9, 0.2, 0.1, 0.0]], [[True, True, True, False]], [[4, 1, 1, 0]])
    )
    loss.sum().backward()
    assert policy.grad is not None
    assert torch.isfinite(loss).all()
    assert torch.isfinite(policy.grad).all()
    assert policy.grad[0, 3] == 0


def test_statistics_of_a_list_are_not_taken_in_half_precision() -> None:
    logps = torch.tensor([[-300.0, -301.0, -303.0, -302.0]])
    half, ratings, mask = logps.bfloat16(), torch.tensor([[3.0, 2.0, 0.0, 1.0]]), torch.ones(1, 4, dtype=torch.bool)
    exact = pearson_loss(half.double(), ratings.double(), mask)
    assert pearson_loss(half, ratings, mask).item() == pytest.approx(exact.item(), abs=1e-5)


ROWS = torch.zeros(6, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"list_size": 4}, "the number of rows must be a multiple of list_size=4, got 6"),
        ({"list_size": 2}, "list_size must be at least 3 for a correlation, got 2"),
        ({"candidates": 4}, "candidates must be at most list_size=3, got 4"),
        ({"scores": torch.tensor([1.0, 2, math.nan, 4, 5, 6])}, "finite numbers, got one that is not in row 2"),
        ({"candidate_mask": torch.tensor([[1, 1]] * 5 + [[0, 0]])}, "row 5 has no tokens"),
        ({"candidate_mask": torch.ones(6, 3)}, r"must fit, got \(6, 2\), \(6, 3\), \(6,\)"),
    ],
)
def test_messages_of_the_function(change: dict[str, Any], message: str) -> None:
    given = {
        "candidate_token_logps": ROWS,
        "candidate_mask": torch.ones(6, 2),
        "scores": torch.arange(6.0),
        "list_size": 3,
    }
    with pytest.raises(OptionError, match=message):
        calibration_objective(**{**given, **change})


def test_lists_of_two_are_allowed_without_correlation() -> None:
    terms = calibration_objective(ROWS, torch.ones(6, 2), torch.arange(6.0), 2, calibration_weight=0.0)
    assert terms.cpo.tolist() == pytest.approx([math.log(2)] * 3)


def test_terms_need_a_weight() -> None:
    with pytest.raises(OptionError, match="one of nll_weight, calibration_weight, cpo_weight must be greater than 0"):
        make_objective({"kind": "calibration", "nll_weight": 0, "calibration_weight": 0})


def rated(count: int = 4, prompt: str = "Translate: one", **more: Any) -> Comparison:
    texts = tuple(f"{'a' * (place + 1)} translation" for place in range(count))
    return Comparison((prompt,), texts, Ratings(tuple(float(place) for place in range(count))), **more)


@pytest.mark.parametrize(
    ("objective", "record", "message"),
    [
        ("calibration", rated(2), "field 'responses': a correlation needs at least 3 candidates, got 2"),
        (
            {"kind": "calibration", "candidates": 5},
            rated(4),
            "field 'responses': objective.candidates is 5, but there are only 4",
        ),
        (
            "calibration",
            Comparison(("p",), ("a", "b", "c"), Winner(0)),
            "field 'judgement': the objective needs a rating",
        ),
    ],
)
def test_data_that_lack_something_are_named(tmp_path: Path, objective: Any, record: Comparison, message: str) -> None:
    with pytest.raises(PrefkitError, match=message):
        fit(
            load_scorer("builtin"),
            [record],
            make_objective(objective),
            output=tmp_path / "run",
            options=TrainingOptions(progress=False),
            cache=tmp_path / "cache",
        )


def test_short_lists_are_refused_by_the_part() -> None:
    with pytest.raises(RecordError, match="at least 3 candidates"):
        make_objective("calibration").refuse(rated(2))
    make_objective({"kind": "calibration", "calibration_weight": 0}).refuse(rated(2))


def test_training_raises_the_correlation(tmp_path: Path) -> None:
    records = [rated(5, f"Translate: {word}") for word in ("one", "two", "three", "four")]
    result = fit(
        load_scorer("builtin"),
        records,
        make_objective({"kind": "calibration", "nll_weight": 0.1}),
        output=tmp_path / "run",
        options=TrainingOptions(
            batch_size=4, learning_rate=2e-3, epochs=8, warmup=0, log_every=1, save_every=0, progress=False
        ),
        cache=tmp_path / "cache",
    )
    first, last = result.run.metrics[0], result.metrics
    assert last["pearson"] > first["pearson"] + 0.5
    assert last["loss"] < first["loss"]


def test_terms_of_one_list_by_hand() -> None:
    terms = calibration_terms(
        torch.tensor([[1.0, 2.0, 3.0]]),
        torch.tensor([[2.0, 4.0, 6.0]]),
        torch.ones(1, 3, dtype=torch.bool),
        torch.tensor([[-6.0, -4.0, -2.0]]),
        torch.tensor([[3, 2, 4]]),
        eps=0.0,
    )
    assert terms.pearson.item() == pytest.approx(1)
    assert terms.calibration.item() == pytest.approx(-2 / 3)
    assert (terms.nll_best.item(), terms.nll_worst.item()) == (0.5, 2.0)
    assert terms.cpo.item() == pytest.approx(math.log1p(math.exp(-0.4)))
