"""Plots: one look for every figure, in colours that people with a colour vision deficiency can tell apart.

Every plot carries the numbers it was drawn from. Nothing touches pyplot or its global state, so plots can be made in
threads and servers.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from prefkit.errors import PrefkitError
from prefkit.report.tables import Table

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Okabe and Ito's colours, without yellow (too pale for a line on white) and with grey for black, which a dark page
would swallow."""

INK = "#1b1c1d"
"""Text, axes and grid. In a page's SVG it becomes the page's own text colour, so that plots follow a dark theme."""

MANY_POINTS = 2000
"""Above this number, points are drawn as one image inside the SVG: a page must stay small enough to open."""


class HasBounds(Protocol):
    """A figure with a confidence interval, such as `prefkit.diagnostics.Interval`."""

    @property
    def mean(self) -> float:
        """The estimate."""

    @property
    def low(self) -> float:
        """Lower end of the interval."""

    @property
    def high(self) -> float:
        """Upper end of the interval."""


class Curve(NamedTuple):
    """One line, with a band if both of its edges are given; each is `[n]`."""

    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None


@dataclass(frozen=True)
class Plot:
    """A figure and the numbers it was drawn from.

    Args:
        figure: matplotlib's figure; `figure.savefig` writes any format.
        data: the numbers, under the plot's title.
    """

    figure: Figure
    data: Table

    @property
    def title(self) -> str:
        """What the plot shows."""
        return self.data.title

    def svg(self) -> str:
        """The figure as an `<svg>` element for a page: text stays text and takes the page's colour."""
        stream = io.StringIO()
        # Fixed ids and no date: the same numbers give the same file.
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "prefkit"}):
            self.figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        drawing = stream.getvalue()
        return drawing[drawing.index("<svg") :].replace(INK, "currentColor")

    def html(self) -> Markup:
        """The figure as a part of a page."""
        return Markup(self.svg())  # matplotlib escapes what it writes

    def csv(self) -> str:
        """The numbers as comma-separated values."""
        return self.data.csv()

    def to_dict(self) -> dict[str, Any]:
        """The numbers as values that JSON holds."""
        return {**self.data.to_dict(), "kind": "plot"}


def curves(series: Mapping[str, Curve], *, title: str, x: str = "step", y: str = "") -> Plot:
    """Lines over a common axis, with bands where given.

    Args:
        series: name of each line and its points; values that are not finite leave a gap.
        title: what the plot shows.
        x: label of the horizontal axis.
        y: label of the vertical axis.

    Raises:
        PrefkitError: there is nothing to draw, or x, y and band of a line differ in length.
    """
    _some(series, title)
    figure, axes = _axes(title, x, y)
    rows: list[list[object]] = []
    for (name, curve), colour in zip(series.items(), _colours(series), strict=True):
        xs, ys = np.asarray(curve.x, dtype=np.float64), np.asarray(curve.y, dtype=np.float64)
        low, high = (None if end is None else np.asarray(end, dtype=np.float64) for end in (curve.low, curve.high))
        lengths = {len(column) for column in (xs, ys, low, high) if column is not None}
        if len(lengths) > 1 or lengths == {0}:
            raise PrefkitError(f"line '{name}' of plot '{title}' needs x, y and band of one length, at least 1")
        axes.plot(xs, ys, color=colour, label=name, linewidth=1.6, marker="o" if len(xs) == 1 else None)
        if low is not None and high is not None:
            axes.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0)
        bounds = [[None] * len(xs) if column is None else column.tolist() for column in (low, high)]
        rows += [[name, *point] for point in zip(xs.tolist(), ys.tolist(), *bounds, strict=True)]
    return _finish(figure, axes, Table(["line", x, y or "y", "low", "high"], rows, title), legend=len(series) > 1)


def histogram(samples: Mapping[str, ArrayLike], *, title: str, x: str = "", bins: int = 30) -> Plot:
    """Distributions on common bins, such as a margin before and after training.

    Args:
        samples: name of each sample and its values `[n]`.
        title: what the plot shows.
        x: label of the horizontal axis.
        bins: number of bins.

    Raises:
        PrefkitError: there is nothing to draw, or a value is not a finite number.
    """
    _some(samples, title)
    arrays = {name: _finite(values, f"sample '{name}' of plot '{title}'") for name, values in samples.items()}
    figure, axes = _axes(title, x, "share of rows")
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins=bins)
    rows: list[list[object]] = []
    for (name, values), colour in zip(arrays.items(), _colours(arrays), strict=True):
        shares = np.histogram(values, edges)[0] / len(values)
        axes.stairs(shares, edges, fill=True, color=colour, alpha=0.25)
        axes.stairs(shares, edges, color=colour, linewidth=1.4, label=name)
        rows += [[name, *bin_] for bin_ in zip(edges[:-1].tolist(), edges[1:].tolist(), shares.tolist(), strict=True)]
    table = Table(["sample", "from", "to", "share"], rows, title)
    return _finish(figure, axes, table, legend=len(arrays) > 1)


def bars(
    values: Mapping[str, HasBounds | float],
    *,
    title: str,
    x: str = "",
    baseline: float | None = None,
    filled: bool = True,
) -> Plot:
    """One bar a name, with its interval where the value has one.

    Args:
        values: name of each bar, from top to bottom, and its value.
        title: what the plot shows.
        x: label of the value axis.
        baseline: a value to compare with (chance, a published figure), drawn as a line.
        filled: False draws points instead, for values of which 0 is no natural beginning.

    Raises:
        PrefkitError: there is nothing to draw.
    """
    _some(values, title)
    figure, axes = _axes(title, x, "", height=1.1 + 0.42 * len(values))
    rows: list[list[object]] = []
    for place, (name, value) in enumerate(values.items()):
        if isinstance(value, int | float):
            mean, low, high = float(value), math.nan, math.nan
        else:
            mean, low, high = value.mean, value.low, value.high
        if filled:
            axes.barh(place, mean, height=0.6, color=PALETTE[0], alpha=0.85)
        else:
            axes.plot(mean, place, marker="o", color=PALETTE[0])
        if math.isfinite(low) and math.isfinite(high):
            axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color=INK, capsize=3, linewidth=1.2)
        rows.append([name, mean, low, high])
    if baseline is not None:
        axes.axvline(baseline, color=INK, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(values)), list(values), parse_math=False)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return _finish(figure, axes, Table(["name", x or "value", "low", "high"], rows, title), legend=False)


def token_strips(texts: Mapping[str, Sequence[tuple[str, float]]], *, title: str, width: int = 88) -> Plot:
    """Texts whose tokens are shaded by a value, such as the weight that an objective gives to each.

    Args:
        texts: name of each text, its tokens in their order, and the value of each, at least 0. The highest value of all
            texts is the darkest; tokens of value 0 are left white.
        title: what the plot shows.
        width: characters of a line.

    Raises:
        PrefkitError: there is nothing to draw.
    """
    _some(texts, title)
    values = _finite([value for tokens in texts.values() for _, value in tokens], f"plot '{title}'")
    boxes: list[tuple[int, int, str, float, bool]] = []
    line = 0
    for name, tokens in texts.items():
        boxes.append((line, 0, name, 0.0, True))
        line, place = line + 1, 0
        for token, value in tokens:
            shown = token.replace("\n", "\u21b5").replace("\t", " ") or "\u2205"
            if place and place + len(shown) > width:
                line, place = line + 1, 0
            boxes.append((line, place, shown, value, False))
            place += len(shown)
        line += 2
    figure, axes = _axes(title, "", "", width=9.6, height=0.6 + 0.2 * line)
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(line - 1, -0.5)
    for row, place, shown, value, heading in boxes:
        if value > 0:
            shade = 0.1 + 0.6 * value / float(values.max())
            axes.add_patch(Rectangle((place, row - 0.45), len(shown), 0.9, color=PALETTE[5], alpha=shade, linewidth=0))
        weight = "bold" if heading else "normal"
        look: dict[str, Any] = {
            "color": INK,
            "fontsize": 8,
            "family": "monospace",
            "weight": weight,
            "parse_math": False,
        }
        for offset, letter in enumerate(shown):  # each in its own cell: a page may show another font
            axes.text(place + offset + 0.5, row, letter, ha="center", va="center", **look)
    rows: list[list[object]] = [
        [name, place, token, value] for name, tokens in texts.items() for place, (token, value) in enumerate(tokens)
    ]
    return _finish(figure, axes, Table(["text", "place", "token", "value"], rows, title), legend=False)


def reliability(
    probabilities: ArrayLike, outcomes: ArrayLike, *, title: str, bins: int = 10, x: str = "predicted probability"
) -> Plot:
    """Predicted probabilities against observed frequencies; a calibrated model lies on the diagonal.

    Args:
        probabilities: `[n]`, in [0, 1].
        outcomes: `[n]`, in [0, 1]: 1 where it happened, 0 where it did not.
        title: what the plot shows.
        bins: number of bins of equal width; empty ones are left out.
        x: label of the horizontal axis.

    Raises:
        PrefkitError: there is nothing to draw, lengths differ, or a value lies outside [0, 1].
    """
    predicted, observed = _paired(probabilities, outcomes, title)
    if min(predicted.min(), observed.min()) < 0 or max(predicted.max(), observed.max()) > 1:
        raise PrefkitError(f"probabilities and outcomes of plot '{title}' must lie in [0, 1]")
    figure, axes = _axes(title, x, "observed frequency", height=4.2, width=4.8)
    place = np.minimum((predicted * bins).astype(int), bins - 1)
    rows = [
        [float(predicted[place == index].mean()), float(observed[place == index].mean()), int((place == index).sum())]
        for index in np.unique(place)
    ]
    xs, ys, counts = (np.array(column) for column in zip(*rows, strict=True))
    axes.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
    axes.plot(xs, ys, color=PALETTE[0], linewidth=1.2)
    axes.scatter(xs, ys, s=20 + 180 * counts / counts.max(), color=PALETTE[0], alpha=0.8)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return _finish(figure, axes, Table([x, "observed frequency", "rows"], rows, title), legend=False)


def scatter(
    x: ArrayLike, y: ArrayLike, *, title: str, x_label: str = "x", y_label: str = "y", diagonal: bool = False
) -> Plot:
    """One point a row.

    Args:
        x: `[n]`.
        y: `[n]`.
        title: what the plot shows.
        x_label: label of the horizontal axis.
        y_label: label of the vertical axis.
        diagonal: draw the line x = y.

    Raises:
        PrefkitError: there is nothing to draw, lengths differ, or a value is not a finite number.
    """
    xs, ys = _paired(x, y, title)
    figure, axes = _axes(title, x_label, y_label, height=4.2, width=4.8)
    axes.scatter(xs, ys, s=14, color=PALETTE[0], alpha=0.5, linewidth=0, rasterized=len(xs) > MANY_POINTS)
    if diagonal:
        axes.axline((float(xs[0]), float(xs[0])), slope=1, color=INK, linestyle="--", linewidth=1)
    rows = list(zip(xs.tolist(), ys.tolist(), strict=True))
    return _finish(figure, axes, Table([x_label, y_label], rows, title), legend=False)


def panels(points: Mapping[str, ArrayLike], *, title: str, x: str = "", y: str = "", shown: int = 800) -> Plot:
    """Clouds of points side by side on common axes, such as samples before and after training.

    Args:
        points: name of each panel and its points `[n, 2]`.
        title: what the plot shows.
        x: label of the horizontal axes.
        y: label of the vertical axes.
        shown: points of a panel at most, the first ones.

    Raises:
        PrefkitError: there is nothing to draw, or a panel holds no finite points in the plane.
    """
    _some(points, title)
    clouds = {name: np.asarray(cloud, dtype=np.float64)[:shown] for name, cloud in points.items()}
    for name, cloud in clouds.items():
        if cloud.ndim != 2 or cloud.shape[1] != 2 or not len(cloud) or not np.isfinite(cloud).all():
            raise PrefkitError(f"panel '{name}' of plot '{title}' needs finite points [n, 2]")
    figure = Figure(figsize=(2.3 * len(clouds), 2.8), layout="constrained", dpi=110)
    figure.suptitle(title, color=INK, fontsize=11, x=0.01, ha="left")
    axes = np.atleast_1d(figure.subplots(1, len(clouds), sharex=True, sharey=True))
    for place, (name, cloud), colour in zip(axes, clouds.items(), _colours(clouds), strict=True):
        place.scatter(*cloud.T, s=4, color=colour, alpha=0.5, linewidth=0, rasterized=True)
        place.set_title(name, color=INK, fontsize=9, parse_math=False)
        place.set_aspect("equal")
        place.tick_params(colors=INK, labelsize=8)
        place.set_xlabel(x, color=INK, fontsize=9, parse_math=False)
    axes[0].set_ylabel(y, color=INK, fontsize=9, parse_math=False)
    rows = [[name, *point] for name, cloud in clouds.items() for point in cloud.tolist()]
    return Plot(figure, Table(["panel", x or "x", y or "y"], rows, title))


def picture_grid(rows: Mapping[str, ArrayLike], *, title: str, columns: Sequence[str] = ()) -> Plot:
    """Images in rows, such as samples before and after training from the same noise.

    Args:
        rows: name of each row and its images, `[n, height, width]` or `[n, height, width, 3]`, values in [0, 1].
        title: what the images are.
        columns: captions of the columns.

    Raises:
        PrefkitError: there are no images, or rows differ in length.
    """
    _some(rows, title)
    pictures = {name: np.asarray(images, dtype=np.float64).clip(0, 1) for name, images in rows.items()}
    counts = {len(images) for images in pictures.values()}
    if len(counts) > 1 or counts == {0} or (columns and len(columns) not in counts):
        raise PrefkitError(f"rows of '{title}' need one number of images, at least 1, and a caption each or none")
    (count,) = counts
    figure = Figure(figsize=(1.0 + 1.1 * count, 0.5 + 1.2 * len(pictures)), layout="constrained", dpi=110)
    figure.suptitle(title, color=INK, fontsize=11, x=0.01, ha="left")
    axes = figure.subplots(len(pictures), count, squeeze=False)
    for line, (name, images) in zip(axes, pictures.items(), strict=True):
        for column, (place, image) in enumerate(zip(line, images, strict=True)):
            place.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            place.set(xticks=[], yticks=[])
            if line is axes[0] and columns:
                place.set_title(columns[column][:24], color=INK, fontsize=7, parse_math=False)
        line[0].set_ylabel(name, color=INK, fontsize=9, parse_math=False)
    means = [[name, *(float(image.mean()) for image in images)] for name, images in pictures.items()]
    return Plot(figure, Table(["row", *(f"mean of {place + 1}" for place in range(count))], means, title))


def _axes(title: str, x: str, y: str, *, width: float = 6.4, height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=INK, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title, color=INK, fontsize=11, loc="left", parse_math=False)
    axes.set_xlabel(x, color=INK, fontsize=9, parse_math=False)
    axes.set_ylabel(y, color=INK, fontsize=9, parse_math=False)
    return figure, axes


def _finish(figure: Figure, axes: Axes, data: Table, *, legend: bool) -> Plot:
    if legend:
        entries = axes.legend(frameon=False, fontsize=9, labelcolor=INK).get_texts()
        for entry in entries:
            entry.set_parse_math(False)
    return Plot(figure, data)


def _colours(names: Mapping[str, object]) -> list[str]:
    return [PALETTE[index % len(PALETTE)] for index in range(len(names))]


def _some(names: Mapping[str, object], title: str) -> None:
    if not names:
        raise PrefkitError(f"plot '{title}' has nothing to draw")


def _finite(values: ArrayLike, what: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise PrefkitError(f"{what} must be a flat, non-empty list of finite numbers")
    return array


def _paired(first: ArrayLike, second: ArrayLike, title: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, two = _finite(first, f"plot '{title}'"), _finite(second, f"plot '{title}'")
    if len(one) != len(two):
        raise PrefkitError(f"plot '{title}' needs two lists of one length, got {len(one)} and {len(two)}")
    return one, two
