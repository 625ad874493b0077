"""Reward networks: small feed-forward networks that score vectors of features, under a context if one is given.

Source: Zhang et al. 2024, Leveraging Domain Knowledge for Efficient Reward Modelling (arXiv 2402.15473).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prefkit.errors import OptionError, unknown

Activation = Literal["sigmoid", "tanh", "relu"]

_ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


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
    last = len(weights) - 1
    states = features
    for place, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        states = nn.functional.linear(states, weight, bias)
        after = output_activation if place == last else activation if place == 0 else inner_activation
        if after is not None:
            states = _activation(after)(states)
    return states.squeeze(-1)


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in _ACTIVATIONS:
        raise OptionError(unknown("activation", name, _ACTIVATIONS))
    return _ACTIVATIONS[name]


class FeedforwardReward(nn.Module):
    """A feed-forward network as a module; see `feedforward_scores`.

    Args:
        features: number of features.
        layers: sizes of the hidden layers; none is a linear model.
        activation: see `feedforward_scores`.
        inner_activation: see `feedforward_scores`.
        output_activation: see `feedforward_scores`.
        context_features: how many of the last features describe a context. The score then has a further term, y U z,
            of the other features y and the context z; U starts from 0.
        generator: source of the first weights, uniform in +-1 / sqrt(number of inputs); None starts from 0, which a
            network with hidden layers cannot leave.

    Raises:
        OptionError: an activation is unknown or a size is below 1.
    """

    def __init__(
        self,
        features: int,
        layers: Sequence[int] = (),
        *,
        activation: Activation | None = "tanh",
        inner_activation: Activation | None = None,
        output_activation: Activation | None = None,
        context_features: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = [features, *layers, 1]
        if min(sizes) < 1:
            raise OptionError(f"a network needs features and layers of size at least 1, got {sizes[:-1]}")
        if not 0 <= context_features < features:
            raise OptionError(f"context_features must be from 0 to less than the {features}, got {context_features}")
        for name in (activation, inner_activation, output_activation):
            if name is not None:
                _activation(name)
        self.activation, self.inner_activation, self.output_activation = activation, inner_activation, output_activation
        self.own_features = features - context_features
        self.bilinear = nn.Parameter(torch.zeros(self.own_features, context_features)) if context_features else None
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for into, out in pairwise(sizes):
            for group, shape in ((self.weights, (out, into)), (self.biases, (out,))):
                drawn = torch.zeros(shape) if generator is None else torch.rand(shape, generator=generator) * 2 - 1
                group.append(nn.Parameter(drawn / into**0.5))

    def forward(self, features: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch"]:
        """Score of each vector of features."""
        scores = feedforward_scores(
            features,
            list(self.weights),
            list(self.biases),
            activation=self.activation,
            inner_activation=self.inner_activation,
            output_activation=self.output_activation,
        )
        if self.bilinear is None:
            return scores
        own, context = features[..., : self.own_features], features[..., self.own_features :]
        return scores + ((own @ self.bilinear) * context).sum(-1)
