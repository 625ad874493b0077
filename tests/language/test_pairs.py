"""Reward models on encoders and on sequence classifiers: against the models' own forward passes, text by text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit.comparisons import Comparison, RecordError
from prefkit.diagnostics import evaluate
from prefkit.errors import OptionError
from prefkit.language import (
    EncodingOptions,
    ModelOptions,
    OwnHead,
    PairRewardScorer,
    RewardScorer,
    is_reward_model,
    load_reward,
    load_scorer,
    log_odds_table,
)
from prefkit.objectives import make_objective
from prefkit.preference import gpm_score
from prefkit.training import TrainingOptions, fit
from tests.language.encoders import CAUSAL, ENCODERS, build_encoder, joining, save
from tests.language.models import words

PAIRS = [
    Comparison.pair("w5 w6 w7", "w8 w9", "w10"),
    Comparison.pair("w20", "w21 w22 w23 w24 w25", "w26 w21 w9"),
]


def rewards(scorer: RewardScorer, records: list[Comparison] = PAIRS) -> Tensor:
    return scorer(scorer.collate([scorer.encode(record) for record in records])).policy_logps


def quick(**more: Any) -> TrainingOptions:
    given = {"epochs": 40, "batch_size": 2, "learning_rate": 3e-3, "save_every": 0, "progress": False, "log_every": 100}
    return TrainingOptions(**{**given, **more})


@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token"])
@pytest.mark.parametrize("style", ENCODERS)
def test_each_response_is_read_as_the_tokenizer_joins_it(style: str, pooling: Any, tmp_path: Path) -> None:
    model, tokenizer = build_encoder(style), joining(style)
    folder = save(model, tokenizer, tmp_path)
    scorer = load_reward(ModelOptions.parse({"kind": "reward", "path": folder, "pooling": pooling}, "model"))
    assert isinstance(scorer, PairRewardScorer)
    assert not scorer.shares_prompts
    with torch.no_grad():
        scorer.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    expected = []
    for record in PAIRS:
        for response in record.responses:
            inputs = tokenizer(record.prompts[0], response, return_tensors="pt")
            assert ("token_type_ids" in inputs) == (style == "bert")
            states = model(**inputs).last_hidden_state[0]
            pooled = {"cls": states[0], "mean": states.mean(0), "last_token": states[-1]}[pooling]
            expected.append(pooled @ scorer.head.weight)
    torch.testing.assert_close(rewards(scorer), torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_cls_is_the_default_and_a_notice_says_that_prompts_are_not_shared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = load_reward(save(build_encoder("bert"), joining("bert"), tmp_path))
    assert scorer.pooling == "cls"
    assert "BertModel reads in both directions, so that a prompt cannot be shared" in caplog.text


def test_types_of_tokens_say_which_text_they_are_of() -> None:
    scorer = PairRewardScorer(build_encoder("bert"), joining("bert"), shared=False)
    inputs = scorer.collate([scorer.encode(PAIRS[0])])
    assert inputs["input_ids"].tolist() == [[1, 5, 6, 7, 2, 8, 9, 2], [1, 5, 6, 7, 2, 10, 2, 0]]
    assert inputs["token_type_ids"].tolist() == [[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 0]]
    assert inputs["attention_mask"].sum(1).tolist() == [8, 7]
    assert inputs["response_lengths"].tolist() == [2, 1]


def test_messages_without_a_template_are_their_texts() -> None:
    scorer = PairRewardScorer(build_encoder("bert"), joining("bert"), shared=False)
    user, answer = {"role": "user", "content": "w5 w6 w7"}, {"role": "assistant", "content": "w8 w9"}
    told = replace(PAIRS[0], prompts=((user,),), responses=((answer,), "w10"))
    assert scorer.encode(told) == scorer.encode(PAIRS[0])
    several = replace(PAIRS[0], prompts=((user, answer, user),))
    # The tokenizer knows neither "user:" nor "assistant:".
    assert scorer.encode(several)["prompt_ids"] == [[3, 5, 6, 7, 3, 8, 9, 3, 5, 6, 7]]


@pytest.mark.parametrize("style", ENCODERS)
def test_an_encoder_is_trained_and_saved(style: str, tmp_path: Path) -> None:
    path = save(build_encoder(style), joining(style), tmp_path / "base")
    scorer = load_reward(ModelOptions.parse({"kind": "reward", "path": path, "head": "mlp"}, "model"))
    fit(scorer, PAIRS, make_objective("reward_model"), output=tmp_path / "run", options=quick(), cache=tmp_path)
    assert evaluate(scorer, PAIRS, per_token=False).summary["ranking_accuracy"].mean == 1.0
    again = load_reward(str(tmp_path / "run" / "model")).eval()
    torch.testing.assert_close(rewards(again), rewards(scorer.eval()), rtol=0, atol=0)


def test_an_adapter_of_an_encoder(tmp_path: Path) -> None:
    path = save(build_encoder("bert"), joining("bert"), tmp_path / "base")
    model = {"kind": "reward", "path": path, "lora": {"rank": 2}, "pooling": "mean"}
    scorer = load_reward(ModelOptions.parse(model, "model"))
    how = {"output": tmp_path / "run", "options": quick(learning_rate=1e-2), "cache": tmp_path}
    fit(scorer, PAIRS, make_objective("reward_model"), **how)
    assert evaluate(scorer, PAIRS, per_token=False).summary["ranking_accuracy"].mean == 1.0
    again = load_reward(str(tmp_path / "run" / "model")).eval()
    assert again.pooling == "mean"
    torch.testing.assert_close(rewards(again), rewards(scorer.eval()), rtol=1e-6, atol=1e-6)


def test_a_gate_reads_the_prompt_alone(tmp_path: Path) -> None:
    model, tokenizer = build_encoder("bert"), joining("bert")
    head = {"kind": "general", "dim": 4, "tau": 1.0}
    path = save(model, tokenizer, tmp_path)
    scorer = load_reward(ModelOptions.parse({"kind": "reward", "path": path, "head": head}, "model"))
    with torch.no_grad():
        for weight in scorer.head.parameters():
            weight.normal_(generator=torch.Generator().manual_seed(0))
        record = PAIRS[1]
        v = torch.stack(
            [
                model(**tokenizer(record.prompts[0], response, return_tensors="pt")).last_hidden_state[0, 0]
                for response in record.responses
            ]
        )
        v = torch.nn.functional.normalize(v @ scorer.head.embedding.weight.T, dim=1)
        prompt = model(**tokenizer(record.prompts[0], return_tensors="pt")).last_hidden_state[0, 0]
        scale = torch.softmax(scorer.head.gate.weight @ prompt, 0)
        expected = float(gpm_score(v[0], v[1], scale))
    assert log_odds_table(scorer, record)[0, 1] == pytest.approx(expected, abs=1e-5)
    both = scorer(scorer.collate([scorer.encode(each) for each in PAIRS]))
    assert float((both.factors[2, 0] * both.factors[3, 1]).sum()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("policy", "prompt", "response"),
    [
        ("truncate_prompt", [11, 12, 13], list(range(20, 54))),
        ("truncate_response", list(range(4, 14)), list(range(20, 47))),
    ],
)
def test_texts_that_are_too_long_are_cut_between_the_marks(policy: Any, prompt: list[int], response: list[int]) -> None:
    long = Comparison.pair(" ".join(f"w{i}" for i in range(4, 14)), " ".join(f"w{i}" for i in range(20, 54)), "w60 w61")
    scorer = PairRewardScorer(
        build_encoder("bert"), joining("bert", 40), encoding=EncodingOptions(too_long=policy), shared=False
    )
    ids = scorer.collate([scorer.encode(long)])["input_ids"][0].tolist()
    if policy == "truncate_prompt":
        prompt = list(range(11, 14))
    assert [token for token in ids if token] == [1, *prompt, 2, *response, 2]
    assert len(ids) == 40
    with pytest.raises(RecordError, match="exceed the context of 37 tokens"):
        PairRewardScorer(build_encoder("bert"), joining("bert", 40), shared=False).encode(long)


def test_the_positions_of_roberta_begin_behind_padding() -> None:
    scorer = PairRewardScorer(build_encoder("roberta"), joining("roberta"), shared=False)
    # 64 positions, the first of which is that of padding; 4 marks.
    assert scorer.encoder.max_length == 63 - 4
    full = Comparison.pair(" ".join(["w5"] * 30), " ".join(["w6"] * 29), "w7")
    assert torch.isfinite(rewards(scorer, [full])).all()
    bert = PairRewardScorer(build_encoder("bert"), joining("bert"), shared=False)
    assert bert.encoder.max_length == 64 - 3


# -- classifiers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ENCODERS)
def test_a_classifier_that_reads_both_ways_is_a_reward_model(style: str, tmp_path: Path) -> None:
    model, tokenizer = build_encoder(style, labels=1), joining(style)
    path = save(model, tokenizer, tmp_path)
    assert is_reward_model(path)
    scorer = load_reward(path).eval()
    assert isinstance(scorer.head, OwnHead)
    with torch.no_grad():
        expected = [
            model(**tokenizer(record.prompts[0], response, return_tensors="pt")).logits[0, 0]
            for record in PAIRS
            for response in record.responses
        ]
        torch.testing.assert_close(rewards(scorer), torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("style", CAUSAL)
def test_a_causal_classifier_is_a_reward_model_that_shares_prompts(style: str, tmp_path: Path) -> None:
    model, tokenizer = build_encoder(style, labels=1), words()
    tokenizer.pad_token_id = model.config.pad_token_id  # of gpt2, the end token
    path = save(model, tokenizer, tmp_path)
    scorer = load_reward(path).eval()
    assert scorer.shares_prompts
    with torch.no_grad():
        expected = [
            model(input_ids=torch.tensor([[*map(word, record.prompts[0].split()), *map(word, text.split()), 2]])).logits
            for record in PAIRS
            for text in record.responses
        ]
        torch.testing.assert_close(rewards(scorer), torch.cat(expected)[:, 0], rtol=1e-4, atol=1e-4)


def word(text: str) -> int:
    return int(text[1:])


@pytest.mark.parametrize("style", ["bert", "llama"])
def test_a_classifier_is_trained_on_and_stays_a_classifier(style: str, tmp_path: Path) -> None:
    model = build_encoder(style, labels=1)
    tokenizer = joining(style) if style == "bert" else words()
    path = save(model, tokenizer, tmp_path / "base")
    scorer = load_reward(ModelOptions(kind="reward", path=path))
    assert any(name.startswith("policy.") and "head" not in name for name, _ in scorer.named_parameters())
    fit(scorer, PAIRS, make_objective("reward_model"), output=tmp_path / "run", options=quick(), cache=tmp_path)
    assert evaluate(scorer, PAIRS, per_token=False).summary["ranking_accuracy"].mean == 1.0
    folder = tmp_path / "run" / "model"
    again = load_reward(str(folder)).eval()
    torch.testing.assert_close(rewards(again), rewards(scorer.eval()), rtol=0, atol=0)
    own = type(model).from_pretrained(folder).eval()
    layer = own.score if style == "llama" else own.classifier
    before = model.score if style == "llama" else model.classifier
    assert not torch.equal(layer.weight, before.weight)


def test_an_adapter_of_a_classifier_keeps_its_head(tmp_path: Path) -> None:
    path = save(build_encoder("llama", labels=1), words(), tmp_path / "base")
    scorer = load_reward(ModelOptions.parse({"kind": "reward", "path": path, "lora": {"rank": 2}}, "model"))
    how = {"output": tmp_path / "run", "options": quick(learning_rate=1e-2), "cache": tmp_path}
    fit(scorer, PAIRS, make_objective("reward_model"), **how)
    again = load_reward(str(tmp_path / "run" / "model")).eval()
    torch.testing.assert_close(rewards(again), rewards(scorer.eval()), rtol=1e-5, atol=1e-5)
    assert evaluate(again, PAIRS, per_token=False).summary["ranking_accuracy"].mean == 1.0


def test_the_mean_of_a_causal_model_is_over_the_response(tmp_path: Path) -> None:
    from tests.language.models import build

    model = build("llama")
    scorer = RewardScorer(model, words(), torch.randn(32, generator=torch.Generator().manual_seed(0)), pooling="mean")
    expected = []
    for record in PAIRS:
        for text in record.responses:
            prompt, response = [*map(word, record.prompts[0].split())], [*map(word, text.split()), 2]
            found = model(input_ids=torch.tensor([prompt + response]), output_hidden_states=True)
            expected.append(found.hidden_states[-1][0, len(prompt) :].mean(0) @ scorer.head.weight)
    torch.testing.assert_close(rewards(scorer), torch.stack(expected), rtol=1e-4, atol=1e-4)
    scorer.save(tmp_path)
    assert load_reward(str(tmp_path)).pooling == "mean"


def test_what_is_refused(tmp_path: Path) -> None:
    three = save(build_encoder("bert", labels=3), joining("bert"), tmp_path / "three")
    with pytest.raises(OptionError, match="is a classifier of 3 labels: a reward model has one"):
        load_reward(three)
    one = save(build_encoder("bert", labels=1), joining("bert"), tmp_path / "one")
    for more in ({"head": "mlp"}, {"pooling": "mean"}):
        with pytest.raises(OptionError, match="is one with its own: leave it out"):
            load_reward(ModelOptions.parse({"kind": "reward", "path": one, **more}, "model"))
    with pytest.raises(OptionError, match=r"model\.trained does not apply to a classifier"):
        load_reward(ModelOptions(kind="reward", path=one, trained="head"))
    with pytest.raises(OptionError, match="load it with load_reward"):
        load_scorer(one)
    plain = save(build_encoder("bert"), joining("bert"), tmp_path / "plain")
    with pytest.raises(OptionError, match="reads in both directions and gives no likelihood of a text"):
        load_scorer(plain)
    with pytest.raises(OptionError, match=r"model\.pooling: the states of .* are pooled by last_token or mean"):
        load_reward(ModelOptions(kind="reward", pooling="cls"))
    with pytest.raises(OptionError, match="beside the 3 tokens around them, got 4"):
        load_reward(ModelOptions(kind="reward", path=plain), EncodingOptions(max_length=4))
    with pytest.raises(OptionError, match="scores of reward models have no views"):
        load_reward(one).provide(frozenset({"rewards", "views"}))
    with pytest.raises(RecordError, match="response 0 is empty"):
        replace(PAIRS[0], responses=("", "w5"))
