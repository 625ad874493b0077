from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives.builtin import losses, some_comparisons, train

from prefkit.errors import OptionError
from prefkit.objectives import PairScores, make_objective, value_term, vpo_loss

SCORES = PairScores(
    *(torch.tensor(x, dtype=torch.float64) for x in ([-9.0, -4.0], [-8.0, -9.0], [-7.0, -6.0], [-7.0, -7.0]))
)
PAIRS = (SCORES.policy_chosen_logps, SCORES.policy_rejected_logps, SCORES.ref_chosen_logps, SCORES.ref_rejected_logps)
CALIBRATION = (torch.tensor([-3.0, -5.0, -9.0]), torch.tensor([-4.0, -4.0, -4.0]))


def test_value_by_hand() -> None:
    pessimistic = value_term(torch.tensor([-3.0, -5.0]), torch.tensor([-4.0, -4.0]), beta=0.5, alpha=3.0, sign=-1)
    assert pessimistic.tolist() == [-1.5, 1.5]
    assert (-pessimistic).tolist() == value_term(
        torch.tensor([-3.0, -5.0]), torch.tensor([-4.0, -4.0]), beta=0.5, alpha=3.0, sign=1
    ).tolist()


def test_preset_calibrates_on_the_chosen_responses_with_the_temperature_of_its_link() -> None:
    objective = make_objective({"kind": "vpo", "beta": 0.5, "alpha": 2.0})
    # Log-ratios of the chosen responses are -2 and 2; those of the pairs differ by -1 and 4.
    expected = torch.tensor([math.log1p(math.exp(0.5)) + 2.0, math.log1p(math.exp(-2.0)) - 2.0], dtype=torch.float64)
    torch.testing.assert_close(objective(SCORES), expected)
    whole = vpo_loss(*PAIRS, PAIRS[0], PAIRS[2], beta=0.5, alpha=2.0)
    torch.testing.assert_close(objective(SCORES).mean(), whole.loss)
    assert objective.needs == {"reference"}


def test_without_strength_it_is_dpo() -> None:
    torch.testing.assert_close(make_objective({"kind": "vpo", "alpha": 0.0})(SCORES), make_objective("dpo")(SCORES))


def test_pessimism_raises_calibration_responses_and_optimism_lowers_them() -> None:
    for sign in (-1, 1):
        calibration = CALIBRATION[0].clone().requires_grad_()
        vpo_loss(*PAIRS, calibration, CALIBRATION[1], beta=0.5, alpha=2.0, sign=sign).loss.backward()
        torch.testing.assert_close(calibration.grad, torch.full((3,), sign * 2.0 * 0.5 / 3))


def test_only_the_likelihood_is_summed() -> None:
    mean, whole = (vpo_loss(*PAIRS, *CALIBRATION, alpha=1.0, reduction=reduction) for reduction in ("mean", "sum"))
    torch.testing.assert_close(whole.nll, 2 * mean.nll)
    assert whole.regulariser == mean.regulariser == pytest.approx(-0.1 * -5 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sign": 2}, "sign must be -1 .* or 1 .*, got 2"),
        ({"alpha": -1.0}, r"alpha must be at least 0, got -1\.0"),
        ({"beta": 0.0}, r"beta must be greater than 0, got 0\.0"),
        ({"reduction": "none"}, "reduction must be 'sum' or 'mean', got 'none'"),
    ],
)
def test_options_out_of_range_are_explained(change: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        vpo_loss(*PAIRS, *CALIBRATION, **change)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ((torch.zeros(0), torch.zeros(0)), "policy_cal_logps is empty"),
        ((torch.zeros(2), torch.zeros(3)), r"of one shape, got \(2,\) and \(3,\)"),
        ((torch.tensor([math.nan]), torch.zeros(1)), "must be numbers, got nan"),
    ],
)
def test_bad_calibration_sets_are_explained(calibration: tuple[torch.Tensor, torch.Tensor], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        vpo_loss(*PAIRS, *calibration)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"sign": 2}, "objective.sign: input should be -1 or 1, got 2"),
        ({"alpha": -1}, r"objective.alpha must be at least 0\.0, got -1"),
        ({"beta": 0}, r"objective.beta must be greater than 0\.0, got 0"),
    ],
)
def test_options_of_the_preset_are_explained(option: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_objective({"kind": "vpo", **option})


def test_scores_without_a_reference_are_refused() -> None:
    with pytest.raises(OptionError, match="objective 'vpo' needs ref_chosen_logps, which these PairScores lack"):
        make_objective("vpo")(replace(SCORES, ref_chosen_logps=None))


def test_it_trains_the_builtin_model_and_keeps_chosen_responses_likely(tmp_path: Path) -> None:
    records = some_comparisons()
    strong = train(tmp_path / "vpo", {"kind": "vpo", "alpha": 5.0}, records)
    plain = train(tmp_path / "dpo", "dpo", records)
    assert losses(strong)[0] == pytest.approx(math.log(2), abs=1e-3)
    assert losses(strong)[-1] < losses(strong)[0] - 0.1
    assert strong.metrics["chosen_logp_change"] > plain.metrics["chosen_logp_change"]
