"""The table of tiers of supervision: what a map is worth by what was learned from, tier by tier, over seeds."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import pandas as pd

from histoloc.benchmark.compare import REPLICATES, Differences, best_baseline, compare, resampled
from histoloc.benchmark.presets import parse_numbers
from histoloc.benchmark.results import WHAT_IT_COST, Bench
from histoloc.benchmark.rows import TIERS, Row
from histoloc.benchmark.tables import (
    PER_IMAGE_RULE,
    SPLITS,
    common_settings,
    difference,
    duration,
    footnotes,
    measured,
    title,
)
from histoloc.report.tables import METRICS, NOT_DEFINED, Entry, Line, Table, best, headings, percent

SHOWN = ("cl_error", "f1_plus", "f1_minus", "f1_mean", "pxap")
PER_IMAGE = ("per_image_f1_plus", "per_image_f1_minus", "per_image_pxap")
APART = ("f1_mean", "pxap")
SOURCES = {
    "pixel": "masks",
    "synthetic": "prior",
    "cue": "cue",
    "image": "labels",
}  # strongest first


def tiers_table(bench: Bench) -> Table:
    """Build the table, finished or not."""
    baseline = best_baseline(bench)
    differences = compare(bench, baseline)
    columns = headings([cell.result for cell in bench.cells], (*SHOWN, *PER_IMAGE))
    names, parts, spread = list(columns), apart(bench), within_folds(bench, "f1_mean")
    frame, std = over_seeds(bench, names)
    means, deviations = frame.to_dict("index"), std.to_dict("index")
    others = [over_seeds(bench, APART, folds)[0].to_dict("index") for folds in parts.values()]
    tiers = {row.name: tier_of(bench, row) for row in bench.rows}
    shown = frame[[name for name in names if name in SHOWN]]
    bold = best(shown, [tiers[row.name] for row in bench.rows], [row.name for row in bench.rows])
    seconds = bench.spread(["train_seconds"])[0]["train_seconds"]
    heads = [("", "learned from"), ("", "n"), *((group or "ours", text) for group, text in columns.values())]
    heads += [("", "SD of mean F1 within folds")]
    heads += [(text, METRICS[name]) for text in parts for name in APART]
    heads += [("", f"Δ mean F1 to {baseline.title}" if baseline else "Δ mean F1"), ("", WHAT_IT_COST["train_seconds"])]
    lines: dict[str, list[Line]] = {tier: [] for tier in TIERS}
    for row in bench.rows:
        name, own = row.name, bench.of(row)
        learned = " or ".join(sorted({cell.result.tier for cell in own} - {""}))
        cells = [Entry(learned or NOT_DEFINED), Entry(str(len(own)))]
        for metric in names:
            spread_of = deviations[name][metric]
            text = "" if math.isnan(spread_of) else f"± {spread_of:.2f}"
            cells.append(Entry(percent(means[name][metric]), text, metric in bold and bool(bold.loc[name, metric])))
        cells += [Entry(percent(spread[name])), *(Entry(percent(of[name][m])) for of in others for m in APART)]
        same = baseline is not None and row.name == baseline.name
        cells.append(Entry("reference") if same else difference(differences.get(name, {}).get("f1_mean")))
        cells.append(Entry(duration(seconds[name] or math.nan)))
        notes = [*footnotes(bench, row), *_below_floors(bench, row, tiers)]
        lines[tiers[name]].append(Line(row.title, cells, tiers[name], notes))
    empty = [Entry()] * len(heads)
    with_titles = [line for t, own in lines.items() if own for line in (Line(TIERS[t], empty, t, heading=True), *own)]
    return Table(title(bench), heads, with_titles, general(bench, baseline, differences))


def tier_of(bench: Bench, row: Row) -> str:
    """The strongest of what the models of a row learned from; what is said of the row while none is finished."""
    learned = [cell.result.supervision for cell in bench.of(row) if cell.result.supervision is not None]
    if not learned:
        return row.learns_from
    return next((tier for source, tier in SOURCES.items() if any(source in of for of in learned)), "nothing")


def apart(bench: Bench) -> dict[str, tuple[int, ...]]:
    """Folds whose held-out images were looked at while the prior was made, and the others; empty where one is all."""
    text = bench.settings.get("looked_at") or ("0-2" if bench.dataset == "glas" else "none")
    looked_at, folds = parse_numbers(text, "--looked-at"), bench.settings["folds"]
    parts = {
        "looked at": tuple(f for f in folds if f in looked_at),
        "not looked at": tuple(set(folds) - set(looked_at)),
    }
    if None in looked_at or not all(parts.values()):
        return {}
    return {f"folds {', '.join(map(str, sorted(of)))} ({name})": of for name, of in parts.items()}


def over_seeds(
    bench: Bench, names: Sequence[str], folds: Collection[int | None] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean and sample standard deviation over seeds, by name of the row and metric.

    Within a seed a number is that of all images of the folds together; of PxAP, which pools pixels, the mean of the
    folds weighted by their images.

    Args:
        bench: the benchmark.
        names: as for `Cell.value`.
        folds: these alone.
    """
    rows = [row.name for row in bench.rows]
    cells = [cell for cell in bench.cells if folds is None or cell.fold in folds]
    index = pd.MultiIndex.from_tuples([(cell.row.name, cell.seed) for cell in cells], names=["row", "seed"])
    pooled = pd.DataFrame(index=index.unique(), columns=list(names), dtype=float)
    for name in names:
        values = pd.Series([cell.value(name) for cell in cells], index, dtype=float)
        images = [cell.result.numbers[name].n or cell.result.n_images for cell in cells]
        weights = pd.Series(images, index, dtype=float).where(values.notna())
        sums = pd.DataFrame({"value": values * weights, "weight": weights}).groupby(level=[0, 1]).sum(min_count=1)
        pooled[name] = sums["value"] / sums["weight"]
    by_row = pooled.groupby(level="row")
    return by_row.mean().reindex(rows), by_row.std().reindex(rows)


def within_folds(bench: Bench, name: str) -> pd.Series:
    """Standard deviation over seeds within a fold: the root of the mean over folds of its variance, by row."""
    index = pd.MultiIndex.from_tuples([(cell.row.name, str(cell.fold)) for cell in bench.cells], names=["row", "fold"])
    values = pd.Series([cell.value(name) for cell in bench.cells], index, dtype=float)
    return values.groupby(level=[0, 1]).var().groupby(level=0).mean().pow(0.5).reindex([row.name for row in bench.rows])


def _below_floors(bench: Bench, row: Row, tiers: dict[str, str]) -> list[str]:
    """How many cells are below what learns nothing, of the same fold and seed."""
    notes = []
    for floor in bench.rows:
        if tiers[floor.name] == "nothing" and tiers[row.name] != "nothing":
            least = {cell.name: cell.value("f1_mean") for cell in bench.of(floor)}
            below = sum(cell.value("f1_mean") < least.get(cell.name, -math.inf) for cell in bench.of(row))
            notes += (
                [f"{below} of {len(bench.of(row))} cells have a mean F1 below that of {floor.title}."] if below else []
            )
    return notes


def general(bench: Bench, baseline: Row | None, differences: Differences) -> list[str]:
    """How the numbers were made and what they rest on."""
    split = SPLITS.get(bench.split, bench.split)
    notes = [
        f"Percentages on the {split} split, of which neither labels nor masks choose anything: mean ± sample standard "
        "deviation over seeds; within a seed the images of all folds are pooled (PxAP: mean of the folds, weighted by "
        "their images). SD within folds: standard deviation over seeds of a fold, root mean square over folds. n: "
        "cells (folds x seeds). Bold: the best of a tier. –: not defined.",
        *common_settings(bench),
    ]
    if parts := apart(bench):
        looked, other = parts
        notes.append(
            f"Held-out images of {looked.removesuffix(' (looked at)')} were looked at by whoever drew the scene of the "
            f"prior; those of {other.removesuffix(' (not looked at)')}, which were not, stand apart."
        )
    notes += [PER_IMAGE_RULE] if measured(bench, "per_image") else []
    if baseline is not None:
        units = resampled(differences, {row.name: row.title for row in bench.rows})
        notes.append(
            f"Δ mean F1: difference to {baseline.title} on the images that both have; in brackets the 95 % interval of "
            f"the paired bootstrap over {units} ({REPLICATES} resamples; seeds are averaged, folds pooled)."
        )
    return notes
