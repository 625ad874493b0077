"""Log-probabilities of given tokens from hidden states, in chunks, without ever holding all logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Elements of the logits that are in memory at a time. Larger chunks gain no speed (measured on CPU).
_CHUNK_ELEMENTS = 8 * 1024 * 1024


def token_logps(
    head: nn.Module,
    hidden: Float[Tensor, "tokens dim"],
    targets: Int[Tensor, " tokens"],
    *,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Float[Tensor, " tokens"]:
    """Log-probability (nats, float32) of each target token given its hidden state.

    Args:
        head: the model's output layer, from hidden states to logits.
        hidden: the state that predicts each token.
        targets: the tokens.
        scale: factor of the logits (Cohere, Granite).
        softcap: bound of the logits, `softcap * tanh(logits / softcap)` (Gemma 2).
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    if isinstance(head, nn.Linear):
        with torch.autocast(kind, enabled=False):
            return _linear_logps(hidden.to(dtype), head.weight, head.bias, targets, scale, softcap)
    size = max(1, _CHUNK_ELEMENTS // _outputs(head))

    # An output layer that is more than a matrix (an adapter on it, say) is applied as it is, once more in the backward
    # pass.
    def logps_of(states: Tensor, tokens: Tensor) -> Tensor:
        logits = _capped(head(states).float() * scale, softcap)
        return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(1)

    chunks = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    return torch.cat([checkpoint(logps_of, states, tokens, use_reentrant=False) for states, tokens in chunks])


def _outputs(head: nn.Module) -> int:
    return int(max(parameter.shape[0] for parameter in head.parameters()))


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


class _LinearLogps(torch.autograd.Function):
    """Log-probabilities under a linear output layer. The backward pass computes the logits again, a chunk at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        matrix, offset = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        size = max(1, _CHUNK_ELEMENTS // weight.shape[0])
        logps = hidden.new_empty(len(hidden), dtype=torch.float32)
        normalisers = torch.empty_like(logps)
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = _logits(hidden[part], matrix, offset, scale, softcap)
            normalisers[part] = logits.logsumexp(1)
            logps[part] = logits.gather(1, targets[part, None]).squeeze(1) - normalisers[part]
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers)
        ctx.size, ctx.scale, ctx.softcap = size, scale, softcap
        return logps

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_logps,) = grads
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        matrix, offset = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        for start in range(0, len(hidden), ctx.size):
            part = slice(start, start + ctx.size)
            states, factor = hidden[part], grad_logps[part, None]
            logits = _logits(states, matrix, offset, ctx.scale, ctx.softcap)
            # d logp / d logits = onehot(target) - softmax(logits), and the chain rule of soft cap and scale.
            slope = None if ctx.softcap is None else 1.0 - (logits / ctx.softcap).square_()
            grad = logits.sub_(normalisers[part, None]).exp_().mul_(-factor)
            grad.scatter_add_(1, targets[part, None], factor)
            if slope is not None:
                grad.mul_(slope)
            if ctx.scale != 1.0:
                grad.mul_(ctx.scale)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, matrix, out=grad_hidden[part])
            if grad_weight is not None:
                if grad.dtype == grad_weight.dtype:
                    grad_weight.addmm_(grad.T, states)
                else:
                    grad_weight += grad.T @ states
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None


_linear_logps: Callable[..., Tensor] = _LinearLogps.apply


def _logits(states: Tensor, matrix: Tensor, offset: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """Logits of a chunk in float32, in memory of their own (they are overwritten)."""
    logits = torch.nn.functional.linear(states, matrix, offset).float()
    return _capped(logits if scale == 1.0 else logits.mul_(scale), softcap)
