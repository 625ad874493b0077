"""Chunked log-probabilities and their gradients against the whole logits and autograd."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from prefkit.language import head, label_logps, token_logps

TOKENS, WIDTH, VOCABULARY = 37, 8, 50


def whole(layer: nn.Module, hidden: Tensor, targets: Tensor, scale: float, softcap: float | None) -> Tensor:
    logits = layer(hidden) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1)


class Wrapped(nn.Module):
    """An output layer that is more than a matrix."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize(
    ("bias", "scale", "softcap", "wrapped"), list(product([False, True], [1.0, 0.5], [None, 2.0], [False, True]))
)
@pytest.mark.parametrize(("chunk", "kept"), [(1, 0), (5, 0), (5, TOKENS * VOCABULARY), (64, TOKENS * VOCABULARY)])
def test_values_and_gradients(
    bias: bool,
    scale: float,
    softcap: float | None,
    wrapped: bool,
    chunk: int,
    kept: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head, "_CHUNK_TOKENS", chunk)
    monkeypatch.setattr(head, "_KEPT_ELEMENTS", kept)
    torch.manual_seed(0)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=bias)
    layer = Wrapped(linear) if wrapped else linear
    targets, weights = torch.randint(VOCABULARY, (TOKENS,)), torch.randn(TOKENS)
    found = []
    for function in (token_logps, whole):
        hidden = (3 * torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))).requires_grad_()
        layer.zero_grad()
        logps = function(layer, hidden, targets, scale=scale, softcap=softcap)
        (logps * weights).sum().backward()
        found.append([logps.detach(), hidden.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) == 3 + bias
    for measured, expected in zip(*found, strict=True):
        torch.testing.assert_close(measured, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kept", "passes"), [(0, 2), (TOKENS * VOCABULARY, 1)])
def test_logits_are_made_in_chunks(monkeypatch: pytest.MonkeyPatch, kept: int, passes: int) -> None:
    """Neither pass makes all logits at once; the backward pass makes them again where too many were to be kept."""
    monkeypatch.setattr(head, "_CHUNK_TOKENS", 16)
    monkeypatch.setattr(head, "_KEPT_ELEMENTS", kept)
    sizes = []
    inner = head._Layer.logits

    def logits(layer: head._Layer, part: slice) -> Tensor:
        made = inner(layer, part)
        sizes.append(made.shape[1])
        return made

    monkeypatch.setattr(head._Layer, "logits", logits)
    layer, hidden = nn.Linear(WIDTH, VOCABULARY), torch.randn(TOKENS, WIDTH, requires_grad=True)
    token_logps(layer, hidden, torch.zeros(TOKENS, dtype=torch.long)).sum().backward()
    assert sizes == [16, 16, 5] * passes


def test_frozen_output_layer_gets_no_gradient() -> None:
    layer = nn.Linear(WIDTH, VOCABULARY).requires_grad_(False)
    hidden = torch.randn(TOKENS, WIDTH, requires_grad=True)
    token_logps(layer, hidden, torch.zeros(TOKENS, dtype=torch.long)).sum().backward()
    assert layer.weight.grad is None
    assert hidden.grad is not None


def test_extreme_states_stay_finite() -> None:
    layer, hidden = nn.Linear(WIDTH, VOCABULARY), 1e4 * torch.randn(TOKENS, WIDTH)
    hidden.requires_grad_()
    logps = token_logps(layer, hidden, torch.zeros(TOKENS, dtype=torch.long))
    logps.sum().backward()
    assert torch.isfinite(logps).all()
    assert torch.isfinite(hidden.grad).all()


def test_label_logps_leave_out_what_belongs_to_no_response() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, -100, 3, 1, -100], [-100, 2, 0, 6, 5]])
    logps = logits.log_softmax(2)
    first = logps[0, 1, 3] + logps[0, 2, 1]
    second = logps[1, 0, 2] + logps[1, 1, 0] + logps[1, 2, 6] + logps[1, 3, 5]
    torch.testing.assert_close(label_logps(logits, labels), torch.stack([first, second]))
    torch.testing.assert_close(label_logps(logits, labels, average=True), torch.stack([first / 2, second / 4]))
