"""The tables of a benchmark: ours with spread, the published numbers beside them, and all that is said below."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from histoloc.benchmark.compare import METRICS as COMPARED
from histoloc.benchmark.compare import REPLICATES, Difference, Differences, best_baseline, compare, resampled
from histoloc.benchmark.published import set_apart
from histoloc.benchmark.results import WHAT_IT_COST, Bench, Cell
from histoloc.benchmark.rows import DATASETS, Row
from histoloc.report.rows import sentence
from histoloc.report.tables import METRICS, NOT_DEFINED, Entry, Line, Table, best, headings, interval, percent

OURS = ("cl_error", "f1_plus", "f1_minus", "f1_mean", "pxap", "pxap_with_roi", "specificity_without_roi")
OTHER_RULES = ("argmax_f1_plus", "argmax_f1_minus", "per_image_f1_plus", "per_image_f1_minus", "per_image_pxap")
PUBLISHED = ("cl_error", "f1_plus", "f1_minus")
KINDS = {"table1": "Table 1", "ablation": "Ablation", "methods": "Methods", "maps": "Tiers of supervision"}
SPLITS = {"valid": "validation", "test": "test", "train": "training"}
PER_IMAGE_RULE = (
    "Two rules make a map of evidence e. Ours, learned range: an affine map and a sigmoid, learned on training images "
    "without masks, so that as much of them is ROI as by the per-image rule; the same for every image. Per image: "
    "(e - min)/(max - min) of each image, or the method's own rule, cut at 0.5; no part of the comparison. –: the "
    "method needs no range, or its maps are made per image already."
)
ARGMAX_RULE = (
    "argmax rule: the published CAM rule, by which a pixel is ROI where the predicted class has the largest class map; "
    "only for methods with class maps, and no part of the comparison."
)


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
    tiers = {row.name: " or ".join(sorted({cell.result.tier for cell in bench.of(row)} - {""})) for row in bench.rows}
    tiers = tiers if any(tiers.values()) else {}
    lines = []
    for row in bench.rows:
        cells = [*([Entry(tiers[row.name])] if tiers else []), Entry(str(len(bench.of(row))))]
        for name in columns:
            spread = std[row.name][name]
            text = "" if math.isnan(spread) else f"± {spread:.2f}"
            cells.append(Entry(percent(mean[row.name][name]), text, name in bold and bool(bold.loc[row.name, name])))
        if dataset is not None:
            published = row.published.get(dataset)
            cells += [Entry(percent(published and getattr(published, name))) for name in PUBLISHED]
        is_baseline = baseline is not None and row.name == baseline.name
        cells.append(Entry("reference") if is_baseline else difference(differences.get(row.name, {}).get("f1_mean")))
        cells.append(Entry(duration(mean[row.name]["train_seconds"] or math.nan)))
        lines.append(Line(row.title, cells, row.group, footnotes(bench, row)))
    heads = [
        *([("", "learned from")] if tiers else []),
        ("", "n"),
        *((group or "ours", text) for group, text in columns.values()),
    ]
    if dataset is not None:
        heads += [(f"published ({DATASETS[dataset]}, test)", METRICS[name]) for name in PUBLISHED]
    heads += [("", f"Δ mean F1 to {baseline.title}" if baseline else "Δ mean F1"), ("", WHAT_IT_COST["train_seconds"])]
    return Table(title(bench), heads, lines, general(bench, baseline, differences))


def title(bench: Bench) -> str:
    """The table's caption."""
    return f"{KINDS[bench.settings['kind']]} on {bench.table}, {SPLITS.get(bench.split, bench.split)} split"


def differences_table(bench: Bench, differences: Differences) -> Table:
    """Every difference to the baseline with its interval, and how many resamples are above 0."""
    lines = []
    for row in bench.rows:
        values = differences.get(row.name)
        if values and (mean := values["f1_mean"]) is not None:
            above = NOT_DEFINED if math.isnan(mean.above) else f"{100 * mean.above:.1f} %"
            lines.append(Line(row.title, [*map(difference, values.values()), Entry(above), Entry(str(mean.n))]))
    heads = [*(f"Δ {METRICS[name]}" for name in COMPARED), "resamples with Δ mean F1 > 0", "images"]
    return Table("", [("", head) for head in heads], lines)


def costs_table(bench: Bench) -> Table:
    """What the cells of each row took, on the mean."""
    formats: dict[str, Callable[[float], str]] = {
        "train_seconds": duration,
        "evaluate_seconds": duration,
        "peak_memory_mb": "{:,.0f} MB".format,
        "epochs": "{:.0f}".format,
        "selected_epoch": "{:.1f}".format,
        "parameters": lambda value: f"{value / 1e6:.2f} M",
    }
    mean = bench.spread(list(formats))[0].to_dict("index")
    lines = []
    for row in [row for row in bench.rows if bench.of(row)]:
        numbers = {name: mean[row.name][name] for name in formats}
        cells = [Entry(NOT_DEFINED if math.isnan(value) else formats[name](value)) for name, value in numbers.items()]
        devices = sorted({str(cell.cost.get("device") or NOT_DEFINED) for cell in bench.of(row)})
        lines.append(Line(row.title, [*cells, Entry(", ".join(devices))]))
    return Table("", [("", heading) for heading in WHAT_IT_COST.values()], lines)


def difference(delta: Difference | None) -> Entry:
    """A difference with its sign, and its interval where it has one."""
    if delta is None:
        return Entry(NOT_DEFINED)
    return Entry(f"{delta.value:+.2f}".replace("-", "−"), interval(delta.low, delta.high, "+.2f"))


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best; `–` where unknown."""
    if math.isnan(seconds):
        return NOT_DEFINED
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def general(bench: Bench, baseline: Row | None, differences: Differences) -> list[str]:
    """What holds for all rows: how the numbers and the differences to the baseline were made."""
    seeds, folds = len(bench.settings["seeds"]), len(bench.settings["folds"])
    design = (
        f"{folds} fold{'s' * (folds > 1)} × " * (bench.settings["folds"] != [None]) + f"{seeds} seed{'s' * (seeds > 1)}"
    )
    notes = [
        f"Ours: percentages on the {SPLITS.get(bench.split, bench.split)} split, mean ± sample standard deviation over "
        f"n cells ({design}); no ± where n is 1. Bold: the best of a column; bounds (methods that learn nothing, or "
        "from masks) take no part. –: not defined."
    ]
    notes += common_settings(bench)
    if bench.empty_class is not None:
        notes.append(
            f"Images of class {bench.empty_class} have no ROI: F1⁺ leaves them out, so that it cannot see false alarms "
            f"on them; the specificity on {bench.empty_class} images does: mean of the share of the image that is not "
            "marked."
        )
    results = [cell.result for cell in bench.cells]
    if counts := sorted({of.metrics.pxap_images_without_roi for of in results if of.pools_without_roi}):
        notes.append(
            f"PxAP pools the pixels of all images whose truth is known, {' or '.join(map(str, counts))} of them "
            "without ROI (all their pixels are background); PxAP, images with ROI: the same without these."
        )
    notes += [ARGMAX_RULE] if measured(bench, "argmax") else []
    notes += [PER_IMAGE_RULE] if measured(bench, "per_image") else []
    notes += [_published(bench)] if has_published(bench) else []
    if baseline is not None:
        kind = "the best label-supervised baseline by mean F1" if baseline.group == "baseline" else "the first row"
        units = resampled(differences, {row.name: row.title for row in bench.rows})
        notes.append(
            f"Δ mean F1: difference to {baseline.title}, {kind}, on the images that both have; in brackets "
            f"the 95 % interval of the paired bootstrap over {units} ({REPLICATES} resamples; seeds are averaged, "
            "folds pooled)."
        )
    return notes


def common_settings(bench: Bench) -> list[str]:
    """How most cells were made, in a sentence."""
    settings = bench.settings
    epochs = (settings.get("overrides") or {}).get("epochs")
    parts = [f"preset {settings['preset']}"] if settings.get("preset") else []
    parts += [f"epochs {epochs} instead of the preset's"] if epochs is not None else []
    parts += [f"{name} {value}" for name, value in _common(bench).items()]
    parts += [f"all maps by --range {settings['range']}"] if settings.get("range") else []
    return [f"Unless a footnote says otherwise: {', '.join(parts)}."] if parts else []


def measured(bench: Bench, rule: str) -> bool:
    """Whether any cell was measured by another rule of making maps too."""
    return any(cell.result.value(f"{rule}_f1_plus") is not None for cell in bench.cells)


def has_published(bench: Bench) -> bool:
    """Whether a data set with published numbers is named."""
    return bench.dataset is not None and any(bench.dataset in row.published for row in bench.rows)


def _published(bench: Bench) -> str:
    """Where the published numbers come from, and which of ours they may be compared with."""
    text = "Published: Belharbi et al., MIDL 2022 and IEEE TMI 2022, measured on the test set."
    if measured(bench, "per_image"):
        text += " Their maps are made by the per-image rule: compare them with the columns per image"
        text += ", of CAM rows also those of the argmax rule." if measured(bench, "argmax") else "."
    elif bench.settings.get("range") == "image":
        text += " Their maps are made by the per-image rule, as ours here."
    split = [] if bench.split == "test" else [f"measured on the {SPLITS.get(bench.split, bench.split)} split"]
    others = [*split, *set_apart(bench)]
    return text + (f" Not directly comparable; ours: {'; '.join(others)}." if others else "")


def _facts(cell: Cell) -> dict[str, str]:
    """How a cell was made, empty where it does not say; a footnote names what most cells have not."""
    backbone, rate = cell.settings.get("backbone") or {}, (cell.settings.get("training") or {}).get("lr")
    seen = cell.settings.get("input") or {}
    side = f"shorter side {seen['small_side']} px" if seen.get("small_side") else ""
    threshold, learns = cell.result.threshold, bool(cell.cost.get("epochs"))
    cut = f"cut at stride {backbone['stride']}" if backbone.get("stride") else "with all its layers"
    fixed = threshold.rule == "fixed" and threshold.value is not None
    return {
        "backbone": f"{backbone['backbone']} {cut}" if learns and backbone.get("backbone") else "",
        "learning rate": f"{rate:g}" if learns and rate is not None else "",
        "input": f"{seen['mpp']:g} µm/px" if seen.get("mpp") else side,
        "selection rule": str((cell.result.selection or {}).get("rule") or ""),
        "threshold rule": f"fixed {threshold.value:g}" if fixed else threshold.rule,
        "range of maps": cell.result.range or "",
    }


def _common(bench: Bench) -> dict[str, str]:
    """What most cells have of `_facts`, by name."""
    counted = Counter(fact for cell in bench.cells for fact in _facts(cell).items() if fact[1])
    most = dict(fact for fact, _ in reversed(counted.most_common()))  # the last one of a name stays
    return {name: most[name] for cell in bench.cells for name in _facts(cell) if name in most}


def footnotes(bench: Bench, row: Row) -> list[str]:
    """What is particular about a row: its own note, what differs from most cells, masks, and what is missing."""
    cells, common = bench.of(row), _common(bench)
    notes = [row.note] if row.note else []
    for name, most in common.items():
        others = sorted({value for cell in cells if (value := _facts(cell)[name]) not in ("", most)})
        notes += [f"{name.capitalize()}: {', '.join(others)}."] if others else []
    notes += [note for cell in cells if (note := _because_of_empty_class(row, cell.settings))]
    notes += [sentence(text) for cell in cells for text in cell.result.uses_masks]
    missing = [name for name in bench.wanted if name not in {cell.name for cell in cells}]
    if missing:
        failed = {failure.cell for failure in bench.failures if failure.row.name == row.name}
        named = ", ".join(f"{name} (failed)" if name in failed else name for name in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        notes.append(f"{len(cells)} of {len(bench.wanted)} cells are finished; missing: {named}{more}.")
    return list(dict.fromkeys(notes))


def _because_of_empty_class(row: Row, settings: dict[str, Any]) -> str:
    """What a method's options are because a class has no ROI."""
    options = settings.get("options") or {}
    empty = settings.get("empty_class") or options.get("empty_class")
    if not empty:
        return ""
    from histoloc.methods import METHODS  # here, because it needs torch, and other reports do not

    needs = METHODS[row.method].with_empty_class
    besides = [f"{name} {options[name]}" for name in needs if name in options]
    return f"Because images of class {empty} have no ROI: {', '.join(besides)}." if besides else ""
