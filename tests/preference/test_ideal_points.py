from __future__ import annotations

import math

import pytest
import torch

from prefkit.errors import OptionError, PrefkitError
from prefkit.preference import (
    angle_logits,
    check_mixture,
    distance_score,
    divergence_span,
    hinge_loss,
    logistic_loss,
    mix_ideal_points,
    over_tokens,
    prompt_ideal_points,
    prototype_bound_loss,
    smooth_hinge_loss,
    token_weights,
    user_weights,
)


def test_equal_logits_mix_to_the_mean() -> None:
    prototypes = torch.tensor([[0.0, 2.0], [4.0, 0.0]])
    found = mix_ideal_points(torch.zeros(1, 2), prototypes)
    assert found.points.tolist() == [[2.0, 1.0]]
    assert mix_ideal_points(torch.tensor([[0.0, 1.0]]), prototypes, temperature=1e-3).points.tolist() == [[4.0, 0.0]]


def test_hard_points_are_those_of_one_prototype() -> None:
    points = torch.tensor([[[1.0], [3.0]]])
    logits = torch.tensor([[0.0, math.log(3)]])
    assert prompt_ideal_points(logits, points).tolist() == [[pytest.approx(2.5)]]
    assert prompt_ideal_points(logits, points, hard=True).tolist() == [[3.0]]


def test_nearer_left_response_has_a_negative_score() -> None:
    left, right, point = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 4.0]]), torch.zeros(1, 2)
    assert distance_score(left, right, point).tolist() == [-3.0]
    assert distance_score(right, left, point).tolist() == [3.0]


def test_normalised_distances_ignore_length() -> None:
    left, right, point = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        distance_score(3 * left, right, 0.1 * point, normalise=True), distance_score(left, right, point, normalise=True)
    )


def test_angles_prefer_the_same_direction_and_their_scale_is_capped() -> None:
    left, right, point = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]]), torch.tensor([[1.0, 0.0]])
    assert angle_logits(left, right, point, torch.tensor(0.0)).tolist() == [[1.0, 0.0]]
    assert angle_logits(left, right, point, torch.tensor(50.0)).tolist() == [[100.0, 0.0]]


def test_smooth_hinge_meets_itself_at_both_ends() -> None:
    scores = torch.tensor([1.0, 0.0, -4.0, -5.0])
    found = smooth_hinge_loss(scores, torch.ones(4), margin=1.0, gamma=5.0)
    assert found.tolist() == pytest.approx([0.0, 0.1, 2.5, 3.5])


@pytest.mark.parametrize("size", [50.0, 1000.0])
def test_losses_are_finite(size: float) -> None:
    scores = torch.tensor([size, -size], requires_grad=True)
    for loss in (hinge_loss, smooth_hinge_loss, logistic_loss):
        losses = loss(scores, torch.ones(2))
        (gradient,) = torch.autograd.grad(losses.sum(), [scores])
        assert torch.isfinite(losses).all()
        assert torch.isfinite(gradient).all()


def test_losses_are_the_same_with_sides_and_labels_exchanged() -> None:
    scores, labels = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 1.0])
    for loss in (hinge_loss, smooth_hinge_loss, logistic_loss):
        torch.testing.assert_close(loss(scores, labels), loss(-scores, -labels))


def test_people_count_alike() -> None:
    assert user_weights(["a", "b"], {"a": 1, "b": 3}).tolist() == pytest.approx([0.75, 0.25])


def test_bound_counts_what_is_outside() -> None:
    points = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert float(prototype_bound_loss(points, upper_bound=2.0, weight=0.5)) == pytest.approx(1.5)


def test_cumulative_weights_grow_along_the_span() -> None:
    weights = token_weights(torch.tensor([1]), torch.tensor([4]), 5, "cumulative")
    assert weights.tolist() == [pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 0])]


def test_padding_has_no_influence() -> None:
    values = torch.tensor([[torch.inf, 1.0, 3.0, torch.nan]])
    assert over_tokens(values, torch.tensor([1]), torch.tensor([3]), weighting="mean").tolist() == [2.0]


def test_span_counts_pads_before_the_text() -> None:
    left, right = torch.tensor([1, 5, 6, 7, 1]), torch.tensor([1, 5, 8, 1, 1])
    assert divergence_span(left, right, pad_id=1, num_padding_at_beginning=1) == (2, 4)
    assert divergence_span(left, left, pad_id=1) == (4, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mix_ideal_points(torch.zeros(1, 2), torch.zeros(2, 2), temperature=0.0), "temperature must be"),
        (lambda: hinge_loss(torch.zeros(2), torch.tensor([1.0, 0.0])), "label 1 must be -1 .left preferred. or 1"),
        (lambda: smooth_hinge_loss(torch.zeros(1), torch.ones(1), gamma=0.0), "gamma must be greater than 0"),
        (lambda: user_weights(["a", "b"], {"a": 1}), "none for 'b'"),
        (lambda: check_mixture(torch.tensor([0.5, 0.6])), "mixture weights must be at least 0 and sum to 1"),
        (lambda: token_weights(torch.tensor([2]), torch.tensor([2]), 4, "mean"), "row 0: the tokens from 2 to 2"),
        (lambda: token_weights(torch.tensor([2]), torch.tensor([5]), 4, "mean"), "within the row's 4"),
        (lambda: token_weights(torch.tensor([0]), torch.tensor([1]), 4, "meen"), "did you mean 'mean'"),
        (lambda: divergence_span(torch.ones(2), torch.ones(3), pad_id=0), "of one length"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises((OptionError, PrefkitError), match=message):
        call()  # type: ignore[operator]
