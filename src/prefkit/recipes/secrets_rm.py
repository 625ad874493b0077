"""Secrets of RLHF II: a vote of reward models finds wrong labels, which are then flipped, softened or given a margin.

Known answer: a utility of 20 features that is nearly linear, so it is known which labels are wrong. They are of
Bradley-Terry choices, a quarter of which were turned round. The vote must not have memorised the labels: its members
see the data twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefkit.diagnostics import Interval
from prefkit.objectives import flip_weakest, strength_groups
from prefkit.preference import RewardNetwork, vote_strength
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Plot, bars

FEATURES, PAIRS, TEST, NOISE = 20, 1500, 3000, 0.25
MEMBERS, VOTE_EPOCHS, EPOCHS, FLIPPED, ALPHA, GROUPS = 10, 2, 12, 0.2, 0.2, 5
MODEL: Mapping[str, Any] = {
    "hidden": (64,),
    "activation": "relu",
    "learning_rate": 3e-3,
    "weight_decay": 0.0,
    "batch_size": 64,
}


def run(seed: int) -> Figures:
    """Accuracy on clean pairs of each use of the strength, and the share of wrong labels in each fifth of it."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(FEATURES)
    pairs, ahead = sampled(PAIRS, weights, rng)
    clean, clean_ahead = sampled(TEST, weights, rng)
    first = (rng.random(PAIRS) < 1 / (1 + np.exp(-ahead))) ^ (rng.random(PAIRS) < NOISE)
    # As labelled: the chosen response first.
    labelled = np.where(first[:, None, None], pairs, pairs[:, ::-1])
    wrong = np.where(first, ahead, -ahead) < 0

    def model(**how: Any) -> RewardNetwork:
        return RewardNetwork(**{**MODEL, "epochs": EPOCHS, "seed": seed, **how})

    strength = vote_strength(model(epochs=VOTE_EPOCHS), labelled, members=MEMBERS).mean
    groups = strength_groups(strength, GROUPS).numpy()
    flips = flip_weakest(strength, fraction=FLIPPED)
    flipped = np.where(flips.mask.numpy()[:, None, None], labelled[:, ::-1], labelled)
    margins, flipped_margins = strength.numpy(), flips.strength.numpy()
    trained = {
        "baseline": model().fit(labelled),
        "flip": model().fit(flipped),
        "margin": model().fit(labelled, margins=margins),
        "flip + margin": model().fit(flipped, margins=flipped_margins),
        "soft + margin": model(alpha=ALPHA, smoothed="negative").fit(labelled, margins=margins),
        "smoothing": model(alpha=ALPHA).fit(labelled),
    }
    figures = {name: each.score(clean, (clean_ahead > 0).astype(float)) for name, each in trained.items()}
    shares = {f"wrong in fifth {group + 1}": float(wrong[groups == group].mean()) for group in range(GROUPS)}
    drops = -np.diff(list(shares.values()))
    return {**figures, **shares, "wrong": float(wrong.mean()), "smallest fall": float(drops.min()), "zero": 0.0}


def sampled(
    count: int, weights: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pairs of options, `[count, 2, features]`, and how much the first is ahead in utility."""
    options = rng.standard_normal((count, 2, len(weights)))
    utility = options @ weights + 1.5 * np.tanh(options[..., 0] * options[..., 1])
    return options, utility[:, 0] - utility[:, 1]


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Accuracy of each reward model."""
    shown = ("baseline", "smoothing", "flip", "margin", "flip + margin", "soft + margin")
    return bars({name: figures[name] for name in shown}, title="Accuracy on clean pairs, a quarter of labels flipped")


def _ahead(by: float) -> Any:
    return lambda ours, theirs: ours.mean() >= theirs.mean() + by


CLAIMS = [
    Claim(
        "the share of wrong labels falls over fifths of the strength",
        "smallest fall",
        "zero",
        lambda fall, _: fall.mean() > 0,
    ),
    Claim(
        "at least 0.8 of the weakest fifth is wrong",
        "wrong in fifth 1",
        "wrong",
        lambda ours, _: ours.mean() >= 0.8,
    ),
    Claim(
        "at most 0.05 of the strongest fifth is wrong",
        "wrong in fifth 5",
        "wrong",
        lambda ours, _: ours.mean() <= 0.05,
    ),
    Claim("flipping gains 0.04 of accuracy", "flip", "baseline", _ahead(0.04)),
    Claim("the margin gains 0.02", "margin", "baseline", _ahead(0.02)),
    Claim("flipping with margin is no worse than the margin", "flip + margin", "margin", _ahead(0.0)),
    Claim("soft labels with margin gain 0.03", "soft + margin", "baseline", _ahead(0.03)),
]

RECIPE = Recipe(
    slug="secrets-rm",
    title="Reward models from noisy and shifting preferences",
    year=2024,
    paper="arXiv 2401.06080",
    parts={
        "objective": {"kind": "reward_model_margin", "alpha": 0.2, "smoothed": "negative"},
        "strength": {"models": 10, "flip": 0.2},
    },
    experiment=Experiment(run, CLAIMS, plot, seeds=5, quick_seeds=2),
)
