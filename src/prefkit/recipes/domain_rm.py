"""Domain-RM: a reward that is a simple function of an expert's features needs few judgements.

Known answer: the utility is linear in seven features. A small network on them sees those; a generic one sees an
embedding that holds the same features among others, and needs far more pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import spearmanr

from prefkit.diagnostics import Interval
from prefkit.preference import RewardNetwork
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Curve, Plot, curves

UTILITY = 2 * np.array([2, 3, 0, 1, 1, 3, 0.5])
NUISANCE, EMBEDDING, TEST = 32, 128, 3000
SIZES = (50, 100, 200, 400, 800, 1600)
MODELS: Mapping[str, Mapping[str, Any]] = {
    "domain": {"hidden": (), "learning_rate": 5e-2},
    "domain, one hidden layer": {"hidden": (5,), "learning_rate": 1e-2},
    "text": {"hidden": (32,), "learning_rate": 1e-2},
}
Floats = NDArray[np.float64]


def run(seed: int) -> Figures:
    """Accuracy of each model over the number of pairs, and how well the learned weights are ordered."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((len(UTILITY) + NUISANCE, EMBEDDING)) / np.sqrt(len(UTILITY) + NUISANCE)

    def drawn(count: int) -> tuple[Floats, Floats, Floats, Floats]:
        features = rng.random((count, 2, len(UTILITY)))
        nuisance = rng.standard_normal((count, 2, NUISANCE))
        embedded = np.tanh(np.concatenate([2 * (features - 0.5), nuisance], 2) @ mixing)
        embedded += 0.3 * rng.standard_normal(embedded.shape)
        ahead = (features[:, 0] - features[:, 1]) @ UTILITY
        return features, embedded, (rng.random(count) < expit(ahead)).astype(float), ahead

    features, embedded, first, _ = drawn(max(SIZES))
    test_features, test_embedded, test_first, ahead = drawn(TEST)
    figures: dict[str, float] = {
        "ceiling": float(((ahead > 0) == test_first).mean()),
        "naive mean": float(((test_features.mean(2) @ [1, -1] > 0) == test_first).mean()),
    }
    for size in SIZES:
        for name, how in MODELS.items():
            train, test = (embedded, test_embedded) if name == "text" else (features, test_features)
            model = RewardNetwork(**how, weight_decay=0.05, epochs=150, seed=seed)
            model.fit(train[:size], first[:size])
            figures[f"{name} {size}"] = model.score(test, test_first)
            if name == "domain":
                figures[f"order of weights {size}"] = float(
                    spearmanr(list(model.explain().values()), UTILITY).statistic
                )
    return {**figures, "one": 1.0}


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Accuracy over the number of pairs."""
    lines = {}
    for name in MODELS:
        values = [figures[f"{name} {size}"] for size in SIZES]
        lines[name] = Curve(SIZES, [v.mean for v in values], [v.low for v in values], [v.high for v in values])
    for name in ("ceiling", "naive mean"):
        lines[name] = Curve(SIZES, [figures[name].mean] * len(SIZES))
    return curves(lines, title="Accuracy over training pairs", x="training pairs", y="accuracy")


CLAIMS = [
    Claim(
        "features from 50 pairs are as good as text from 1600",
        "domain 50",
        "text 1600",
        lambda domain, text: domain.mean() >= text.mean(),
    ),
    Claim(
        "from 200 pairs they are within 0.02 of what noise allows",
        "domain 200",
        "ceiling",
        lambda domain, ceiling: domain.mean() >= ceiling.mean() - 0.02,
    ),
    *(
        Claim(
            f"from {size} pairs they gain 0.05 on the plain mean of the features",
            f"domain {size}",
            "naive mean",
            lambda domain, naive: domain.mean() >= naive.mean() + 0.05,
        )
        for size in SIZES
    ),
    Claim(
        "the weights learned from 800 pairs are in the true order (Spearman at least 0.8)",
        "order of weights 800",
        "one",
        lambda order, _: order.mean() >= 0.8,
    ),
]

RECIPE = Recipe(
    slug="domain-rm",
    title="Reward models over expert features of a domain",
    year=2024,
    paper="arXiv 2402.15473",
    parts={
        "model": {
            **{"hidden": [6, 4, 2], "activation": "relu", "inner_activation": None},
            **{"weight_decay": 0.05, "batch_size": 32},
        }
    },
    experiment=Experiment(run, CLAIMS, plot, seeds=5, quick_seeds=2),
)
