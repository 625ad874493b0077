from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prefkit import diagnostics as d
from prefkit.errors import OptionError, PrefkitError


def states(rows: int, length: int, seed: int) -> Tensor:
    return torch.randn(rows, length, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_score_by_hand_whatever_the_padding_holds() -> None:
    chosen = torch.tensor([[[1.0, 0], [0, 2], [torch.nan, 7]]])
    rejected = torch.tensor([[[9.0, 9], [3, 1], [1, 1]]])
    masks = torch.tensor([[1, 1, 0]]), torch.tensor([[0, 1, 1]])
    # S+ = (1, 2), S- = (4, 2): 8 - 5, and 8/4 - 5/4.
    assert d.ches_score(chosen, rejected, *masks).item() == 3
    assert d.ches_score(chosen, rejected, *masks, length_normalize=True).item() == 0.75


def test_equal_responses_have_the_score_0() -> None:
    hidden, mask = states(3, 6, 0), torch.ones(3, 6)
    torch.testing.assert_close(d.ches_score(hidden, hidden, mask, mask), torch.zeros(3, dtype=torch.float64))


def test_half_precision_is_summed_in_float32() -> None:
    hidden, mask = 100 + states(1, 300, 1), torch.ones(1, 300)
    half = hidden.bfloat16()
    exact = d.ches_score(half.double(), half.double(), mask, mask, length_normalize=True)
    assert d.ches_score(half, half, mask, mask, length_normalize=True).item() == pytest.approx(exact.item(), abs=0.5)


def test_edit_distance_against_the_textbook() -> None:
    def textbook(a: list[int], b: list[int]) -> int:
        table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
        for i in range(1, len(a) + 1):
            for j in range(1, len(b) + 1):
                change = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
                table[i][j] = min(change, table[i - 1][j] + 1, table[i][j - 1] + 1)
        return table[-1][-1]

    generator = np.random.default_rng(0)
    for _ in range(50):
        a, b = (generator.integers(4, size=generator.integers(1, 12)).tolist() for _ in range(2))
        assert d.normalized_edit_distance(a, b) == pytest.approx(textbook(a, b) / max(len(a), len(b)))
    assert d.normalized_edit_distance([], []) == 0
    assert d.normalized_edit_distance([1], []) == 1


def test_filter_keeps_the_lowest_in_their_order() -> None:
    scores = [5.0, 1.0, 4.0, 0.0, 3.0]
    assert d.filter_by_ches(scores, 0.4).tolist() == [1, 3]
    assert d.filter_by_ches(scores, 0.01).tolist() == [3]
    assert d.filter_by_ches(scores, 1.0).tolist() == [0, 1, 2, 3, 4]


def rates(weights: Tensor, hidden: list[Tensor], ids: list[Tensor], owners: list[list[int]]) -> tuple[float, Tensor]:
    """d log pi(chosen) / dt, and of the tokens at the first place, by automatic differentiation."""
    leaves = [weights.clone().requires_grad_(), *(h.clone().requires_grad_() for h in hidden)]

    def total(side: int) -> Tensor:
        places = zip(owners[side], ids[side], strict=True)
        return torch.stack([torch.log_softmax(leaves[0] @ leaves[1 + at], 0)[token] for at, token in places]).sum()

    chosen, rejected = total(0), total(1)
    descent = torch.autograd.grad(rejected - chosen, leaves, retain_graph=True, materialize_grads=True)
    up = torch.autograd.grad(chosen, leaves, retain_graph=True, materialize_grads=True)
    rate = -sum(float((a * b).sum()) for a, b in zip(up, descent, strict=True))
    first = torch.log_softmax(leaves[0] @ leaves[1], 0)
    each = [torch.autograd.grad(t, leaves, retain_graph=True, materialize_grads=True) for t in first]
    return rate, torch.tensor([-sum(float((a * b).sum()) for a, b in zip(g, descent, strict=True)) for g in each])


def test_single_token_rates_are_those_of_gradient_flow() -> None:
    weights, hidden = states(1, 7, 2)[0], states(1, 1, 3)[0, 0]
    found = d.single_token_rates(weights, hidden, 4, 1)
    rate, each = rates(weights, [hidden], [torch.tensor([4]), torch.tensor([1])], [[0], [0]])
    assert found.chosen_rate.item() == pytest.approx(rate, rel=1e-9)
    torch.testing.assert_close(found.logprob_rates, each.double(), rtol=1e-5, atol=1e-6)
    assert d.single_token_rates(weights, hidden, 4, 1, loss_derivative=-0.5).chosen_rate.item() == pytest.approx(
        rate / 2
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "shared"),
    [([1, 2, 3], [2, 2], 1), ([1, 2, 3], [1, 2, 4, 0], 3), ([1, 2], [1, 2, 4], 2), ([5], [6], 1)],
)
def test_multi_token_rate_is_that_of_gradient_flow(chosen: list[int], rejected: list[int], shared: int) -> None:
    weights = states(1, 8, 4)[0]
    hidden = list(states(1, len(chosen) + len(rejected) - shared, 5)[0])
    places = list(range(len(chosen))), [*range(shared), *range(len(chosen), len(hidden))]
    ids = torch.tensor(chosen), torch.tensor(rejected)
    found = d.multi_token_rate(weights, *ids, *(torch.stack([hidden[i] for i in side]) for side in places))
    rate, _ = rates(weights, hidden, list(ids), list(places))
    assert found.chosen_rate.item() == pytest.approx(rate, rel=1e-9)


def test_displacement_is_told_from_a_rise() -> None:
    before = np.full(20, -10.0), np.full(20, -10.0)
    fallen = d.displacement_report(*before, before[0] - 1, before[1] - 9)
    assert fallen.displaced
    assert (fallen.both_fell.mean, fallen.chosen_change.mean, fallen.rejected_change.mean) == (1, -1, -9)
    assert not d.displacement_report(*before, before[0] + 1, before[1]).displaced
    # A loss that rose is a failure of training, not displacement.
    assert not d.displacement_report(*before, before[0] - 9, before[1]).displaced


def test_tokens_that_gain_are_named() -> None:
    before, after = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.1, 0.2, 0.7]).log()
    assert d.gaining_tokens(before, after, 1) == [(2, pytest.approx(0.5))]


ONES = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: d.ches_score(ONES, ONES[:1], ONES[:, :, 0], ONES[:1, :, 0]), PrefkitError, "each row has both"),
        (lambda: d.ches_score(ONES, ONES, ONES[:, :, 0], ONES[:, :, 0] * 0), PrefkitError, "row 0: the rejected"),
        (lambda: d.ches_score(ONES, ONES[..., :2], ONES[..., 0], ONES[..., 0]), PrefkitError, "must have one size"),
        (lambda: d.ches_score(ONES / 0, ONES, ONES[..., 0], ONES[..., 0]), PrefkitError, "must be finite"),
        (lambda: d.ches_score(ONES, ONES, ONES[..., :1, 0], ONES[..., 0]), PrefkitError, "chosen_mask must be"),
        (lambda: d.predicting_mask(torch.tensor([5]), 6), PrefkitError, r"must lie in 0\.\.4"),
        (lambda: d.quantile_subset([1.0], 1.5, 1), OptionError, "quantile must lie"),
        (lambda: d.quantile_subset([1.0], 0.5, 0), OptionError, "count must be at least 1"),
        (lambda: d.filter_by_ches([1.0], 0.0), OptionError, "keep_fraction must lie"),
        (lambda: d.filter_by_ches([float("nan")]), PrefkitError, "finite numbers"),
        (lambda: d.single_token_rates(ONES[0], ONES[0, 0], 1, 1), PrefkitError, "must differ"),
        (
            lambda: d.multi_token_rate(ONES[0], torch.tensor([1]), torch.tensor([0]), ONES[0], ONES[0, :1]),
            PrefkitError,
            "a state for each of its tokens",
        ),
        (lambda: d.displacement_report([0], [0], [0], [0], before_losses=[1.0]), OptionError, "both times"),
    ],
)
def test_bad_input_is_explained(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
