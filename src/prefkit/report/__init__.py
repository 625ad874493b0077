"""Reports: tables, plots, HTML."""

from prefkit.report.card import model_card
from prefkit.report.html import Report, Section
from prefkit.report.plots import (
    Curve,
    Plot,
    bars,
    curves,
    histogram,
    panels,
    picture_grid,
    reliability,
    scatter,
    token_strips,
)
from prefkit.report.tables import Table

__all__ = [
    "Curve",
    "Plot",
    "Report",
    "Section",
    "Table",
    "bars",
    "curves",
    "histogram",
    "model_card",
    "panels",
    "picture_grid",
    "reliability",
    "scatter",
    "token_strips",
]
