"""Context-PM: a preference that depends on a context is read off the context, or inferred from a few choices.

Known answer: six contexts, each a direction in which responses are better. Every pair of responses stands twice, under
the context in which the first is most ahead and under that in which the second is, so a model that does not read the
context is right half of the time, whatever it learns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from prefkit.diagnostics import Interval, reversal_metrics
from prefkit.preference import (
    RewardNetwork,
    decomposition_bound,
    infer_context,
    marginal_preference,
    with_contexts,
)
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Curve, Plot, curves

FEATURES, CONTEXTS, PAIRS, TEST = 12, 6, 400, 2000
SAMPLES, PEOPLE, HELD_OUT = (0, 1, 2, 4, 8, 16), 200, 20
MODEL: Mapping[str, Any] = {
    "hidden": (64,),
    "activation": "tanh",
    "learning_rate": 5e-3,
    "weight_decay": 0.0,
    "epochs": 200,
}
Floats = NDArray[np.float64]


def run(seed: int) -> Figures:
    """Accuracy with the right, a wrong and no context, with an inferred one, and the bound of the error."""
    rng = np.random.default_rng(seed)
    contexts = np.eye(CONTEXTS, FEATURES) + 0.3 * rng.standard_normal((CONTEXTS, FEATURES))
    train, test = reversals(PAIRS, contexts, rng), reversals(TEST, contexts, rng)
    blind = RewardNetwork(**MODEL, seed=seed).fit(*comparisons(*train))
    reading = RewardNetwork(**MODEL, context_features=FEATURES, seed=seed)
    reading.fit(*comparisons(*train, contexts=contexts))

    pairs, under = test
    shuffled = rng.integers(CONTEXTS, size=under.shape)
    own = blind.reward(pairs.reshape(-1, FEATURES)).reshape(len(pairs), 2)
    judged = reversal_metrics(*given(reading, pairs, contexts[under]))
    return {
        "no context": float(reversal_metrics(own, own).accuracy.mean()),
        "half": 0.5,
        "context": float(judged.accuracy.mean()),
        "both correct": float(judged.both_correct.mean()),
        "random context": float(reversal_metrics(*given(reading, pairs, contexts[shuffled])).accuracy.mean()),
        **inferred(reading, contexts, rng),
        "slack of the bound": slack(reading, pairs, contexts, rng),
        "zero": 0.0,
    }


def reversals(count: int, contexts: Floats, rng: np.random.Generator) -> tuple[Floats, NDArray[np.int64]]:
    """Pairs of responses `[count, 2, features]`, and the contexts `[count, 2]` under which the first and the second
    is most ahead."""
    found: list[Floats] = []
    while sum(map(len, found)) < count:
        pairs = rng.standard_normal((count, 2, FEATURES))
        ahead = (pairs[:, 0] - pairs[:, 1]) @ contexts.T
        found.append(pairs[(ahead.max(1) > 0) & (ahead.min(1) < 0)])
    kept = np.concatenate(found)[:count]
    ahead = (kept[:, 0] - kept[:, 1]) @ contexts.T
    return kept, np.stack([ahead.argmax(1), ahead.argmin(1)], 1)


def comparisons(pairs: Floats, under: NDArray[np.int64], *, contexts: Floats | None = None) -> tuple[Floats, Floats]:
    """Both comparisons of each pair, with the features of their contexts if these are given, and their labels."""
    both = np.concatenate([pairs, pairs])
    labels = np.repeat([1.0, 0.0], len(pairs))
    return (both if contexts is None else with_contexts(both, contexts[under.T.reshape(-1)])), labels


def given(model: RewardNetwork, pairs: Floats, contexts: Floats) -> list[Floats]:
    """Rewards of both responses of each pair, `[pairs, 2]`, under each of its contexts, which are features
    `[pairs, contexts, features]`."""
    sides = []
    for place in range(contexts.shape[1]):
        rows = with_contexts(pairs, contexts[:, place])
        sides.append(model.reward(rows.reshape(-1, rows.shape[-1])).reshape(len(pairs), 2))
    return sides


def inferred(model: RewardNetwork, contexts: Floats, rng: np.random.Generator) -> Figures:
    """Accuracy for people whose context is unknown but for n choices of theirs, mixing over all contexts."""
    most = max(SAMPLES)
    right: dict[int, list[float]] = {n: [] for n in SAMPLES}
    every = np.broadcast_to(contexts, (most + HELD_OUT, CONTEXTS, FEATURES))
    for person in rng.integers(CONTEXTS, size=PEOPLE):
        pairs = rng.standard_normal((most + HELD_OUT, 2, FEATURES))
        utility = (pairs[:, 0] - pairs[:, 1]) @ contexts[person]
        labels = torch.from_numpy((rng.random(len(pairs)) < expit(utility)).astype(np.int64))
        first, second = torch.from_numpy(np.stack(given(model, pairs, every), -1)).unbind(1)
        for n in SAMPLES:
            posterior = infer_context(
                (first - second)[:n], labels[:n], torch.full_like(first[0], 1 / CONTEXTS)
            ).posterior
            mixed = marginal_preference(first[most:], second[most:], posterior.expand(HELD_OUT, -1)).prob
            right[n].append(float(((mixed.numpy() > 0.5) == (utility[most:] > 0)).mean()))
    return {f"inferred from {n}": float(np.mean(values)) for n, values in right.items()}


def slack(model: RewardNetwork, pairs: Floats, contexts: Floats, rng: np.random.Generator) -> float:
    """The least by which the bound of the error exceeds it, over pairs with random true and modelled contexts."""
    true, modelled = rng.dirichlet(np.ones(CONTEXTS), (2, len(pairs)))
    every = np.broadcast_to(contexts, (len(pairs), CONTEXTS, FEATURES))
    rewards = np.stack(given(model, pairs, every), -1)
    preferences = expit((pairs[:, 0] - pairs[:, 1]) @ contexts.T), expit(rewards[:, 0] - rewards[:, 1])
    found = decomposition_bound(*map(torch.from_numpy, (true, modelled, *preferences)))
    return float((found.bound - found.total_error).min())


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Accuracy over the number of choices from which the context is inferred."""
    values = [figures[f"inferred from {n}"] for n in SAMPLES]
    line = Curve(SAMPLES, [v.mean for v in values], [v.low for v in values], [v.high for v in values])
    return curves({"inferred": line}, title="Accuracy with an inferred context", x="choices seen", y="accuracy")


CLAIMS = [
    Claim(
        "without the context accuracy is one half, to 1e-6",
        "no context",
        "half",
        lambda ours, half: bool((abs(ours - half) <= 1e-6).all()),
    ),
    Claim("with the context accuracy is at least 0.97", "context", "no context", lambda ours, _: ours.mean() >= 0.97),
    Claim(
        "with a random context it lies in [0.46, 0.54]",
        "random context",
        "half",
        lambda ours, half: abs(ours.mean() - half.mean()) <= 0.04,
    ),
    *(
        Claim(
            f"a context inferred from {more} choices is better than from {fewer}",
            f"inferred from {more}",
            f"inferred from {fewer}",
            lambda more, fewer: more.mean() > fewer.mean(),
        )
        for fewer, more in ((0, 2), (2, 8), (8, 16))
    ),
    Claim(
        "16 choices gain 0.2 of accuracy",
        "inferred from 16",
        "inferred from 0",
        lambda most, none: most.mean() >= none.mean() + 0.2,
    ),
    Claim(
        "the bound of the error holds for every pair",
        "slack of the bound",
        "zero",
        lambda slack, _: bool((slack >= 0).all()),
    ),
]

RECIPE = Recipe(
    slug="context-pm",
    title="Preference models that read the context of a judgement",
    year=2024,
    paper="arXiv 2407.14916",
    parts={
        "objective": {"kind": "reward_model"},
        "data": {"format": "rpr", "contexts": {"template": "Context: {context}"}},
    },
    experiment=Experiment(run, CLAIMS, plot, seeds=5, quick_seeds=2),
)
