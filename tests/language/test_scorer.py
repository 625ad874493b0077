"""Scores and gradients of packed rows against one separate, unpacked forward pass a response."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from prefkit.comparisons import Comparison, Winner
from prefkit.errors import OptionError, PrefkitError
from prefkit.language import LanguageScorer, pack
from prefkit.language.packing import ROW_MULTIPLE
from prefkit.objectives import Scorer
from tests.language.models import PLAIN, SHARED, VOCABULARY, build, words


def some_groups(seed: int = 1) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts of several lengths with one to three responses, single-token and very long ones among them."""
    generator = torch.Generator().manual_seed(seed)

    def some(count: int) -> list[int]:
        return torch.randint(4, VOCABULARY, (count,), generator=generator).tolist()

    return [
        (some(20), [some(14), some(1), some(9)]),
        (some(3), [some(30), some(140)]),
        (some(11), [some(1), some(1)]),
        (some(1), [some(5)]),
    ]


def separate_logps(model: Any, groups: list[tuple[list[int], list[list[int]]]]) -> Tensor:
    """Each response on its own: no packing, no padding, the model's own logits."""
    out = []
    for prompt, responses in groups:
        for response in responses:
            logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
            logps = logits.float().log_softmax(-1)[len(prompt) - 1 : -1]
            out.append(logps.gather(1, torch.tensor(response)[:, None]).squeeze(1))
    return torch.cat(out)


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def check(scorer: LanguageScorer, model: Any) -> None:
    groups = some_groups()
    expected = separate_logps(model, groups)
    weights = torch.randn(len(expected), generator=torch.Generator().manual_seed(2))
    (expected * weights).sum().backward()
    wanted = gradients(model)

    scores = scorer(pack(groups))
    assert scores.tokens is not None
    measured = scores.tokens.policy_logps
    torch.testing.assert_close(measured, expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))
    sums = [part.sum() for part in expected.split([len(r) for _, rs in groups for r in rs])]
    torch.testing.assert_close(scores.policy_logps, torch.stack(sums), rtol=1e-5, atol=1e-4)
    assert scores.lengths.tolist() == [len(response) for _, responses in groups for response in responses]

    (measured * weights).sum().backward()
    got = gradients(model)
    assert got.keys() == wanted.keys()
    scale = max(float(gradient.norm()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        # A gradient that is zero but for rounding (a key's bias) has no relative error.
        assert float((got[name] - gradient).norm()) <= 1e-5 * max(float(gradient.norm()), 1e-3 * scale), name


@pytest.mark.parametrize("style", SHARED)
def test_shared_prompts_equal_separate_passes(style: str) -> None:
    model = build(style)
    scorer = LanguageScorer(model, words())
    assert scorer.shares_prompts
    check(scorer, model)


@pytest.mark.parametrize("style", PLAIN)
def test_models_that_cannot_share_take_the_plain_path(style: str, caplog: pytest.LogCaptureFixture) -> None:
    model = build(style)
    scorer = LanguageScorer(model, words())
    assert not scorer.shares_prompts
    assert "cannot share a prompt" in caplog.text
    check(scorer, model)


@pytest.mark.parametrize("style", SHARED)
def test_prompts_of_one_token(style: str) -> None:
    model = build(style)
    scorer = LanguageScorer(model, words())
    groups = [([4], [[5, 6, 7], [8]]), ([9], [[10, 11]])]
    tokens = scorer(pack(groups)).tokens
    assert tokens is not None
    torch.testing.assert_close(tokens.policy_logps, separate_logps(model, groups), rtol=1e-4, atol=1e-4)


def test_plain_path_on_request() -> None:
    model = build("llama")
    scorer = LanguageScorer(model, words(), shared=False)
    assert not scorer.shares_prompts
    check(scorer, model)


def with_adapter(model: Any, targets: Any = ("q_proj", "v_proj", "down_proj", "c_attn")) -> PeftModel:
    present = [t for t in targets if any(name.endswith(t) for name, _ in model.named_modules())]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=present, task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return adapted


@pytest.mark.parametrize("style", ["llama", "qwen3", "gpt2", "gemma3"])
@pytest.mark.parametrize(
    ("lora", "checkpointing"),
    [(False, True), (True, False), (True, True)],
    ids=["checkpointing", "lora", "lora-checkpointing"],
)
def test_adapters_and_gradient_checkpointing(style: str, lora: bool, checkpointing: bool) -> None:
    model = with_adapter(build(style)) if lora else build(style)
    scorer = LanguageScorer(model, words())
    if checkpointing:
        scorer.gradient_checkpointing_enable()
        scorer.train()
    check(scorer, model)


def test_adapter_on_the_output_layer() -> None:
    model = with_adapter(build("llama"), ("q_proj", "lm_head"))
    check(LanguageScorer(model, words()), model)


@pytest.fixture
def half_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bfloat16 on any CPU, imitated if need be."""
    monkeypatch.setattr("prefkit.language.scorer.multiplies_bf16", lambda device: True)


@pytest.mark.usefixtures("half_products")
def test_mixed_precision_stays_close() -> None:
    model = build("llama")
    exact, rough = (LanguageScorer(model, words(), precision=p)(pack(some_groups())) for p in ("fp32", "bf16"))
    assert exact.policy_logps.dtype == rough.policy_logps.dtype == torch.float32
    assert not torch.equal(exact.policy_logps, rough.policy_logps)
    torch.testing.assert_close(exact.policy_logps, rough.policy_logps, rtol=0.02, atol=0.3)


def test_a_cpu_without_half_products_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("prefkit.language.scorer.multiplies_bf16", lambda device: False)
    model = build("llama")
    exact, rough = (LanguageScorer(model, words(), precision=precision) for precision in ("fp32", "bf16"))
    inputs = pack(some_groups())
    assert torch.equal(exact(inputs).policy_logps, rough(inputs).policy_logps)
    assert exact.reference_key() == rough.reference_key()
    assert caplog.text.count("no products in bfloat16") == 1


@pytest.mark.parametrize("style", SHARED)
def test_the_last_layer_computes_only_what_is_read(style: str) -> None:
    """Its feed-forward part sees the last prompt token and the responses, those of other layers the whole row."""
    scorer = LanguageScorer(build(style), words())
    decoder = scorer.policy.get_decoder()
    layers = decoder.h if style == "gpt2" else decoder.layers
    seen: list[int] = []
    for layer in layers:
        layer.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    prompt, response = list(range(4, 94)), [5] * 11
    scorer(pack([(prompt * 3, [response] * 2)]))
    assert seen == [3 * ROW_MULTIPLE, 3 * ROW_MULTIPLE, ROW_MULTIPLE]


def test_rows_have_few_widths_and_the_padding_changes_nothing() -> None:
    inputs = pack(some_groups())
    assert inputs["input_ids"].shape[1] % ROW_MULTIPLE == 0
    scorer = LanguageScorer(build("llama"), words())
    with torch.no_grad():
        wider = dict(inputs)
        for name in ("input_ids", "position_ids"):
            wider[name] = torch.nn.functional.pad(inputs[name], (0, ROW_MULTIPLE), value=5)
        torch.testing.assert_close(scorer(wider).policy_logps, scorer(inputs).policy_logps)


def test_a_prompt_is_processed_once() -> None:
    """The point of sharing: the row holds each prompt once, whatever the number of responses."""
    prompt, response = list(range(4, 54)), [5] * 11
    assert (pack([(prompt, [response] * 8)])["position_ids"] > 0).sum() + 1 == 50 + 8 * 10


def joint_and_shared(scorer: LanguageScorer) -> list[Comparison]:
    return [
        Comparison(("w5 w6", "w7 w8 w9"), ("w10 w11", "w12"), Winner(0)),
        Comparison.pair("w5 w6", "w13", "w14 w15"),
    ]


def test_joint_comparisons_keep_their_order() -> None:
    model = build("llama")
    scorer = LanguageScorer(model, words())
    encoded = [scorer.encode(comparison) for comparison in joint_and_shared(scorer)]
    with torch.no_grad():
        scores = scorer(scorer.collate(encoded))
        expected = separate_logps(
            model, [([5, 6], [[10, 11, 2]]), ([7, 8, 9], [[12, 2]]), ([5, 6], [[13, 2], [14, 15, 2]])]
        )
    sums = torch.stack([part.sum() for part in expected.split([3, 2, 2, 3])])
    torch.testing.assert_close(scores.policy_logps, sums, rtol=1e-5, atol=1e-5)


def test_it_is_a_scorer() -> None:
    assert isinstance(LanguageScorer(build("llama"), words()), Scorer)


# -- the reference ---------------------------------------------------------------------------------------------------


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return pack(some_groups())


def trained_step(scorer: LanguageScorer, inputs: dict[str, Tensor]) -> None:
    optimizer = torch.optim.SGD([p for p in scorer.parameters() if p.requires_grad], lr=0.1)
    scorer(inputs).policy_logps.mean().backward()
    optimizer.step()


def test_reference_of_an_adapter_is_the_model_below_it(inputs: dict[str, Tensor]) -> None:
    base = build("llama")
    before = LanguageScorer(copy.deepcopy(base), words())(inputs).policy_logps
    scorer = LanguageScorer(with_adapter(base), words())
    key = scorer.reference_key()
    trained_step(scorer, inputs)
    torch.testing.assert_close(scorer.reference(inputs).policy_logps, before)
    assert not torch.allclose(scorer(inputs).policy_logps, before)
    assert scorer.reference_key() == key


def test_reference_model_is_frozen_and_not_saved_or_trained(inputs: dict[str, Tensor]) -> None:
    policy, reference = build("llama"), build("llama")
    scorer = LanguageScorer(policy, words(), reference)
    assert len(list(scorer.parameters())) == len(list(policy.parameters()))
    expected = scorer.reference(inputs).policy_logps
    trained_step(scorer, inputs)
    torch.testing.assert_close(scorer.reference(inputs).policy_logps, expected)
    assert not scorer.reference(inputs).policy_logps.requires_grad


def test_the_reference_goes_where_the_policy_goes(inputs: dict[str, Tensor]) -> None:
    reference = build("llama")
    scorer = LanguageScorer(build("llama"), words(), reference).to(torch.float64)
    assert reference.lm_head.weight.dtype == torch.float64
    assert scorer.reference(inputs).policy_logps.shape == (8,)


def test_policy_is_its_own_reference_until_it_is_trained(inputs: dict[str, Tensor]) -> None:
    scorer = LanguageScorer(build("llama"), words())
    torch.testing.assert_close(scorer.reference(inputs).policy_logps, scorer(inputs).policy_logps.detach())
    trained_step(scorer, inputs)
    with pytest.raises(PrefkitError, match="has been trained since it was loaded; give a reference model"):
        scorer.reference(inputs)


@pytest.mark.usefixtures("half_products")
def test_reference_key_follows_weights_and_precision() -> None:
    def keys() -> Iterator[str]:
        model = build("llama")
        yield LanguageScorer(model, words()).reference_key()
        yield LanguageScorer(model, words(), precision="bf16").reference_key()
        model.lm_head.weight.data[0, 0] += 1e-3
        yield LanguageScorer(model, words()).reference_key()

    assert len(set(keys())) == 3
    assert next(keys()) == next(keys())


def test_vocabularies_have_to_fit() -> None:
    with pytest.raises(OptionError, match="the tokenizer has 98 tokens, the model only 97"):
        LanguageScorer(build("llama"), words(98))
    other = build("llama")
    other.config.vocab_size = 90
    with pytest.raises(OptionError, match="one vocabulary, got 97 and 90 tokens"):
        LanguageScorer(build("llama"), words(), other)


def test_generation_is_untouched() -> None:
    model = build("llama")
    ids = torch.tensor([[5, 6, 7]])
    before = model.generate(ids, max_new_tokens=12, do_sample=False)
    LanguageScorer(model, words())
    assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False), before)


def test_save_loads_with_from_pretrained(tmp_path: Any, inputs: dict[str, Tensor]) -> None:
    from prefkit.language import load_scorer

    scorer = LanguageScorer(build("llama"), words())
    scorer.save(tmp_path)
    with torch.no_grad():
        assert torch.equal(load_scorer(str(tmp_path))(inputs).policy_logps, scorer(inputs).policy_logps)


@pytest.mark.parametrize("style", ["llama", "gpt2", "gemma3", "mamba"])
def test_states_of_tokens_are_those_of_separate_passes(style: str) -> None:
    """The last hidden state at each response token, the last one included, with scores and gradients unchanged."""
    model = build(style)
    groups = some_groups()
    expected = []
    for prompt, responses in groups:
        for response in responses:
            ids = torch.tensor([prompt + response])
            states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1]
            expected.append(states[0, len(prompt) :])
    scorer = LanguageScorer(model, words())
    plain = scorer(pack(groups))
    scorer.provide(frozenset({"tokens", "states"}))
    scores = scorer(pack(groups, whole=True))
    assert scores.tokens is not None
    assert scores.tokens.states is not None
    torch.testing.assert_close(scores.policy_logps, plain.policy_logps, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(scores.tokens.states, torch.cat(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("style", ["llama", "gpt2", "gemma3", "mamba"])
def test_states_that_predict_tokens_are_those_of_separate_passes(style: str) -> None:
    """From the last prompt token to the last but one of the response, by a pass that scores as before."""
    model = build(style)
    groups = some_groups()
    expected = []
    for prompt, responses in groups:
        for response in responses:
            ids = torch.tensor([prompt + response])
            states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1]
            expected.append(states[0, len(prompt) - 1 : -1])
    scorer = LanguageScorer(model, words())
    plain = scorer(pack(groups))
    scorer.provide(frozenset({"tokens", "predictors"}))
    scores = scorer(pack(groups))
    assert scores.tokens is not None
    assert scores.tokens.predictors is not None
    torch.testing.assert_close(scores.policy_logps, plain.policy_logps, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(scores.tokens.predictors, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_a_need_that_text_has_no_answer_to_is_refused() -> None:
    with pytest.raises(OptionError, match="no denoising"):
        LanguageScorer(build("llama"), words()).provide(frozenset({"denoising"}))


def test_neighbours_with_one_prompt_share_it() -> None:
    scorer = LanguageScorer(build("llama"), words())
    comparison = Comparison(("w5 w6", "w5 w6", "w7"), ("w10 w11", "w12", "w13"), Winner(0))
    assert scorer.collate([scorer.encode(comparison)])["group_sizes"].tolist() == [2, 1]


@pytest.mark.parametrize("style", ["llama", "gemma2"])
def test_steps_stand_beside_their_tokens(style: str) -> None:
    scorer = LanguageScorer(build(style), words())
    plain = scorer.encoding_key()
    scorer.provide(frozenset({"tokens", "states", "steps"}))
    assert scorer.encoding_key() != plain
    records = [
        Comparison.pair("w4 w5", "w6 w7 w8", "w9", steps=(("w6 ", "w7 w8"), ("w9",))),
        Comparison.pair("w5", "w6 w7", "w8 w9", steps=(("w6 w7",), ("w8 ", "w9"))),
    ]
    tokens = scorer(scorer.collate([scorer.encode(record) for record in records])).tokens
    assert tokens is not None
    assert tokens.steps is not None
    assert tokens.steps.tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]
    assert tokens.response.tolist() == [0] * 4 + [1] * 2 + [2] * 3 + [3] * 3
    assert tokens.states is not None
    assert len(tokens.states) == 12


def test_a_slow_tokenizer_cannot_give_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = LanguageScorer(build("llama"), words())
    monkeypatch.setattr(type(scorer.tokenizer), "is_fast", False)
    with pytest.raises(OptionError, match="does not say where tokens stand: steps need a fast one"):
        scorer.provide(frozenset({"tokens", "steps"}))


def trained(scorer: LanguageScorer) -> None:
    """Move every weight that is trained, in place, as an optimiser does."""
    with torch.no_grad():
        for weight in scorer.policy.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))


def adapted() -> Any:
    return get_peft_model(
        build("llama"), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    )


@pytest.mark.parametrize("made", [lambda: build("llama"), adapted], ids=["full", "lora"])
def test_the_policy_becomes_its_reference(made: Any) -> None:
    scorer = LanguageScorer(made(), words())
    inputs = pack(some_groups())
    key = scorer.reference_key()
    trained(scorer)
    scorer.refresh_reference()
    then = scorer(inputs).policy_logps.detach()
    refreshed = scorer.reference_key()
    trained(scorer)
    torch.testing.assert_close(scorer.reference(inputs).policy_logps, then)
    assert scorer.reference_key() == refreshed != key
    # The policy itself is what it was, and goes on learning.
    now = scorer(inputs).policy_logps
    assert not torch.allclose(now, then)
    now.sum().backward()
    assert any(weight.grad is not None for weight in scorer.policy.parameters())
    scorer.refresh_reference()
    torch.testing.assert_close(scorer.reference(inputs).policy_logps, now.detach())


def test_a_given_reference_is_replaced_by_the_policy() -> None:
    scorer = LanguageScorer(build("llama"), words(), build("gpt2"))
    scorer.refresh_reference()
    inputs = pack(some_groups())
    torch.testing.assert_close(scorer.reference(inputs).policy_logps, scorer(inputs).policy_logps.detach())


def test_a_kept_reference_outlives_training() -> None:
    scorer = LanguageScorer(build("llama"), words())
    inputs = pack(some_groups())
    first = scorer.reference(inputs).policy_logps
    scorer.refresh_reference(keep=True)
    trained(scorer)
    scorer.refresh_reference(keep=True)
    torch.testing.assert_close(scorer.reference(inputs).policy_logps, first)
    given = LanguageScorer(build("llama"), words(), build("gpt2"))
    expected = given.reference(inputs).policy_logps
    given.refresh_reference(keep=True)
    torch.testing.assert_close(given.reference(inputs).policy_logps, expected)
    below = LanguageScorer(adapted(), words())
    expected = below.reference(inputs).policy_logps
    below.refresh_reference(keep=True)
    trained(below)
    torch.testing.assert_close(below.reference(inputs).policy_logps, expected)
