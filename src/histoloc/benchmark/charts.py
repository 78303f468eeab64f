"""Charts of a benchmark: F1⁺ against F1⁻, differences to the baseline, sensitivity to the threshold."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from histoloc.benchmark.compare import METRICS as COMPARED
from histoloc.benchmark.compare import Difference
from histoloc.benchmark.results import Bench, Cell
from histoloc.benchmark.rows import Row
from histoloc.benchmark.tables import Spread, measured
from histoloc.report.charts import COLOURS, F1_MINUS, F1_PLUS, STYLE, Chart, legend, panels, svg
from histoloc.report.tables import METRICS

GROUP_COLOURS = {"bound": "#777777", "baseline": COLOURS[0], "ours": COLOURS[1]}
GROUP_NAMES = {"bound": "bound", "baseline": "baseline", "ours": "max-min"}
FIXED = 0.5


def scatter(bench: Bench) -> Chart | None:
    """F1⁺ against F1⁻, a labelled point with its standard deviation for each row; None while there is no point."""
    values = measured(bench, ("f1_plus", "f1_minus"))
    shown = [row for row in bench.rows if not any(math.isnan(v.mean) for v in values[row.name].values())]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 5.2), layout="constrained")
        FigureCanvasAgg(figure)  # measures the labels
        axis = figure.subplots()
        for row in shown:
            x, y = values[row.name]["f1_minus"], values[row.name]["f1_plus"]
            colour = GROUP_COLOURS[row.group]
            axis.errorbar(
                x.mean,
                y.mean,
                xerr=_bar(x),
                yerr=_bar(y),
                fmt="s" if row.group == "bound" else "o",
                color=colour,
                markersize=5,
                elinewidth=0.8,
                capsize=2,
                label=GROUP_NAMES[row.group],
            )
        axis.set(xlabel="F1⁻: background (%)", ylabel="F1⁺: region of interest (%)")
        axis.margins(0.12)
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=3, frameon=False)
        points = [(values[row.name]["f1_minus"].mean, values[row.name]["f1_plus"].mean) for row in shown]
        bars = [(_bar(values[row.name]["f1_minus"]), _bar(values[row.name]["f1_plus"])) for row in shown]
        colours = [GROUP_COLOURS[row.group] for row in shown]
        place_labels(axis, points, bars, [row.title for row in shown], colours)
        numbers = "; ".join(f"{row.title} {y:.1f} and {x:.1f}" for row, (x, y) in zip(shown, points, strict=True))
        return Chart("", svg(figure), f"F1 plus and F1 minus of every method: {numbers}.")


def forest(rows: Sequence[Row], differences: Mapping[str, Mapping[str, Difference | None]]) -> Chart | None:
    """Differences to the baseline with their 95 % intervals: a panel per metric, a line per row; None without any."""
    shown = [row for row in rows if any((differences.get(row.name) or {}).values())]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.4, 0.7 + 0.26 * len(shown)), layout="constrained")
        axes = figure.subplots(1, len(COMPARED), sharey=True, squeeze=False)[0]
        for axis, metric in zip(axes, reversed(COMPARED), strict=True):
            for place, row in enumerate(shown):
                if (found := differences[row.name][metric]) is not None:
                    bars = [[found.value - found.low], [found.high - found.value]]
                    colour = GROUP_COLOURS[row.group]
                    axis.errorbar(found.value, place, xerr=bars, fmt="o", color=colour, markersize=4, capsize=2)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_title(f"Δ {METRICS[metric]}, percentage points", loc="left", fontweight="bold")
            axis.set_yticks(range(len(shown)), [row.title for row in shown])
            axis.set_ylim(len(shown) - 0.5, -0.5)
        return Chart("", svg(figure), "Difference of every method to the baseline in mean F1, F1 minus and F1 plus.")


def sensitivity(bench: Bench) -> Chart | None:
    """F1⁺ and F1⁻ over the threshold, a panel per row: mean over its cells, a band of one standard deviation."""
    curves = {row.name: curve for row in bench.rows if (curve := mean_curve(bench.of(row))) is not None}
    rows = [row for row in bench.rows if row.name in curves]
    if not rows:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(len(rows))
        for axis, row in zip(axes, rows, strict=True):
            threshold, mean, std = curves[row.name]
            for part, (colour, line) in enumerate(((F1_PLUS, "-"), (F1_MINUS, "--"))):
                label = ("F1⁺", "F1⁻")[part]
                axis.plot(threshold, mean[part], color=colour, linestyle=line, label=label)
                low, high = mean[part] - std[part], mean[part] + std[part]
                axis.fill_between(threshold, low, high, color=colour, alpha=0.2, linewidth=0)
            axis.axvline(FIXED, color="black", linewidth=0.9, label="fixed 0.5")
            axis.set(xlim=(-0.01, 1.01), ylim=(-2, 102), xlabel="threshold τ", ylabel="%")
            axis.set_title(row.title, loc="left", fontweight="bold")
        legend(figure, axes[0])
        names = ", ".join(row.title for row in rows)
        return Chart("", svg(figure), f"F1 plus and F1 minus over the threshold of the ROI map: {names}.")


def mean_curve(cells: Sequence[Cell]) -> tuple[NDArray, NDArray, NDArray] | None:
    """The threshold curves of a row's cells.

    Returns:
        Thresholds (T,); mean and sample standard deviation (2, T) of F1⁺ and F1⁻ in percent, NaN where undefined (the
        deviation of one cell is 0, no band). None where no cell has a curve.
    """
    curves = [c for cell in cells if (c := cell.evaluation.result.metrics.threshold_curve) is not None]
    if not curves:
        return None
    values = np.array([[curve.f1_plus, curve.f1_minus] for curve in curves], dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all cells undefined at a threshold: NaN is the answer
        mean = np.nanmean(values, axis=0)
        std = np.nanstd(values, axis=0, ddof=1) if len(curves) > 1 else np.zeros_like(mean)
    return np.array(curves[0].threshold), mean, std


def place_labels(
    axis: Axes,
    points: Sequence[tuple[float, float]],
    bars: Sequence[tuple[float, float]],
    names: Sequence[str],
    colours: Sequence[str],
) -> list[Annotation]:
    """Write a name beside every point so that it covers no other name, no point and no error bar, where possible.

    Names are placed one after the other at the nearest free place of rings around their point, with a thin line
    where they had to move away.

    Args:
        axis: where the points are drawn.
        points: (x, y) of each, in the axis' units.
        bars: half the length of its error bars along x and along y.
        names: what to write.
        colours: of the names.

    Returns:
        The labels, in the order given.
    """
    figure = axis.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # fixes the limits that the layout depends on
    taken: list[Bbox] = []
    for (x, y), (dx, dy) in zip(points, bars, strict=True):
        for corner in ((dx, 0.0), (0.0, dy)):
            ends = axis.transData.transform([(x - corner[0], y - corner[1]), (x + corner[0], y + corner[1])])
            taken.append(Bbox(ends).padded(4))
    frame = axis.get_window_extent()
    labels = []
    for point, name, colour in zip(points, names, colours, strict=True):
        label = axis.annotate(
            name,
            point,
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            color=colour,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            zorder=5,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )
        box = label.get_window_extent()
        offset = _free_offset(box, taken, frame, figure.dpi / 72)
        label.xyann = offset
        dx, dy = (value * figure.dpi / 72 for value in offset)
        taken.append(box.translated(dx, dy))
        labels.append(label)
    return labels


def _free_offset(box: Bbox, taken: Sequence[Bbox], frame: Bbox, scale: float) -> tuple[float, float]:
    """The offset in points, nearest first, that covers least of what is taken and stays in the frame."""
    half = box.width / 2 / scale, box.height / 2 / scale
    best, least = (0.0, 0.0), math.inf
    for ring in (6, 12, 20, 30, 42, 56):
        for angle in np.arange(0, 360, 15):
            cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
            dx, dy = (ring + half[0]) * cos, (ring + half[1]) * sin
            moved = box.translated(dx * scale, dy * scale)
            cost = sum(_overlap(moved, other) for other in taken)
            cost += moved.width * moved.height - _overlap(moved, frame)
            cost += 0.02 * ring  # far only where near is taken
            if cost < least - 1e-6:
                best, least = (float(dx), float(dy)), cost
    return best


def _overlap(a: Bbox, b: Bbox) -> float:
    both = Bbox.intersection(a, b)
    return 0.0 if both is None else both.width * both.height


def _bar(value: Spread) -> float:
    return 0.0 if math.isnan(value.std) else value.std
