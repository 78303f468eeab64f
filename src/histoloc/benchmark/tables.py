"""The tables of a benchmark: ours with spread and the published numbers beside them, differences, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Callable

from histoloc.benchmark.compare import METRICS as COMPARED
from histoloc.benchmark.compare import Difference, Differences, best_baseline, compare
from histoloc.benchmark.notes import SPLITS, footnotes, general, has_published
from histoloc.benchmark.results import WHAT_IT_COST, Bench
from histoloc.benchmark.rows import DATASETS
from histoloc.report.tables import METRICS, NOT_DEFINED, Cell, Line, Table, best, headings, interval, percent

OURS = ("cl_error", "f1_plus", "f1_minus", "f1_mean", "pxap", "pxap_with_roi", "specificity_without_roi")
OTHER_RULES = ("argmax_f1_plus", "argmax_f1_minus", "per_image_f1_plus", "per_image_f1_minus", "per_image_pxap")
PUBLISHED = ("cl_error", "f1_plus", "f1_minus")
KINDS = {"table1": "Table 1", "ablation": "Ablation", "methods": "Methods"}


def benchmark_table(bench: Bench) -> Table:
    """Build the table of a benchmark, finished or not."""
    baseline = best_baseline(bench)
    differences = compare(bench, baseline)
    columns = headings([cell.result for cell in bench.cells], (*OURS, *OTHER_RULES))
    frame, deviations = bench.spread([*columns, "train_seconds"])
    mean, std = frame.to_dict("index"), deviations.to_dict("index")
    compared = [None if row.group == "bound" else "all" for row in bench.rows]
    bold = best(frame[[name for name in columns if name in OURS]], compared, [row.name for row in bench.rows])
    dataset = bench.dataset if has_published(bench) else None
    lines = []
    for row in bench.rows:
        cells = [Cell(str(len(bench.of(row))))]
        for name in columns:
            spread = std[row.name][name]
            text = "" if math.isnan(spread) else f"± {spread:.2f}"
            cells.append(Cell(percent(mean[row.name][name]), text, name in bold and bool(bold.loc[row.name, name])))
        if dataset is not None:
            published = row.published.get(dataset)
            cells += [Cell(percent(published and getattr(published, name))) for name in PUBLISHED]
        is_baseline = baseline is not None and row.name == baseline.name
        cells.append(Cell("reference") if is_baseline else difference(differences.get(row.name, {}).get("f1_mean")))
        cells.append(Cell(duration(mean[row.name]["train_seconds"] or math.nan)))
        lines.append(Line(row.title, cells, row.group, footnotes(bench, row)))
    heads = [("", "n"), *((group or "ours", text) for group, text in columns.values())]
    if dataset is not None:
        heads += [(f"published ({DATASETS[dataset]}, test)", METRICS[name]) for name in PUBLISHED]
    heads += [("", f"Δ mean F1 to {baseline.title}" if baseline else "Δ mean F1"), ("", WHAT_IT_COST["train_seconds"])]
    title = f"{KINDS[bench.settings['kind']]} on {bench.table}, {SPLITS.get(bench.split, bench.split)} split"
    return Table(title, heads, lines, general(bench, baseline, differences))


def differences_table(bench: Bench, differences: Differences) -> Table:
    """Every difference to the baseline with its interval, and how many resamples are above 0."""
    lines = []
    for row in bench.rows:
        found = differences.get(row.name)
        if found and (mean := found["f1_mean"]) is not None:
            above = NOT_DEFINED if math.isnan(mean.above) else f"{100 * mean.above:.1f} %"
            lines.append(Line(row.title, [*map(difference, found.values()), Cell(above), Cell(str(mean.n))]))
    heads = [*(f"Δ {METRICS[name]}" for name in COMPARED), "resamples with Δ mean F1 > 0", "images"]
    return Table("", [("", head) for head in heads], lines)


def costs_table(bench: Bench) -> Table:
    """What the cells of each row took, on the mean."""
    shown: dict[str, Callable[[float], str]] = {
        "train_seconds": duration,
        "evaluate_seconds": duration,
        "peak_memory_mb": "{:,.0f} MB".format,
        "epochs": "{:.0f}".format,
        "selected_epoch": "{:.1f}".format,
        "parameters": lambda value: f"{value / 1e6:.2f} M",
    }
    mean = bench.spread(list(shown))[0].to_dict("index")
    lines = []
    for row in [row for row in bench.rows if bench.of(row)]:
        numbers = {name: mean[row.name][name] for name in shown}
        cells = [Cell(NOT_DEFINED if math.isnan(value) else shown[name](value)) for name, value in numbers.items()]
        devices = sorted({str(cell.cost.get("device") or NOT_DEFINED) for cell in bench.of(row)})
        lines.append(Line(row.title, [*cells, Cell(", ".join(devices))]))
    return Table("", [("", heading) for heading in WHAT_IT_COST.values()], lines)


def difference(found: Difference | None) -> Cell:
    """A difference with its sign, and its interval where it has one."""
    if found is None:
        return Cell(NOT_DEFINED)
    return Cell(f"{found.value:+.2f}".replace("-", "−"), interval(found.low, found.high, "+.2f"))


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best; `–` where unknown."""
    if math.isnan(seconds):
        return NOT_DEFINED
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
