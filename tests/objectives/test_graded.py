from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit.comparisons import Comparison, Ratings, RecordError, Winner, WithSteps
from prefkit.errors import OptionError, PrefkitError
from prefkit.language import load_scorer
from prefkit.objectives import (
    ListScores,
    TokenScores,
    adaptive_step_score,
    adaptive_step_weights,
    graded_loss,
    make_objective,
    rank_positions,
    step_scores,
)
from prefkit.training import TrainingOptions, fit


def by_hand(rewards: list[float], values: list[float], beta: float, base: float = math.e) -> float:
    """Eqs. 7 and 8, pair by pair."""
    scaled = [beta * reward for reward in rewards]
    order = sorted(range(len(rewards)), key=lambda i: -scaled[i])
    place = {i: order.index(i) + 1 for i in order}
    total = 0.0
    for i in range(len(rewards)):
        for j in range(len(rewards)):
            if values[i] > values[j]:
                gain = abs(2 ** values[i] - 2 ** values[j])
                discount = abs(1 / math.log(1 + place[i], base) - 1 / math.log(1 + place[j], base))
                total += gain * discount * math.log1p(math.exp(scaled[j] - scaled[i]))
    return total


REWARDS = [[0.3, -1.0, 2.0, 0.7], [1.5, -0.5, 0.2, 9.0]]
VALUES = [[100.0, 40.0, 40.0, -80.0], [-20.0, 95.0, 10.0, 0.0]]
MASK = torch.tensor([[True] * 4, [True, True, True, False]])


@pytest.mark.parametrize("base", [math.e, 2.0])
def test_list_ranking_agrees_with_loops(base: float) -> None:
    found = graded_loss(
        torch.tensor(REWARDS, dtype=torch.float64),
        torch.tensor(VALUES, dtype=torch.float64),
        MASK,
        beta=0.7,
        log_base=base,
    )
    for row, n in enumerate((4, 3)):
        values = [(value + 100) / 200 for value in VALUES[row][:n]]
        assert found[row].item() == pytest.approx(by_hand(REWARDS[row][:n], values, 0.7, base))


def test_two_responses_of_weight_one_are_dpo() -> None:
    rewards, values = torch.tensor([[3.0, 1.0]]), torch.tensor([[5.0, 1.0]])
    loss = graded_loss(rewards, values, torch.ones(1, 2, dtype=torch.bool), beta=0.5, weighted=False)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.0)))


@pytest.mark.parametrize("values", [[[7.0]], [[7.0, 7.0, 7.0]]])
def test_nothing_to_compare_costs_nothing(values: list[list[float]]) -> None:
    rated = torch.tensor(values)
    assert graded_loss(torch.randn(rated.shape), rated, torch.ones_like(rated, dtype=torch.bool)).item() == 0


def test_positions_are_those_of_the_present_policy() -> None:
    rewards = torch.tensor([[1.0, 3.0, 3.0, 9.0]])
    assert rank_positions(rewards, torch.tensor([[True, True, True, False]])).tolist() == [[3, 1, 2, 4]]


@pytest.mark.parametrize("size", [50.0, 1000.0])
def test_large_margins_stay_finite(size: float) -> None:
    rewards = torch.tensor([[-size, size, 0.0]], requires_grad=True)
    loss = graded_loss(rewards, torch.tensor([[100.0, -100.0, 0.0]]), torch.ones(1, 3, dtype=torch.bool))
    loss.sum().backward()
    assert rewards.grad is not None
    assert torch.isfinite(loss).all()
    assert torch.isfinite(rewards.grad).all()
    # Exchanging the two ends would mend the ranking: pushing them apart costs, pulling them together helps.
    assert rewards.grad[0, 0] < 0 < rewards.grad[0, 1]


def tokens(steps: list[list[int]], seed: int = 0) -> TokenScores:
    generator = torch.Generator().manual_seed(seed)
    count = sum(map(len, steps))
    return TokenScores(
        torch.randn(count, generator=generator, dtype=torch.float64),
        torch.tensor([place for place, own in enumerate(steps) for _ in own]),
        ref_logps=torch.randn(count, generator=generator, dtype=torch.float64),
        states=torch.randn(count, 3, generator=generator, dtype=torch.float64),
        steps=torch.tensor([step for own in steps for step in own]),
    )


def lists(given: TokenScores, values: list[list[float]], mask: Tensor | None = None) -> ListScores:
    rated = torch.tensor(values, dtype=torch.float64)
    assert given.ref_logps is not None

    def summed(logps: Tensor) -> Tensor:
        return torch.zeros(rated.numel(), dtype=torch.float64).index_add(0, given.response, logps).view_as(rated)

    return ListScores(
        summed(given.policy_logps),
        torch.zeros(rated.shape, dtype=torch.long),
        torch.ones_like(rated, dtype=torch.bool) if mask is None else mask,
        ref_logps=summed(given.ref_logps),
        ratings=rated,
        tokens=given,
    )


def test_margins_of_steps_by_hand() -> None:
    given = tokens([[0, 0, 1], [0, 1, 1]])
    assert given.states is not None
    assert given.ref_logps is not None
    ratio, states = given.policy_logps - given.ref_logps, given.states
    margin = 0.0
    for mine, other in (([0, 1], [3]), ([2], [4, 5])):
        cosine = torch.cosine_similarity(states[mine].mean(0), states[other].mean(0), dim=0)
        margin += (1 + cosine) * (ratio[mine].sum() - ratio[other].sum())
    expected = torch.nn.functional.softplus(-0.5 * torch.as_tensor(margin))
    found = make_objective({"kind": "tpo", "weighted": False})(lists(given, [[50.0, -50.0]]))
    assert found.item() == pytest.approx(expected.item())


def test_equal_steps_double_the_margin_of_list_ranking() -> None:
    given = tokens([[0, 1], [0, 1], [0, 1]])
    same = torch.ones(6, 3, dtype=torch.float64)
    scores = lists(TokenScores(**{**vars(given), "states": same}), [[100.0, 30.0, -90.0]])
    # All cosines are 1, so every step counts twice; the ranking and its weights stay.
    doubled = make_objective({"kind": "plr", "beta": 1.0})(scores)
    assert make_objective({"kind": "tpo", "beta": 0.5})(scores).item() == pytest.approx(doubled.item())


def test_later_steps_are_merged_into_the_last_common_one() -> None:
    whole = step_scores(tokens([[0, 1, 2, 3], [0, 1, 1, -1]]), torch.ones(1, 2, dtype=torch.bool))
    assert whole.counts.tolist() == [[[1, 3], [1, 2]]]
    apart = step_scores(tokens([[0, 1, 2, 3], [0, 1, 1, -1]]), torch.ones(1, 2, dtype=torch.bool), clip=False)
    assert apart.counts.tolist() == [[[1, 1, 1, 1], [1, 2, 0, 0]]]
    assert whole.ratios.sum(2)[0, 0].item() == pytest.approx(apart.ratios.sum(2)[0, 0].item())


def test_lists_are_clipped_each_by_its_own_shortest_response() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    assert step_scores(tokens([[0, 1], [0], [0, 1, 2]]), mask).counts.tolist() == [
        [[2, 0, 0], [1, 0, 0]],
        [[1, 1, 1], [0, 0, 0]],
    ]


def test_a_step_that_only_one_response_has_counts_for_nothing() -> None:
    steps = step_scores(tokens([[0, 1], [0]]), torch.ones(1, 2, dtype=torch.bool), clip=False)
    weights = adaptive_step_weights(steps.embeddings, steps.counts, torch.tensor([1]))
    assert weights[0, :, 1].tolist() == [0, 0]
    assert adaptive_step_score(steps, torch.zeros_like(weights)).tolist() == [[0, 0]]


def test_gradient_flows_through_weights_only_if_asked() -> None:
    for detach in (True, False):
        given = tokens([[0, 0, 1], [0, 1, 1]])
        assert given.states is not None
        given.states.requires_grad_()
        given.policy_logps.requires_grad_()
        make_objective({"kind": "tpo", "detach_weights": detach})(lists(given, [[9.0, 2.0]])).sum().backward()
        assert (given.states.grad is None) == detach


@pytest.mark.parametrize("options", [{}, {"adaptive": "to_best"}, {"weight_fn": "one_minus_cos"}])
def test_gradients_of_steps(options: dict[str, Any]) -> None:
    given = tokens([[0, 0, 1, 2], [0, 1, 1], [-1, 0, 1]])

    def loss(logps: Tensor) -> Tensor:
        return make_objective({"kind": "tpo", **options})(
            lists(TokenScores(**{**vars(given), "policy_logps": logps}), [[100.0, 20.0, -60.0]])
        )

    assert torch.autograd.gradcheck(loss, (given.policy_logps.clone().requires_grad_(),))


def test_tokens_without_steps_are_an_error() -> None:
    given = TokenScores(**{**vars(tokens([[0], [0]])), "steps": None, "states": None})
    with pytest.raises(OptionError, match="adaptive step weights need states, steps of single tokens"):
        make_objective("tpo")(lists(given, [[1.0, 2.0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_range": [1, 0]}, r"value_range must be \[low, high\] with low < high"),
        ({"log_base": 1}, "objective.log_base must be greater than 1"),
        ({"adaptive": "none"}, "objective.adaptive"),
    ],
)
def test_messages_of_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_objective({"kind": "tpo", **options})


def rated(*values: float, steps: bool = True, prompt: str = "What is 2*3+1?\n") -> Comparison:
    texts = tuple(f"Step 1: 2*3={6 + place}\nStep 2: the sum is {7 + place}" for place in range(len(values)))
    record = Comparison((prompt,), texts, Ratings(values))
    return next(iter(WithSteps([record]))) if steps else record


@pytest.mark.parametrize(
    ("objective", "record", "message"),
    [
        ("tpo", rated(100, 0, steps=False), "field 'steps': response 0 has no steps"),
        ("plr", rated(120, 0), r"rating 0 must lie in objective.value_range \[-100, 100\], got 120"),
        ({"kind": "plr", "value_range": None}, rated(900, 0), r"2\^900 is no usable weight; set objective.value_range"),
        ("plr", Comparison(("p",), ("a", "b"), Winner(0)), "field 'judgement': the objective needs a rating"),
    ],
)
def test_data_that_lack_something_are_named(tmp_path: Path, objective: Any, record: Comparison, message: str) -> None:
    with pytest.raises(RecordError, match=message.removeprefix("field 'judgement': ").removeprefix("field 'steps': ")):
        make_objective(objective).refuse(record)
    with pytest.raises(PrefkitError, match=message):
        fit(
            load_scorer("builtin"),
            [record],
            make_objective(objective),
            output=tmp_path / "run",
            options=TrainingOptions(progress=False),
            cache=tmp_path / "cache",
        )


def test_training_learns_the_ratings(tmp_path: Path) -> None:
    records = [rated(100, 10, -90, prompt=f"What is {word}?\n") for word in ("one", "two", "three")]
    result = fit(
        load_scorer("builtin"),
        records,
        make_objective("tpo"),
        output=tmp_path / "run",
        options=TrainingOptions(
            batch_size=3, learning_rate=1e-3, epochs=6, warmup=0, log_every=1, save_every=0, progress=False
        ),
        cache=tmp_path / "cache",
    )
    first, last = result.run.metrics[0], result.metrics
    # Before training all rewards are 0 and every pair costs log 2, times its weight.
    gains, discounts = [2 ** ((v + 100) / 200) for v in (100, 10, -90)], [1 / math.log(1 + n) for n in (1, 2, 3)]
    start = sum(
        abs(gains[i] - gains[j]) * abs(discounts[i] - discounts[j]) * math.log(2) for i, j in ((0, 1), (0, 2), (1, 2))
    )
    assert first["loss"] == pytest.approx(start, rel=1e-3)
    assert last["loss"] < 0.7 * first["loss"]
    assert last["reward_margin"] > 0.5
