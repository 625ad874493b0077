from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit import diagnostics as d
from prefkit.errors import OptionError, PrefkitError
from prefkit.objectives import dpo_gamma_loss, dpo_loss

POLICY = torch.tensor([-10.0, -20.0, -30.0]), torch.tensor([-10.0, -25.0, -20.0])


def test_equal_likelihoods_are_ranked_rightly_and_rewarded_wrongly() -> None:
    assert d.ranking_accuracy(*POLICY).per_example.tolist() == [1, 1, 0]
    assert d.reward_accuracy(*POLICY, *POLICY).per_example.tolist() == [0, 0, 0]


def test_a_token_turns_the_order_round() -> None:
    lengths = torch.tensor([10, 20, 60]), torch.tensor([5, 30, 20])
    found = d.ranking_accuracy(*POLICY, *lengths, length_normalize=True)
    assert found.per_example.tolist() == [1, 0, 1]  # -1 against -2, -1 against -5/6, -1/2 against -1


def test_ties_need_near_equality_of_what_is_compared() -> None:
    one, two, alpha = torch.tensor([-800.0]), torch.tensor([-900.0]), torch.tensor([0.5])
    assert d.ranking_accuracy_with_ties(one, two, alpha, quantity="probability").mean == 1  # both are 0 to 0.01
    assert d.ranking_accuracy_with_ties(one, two, alpha, quantity="logp").mean == 0
    # Of such long responses no probability is left, and still their order is known.
    assert d.ranking_accuracy_with_ties(one, two, torch.tensor([0.9]), quantity="probability").mean == 1


def test_equal_likelihoods_of_three_share_the_lower_rank() -> None:
    found = d.ranking_accuracy_nway(torch.tensor([[-1.0, -1.0, -3.0]]), torch.tensor([[1, 2, 3]]))
    assert found.policy_ranks.tolist() == [[2, 2, 3]]
    assert found.mean == 0


def test_idealised_accuracy_is_that_of_the_tabular_optimum() -> None:
    generator = torch.Generator().manual_seed(0)
    reward = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    ref = torch.log_softmax(2 * torch.randn(200, 2, generator=generator, dtype=torch.float64), 1)
    optimum = torch.log_softmax(ref + reward / 0.3, 1)  # Rafailov et al., eq. 4
    alpha = torch.sigmoid(reward[:, 0] - reward[:, 1])
    found = d.idealized_ranking(ref[:, 0], ref[:, 1], alpha, beta=0.3)
    torch.testing.assert_close(found.optimal_log_ratio, optimum[:, 0] - optimum[:, 1])


def test_the_grid_gives_lowest_median_and_highest() -> None:
    ref, alpha = (torch.tensor([-9.0, -1.0]), torch.tensor([-1.0, -1.0])), torch.tensor([0.9, 0.9])
    found = d.idealized_ranking_accuracy(*ref, alpha, betas=(10.0, 0.1, 5.0))
    # log 9 / beta is above 8 nats only for beta 0.1.
    assert (found.lowest, found.median, found.highest) == (0.5, 0.5, 1.0)
    assert found.by_beta == {10.0: 0.5, 0.1: 1.0, 5.0: 0.5}


def test_unanimous_raters_stay_finite() -> None:
    ref = torch.tensor([-5.0, -5.0]), torch.tensor([-5.0, -5.0])
    found = d.idealized_ranking(*ref, torch.tensor([1.0, 0.0]), beta=0.01)
    assert found.optimal_log_ratio.tolist() == pytest.approx([100 * math.log(1000), -100 * math.log(1000)])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_threshold_separates_right_from_wrong(gamma: float) -> None:
    generator = torch.Generator().manual_seed(1)
    pc, pr, rc, rr = -50 * torch.rand(4, 500, generator=generator, dtype=torch.float64)
    losses = dpo_gamma_loss(pc, pr, rc, rr, beta=0.3, ref_weight=gamma)
    threshold = d.difficulty(rc, rr, beta=0.3, gamma=gamma).loss_threshold
    assert torch.equal(losses <= threshold, d.ranking_accuracy(pc, pr).per_example.bool())
    if gamma == 1:
        torch.testing.assert_close(losses, dpo_loss(pc, pr, rc, rr, beta=0.3))


def test_the_threshold_stays_finite() -> None:
    found = d.difficulty(torch.tensor([-900.0, 0.0]), torch.tensor([0.0, -900.0]), beta=1.0)
    assert found.nats.tolist() == [900, -900]
    assert found.loss_threshold.tolist() == pytest.approx([0, 900])


def test_ipo_at_no_loss_leaves_hard_pairs_wrong() -> None:
    found = d.ipo_condition(torch.tensor([-9.0, -1.0]), torch.tensor([-1.0, -3.0]), tau=0.1)
    assert found.zero_loss_is_wrong.tolist() == [1, 0]  # -8 < -5
    assert found.sufficient_loss.tolist() == [-1, 49]


def test_flips_without_a_wrong_pair_are_flagged() -> None:
    right = torch.tensor([-1.0]), torch.tensor([-2.0])
    found = d.flip_report(*reversed(right), *right)
    assert found.labels == ["correct->incorrect"]
    assert (found.flip_rate, found.none_wrong) == (0.0, True)
    assert not d.flip_report(*right, *reversed(right)).none_wrong


def test_positive_log_probabilities_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="policy_chosen_logps holds a positive number"):
        d.ranking_accuracy(torch.tensor([1.0]), torch.tensor([-1.0]))


ONE = torch.tensor([-1.0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: d.ranking_accuracy(ONE, POLICY[0]), PrefkitError, "must have one shape"),
        (lambda: d.ranking_accuracy(ONE[:0], ONE[:0]), PrefkitError, "is empty"),
        (lambda: d.ranking_accuracy(ONE / 0, ONE), PrefkitError, "must be finite numbers"),
        (lambda: d.ranking_accuracy(ONE, ONE, length_normalize=True), PrefkitError, "needs the lengths"),
        (
            lambda: d.ranking_accuracy(ONE, ONE, ONE.long() * 0, ONE.long() * 0, length_normalize=True),
            PrefkitError,
            "length below 1",
        ),
        (lambda: d.reward_accuracy(ONE, ONE, ONE, ONE, beta=0), OptionError, "beta must be greater than 0"),
        (lambda: d.idealized_ranking(ONE, ONE, ONE + 3), PrefkitError, r"alpha must lie in \[0, 1\]"),
        (lambda: d.idealized_ranking(ONE, ONE, ONE + 1.5, eps=1), OptionError, "eps must lie in"),
        (lambda: d.idealized_ranking_accuracy(ONE, ONE, ONE + 1.5, betas=()), OptionError, "at least one"),
        (
            lambda: d.ranking_accuracy_nway(torch.zeros(1, 3), torch.tensor([[1, 2, 2]])),
            PrefkitError,
            r"human_ranks\[0\] must hold each of 1 to 3 once, got \[1, 2, 2\]",
        ),
        (lambda: d.ranking_accuracy_with_ties(ONE, ONE, ONE + 1.5, tie_tolerance=0), OptionError, "tie_tolerance"),
        (lambda: dpo_gamma_loss(ONE, ONE, ONE, ONE, ref_weight=-1.0), OptionError, "ref_weight must be at least 0"),
    ],
)
def test_bad_input_is_explained(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_figures_stay_where_their_inputs_are() -> None:
    found: Tensor = d.difficulty(ONE.double(), ONE.double()).loss_threshold
    assert found.dtype == torch.float64
    assert found.device == ONE.device
