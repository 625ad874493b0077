from __future__ import annotations

import torch

from prefkit.recipes import rationales


def test_pairs_differ_in_the_attribute_that_the_prompt_asks_for() -> None:
    generator = torch.Generator().manual_seed(0)
    attribute = torch.randint(6, (60,), generator=generator)
    value = torch.randint(2, (60,), generator=generator)
    data = rationales.pairs(attribute, value, 30, generator)
    rows = torch.arange(1800)
    asked = attribute[data.prompts]
    assert (data.chosen[rows, asked] == data.rationales).all()
    assert (data.rejected[rows, asked] == (data.rationales ^ 1)).all()
    assert (data.chosen // 2 == torch.arange(6)).all()
    assert 0.4 < (data.chosen == data.rejected).float().mean() < 0.45  # 5 of 12 attributes


def test_a_model_that_did_not_change_orders_nothing() -> None:
    model = rationales.Model()
    data = rationales.pairs(torch.zeros(60).long(), torch.ones(60).long(), 1, torch.Generator())
    assert rationales.accuracy(model, model, data) == 0.5
    torch.testing.assert_close(model().exp().sum(2), torch.ones(60, 7))
