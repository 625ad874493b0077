from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives.builtin import losses, some_comparisons, train

from prefkit.errors import OptionError
from prefkit.objectives import Companions, PairScores, inter_loss, intra_loss, levels_loss, make_objective

PAIRS = torch.tensor([[-9.0, -4.0], [-8.0, -9.0], [-7.0, -6.0], [-7.0, -7.0]])
INDEX = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def texts(ratios: list[float], entry: Any, label: list[int]) -> Companions:
    ref = torch.full((len(ratios),), -5.0)
    lengths = torch.ones(len(ratios), dtype=torch.long)
    return Companions(ref + torch.tensor(ratios), lengths, torch.as_tensor(entry), torch.tensor(label), ref)


INTRA = texts([1.0, 0.5, -1.0, 2.0, 0.0, 0.0, 50.0, -50.0], INDEX, [0, 1, 2, 3] * 2)
# The first pair has a stronger new prompt, the second a weaker one.
INTER = texts([3.0, 1.0, 2.0, 1.0], [0, 0, 1, 1], [0, 1, 2, 3])
SCORES = PairScores(*PAIRS, companions=(INTRA, INTER))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def objective(**options: Any) -> Any:
    return make_objective({"kind": "mapl", "beta": 0.5, **options})


def test_intra_term_is_the_mean_over_both_responses() -> None:
    found = objective(inter_weight=0.0)(SCORES) - make_objective({"kind": "dpo", "beta": 0.5})(SCORES)
    first = (softplus(-0.25) + softplus(1.5)) / 2
    second = (math.log(2) + softplus(-50.0)) / 2
    torch.testing.assert_close(found, torch.tensor([first, second]))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # Margins of the pairs under their own prompts are -1 and 4, under the new ones 2 and 1.
        ("difference", [softplus(-0.5 * 3), softplus(-0.5 * 3)]),
        ("pairwise", [softplus(-0.5 * 2), softplus(-0.5 * 1)]),
    ],
)
def test_inter_term_by_hand(mode: str, expected: list[float]) -> None:
    found = objective(intra_weight=0.0, inter_mode=mode)(SCORES) - make_objective({"kind": "dpo", "beta": 0.5})(SCORES)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_pair_without_a_new_prompt_adds_nothing() -> None:
    dpo = make_objective({"kind": "dpo", "beta": 0.5})(SCORES)
    alone = replace(SCORES, companions=(INTRA, texts([3.0, 1.0], [0, 0], [0, 1])))
    found = objective(intra_weight=0.0)(alone) - dpo
    torch.testing.assert_close(found, torch.tensor([softplus(-1.5), 0.0]))
    nobody = objective(intra_weight=0.0)(replace(SCORES, companions=(INTRA,))) - dpo
    assert nobody.tolist() == [0.0, 0.0]


def test_losses_of_reward_models_by_hand() -> None:
    a, b, c, d = (torch.tensor([x]) for x in (2.0, 1.0, 0.5, 1.5))
    assert intra_loss(a, b).item() == pytest.approx(softplus(-1.0))
    assert inter_loss(a, b, c, d).item() == pytest.approx(softplus(-2.0))
    assert inter_loss(a, b, inter_mode="pairwise").item() == pytest.approx(softplus(-1.0))
    joint = levels_loss(torch.tensor([1.0, 3.0]), torch.tensor([4.0]), torch.tensor([6.0]), intra_weight=0.5)
    assert [value.item() for value in joint] == [2.0, 4.0, 6.0, 10.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: inter_loss(x, x), "'difference' needs the rewards under the weak prompt; or use 'pairwise'"),
        (lambda x: inter_loss(x, x, x, x, inter_mode="pair"), "unknown inter_mode 'pair'"),
        (lambda x: intra_loss(x, x[:1]), r"of one shape, got \(2,\), \(1,\)"),
        (lambda x: levels_loss(x, x, x, inter_weight=-1.0), r"inter_weight must be at least 0, got -1\.0"),
        (lambda x: objective(intra_weight=-1), r"objective\.intra_weight must be at least 0"),
        (lambda x: objective(inter_mode="pair"), r"objective\.inter_mode: input should be 'difference' or 'pairwise'"),
        (lambda x: objective(instructions=0), r"objective\.instructions must be at least 1"),
    ],
)
def test_bad_values_are_explained(call: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call(torch.zeros(2))


def test_what_scores_lack_is_named() -> None:
    assert objective().needs == {"reference"}
    with pytest.raises(OptionError, match="objective 'mapl' needs companions"):
        objective()(replace(SCORES, companions=None))
    with pytest.raises(OptionError, match="need the reference's scores of their companions"):
        objective()(replace(SCORES, companions=(replace(INTRA, ref_logps=None), INTER)))


@pytest.mark.parametrize("mode", ["difference", "pairwise"])
def test_it_trains_the_builtin_model(tmp_path: Path, mode: str) -> None:
    result = train(tmp_path, {"kind": "mapl", "inter_mode": mode, "instructions": 2}, some_comparisons(3))
    assert 2 * math.log(2) - 0.01 < losses(result)[0] < 3 * math.log(2) + 0.01
    assert losses(result)[-1] < losses(result)[0] - 0.1
    assert (result.rows, result.skipped) == (3, 0)
