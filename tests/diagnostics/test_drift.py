from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from prefkit import diagnostics as d
from prefkit.errors import OptionError, PrefkitError

EVEN = torch.full((1, 1, 3), 1 / 3)


def path(*support: float) -> d.ValueTrajectory:
    values = torch.tensor([[s, 1 - s, 0.0] for s in support], dtype=torch.float64)
    return d.ValueTrajectory(tuple(10 * i for i in range(len(support))), values, "taxes")


def test_prompts_count_alike_whatever_was_scored_of_them() -> None:
    probs = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 1, 0]], [[9.0, 9, 9], [9, 9, 9]]])
    mask = torch.tensor([[1, 1], [1, 0], [0, 0]])
    found = d.value_vector(probs, mask)
    assert found.per_prompt.tolist() == [[0.5, 0.5, 0], [0, 0, 1]]
    assert found.value.tolist() == [0.25, 0.25, 0.5]


def test_overshoot_reaches_early_and_settles_late() -> None:
    found = path(0.0, 0.5, 0.9, 0.5, 0.5).drift_times()
    assert found.first_reach[:2].tolist() == [0.25, 0.25]
    assert found.settled[:2].tolist() == [0.75, 0.75]
    assert found.first_reach[2] == 0  # nobody ever opposed
    assert path(0.0, 0.5, 0.9, 0.5, 0.5).drift_time(mode="settled")[0] == 0.75


def test_small_movements_have_no_drift_time_in_the_table() -> None:
    rows = {row[0]: row[3:] for row in path(0.5, 0.51).table().rows}
    assert rows["support"] == [pytest.approx(0.01), None, None]
    assert path(0.1, 0.5).table().rows[0][4] == 1.0


def test_a_gap_within_pairs_shows_where_means_are_alike() -> None:
    sides = torch.eye(3)[:2], torch.eye(3)[[1, 0]]
    found = d.value_gap(*sides)
    assert found.total_variation == 0
    assert found.mean_pairwise_total_variation == 1


def test_a_probe_follows_a_model() -> None:
    def generate(model: str, prompts: Sequence[str], seed: int) -> list[str]:
        return [f"{model} {prompt} {seed}" for prompt in prompts]

    def judge(topic: str, prompt: str, answer: str) -> list[float] | None:
        return None if answer.endswith("1") else [0.0, -50.0, -50.0] if "yes" in answer else [-50.0, -50.0, 0.0]

    probe = d.StanceProbe(["a", "b", "c"], ["tax", "tax", "war"], generate, judge, n_generations=2)
    probe.run("no", 0)
    found = probe.run("yes", 100)
    assert found["tax"].prompts == 2
    course = probe.trajectory("tax")
    assert course.magnitude().magnitude.tolist() == pytest.approx([1, 0, -1])
    assert course.to_frame()["step"] == [0, 100]
    assert "support" in course.plot().csv()
    with pytest.raises(PrefkitError, match="no prompt has the topic 'peace'; there are tax, war"):
        probe.trajectory("peace")


def test_failed_answers_of_a_topic_are_explained() -> None:
    probe = d.StanceProbe(["a"], ["tax"], lambda *_: ["x"], lambda *_: None)
    with pytest.raises(PrefkitError, match="topic 'tax': every answer"):
        probe.run(None, 0)


def test_synthetic_pairs_choose_a_side() -> None:
    assert d.synthetic_value_pairs(["q"], ["pro"], ["con"]) == [{"prompt": "q", "chosen": "pro", "rejected": "con"}]
    assert d.synthetic_value_pairs(["q"], ["pro"], ["con"], aligned="oppose")[0]["chosen"] == "con"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: d.stance_probabilities(torch.zeros(2, 4)), PrefkitError, "a judge gives 3 labels"),
        (lambda: d.stance_probabilities(torch.full((3,), float("-inf"))), PrefkitError, "at least one above"),
        (lambda: d.value_vector(EVEN * 2), PrefkitError, "sum to 1"),
        (lambda: d.value_vector(EVEN, torch.zeros(1, 1)), PrefkitError, "every answer of the topic was masked"),
        (lambda: d.value_gap(EVEN[0], EVEN[0, :0]), PrefkitError, "at least one pair"),
        (lambda: path(0.5), PrefkitError, "at least 2 checkpoints"),
        (lambda: d.ValueTrajectory((5, 5), EVEN[0].repeat(2, 1)), PrefkitError, "steps must increase"),
        (lambda: path(0.1, 0.2).drift_times(1.0), OptionError, "fraction must lie"),
        (lambda: d.StanceProbe(["a"], [], lambda *_: [], lambda *_: None), PrefkitError, "each prompt has one topic"),
        (lambda: d.StanceProbe(["a"], ["t"], lambda *_: [], lambda *_: None, 0), OptionError, "n_generations"),
        (lambda: d.synthetic_value_pairs(["q"], [], []), PrefkitError, "one answer of each side"),
    ],
)
def test_bad_input_is_explained(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
