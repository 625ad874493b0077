from __future__ import annotations

import math

import pytest
import torch

from prefkit.recipes import osp


def test_divergence_by_hand() -> None:
    certain, even = torch.tensor([[1.0, 0.0]]).add(1e-12).log(), torch.tensor([[0.5, 0.5]]).log()
    assert osp.divergence(certain, even) == pytest.approx(math.log(2))
    assert osp.divergence(even, even) == 0


def test_soft_labels_of_equal_responses_leave_a_policy_where_it_was() -> None:
    log_ref = torch.zeros(osp.PROMPTS, osp.RESPONSES, dtype=torch.float64).log_softmax(1)
    policy = osp.train("soft labels", torch.zeros_like(log_ref), log_ref, torch.Generator().manual_seed(0))
    torch.testing.assert_close(policy, log_ref)
