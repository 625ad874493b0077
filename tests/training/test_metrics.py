from __future__ import annotations

import torch

from prefkit.objectives import PairScores
from prefkit.training.metrics import Meter, measure

NAN = float("nan")


def test_pairs_that_changed_sides_and_displacement() -> None:
    scores = PairScores(
        torch.tensor([-5.0, -5.0, -9.0, -9.0]),
        torch.tensor([-6.0, -9.0, -8.0, -8.0]),
        torch.tensor([-4.0, -6.0, -4.0, -9.0]),
        torch.tensor([-3.0, -8.0, -5.0, -8.0]),
    )
    found = measure(scores, torch.zeros(4), None)
    assert found["ranking_accuracy"].tolist() == [1, 1, 0, 0]
    assert found["chosen_fell"].tolist() == [1, 0, 1, 0]
    assert found["both_fell"].tolist() == [1, 0, 1, 0]
    # The reference ranks the second and the third pair rightly, the others wrongly.
    torch.testing.assert_close(found["put_right"], torch.tensor([1, NAN, NAN, 0]), equal_nan=True)
    torch.testing.assert_close(found["spoilt"], torch.tensor([NAN, 0, 1, NAN]), equal_nan=True)
    meter = Meter()
    meter.add(found)
    assert meter.means()["put_right"] == 0.5


def test_without_a_reference_or_of_rewards_nothing_moved() -> None:
    plain = PairScores(torch.tensor([-1.0]), torch.tensor([-2.0]))
    assert "chosen_fell" not in measure(plain, torch.zeros(1), None)
    assert "ranking_accuracy" not in measure(plain, torch.zeros(1), None, "reward")
