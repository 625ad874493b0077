from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from prefkit.errors import OptionError
from prefkit.objectives import Objective, PairScores, beta_dpo_batch_beta, beta_dpo_filter, make_objective


def scores(*margins: float) -> PairScores:
    margin, zero = torch.tensor(margins), torch.zeros(len(margins))
    return PairScores(margin, zero, zero, zero)


def objective(**options: Any) -> Objective[PairScores]:
    return make_objective({"kind": "beta_dpo", "beta": 1.0, **options})


def test_temperature_follows_the_mean() -> None:
    margins = torch.tensor([1.0, 2.0])
    assert beta_dpo_batch_beta(margins, beta=0.1, alpha=0.6, centre=0.5).item() == pytest.approx(0.16)


def test_the_centre_takes_in_the_batch_before_it_is_used() -> None:
    margins = torch.tensor([1.0, 3.0], dtype=torch.float64)
    found = beta_dpo_filter(margins, centre=0.0, scale=1.0, momentum=0.5)
    scale = 0.5 + 0.5 * (2**0.5 + 1e-6)
    assert (found.centre.item(), found.scale.item()) == pytest.approx((1.0, scale))
    expected = torch.tensor([0.0, -4.0], dtype=torch.float64).div(2 * (scale + 1e-6) ** 2).exp()
    torch.testing.assert_close(found.scores, expected)
    torch.testing.assert_close(found.probabilities, expected / expected.sum())


def test_probabilities_of_pairs_far_out_are_numbers() -> None:
    found = beta_dpo_filter(torch.tensor([-1e4, 1e4, 0.0]), centre=0.0, scale=1e-6, momentum=0.999999)
    assert found.probabilities.isfinite().all()
    assert found.probabilities.sum().item() == pytest.approx(1)


def test_a_batch_by_hand() -> None:
    beta_dpo = objective(keep=1.0)
    losses = beta_dpo(scores(1.0, 3.0))
    # centre 0.1 * 2; b = 1 + 0.6 * (2 - 0.2)
    b = 2.08
    expected = torch.nn.functional.softplus(-b * torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(losses, expected)
    assert beta_dpo.figures()["batch_beta"].tolist() == pytest.approx([b, b])
    torch.testing.assert_close(beta_dpo.link.centre, torch.tensor(0.2))  # type: ignore[union-attr]  # the part's


def test_the_share_is_kept_and_the_mean_is_that_of_the_kept() -> None:
    beta_dpo = objective(keep=0.8)
    losses = beta_dpo(scores(*([0.0] * 11)))
    kept = beta_dpo.figures()["kept"]
    assert kept.sum() == 8  # floor(8.8)
    assert ((losses > 0) == (kept > 0)).all()
    assert losses.mean().item() == pytest.approx(0.6931472, abs=1e-6)


def test_pairs_far_from_the_centre_are_left_out_more_often() -> None:
    beta_dpo, counts = objective(keep=0.5), torch.zeros(4)
    for _ in range(400):
        beta_dpo(scores(0.0, 0.0, 2.0, -30.0))
        counts += beta_dpo.figures()["kept"]
    assert counts.sum() == 800
    assert counts[0] > counts[3] + 100


def test_the_choice_follows_from_seed_and_state() -> None:
    batch = scores(*torch.linspace(-1, 1, 20).tolist())
    first, other = objective(), objective(seed=1)
    kept = []
    for _ in range(2):
        first(batch)
        kept.append(first.figures()["kept"])
    other(batch)
    resumed = objective()
    resumed(batch)
    assert torch.equal(resumed.figures()["kept"], kept[0])
    again = objective()
    again.load_state_dict(copy.deepcopy(resumed.state_dict()))
    again(batch)
    assert torch.equal(again.figures()["kept"], kept[1])
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(other.figures()["kept"], kept[0])


def test_evaluation_keeps_every_pair_and_moves_nothing() -> None:
    beta_dpo = objective().eval()
    before = copy.deepcopy(beta_dpo.state_dict())
    assert (beta_dpo(scores(*([0.0] * 10))) > 0).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in beta_dpo.state_dict().items())


def test_one_pair_and_none() -> None:
    beta_dpo = objective()
    assert beta_dpo(scores(1.0)).isfinite().all()
    assert beta_dpo(scores()).shape == (0,)
    assert beta_dpo(scores(1e4, -1e4)).isfinite().all()


def test_the_temperature_stays_above_zero() -> None:
    beta_dpo = objective(keep=1.0)
    beta_dpo(scores(-1e3, -1e3))
    assert beta_dpo.figures()["batch_beta"].tolist() == [0, 0]


def test_noise_and_soft_labels_are_refused() -> None:
    with pytest.raises(OptionError, match=r"'batch_logistic' looks at pairs as they were labelled, .* a noise"):
        objective(noise={"kind": "robust"})(scores(1.0))
    with pytest.raises(OptionError, match=r"'batch_logistic' looks at pairs as they were labelled, .* soft labels"):
        objective()(replace(scores(1.0), probabilities=torch.tensor([0.5])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, "objective.keep must be greater than 0.0, got 0.0"),
        ({"momentum": 1.0}, "objective.momentum must be less than 1.0, got 1.0"),
        ({"alpha": -1.0}, "objective.alpha must be at least 0.0, got -1.0"),
    ],
)
def test_bad_options_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        objective(**options)
    assert message in str(caught.value)
