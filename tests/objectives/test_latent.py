from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit.errors import OptionError
from prefkit.objectives import (
    Objective,
    PairScores,
    label_confidence,
    latent_label_loss,
    make_objective,
    mean_reliabilities,
    moving_reliabilities,
    reliability_path,
    tally_labels,
)


def scores(*margins: float, annotators: list[int] | None = None) -> PairScores:
    """Pairs whose margin of log-ratios is given."""
    margin, zero = torch.tensor(margins), torch.zeros(len(margins))
    return PairScores(margin, zero, zero, zero, annotators=None if annotators is None else torch.tensor(annotators))


def latent(kind: str = "dpo", names: list[str] | None = None, **options: Any) -> Objective[PairScores]:
    config = {"kind": "latent", "per_annotator": names is not None, **options}
    objective = make_objective({"kind": kind, "beta": 1.0, "noise": config})
    objective.prepare(names or [])
    return objective


def reliabilities(objective: Objective[PairScores]) -> list[float]:
    return objective.noise.reliabilities.tolist()  # type: ignore[no-any-return,union-attr,operator]  # the part's


# p = 3/4 and eta = 0.9: w = 0.675 / (0.675 + 0.025); p = 1/4: w = 0.225 / (0.225 + 0.075)
LOG3 = 1.0986123


def test_posterior_by_bayes_rule() -> None:
    found = label_confidence(torch.tensor([LOG3, -LOG3, 0.0]), torch.full((3,), 0.9))
    torch.testing.assert_close(found, torch.tensor([27 / 28, 3 / 4, 0.9]))


def test_posterior_is_exact_far_out() -> None:
    found = label_confidence(torch.tensor([-50.0, 50.0], dtype=torch.float64), torch.full((2,), 0.9).double())
    assert found[0].item() == pytest.approx(9 * 1.928749847963918e-22, rel=1e-6)
    assert found[1].item() == 1


def test_loss_weighs_both_orders_and_lets_no_gradient_through_the_posterior() -> None:
    losses = torch.tensor([1.0], requires_grad=True)
    confidences = torch.tensor([0.8], requires_grad=True)
    loss = latent_label_loss(losses, torch.tensor([1.0 + LOG3]), confidences)
    # p = 3/4: -(0.8 log 3/4 + 0.2 log 1/4) = log 4 - 0.8 log 3
    assert loss.item() == pytest.approx(1.3862944 - 0.8 * LOG3, abs=1e-6)
    loss.sum().backward()
    assert confidences.grad is None
    # d/d losses = -(p - w) = w - p
    assert losses.grad is not None
    assert losses.grad.item() == pytest.approx(0.05, abs=1e-6)


def test_reliabilities_are_means_and_the_absent_keep_theirs() -> None:
    tallied = tally_labels(torch.tensor([0.2, 0.4, 1.0]), torch.tensor([2, 2, 0]), 3)
    old = torch.tensor([0.9, 0.8, 0.7])
    torch.testing.assert_close(mean_reliabilities(tallied, old), torch.tensor([1.0, 0.8, 0.3]))
    torch.testing.assert_close(moving_reliabilities(tallied, old, ema_alpha=0.25), torch.tensor([0.925, 0.8, 0.6]))


def test_estimation_finds_the_true_reliability_of_a_calibrated_policy() -> None:
    # Theorem 4.1: labels of reliability 0.8 on pairs whose clean label holds with probability q.
    q = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    observed = 0.8 * q + 0.2 * (1 - q)
    # In a population, an order of probability q is labelled so with probability `observed`, and otherwise reversed.
    probabilities, weights = torch.cat([q, 1 - q]), torch.cat([observed, 1 - observed])
    population = probabilities.repeat_interleave((1000 * weights).round().long())
    for start in (0.55, 0.99, 0.1):
        assert reliability_path(population, start, 400)[-1].item() == pytest.approx(0.8, abs=2e-3)


def test_preset_starts_as_label_smoothing() -> None:
    """At the reference p is one half and w the first reliability: cDPO with the complement as flip rate."""
    found, smoothed = (
        torch.autograd.grad(make_objective({"kind": kind})(replace(scores(0.0), policy_chosen_logps=x)).sum(), x)[0]
        for kind in ("lcpo", "cdpo")
        for x in [torch.zeros(1, requires_grad=True)]
    )
    torch.testing.assert_close(found, smoothed)


def test_the_posteriors_of_an_update_move_the_reliability_after_it() -> None:
    objective = latent()
    objective(scores(LOG3, -LOG3))
    torch.testing.assert_close(objective.figures()["label_confidence"], torch.tensor([27 / 28, 3 / 4]))
    assert reliabilities(objective) == pytest.approx([0.9])
    objective.after_update()
    mean = (27 / 28 + 3 / 4) / 2
    assert reliabilities(objective) == pytest.approx([0.9 * 0.9 + 0.1 * mean])
    objective.after_update()  # nothing was seen since
    assert reliabilities(objective) == pytest.approx([0.9 * 0.9 + 0.1 * mean])


def test_accumulated_batches_move_it_as_one_does() -> None:
    whole, parts = latent(), latent()
    whole(scores(1.0, -2.0, 3.0))
    for part in (scores(1.0), scores(-2.0, 3.0), scores()):
        parts(part)
    for objective in (whole, parts):
        objective.after_update()
    assert reliabilities(parts) == pytest.approx(reliabilities(whole))


def test_processes_are_summed() -> None:
    objective = latent()
    objective.prepare(total=lambda tensor: tensor + torch.tensor([[0.5], [1.0]]))  # another process saw w = 0.5
    objective(scores(0.0))
    objective.after_update()
    assert reliabilities(objective) == pytest.approx([0.9 * 0.9 + 0.1 * (0.9 + 0.5) / 2])


def test_full_updates_wait_for_the_end_of_the_pass() -> None:
    objective = latent(update="full")
    objective(scores(LOG3))
    objective.after_update(pass_ended=False)
    assert reliabilities(objective) == pytest.approx([0.9])
    objective(scores(-LOG3))
    objective.after_update(pass_ended=True)
    assert reliabilities(objective) == pytest.approx([(27 / 28 + 3 / 4) / 2])
    objective(scores(50.0))
    objective.after_update(pass_ended=True)
    assert reliabilities(objective) == pytest.approx([1.0])


def test_fixed_reliability_and_evaluation_stay() -> None:
    fixed, evaluated = latent(update="fixed"), latent().eval()
    for objective in (fixed, evaluated):
        objective(scores(-3.0))
        objective.after_update(pass_ended=True)
        assert reliabilities(objective) == pytest.approx([0.9])


def test_a_reliability_that_reached_its_end_can_come_back() -> None:
    objective = latent(update="full")
    for _ in range(2):
        objective(scores(-50.0))
        objective.after_update(pass_ended=True)
    assert reliabilities(objective) == pytest.approx([0.0], abs=1e-12)
    objective(scores(LOG3))
    objective.after_update(pass_ended=True)
    # w = 3e-4 / (3e-4 + 0.9999) with the reliability held 1e-4 from 0
    assert reliabilities(objective) == pytest.approx([3e-4 / (3e-4 + 0.9999)], rel=1e-3)


def test_annotators_are_told_apart_and_reported_by_name() -> None:
    objective = latent(names=["anna", "ben", "carl"])
    assert objective.needs == {"reference", "annotators"}
    objective(scores(LOG3, -LOG3, annotators=[1, 0]))
    objective.after_update()
    found = objective.summary()["latent"]["reliabilities"]
    assert found == pytest.approx({"anna": 0.9 * 0.9 + 0.1 * 3 / 4, "ben": 0.9 * 0.9 + 0.1 * 27 / 28})
    figures = objective.figures()
    assert figures["label_suspected"].tolist() == [0, 0]
    assert figures["label_reliability of carl"].tolist() == pytest.approx([0.9, 0.9])
    assert objective.row_figures() == ("label_confidence",)


def test_many_annotators_are_not_listed_in_every_line_of_metrics() -> None:
    objective = latent(names=[str(k) for k in range(21)])
    objective(scores(0.0, annotators=[20]))
    assert set(objective.figures()) == {"label_confidence", "label_suspected", "label_reliability"}


def test_without_annotators_none_are_asked_for() -> None:
    objective = make_objective("lcpo")
    objective.prepare()
    assert objective.needs == {"reference"}
    assert objective.summary() == {"latent": {"reliability": pytest.approx(0.9)}}


@pytest.mark.parametrize(
    ("config", "log_odds"),
    [
        ({"kind": "ipo", "beta": 0.5}, lambda s: 4 * (s.policy_chosen_logps - s.policy_rejected_logps)),
        (
            {"kind": "cpo", "regularisers": ["average_sft"], "beta": 0.5},
            lambda s: (
                0.5 * (s.policy_chosen_logps - s.policy_rejected_logps)
                + s.policy_chosen_logps / s.chosen_lengths
                - s.policy_rejected_logps / s.rejected_lengths
            ),
        ),
    ],
)
def test_other_losses_are_wrapped(config: dict[str, Any], log_odds: Any) -> None:
    pairs = PairScores(
        torch.tensor([-4.0, -9.0]),
        torch.tensor([-5.0, -7.0]),
        torch.zeros(2),
        torch.zeros(2),
        torch.tensor([2, 3]),
        torch.tensor([5, 7]),
    )
    objective = make_objective({**config, "noise": "latent"})
    delta = log_odds(pairs)
    w = torch.sigmoid(delta + torch.tensor(9.0).log())
    expected = -(w * torch.sigmoid(delta).log() + (1 - w) * torch.sigmoid(-delta).log())
    torch.testing.assert_close(objective(pairs), expected)


def test_finite_far_out_in_float32() -> None:
    margins = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], requires_grad=True)
    zero = torch.zeros(5)
    objective = latent()
    losses = objective(PairScores(margins, zero, zero, zero))
    (gradient,) = torch.autograd.grad(losses.sum(), margins)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reliability": 0.4}, "objective.reliability must be at least 0.5, got 0.4"),
        ({"reliability": 1.5}, "objective.reliability must be at most 1.0, got 1.5"),
        ({"ema_alpha": 0.0}, "objective.ema_alpha must be greater than 0.0, got 0.0"),
        ({"ema_alpha": 1.1}, "objective.ema_alpha must be at most 1.0, got 1.1"),
        ({"update": "full", "ema_alpha": 0.2}, "ema_alpha applies only to `update: ema`, not to 'full'"),
        ({"update": "never"}, "objective.update: input should be 'ema', 'full' or 'fixed'"),
        ({"clamp": 0.5}, "objective.clamp must be less than 0.5"),
    ],
)
def test_bad_options_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        make_objective({"kind": "lcpo", **options})
    assert message in str(caught.value)


def test_a_reliability_of_one_warns() -> None:
    with pytest.warns(UserWarning, match="a reliability of 1 trusts every label"):
        make_objective({"kind": "lcpo", "reliability": 1.0})


@pytest.mark.parametrize("places", [[0, 2], [-1, 0]])
def test_unknown_annotators_are_refused(places: list[int]) -> None:
    wrong = max(places) if min(places) >= 0 else -1
    with pytest.raises(OptionError, match=rf"annotators must lie in 0..1, got {wrong}; objective.prepare"):
        latent(names=["anna", "ben"])(scores(0.0, 0.0, annotators=places))


def test_missing_annotators_and_references_are_named() -> None:
    with pytest.raises(OptionError, match="objective 'dpo' needs annotators, which these PairScores lack"):
        latent(names=["anna"])(scores(0.0))
    with pytest.raises(OptionError, match="objective 'lcpo' needs ref_chosen_logps"):
        make_objective("lcpo")(replace(scores(0.0), ref_chosen_logps=None))


@pytest.mark.parametrize("loss", [torch.tensor(1.0), torch.ones(2, 1)])
def test_a_loss_that_is_not_one_value_a_pair_is_refused(loss: Tensor) -> None:
    with pytest.raises(OptionError, match=r"a pairwise loss must give one value a pair, \[batch\]"):
        latent_label_loss(loss, loss, torch.ones(2))


def test_ema_alpha_of_the_function_is_checked() -> None:
    with pytest.raises(OptionError, match=r"ema_alpha must lie in \(0, 1\], got 0"):
        moving_reliabilities(torch.ones(2, 1), torch.ones(1), ema_alpha=0)


def test_soft_labels_are_refused() -> None:
    soft = replace(scores(1.0), probabilities=torch.tensor([0.7]))
    with pytest.raises(OptionError, match="'latent' looks at pairs as they were labelled, and does not go with soft"):
        make_objective("lcpo")(soft)
