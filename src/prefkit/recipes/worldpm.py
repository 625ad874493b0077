"""WorldPM: what is objective scales as a power law, what is a matter of taste and style does not.

Known answer: content and style are drawn, and a taste for style, which is easy to learn, comes with a preference for
content, which is not. With more pairs a linear reward model learns content; tests of it go on falling, and a test of
another taste turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from prefkit.diagnostics import Interval, phi, scaling_fit, style_control
from prefkit.preference import RewardNetwork
from prefkit.recipes.recipe import Claim, Experiment, Figures, Recipe
from prefkit.report.plots import Curve, Plot, curves

CONTENT, SIZES, TEST, STYLE_SCALE = 64, tuple(256 * 2**k for k in range(8)), 4000, 3.0
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Choices:
    """Pairs of responses: differences of content `[n, content]` and of style `[n]`, and whether the first is preferred
    `[n]`."""

    content: Floats
    style: Floats
    first: Floats

    @property
    def pairs(self) -> Floats:
        """Features of both responses; only differences count, so the second is 0."""
        features = np.column_stack([self.content, STYLE_SCALE * self.style])
        return np.stack([features, np.zeros_like(features)], 1)


def run(seed: int) -> Figures:
    """Losses of each test over the number of pairs, reliance on style, and what style control leaves."""
    rng = np.random.default_rng(seed)
    taste = rng.standard_normal(CONTENT) * 2 / np.sqrt(CONTENT)
    other = rng.standard_normal(CONTENT) / np.sqrt(CONTENT)

    def drawn(count: int) -> tuple[Floats, Floats]:
        return np.sqrt(2) * rng.standard_normal((count, CONTENT)), np.sqrt(2) * rng.standard_normal(count)

    def judged(content: Floats, style: Floats, log_odds: Floats) -> Choices:
        return Choices(content, style, (rng.random(len(style)) < expit(log_odds)).astype(float))

    content, style = drawn(SIZES[-1])
    training = judged(content, style, content @ taste + 0.6 * style)
    content, style = drawn(TEST)
    better = np.sign(content @ taste)
    adversarial = Choices(content, -better * np.abs(style), (better > 0).astype(float))
    content, style = drawn(TEST)
    objective = Choices(content, style, (content @ taste > 0).astype(float))
    content, style = drawn(TEST)
    subjective = judged(content, style, content @ (0.3 * taste + other) + 1.5 * style)
    content, style = drawn(TEST)
    validation = judged(content, style, content @ taste + 0.6 * style)
    tests = {"adversarial": adversarial, "objective": objective, "subjective": subjective}

    figures: dict[str, float] = {}
    for size in SIZES:
        model = RewardNetwork(hidden=(), learning_rate=3e-3, epochs=1, batch_size=64, zero_start=True, seed=seed).fit(
            training.pairs[:size], training.first[:size]
        )
        ahead = {name: model.decision_function(test.pairs) for name, test in tests.items()}
        for name, test in tests.items():
            figures[f"{name} {size}"] = float(np.logaddexp(0, -np.where(test.first == 1, 1, -1) * ahead[name]).mean())
        chosen = model.decision_function(validation.pairs) > 0
        figures[f"phi {size}"] = phi(chosen, validation.style > 0).phi
        figures[f"validation {size}"] = model.score(validation.pairs, validation.first)
        spread = subjective.style[:, None] / subjective.style.std()
        control = style_control(ahead["subjective"], spread, 1 - subjective.first)
        figures[f"gap {size}"], figures[f"controlled {size}"] = control.gap, control.controlled_loss
    return {**figures, "phi of labels": phi(validation.first, validation.style > 0).phi, **_summary(figures)}


def _summary(figures: Mapping[str, float]) -> Figures:
    found = {}
    for name in ("adversarial", "objective", "subjective"):
        found[f"{name} exponent"] = scaling_fit(SIZES, _over_sizes(figures, name)).exponent
    found["subjective least"] = min(_over_sizes(figures, "subjective"))
    found["phi peak"] = max(_over_sizes(figures, "phi"))
    found["gap least"] = min(_over_sizes(figures, "gap"))
    return found


def _over_sizes(figures: Mapping[str, float], name: str) -> list[float]:
    return [figures[f"{name} {size}"] for size in SIZES]


def plot(figures: Mapping[str, Interval]) -> Plot:
    """Losses over the number of pairs."""
    lines = {
        name: Curve(
            SIZES,
            [figures[f"{name} {size}"].mean for size in SIZES],
            [figures[f"{name} {size}"].low for size in SIZES],
            [figures[f"{name} {size}"].high for size in SIZES],
        )
        for name in ("adversarial", "objective", "subjective")
    }
    return curves(lines, title="Test loss over training pairs", x="training pairs", y="loss (nats)")


LARGEST = SIZES[-1]

CLAIMS = [
    *(
        Claim(
            f"{name} loss falls from {fewer} to {more} pairs",
            f"{name} {more}",
            f"{name} {fewer}",
            lambda more, fewer: more.mean() < fewer.mean(),
        )
        for name in ("adversarial", "objective")
        for fewer, more in pairwise(SIZES)
    ),
    *(
        Claim(
            f"{name} loss falls as a power law with an exponent above 0.08",
            f"{name} exponent",
            "subjective exponent",
            lambda exponent, _: exponent.mean() > 0.08,
        )
        for name in ("adversarial", "objective")
    ),
    Claim(
        "subjective loss has turned: its last value is 0.05 above its least",
        f"subjective {LARGEST}",
        "subjective least",
        lambda last, least: last.mean() >= least.mean() + 0.05,
    ),
    Claim(
        "subjective loss had fallen first, by 0.05",
        "subjective least",
        f"subjective {SIZES[0]}",
        lambda least, start: least.mean() <= start.mean() - 0.05,
    ),
    Claim(
        "reliance on style (phi) falls by 0.08 from its peak",
        f"phi {LARGEST}",
        "phi peak",
        lambda last, peak: last.mean() <= peak.mean() - 0.08,
    ),
    Claim(
        "and stays above that of the labels less 0.03",
        f"phi {LARGEST}",
        "phi of labels",
        lambda last, labels: last.mean() > labels.mean() - 0.03,
    ),
    Claim(
        "what style control takes off the subjective loss ends 0.02 above its least",
        f"gap {LARGEST}",
        "gap least",
        lambda last, least: last.mean() >= least.mean() + 0.02,
    ),
]

RECIPE = Recipe(
    slug="worldpm",
    title="Preference modelling at scale from public forums",
    year=2025,
    paper="arXiv 2505.10527",
    parts={
        "objective": {"kind": "reward_model"},
        "data": {"format": "forum", "options": {"pairs": "one"}},
        "training": {"learning_rate": 3e-6, "warmup": 0.1, "weight_decay": 0.1, "epochs": 1},
    },
    experiment=Experiment(run, CLAIMS, plot, seeds=5, quick_seeds=2),
)
