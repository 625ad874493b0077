from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefkit.errors import OptionError
from prefkit.objectives import (
    ListObjective,
    ListScores,
    PairScores,
    Part,
    Stateful,
    all_pairs_loss,
    conservative,
    logistic,
    make_objective,
    plackett_luce_loss,
    robust,
    squared,
)
from prefkit.objectives.listwise import RANKINGS
from prefkit.objectives.rewards import REWARDS


def one_list(rewards: list[float], ranks: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.tensor([rewards], dtype=torch.float64),
        torch.tensor([ranks]),
        torch.ones(1, len(ranks), dtype=torch.bool),
    )


def plackett_luce_by_hand(rewards: list[float], ranks: list[int], beta: float) -> float:
    total = 0.0
    for i, rank in enumerate(ranks):
        rivals = [i] + [j for j, other in enumerate(ranks) if other > rank]
        total += math.log(sum(math.exp(beta * rewards[j]) for j in rivals)) - beta * rewards[i]
    return total


lists = st.integers(2, 6).flatmap(
    lambda k: st.tuples(
        st.lists(st.floats(-8, 8), min_size=k, max_size=k), st.lists(st.integers(0, 3), min_size=k, max_size=k)
    )
)


@given(lists)
def test_plackett_luce_agrees_with_loops(case: tuple[list[float], list[int]]) -> None:
    value = plackett_luce_loss(*one_list(*case), beta=0.7).item()
    assert value == pytest.approx(plackett_luce_by_hand(*case, beta=0.7), rel=1e-9, abs=1e-9)


def test_probabilities_of_all_orders_add_up_to_one() -> None:
    rewards = [0.3, -1.2, 2.0, 0.7]
    losses = [
        plackett_luce_loss(*one_list(rewards, list(order)), beta=1.0) for order in itertools.permutations(range(4))
    ]
    assert torch.cat(losses).neg().exp().sum().item() == pytest.approx(1)


def test_winner_against_ties_is_a_best_of_k_choice() -> None:
    rewards = [0.3, -1.2, 2.0]
    expected = -torch.log_softmax(torch.tensor(rewards, dtype=torch.float64), 0)[1]
    assert plackett_luce_loss(*one_list(rewards, [1, 0, 1]), beta=1.0).item() == pytest.approx(expected.item())


@given(lists)
def test_all_pairs_agrees_with_loops(case: tuple[list[float], list[int]]) -> None:
    rewards, ranks = case
    ordered = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
    expected = sum((rewards[i] - rewards[j] - 5.0) ** 2 for i, j in ordered) / max(len(ordered), 1)
    assert all_pairs_loss(*one_list(*case), link=squared).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("loss", [plackett_luce_loss, all_pairs_loss])
def test_empty_places_have_no_influence(loss: Callable[..., Tensor]) -> None:
    rewards = torch.tensor([[1.0, -2.0, 0.5, 1e30], [1.0, -2.0, 0.5, -1e30]], requires_grad=True)
    ranks = torch.tensor([[0, 2, 1, 0], [0, 2, 1, 9]])
    mask = torch.tensor([[True, True, True, False]] * 2)
    losses = loss(rewards, ranks, mask)
    short = loss(rewards[:1, :3], ranks[:1, :3], mask[:1, :3])
    torch.testing.assert_close(losses, short.expand(2))
    (gradient,) = torch.autograd.grad(losses.sum(), rewards)
    assert (gradient[:, 3] == 0).all()
    assert (gradient[:, :3] != 0).all()


@pytest.mark.parametrize("kind", ["plackett_luce", "all_pairs"])
def test_two_responses_are_a_pair(kind: str) -> None:
    policy, ref = torch.tensor([[-3.0, -9.0], [-4.0, -1.0]]), torch.tensor([[-4.0, -7.0], [-2.0, -2.0]])
    ranks, mask = torch.tensor([[0, 1], [1, 0]]), torch.ones(2, 2, dtype=torch.bool)
    pairs = PairScores(
        policy_chosen_logps=torch.tensor([-3.0, -1.0]),
        policy_rejected_logps=torch.tensor([-9.0, -4.0]),
        ref_chosen_logps=torch.tensor([-4.0, -2.0]),
        ref_rejected_logps=torch.tensor([-7.0, -2.0]),
    )
    objective, dpo = make_objective(kind), make_objective("dpo")
    scores = ListScores(policy, ranks, mask, ref)
    torch.testing.assert_close(objective(scores), dpo(pairs))
    torch.testing.assert_close(objective.rewards(scores), dpo.rewards(pairs))


@pytest.mark.parametrize("kind", ["plackett_luce", "all_pairs"])
def test_a_list_of_ties_costs_nothing(kind: str) -> None:
    policy = torch.tensor([[-3.0, -9.0, -1.0]], requires_grad=True)
    scores = ListScores(
        policy, torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3)
    )
    losses = make_objective(kind)(scores)
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    assert losses.item() == pytest.approx(0, abs=1e-7)
    assert gradient.abs().max() < 1e-7


@pytest.mark.parametrize("config", ["plackett_luce", "all_pairs", {"kind": "all_pairs", "link": "hinge"}])
def test_lists_stay_finite_in_float32(config: object) -> None:
    policy = torch.tensor([[-1.0, -1000.0, -50.0], [-1000.0, -1.0, -50.0]], requires_grad=True)
    ranks, mask = torch.tensor([[0, 1, 2]] * 2), torch.ones(2, 3, dtype=torch.bool)
    losses = make_objective(config)(ListScores(policy, ranks, mask, torch.zeros(2, 3)))
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


def test_averaged_rewards_of_padded_lists() -> None:
    policy = torch.tensor([[-4.0, -9.0, -5.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    scores = ListScores(policy, torch.tensor([[0, 1, 0]]), mask, lengths=torch.tensor([[2, 3, 0]]))
    losses = make_objective({"kind": "plackett_luce", "reward": "average_log_prob", "beta": 1.0})(scores)
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    assert losses.item() == pytest.approx(math.log1p(math.exp(-1)))
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("noise", "by_hand"), [("conservative", conservative), ("robust", robust)])
def test_a_correction_of_a_list_is_that_of_its_pairs(noise: str, by_hand: Callable[..., Tensor]) -> None:
    rewards, ranks, mask = one_list([1.0, -2.0, 0.5, 3.0], [0, 2, 1, 1])
    pairs = [(i, j) for i in range(4) for j in range(4) if ranks[0, i] < ranks[0, j]]
    margins = torch.stack([rewards[0, i] - rewards[0, j] for i, j in pairs])
    expected = by_hand(logistic(margins, beta=0.7), logistic(-margins, beta=0.7), flip_rate=0.2).mean()
    config = {"kind": "all_pairs", "beta": 0.7, "reward": "log_prob", "noise": {"kind": noise, "flip_rate": 0.2}}
    torch.testing.assert_close(make_objective(config)(ListScores(rewards, ranks, mask))[0], expected)


class Learner(Stateful):
    def forward(self, losses: Tensor, swapped: Tensor) -> Tensor:
        return losses


def test_corrections_that_learn_of_pairs_are_refused() -> None:
    reward, ranking = REWARDS["log_prob"], RANKINGS["all_pairs"]
    with pytest.raises(OptionError, match="noise 'learner' learns of single pairs"):
        ListObjective(reward, ranking, noise=Part("learner", Learner).made())
