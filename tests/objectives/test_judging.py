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
    PairScores,
    baseline_strengths,
    dpo_loss,
    judge_matrix,
    judged_comparisons,
    make_objective,
    ranked_pairs,
    spce_loss,
    strength_labels,
)

SCORE = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=torch.float64)
TRUTH = torch.sigmoid(SCORE[:, None] - SCORE)


def logits(bias: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a judge that follows the scores and favours the response shown first."""
    return (SCORE[:, None] + bias).expand(4, 4), SCORE.expand(4, 4)


def test_a_judge_without_bias_is_taken_at_its_word() -> None:
    torch.testing.assert_close(judge_matrix(*logits(0.0)), TRUTH)
    torch.testing.assert_close(judge_matrix(*logits(0.0), position_debias=False), TRUTH)
    torch.testing.assert_close(judge_matrix(*logits(0.0), temperature=2.0), torch.sigmoid((SCORE[:, None] - SCORE) / 2))


def test_showing_both_orders_takes_out_most_of_a_bias() -> None:
    both = judge_matrix(*logits(1.0))
    one = judge_matrix(*logits(1.0), position_debias=False)
    for matrix in (both, one):
        torch.testing.assert_close(matrix + matrix.T, torch.ones_like(matrix))
    assert (both - TRUTH).abs().max() < (one - TRUTH).abs().max() / 2


def test_strengths_against_a_baseline_are_its_column_of_the_matrix() -> None:
    first, second = logits(0.5)
    matrix = judge_matrix(first, second)
    found = baseline_strengths((first[:, 2], second[:, 2]), (first[2], second[2]), baseline=2)
    torch.testing.assert_close(found, matrix[:, 2])


def test_labels_from_a_bradley_terry_judge_need_one_baseline_only() -> None:
    whole, through = ranked_pairs(TRUTH), ranked_pairs(TRUTH[:, 0])
    assert whole.ranking.tolist() == through.ranking.tolist() == [2, 3, 0, 1]
    assert whole.pairs.tolist() == through.pairs.tolist()
    torch.testing.assert_close(through.labels, whole.labels)


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("best_rest", [[2, 3], [2, 0], [2, 1]]),
        ("opposite", [[2, 1], [3, 0]]),
        ("half_offset", [[2, 0], [3, 1]]),
        ("adjacent", [[2, 3], [3, 0], [0, 1]]),
        ("best_worst", [[2, 1]]),
    ],
)
def test_schemes_by_hand(scheme: Any, expected: list[list[int]]) -> None:
    assert ranked_pairs(TRUTH, scheme=scheme).pairs.tolist() == expected


def test_a_cyclic_judge_keeps_its_labels() -> None:
    cyclic = torch.tensor([[0.5, 0.9, 0.4], [0.1, 0.5, 0.7], [0.6, 0.3, 0.5]])
    found = ranked_pairs(cyclic)
    assert found.ranking.tolist() == [0, 2, 1]
    torch.testing.assert_close(found.labels, torch.tensor([0.4, 0.9, 0.3]))


@pytest.mark.parametrize(
    ("judged", "options", "message"),
    [
        (TRUTH, {"scheme": "al"}, "unknown scheme of pairs 'al'; did you mean 'all'"),
        (TRUTH, {"label": "gap_sigmod"}, "unknown label of strengths 'gap_sigmod'; did you mean 'gap_sigmoid'"),
        (TRUTH[0], {"label": "pairwise"}, "label 'pairwise' needs the judge's whole matrix"),
        (TRUTH[:1, :1], {}, "at least two responses, got 1"),
        (TRUTH + 1, {}, r"must lie in \[0, 1\]"),
        (-TRUTH[0], {}, r"must lie in \[0, 1\]"),
        (TRUTH.tril(), {}, r"the matrix must hold P\(i beats j\) = 1 - P\(j beats i\)"),
        (TRUTH[0], {"scheme": "vs_baseline"}, "needs the place of the baseline"),
        (TRUTH[0], {"scheme": "vs_baseline", "baseline": 4}, "baseline must be a place from 0 to 3, got 4"),
    ],
)
def test_bad_judgements_are_explained(judged: torch.Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ranked_pairs(judged, **options)


def test_a_judge_needs_two_responses_and_a_temperature() -> None:
    with pytest.raises(OptionError, match="a judge compares at least two responses, got 1"):
        judge_matrix(torch.zeros(1, 1), torch.zeros(1, 1))
    with pytest.raises(OptionError, match="temperature must be greater than 0, got 0"):
        judge_matrix(torch.zeros(2, 2), torch.zeros(2, 2), temperature=0)


PAIRS = torch.tensor([[-9.0, -4.0], [-8.0, -9.0], [-7.0, -6.0], [-7.0, -7.0]])


def test_certain_labels_are_dpo_and_the_optimum_has_the_labels_odds() -> None:
    torch.testing.assert_close(spce_loss(*PAIRS, torch.ones(2)), dpo_loss(*PAIRS))
    p = torch.tensor([0.7, 0.2])
    chosen = (torch.logit(p) / 0.5).requires_grad_()
    spce_loss(chosen, *torch.zeros(3, 2), p, beta=0.5).sum().backward()
    torch.testing.assert_close(chosen.grad, torch.zeros(2), rtol=0, atol=1e-7)


def test_soft_labels_are_constants_and_probabilities() -> None:
    p = torch.tensor([0.7, 0.2], requires_grad=True)
    assert not spce_loss(*PAIRS, p).requires_grad
    with pytest.raises(OptionError, match=r"soft_labels must lie in \[0, 1\]"):
        spce_loss(*PAIRS, torch.tensor([0.5, 1.5]))
    with pytest.raises(OptionError, match=r"each pair needs one soft label: got \(1,\) for \(2,\)"):
        spce_loss(*PAIRS, torch.tensor([0.5]))


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("pairwise", [0.25, 0.75]),
        ("gap", [0.625, 0.875]),
        ("bt", [1 / (1 + math.exp(-0.25)), 1 / (1 + math.exp(-0.75))]),
        ("gap_sigmoid", [1 / (1 + math.exp(-0.25)), 1 / (1 + math.exp(-0.75))]),
    ],
)
def test_labels_of_strengths_by_hand(label: Any, expected: list[float]) -> None:
    strengths = torch.tensor([1.0, 3.0])
    torch.testing.assert_close(strength_labels(strengths, label=label, scale=4.0), torch.tensor(expected))
    objective = make_objective({"kind": "osp", "label": label, "scale": 4.0})
    scores = PairScores(*PAIRS, strengths=strengths)
    torch.testing.assert_close(objective(scores), spce_loss(*PAIRS, torch.tensor(expected)))
    entropy = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in expected]
    torch.testing.assert_close(objective.figures()["label_entropy"], torch.tensor(entropy))


def test_strengths_that_give_no_probability_are_explained() -> None:
    with pytest.raises(OptionError, match=r"label 'pairwise' needs strengths from 0 to the scale of 1\.0, got 0 to 3;"):
        strength_labels(torch.tensor([0.0, 3.0]))
    with pytest.raises(OptionError, match=r"objective\.label: input should be 'pairwise', 'bt', 'gap' or"):
        make_objective({"kind": "osp", "label": "hard"})


def test_judged_pairs_become_comparisons_that_the_objective_takes() -> None:
    ranked = ranked_pairs(TRUTH)
    records = judged_comparisons("2 + 2?", ["four", "five", "4", "four"], ranked)
    # Places 3 and 0 hold the same text.
    assert [(r.responses, r.judgement.index) for r in records] == [
        (("4", "four"), 0),
        (("4", "four"), 0),
        (("4", "five"), 0),
        (("four", "five"), 0),
        (("four", "five"), 0),
    ]
    kept = [0, 1, 2, 4, 5]
    assert [r.strength for r in records] == pytest.approx(ranked.labels[kept].tolist())


def test_it_trains_the_builtin_model_and_sets_aside_what_has_no_strength(tmp_path: Path) -> None:
    records = [replace(record, strength=0.9) for record in some_comparisons(4)]
    result = train(tmp_path, "osp", [*records[:3], replace(records[3], strength=None)])
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert losses(result)[0] == pytest.approx(math.log(2), abs=1e-3)
    assert entropy < losses(result)[-1] < losses(result)[0] - 0.05
    assert result.metrics["label_entropy"] == pytest.approx(entropy, abs=1e-5)
    assert (result.rows, result.skipped) == (3, 1)
    assert json.loads((result.run.folder / "skipped.jsonl").read_text())["field"] == "strength"
