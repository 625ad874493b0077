"""Feed-forward networks: linear layers with activations between them, on features or on names.

Source: Zhang et al. 2024, Leveraging Domain Knowledge for Efficient Reward Modelling (arXiv 2402.15473).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prefkit.errors import OptionError, unknown

Activation: TypeAlias = Literal["sigmoid", "tanh", "relu", "gelu"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
}


class Activations(NamedTuple):
    """What follows the linear layers.

    Args:
        first: after the first of several layers.
        inner: after the layers between the first and the last.
        output: after the last layer.
    """

    first: Activation | None = "tanh"
    inner: Activation | None = None
    output: Activation | None = None


def feedforward_scores(
    features: Float[Tensor, "*batch features"],
    weights: Sequence[Float[Tensor, "out into"]],
    biases: Sequence[Float[Tensor, " out"]],
    *,
    activation: Activation | None = "tanh",
    inner_activation: Activation | None = None,
    output_activation: Activation | None = None,
) -> Float[Tensor, "*batch"]:
    """Score of each vector of features: linear layers with activations between them.

    Args:
        features: what is scored.
        weights: matrix of each layer, the last of one row.
        biases: of each layer.
        activation: after the first of several layers.
        inner_activation: after the layers between the first and the last; the authors' code has none, so that its
            layers [6, 4, 2] are in effect two.
        output_activation: after the last layer. After a relu, rewards have flat regions without a gradient.

    Raises:
        OptionError: an activation is unknown, or layers and features do not fit together.
    """
    sizes = [features.shape[-1], *(len(bias) for bias in biases)]
    shapes = [(out, into) for into, out in pairwise(sizes)]
    if not weights or [tuple(weight.shape) for weight in weights] != shapes or sizes[-1] != 1:
        raise OptionError(
            f"layers of shapes {[tuple(weight.shape) for weight in weights]} with biases of {sizes[1:]} do not lead "
            f"from {sizes[0]} features to one score"
        )
    layers = [partial(nn.functional.linear, weight=w, bias=b) for w, b in zip(weights, biases, strict=True)]
    return _through(features, layers, Activations(activation, inner_activation, output_activation)).squeeze(-1)


def _through(
    states: Tensor, layers: Sequence[Callable[[Tensor], Tensor]], activations: Activations, dropout: float = 0.0
) -> Tensor:
    last = len(layers) - 1
    for place, layer in enumerate(layers):
        states = layer(states)
        after = activations.output if place == last else activations.inner if place else activations.first
        if after is not None:
            states = _activation(after)(states)
        if dropout and place < last:
            states = nn.functional.dropout(states, dropout)
    return states


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in ACTIVATIONS:
        raise OptionError(unknown("activation", str(name), ACTIVATIONS))
    return ACTIVATIONS[name]


class Feedforward(nn.Module):
    """A feed-forward network; a name has a vector of its own where features have a first layer.

    Args:
        inputs: number of features, or of names.
        hidden: sizes of the hidden layers; none is a linear model.
        outputs: size of what comes out.
        activations: see there.
        dropout: share of hidden units that are dropped in training.
        named: whether inputs are the codes of names.

    Raises:
        OptionError: an activation is unknown.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        activations: Activations,
        dropout: float = 0.0,
        named: bool = False,
    ) -> None:
        super().__init__()
        for name in activations:
            if name is not None:
                _activation(name)
        self.activations, self.dropout = activations, dropout
        self.layers = nn.ModuleList(
            nn.Embedding(into, out) if named and not place else nn.Linear(into, out)
            for place, (into, out) in enumerate(pairwise([inputs, *hidden, outputs]))
        )

    def forward(
        self, options: Float[Tensor, "*batch features"] | Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch outputs"]:
        """What comes out for features, or codes of names."""
        return _through(options, list(self.layers), self.activations, self.dropout if self.training else 0.0)
