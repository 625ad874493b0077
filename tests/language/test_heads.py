"""Heads of reward models: against separate passes and formulas, trained end to end, saved, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prefkit.comparisons import Comparison, Probability, RecordError, Winner
from prefkit.diagnostics import evaluate
from prefkit.errors import OptionError
from prefkit.language import (
    GeneralHead,
    IdealPointsHead,
    ModelOptions,
    RewardScorer,
    load_reward,
    load_scorer,
    log_odds_table,
    pack,
)
from prefkit.objectives import PairScores, ResponseScores, Targets, make_objective, odds_among
from prefkit.preference import gpm_score
from prefkit.training import TrainingOptions, fit
from tests.language.models import build, words
from tests.language.test_scorer import some_groups


def options(**head: Any) -> Any:
    return ModelOptions.parse({"kind": "reward", "head": head}, "model").head


def separate_states(model: Any) -> tuple[Tensor, Tensor]:
    """Each response on its own: the states at its last token and at the end of its prompt."""
    states, prompts = [], []
    for prompt, responses in some_groups():
        for response in responses:
            found = model(input_ids=torch.tensor([prompt + response]), output_hidden_states=True, use_cache=False)
            states.append(found.hidden_states[-1][0, -1])
            prompts.append(found.hidden_states[-1][0, len(prompt) - 1])
    return torch.stack(states), torch.stack(prompts)


def spread(head: torch.nn.Module) -> None:
    """Weights far from 0, so that what a head does shows."""
    with torch.no_grad():
        for place, weight in enumerate(head.parameters()):
            if weight.ndim:
                weight.normal_(std=0.5, generator=torch.Generator().manual_seed(place))


def test_a_hidden_layer() -> None:
    model = build("llama")
    scorer = RewardScorer(model, words(), options(kind="mlp", hidden=5))
    first, _, _, last = scorer.head.layers
    assert (first.out_features, last.out_features) == (5, 1)
    states, _ = separate_states(model)
    expected = torch.relu(states @ first.weight.T + first.bias) @ last.weight[0] + last.bias
    got = scorer(pack(some_groups(), whole=True)).policy_logps
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("style", ["llama", "gemma3", "gemma2"])
@pytest.mark.parametrize("gate", [True, False])
def test_general_preferences_equal_separate_passes(style: str, gate: bool) -> None:
    model = build(style)
    scorer = RewardScorer(model, words(), options(kind="general", dim=4, gate=gate, tau=0.5))
    head = scorer.head
    assert isinstance(head, GeneralHead)
    spread(head)
    states, prompts = separate_states(model)
    embeddings = torch.nn.functional.normalize(states @ head.embedding.weight.T, dim=1)
    scales = torch.softmax(prompts @ head.gate.weight.T, dim=1) if head.gate is not None else None
    scores = scorer(pack(some_groups(), whole=True))
    assert scores.factors is not None
    start = 0
    for _, responses in some_groups():
        own = slice(start, start + len(responses))
        v = embeddings[own]
        table = torch.stack(
            [gpm_score(v[i].expand_as(v), v, None if scales is None else scales[own]) for i in range(len(v))]
        )
        torch.testing.assert_close(odds_among(scores.factors[own]), table / 0.5, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(scores.policy_logps[own], (table / 0.5).mean(1), rtol=1e-4, atol=2e-5)
        start += len(responses)
    scores.factors.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in head.parameters())


def test_a_learned_temperature_starts_at_a_tenth() -> None:
    head = RewardScorer(build("llama"), words(), options(kind="general", tau="learned")).head
    assert float(head.tau.detach()) == pytest.approx(0.1, abs=1e-3)
    assert any(name == "raw_tau" for name, _ in head.named_parameters())


# -- objectives on log-odds ------------------------------------------------------------------------------------------


FACTORS = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def pair_scores(**more: Any) -> PairScores:
    scores = ResponseScores(torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.long), factors=FACTORS)
    return Targets("pairs", torch.tensor([[0, 1], [3, 2]]), torch.arange(2), **more).view(scores)


def test_pairs_are_compared_by_their_factors() -> None:
    odds = torch.stack([FACTORS[0, 0] @ FACTORS[1, 1], FACTORS[3, 0] @ FACTORS[2, 1]])
    scores = pair_scores()
    torch.testing.assert_close(scores.odds, odds)
    torch.testing.assert_close(scores.swapped().odds, -odds)
    objective = make_objective({"kind": "reward_model", "beta": 2.0, "gamma": 0.5})
    torch.testing.assert_close(objective(scores), torch.nn.functional.softplus(0.5 - 2 * odds))
    chosen, rejected = objective.rewards(scores)
    torch.testing.assert_close(chosen - rejected, 2 * odds)


def test_noise_soft_labels_and_weights_act_on_log_odds_as_on_rewards() -> None:
    p, w = torch.tensor([0.7, 0.9], dtype=torch.float64), torch.tensor([2.0, 0.5], dtype=torch.float64)
    scores = pair_scores(probabilities=p, weights=w)
    right, wrong = torch.nn.functional.softplus(-scores.odds), torch.nn.functional.softplus(scores.odds)
    soft, other = p * right + (1 - p) * wrong, (1 - p) * right + p * wrong
    objective = make_objective({"kind": "reward_model", "noise": {"kind": "robust", "flip_rate": 0.2}})
    torch.testing.assert_close(objective(scores), w * ((0.8 * soft - 0.2 * other) / 0.6))


@pytest.mark.parametrize(
    "objective",
    [
        {"kind": "plackett_luce", "reward": "score", "beta": 1.0},
        {"kind": "reward_model", "link": {"kind": "bco_pair", "beta": 1.0}},
    ],
)
def test_objectives_that_need_a_reward_of_each_response_are_refused(objective: Any) -> None:
    needs = make_objective(objective).needs
    RewardScorer(build("llama"), words()).provide(needs)
    general = RewardScorer(build("llama"), words(), options(kind="general"))
    with pytest.raises(OptionError, match="scores of reward models with a head `general` have no separate_rewards"):
        general.provide(needs)


# -- end to end ------------------------------------------------------------------------------------------------------


def quick(**more: Any) -> TrainingOptions:
    given = {
        "epochs": 30,
        "batch_size": 12,
        "learning_rate": 3e-3,
        "save_every": 0,
        "progress": False,
        "log_every": 100,
    }
    return TrainingOptions(**{**given, **more})


def cycles(prompts: int = 4) -> list[Comparison]:
    """Under each prompt, a beats b, b beats c, and c beats a."""
    found = []
    for number in range(prompts):
        texts = [f"w{10 + number} w{40 + 3 * number + place}" for place in range(3)]
        for place in range(3):
            found.append(Comparison.pair(f"w{4 + number} w5", texts[place], texts[(place + 1) % 3]))
    return found


def fitted(scorer: RewardScorer, data: Sequence[Comparison], folder: Path, **more: Any) -> float:
    fit(scorer, data, make_objective("reward_model"), output=folder / "run", options=quick(**more), cache=folder)
    return evaluate(scorer, data, per_token=False).summary["ranking_accuracy"].mean


def test_a_language_model_learns_cycles_with_embeddings_only(tmp_path: Path) -> None:
    scalar = fitted(RewardScorer(build("llama"), words()), cycles(), tmp_path / "scalar")
    general = RewardScorer(build("llama"), words(), options(kind="general", dim=4))
    assert fitted(general, cycles(), tmp_path / "general") == 1.0
    assert scalar <= 2 / 3  # no order of three agrees with more of a cycle
    first = cycles()[0]
    three = replace(first, responses=(*first.responses, cycles()[1].responses[1]), judgement=Winner(0))
    table = log_odds_table(general.eval(), three)
    np.testing.assert_allclose(table, -table.T)
    assert table[0, 1] > 0 < table[1, 2]
    assert table[2, 0] > 0
    again = load_reward(str(tmp_path / "general" / "run" / "model")).eval()
    np.testing.assert_allclose(log_odds_table(again, three), table, rtol=1e-6)


def tastes(people: Sequence[str], pairs: int = 6) -> list[Comparison]:
    """People named l... prefer the left response to every prompt, those named r... the right one."""
    return [
        Comparison(
            (f"w{4 + number} w5",),
            (f"w{20 + number} w30", f"w{20 + number} w60"),
            Winner(int(person.startswith("r"))),
            annotator=person,
        )
        for person in people
        for number in range(pairs)
    ]


IDEAL = {"kind": "ideal_points", "projector": "mlp0", "annotator_rate": 0.1, "prototype_rate": 0.05, "score": "angle"}


@pytest.fixture(scope="module")
def population(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("people")
    scorer = RewardScorer(build("llama"), words(), options(**IDEAL))
    accuracy = fitted(scorer, tastes(["l1", "l2", "r1", "r2", "r3"]), folder, batch_size=15)
    return folder / "run" / "model", accuracy


def test_people_who_disagree_have_their_own_rewards(population: tuple[Path, float], tmp_path: Path) -> None:
    folder, accuracy = population
    people = tastes(["l1", "l2", "r1", "r2", "r3"])
    assert accuracy == 1.0
    assert fitted(RewardScorer(build("llama"), words()), people, tmp_path) <= 0.6  # three of five agree
    scorer = load_reward(str(folder)).eval()
    assert evaluate(scorer, people, per_token=False).summary["ranking_accuracy"].mean == 1.0


def test_a_person_who_is_not_known_is_judged_by_the_mean(population: tuple[Path, float]) -> None:
    scorer = load_reward(str(population[0])).eval()
    head = scorer.head
    assert isinstance(head, IdealPointsHead)
    assert head.people == ("l1", "l2", "r1", "r2", "r3")
    record = tastes(["l1"], 1)[0]
    inputs = scorer.collate([scorer.encode(replace(record, annotator=name)) for name in ("r2", "stranger", None)])
    assert inputs["people"].tolist() == [3, 3, -1, -1, -1, -1]
    states = scorer.last_states(inputs)
    weights = torch.softmax(head.logits, 1)
    space = head.space
    for place, mixture in ((0, weights[3]), (2, weights.mean(0)), (4, weights.mean(0))):
        point = space.project(mixture @ space.prototypes)
        item = space.project(states[place])
        cosine = torch.nn.functional.cosine_similarity(item, point, dim=0)
        torch.testing.assert_close(scorer(inputs).policy_logps[place], space.log_scale.exp().clamp(max=100) * cosine)


def test_new_people_are_learned_on_their_own(population: tuple[Path, float], tmp_path: Path) -> None:
    new = tastes(["l9", "r9"], 4)
    scorer = load_reward(ModelOptions(kind="reward", path=str(population[0]), trained="people"))
    before = {name: weight.detach().clone() for name, weight in scorer.state_dict().items()}
    assert fitted(scorer, new, tmp_path, batch_size=8, learning_rate=0.1) == 1.0
    after = scorer.state_dict()
    assert scorer.head.people == ("l1", "l2", "r1", "r2", "r3", "l9", "r9")
    torch.testing.assert_close(after["head.logits"][:5], before["head.logits"], rtol=0, atol=0)
    for name, weight in before.items():
        if name != "head.logits":
            assert torch.equal(after[name], weight), name
    saved = json.loads((tmp_path / "run" / "model" / "reward.json").read_text())
    assert saved["people"][-2:] == ["l9", "r9"]


def test_prototypes_that_are_functions_of_the_prompt(tmp_path: Path) -> None:
    scorer = RewardScorer(build("llama"), words(), options(**IDEAL, variant="B"))
    assert fitted(scorer, tastes(["l1", "l2", "r1", "r2"]), tmp_path, batch_size=12) == 1.0
    again = load_reward(str(tmp_path / "run" / "model")).eval()
    inputs = scorer.collate([scorer.encode(record) for record in tastes(["l1", "r2"], 2)])
    torch.testing.assert_close(again(inputs).policy_logps, scorer.eval()(inputs).policy_logps, rtol=0, atol=0)


def test_who_judged_must_be_said_in_training(tmp_path: Path) -> None:
    data = [replace(record, line=number) for number, record in enumerate(tastes(["l1", "r1"], 2), 1)]
    data[1] = replace(data[1], annotator=None)
    result = fit(
        RewardScorer(build("llama"), words(), options(**IDEAL)),
        data,
        make_objective("reward_model"),
        output=tmp_path / "run",
        options=quick(max_steps=1),
        cache=tmp_path,
    )
    (aside,) = result.run.skipped
    assert (aside["line"], aside["field"]) == (2, "annotator")


def test_encodings_are_not_taken_for_those_of_other_people(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for person in ("l1", "r1"):
        scorer = RewardScorer(build("llama"), words(), options(**IDEAL))
        how = {"output": tmp_path / person, "options": quick(max_steps=1), "cache": folder}
        fit(scorer, [replace(record, annotator=person) for record in tastes(["l"], 2)], OBJECTIVE, **how)
        assert scorer.head.people == (person,)
        assert scorer.head.logits.shape == (1, 2)
    assert len(list(folder.glob("encodings-*.arrow"))) == 2


OBJECTIVE = make_objective("reward_model")


def test_a_head_learns_at_its_own_rate_on_a_frozen_backbone(tmp_path: Path) -> None:
    base = build("llama")
    base.save_pretrained(tmp_path / "base")
    words().save_pretrained(tmp_path / "base")
    scorers = []
    for rate in (1e-3, 1e-2):
        model = {"kind": "reward", "path": str(tmp_path / "base"), "trained": "head"}
        scorer = load_reward(ModelOptions.parse({**model, "head": {"kind": "scalar", "learning_rate": rate}}, "model"))
        how = {
            "output": tmp_path / str(rate),
            "options": quick(max_steps=1, learning_rate=1.0, schedule="constant", warmup=0),
            "cache": tmp_path,
        }
        fit(scorer, cycles(1)[:1], OBJECTIVE, **how)
        scorers.append(scorer)
        for (name, weight), own in zip(base.named_parameters(), scorer.policy.parameters(), strict=True):
            assert torch.equal(weight, own), name
    # The first step of Adam is as long as the rate, in the direction of the gradient's sign.
    slow, fast = (scorer.head.weight.detach() for scorer in scorers)
    assert float(slow.abs().max()) == pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(fast, 10 * slow, rtol=1e-3, atol=1e-6)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"head": {"kind": "general", "dim": 3}}, "must be even and at least 2, got 3"),
        ({"head": {"kind": "general", "tau": 0}}, "must be greater than 0"),
        ({"head": {"kind": "mlp", "hidden": 0}}, r"model\.head\.mlp\.hidden must be at least 1, got 0"),
        ({"head": {"kind": "nonsense"}}, "does not match any of the expected tags"),
        ({"head": {"kind": "mlp", "dim": 4}}, "dim"),
        ({"head": "mlp", "kind": "lm"}, "head applies only to `kind: reward`"),
        ({"trained": "head", "kind": "lm"}, "trained applies only to `kind: reward`"),
        ({"trained": "head", "lora": {}}, "`lora` trains an adapter"),
    ],
)
def test_options_that_make_no_sense(model: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ModelOptions.parse({"kind": "reward", **model}, "model")


def test_what_does_not_fit_together(population: tuple[Path, float]) -> None:
    folder = str(population[0])
    with pytest.raises(OptionError, match=r"model\.head is for a new reward model"):
        load_reward(ModelOptions.parse({"kind": "reward", "path": folder, "head": "mlp"}, "model"))
    with pytest.raises(OptionError, match="people needs a head `ideal_points`, this one is `scalar`"):
        load_reward(ModelOptions(kind="reward", trained="people"))
    with pytest.raises(OptionError, match="`score: norm` and `mixing` are of `variant: A`"):
        RewardScorer(build("llama"), words(), options(kind="ideal_points", variant="B", score="norm"))
    with pytest.raises(OptionError, match="residual projector keeps the width"):
        RewardScorer(build("llama"), words(), options(kind="ideal_points", width=5))
    joint = Comparison(("w4", "w5"), ("w6", "w7"), Probability(0.6))
    with pytest.raises(RecordError, match="a head `general` compares responses to one prompt"):
        RewardScorer(build("llama"), words(), options(kind="general")).encode(joint)
    with pytest.raises(OptionError, match="load it with load_reward"):
        load_scorer(folder)


def test_a_damaged_head_is_explained(population: tuple[Path, float], tmp_path: Path) -> None:
    scorer = load_reward(str(population[0]))
    scorer.save(tmp_path)
    about = json.loads((tmp_path / "reward.json").read_text())
    for harm, message in (
        ({"people": ["l1"]}, "the head of reward model .* cannot be read"),
        ({"head": {"kind": "other"}}, "does not match any of the expected tags"),
        ({"dim": 7}, "the head of reward model .* cannot be read"),
    ):
        (tmp_path / "reward.json").write_text(json.dumps({**about, **harm}))
        with pytest.raises(OptionError, match=message):
            load_reward(str(tmp_path))
