from __future__ import annotations

import torch

from prefkit.recipes import vpo


def test_pairs_hold_two_different_responses_that_the_reference_gives() -> None:
    reward, reference = torch.tensor([0.0, 5.0, 0.0], dtype=torch.float64), torch.tensor([0.5, 0.5, 0.0]).double()
    chosen, rejected = vpo.pairs(reward, reference, torch.Generator().manual_seed(0))
    assert (chosen + rejected == 1).all()
    assert 100 < len(chosen) < 200  # half of 300
    assert (chosen == 1).double().mean() > 0.95


def test_pessimism_keeps_the_reward_that_dpo_loses() -> None:
    # The one tail response that was seen won by luck.
    reward, log_ref = torch.tensor([1.0, -1.0, -1.0]).double(), torch.tensor([0.8, 0.1, 0.1]).double().log()
    chosen, rejected = torch.tensor([0] * 19 + [1]), torch.tensor([2] * 19 + [0])
    plain, pessimistic = (vpo.train(alpha, reward, log_ref, chosen, rejected) for alpha in (0.0, 30.0))
    assert pessimistic[400] > plain[400] + 0.5
