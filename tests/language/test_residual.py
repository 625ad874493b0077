"""The temporal residual connection in packed rows against whole sequences, one a response; and a run of IFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from prefkit.comparisons import Comparison, Ranking
from prefkit.errors import OptionError, PrefkitError
from prefkit.language import LanguageScorer, load_scorer, mix_embeddings, one_step_ahead_ids, pack
from prefkit.objectives import TemporalResidual, make_objective
from prefkit.training import TrainingOptions, fit
from tests.language.models import build, words
from tests.language.test_scorer import gradients, some_groups

NEEDS = frozenset({"tokens", "temporal_residual"})


def separate(model: torch.nn.Module, rate: float) -> Tensor:
    """Each response on its own, by the definition."""
    out = []
    for prompt, responses in some_groups():
        for response in responses:
            ids = torch.tensor([prompt + response])
            labels = ids.masked_fill(torch.arange(ids.shape[1]) < len(prompt), -100)
            embed = model.get_input_embeddings()
            with torch.no_grad():
                ahead = one_step_ahead_ids(ids, labels, model(input_ids=ids).logits)
                mixed = mix_embeddings(embed(ids), embed(ahead), rate)
            logps = model(inputs_embeds=mixed).logits[0].float().log_softmax(1)[len(prompt) - 1 : -1]
            out.append(logps.gather(1, torch.tensor(response)[:, None]).squeeze(1))
    return torch.cat(out)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("style", ["llama", "gpt2", "gemma3", "bloom"])
def test_mixed_inputs_equal_separate_passes(style: str, whole: bool) -> None:
    model = build(style)
    scorer = LanguageScorer(model, words()).train()
    scorer.provide(NEEDS)
    scorer.residual = TemporalResidual(rate=0.4)
    expected = separate(model, 0.4)
    expected.square().sum().backward()
    wanted = gradients(model)
    scores = scorer(pack(some_groups(), whole=whole))
    torch.testing.assert_close(scores.tokens.policy_logps, expected, rtol=1e-4, atol=1e-3)
    scores.tokens.policy_logps.square().sum().backward()
    got = gradients(model)
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert float((got[name] - gradient).norm()) <= 1e-3 * float(gradient.norm()) + 1e-2, name
    plain = scorer.eval()(pack(some_groups()))
    torch.testing.assert_close(scores.tokens.plain_logps, plain.tokens.policy_logps.detach(), rtol=1e-4, atol=1e-3)


def test_model_without_input_embeddings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = LanguageScorer(build("gpt2"), words())
    monkeypatch.setattr(scorer._trunks[id(scorer.policy)], "takes_embeddings", False)
    with pytest.raises(OptionError, match="mixes input embeddings, and GPT2LMHeadModel takes no inputs_embeds"):
        scorer.provide(NEEDS)


def records() -> list[Comparison]:
    return [
        Comparison.pair(f"Count on from {n}.", f"{n + 1}, {n + 2}, {n + 3}, {n + 4}", "I do not know") for n in range(8)
    ]


def train(folder: Path, records: list[Comparison], **options: object) -> Path:
    result = fit(
        load_scorer("builtin"),
        records,
        make_objective({"kind": "ift", **options}),
        output=folder / "run",
        options=TrainingOptions(batch_size=4, epochs=4, learning_rate=1e-3, log_every=1, progress=False),
        cache=folder / "cache",
    )
    lines = [line for line in result.run.metrics if "loss" in line]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["plain_nll"] < lines[0]["plain_nll"]
    assert lines[-1]["mixed_nll"] != lines[-1]["plain_nll"]
    assert [line["mixing"] for line in lines] == pytest.approx([0.05 * min(step, 4) for step in range(len(lines))])
    return result.run.model


def test_training_with_a_schedule(tmp_path: Path) -> None:
    model = train(tmp_path, records(), schedule="linear", min_lambda=0.0, max_lambda=0.2, warmup_steps=4)
    before = dict(load_scorer("builtin").policy.named_parameters())
    assert any(not torch.equal(weight, before[name]) for name, weight in load_file(model / "model.safetensors").items())


def test_data_without_a_best_response_are_set_aside(tmp_path: Path) -> None:
    tied = [Comparison(("Say something.",), ("yes", "no"), Ranking((0, 0)))]
    with pytest.raises(PrefkitError, match="no response is better than the others"):
        train(tmp_path, tied)


def test_shapes_that_differ_are_named() -> None:
    ids = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(OptionError, match="must have one batch size and length"):
        one_step_ahead_ids(ids, ids, torch.zeros(2, 4, 5))
    with pytest.raises(OptionError, match=r"must have one shape, got \(2,\) and \(3,\)"):
        mix_embeddings(torch.zeros(2), torch.zeros(3), 0.2)
    with pytest.raises(OptionError, match=r"lambda must be in \[0, 1\], got 1.2"):
        mix_embeddings(torch.zeros(2), torch.zeros(2), 1.2)
