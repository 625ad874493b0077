from __future__ import annotations

import torch
from torch import nn

from prefkit.recipes import mapl


def test_prompts_hold_as_many_instructions_as_asked() -> None:
    data = mapl.pairs(500, (4, 6), torch.Generator().manual_seed(0))
    assert set(data.prompts.abs().sum(1).tolist()) == {4.0, 5.0, 6.0}
    assert set(data.prompts.unique().tolist()) == {-1.0, 0.0, 1.0}


class Counting(nn.Module):
    """The right answer: the number of instructions obeyed."""

    def forward(self, both: torch.Tensor) -> torch.Tensor:
        prompts, responses = both[:, : mapl.ATTRIBUTES], both[:, mapl.ATTRIBUTES :]
        return mapl.obeyed(prompts, responses).float()[:, None]


def test_the_terms_ask_for_the_right_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    data = mapl.pairs(500, (1, 2), generator)
    half = torch.log(torch.tensor(2.0))
    assert mapl.intra_terms(Counting(), *data, generator).max() < half
    model = Counting()
    own = mapl.rewards(model, data.prompts, data.first), mapl.rewards(model, data.prompts, data.second)
    assert mapl.inter_terms(model, *data, own, generator).max() < half


def test_accuracy_leaves_ties_out() -> None:
    wanted = torch.tensor([1.0, -2.0, 0.0, 3.0])
    assert mapl.accuracy(torch.tensor([0.1, 0.1, 5.0, 2.0]), wanted) == torch.tensor(2 / 3).item()
