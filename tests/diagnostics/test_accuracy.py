from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from prefkit.diagnostics.accuracy import (
    LABELS,
    implicit_rewards,
    kl_estimate,
    pair_figures,
    ranking_wins,
    summarise,
    win_rate,
    wins,
)
from prefkit.errors import OptionError, PrefkitError
from prefkit.objectives import PairScores


def test_a_tie_counts_half() -> None:
    assert wins([-1.0, -2.0, -3.0], [-2.0, -2.0, -1.0]).tolist() == [1.0, 0.5, 0.0]


def test_length_decides_between_summed_and_per_token() -> None:
    # -4 nats over 4 tokens against -3 nats over 2: less likely as a whole, more likely a token.
    assert ranking_wins([-4.0], [-3.0]).tolist() == [0.0]
    assert ranking_wins([-4.0], [-3.0], [4], [2]).tolist() == [1.0]


def test_implicit_reward_is_the_scaled_log_ratio() -> None:
    assert implicit_rewards([-2.0, -5.0], [-3.0, -4.5], beta=0.1) == pytest.approx([0.1, -0.05])


def scores(**more: torch.Tensor) -> PairScores:
    return PairScores(torch.tensor([-4.0, -1.0]), torch.tensor([-3.0, -6.0]), **more)


def test_figures_of_pairs_by_hand() -> None:
    lengths = {"chosen_lengths": torch.tensor([4, 1]), "rejected_lengths": torch.tensor([2, 3])}
    refs = {"ref_chosen_logps": torch.tensor([-5.0, -0.5]), "ref_rejected_logps": torch.tensor([-3.0, -7.0])}
    found = pair_figures(scores(**lengths, **refs), beta=0.5)
    assert {name: values.tolist() for name, values in found.items()} == {
        "ranking_accuracy": [0.0, 1.0],
        "ranking_accuracy_per_token": [1.0, 1.0],
        "reward_accuracy": [1.0, 0.0],
        "reward_margin": [0.5, -0.75],
        "chosen_logp_change": [1.0, -0.5],
        "rejected_logp_change": [0.0, 1.0],
    }
    assert set(found) == set(LABELS)


def test_without_reference_or_lengths_nothing_is_made_up() -> None:
    assert list(pair_figures(scores())) == ["ranking_accuracy"]


def test_summary_counts_prompts_as_units() -> None:
    found = summarise({"a": np.array([1.0, 1.0, 1.0, 0.0])}, ["p", "p", "p", "q"], np.random.default_rng(0))["a"]
    assert (found.mean, found.n) == (0.75, 2)
    assert (found.low, found.high) == (0.0, 1.0)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_both_estimators_have_the_divergence_as_their_mean(estimator: str) -> None:
    # Responses drawn from p = (1/2, 1/4, 1/4), each as often as its probability says, so that the mean is exact.
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.2, 0.2, 0.6])
    drawn = [0, 0, 1, 2]
    found = kl_estimate(np.log(p[drawn]), np.log(q[drawn]), estimator=estimator)
    assert found.mean == pytest.approx(float((p * np.log(p / q)).sum()))


def test_k3_is_never_negative_and_k1_may_be() -> None:
    policy, ref = np.log([0.5, 0.5]), np.log([0.6, 0.7])
    assert kl_estimate(policy, ref, estimator="k3").low > 0
    assert kl_estimate(policy, ref).high < 0


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: wins([1.0], [math.nan]), "scores 0 must be finite numbers, got 1.0 and nan"),
        (lambda: wins([1.0, 2.0], [1.0]), "two flat lists of one length"),
        (lambda: ranking_wins([1.0], [1.0], [1]), "lengths of both responses"),
        (lambda: ranking_wins([1.0], [1.0], [1], [0]), "at least one token"),
        (lambda: kl_estimate([-2000.0], [-1.0], estimator="k3"), "too far apart .* use k1"),
    ],
)
def test_what_cannot_be_measured_is_an_error(measure, message) -> None:
    with pytest.raises(PrefkitError, match=message):
        measure()


def test_beta_out_of_range_is_an_error() -> None:
    with pytest.raises(OptionError, match="beta must be greater than 0, got 0"):
        implicit_rewards([1.0], [1.0], beta=0)


def test_a_tie_is_half_a_win_in_the_win_rate() -> None:
    assert win_rate(3, 2, 5) == 40.0
    assert win_rate(0, 1, 0) == 50.0


@pytest.mark.parametrize("counts", [(0, 0, 0), (5, -1, 0)])
def test_win_rate_of_nothing_is_an_error(counts: tuple[int, int, int]) -> None:
    with pytest.raises(OptionError, match="must be counts with a sum of at least 1"):
        win_rate(*counts)
