"""Is a row better than the best baseline? Paired bootstrap over the images that both were evaluated on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoloc.benchmark.results import Bench, Cell
from histoloc.benchmark.rows import Row
from histoloc.metrics.bootstrap import bootstrap, percentile_interval, weighted_ratio
from histoloc.metrics.functional import Floats

METRICS = ("f1_plus", "f1_minus", "f1_mean")
REPLICATES, SEED = 2000, 0


@dataclass(frozen=True)
class Difference:
    """A row minus the baseline, in percentage points; positive where the row is better.

    Attributes:
        value: on all common images.
        low: lower bound of the 95 % percentile interval over resampled images.
        high: upper bound.
        above: share of the resamples with a difference above 0, in [0, 1].
        n: common images on which the metric is defined.
    """

    value: float
    low: float
    high: float
    above: float
    n: int


def per_image(cells: Sequence[Cell]) -> pd.DataFrame:
    """F1⁺ and F1⁻ of every image, averaged over the cells that evaluated it.

    Seeds are averaged; images of different folds are pooled, and an image that several folds evaluated (a test
    image) is averaged over them too.

    Args:
        cells: of one row.

    Returns:
        Columns f1_plus and f1_minus in percent, NaN where an image has no ROI or no background; index: image name.
    """
    columns = ["name", "f1_plus", "f1_minus"]
    if not cells:
        return pd.DataFrame(columns=columns[1:], index=pd.Index([], name="name"), dtype=float)
    return pd.concat([cell.evaluation.images[columns] for cell in cells]).groupby("name").mean()


def paired_difference(
    ours: pd.DataFrame, baseline: pd.DataFrame, replicates: int = REPLICATES, seed: int = SEED
) -> dict[str, Difference | None]:
    """Differences of F1⁺, F1⁻ and their mean on the common images, with paired bootstrap intervals.

    The mean F1 of a set of images is the mean of two means, as everywhere: F1⁺ over its images with ROI and F1⁻
    over its images with background.

    Args:
        ours: what `per_image` returned for the row.
        baseline: and for the baseline.
        replicates: number of resamples.
        seed: of the resampling.

    Returns:
        By name of METRICS; None where no common image defines the metric.
    """
    common = ours.index.intersection(baseline.index).sort_values()
    if common.empty:
        return dict.fromkeys(METRICS)
    pair = list(METRICS[:2])
    delta = (ours.loc[common, pair] - baseline.loc[common, pair]).to_numpy(dtype=float)
    defined = ~np.isnan(delta)
    above, below = np.where(defined, delta, 0) / 100, defined.astype(float)

    def statistics(weights: Floats) -> dict[str, Floats]:
        plus, minus = weighted_ratio(weights, above, below).T
        return {"f1_plus": plus, "f1_minus": minus, "f1_mean": (plus + minus) / 2}

    points = statistics(np.ones((1, len(common))))
    samples = bootstrap(statistics, len(common), replicates, seed)
    n = {"f1_plus": defined[:, 0].sum(), "f1_minus": defined[:, 1].sum(), "f1_mean": defined.any(axis=1).sum()}
    return {name: _difference(float(points[name][0]), samples[name], int(n[name])) for name in METRICS}


def best_baseline(bench: Bench) -> Row | None:
    """What the rows are compared with.

    The row of group `baseline` with the highest mean over its cells of the mean F1; in a table without such rows
    (the ablation) its first row. None while that has no finished cell.
    """
    baselines = [row for row in bench.rows if row.group == "baseline"]
    candidates = baselines if _expects_baselines(bench) else list(bench.rows[:1])
    scores = {row.name: mean_f1(bench.of(row)) for row in candidates}
    known = [row for row in candidates if not math.isnan(scores[row.name])]
    return max(known, key=lambda row: scores[row.name]) if known else None


def mean_f1(cells: Sequence[Cell]) -> float:
    """Mean over cells of the mean F1; NaN where no cell defines it."""
    values = [value for cell in cells if not math.isnan(value := cell.value("f1_mean"))]
    return float(np.mean(values)) if values else math.nan


def compare(bench: Bench, baseline: Row | None) -> dict[str, dict[str, Difference | None]]:
    """Differences of every finished row but the baseline itself, by name of the row; empty without a baseline."""
    if baseline is None:
        return {}
    reference = per_image(bench.of(baseline))
    rows = {row.name: bench.of(row) for row in bench.rows if row.name != baseline.name}
    return {name: paired_difference(per_image(cells), reference) for name, cells in rows.items() if cells}


def _expects_baselines(bench: Bench) -> bool:
    return bench.settings["kind"] != "ablation"


def _difference(value: float, samples: Floats, n: int) -> Difference | None:
    if math.isnan(value):
        return None
    low, high = percentile_interval(samples)
    defined = samples[~np.isnan(samples)]
    return Difference(value, low, high, float((defined > 0).mean()) if defined.size else math.nan, n)
