"""Is a row better than the best baseline? Paired bootstrap over the images that both have, or over their groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histoloc.benchmark.results import Bench, Cell
from histoloc.benchmark.rows import Row, rows_of
from histoloc.errors import InputError
from histoloc.metrics.bootstrap import Units, bootstrap, percentile_interval, weighted_ratio
from histoloc.metrics.functional import Floats

METRICS = ("f1_plus", "f1_minus", "f1_mean")
REPLICATES, SEED = 2000, 0


@dataclass(frozen=True)
class Difference:
    """A row minus the baseline, in percentage points; positive where the row is better.

    Attributes:
        value: on all common images.
        low: lower bound of the 95 % percentile interval over resampled images or groups; NaN, as the next two, where
            the metric is defined on fewer than two of them.
        high: upper bound.
        above: share of the resamples with a difference above 0, in [0, 1].
        n: common images on which the metric is defined.
        groups: how many groups of the common images were resampled; None where the images were.
        ungrouped: how many common images have no group and were resampled as groups of their own.
    """

    value: float
    low: float
    high: float
    above: float
    n: int
    groups: int | None = None
    ungrouped: int = 0


Differences = Mapping[str, Mapping[str, Difference | None]]  # by name of the row and of the metric


def per_image(cells: Sequence[Cell]) -> pd.DataFrame:
    """F1⁺ and F1⁻ of every image, averaged over the cells that evaluated it.

    Seeds are averaged; images of different folds are pooled, and an image that several folds evaluated (a test
    image) is averaged over them too.

    Args:
        cells: of one row, at least one.

    Returns:
        Columns f1_plus and f1_minus in percent, NaN where an image has no ROI or no background, and group, empty where
        unknown; index: image name.

    Raises:
        InputError: an image is of one group in one cell and of another in another.
    """
    images = pd.concat([cell.evaluation.images for cell in cells]).set_index("name")
    means = images[["f1_plus", "f1_minus"]].groupby(level="name").mean()
    return means.assign(group=_groups(means.index, [images["group"]]))


def paired_difference(
    ours: pd.DataFrame, baseline: pd.DataFrame, replicates: int = REPLICATES, seed: int = SEED
) -> dict[str, Difference | None]:
    """Differences of F1⁺, F1⁻ and their mean on the common images, with paired bootstrap intervals.

    Groups (patients, slides) are resampled where the group of any common image is known, else images.

    The mean F1 of a set of images is the mean of two means, as everywhere: F1⁺ over its images with ROI and F1⁻
    over its images with background.

    Args:
        ours: what `per_image` returned for the row; a column `group` is not needed.
        baseline: and for the baseline.
        replicates: number of resamples.
        seed: of the resampling.

    Returns:
        By name of METRICS; None where no common image defines the metric.

    Raises:
        InputError: an image has different groups in the two.
    """
    common = ours.index.intersection(baseline.index).sort_values()
    if common.empty:
        return dict.fromkeys(METRICS)
    pair = list(METRICS[:2])
    delta = (ours.loc[common, pair] - baseline.loc[common, pair]).to_numpy(dtype=float)
    units = Units(_groups(common, [frame["group"].loc[common] for frame in (ours, baseline) if "group" in frame]))
    defined = ~np.isnan(delta)
    above, below = np.where(defined, delta, 0) / 100, defined.astype(float)

    def statistics(weights: Floats) -> dict[str, Floats]:
        plus, minus = weighted_ratio(weights, above, below).T
        return {"f1_plus": plus, "f1_minus": minus, "f1_mean": (plus + minus) / 2}

    points = statistics(np.ones((1, len(common))))
    samples = bootstrap(statistics, units, replicates, seed)
    images = {"f1_plus": defined[:, 0], "f1_minus": defined[:, 1], "f1_mean": defined.any(axis=1)}
    return {name: _difference(float(points[name][0]), samples.get(name), images[name], units) for name in METRICS}


def best_baseline(bench: Bench) -> Row | None:
    """What the rows are compared with.

    In a table that names a row for it that one, or where it was not asked for the first one; else the row of group
    `baseline` with the highest mean over its cells of the mean F1. None while it has no finished cell.
    """
    if any(row.reference for row in rows_of(bench.settings["kind"])):
        candidates = [row for row in bench.rows if row.reference] or bench.rows[:1]
    else:
        candidates = [row for row in bench.rows if row.group == "baseline"]
    scores = bench.spread(["f1_mean"])[0]["f1_mean"]
    return max((row for row in candidates if scores[row.name] >= 0), key=lambda row: scores[row.name], default=None)


def compare(bench: Bench, baseline: Row | None) -> dict[str, dict[str, Difference | None]]:
    """Differences of every finished row but the baseline itself, by name of the row; empty without a baseline."""
    if baseline is None:
        return {}
    reference = per_image(bench.of(baseline))
    rows = {row.name: bench.of(row) for row in bench.rows if row.name != baseline.name}
    return {name: paired_difference(per_image(cells), reference) for name, cells in rows.items() if cells}


def resampled(differences: Differences, titles: Mapping[str, str]) -> str:
    """What the intervals of the differences resample, as the end of `bootstrap over`.

    Args:
        differences: of `compare`.
        titles: of the rows, by name.
    """
    known = {titles[name]: next(filter(None, metrics.values()), None) for name, metrics in differences.items()}
    known = {title: difference for title, difference in known.items() if difference is not None}
    by_image = [title for title, difference in known.items() if difference.groups is None]
    counts = sorted({difference.groups for difference in known.values() if difference.groups is not None})
    if not counts:
        return "images (per_image.csv names no groups)" if known else "images"
    text = f"{' or '.join(map(str, counts))} groups (patients, slides), all images of a group together"
    if any(difference.ungrouped for difference in known.values()):
        text += "; images without a group are groups of their own"
    return text + (f"; over images for {', '.join(by_image)}, whose per_image.csv names no groups" if by_image else "")


def _groups(names: pd.Index, columns: Iterable[pd.Series]) -> list[str]:
    """The group of every image, empty where unknown, from columns of groups indexed by image name."""
    groups: dict[str, str] = {}
    for column in columns:
        for name, group in column.items():
            if group and groups.setdefault(str(name), group) != group:
                raise InputError(
                    f"{name}: is of group {groups[str(name)]} in one per_image.csv and of group {group} in another; "
                    "evaluate all cells again with one table"
                )
    return [groups.get(name, "") for name in names]


def _difference(value: float, samples: Floats | None, images: NDArray[np.bool_], units: Units) -> Difference | None:
    if math.isnan(value):
        return None
    known = samples[~np.isnan(samples)] if samples is not None and units.among(images) > 1 else np.array([])
    low, high = percentile_interval(known)
    above = float((known > 0).mean()) if known.size else math.nan
    groups = units.count if units.grouped else None
    return Difference(value, low, high, above, int(images.sum()), groups, units.ungrouped if units.grouped else 0)
