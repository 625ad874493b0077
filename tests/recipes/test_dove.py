from __future__ import annotations

import pytest
import torch

from prefkit.recipes import dove


def test_pairs_are_within_or_across_instructions() -> None:
    reward = torch.zeros(dove.INSTRUCTIONS, dove.RESPONSES, dtype=torch.float64)
    for across in (False, True):
        found = dove.pairs(reward, 500, across, torch.Generator().manual_seed(0))
        chosen, rejected = found.unbind(1)
        assert ((chosen[:, 0] != rejected[:, 0]) == across).all()
        assert across or (chosen[:, 1] != rejected[:, 1]).all()


def test_the_better_side_is_chosen_where_the_rewards_are_far_apart() -> None:
    reward = 100.0 * torch.arange(dove.INSTRUCTIONS * dove.RESPONSES, dtype=torch.float64).view(dove.INSTRUCTIONS, -1)
    chosen, rejected = dove.pairs(reward, 200, True, torch.Generator().manual_seed(0)).unbind(1)
    assert (chosen[:, 0] > rejected[:, 0]).all()


def test_log_probabilities_are_those_of_the_two_tables() -> None:
    tables = (torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.tensor([[0.0, 0.0]] * 4))
    found = dove.logps(tables, torch.tensor([[[0, 1], [2, 0]]]))
    torch.testing.assert_close(found.exp(), torch.tensor([[[0.25, 0.25]], [[0.5, 0.5]]]))


def test_scoring_the_instructions_changes_training_only_across_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dove, "STEPS", 20)
    generator = torch.Generator().manual_seed(0)
    tables = (torch.randn(dove.INSTRUCTIONS), torch.randn(dove.INSTRUCTIONS, dove.RESPONSES))
    reward = torch.randn(dove.INSTRUCTIONS, dove.RESPONSES, dtype=torch.float64)
    for across in (False, True):
        found = dove.pairs(reward, 20, across, generator)
        same = torch.equal(dove.fit(tables, found, prompts=True), dove.fit(tables, found, prompts=False))
        assert same != across
