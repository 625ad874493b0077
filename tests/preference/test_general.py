from __future__ import annotations

import math

import pytest
import torch

from prefkit.errors import OptionError, PrefkitError
from prefkit.preference import (
    block_embeddings,
    candidate_scores,
    duality_gap,
    embeddings_from_scores,
    gate,
    gpm_loss,
    gpm_regression_loss,
    gpm_score,
    gpm_soft_label_loss,
    gpm_soft_regression_loss,
    learned_temperature,
    multiplicative_weights_step,
    score_table,
    scores_versus_candidates,
    skew_operator,
    training_pair,
)

ROCK_PAPER_SCISSORS = torch.tensor([[0.0, 1, -1], [-1, 0, 1], [1, -1, 0]], dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def skew(n: int, seed: int = 0) -> torch.Tensor:
    entries = random(n, n, seed=seed)
    return entries - entries.T


def test_score_is_the_sine_of_the_angle_from_the_first_to_the_second() -> None:
    angles = torch.tensor([0.3, 2.0, -1.0], dtype=torch.float64)
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    torch.testing.assert_close(gpm_score(points[:2], points[1:]), (angles[1:] - angles[:2]).sin())


def test_score_is_that_of_the_operator_and_antisymmetric() -> None:
    first, second = random(2, 5, 6)
    turned = first @ skew_operator(6).T
    torch.testing.assert_close(gpm_score(first, second), (turned * second).sum(1))
    torch.testing.assert_close(gpm_score(first, second), -gpm_score(second, first))
    assert gpm_score(first, first).abs().max() == 0


def test_bradley_terry_is_a_special_case() -> None:
    rewards = random(4)
    embeddings = torch.stack([rewards, torch.full_like(rewards, 2.0)], dim=1)
    torch.testing.assert_close(score_table(embeddings), 2 * (rewards[:, None] - rewards))


def test_gate_scales_blocks() -> None:
    first, second = random(2, 3, 4)
    eigenvalues = gate(random(3, 2, seed=1), scale=2.0)
    torch.testing.assert_close(eigenvalues.sum(1), torch.full((3,), 2.0, dtype=torch.float64))
    expected = eigenvalues[:, 0] * gpm_score(first[:, :2], second[:, :2])
    expected = expected + eigenvalues[:, 1] * gpm_score(first[:, 2:], second[:, 2:])
    torch.testing.assert_close(gpm_score(first, second, eigenvalues), expected)


@pytest.mark.parametrize("margin", [-1000.0, -50.0, 0.0, 50.0, 1000.0])
def test_losses_are_finite_and_have_a_gradient(margin: float) -> None:
    scores = torch.tensor([margin], dtype=torch.float64, requires_grad=True)
    half = torch.tensor([0.5], dtype=torch.float64)
    for loss in (
        gpm_loss(scores, tau=1.0),
        gpm_soft_label_loss(scores, half, tau=1.0),
        gpm_regression_loss(scores, tau=1.0),
        gpm_soft_regression_loss(scores, half, tau=1.0),
    ):
        (gradient,) = torch.autograd.grad(loss.sum(), [scores])
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()


def test_margin_is_taken_off_before_the_division() -> None:
    loss = gpm_loss(torch.tensor([0.5]), tau=0.5, margin=0.25)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-0.5)))


def test_soft_labels_of_one_are_hard_labels() -> None:
    scores = random(5)
    torch.testing.assert_close(gpm_soft_label_loss(scores, torch.ones(5)), gpm_loss(scores))


def test_learned_temperature_starts_at_a_tenth_and_stops_at_a_hundredth() -> None:
    assert float(learned_temperature(torch.tensor(-2.25))) == pytest.approx(0.1, abs=2e-3)
    assert float(learned_temperature(torch.tensor(-50.0))) == pytest.approx(0.01)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_any_table_has_embeddings(n: int) -> None:
    table = skew(n)
    torch.testing.assert_close(score_table(embeddings_from_scores(table)), table)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_spectral_form_gives_the_table_back(n: int) -> None:
    table = skew(n)
    embeddings, eigenvalues = block_embeddings(table)
    torch.testing.assert_close(score_table(embeddings, eigenvalues), table)
    torch.testing.assert_close(embeddings.T @ embeddings, torch.eye(n // 2 * 2, dtype=torch.float64))
    assert (eigenvalues.diff() <= 1e-12).all()


def test_spectral_form_of_a_low_rank_needs_few_dimensions() -> None:
    rewards = random(6)
    table = rewards[:, None] - rewards
    torch.testing.assert_close(score_table(*block_embeddings(table, 2)), table)


def test_candidates_at_linear_cost_have_the_same_scores() -> None:
    embeddings, eigenvalues = random(7, 6), gate(random(3, seed=2))
    found = candidate_scores(embeddings, tau=0.2, eigenvalues=eigenvalues)
    fast = scores_versus_candidates(embeddings, tau=0.2, eigenvalues=eigenvalues)
    torch.testing.assert_close(fast, found.versus_policy)
    assert training_pair(found) == (int(found.versus_policy.argmax()), int(found.versus_policy.argmin()))


def test_tied_candidates_are_left_out_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="all candidates of a prompt are tied"):
        assert training_pair(candidate_scores(torch.ones(3, 2))) is None


def test_uniform_policy_is_the_winner_of_rock_paper_scissors() -> None:
    uniform = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert float(duality_gap(ROCK_PAPER_SCISSORS, uniform)) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(multiplicative_weights_step(ROCK_PAPER_SCISSORS, uniform, eta=1.0), uniform)
    sure = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    assert float(duality_gap(ROCK_PAPER_SCISSORS, sure)) == pytest.approx(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gpm_score(random(2, 3), random(2, 3)), "must be even and at least 2, got 3"),
        (lambda: gpm_score(random(2, 4), random(2, 2)), "must be of one size, got 4 and 2"),
        (lambda: gpm_score(random(2, 4), random(2, 4), random(2, 3)), "need 2 eigenvalues, got 3"),
        (lambda: gpm_loss(random(2), tau=0.0), "tau must be greater than 0, got 0.0"),
        (lambda: gpm_soft_label_loss(random(2), torch.tensor([0.5, 1.5])), r"soft label 1 must lie in \[0, 1\]"),
        (lambda: gpm_soft_regression_loss(random(1), torch.ones(1)), "strictly between 0 and 1"),
        (lambda: embeddings_from_scores(random(2, 3)), r"must be square, got shape \(2, 3\)"),
        (lambda: embeddings_from_scores(torch.ones(2, 2)), "must be skew-symmetric"),
        (lambda: embeddings_from_scores(torch.full((2, 2), torch.nan)), r"score \[0, 0\] must be a finite number"),
        (lambda: block_embeddings(skew(3), 4), "at most 2 dimensions, got dim = 4"),
        (lambda: block_embeddings(skew(1)), "needs at least 2 rows"),
        (lambda: candidate_scores(torch.full((2, 2), torch.nan)), "candidate 0: entry 0"),
        (lambda: training_pair(candidate_scores(random(1, 2))), "at least 2 candidates, got 1"),
        (lambda: duality_gap(ROCK_PAPER_SCISSORS, torch.ones(2)), "over 3 responses needs as many"),
        (lambda: duality_gap(ROCK_PAPER_SCISSORS, torch.ones(3)), "with a sum of 1"),
        (lambda: multiplicative_weights_step(skew(2), torch.ones(2) / 2, eta=0.0), "eta must be greater than 0"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises((OptionError, PrefkitError), match=message):
        call()  # type: ignore[operator]
