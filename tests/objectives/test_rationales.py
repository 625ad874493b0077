from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives.builtin import losses, some_comparisons, train

from prefkit.errors import OptionError
from prefkit.objectives import (
    Companions,
    PairScores,
    make_objective,
    rationale_dpo_loss,
    rationale_loss,
    rationale_orpo_loss,
    rationale_simpo_loss,
)

PAIRS = torch.tensor([[-9.0, -4.0], [-8.0, -9.0], [-7.0, -6.0], [-7.0, -7.0]])
LENGTHS = torch.tensor([4, 2]), torch.tensor([3, 5])
# The rationales stand in another order than the pairs.
RATIONALES = Companions(torch.tensor([-6.0, -20.0]), torch.tensor([3, 5]), torch.tensor([1, 0]), torch.tensor([0, 0]))
SCORES = PairScores(*PAIRS, *LENGTHS, companions=(RATIONALES,))


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("nll_mean", [1.0, 2.0]),
        ("nll_sum", [3.0, 10.0]),
        ("softplus", [math.log1p(math.exp(3.0)), math.log1p(math.exp(10.0))]),
        ("softplus_mean", [math.log1p(math.exp(1.0)), math.log1p(math.exp(2.0))]),
    ],
)
def test_terms_by_hand(term: Any, expected: list[float]) -> None:
    found = rationale_loss(RATIONALES.policy_logps, RATIONALES.lengths, rationale_weight=0.5, rationale_term=term)
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("method", ["dpo", "orpo", "simpo"])
def test_presets_add_each_pairs_rationale_to_its_loss(method: str) -> None:
    objective = make_objective({"kind": f"rationale_{method}", "rationale_weight": 0.5})
    torch.testing.assert_close(objective(SCORES) - make_objective(method)(SCORES), torch.tensor([2.0, 1.0]))
    assert objective.figures()["rationale_nll"].tolist() == [4.0, 2.0]


def test_functions_are_the_presets() -> None:
    logps, lengths = torch.tensor([-20.0, -6.0]), torch.tensor([5, 3])
    dpo = rationale_dpo_loss(*PAIRS, logps, lengths)
    torch.testing.assert_close(make_objective("rationale_dpo")(SCORES), dpo)
    orpo = rationale_orpo_loss(*PAIRS[:2], logps, *LENGTHS, lengths)
    torch.testing.assert_close(make_objective("rationale_orpo")(SCORES), orpo)
    simpo = rationale_simpo_loss(*PAIRS[:2], logps, *LENGTHS, lengths)
    torch.testing.assert_close(make_objective("rationale_simpo")(SCORES), simpo)
    shared = rationale_orpo_loss(*PAIRS[:2], logps, *LENGTHS, lengths, torch.tensor(1.5))
    own = -PAIRS[0] / LENGTHS[0]
    torch.testing.assert_close(shared - orpo, 1.5 - own)


def test_a_soft_label_leaves_the_rationale_alone() -> None:
    objective, plain = make_objective("rationale_dpo"), make_objective("dpo")
    half = replace(SCORES, probabilities=torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(objective(half) - plain(half), objective(SCORES) - plain(SCORES))


def test_scores_without_companions_are_refused() -> None:
    with pytest.raises(OptionError, match="objective 'rationale_dpo' needs companions"):
        make_objective("rationale_dpo")(replace(SCORES, companions=None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rationale_weight": -1.0}, r"rationale_weight must be at least 0, got -1\.0"),
        ({"rationale_term": "nll"}, "unknown rationale_term 'nll'"),
        ({"policy_rationale_logps": torch.tensor([1.0, -1.0])}, "policy_rationale_logps must be at most 0, got 1"),
        ({"policy_rationale_logps": torch.tensor([-1.0])}, r"of one shape, got \(2,\), \(1,\) and \(2,\)"),
    ],
)
def test_bad_values_are_explained(change: dict[str, Any], message: str) -> None:
    logps = change.pop("policy_rationale_logps", torch.tensor([-20.0, -6.0]))
    with pytest.raises(OptionError, match=message):
        rationale_dpo_loss(*PAIRS, logps, torch.tensor([5, 3]), **change)


def test_odds_need_probabilities_below_1() -> None:
    certain = torch.tensor([0.0, -1.0])
    with pytest.raises(OptionError, match="policy_chosen_logps must be less than 0, where odds are finite, got 0"):
        rationale_orpo_loss(certain, PAIRS[1], PAIRS[1], *LENGTHS, LENGTHS[0])


def test_options_of_the_preset_are_explained() -> None:
    with pytest.raises(OptionError, match=r"objective\.rationale_weight must be at least 0"):
        make_objective({"kind": "rationale_dpo", "rationale_weight": -1})
    with pytest.raises(OptionError, match=r"objective\.order: input should be 'chosen_first' or 'random'"):
        make_objective({"kind": "rationale_dpo", "order": "rejected_first"})


@pytest.mark.parametrize("order", ["chosen_first", "random"])
def test_it_trains_the_builtin_model_and_sets_aside_what_has_no_rationale(tmp_path: Path, order: str) -> None:
    records = some_comparisons(3, rationale="It answers the question.")
    bare = some_comparisons(4)[3]
    result = train(tmp_path, {"kind": "rationale_dpo", "order": order}, [*records, bare])
    assert losses(result)[-1] < losses(result)[0] - 0.5
    first, last = (result.run.metrics[place]["rationale_nll"] for place in (0, -1))
    assert last < first - 0.3
    assert (result.rows, result.skipped) == (3, 1)
    skipped = json.loads((result.run.folder / "skipped.jsonl").read_text())
    assert skipped["field"] == "rationale"
