"""Dissecting: the properties that a judge rewards are recovered from its choices, and can be played.

Known answer: a generated judge with known weights. It comes from the family that is fitted, so this is a test of
recovery, not of people.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from prefkit.diagnostics import (
    PROPERTIES,
    Interval,
    PreferenceDissection,
    correlations,
    fit_posterior,
    ranked_properties,
)
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Plot, bars

PAIRS, TEST_PAIRS, REWARDED = 1600, 4000, 12
WARMUP, DRAWS = 300, 800
COVERED = 10
"""Generated judges a seed whose intervals are held against their weights; 50 over the five seeds."""

Values = NDArray[np.float64]


def sigmoid(values: Values) -> Values:
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -values))


def features(rows: int, generator: np.random.Generator, width: int = len(PROPERTIES)) -> Values:
    """Differences of pairs."""
    return generator.choice([-1.0, 0.0, 1.0], p=[0.25, 0.5, 0.25], size=(rows, width))


def choices(x: Values, weights: Values, generator: np.random.Generator) -> NDArray[np.int64]:
    """What a judge with these weights prefers."""
    return (generator.random(len(x)) < sigmoid(x @ weights)).astype(np.int64)


def coverage(generator: np.random.Generator, seed: int) -> float:
    """Share of weights within their 95% intervals, of judges whose weights come from the prior that is fitted."""
    inside = []
    for judge in range(COVERED):
        truth = generator.laplace(0.0, 0.3, size=10)
        x = features(400, generator, 10)
        found = fit_posterior(
            x,
            choices(x, truth, generator),
            scale=0.3,
            sampler="hmc",
            warmup=WARMUP,
            draws=DRAWS,
            seed=1000 * seed + judge,
        )
        low, high = found.interval()
        inside.append(((low <= truth) & (truth <= high)).mean())
    return float(np.mean(inside))


def run(seed: int) -> Figures:
    """Recovery of one judge's weights, what it costs in accuracy, and what knowing them is worth."""
    generator = np.random.default_rng(seed)
    truth = np.zeros(len(PROPERTIES))
    rewarded = generator.choice(len(truth), REWARDED, replace=False)
    truth[rewarded] = generator.choice([-1.0, 1.0], REWARDED) * generator.uniform(0.3, 1.2, REWARDED)
    x, test = features(PAIRS, generator), features(TEST_PAIRS, generator)
    labels, expected = choices(x, truth, generator), choices(test, truth, generator)
    found = PreferenceDissection(sampler="hmc", warmup=WARMUP, draws=DRAWS, seed=seed).fit(x, labels)
    top, last = found.top()
    best, worst = ranked_properties(truth)
    others = features(TEST_PAIRS, generator)

    def rate(adopted: list[str]) -> float:
        played = others.copy()
        played[:, [PROPERTIES.index(name) for name in adopted]] = 1.0
        return float(sigmoid(played @ truth).mean())

    return {
        "correlation": correlations(found.weights_[0], truth).pearson,
        "accuracy": float(((found.predict_proba(test) > 0.5) == expected).mean()),
        "accuracy of the truth": float(((test @ truth > 0) == expected).mean()),
        "of the best three": float(len(set(top) & set(best))),
        "of the worst three": float(len(set(last) & set(worst))),
        "win rate": rate([]),
        "win rate with the best three": rate(top),
        "win rate with the worst three": rate(last),
        "coverage": coverage(generator, seed),
        "0.95": 0.95,
        "2": 2.0,
        "0.75": 0.75,
        "0.25": 0.25,
        "0.9": 0.9,
        "0.99": 0.99,
    }


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Win rates by what a policy adopts."""
    names = ("win rate with the worst three", "win rate", "win rate with the best three")
    return bars({name: figures[name] for name in names}, title="Playing a judge", x="win rate", baseline=0.5)


CLAIMS = [
    Claim(
        "recovered weights correlate at least 0.95 with the true ones on every seed",
        "correlation",
        "0.95",
        lambda found, bound: bool((found >= bound).all()),
    ),
    Claim(
        "choices are predicted within 0.02 of the true weights' accuracy on every seed",
        "accuracy",
        "accuracy of the truth",
        lambda found, best: bool((found >= best - 0.02).all()),
    ),
    *(
        Claim(
            f"at least two of the {end} three properties are found on every seed",
            f"of the {end} three",
            "2",
            lambda found, bound: bool((found >= bound).all()),
        )
        for end in ("best", "worst")
    ),
    Claim(
        "a policy that adopts the best three wins at least 0.75",
        "win rate with the best three",
        "0.75",
        lambda found, bound: bool((found >= bound).all()),
    ),
    Claim(
        "one that adopts the worst three wins at most 0.25",
        "win rate with the worst three",
        "0.25",
        lambda found, bound: bool((found <= bound).all()),
    ),
    Claim(
        "95% intervals cover at least 0.90 of the weights",
        "coverage",
        "0.9",
        lambda found, low: found.mean() >= low.mean(),
    ),
    Claim("and at most 0.99 of them", "coverage", "0.99", lambda found, high: found.mean() <= high.mean()),
]

RECIPE = Recipe(
    slug="dissecting",
    title="Which properties of a response people and models prefer",
    year=2024,
    paper="arXiv 2402.11296",
    parts={"dissection": {"prior_scale": 0.1, "folds": 10, "sampler": "nuts"}},
    experiment=Experiment(run, CLAIMS, plot, seeds=5, quick_seeds=1),
)
