"""Log-probabilities of given tokens from hidden states, in chunks, without ever holding all logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Logits that are in memory at a time. On a CPU small chunks stay in the cache between the passes over them; below this
# size the matrix products become slower (measured for vocabularies of 8,192 and 32,000).
_CHUNK_TOKENS, _CHUNK_ELEMENTS = 256, 16 * 1024 * 1024

# Probabilities of so many (token, word) pairs are kept for the backward pass, which then has one matrix product less.
_KEPT_ELEMENTS = 16 * 1024 * 1024


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
            keep = torch.is_grad_enabled()
            return _linear_logps(hidden.to(dtype), head.weight, head.bias, targets, scale, softcap, keep)
    size = _chunk_size(_outputs(head), hidden.device)

    # An output layer that is more than a matrix (an adapter on it, say) is applied as it is, once more in the backward
    # pass.
    def logps_of(states: Tensor, tokens: Tensor) -> Tensor:
        logits = logits_of(head, scale, softcap)(states)
        return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(1)

    chunks = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    return torch.cat([checkpoint(logps_of, states, tokens, use_reentrant=False) for states, tokens in chunks])


Logits = Callable[[Float[Tensor, "tokens dim"]], Float[Tensor, "tokens vocabulary"]]
"""From hidden states to logits in float32."""


def logits_of(head: nn.Module, scale: float = 1.0, softcap: float | None = None) -> Logits:
    """The logits of a model's output layer as a function of hidden states; arguments as in `token_logps`."""
    return lambda states: _capped(head(states).float() * scale, softcap)


def token_divergences(
    logits: Logits,
    hidden: Float[Tensor, "tokens dim"],
    ref_logits: Logits,
    ref_hidden: Float[Tensor, "tokens ref_dim"],
    targets: Int[Tensor, " tokens"],
    vocabulary: int,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """What policy and reference say at each token: log-probabilities of the target, and how far they are apart.

    The logits of a chunk are computed once more in the backward pass, so they are never all in memory.

    Args:
        logits: of the policy.
        hidden: the policy's state that predicts each token.
        ref_logits: of the reference; no gradient reaches it.
        ref_hidden: the reference's state that predicts each token.
        targets: the tokens.
        vocabulary: number of logits.

    Returns:
        Log-probabilities (nats, float32) of the targets under the policy and under the reference, and the divergence
        KL(reference, policy) over the vocabulary.
    """

    def compare(states: Tensor, ref_states: Tensor, tokens: Tensor) -> Tensor:
        policy = logits(states).log_softmax(1)
        with torch.no_grad():
            # Not the logarithm of the softmax, which is -inf where the reference is sure.
            reference = ref_logits(ref_states).log_softmax(1)
        divergence = (reference.exp() * (reference - policy)).sum(1)
        own, ref_own = (side.gather(1, tokens[:, None]).squeeze(1) for side in (policy, reference))
        return torch.stack([own, ref_own, divergence])

    size = _chunk_size(vocabulary, hidden.device)
    chunks = zip(*(torch.split(tensor, size) for tensor in (hidden, ref_hidden, targets)), strict=True)
    found = torch.cat([checkpoint(compare, *chunk, use_reentrant=False) for chunk in chunks], dim=1)
    own, ref_own, divergence = found.unbind(0)
    return own, ref_own.detach(), divergence


@torch.no_grad()
def predicted_tokens(
    logits: Logits,
    hidden: Float[Tensor, "tokens dim"],
    targets: Int[Tensor, " tokens"],
    choose: Callable[[Float[Tensor, "tokens vocabulary"]], Int[Tensor, " tokens"]],
    vocabulary: int,
) -> tuple[Int[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """What the policy would say in the place of each token, and the log-probability of the token that stands there.

    Args:
        logits: of the policy.
        hidden: the state that predicts each token.
        targets: the tokens.
        choose: from logits to tokens.
        vocabulary: number of logits.
    """
    ids, logps = [], []
    size = _chunk_size(vocabulary, hidden.device)
    for states, tokens in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
        scores = logits(states)
        ids.append(choose(scores))
        logps.append(scores.gather(1, tokens[:, None]).squeeze(1) - scores.logsumexp(1))
    return torch.cat(ids), torch.cat(logps)


def label_logps(
    logits: Float[Tensor, "batch length vocabulary"], labels: Int[Tensor, "batch length"], *, average: bool = False
) -> Float[Tensor, " batch"]:
    """Log-probabilities of responses from all logits of a model, in the form in which trainers keep labels.

    Logits at a place predict the label at the next one.

    Args:
        logits: of every place.
        labels: the token at every place, -100 where it belongs to no response.
        average: the mean over the response's tokens instead of the sum.
    """
    logits, labels = logits[:, :-1], labels[:, 1:]
    counted = labels != -100
    logps = logits.log_softmax(2).gather(2, labels.masked_fill(~counted, 0)[..., None])[..., 0]
    sums = logps.masked_fill(~counted, 0.0).sum(1)
    return sums / counted.sum(1) if average else sums


def _outputs(head: nn.Module) -> int:
    return int(max(parameter.shape[0] for parameter in head.parameters()))


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


class _LinearLogps(torch.autograd.Function):
    """Log-probabilities under a linear output layer, a chunk of tokens at a time.

    For few tokens the probabilities are kept for the backward pass; for many it computes the logits again. Logits stand
    as `[vocabulary, tokens]`: with the larger matrix first, CPUs multiply them half as fast again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        keep: bool,
    ) -> Tensor:
        keep = keep and softcap is None and len(hidden) * len(weight) <= _KEPT_ELEMENTS
        layer = _Layer(hidden, weight, bias, scale, softcap)
        own, normalisers = hidden.new_empty(2, len(hidden), dtype=torch.float32)
        shares: list[Tensor] = []
        for part in layer.chunks():
            logits = layer.logits(part)
            own[part] = logits.gather(0, targets[None, part])[0]
            # In place, and not by logsumexp, which makes two copies.
            highest = logits.amax(0)
            total = logits.sub_(highest).exp_().sum(0)
            if keep:
                shares.append(torch.div(logits, total, out=torch.empty_like(logits, dtype=hidden.dtype)))
            normalisers[part] = total.log_().add_(highest)
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers, *shares)
        ctx.scale, ctx.softcap = scale, softcap
        logps: Tensor = own - normalisers
        return logps

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers, *shares = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        layer = _Layer(hidden, weight, bias, ctx.scale, ctx.softcap)
        # d logp / d logits = onehot(target) - softmax(logits), each token times its own factor. The factor is put on
        # the small side of every product, and the target's part is added by index, so that the softmax is read only
        # once.
        factors = (grads[0] * ctx.scale)[:, None]
        own = factors if ctx.softcap is None else torch.empty_like(factors)
        scaled = (hidden * factors).to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        for number, part in enumerate(layer.chunks()):
            if shares:
                share = shares[number]
            else:
                logits = layer.logits(part)
                slope = None if ctx.softcap is None else 1.0 - (logits / ctx.softcap).square_()
                share = logits.sub_(normalisers[part]).exp_()
                if slope is not None:
                    share.mul_(slope)
                    own[part] = factors[part] * slope.gather(0, targets[None, part]).T
                share = share.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(share.T, layer.matrix, out=grad_hidden[part])
            if grad_weight is not None:
                if grad_weight.dtype == share.dtype:
                    grad_weight.addmm_(share, scaled[part], alpha=-1)
                else:
                    grad_weight -= share @ scaled[part]
            if grad_bias is not None:
                grad_bias -= share.to(grad_bias.dtype) @ factors[part, 0].to(grad_bias.dtype)
        if grad_hidden is not None:
            grad_hidden = (layer.matrix[targets] * own - grad_hidden * factors).to(hidden.dtype)
        if grad_weight is not None:
            grad_weight.index_add_(0, targets, (hidden * own).to(grad_weight.dtype))
        if grad_bias is not None:
            grad_bias.index_add_(0, targets, own[:, 0].to(grad_bias.dtype))
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


class _Layer:
    """A linear output layer in the type of the states, and one piece of memory for the logits of every chunk."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
    ) -> None:
        self.hidden, self.matrix = hidden, weight.to(hidden.dtype)
        self.offset = None if bias is None else bias.float()[:, None]
        self.scale, self.softcap = scale, softcap
        self.size = min(_chunk_size(len(weight), hidden.device), len(hidden))
        self._products = hidden.new_empty(0)

    def chunks(self) -> Iterator[slice]:
        return (slice(start, start + self.size) for start in range(0, len(self.hidden), self.size or 1))

    def logits(self, part: slice) -> Float[Tensor, "vocabulary chunk"]:
        """Logits of a chunk in float32, to be used before the next ones are asked for."""
        states = self.hidden[part]
        if not len(self._products):
            self._products = self.hidden.new_empty(self.size * len(self.matrix))
        products = self._products[: len(self.matrix) * len(states)].view(len(self.matrix), len(states))
        torch.mm(self.matrix, states.T, out=products)
        logits = products.float()
        if self.offset is not None:
            logits += self.offset
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


_linear_logps: Callable[..., Tensor] = _LinearLogps.apply


def _chunk_size(vocabulary: int, device: torch.device) -> int:
    tokens = _CHUNK_ELEMENTS // vocabulary
    return max(1, min(_CHUNK_TOKENS, tokens) if device.type == "cpu" else 4 * tokens)
