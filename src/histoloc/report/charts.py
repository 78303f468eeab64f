"""Line charts as SVG: every logged term over epochs, F1 over the threshold."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from histoloc.report.evaluation import Evaluation
from histoloc.report.read import Run

# Okabe and Ito's palette without its yellow, which is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
F1_PLUS, F1_MINUS = COLOURS[2], COLOURS[1]
COLUMNS, PANEL_WIDTH, PANEL_HEIGHT = 4, 2.85, 2.0  # panels per row; inches
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "svg.fonttype": "path",
    "svg.hashsalt": "histoloc",
}


@dataclass(frozen=True)
class Chart:
    """A finished chart: its heading, the SVG as a `data:` address, and in words what it shows."""

    heading: str
    uri: str
    alt: str


def run_colours(runs: Sequence[Run]) -> dict[str, str]:
    """The line colour of each run, by name."""
    return {run.name: COLOURS[number % len(COLOURS)] for number, run in enumerate(runs)}


def curves(runs: Sequence[Run]) -> list[Chart]:
    """One chart for each group of logged columns (`train/...`, `valid/...`), one small panel for each column.

    The selected epoch of each run is marked by a dot on its curve and a dotted line.
    """
    logged = [run for run in runs if run.log is not None]
    groups: dict[str, dict[str, None]] = {}
    for run in logged:
        assert run.log is not None
        for column in run.log:
            if "/" in str(column) and run.log[column].notna().any():
                groups.setdefault(str(column).split("/")[0], {})[str(column)] = None
    return [_curve_group(group, list(columns), logged, run_colours(runs)) for group, columns in groups.items()]


def threshold_sensitivity(runs: Sequence[Run]) -> Chart | None:
    """F1⁺ and F1⁻ over the threshold, a panel for each evaluation; None where no evaluation has the curve.

    The threshold in use is a vertical line; the best mean of the two on this split is marked as an oracle.
    """
    pairs = [(run, e) for run in runs for e in run.evaluations if e.result.metrics.threshold_curve is not None]
    if not pairs:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(len(pairs))
        for axis, (run, evaluation) in zip(axes, pairs, strict=True):
            _sensitivity(axis, evaluation)
            axis.set_title(f"{run.name}, {evaluation.name}", loc="left", fontweight="bold")
        legend(figure, axes[0])
        names = ", ".join(f"{run.name} on {evaluation.name}" for run, evaluation in pairs)
        return Chart("", svg(figure), f"F1 plus and F1 minus over the threshold of the ROI map: {names}.")


def _curve_group(group: str, columns: list[str], runs: Sequence[Run], colours: dict[str, str]) -> Chart:
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(len(columns))
        for axis, column in zip(axes, columns, strict=True):
            axis.set_title(column.split("/", 1)[1], loc="left", fontweight="bold")
            for run in runs:
                if run.log is not None and column in run.log:
                    _curve(axis, run.log["epoch"], run.log[column], run.selected_epoch, colours[run.name])
            axis.set_xlabel("epoch")
            axis.margins(x=0.02)
            axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        alt = f"Curves over epochs, {group}: {', '.join(column.split('/', 1)[1] for column in columns)}."
        return Chart(group, svg(figure), alt)


def _curve(axis: Axes, epoch: pd.Series, values: pd.Series, selected: float | None, colour: str) -> None:
    known = values.notna()
    axis.plot(epoch[known], values[known], color=colour, marker="." if known.sum() < 3 else None)
    if selected is None:
        return
    axis.axvline(selected, color=colour, linestyle=":", linewidth=0.9)
    at = values[(epoch == selected) & known]
    if not at.empty:
        axis.plot([selected], [at.iloc[0]], "o", color=colour, markersize=4, markeredgecolor="white")


def _sensitivity(axis: Axes, evaluation: Evaluation) -> None:
    curve = evaluation.result.metrics.threshold_curve
    assert curve is not None
    threshold = np.array(curve.threshold)
    plus = np.array(curve.f1_plus, dtype=float)
    minus = np.array(curve.f1_minus, dtype=float)
    axis.plot(threshold, plus, color=F1_PLUS, label="F1⁺")
    axis.plot(threshold, minus, color=F1_MINUS, linestyle="--", label="F1⁻")
    used = evaluation.result.threshold.value
    if used is not None:
        axis.axvline(used, color="black", linewidth=0.9, label="threshold used")
    mean = (plus + minus) / 2
    if np.isfinite(mean).any():
        best = int(np.nanargmax(mean))
        label = "oracle: best mean on this split, no fair choice"
        points = [plus[best], minus[best]]
        axis.plot(
            [threshold[best]] * 2,
            points,
            "D",
            mfc="white",
            mec="#555555",
            ms=4.5,
            color="#555555",
            linestyle=":",
            label=label,
        )
    axis.set(xlim=(-0.01, 1.01), ylim=(-2, 102), xlabel="threshold τ", ylabel="%")


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with `count` equal small axes, four in a row."""
    rows = -(-count // COLUMNS)
    figure = Figure(figsize=(COLUMNS * PANEL_WIDTH, rows * PANEL_HEIGHT), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel().tolist()
    for axis in grid[count:]:
        axis.remove()
    return figure, grid[:count]


def legend(figure: Figure, axis: Axes) -> None:
    """One legend above all panels, with the entries of one of them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)


def svg(figure: Figure) -> str:
    """A figure as a `data:` address; the same figure gives the same text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
