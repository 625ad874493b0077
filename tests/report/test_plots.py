from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from prefkit.errors import PrefkitError
from prefkit.report import Curve, Plot, bars, curves, histogram, reliability, scatter, token_strips

HOSTILE = "<script>alert(1)</script> $\\frac{$"


@dataclass(frozen=True)
class Bounds:
    mean: float
    low: float
    high: float


def texts(plot: Plot) -> list[str]:
    """The texts of a plot's SVG, which has to be well-formed."""
    root = ElementTree.fromstring(plot.svg())
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_curves_carry_their_points_and_bands() -> None:
    plot = curves(
        {"a": Curve([1, 2], [0.5, 0.25], [0.4, 0.2], [0.6, 0.3]), "b": Curve([1], [1.0])}, title="t", y="nats"
    )
    assert plot.data.columns == ["line", "step", "nats", "low", "high"]
    assert plot.data.rows == [
        ["a", 1.0, 0.5, 0.4, 0.6],
        ["a", 2.0, 0.25, 0.2, 0.3],
        ["b", 1.0, 1.0, None, None],
    ]
    assert {"t", "nats", "a", "b"} <= set(texts(plot))


def test_histogram_shares_sum_to_one_on_common_bins() -> None:
    plot = histogram({"a": [0.0, 1.0, 1.0, 2.0], "b": [2.0, 2.0]}, title="t", bins=2)
    assert plot.data.rows == [["a", 0.0, 1.0, 0.25], ["a", 1.0, 2.0, 0.75], ["b", 0.0, 1.0, 0.0], ["b", 1.0, 2.0, 1.0]]


def test_bars_carry_values_and_draw_an_interval_only_where_it_is_known() -> None:
    values = {"x": 0.5, "y": Bounds(0.5, 0.25, 0.75), "z": Bounds(1.0, float("-inf"), float("inf"))}
    plot = bars(values, title="t", baseline=0.5)
    assert [row[0] for row in plot.data.rows] == ["x", "y", "z"]
    assert plot.data.rows[1] == ["y", 0.5, 0.25, 0.75]
    (axes,) = plot.figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.5, 1.0]
    assert len(axes.containers) == 4  # three bars, one interval


def test_reliability_is_the_mean_of_each_bin() -> None:
    plot = reliability([0.1, 0.3, 0.9, 1.0], [0, 1, 1, 1], title="t", bins=2)
    assert plot.data.rows == [[pytest.approx(0.2), 0.5, 2], [pytest.approx(0.95), 1.0, 2]]


def test_scatter_carries_its_points_and_draws_many_as_an_image() -> None:
    plot = scatter([1, 2], [3, 4], title="t", x_label="p", y_label="q", diagonal=True)
    assert (plot.data.columns, plot.data.rows) == (["p", "q"], [[1.0, 3.0], [2.0, 4.0]])
    assert "<image" not in plot.svg()
    many = np.linspace(0, 1, 3000)
    assert 'href="data:image/png;base64' in scatter(many, many, title="t").svg()


def test_token_strips_shade_what_counts_and_break_lines() -> None:
    given = {"one": [("Hi", 0.0), (" there", 2.0), ("\n", 1.0)], "two": [(" x", 1.0)] * 30}
    plot = token_strips(given, title="Mask", width=20)
    assert plot.data.rows[:3] == [["one", 0, "Hi", 0.0], ["one", 1, " there", 2.0], ["one", 2, "\n", 1.0]]
    axes = plot.figure.axes[0]
    shades = [patch.get_alpha() for patch in axes.patches]
    assert len(shades) == 32  # not the token of value 0
    assert shades[0] == max(shades) > shades[1]
    assert "\u21b5" in [text.get_text() for text in axes.texts]
    assert {patch.get_y() for patch in axes.patches[2:]} > {patch.get_y() for patch in axes.patches[2:12]}
    assert all(patch.get_x() + patch.get_width() <= 20 for patch in axes.patches)


@pytest.mark.parametrize(
    "plot",
    [
        curves({HOSTILE: Curve([1, 2], [1, 2]), "b": Curve([1, 2], [1, 2])}, title=HOSTILE, y=HOSTILE),
        bars({HOSTILE: 1.0}, title=HOSTILE, x=HOSTILE),
        histogram({HOSTILE: [1.0, 2.0], "b": [1.0]}, title=HOSTILE, x=HOSTILE),
    ],
    ids=["curves", "bars", "histogram"],
)
def test_text_from_data_is_text(plot: Plot) -> None:
    assert texts(plot).count(HOSTILE) == 3
    assert "<script" not in plot.svg()


def test_the_same_numbers_give_the_same_svg_without_date() -> None:
    first, second = (curves({"a": Curve([1, 2], [1, 2])}, title="t").svg() for _ in range(2))
    assert first == second


def test_text_follows_the_colour_of_the_page() -> None:
    svg = curves({"a": Curve([1, 2], [1, 2])}, title="t").svg()
    assert "fill: currentColor" in svg
    assert "#ffffff" not in svg


def test_pyplot_and_global_settings_stay_untouched() -> None:
    before = dict(matplotlib.rcParams)
    curves({"a": Curve([1], [1])}, title="t").svg()
    assert dict(matplotlib.rcParams) == before
    code = "import sys, prefkit.report as r; r.bars({'a': 1.0}, title='t').svg(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "matplotlib.figure" in modules
    assert "matplotlib.pyplot" not in modules


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: curves({}, title="t"), "plot 't' has nothing to draw"),
        (lambda: bars({}, title="t"), "plot 't' has nothing to draw"),
        (lambda: histogram({}, title="t"), "plot 't' has nothing to draw"),
        (
            lambda: curves({"a": Curve([1, 2], [1])}, title="t"),
            "line 'a' of plot 't' needs x, y and band of one length",
        ),
        (lambda: curves({"a": Curve([], [])}, title="t"), "at least 1"),
        (lambda: histogram({"a": [float("nan")]}, title="t"), "sample 'a' of plot 't' must be .* finite"),
        (lambda: scatter([1, 2], [1], title="t"), "two lists of one length, got 2 and 1"),
        (lambda: reliability([2.0], [1.0], title="t"), r"must lie in \[0, 1\]"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(draw, message) -> None:
    with pytest.raises(PrefkitError, match=message):
        draw()
