from __future__ import annotations

import pytest
import torch

from prefkit.comparisons import Comparison, Ratings
from prefkit.errors import OptionError, RecordError
from prefkit.objectives import ListScores, gpo_loss, gpo_pair_loss, make_objective

LOGPS = torch.tensor([[-3.0, -5.0, 0.0]], dtype=torch.float64)
REF = torch.tensor([[-4.0, -4.0, 0.0]], dtype=torch.float64)
SCORES = torch.tensor([[0.5, -0.5, 0.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False]])


def listed() -> ListScores:
    lengths = torch.tensor([[2, 4, 0]])
    return ListScores(LOGPS, torch.tensor([[0, 1, 2]]), MASK, ref_logps=REF, lengths=lengths, ratings=SCORES)


def test_list_objective_is_the_mean_over_candidates() -> None:
    objective = make_objective({"kind": "gpo", "beta": 0.5})
    expected = gpo_loss(LOGPS, REF, SCORES, beta=0.5)[:, :2].mean(1)
    torch.testing.assert_close(objective(listed()), expected)
    pair = gpo_pair_loss(LOGPS[:, 0], LOGPS[:, 1], REF[:, 0], REF[:, 1], SCORES[:, 0], SCORES[:, 1], beta=0.5)
    torch.testing.assert_close(objective(listed()), pair)


def test_length_normalised_variant_and_empty_places() -> None:
    objective = make_objective({"kind": "gpo", "beta": 0.5, "gamma": 1.0})
    # (1/2 - 1)^2 and (-1/4 + 1)^2
    assert objective(listed()).tolist() == [pytest.approx((0.25 + 0.5625) / 2)]


def test_targets_are_clamped() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert gpo_loss(zero, zero, zero + 5, beta=1.0, clamp=2.0).tolist() == [4.0]


def test_the_minimum_is_the_multiplicative_step() -> None:
    scores = torch.tensor([0.4, -0.2], dtype=torch.float64)
    ref = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    log_z = torch.logsumexp(ref + scores / 0.5, 0) * 0.5
    step = ref + (scores - log_z) / 0.5
    assert float(step.exp().sum()) == pytest.approx(1)
    assert float(gpo_loss(step, ref, scores, beta=0.5, log_z=float(log_z)).sum()) == pytest.approx(0, abs=1e-12)


def test_gradient() -> None:
    logps = LOGPS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gpo_loss(x, REF, SCORES, beta=0.3, lengths=REF.abs() + 1), [logps])


def test_bad_input_is_refused() -> None:
    with pytest.raises(OptionError, match="beta must be greater than 0"):
        gpo_loss(LOGPS, REF, SCORES, beta=0.0)
    objective = make_objective("gpo")
    objective.refuse(Comparison(("p",), ("a", "b"), Ratings((1.0, -1.0))))
    with pytest.raises(RecordError, match="needs a rating of each response"):
        objective.refuse(Comparison.pair("p", "a", "b"))
