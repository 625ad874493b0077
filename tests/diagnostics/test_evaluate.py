from __future__ import annotations

import json

import pytest
from tests.diagnostics.words import PAIRS, WordScorer, pair

from prefkit.comparisons import Comparison, Label, Probability, Ratings
from prefkit.diagnostics import before_after, evaluate
from prefkit.errors import OptionError, PrefkitError
from prefkit.objectives import Scorer


def three() -> Comparison:
    return Comparison(("p",), ("a", "bbb", "cc"), Ratings((3.0, 2.0, 1.0)))


def test_figures_by_hand() -> None:
    scorer = WordScorer()
    assert isinstance(scorer, Scorer)
    found = evaluate(scorer, iter(PAIRS), reference=True, batch_size=2, beta=0.5)
    assert {name: values.tolist() for name, values in found.figures.items()} == {
        "ranking_accuracy": [1.0, 0.0, 0.5],
        "ranking_accuracy_per_token": [1.0, 1.0, 0.0],
        "reward_accuracy": [1.0, 1.0, 0.0],
        "reward_margin": [1.0, 1.0, -2.0],
        "chosen_logp_change": [2.0, 0.0, 1.0],
        "rejected_logp_change": [0.0, -2.0, 5.0],
    }
    assert found.summary["ranking_accuracy"].mean == 0.5
    assert found.summary["ranking_accuracy"].n == 2  # prompts
    assert (found.comparisons, found.ties, found.skipped) == (3, 0, ())


def test_without_reference_the_reference_is_not_asked() -> None:
    scorer = WordScorer()
    scorer.reference = pytest.fail
    assert set(evaluate(scorer, PAIRS).summary) == {"ranking_accuracy", "ranking_accuracy_per_token"}


def test_batches_do_not_change_the_figures() -> None:
    one, all_ = WordScorer(), WordScorer()
    first, second = evaluate(one, PAIRS, batch_size=1), evaluate(all_, PAIRS, batch_size=8)
    assert first.summary == second.summary
    assert (one.batches, all_.batches) == ([1, 1, 1], [3])


def test_rows_say_where_each_pair_stands() -> None:
    rows = evaluate(WordScorer(), PAIRS).pairs_table()
    first = dict(zip(rows.columns, rows.rows[0], strict=True))
    assert (first["source"], first["line"], first["chosen"], first["rejected"]) == ("x.jsonl", 1, 0, 1)
    assert (first["policy_chosen_logps"], first["policy_rejected_logps"]) == (-2.0, -4.0)
    assert (first["chosen_lengths"], first["ranking_accuracy"]) == (1, 1.0)


def test_two_responses_of_one_row_are_told_apart_by_index() -> None:
    first, second = (evaluate(WordScorer(), [pair("a", "b")]), evaluate(WordScorer(), [three()]))
    assert [place[2:] for place in first.places] == [(0, 1)]
    assert [place[2:] for place in second.places] == [(0, 1), (0, 2), (1, 2)]


def test_lists_give_pairs_by_the_chosen_strategy() -> None:
    assert evaluate(WordScorer(), [three()]).figures["ranking_accuracy"].tolist() == [1.0, 1.0, 0.0]
    assert evaluate(WordScorer(), [three()], strategy="best_worst").figures["ranking_accuracy"].tolist() == [1.0]


def test_a_soft_label_counts_for_its_more_probable_side() -> None:
    soft = Comparison(("p",), ("aaaa", "b"), Probability(0.2))
    assert evaluate(WordScorer(), [soft]).figures["ranking_accuracy"].tolist() == [1.0]


def test_what_cannot_be_used_is_set_aside_with_place_and_reason() -> None:
    bad = pair("unreadable", "b", source="x.jsonl", line=7)
    alone = Comparison(("p",), ("a",), Label(True), source="x.jsonl", line=8)
    tie = Comparison(("p",), ("a", "b"), Probability(0.5))
    found = evaluate(WordScorer(), [bad, PAIRS[0], alone, tie])
    assert (found.comparisons, found.ties, len(found.skipped)) == (4, 1, 2)
    assert str(found.skipped[0]) == "x.jsonl:7: field 'responses': the response is unreadable"
    assert str(found.skipped[1]).startswith("x.jsonl:8: ")


def test_nothing_to_evaluate_is_an_error_that_says_why() -> None:
    bad = pair("unreadable", "b", source="x.jsonl", line=7)
    with pytest.raises(PrefkitError, match=r"0 without a preferred response, 1 set aside; the first .* x\.jsonl:7"):
        evaluate(WordScorer(), [bad])
    with pytest.raises(PrefkitError, match="no comparison can be evaluated"):
        evaluate(WordScorer(), [])


def test_a_score_that_is_not_finite_names_the_row() -> None:
    with pytest.raises(PrefkitError, match=r"x\.jsonl:1: the policy gives a response the log-probability -inf"):
        evaluate(WordScorer(price=float("inf")), PAIRS)


def test_batch_size_out_of_range() -> None:
    with pytest.raises(OptionError, match="batch_size must be at least 1, got 0"):
        evaluate(WordScorer(), PAIRS, batch_size=0)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_is_put_back(training: bool) -> None:
    scorer = WordScorer().train(training)
    evaluate(scorer, PAIRS)
    assert scorer.modes == {False}
    assert scorer.training is training


def test_summary_as_table_and_json() -> None:
    found = evaluate(WordScorer(), PAIRS)
    rows = {row[0]: row[1] for row in found.table().rows}
    assert rows["ranking accuracy"] == found.summary["ranking_accuracy"]
    assert (rows["pairs"], rows["prompts"], rows["comparisons set aside"]) == (3, 2, 0)
    stored = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert stored["summary"]["ranking_accuracy"]["mean"] == 0.5
    assert (stored["pairs"], stored["prompts"], stored["skipped"]) == (3, 2, [])


def test_before_and_after_are_compared_pair_by_pair() -> None:
    # Dearer words double every margin but turn no order around: the accuracy changes by exactly nothing.
    before, after = (evaluate(WordScorer(price), PAIRS, reference=True) for price in (1.0, 2.0))
    rows = {row[0]: row[1:] for row in before_after(before, after).rows}
    first, second, change = rows["ranking accuracy"]
    assert first == second
    assert (change.mean, change.low, change.high) == (0.0, 0.0, 0.0)
    assert rows["chosen log-prob change (nats)"][2].mean == pytest.approx((-2 - 8 - 3) / 3)


def test_before_may_lack_the_reference() -> None:
    before, after = evaluate(WordScorer(), PAIRS), evaluate(WordScorer(), PAIRS, reference=True)
    rows = {row[0]: row[1:] for row in before_after(before, after).rows}
    assert rows["reward accuracy"] == [None, after.summary["reward_accuracy"], None]


def test_evaluations_of_different_comparisons_are_not_compared() -> None:
    with pytest.raises(PrefkitError, match="evaluate both on the same file"):
        before_after(evaluate(WordScorer(), PAIRS), evaluate(WordScorer(), PAIRS[:2]))
