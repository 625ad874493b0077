"""Style: how much of a preference is length and markdown, and what is left without them.

Source: Wang et al. 2025, WorldPM: Scaling Human Preference Modeling (arXiv 2505.10527), eqs. 4-6; the idea and the
standardisation: Chiang et al. 2024, Chatbot Arena (arXiv 2403.04132).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from prefkit.comparisons import Comparison, Text, pairs
from prefkit.diagnostics.benchmarks import Scored
from prefkit.diagnostics.intervals import Interval, bootstrap_interval
from prefkit.errors import OptionError, PrefkitError, RecordError, unknown
from prefkit.report import Table
from prefkit.report.cells import plain

STYLE_FEATURES = ("tokens", "list items", "headers", "bold spans")
"""What `style_features` counts, in its order."""

_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*+]|\d+[.)])[ \t]+\S", re.MULTILINE)
_HEADER = re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*(?=\S)(?:[^*\n]|\*(?!\*))+?\*\*|__(?=\S)[^_\n]+?__")
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


def style_features(text: str, count_tokens: Callable[[str], int] | None = None) -> tuple[int, int, int, int]:
    """Counts of a response's style; see `STYLE_FEATURES`. What stands in code blocks is no markdown.

    Args:
        text: the response.
        count_tokens: its length in tokens; words between white space by default.
    """
    prose = _CODE.sub("", text)
    length = len(text.split()) if count_tokens is None else count_tokens(text)
    return length, len(_LIST_ITEM.findall(prose)), len(_HEADER.findall(prose)), len(_BOLD.findall(prose))


class StyleDifference(NamedTuple):
    """Differences of style of pairs, `[pairs, features]`.

    Args:
        relative: (first - second) / (first + second), 0 where both are 0.
        normalised: the same with mean 0 and standard deviation 1 over the set; 0 for a feature that is constant.
    """

    relative: NDArray[np.float64]
    normalised: NDArray[np.float64]


def style_difference(style_0: ArrayLike, style_1: ArrayLike) -> StyleDifference:
    """How the two responses of each pair differ in style.

    Args:
        style_0: `[pairs, features]`, counts of the first responses.
        style_1: `[pairs, features]`, counts of the second responses.

    Raises:
        PrefkitError: the two differ in shape, are empty, or hold a negative count.

    Source: WorldPM, eq. 4. How it is normalised is not spelled out there; this is common practice.
    """
    first, second = np.asarray(style_0, dtype=np.float64), np.asarray(style_1, dtype=np.float64)
    if first.ndim != 2 or first.shape != second.shape or not len(first):
        raise PrefkitError(f"styles must be two tables [pairs, features], got {first.shape} and {second.shape}")
    for side, counts in ((0, first), (1, second)):
        bad = np.argwhere(~(counts >= 0) | ~np.isfinite(counts))
        if len(bad):
            pair, feature = bad[0]
            raise PrefkitError(
                f"style_{side} of pair {pair}, feature {feature} must be a count of at least 0, got "
                f"{counts[pair, feature]:g}"
            )
    total = first + second
    relative = np.divide(first - second, total, out=np.zeros_like(first), where=total > 0)
    constant = (relative == relative[0]).all(0)
    spread = np.where(constant, 1.0, relative.std(0))
    return StyleDifference(relative, np.where(constant, 0.0, (relative - relative.mean(0)) / spread))


@dataclass(frozen=True)
class StyleControl:
    """A model's choices with style taken out: P(first) = sigmoid(alpha D + style . beta), fitted to the labels.

    Args:
        alpha: factor of the difference of rewards.
        beta: `[features]`, what each feature of style is worth in log-odds, a standard deviation.
        controlled_loss: mean loss with style, in nats a pair.
        controlled_accuracy: share of pairs that alpha D + style . beta orders as labelled, ties one half.
        alpha_uncontrolled: factor of the difference of rewards alone.
        uncontrolled_loss: mean loss with that factor and without style.
        raw_loss: mean loss of the difference as it is.
        penalised_loss: mean loss with style, plus the ridge.
    """

    alpha: float
    beta: NDArray[np.float64]
    controlled_loss: float
    controlled_accuracy: float
    alpha_uncontrolled: float
    uncontrolled_loss: float
    raw_loss: float
    penalised_loss: float

    @property
    def gap(self) -> float:
        """How much style explains beyond the model: the loss without it less that with it, in nats a pair."""
        return self.uncontrolled_loss - self.controlled_loss


def style_control(
    score_difference: ArrayLike, style: ArrayLike, preferred: ArrayLike, *, l2: float = 1e-3
) -> StyleControl:
    """Fit what a model's rewards and the style of responses say about the labels of a set of pairs.

    Args:
        score_difference: `[pairs]`, D, reward of the first response less that of the second.
        style: `[pairs, features]`, difference of style, see `style_difference`; choose columns for fewer features.
        preferred: `[pairs]`, 0 where the first response was preferred, 1 where the second was.
        l2: weight of a ridge on alpha and beta, which makes the fit unique; above 0. Losses are without it.

    Raises:
        OptionError: l2 is not positive.
        PrefkitError: shapes differ, a number is not finite, a label is neither 0 nor 1, or the set has one label and
            one difference only, from which nothing can be fitted.

    Source: WorldPM, eqs. 4, 5.
    """
    if not l2 > 0:
        raise OptionError(f"l2 must be greater than 0, or separable data have no best fit, got {l2}")
    difference, styles = np.asarray(score_difference, dtype=np.float64), np.asarray(style, dtype=np.float64)
    labels = np.asarray(preferred)
    if difference.ndim != 1 or not len(difference) or labels.shape != difference.shape:
        raise PrefkitError(
            f"each pair needs a difference and a label, got shapes {difference.shape} and {labels.shape}"
        )
    if styles.ndim != 2 or len(styles) != len(difference):
        raise PrefkitError(f"style must be [{len(difference)}, features], got {styles.shape}")
    if not (np.isfinite(difference).all() and np.isfinite(styles).all()):
        raise PrefkitError("differences of score and style must be finite numbers")
    if not np.isin(labels, (0, 1)).all():
        raise PrefkitError(f"preferred must be 0 or 1, got {np.unique(labels).tolist()}")
    if len(np.unique(labels)) == 1 and len(np.unique(difference)) == 1:
        raise PrefkitError("all pairs have one label and one difference of rewards: there is nothing to fit")
    signs = 1.0 - 2.0 * labels
    both = signs[:, None] * np.column_stack([difference, styles])
    weights, alone = _logistic(both, l2), _logistic(both[:, :1], l2)
    controlled = both @ weights
    loss = _loss(controlled)
    return StyleControl(
        alpha=float(weights[0]),
        beta=weights[1:],
        controlled_loss=loss,
        controlled_accuracy=float(np.heaviside(controlled, 0.5).mean()),
        alpha_uncontrolled=float(alone[0]),
        uncontrolled_loss=_loss(both[:, 0] * alone[0]),
        raw_loss=_loss(both[:, 0]),
        penalised_loss=loss + l2 * float(weights @ weights),
    )


def _loss(margins: NDArray[np.float64]) -> float:
    return float(np.logaddexp(0, -margins).mean())


def _logistic(inputs: NDArray[np.float64], l2: float) -> NDArray[np.float64]:
    """Minimiser of mean log(1 + exp(-x.w)) + l2 |w|^2, by Newton's method with steps that never go up."""
    weights = np.zeros(inputs.shape[1])

    def value(at: NDArray[np.float64]) -> float:
        return _loss(inputs @ at) + l2 * float(at @ at)

    for _ in range(100):
        wrong = expit(-(inputs @ weights))
        gradient = -inputs.T @ wrong / len(inputs) + 2 * l2 * weights
        curvature = (inputs * (wrong * (1 - wrong))[:, None]).T @ inputs / len(inputs) + 2 * l2 * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        size, here = 1.0, value(weights)
        while value(weights - size * step) > here and size > 1e-8:
            size /= 2
        weights = weights - size * step
        if np.abs(step).max() <= 1e-13 * max(1.0, np.abs(weights).max()):
            break
    return weights


class Phi(NamedTuple):
    """Association of two binary variables.

    Args:
        phi: the coefficient, in [-1, 1]; 0 where a variable is constant.
        counts: how often (first, second) is (1, 1), (1, 0), (0, 1), (0, 0).
    """

    phi: float
    counts: tuple[int, int, int, int]


def phi(first: ArrayLike, second: ArrayLike) -> Phi:
    """Phi coefficient, which is Pearson's correlation of two binary variables.

    Between "the response is longer" and "the model prefers it" it says how far a model relies on length; between the
    former and the labels, how far it should.

    Args:
        first: `[n]`, 0 or 1.
        second: `[n]`, 0 or 1.

    Raises:
        PrefkitError: the lists differ in length, are empty, or hold something else.

    Source: WorldPM, eq. 6.
    """
    x, y = np.asarray(first), np.asarray(second)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise PrefkitError(f"phi takes two lists of one length, at least 1, got shapes {x.shape} and {y.shape}")
    if not (np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all()):
        raise PrefkitError("phi takes variables that are 0 or 1")
    a, b = x.astype(bool), y.astype(bool)
    n11, n10, n01, n00 = (int(np.sum(cell)) for cell in (a & b, a & ~b, ~a & b, ~a & ~b))
    product = float(n11 + n10) * (n01 + n00) * (n11 + n01) * (n10 + n00)
    counts = (n11, n10, n01, n00)
    return Phi((n11 * n00 - n10 * n01) / product**0.5 if product else 0.0, counts)


@dataclass(frozen=True)
class StyleUse:
    """How much of a model's ranking is style.

    Args:
        control: the fit with and without style.
        figures: by name, with 95% intervals over prompts: accuracy, as it is and with style taken out; accuracy where
            the longer, and where the shorter response was preferred; phi of model and length, and of label and length.
        beta: what each feature of style is worth, a standard deviation, in log-odds.
        pairs: number of pairs.
        skipped: what could not be scored.
    """

    control: StyleControl
    figures: dict[str, Interval]
    beta: dict[str, float]
    pairs: int
    skipped: tuple[RecordError, ...]

    def table(self, title: str = "Style") -> Table:
        """One figure a row."""
        losses = {
            "loss": self.control.raw_loss,
            "loss, scale fitted": self.control.uncontrolled_loss,
            "loss, style fitted too": self.control.controlled_loss,
            "explained by style": self.control.gap,
        }
        rows: list[list[Any]] = [[name, value] for name, value in self.figures.items()]
        rows += [[f"{name} (nats)", value] for name, value in losses.items()]
        rows += [["weight of the rewards", self.control.alpha]]
        rows += [[f"weight of {name}", value] for name, value in self.beta.items()]
        rows += [["pairs", self.pairs], ["set aside", len(self.skipped)]]
        return Table(["figure", "value [95% interval]"], rows, title)

    def to_dict(self) -> dict[str, Any]:
        """The figures as values that JSON holds."""
        table = self.table()
        return {"figures": {str(row[0]): plain(row[1]) for row in table.rows}, "skipped": list(map(str, self.skipped))}


def measure_style_use(
    scored: Scored, comparisons: Iterable[Comparison], *, l2: float = 1e-3, features: Sequence[str] = STYLE_FEATURES
) -> StyleUse:
    """Score pairs and take style out of the model's choices.

    Args:
        scored: gives scores to responses, see `benchmarks.Scored`.
        comparisons: of two responses with a preferred one.
        l2: see `style_control`.
        features: which of `STYLE_FEATURES`.

    Raises:
        OptionError: there is no such feature.
        PrefkitError: there are no such pairs, or as `style_control`.
    """
    for name in features:
        if name not in STYLE_FEATURES:
            raise OptionError(unknown("feature of style", name, STYLE_FEATURES))
    columns = [STYLE_FEATURES.index(name) for name in features]
    skipped: list[RecordError] = []
    differences, styles, preferred, prompts = [], [], [], []
    names: dict[str, int] = {}
    kept = (record for record in comparisons if len(record.responses) == 2 and pairs(record))
    for record, scores in scored(kept, skipped):
        differences.append(scores[0] - scores[1])
        styles.append([style_features(_text(response)) for response in record.responses])
        preferred.append(pairs(record)[0].chosen)
        prompts.append(names.setdefault(str(record.prompts), len(names)))
    if not differences:
        raise PrefkitError(f"no pair with a preferred response could be scored, {len(skipped)} were set aside")
    counts = np.array(styles, dtype=np.float64)[:, :, columns]
    longer = np.array(styles, dtype=np.float64)[:, :, 0]
    spread = style_difference(counts[:, 0], counts[:, 1]).normalised
    control = style_control(differences, spread, preferred, l2=l2)
    ahead, labels = np.array(differences), np.array(preferred)
    signs = 1.0 - 2.0 * labels
    right = np.heaviside(signs * ahead, 0.5)
    controlled = np.heaviside(signs * (control.alpha * ahead + spread @ control.beta), 0.5)
    owners = np.array(prompts)
    first_longer = longer[:, 0] > longer[:, 1]
    figures = {
        "accuracy": bootstrap_interval(right, clusters=owners),
        "accuracy, style fitted too": bootstrap_interval(controlled, clusters=owners),
    }
    for name, side in (("longer", 1.0), ("shorter", -1.0)):
        member = signs * np.sign(longer[:, 0] - longer[:, 1]) == side
        if member.any():
            figures[f"accuracy, {name} preferred"] = bootstrap_interval(right[member], clusters=owners[member])
    for name, chosen in (("phi of model and length", ahead > 0), ("phi of label and length", labels == 0)):
        rows = np.column_stack([chosen, first_longer]).astype(float)
        figures[name] = bootstrap_interval(rows, lambda pair: phi(pair[:, 0], pair[:, 1]).phi, clusters=owners)
    beta = dict(zip(features, map(float, control.beta), strict=True))
    return StyleUse(control, figures, beta, len(differences), tuple(skipped))


def _text(response: Text) -> str:
    return response if isinstance(response, str) else "\n\n".join(str(message["content"]) for message in response)
