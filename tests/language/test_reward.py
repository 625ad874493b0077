"""Reward models: values and gradients against separate forward passes, training, files, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from prefkit.assets import comparisons_path
from prefkit.comparisons import Comparison, load_comparisons, write_comparisons
from prefkit.diagnostics import evaluate
from prefkit.errors import OptionError, RecordError
from prefkit.language import (
    LanguageScorer,
    ModelOptions,
    RewardScorer,
    annotate,
    load_reward,
    load_scorer,
    pack,
)
from prefkit.objectives import PairScores, Scorer, make_objective
from prefkit.training import TrainingOptions, fit
from tests.language.models import PLAIN, SHARED, build, words
from tests.language.test_scorer import gradients, some_groups


def some_head(width: int = 32) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(3))


def separate_rewards(model: Any, head: Tensor) -> Tensor:
    """Each response on its own: no packing, no padding, the state at its last token."""
    rewards = []
    for prompt, responses in some_groups():
        for response in responses:
            states = model(input_ids=torch.tensor([prompt + response]), output_hidden_states=True, use_cache=False)
            rewards.append(states.hidden_states[-1][0, -1] @ head)
    return torch.stack(rewards)


def check(model: Any, shared: bool) -> None:
    head = some_head().requires_grad_()
    weights = torch.randn(8, generator=torch.Generator().manual_seed(2))
    expected = separate_rewards(model, head)
    (expected * weights).sum().backward()
    wanted = gradients(model)

    scorer = RewardScorer(model, words(), head)
    assert scorer.shares_prompts == shared
    scores = scorer(pack(some_groups(), whole=True))
    torch.testing.assert_close(scores.policy_logps, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert scores.lengths.tolist() == [len(response) for _, responses in some_groups() for response in responses]
    (scores.policy_logps * weights).sum().backward()
    assert scorer.head.weight.grad is not None
    assert head.grad is not None
    torch.testing.assert_close(scorer.head.weight.grad, head.grad, rtol=1e-5, atol=1e-5 * float(head.grad.abs().max()))
    got = gradients(model)
    scale = max(float(gradient.norm()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        if name in got:
            assert float((got[name] - gradient).norm()) <= 1e-5 * max(float(gradient.norm()), 1e-3 * scale), name
        else:
            assert not gradient.any(), name


@pytest.mark.parametrize("style", ["llama", "gpt2", "gemma3"])
def test_shared_prompts_equal_separate_passes(style: str) -> None:
    assert style in SHARED
    check(build(style), shared=True)


@pytest.mark.parametrize("style", ["mamba", "gemma2"])
def test_models_that_cannot_share_give_the_same_rewards(style: str) -> None:
    assert style in PLAIN
    check(build(style), shared=False)


def test_an_output_layer_that_nobody_reads_is_not_trained() -> None:
    model = build("llama")
    scorer = RewardScorer(model, words())
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    scorer(pack(some_groups(), whole=True)).policy_logps.sum().backward()
    trained = {name for name, weight in scorer.named_parameters() if weight.requires_grad}
    assert "head.weight" in trained
    assert "policy.lm_head.weight" not in trained


def test_it_is_a_scorer_that_gives_rewards_only() -> None:
    scorer = RewardScorer(build("llama"), words())
    assert isinstance(scorer, Scorer)
    scorer.provide(frozenset({"rewards"}))
    with pytest.raises(OptionError, match="scores of reward models have no tokens"):
        scorer.provide(frozenset({"tokens"}))
    for ask in (lambda: scorer.reference({}), scorer.reference_key):
        with pytest.raises(OptionError, match="a reward model has no reference: train it with an objective on rewards"):
            ask()
    with pytest.raises(OptionError, match=r"scores of language models have no rewards; train a reward model instead"):
        LanguageScorer(build("llama"), words()).provide(make_objective("reward_model").needs)


def test_a_head_of_another_width_is_refused() -> None:
    with pytest.raises(OptionError, match="the head takes states of width 33, the backbone's are 32 wide"):
        RewardScorer(build("llama"), words(), some_head(33))


# -- on the built-in model -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs() -> list[Comparison]:
    return list(load_comparisons(comparisons_path("train")))[:24]


@pytest.fixture(scope="module")
def trained(pairs: list[Comparison], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("reward")
    options = TrainingOptions(epochs=4, batch_size=8, learning_rate=1e-3, log_every=1, save_every=0, progress=False)
    scorer = load_reward("builtin")
    result = fit(scorer, pairs, make_objective("reward_model"), output=folder / "run", options=options)
    return scorer, result


def test_training_teaches_the_pairs(pairs: list[Comparison], trained: Any) -> None:
    scorer, result = trained
    first, last = result.run.metrics[0], result.metrics
    # A head of zeros finds every choice as likely as not.
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert last["loss"] < 0.6
    assert last["chosen_reward"] > last["rejected_reward"]
    before = evaluate(load_reward("builtin"), pairs, per_token=False).summary["ranking_accuracy"].mean
    after = evaluate(scorer, pairs, per_token=False).summary["ranking_accuracy"].mean
    assert before == 0.5
    assert after > 0.8


def test_a_saved_model_gives_the_same_rewards(pairs: list[Comparison], trained: Any) -> None:
    scorer, result = trained
    folder = result.run.model
    assert {"head.safetensors", "reward.json", "config.json"} <= {path.name for path in folder.iterdir()}
    assert not list(folder.glob("*.bin"))
    assert not list(folder.glob("*.py"))
    inputs = scorer.collate([scorer.encode(pair) for pair in pairs[:3]])
    with torch.no_grad():
        torch.testing.assert_close(
            load_reward(str(folder))(inputs).policy_logps, scorer.eval()(inputs).policy_logps, rtol=0, atol=0
        )
    AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(OptionError, match="load it with load_reward"):
        load_scorer(str(folder))


def test_an_adapter_and_its_head_are_saved_together(tmp_path: Path) -> None:
    base = build("llama")
    base.save_pretrained(tmp_path / "base")
    words().save_pretrained(tmp_path / "base")
    options = ModelOptions(kind="reward", path=str(tmp_path / "base"), lora={"rank": 2})
    scorer = load_reward(options)
    with torch.no_grad():
        for name, weight in scorer.named_parameters():
            if "lora_" in name or name == "head.weight":
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    scorer.save(tmp_path / "saved")
    inputs = pack(some_groups(), whole=True)
    with torch.no_grad():
        again = load_reward(str(tmp_path / "saved"))(inputs).policy_logps
        assert torch.equal(again, scorer(inputs).policy_logps)
    assert not torch.allclose(again, again[0])


def test_a_state_from_shards_is_what_is_saved(tmp_path: Path) -> None:
    scorer = RewardScorer(build("llama"), words(), some_head())
    state = {name: tensor + 1 for name, tensor in scorer.state_dict().items()}
    scorer.save(tmp_path, state)
    saved = load_reward(str(tmp_path))
    assert torch.equal(saved.head.weight, some_head() + 1)
    assert torch.equal(saved.policy.lm_head.weight, scorer.policy.lm_head.weight + 1)


def damage_head(folder: Path) -> None:
    (folder / "head.safetensors").write_bytes(b"broken")


def drop_head(folder: Path) -> None:
    (folder / "head.safetensors").unlink()


def other_width(folder: Path) -> None:
    save_file({"weight": torch.zeros(7)}, folder / "head.safetensors")


def other_format(folder: Path) -> None:
    (folder / "reward.json").write_text(json.dumps({"format": 99}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_head, "the head of reward model .* cannot be read"),
        (drop_head, "the head of reward model .* cannot be read"),
        (other_width, "the head takes states of width 7"),
        (other_format, "is of a kind that this version does not know"),
    ],
)
def test_a_damaged_folder_is_explained(harm: Any, message: str, tmp_path: Path) -> None:
    RewardScorer(build("llama"), words()).save(tmp_path)
    harm(tmp_path)
    with pytest.raises(OptionError, match=message):
        load_reward(str(tmp_path))


def test_a_reference_does_not_apply() -> None:
    with pytest.raises(OptionError, match=r"model\.reference does not apply to a reward model"):
        load_reward(ModelOptions(kind="reward", reference="builtin"))


def test_objectives_with_a_reference_are_refused(pairs: list[Comparison], tmp_path: Path) -> None:
    options = TrainingOptions(max_steps=1, progress=False)
    with pytest.raises(OptionError, match="a reward model has no reference"):
        fit(load_reward("builtin"), pairs[:4], make_objective("dpo"), output=tmp_path / "run", options=options)


# -- rewards for other objectives ------------------------------------------------------------------------------------


def test_annotated_comparisons_carry_rewards_through_a_file(
    pairs: list[Comparison], trained: Any, tmp_path: Path
) -> None:
    scorer, _ = trained
    few = [replace(pair, extra={"kept": 1}) for pair in pairs[:5]]
    annotated = list(annotate(few, scorer.eval(), batch_size=2))
    for pair, record in zip(few, annotated, strict=True):
        with torch.no_grad():
            alone = scorer(scorer.collate([scorer.encode(pair)])).policy_logps.tolist()
        assert record.extra["rewards"] == pytest.approx(alone, rel=1e-4, abs=1e-5)
        assert record.extra["kept"] == 1
        assert replace(record, extra=pair.extra) == pair
    write_comparisons(annotated, tmp_path / "rewarded.jsonl")
    back = list(load_comparisons(tmp_path / "rewarded.jsonl"))
    assert [record.extra["rewards"] for record in back] == [record.extra["rewards"] for record in annotated]


def test_what_cannot_be_scored_is_named_or_set_aside(pairs: list[Comparison]) -> None:
    long = replace(pairs[1], responses=("word " * 600, "short"), line=2, source="long.jsonl")
    scorer = load_reward("builtin").eval()
    with pytest.raises(RecordError, match=r"long\.jsonl:2: .* exceed the context"):
        list(annotate([pairs[0], long], scorer))
    aside: list[RecordError] = []
    assert len(list(annotate([pairs[0], long, pairs[2]], scorer, skipped=aside))) == 2
    assert [error.line for error in aside] == [2]


def test_only_reward_models_annotate(pairs: list[Comparison]) -> None:
    with pytest.raises(OptionError, match="scores of language models have no rewards"):
        annotate(pairs, load_scorer("builtin"))
    with pytest.raises(OptionError, match="batch_size must be at least 1, got 0"):
        annotate(pairs, load_reward("builtin"), batch_size=0)


def test_lists_train_reward_models_too() -> None:
    objective = make_objective({"kind": "plackett_luce", "reward": "score", "beta": 1.0})
    assert objective.needs == {"rewards", "separate_rewards"}


def test_adapters_share_prompts() -> None:
    adapted = get_peft_model(build("llama"), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    scorer = RewardScorer(adapted, words(), some_head())
    rewards = scorer(pack(some_groups(), whole=True)).policy_logps
    torch.testing.assert_close(rewards, separate_rewards(adapted, some_head()), rtol=1e-5, atol=1e-4)


CONTRASTIVE = {"kind": "reward_model", "auxiliary": [{"kind": "contrastive"}]}


def reward_scorer(dropout: float) -> RewardScorer:
    options = ModelOptions.parse({"kind": "reward", "lora": {"rank": 2, "dropout": dropout}}, "model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_reward(options)


def test_two_views_differ_by_dropout_in_training_only() -> None:
    scorer = reward_scorer(0.5)
    scorer.provide(frozenset({"rewards", "views"}))
    for name, weight in scorer.policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
    records = list(load_comparisons(comparisons_path("test"), limit=2))
    inputs = scorer.collate([scorer.encode(record) for record in records])
    scorer.train()
    views = scorer(inputs).views
    assert views is not None
    assert views.shape == (4, 2, scorer.width)
    assert not torch.allclose(views[:, 0], views[:, 1])
    scores = scorer.eval()(inputs)
    assert scores.views is not None
    torch.testing.assert_close(scores.views[:, 0], scores.views[:, 1])
    torch.testing.assert_close(scores.views[:, 0] @ scorer.head.weight, scores.policy_logps)


@pytest.mark.parametrize("term", ["simcse", "swav"])
def test_a_reward_model_trains_with_a_contrastive_term(tmp_path: Path, term: str) -> None:
    objective = make_objective(
        {"kind": "reward_model", "auxiliary": [{"kind": "contrastive", "term": term, "clusters": 2}]}
    )
    result = fit(
        reward_scorer(0.2),
        list(load_comparisons(comparisons_path("train"), limit=6)),
        objective,
        output=tmp_path / "run",
        options=TrainingOptions(batch_size=3, epochs=2, learning_rate=1e-3, log_every=1, save_every=0, progress=False),
        cache=tmp_path / "cache",
    )
    figures = [line["contrastive_loss"] for line in result.run.metrics if "contrastive_loss" in line]
    assert len(figures) == 4
    assert all(figure > 0 for figure in figures)
    if term == "swav":
        (part,) = objective.stateful
        torch.testing.assert_close(part.centres.norm(dim=1).cpu(), torch.ones(2))


def test_a_contrastive_term_needs_dropout_and_a_reward_model() -> None:
    objective = make_objective(CONTRASTIVE)
    assert objective.needs == {"rewards", "views"}
    with pytest.raises(OptionError, match=r"this model has none: set model\.dropout=true"):
        objective.equip(load_reward("builtin"))
    with pytest.raises(OptionError, match="scores of language models have no views"):
        load_scorer("builtin").provide(frozenset({"views"}))
    swav = make_objective({"kind": "reward_model", "auxiliary": [{"kind": "contrastive", "term": "swav"}]})
    views = torch.randn(2, 2, 4)
    with pytest.raises(OptionError, match="has no centres yet"):
        swav(PairScores(torch.zeros(2), torch.zeros(2), chosen_views=views, rejected_views=views))
