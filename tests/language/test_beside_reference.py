"""Divergences and layers of the reference in packed rows against whole sequences; runs of TDPO, SparsePO and MaPO."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from prefkit.comparisons import Comparison
from prefkit.errors import OptionError
from prefkit.language import LanguageScorer, ModelOptions, load_scorer, pack
from prefkit.language import head as heads
from prefkit.objectives import make_objective, token_terms
from prefkit.training import TrainingOptions, fit
from tests.language.models import build, words
from tests.language.test_scorer import gradients, some_groups

NEEDS = frozenset({"tokens", "token_kl", "layers"})


def disturbed(model: Any) -> Any:
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return other


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("style", ["llama", "gpt2", "gemma3-softcap", "bloom"])
def test_divergences_and_layers_equal_separate_passes(style: str, shared: bool) -> None:
    reference = build(style)
    model = disturbed(reference)
    expected: list[list[torch.Tensor]] = []
    for prompt, responses in some_groups():
        for response in responses:
            ids = torch.tensor([prompt + response])
            own = slice(len(prompt) - 1, -1)
            with torch.no_grad():
                ref = reference(input_ids=ids, output_hidden_states=True)
            terms = token_terms(model(input_ids=ids).logits[:, own], ref.logits[:, own], ids[:, len(prompt) :])
            layers = torch.stack([states[0, own] for states in ref.hidden_states[1:]], dim=1)
            expected.append([*(term[0] for term in terms), layers])
    logps, ratios, kls, layers = (torch.cat(parts) for parts in zip(*expected, strict=True))
    (logps.square().sum() + kls.square().sum()).backward()
    wanted = gradients(model)

    scorer = LanguageScorer(model, words(), reference, shared=shared)
    scorer.provide(NEEDS)
    found = scorer(pack(some_groups())).tokens
    torch.testing.assert_close(found.policy_logps, logps, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.policy_logps - found.ref_logps, ratios, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.kl, kls, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.layers, layers, rtol=1e-3, atol=1e-3)
    (found.policy_logps.square().sum() + found.kl.square().sum()).backward()
    got = gradients(model)
    for name, gradient in wanted.items():
        assert float((got[name] - gradient).norm()) <= 1e-3 * float(gradient.norm()) + 1e-2, name


def test_adapter_is_off_in_the_reference() -> None:
    model = get_peft_model(build("llama"), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    scorer = LanguageScorer(model, words()).train()
    scorer.provide(NEEDS)
    batch = pack(some_groups())
    found = scorer(batch)
    torch.testing.assert_close(found.ref_logps, scorer.reference(batch).policy_logps, rtol=1e-4, atol=1e-3)
    assert float(found.tokens.kl.min()) > 0
    found.tokens.kl.sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None for parameter in trained)


def test_never_all_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_CHUNK_TOKENS", 8)
    sizes: list[int] = []

    class Seen(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return super().forward(x)

    logits, hidden = heads.logits_of(Seen(4, 9)), torch.randn(20, 4, requires_grad=True)
    targets = torch.zeros(20, dtype=torch.long)
    logps, ref_logps, kl = heads.token_divergences(logits, hidden, logits, hidden.detach(), targets, 9)
    (logps.sum() + kl.sum()).backward()
    assert set(sizes) == {8, 4}
    torch.testing.assert_close(kl, torch.zeros(20), atol=1e-6, rtol=0)
    torch.testing.assert_close(logps, ref_logps)


def test_policy_cannot_be_its_own_reference() -> None:
    with pytest.raises(OptionError, match=r"give model\.reference, or train an adapter"):
        LanguageScorer(build("gpt2"), words()).provide(NEEDS)


def train(folder: Path, scorer: LanguageScorer, objective: Any, **options: Any) -> list[dict[str, Any]]:
    records = [
        Comparison.pair(f"Count on from {n}.", f"{n + 1}, {n + 2}, {n + 3}, {n + 4}", "I do not know") for n in range(6)
    ]
    made = make_objective(objective)
    given = {"batch_size": 3, "epochs": 5, "learning_rate": 1e-3, "log_every": 1, "progress": False, **options}
    result = fit(scorer, records, made, output=folder / "run", options=TrainingOptions(**given), cache=folder / "cache")
    return [line for line in result.run.metrics if "loss" in line]


@pytest.mark.parametrize("kind", ["tdpo1", "tdpo2", "sparsepo", "mapo"])
def test_training(kind: str, tmp_path: Path) -> None:
    lines = train(tmp_path, load_scorer(ModelOptions(path="builtin", reference="builtin")), kind)
    assert lines[0]["chosen_position_kl"] == pytest.approx(0.0, abs=1e-4)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["chosen_position_kl"] > 0


def test_masks_train_at_a_rate_of_their_own(tmp_path: Path) -> None:
    scorer = load_scorer(ModelOptions(path="builtin", reference="builtin"))
    objective = {"kind": "sparsepo", "mask_learning_rate": 0.1, "l1_reward": 1.0, "l1_kl": 1.0, "mask_on_kl": False}
    lines = train(tmp_path, scorer, objective, learning_rate=1e-6)
    assert lines[-1]["chosen_sparsity"] > lines[0]["chosen_sparsity"] == 0.0


def test_run_without_a_reference_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"give model\.reference"):
        train(tmp_path, load_scorer("builtin"), "tdpo1")
