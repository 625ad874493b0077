"""Degrees of preference: losses by hand, variants of responses, and a run of SPO on the built-in model."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prefkit.comparisons import Comparison
from prefkit.errors import OptionError
from prefkit.language import load_scorer
from prefkit.objectives import (
    Companions,
    PairScores,
    SelfSupervisedDegree,
    degree_cross_entropy,
    make_objective,
    pool_hidden,
    spo_total_loss,
)
from prefkit.training import FitResult, TrainingOptions, fit

PAIR = Comparison.pair("Where do they live?", "Cats live in big houses, dogs in kennels.", "It is so.")


def part(**options: Any) -> SelfSupervisedDegree:
    objective = make_objective({"kind": "spo", "auxiliary": [{"kind": "degree", **options}]})
    found = objective.auxiliary[0]
    assert isinstance(found, SelfSupervisedDegree)
    return found


def test_variants_lose_more_and_more() -> None:
    variants = part().accompany(PAIR, 0, 1)
    assert [variant.label for variant in variants] == [0, 1, 2]
    assert [variant.response for variant in variants] == [
        "Cats live in big houses, dogs in kennels.",
        "in, dogs in kennels.",
        "in, in.",
    ]
    assert {variant.prompt for variant in variants} == {"Where do they live?"}


def test_response_without_key_content_is_counted_once() -> None:
    degree = part()
    degree.accompany(replace(PAIR, responses=(PAIR.responses[0], "It is so.")), 0, 1)
    degree.accompany(replace(PAIR, responses=(PAIR.responses[0], "It is so.")), 0, 1)
    assert degree.summary() == {"degrees": 3, "responses_without_key_content": 1}


def test_degrees_that_remove_as_much_as_a_lower_one_are_left_out() -> None:
    one_span = replace(PAIR, responses=("It is cheese.", "It is bread and butter."))
    assert [variant.label for variant in part().accompany(one_span, 0, 1)] == [0, 1, 3, 4, 5]
    assert [variant.label for variant in part(sides="rejected").accompany(one_span, 0, 1)] == [3, 4, 5]
    assert len(part(variants="one").accompany(one_span, 0, 1)) == 2


def test_last_message_is_what_varies() -> None:
    said = replace(
        PAIR, responses=(({"role": "assistant", "content": "Big cats."},), ({"role": "assistant", "content": "No."},))
    )
    variants = part(ratios=(0.0, 1.0)).accompany(said, 0, 1)
    assert (
        variants[1].response == ({"role": "assistant", "content": "Big."},) or variants[1].response[0]["content"] == "."
    )


def companions() -> Companions:
    states = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    return Companions(
        torch.zeros(3), torch.tensor([9, 4, 5]), torch.tensor([0, 0, 1]), torch.tensor([0, 2, 4]), last_states=states
    )


def test_term_is_the_mean_of_each_side() -> None:
    degree = part(gamma=0.5)
    degree.build(2)
    generator = torch.Generator().manual_seed(1)
    for weight in degree.heads.parameters():
        torch.nn.init.normal_(weight, generator=generator)
    given = companions()
    assert given.last_states is not None
    chosen = degree.heads[0](given.last_states[:2]).log_softmax(1)
    rejected = degree.heads[1](given.last_states[2:]).log_softmax(1)
    expected = 0.5 * torch.stack([-(chosen[0, 0] + chosen[1, 2]) / 2, -rejected[0, 1], torch.tensor(0.0)])
    torch.testing.assert_close(degree(given, 3), expected)


@pytest.mark.parametrize("heads", ["shared", "separate"])
def test_it_begins_at_the_logarithm_of_the_degrees(heads: str) -> None:
    degree = part(heads=heads, gamma=1.0)
    degree.build(2)
    torch.testing.assert_close(degree(companions(), 2), torch.full((2,), math.log(3)))


def test_batch_without_variants_still_gives_gradients() -> None:
    objective = make_objective("spo")
    objective.auxiliary[0].build(2)
    zeros = torch.zeros(2, requires_grad=True)
    objective(PairScores(zeros, zeros, zeros, zeros, companions=())).sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in objective.parameters())
    with pytest.raises(OptionError, match="objective 'spo' needs companions"):
        objective(PairScores(zeros, zeros, zeros, zeros))


def test_length_tells_the_degree_where_it_does() -> None:
    degree = part(heads="shared")
    degree.build(2)
    for _ in range(2):
        degree(companions(), 2)
    assert degree.figures["length_accuracy"][0] == 1.0


def test_pooled_state_is_that_of_a_real_token_on_either_side() -> None:
    states = torch.arange(6.0).view(2, 3, 1)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert pool_hidden(states, mask).flatten().tolist() == [1.0, 5.0]
    assert pool_hidden(states, mask, "mean").flatten().tolist() == [0.5, 4.5]
    with pytest.raises(OptionError, match="row 1 has no real token"):
        pool_hidden(states, torch.tensor([[1, 1, 0], [0, 0, 0]]))
    with pytest.raises(OptionError, match="pool must be 'last' or 'mean', got 'first'"):
        pool_hidden(states, mask, "first")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": [0.5]}, "objective.auxiliary.0.ratios: there must be at least 2 degrees, got 1"),
        ({"ratios": [0.0, 0.7, 0.5]}, "ratios must increase and lie in [0, 1], got [0.0, 0.7, 0.5]"),
        ({"ratios": [0.0, 1.5]}, "ratios must increase and lie in [0, 1], got [0.0, 1.5]"),
        ({"gamma": -0.1}, "objective.auxiliary.0.gamma must be at least 0"),
        ({"extractor": "rack"}, "objective.auxiliary.0.extractor: unknown extractor 'rack'; did you mean 'rake'"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        part(**options)


def test_mistakes_of_functions_are_named() -> None:
    with pytest.raises(OptionError, match=re.escape("degree labels must be in [0, 3), got [0, 3]")):
        degree_cross_entropy(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(OptionError, match="at least 2 degrees, got 1"):
        degree_cross_entropy(torch.zeros(2, 1), torch.tensor([0, 0]))
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(OptionError, match="gamma must be at least 0, got -1"):
        spo_total_loss(torch.zeros(2), logits, labels, logits, labels, gamma=-1)
    with pytest.raises(OptionError, match="has no heads yet"):
        part()(companions(), 2)
    with pytest.raises(OptionError, match="reads hidden states, which object does not have"):
        part().equip(object())


def train(folder: Path, records: list[Comparison]) -> FitResult:
    return fit(
        load_scorer("builtin"),
        records,
        make_objective({"kind": "spo", "auxiliary": [{"kind": "degree", "gamma": 1.0, "heads": "shared"}]}),
        output=folder / "run",
        options=TrainingOptions(batch_size=4, epochs=6, learning_rate=2e-3, log_every=2, progress=False),
        cache=folder / "cache",
    )


def test_training_tells_degrees_apart(tmp_path: Path) -> None:
    records = [
        Comparison.pair(f"Tell me about {a}.", f"{a} eat {b} in the park, and they like big houses.", "It is so.")
        for a, b in (("Cats", "fish"), ("Dogs", "bones"), ("Birds", "seeds"), ("Cows", "grass"))
    ]
    result = train(tmp_path, records)
    lines = [line for line in result.run.metrics if "loss" in line]
    assert lines[0]["degree_loss"] == pytest.approx(math.log(3), rel=0.2)
    assert lines[-1]["degree_loss"] < 0.9 * lines[0]["degree_loss"]
    assert lines[-1]["degree_accuracy"] > lines[0]["degree_accuracy"]
    summary = json.loads((result.run.folder / "objective.json").read_text())
    assert summary == {"degree": {"degrees": 3, "responses_without_key_content": 1}}


def test_data_without_any_key_content_train_as_dpo(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = train(tmp_path, [Comparison.pair("Is it so?", "It is.", "It is not.")] * 4)
    assert "2 responses have no key content and take no part in 'degree'" in caplog.text
    assert result.metrics["degree_loss"] == 0.0
