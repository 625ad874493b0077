"""The posterior of a logistic regression with a Laplace prior, by sampling or approximated.

P(y = 1 | x) = sigmoid(x . alpha), without an intercept: exchanging the two responses of a pair changes the sign of x
and the label. alpha_p ~ Laplace(0, scale), each for itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from prefkit.errors import OptionError, PrefkitError, unknown

Values: TypeAlias = NDArray[np.float64]
Sampler = Literal["nuts", "hmc", "laplace_approx"]
SAMPLERS = ("nuts", "hmc", "laplace_approx")

RHAT = 1.05
"""Above this, the chains have not come to one distribution."""

_TARGET = 0.8
_DEEPEST = 8


@dataclass(frozen=True)
class Posterior:
    """What is known of the weights.

    Args:
        draws: `[chains, draws, d]`.
        mean: `[d]`.
        sd: `[d]`.
        rhat: `[d]`, split R-hat; 1 where the draws are independent.
    """

    draws: Values
    mean: Values
    sd: Values
    rhat: Values

    def interval(self, coverage: float = 0.95) -> tuple[Values, Values]:
        """Lower and upper ends `[d]` of the central interval."""
        pooled = self.draws.reshape(-1, self.draws.shape[-1])
        low, high = np.quantile(pooled, [(1 - coverage) / 2, (1 + coverage) / 2], axis=0)
        return low, high


def log_posterior(
    features: Float[Tensor, "n d"], labels: Float[Tensor, " n"], alpha: Float[Tensor, " d"], *, scale: float = 0.1
) -> Float[Tensor, ""]:
    """Log-likelihood of the labels and log-density of the prior, up to the evidence; the gradient at 0 is 0.

    Args:
        features: differences of each pair.
        labels: 1 where the first response was preferred, else 0.
        alpha: weights.
        scale: of the prior, above 0.

    Raises:
        OptionError: the scale is not above 0.
    """
    _check_scale(scale)
    signs = 2 * labels.to(alpha.dtype) - 1
    prior = -alpha.abs().sum() / scale - len(alpha) * math.log(2 * scale)
    return F.logsigmoid(signs * (features.to(alpha.dtype) @ alpha)).sum() + prior


def fit_posterior(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    scale: float = 0.1,
    sampler: Sampler = "nuts",
    warmup: int = 500,
    draws: int = 2000,
    chains: int = 4,
    seed: int = 0,
) -> Posterior:
    """The posterior of the weights.

    Args:
        features: `[n, d]`.
        labels: `[n]`, 0 or 1.
        scale: of the prior, above 0; 0.1 is the paper's, and shrinks heavily where there are few rows.
        sampler: `nuts` (Hoffman and Gelman 2014), `hmc` (a random number of steps, all chains at once; faster), or
            `laplace_approx`, a Gaussian approximation without sampling, from which independent draws are made.
        warmup: steps of each chain that are thrown away, and in which step size and scales are found.
        draws: steps of each chain that are kept.
        chains: number of chains.
        seed: fixes the draws.

    Raises:
        OptionError: an option is out of range or unknown.
        PrefkitError: shapes do not fit, labels are not 0 or 1, or there are no rows.

    Warns:
        UserWarning: all labels are equal, or the chains disagree (R-hat above 1.05).

    Source: Gaussian approximation: the bounds of Jaakkola and Jordan (2000) and |a| <= (a^2 / e + e) / 2.
    """
    _check_scale(scale)
    if sampler not in SAMPLERS:
        raise OptionError(unknown("sampler", sampler, SAMPLERS))
    for name, value, least in (("warmup", warmup, 1), ("draws", draws, 4), ("chains", chains, 1)):
        if value < least:
            raise OptionError(f"{name} must be at least {least}, got {value}")
    x, y = np.asarray(features, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if x.ndim != 2 or not x.size or y.shape != x.shape[:1]:
        raise PrefkitError(f"features must be [n, d] and labels [n], n and d at least 1; got {x.shape} and {y.shape}")
    if not np.isin(y, (0.0, 1.0)).all():
        raise PrefkitError("labels must be 0 or 1")
    if len(set(y.tolist())) == 1:
        warnings.warn(f"all {len(y)} labels are {int(y[0])}: the weights say little", stacklevel=2)
    signed = x * (2 * y - 1)[:, None]
    generator = np.random.default_rng(seed)
    mean, covariance = _gaussian(signed, scale)
    spread = np.sqrt(np.diag(covariance))
    if sampler == "laplace_approx":
        root = np.linalg.cholesky(covariance)
        found = mean + generator.standard_normal((chains, draws, len(mean))) @ root.T
        return Posterior(found, mean, spread, np.ones_like(mean))
    start = mean + 0.5 * spread * generator.standard_normal((chains, len(mean)))
    density = _density(signed, scale)
    if sampler == "hmc":
        found = _hmc(density, start, spread, warmup, draws, generator)
    else:
        found = np.stack([_nuts(density, one, spread, warmup, draws, generator) for one in start])
    rhat = split_rhat(found)
    if float(rhat.max()) > RHAT:
        warnings.warn(
            f"the chains disagree (R-hat {rhat.max():.2f}, above {RHAT}): take more warmup and draws", stacklevel=2
        )
    pooled = found.reshape(-1, found.shape[-1])
    return Posterior(found, pooled.mean(0), pooled.std(0, ddof=1), rhat)


def exact_posterior(features: ArrayLike, labels: ArrayLike, *, scale: float = 0.1) -> tuple[Values, Values]:
    """Mean and standard deviation of one or two weights by integration: what a sampler has to come to.

    Args:
        features: `[n, d]`, d 1 or 2.
        labels: `[n]`, 0 or 1.
        scale: of the prior, above 0.

    Raises:
        OptionError: the scale is not above 0, or there are more weights.
    """
    _check_scale(scale)
    x, y = np.asarray(features, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] not in (1, 2):
        raise OptionError(f"the posterior is integrated for one or two weights, got features of shape {x.shape}")
    centre, covariance = _gaussian(x * (2 * y - 1)[:, None], scale)
    axes = [
        _quadrature(float(mean), float(np.sqrt(variance)), scale)
        for mean, variance in zip(centre, np.diag(covariance), strict=True)
    ]
    grid = np.stack(np.meshgrid(*(axis for axis, _ in axes), indexing="ij"), axis=-1).reshape(-1, x.shape[1])
    volume = np.prod(np.stack(np.meshgrid(*(weight for _, weight in axes), indexing="ij"), axis=-1), axis=-1).ravel()
    density = _density(x * (2 * y - 1)[:, None], scale)
    values = np.concatenate([density(part)[0] for part in np.array_split(grid, max(1, len(grid) // 10_000))])
    mass = volume * np.exp(values - values.max())
    mass /= mass.sum()
    mean: Values = mass @ grid
    sd: Values = np.sqrt(mass @ (grid - mean) ** 2)
    return mean, sd


def _quadrature(centre: float, spread: float, scale: float) -> tuple[Values, Values]:
    """Points and weights of Gauss and Legendre in panels: narrow ones where the mass is, wide ones far out.

    The prior has a kink at 0, which is an edge, and no weight worth counting beyond 30 of its scales.
    """
    far = 30 * scale * np.linspace(0.0, 1.0, 11) ** 2
    near = centre + spread * np.linspace(-9.0, 9.0, 19)
    edges = np.unique(np.concatenate([-far, far, near[np.abs(near) < far[-1]]]))
    points, weights = np.polynomial.legendre.leggauss(6)
    middles, halves = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    return (middles[:, None] + halves[:, None] * points).ravel(), (halves[:, None] * weights).ravel()


def split_rhat(draws: ArrayLike) -> Values:
    """Split R-hat of each weight (Gelman et al. 2013): 1 where all halves of all chains agree.

    Args:
        draws: `[chains, draws, d]`.
    """
    array = np.asarray(draws, dtype=np.float64)
    half = array.shape[1] // 2
    parts = np.concatenate([array[:, :half], array[:, half : 2 * half]])
    within = parts.var(axis=1, ddof=1).mean(0)
    between = half * parts.mean(axis=1).var(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.sqrt(((half - 1) / half * within + between / half) / within)
    return np.where(within > 0, found, 1.0)


_Density = Callable[[Values], tuple[Any, Values]]
"""From weights `[..., d]` to the log-density `[...]` and its gradient `[..., d]`."""


def _density(signed: Values, scale: float) -> _Density:
    turned = np.ascontiguousarray(signed.T)

    def density(alpha: Values) -> tuple[Any, Values]:
        margin = alpha @ turned
        # exp of minus the size never overflows.
        small = np.exp(-np.abs(margin))
        wrong = np.where(margin >= 0, small, 1.0) / (1.0 + small)
        value = (np.minimum(margin, 0.0) - np.log1p(small)).sum(-1) - np.abs(alpha).sum(-1) / scale
        return value, wrong @ signed - np.sign(alpha) / scale

    return density


def _gaussian(signed: Values, scale: float, rounds: int = 200) -> tuple[Values, Values]:
    """Mean and covariance of a Gaussian approximation, from quadratic bounds that are tightened in turn."""
    half = 0.5 * signed.sum(0)
    second = np.full(signed.shape[1], 2 * scale * scale)
    xi = np.ones(len(signed))
    mean: Values = np.zeros(signed.shape[1])
    covariance: Values = np.diag(second)
    for _ in range(rounds):
        curvature = np.tanh(xi / 2) / (2 * xi)
        prior = 1 / (scale * np.sqrt(second))
        precision: Values = (signed * curvature[:, None]).T @ signed + np.diag(prior)
        covariance = np.linalg.inv(precision).astype(np.float64)
        before, mean = mean, covariance @ half
        second = mean * mean + np.diag(covariance)
        xi = np.sqrt(np.maximum(np.einsum("nd,de,ne->n", signed, covariance, signed) + (signed @ mean) ** 2, 1e-12))
        if float(np.abs(mean - before).max()) < 1e-8:
            break
    # The bound is flatter than the likelihood is at the mean: take the likelihood's own curvature there.
    rate = 1 / (1 + np.exp(-np.clip(signed @ mean, -500, 500)))
    own = (signed * (rate * (1 - rate))[:, None]).T @ signed + np.diag(1 / (scale * np.sqrt(second)))
    refined: Values = np.linalg.inv(own).astype(np.float64)
    return mean, refined


class _StepSize:
    """Dual averaging (Nesterov 2009; Hoffman and Gelman 2014, algorithm 5) towards a rate of acceptance."""

    def __init__(self, start: float) -> None:
        self.now = self.smooth = start
        self._goal, self._error, self._count = math.log(10 * start), 0.0, 0

    def adapt(self, accepted: float) -> None:
        self._count += 1
        share = 1 / (self._count + 10)
        self._error = (1 - share) * self._error + share * (_TARGET - accepted)
        log_step = self._goal - math.sqrt(self._count) / 0.05 * self._error
        weight = self._count**-0.75
        self.smooth = math.exp(weight * log_step + (1 - weight) * math.log(self.smooth))
        self.now = math.exp(log_step)


def _hmc(
    density: _Density, start: Values, spread: Values, warmup: int, draws: int, generator: np.random.Generator
) -> Values:
    """Hamiltonian Monte Carlo, all chains in step; the length of a path is drawn anew each time, the same for all."""
    place = start.copy()
    value, slope = density(place)
    step, kept = _StepSize(0.3), np.empty((len(start), draws, start.shape[1]))
    seen: list[Values] = []
    for turn in range(warmup + draws):
        size = step.now if turn < warmup else step.smooth
        steps = max(1, math.ceil(generator.uniform(0.5, 2.0) / size))
        momentum = generator.standard_normal(place.shape)
        new, new_slope, push = place, slope, momentum
        new_value = value
        for _ in range(min(steps, 64)):
            push = push + 0.5 * size * spread * new_slope
            new = new + size * spread * push
            new_value, new_slope = density(new)
            push = push + 0.5 * size * spread * new_slope
        change = new_value - value + 0.5 * ((momentum**2).sum(-1) - (push**2).sum(-1))
        chance = np.exp(np.minimum(change, 0.0))
        chance = np.where(np.isfinite(chance), chance, 0.0)
        taken = generator.random(len(place)) < chance
        place = np.where(taken[:, None], new, place)
        value, slope = np.where(taken, new_value, value), np.where(taken[:, None], new_slope, slope)
        if turn < warmup:
            step.adapt(float(chance.mean()))
            seen.append(place)
            if turn == warmup // 2 and turn > 20:
                spread = np.maximum(np.concatenate(seen[len(seen) // 2 :]).std(0), 1e-3 * spread)
                step = _StepSize(step.smooth)
        else:
            kept[:, turn - warmup] = place
    return kept


def _nuts(
    density: _Density, start: Values, spread: Values, warmup: int, draws: int, generator: np.random.Generator
) -> Values:
    """The no-U-turn sampler with multinomial choice along the path (Betancourt 2017), one chain."""
    place = start.copy()
    step, kept, seen = _StepSize(0.3), np.empty((draws, len(start))), []
    for turn in range(warmup + draws):
        size = step.now if turn < warmup else step.smooth
        place, accepted = _nuts_move(density, place, spread, size, generator)
        if turn < warmup:
            step.adapt(accepted)
            seen.append(place)
            if turn == warmup // 2 and turn > 20:
                spread = np.maximum(np.stack(seen[len(seen) // 2 :]).std(0), 1e-3 * spread)
                step = _StepSize(step.smooth)
        else:
            kept[turn - warmup] = place
    return kept


@dataclass
class _Tree:
    """A stretch of a path: both of its ends, a point drawn from it by weight, and what it weighs (in logs)."""

    left: tuple[Values, Values, Values]
    right: tuple[Values, Values, Values]
    drawn: Values
    weight: float
    good: bool
    accepted: float
    count: int


def _nuts_move(
    density: _Density, place: Values, spread: Values, size: float, generator: np.random.Generator
) -> tuple[Values, float]:
    value, slope = density(place)
    momentum = generator.standard_normal(len(place))
    energy = float(value) - 0.5 * float(momentum @ momentum)

    def leap(end: tuple[Values, Values, Values], sign: int) -> _Tree:
        point, push, pull = end
        push = push + 0.5 * sign * size * spread * pull
        point = point + sign * size * spread * push
        found, pull = density(point)
        push = push + 0.5 * sign * size * spread * pull
        gain = float(found) - 0.5 * float(push @ push) - energy
        gain = gain if math.isfinite(gain) else -math.inf
        end = (point, push, pull)
        return _Tree(end, end, point, gain, gain > -1000, min(1.0, math.exp(min(gain, 0.0))), 1)

    def build(end: tuple[Values, Values, Values], sign: int, depth: int) -> _Tree:
        if depth == 0:
            return leap(end, sign)
        first = build(end, sign, depth - 1)
        if not first.good:
            return first
        second = build(first.left if sign < 0 else first.right, sign, depth - 1)
        return join(first, second, sign, biased=False)

    def join(first: _Tree, second: _Tree, sign: int, *, biased: bool) -> _Tree:
        left, right = (second.left, first.right) if sign < 0 else (first.left, second.right)
        weight = float(np.logaddexp(first.weight, second.weight))
        odds = second.weight - (first.weight if biased else weight)
        take = second.good and math.log(max(generator.random(), 1e-300)) < odds
        across = (right[0] - left[0]) / spread
        straight = float(across @ left[1]) > 0 and float(across @ right[1]) > 0
        return _Tree(
            left,
            right,
            second.drawn if take else first.drawn,
            weight,
            second.good and straight,
            first.accepted + second.accepted,
            first.count + second.count,
        )

    here = (place, momentum, slope)
    tree = _Tree(here, here, place, 0.0, True, 0.0, 0)
    for depth in range(_DEEPEST):
        sign = 1 if generator.random() < 0.5 else -1
        grown = build(tree.right if sign > 0 else tree.left, sign, depth)
        tree = join(tree, grown, sign, biased=True)
        if not tree.good:
            break
    return tree.drawn, tree.accepted / max(tree.count, 1)


def _check_scale(scale: float) -> None:
    if not scale > 0:
        raise OptionError(f"the scale of the prior must be greater than 0, got {scale}")
