"""Votes of reward models, and losses with the strength that they give."""

import math

import pytest
import torch

from prefkit.comparisons import Comparison, Ranking, RecordError, Winner
from prefkit.errors import OptionError, PrefkitError
from prefkit.objectives import (
    PairScores,
    adaptive_margin_loss,
    flip_weakest,
    make_objective,
    offset_reward_loss,
    preference_strength,
    reward_model_loss,
    smoothed_reward_loss,
    strength_groups,
    vote,
)


def scores(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_strength_is_the_mean_over_models_and_its_deviation_divides_by_their_number() -> None:
    found = preference_strength(torch.tensor([[1.0, 0.0], [3.0, -1.0]]), torch.zeros(2, 2))
    assert found.mean.tolist() == [2.0, -0.5]
    assert found.std.tolist() == [1.0, 0.5]
    assert found.vote_share.tolist() == [1.0, 0.0]


def test_normalised_votes_do_not_depend_on_the_scale_of_a_model() -> None:
    chosen = torch.tensor([[1.0, -2.0], [0.5, 1.0]])
    scaled = chosen * torch.tensor([[100.0], [1.0]])
    plain, large = (preference_strength(x, torch.zeros(2, 2), normalise=True).mean for x in (chosen, scaled))
    torch.testing.assert_close(plain, large)


@pytest.mark.parametrize(
    ("chosen", "rejected", "problem"),
    [
        (torch.zeros(0, 3), torch.zeros(0, 3), "at least one model"),
        (torch.zeros(2, 3), torch.zeros(2, 4), "of one shape"),
        (torch.tensor([[0.0, math.nan]]), torch.zeros(1, 2), "model 0 gives the chosen response of pair 1"),
        (torch.zeros(1, 2), torch.tensor([[math.inf, 0.0]]), "model 0 gives the rejected response of pair 0"),
    ],
)
def test_bad_votes_are_refused(chosen: torch.Tensor, rejected: torch.Tensor, problem: str) -> None:
    with pytest.raises(PrefkitError, match=problem):
        preference_strength(chosen, rejected)


def test_a_model_without_scale_cannot_be_normalised() -> None:
    with pytest.raises(PrefkitError, match="model 1 rewards both responses of every pair alike"):
        preference_strength(torch.tensor([[1.0], [0.0]]), torch.zeros(2, 1), normalise=True)


def test_flips_by_threshold_and_of_equal_strengths_the_first() -> None:
    assert flip_weakest(scores(1, -1, 0), threshold=0.0).mask.tolist() == [False, True, False]
    assert flip_weakest(scores(0, 0, 0, 0), fraction=0.25).mask.tolist() == [True, False, False, False]
    assert flip_weakest(scores(1, -2), fraction=0.5).strength.tolist() == [1.0, 2.0]


def test_groups_are_of_nearly_equal_size() -> None:
    assert strength_groups(scores(5, 1, 4, 2, 3), 2).tolist() == [1, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ({}, "fraction or threshold"),
        ({"fraction": 0.1, "threshold": 0.0}, "fraction or threshold"),
        ({"fraction": 0.6}, r"fraction must lie in \[0, 0.5\]"),
        ({"fraction": math.nan}, r"fraction must lie in \[0, 0.5\]"),
        ({"threshold": math.nan}, "threshold must be a number"),
    ],
)
def test_bad_flips_are_refused(how: dict[str, float], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        flip_weakest(scores(1.0), **how)


def test_strengths_must_be_numbers_and_groups_positive() -> None:
    with pytest.raises(PrefkitError, match="strength of pair 1 is no number"):
        flip_weakest(scores(1.0, math.nan), fraction=0.5)
    with pytest.raises(OptionError, match="groups must be at least 1"):
        strength_groups(scores(1.0), 0)


def test_the_loss_at_the_margin_is_log_two_and_the_margin_has_no_gradient() -> None:
    chosen, margin = scores(-3.0).requires_grad_(), scores(-3.0).requires_grad_()
    loss = adaptive_margin_loss(chosen, scores(0.0), margin)
    assert float(loss.detach()) == pytest.approx(math.log(2))
    loss.sum().backward()
    assert margin.grad is None
    assert float(chosen.grad) == pytest.approx(-0.5)


def test_losses_are_finite_and_agree_with_the_plain_one() -> None:
    difference = scores(-1000, -50, 0, 50, 1000)
    plain = reward_model_loss(difference, torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(smoothed_reward_loss(difference, 0 * difference, alpha=0.0), plain)
    assert torch.isfinite(smoothed_reward_loss(difference, 0 * difference, alpha=0.5)).all()
    inside = scores(-5, 0, 5)
    torch.testing.assert_close(offset_reward_loss(inside), reward_model_loss(inside, 0 * inside), atol=2e-3, rtol=0)


def test_smoothing_applies_to_negative_margins_only() -> None:
    margins = scores(-1.0, 1.0)
    soft = adaptive_margin_loss(scores(2.0, 2.0), scores(0.0, 0.0), margins, alpha=0.2, smoothed="negative")
    plain = adaptive_margin_loss(scores(2.0, 2.0), scores(0.0, 0.0), margins)
    assert soft[1] == plain[1]
    assert float(soft[0]) == pytest.approx(0.8 * math.log1p(math.exp(-3)) + 0.2 * math.log1p(math.exp(3)))


def test_bad_options_of_the_losses() -> None:
    with pytest.raises(OptionError, match=r"alpha must lie in \[0, 0.5\]"):
        smoothed_reward_loss(scores(1.0), scores(0.0), alpha=0.6)
    with pytest.raises(OptionError, match="each pair needs two scores and a margin"):
        adaptive_margin_loss(scores(1.0), scores(0.0), scores(0.0, 1.0))


def test_the_preset_is_the_function_and_refuses_corrections() -> None:
    objective = make_objective({"kind": "reward_model_margin", "alpha": 0.2})
    pairs = PairScores(scores(1.0, -1.0), scores(0.0, 2.0), margins=scores(0.5, -0.5))
    wanted = adaptive_margin_loss(
        pairs.policy_chosen_logps, pairs.policy_rejected_logps, pairs.margins, alpha=0.2, smoothed="negative"
    )
    torch.testing.assert_close(objective(pairs), wanted)
    assert objective.needs == {"margins", "rewards"}
    robust = make_objective({"kind": "reward_model_margin", "noise": {"kind": "robust", "flip_rate": 0.1}})
    with pytest.raises(OptionError, match="looks at pairs as they were labelled"):
        robust(pairs)


def test_a_vote_leaves_ties_and_needs_pairs_with_rewards() -> None:
    tie = Comparison(("p",), ("a", "b"), Ranking((0, 0)), extra={"rewards": [1.0, 0.0]}, source="f", line=1)
    pair = Comparison(("q",), ("a", "b"), Winner(1), extra={"rewards": [1.0, 0.0]}, source="f", line=2)
    found = vote([[tie, pair]], flip_threshold=0.0)
    assert found.comparisons[0].judgement == tie.judgement
    assert "strength_mean" not in found.comparisons[0].extra
    assert found.comparisons[1].judgement == Winner(0)
    assert found.flips == 1
    with pytest.raises(PrefkitError, match="nothing to vote on"):
        vote([[tie]])
    with pytest.raises(PrefkitError, match="at least one model"):
        vote([])
    bare = Comparison(("q",), ("a", "b"), Winner(1), source="f", line=3)
    with pytest.raises(RecordError, match="f:3: field 'rewards': one reward a response is needed"):
        vote([[bare]])
    three = Comparison(("q",), ("a", "b", "c"), Winner(1), extra={"rewards": [1, 2, 3]}, source="f", line=4)
    with pytest.raises(RecordError, match="f:4: field 'responses': a vote is on pairs, got 3"):
        vote([[three]])
