from __future__ import annotations

import torch

from prefkit.objectives import Companions, ListScores, PairScores, ResponseScores, Targets, TokenScores

# Three responses of 2, 1 and 3 tokens; token values are 10 * response + place, states twice that.
LENGTHS = torch.tensor([2, 1, 3])
LOGPS = torch.tensor([0.0, 1.0, 10.0, 20.0, 21.0, 22.0])
TOKENS = TokenScores(LOGPS, torch.tensor([0, 0, 1, 2, 2, 2]), states=2 * LOGPS[:, None])
SCORES = ResponseScores(torch.tensor([1.0, 10.0, 63.0]), LENGTHS, tokens=TOKENS)


def test_tokens_of_some_responses_in_another_order() -> None:
    found = TOKENS.of(torch.tensor([2, 0, 2]), LENGTHS)
    assert found.policy_logps.tolist() == [20, 21, 22, 0, 1, 20, 21, 22]
    assert found.response.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert found.states is not None
    assert found.states[:, 0].tolist() == [40, 42, 44, 0, 2, 40, 42, 44]
    assert found.ref_logps is None


def test_pairs_see_their_tokens_and_companions() -> None:
    targets = Targets(
        "pairs",
        torch.tensor([[2, 0]]),
        torch.tensor([0]),
        companions=torch.tensor([[1, 0, 7, 1], [2, 0, 5, 0], [0, 0, 6, 1]]),
    )
    view = targets.view(SCORES)
    assert isinstance(view, PairScores)
    assert view.chosen_tokens is not None
    assert view.chosen_tokens.policy_logps.tolist() == [20, 21, 22]
    first, second = view.companions
    assert isinstance(first, Companions)
    assert (first.policy_logps.tolist(), first.label.tolist()) == ([63], [5])
    assert (second.policy_logps.tolist(), second.label.tolist()) == ([10, 1], [7, 6])
    assert second.last_states is not None
    assert second.mean_states is not None
    assert second.last_states[:, 0].tolist() == [20, 2]
    assert second.mean_states[:, 0].tolist() == [20, 1]


def test_exchanged_pairs_exchange_their_tokens() -> None:
    view = Targets("pairs", torch.tensor([[2, 0]]), torch.tensor([0])).view(SCORES)
    assert isinstance(view, PairScores)
    assert view.swapped().chosen_tokens is view.rejected_tokens


def test_tokens_of_lists_count_places() -> None:
    targets = Targets(
        "lists", torch.tensor([[1, -1], [0, 2]]), torch.tensor([0, 1]), ranks=torch.zeros(2, 2, dtype=torch.long)
    )
    view = targets.view(SCORES)
    assert isinstance(view, ListScores)
    assert view.tokens is not None
    assert view.tokens.response.tolist() == [0, 2, 2, 3, 3, 3]
    assert view.tokens.policy_logps.tolist() == [10, 0, 1, 20, 21, 22]
