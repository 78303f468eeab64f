"""Charts as SVG: logged terms over epochs, F1 over the threshold, confusion matrices, methods against each other."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from histoloc.results import Result, Run

# Okabe and Ito's palette without its yellow, which is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
WRONG_OR_RIGHT = LinearSegmentedColormap.from_list("wrong or right", (COLOURS[1], "#ffffff", COLOURS[0]))
COLUMNS, PANEL_WIDTH, PANEL_HEIGHT = 4, 2.85, 2.0  # panels per row; inches
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "lines.linewidth": 1.3,
    "svg.hashsalt": "histoloc",
}


@matplotlib.rc_context(STYLE)
def curves(runs: Sequence[Run]) -> dict[str, Markup]:
    """A chart for each group of logged columns (`train/...`, `valid/...`), one small panel for each column.

    The selected epoch of each run is marked by a dot on its curve and a dotted line.
    """
    logged = [(run, run.log.set_index("epoch")) for run in runs if run.log is not None]
    named = [str(name) for _, log in logged for name in log if "/" in str(name) and log[name].notna().any()]
    groups: dict[str, list[str]] = {}
    for group, title in (name.split("/", 1) for name in dict.fromkeys(named)):
        groups.setdefault(group, []).append(title)
    charts = {}
    for group, titles in groups.items():
        figure, axes = panels(titles)
        for axis, title in zip(axes, titles, strict=True):
            for number, (run, log) in enumerate(logged):
                if f"{group}/{title}" in log:
                    colour = COLOURS[number % len(COLOURS)]
                    values = log[f"{group}/{title}"].dropna()
                    selected = values[values.index == run.selected_epoch]
                    axis.plot(values, color=colour, label=run.name, marker="." if len(values) < 3 else None)
                    axis.plot(selected, "o", color=colour, markersize=4, markeredgecolor="white")
                    if run.selected_epoch is not None:
                        axis.axvline(run.selected_epoch, color=colour, linestyle=":", linewidth=0.9)
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        charts[group] = _svg(figure, f"Curves over epochs, {group}: {', '.join(titles)}.", axes)
    return charts


@matplotlib.rc_context(STYLE)
def thresholds(results: Mapping[str, Sequence[Result]]) -> Markup | None:
    """F1⁺ and F1⁻ over the threshold, a panel for each name; None where no result has the curve.

    The mean over the results with a band of one standard deviation; a line at each threshold in use; the best mean of
    the two is marked as an oracle.
    """
    known = {name: curve for name, of in results.items() if (curve := mean_curve(of)) is not None}
    if not known:
        return None
    figure, axes = panels(list(known))
    for axis, (name, (mean, std)) in zip(axes, known.items(), strict=True):
        for column, label, colour, line in (("f1_plus", "F1⁺", COLOURS[2], "-"), ("f1_minus", "F1⁻", COLOURS[1], "--")):
            low, high = mean[column] - std[column], mean[column] + std[column]
            axis.plot(mean[column], color=colour, linestyle=line, label=label)
            axis.fill_between(mean.index, low, high, color=colour, alpha=0.2, linewidth=0)
        for used in {used for result in results[name] if (used := result.threshold.value) is not None}:
            axis.axvline(used, color="black", linewidth=0.9, label="threshold used")
        both = mean.mean(axis=1, skipna=False).dropna()
        for best in both.index[both == both.max()][:1]:
            label = "oracle: best mean on this split, no fair choice"
            axis.plot([best] * 2, mean.loc[best], "D:", mfc="white", ms=4.5, color="#555555", label=label)
        axis.set(xlim=(-0.01, 1.01), ylim=(-2, 102), xlabel="threshold τ", ylabel="%")
    return _svg(figure, f"F1 plus and F1 minus over the threshold of the ROI map: {'; '.join(known)}.", axes)


def mean_curve(results: Sequence[Result]) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The threshold curves of several results.

    Returns:
        Mean and sample standard deviation of f1_plus and f1_minus in percent, NaN where undefined (the deviation of
        one result is 0, no band); index: thresholds. None where no result has a curve.
    """
    curves = [pd.DataFrame(curve, dtype=float) for result in results if (curve := result.metrics.threshold_curve)]
    if not curves:
        return None
    at = pd.concat(curves).groupby("threshold")
    return at.mean(), at.std().fillna(0)


def confusion(results: Mapping[str, Sequence[Result]]) -> dict[str, pd.DataFrame]:
    """Confusion matrices by title, of images (where it is known) and of pixels, for each name.

    Returns:
        Percentages of the true class (row) that are called another (column): of the images of all results together,
        and the mean over results of TPR and TNR.
    """
    tables = {}
    for name, of in results.items():
        classes = next((result.metrics.classes for result in of if result.metrics.confusion), [])
        counts = np.sum([result.metrics.confusion for result in of if result.metrics.confusion], axis=0)
        if np.any(counts):
            total = counts.sum(axis=1)
            names = [f"{name} ({count})" for name, count in zip(classes, total, strict=True)]
            tables[name] = pd.DataFrame(100 * counts / np.maximum(total, 1)[:, None], names, classes)
        rates = np.array([[result.value(rate) for rate in ("tpr", "tnr")] for result in of], dtype=float)
        if rates.size and not np.isnan(rates).all():
            tpr, tnr = rates.mean(axis=0)
            shares = [[tpr, 100 - tpr], [100 - tnr, tnr]]
            tables[f"{name}: pixels"] = pd.DataFrame(shares, ["ROI", "background"], ["marked", "unmarked"])
    return tables


@matplotlib.rc_context(STYLE)
def matrices(tables: Mapping[str, pd.DataFrame]) -> Markup | None:
    """A panel for each of `confusion`: blue what is right, orange what is wrong; None where there is none."""
    if not tables:
        return None
    figure, axes = panels(list(tables))
    for axis, shares in zip(axes, tables.values(), strict=True):
        right = 2 * np.eye(len(shares)) - 1
        axis.grid(visible=False)
        axis.imshow(shares * right, WRONG_OR_RIGHT, vmin=-100, vmax=100, aspect="auto")
        axis.set_xticks(range(len(shares.columns)), shares.columns)
        axis.set_yticks(range(len(shares.index)), shares.index)
        axis.tick_params(length=0, labeltop=True, labelbottom=False)
        for (row, column), share in np.ndenumerate(shares.to_numpy()):
            colour = "white" if share > 70 else "black"
            axis.text(column, row, f"{share:.2f} %", ha="center", va="center", color=colour)
    text = "; ".join(f"{title}: {shares.round(2).to_dict('index')}" for title, shares in tables.items())
    return _svg(figure, f"Confusion matrices in percent of the true class. {text}")


@matplotlib.rc_context(STYLE)
def scatter(points: pd.DataFrame) -> Markup | None:
    """F1⁺ against F1⁻, a labelled point with its standard deviation for each method; None while there is no point.

    Args:
        points: columns f1_plus, f1_minus, f1_plus_std, f1_minus_std (NaN for none), kind and colour; index: titles.
    """
    points = points.dropna(subset=["f1_plus", "f1_minus"]).fillna(0)
    if points.empty:
        return None
    figure = Figure(figsize=(7.6, 5.2), layout="constrained")
    FigureCanvasAgg(figure)  # measures the labels
    axis = figure.subplots()
    rows: list[Any] = list(points.itertuples())
    for row in rows:
        bars: dict[str, Any] = {"xerr": row.f1_minus_std, "yerr": row.f1_plus_std, "color": row.colour}
        axis.errorbar(row.f1_minus, row.f1_plus, **bars, fmt="o", ms=5, elinewidth=0.8, capsize=2, label=row.kind)
    axis.set(xlabel="F1⁻: background (%)", ylabel="F1⁺: region of interest (%)")
    axis.margins(0.12)
    figure.draw_without_rendering()  # fixes the limits that the layout depends on
    place_labels(axis, points)
    numbers = "; ".join(f"{row.Index} {row.f1_plus:.1f} and {row.f1_minus:.1f}" for row in rows)
    return _svg(figure, f"F1 plus and F1 minus of every method: {numbers}.", [axis])


def place_labels(axis: Axes, points: pd.DataFrame) -> list[Text]:
    """Write every point's name beside it so that it covers no other name and no point, where possible."""
    from adjustText import adjust_text  # here, because it loads pyplot

    rows: list[Any] = list(points.itertuples())
    labels = [axis.text(row.f1_minus, row.f1_plus, row.Index, color=row.colour) for row in rows]
    x, y = points["f1_minus"].to_numpy(), points["f1_plus"].to_numpy()
    lines = {"arrowstyle": "-", "color": "#888888", "linewidth": 0.6}
    adjust_text(labels, x, y, ax=axis, iter_lim=500, expand=(1.3, 2.0), arrowprops=lines)
    return labels


@matplotlib.rc_context(STYLE)
def forest(rows: Sequence[tuple[str, str, Mapping[str, Any]]], headings: Mapping[str, str]) -> Markup | None:
    """Differences to a baseline with their 95 % intervals: a panel per metric, a line per method; None without any.

    Args:
        rows: title, colour, and by metric what has `value`, `low` and `high`, or None.
        headings: by metric.
    """
    if not rows:
        return None
    figure = Figure(figsize=(COLUMNS * PANEL_WIDTH, 0.7 + 0.26 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(headings), sharey=True, squeeze=False)[0]
    for axis, (metric, heading) in zip(axes, headings.items(), strict=True):
        for place, (_, colour, of) in enumerate(rows):
            if (delta := of[metric]) is not None:
                bars = [[delta.value - delta.low], [delta.high - delta.value]]
                axis.errorbar(delta.value, place, xerr=bars, fmt="o", color=colour, markersize=4, capsize=2)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(title=heading, ylim=(len(rows) - 0.5, -0.5))
        axis.set_yticks(range(len(rows)), [title for title, *_ in rows])
    return _svg(figure, f"Difference of every method to the baseline: {', '.join(headings.values())}.")


def panels(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure of equal small axes with these titles, four in a row."""
    rows = math.ceil(len(titles) / COLUMNS)
    figure = Figure(figsize=(COLUMNS * PANEL_WIDTH, rows * PANEL_HEIGHT), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel().tolist()
    for axis in grid[len(titles) :]:
        axis.remove()
    for axis, title in zip(grid, titles, strict=False):
        axis.set_title(title)
    return figure, grid[: len(titles)]


def _svg(figure: Figure, alt: str, legend_of: Sequence[Axes] = ()) -> Markup:
    """A figure as an `<img>` that holds its SVG, with one legend of axes above it; the same figure, the same text."""
    entries = {label: handle for a in legend_of for handle, label in zip(*a.get_legend_handles_labels(), strict=True)}
    if entries:
        figure.legend(entries.values(), entries, loc="outside upper left", ncols=len(entries), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    uri = f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return Markup('<img class="chart" style="max-width:{}rem" src="{}" alt="{}">').format(
        round(8 * figure.get_figwidth()), uri, alt
    )
