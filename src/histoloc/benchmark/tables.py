"""The table of a benchmark: ours with spread, the published numbers beside them, and every footnote."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from histoloc.benchmark.compare import REPLICATES, Difference, best_baseline, compare, resampled
from histoloc.benchmark.presets import WITH_EMPTY_CLASS
from histoloc.benchmark.published import set_apart
from histoloc.benchmark.results import Bench, Cell
from histoloc.benchmark.rows import DATASETS, Row
from histoloc.report.rows import sentence
from histoloc.report.tables import (
    LESS_IS_BETTER,
    METRICS,
    NOT_DEFINED,
    PXAP_WITH_ROI,
    PXAP_WITH_ROI_HEADING,
    SPECIFICITY,
    percent,
    specificity_heading,
)

MEASURED = ("cl_error", "f1_plus", "f1_minus", "f1_mean", "pxap")
PUBLISHED = ("cl_error", "f1_plus", "f1_minus")
ARGMAX = ("f1_plus", "f1_minus")
ARGMAX_GROUP = "argmax rule (published CAM rule)"
KINDS = {"table1": "Table 1", "ablation": "Ablation", "methods": "Methods"}
SPLITS = {"valid": "validation", "test": "test", "train": "training"}


@dataclass(frozen=True)
class Spread:
    """A number over cells: mean and sample standard deviation (NaN for fewer than two), and how many cells."""

    mean: float
    std: float
    n: int


@dataclass(frozen=True)
class Entry:
    """What stands in one place of the table; `spread` is the smaller text behind or below the number."""

    text: str
    spread: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Heading:
    """A column; neighbours of the same non-empty `group` share a heading above theirs.

    `prefix` stands for the group where headings have one line only.
    """

    text: str
    group: str = ""
    prefix: str = ""


@dataclass(frozen=True)
class Line:
    """A row of the table; `notes` are 1-based numbers of its footnotes."""

    name: str
    title: str
    group: str
    notes: tuple[int, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Table:
    """A finished table, before it is Markdown, HTML or LaTeX.

    Attributes:
        title: its caption.
        headings: of the columns after the method's name.
        lines: the rows.
        general: sentences about all of it.
        notes: the footnotes that lines refer to.
    """

    title: str
    headings: tuple[Heading, ...]
    lines: tuple[Line, ...]
    general: tuple[str, ...]
    notes: tuple[str, ...]


def spread(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation (n - 1) of the values that are defined."""
    known = np.array([value for value in values if not math.isnan(value)])
    mean = float(known.mean()) if known.size else math.nan
    return Spread(mean, float(known.std(ddof=1)) if known.size > 1 else math.nan, int(known.size))


def measured(bench: Bench, names: Sequence[str] = MEASURED) -> dict[str, dict[str, Spread]]:
    """Every metric of every row over its cells, by name of the row and of the metric, in percent."""
    return {
        row.name: {name: spread(cell.value(name) for cell in bench.of(row)) for name in names} for row in bench.rows
    }


def best_rows(rows: Sequence[Row], values: Mapping[str, Spread], metric: str) -> set[str]:
    """Names of the rows to print in bold.

    The best mean at the two decimals shown, equal ones together; bounds take no part, and nobody is best among
    fewer than two.
    """
    sign = 1 if metric in LESS_IS_BETTER else -1
    shown = {row.name: sign * round(values[row.name].mean, 2) for row in rows if row.group != "bound"}
    shown = {name: value for name, value in shown.items() if not math.isnan(value)}
    return {name for name, value in shown.items() if value == min(shown.values())} if len(shown) > 1 else set()


def benchmark_table(bench: Bench) -> Table:
    """Build the table of a benchmark, finished or not."""
    baseline = best_baseline(bench)
    differences = compare(bench, baseline)
    columns = [
        _cells_column(bench),
        *_measured_columns(bench),
        *_argmax_columns(bench),
        *_published_columns(bench),
        _difference_column(baseline, differences),
        _time_column(bench),
    ]
    marked, notes = _footnotes(bench)
    lines = tuple(
        Line(row.name, row.title, row.group, marked[row.name], tuple(entry(row) for _, entry in columns))
        for row in bench.rows
    )
    general = [*_general(bench), *_compared(bench, baseline, differences)]
    return Table(_title(bench), tuple(h for h, _ in columns), lines, tuple(general), tuple(notes))


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best; `–` where unknown."""
    if math.isnan(seconds):
        return NOT_DEFINED
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


Column = tuple[Heading, Callable[[Row], Entry]]


def number(value: Spread, bold: bool = False) -> Entry:
    """A mean with its standard deviation, where there is one."""
    return Entry(percent(value.mean), "" if math.isnan(value.std) else f"± {value.std:.2f}", bold)


def _cells_column(bench: Bench) -> Column:
    return Heading("n"), lambda row: Entry(str(len(bench.of(row))))


def _measured_columns(bench: Bench) -> list[Column]:
    empty = bench.empty_class
    headings = {name: METRICS[name] for name in MEASURED}
    headings |= {PXAP_WITH_ROI: PXAP_WITH_ROI_HEADING} if _without_roi(bench) else {}
    headings |= {} if empty is None else {SPECIFICITY: specificity_heading([empty])}
    values = measured(bench, list(headings))

    def column(metric: str) -> Column:
        best = best_rows(bench.rows, {name: of_row[metric] for name, of_row in values.items()}, metric)
        return Heading(headings[metric], "ours"), lambda row: number(values[row.name][metric], row.name in best)

    return [column(metric) for metric in headings]


def _argmax_columns(bench: Bench) -> list[Column]:
    """Nothing where no method has class maps."""

    def column(metric: str) -> Column:
        return Heading(METRICS[metric], ARGMAX_GROUP, "argmax rule"), lambda row: number(
            spread(cell.argmax(metric) for cell in bench.of(row))
        )

    return [column(metric) for metric in ARGMAX] if any(cell.argmax_rule for cell in bench.cells) else []


def _published_columns(bench: Bench) -> list[Column]:
    """Nothing where no data set with published numbers is named."""
    dataset = bench.dataset
    if dataset is None or not any(dataset in row.published for row in bench.rows):
        return []

    def column(metric: str) -> Column:
        heading = Heading(METRICS[metric], f"published ({DATASETS[dataset]}, test)", "published")
        return heading, lambda row: Entry(
            percent(getattr(row.published[dataset], metric)) if dataset in row.published else NOT_DEFINED
        )

    return [column(metric) for metric in PUBLISHED]


def _difference_column(baseline: Row | None, differences: Mapping[str, Mapping[str, Difference | None]]) -> Column:
    def entry(row: Row) -> Entry:
        if baseline is not None and row.name == baseline.name:
            return Entry("reference")
        found = differences.get(row.name, {}).get("f1_mean")
        return Entry(NOT_DEFINED) if found is None else Entry(signed(found.value), interval(found))

    against = "" if baseline is None else f" to {baseline.title}"
    return Heading(f"Δ mean F1{against}"), entry


def _time_column(bench: Bench) -> Column:
    return Heading("training per cell"), lambda row: Entry(
        duration(spread(float(c.cost.get("train_seconds") or math.nan) for c in bench.of(row)).mean)
    )


def signed(value: float) -> str:
    """A difference with its sign, a real minus, and two decimals."""
    return f"{value:+.2f}".replace("-", "−")


def interval(difference: Difference) -> str:
    """[low, high] of a difference, empty where it has no interval."""
    return "" if math.isnan(difference.low) else f"[{signed(difference.low)}, {signed(difference.high)}]"


def _title(bench: Bench) -> str:
    split = SPLITS.get(bench.split, bench.split)
    return f"{KINDS[bench.settings['kind']]} on {bench.table}, {split} split"


def _general(bench: Bench) -> list[str]:
    """What holds for all rows: how the numbers were made."""
    made_of = _count(len(bench.settings["seeds"]), "seed")
    if bench.settings["folds"] != [None]:
        made_of = f"{_count(len(bench.settings['folds']), 'fold')} × {made_of}"
    split = SPLITS.get(bench.split, bench.split)
    said = [
        f"Ours: percentages on the {split} split, mean ± sample standard deviation over n cells "
        f"({made_of}); no ± where n is 1. Bold: the best of a column; bounds (methods that learn nothing, or from "
        "masks) take no part. –: not defined."
    ]
    if common := _setting(bench):
        said.append(common)
    if bench.empty_class is not None:
        said.append(
            f"Images of class {bench.empty_class} have no ROI: F1⁺ leaves them out, so that it cannot see false alarms "
            f"on them; the {specificity_heading([bench.empty_class])} does: mean of the share of the image that is not "
            "marked."
        )
    if counts := " or ".join(map(str, _without_roi(bench))):
        said.append(
            f"PxAP pools the pixels of all images whose truth is known, {counts} of them without ROI (all their pixels "
            f"are background); {PXAP_WITH_ROI_HEADING}: the same without these."
        )
    if any(cell.argmax_rule for cell in bench.cells):
        said.append(
            "argmax rule: the published CAM rule, by which a pixel is ROI where the predicted class has the largest "
            "class map; only for methods with class maps, and no part of the comparison."
        )
    if _published_columns(bench):
        said.append(
            f"Published: Belharbi et al., MIDL 2022 and IEEE TMI 2022, measured on the test set.{_apart(bench)}"
        )
    return said


def _compared(
    bench: Bench, baseline: Row | None, differences: Mapping[str, Mapping[str, Difference | None]]
) -> list[str]:
    """How the differences to the baseline were made."""
    if baseline is None:
        return []
    kind = "the best label-supervised baseline by mean F1" if baseline.group == "baseline" else "the first row"
    drawn = resampled(differences, {row.name: row.title for row in bench.rows})
    return [
        f"Δ mean F1: difference to {baseline.title}, {kind}, on the images that both have; in brackets "
        f"the 95 % interval of the paired bootstrap over {drawn} ({REPLICATES} resamples; seeds are averaged, "
        "folds pooled)."
    ]


def _without_roi(bench: Bench) -> list[int]:
    """How many images without ROI PxAP pools, over the cells; nothing where it pools none."""
    metrics = [cell.evaluation.result.metrics for cell in bench.cells]
    return sorted({m.pxap_images_without_roi for m in metrics if m.pools_without_roi})


def _apart(bench: Bench) -> str:
    split = [] if bench.split == "test" else [f"measured on the {SPLITS.get(bench.split, bench.split)} split"]
    others = [*split, *set_apart(bench)]
    return f" Not directly comparable; ours: {'; '.join(others)}." if others else ""


def _setting(bench: Bench) -> str:
    common = {name: _most_common(of(cell) for cell in bench.cells) for name, of in RULES.items()}
    parts = [f"preset {bench.settings['preset']}"] if bench.settings.get("preset") else []
    epochs = (bench.settings.get("overrides") or {}).get("epochs")
    parts += [f"epochs {epochs} instead of the preset's"] if epochs is not None else []
    parts += [f"{name} {value}" for name, value in common.items() if value]
    return f"Unless a footnote says otherwise: {', '.join(parts)}." if parts else ""


def _backbone(cell: Cell) -> str:
    backbone = cell.settings.get("backbone") or {}
    if not backbone.get("backbone") or not cell.cost.get("epochs"):
        return ""
    stride = backbone.get("stride")
    return f"{backbone['backbone']} " + (f"cut at stride {stride}" if stride else "with all its layers")


def _selection(cell: Cell) -> str:
    return str((cell.evaluation.result.selection or {}).get("rule") or "")


def _threshold(cell: Cell) -> str:
    threshold = cell.evaluation.result.threshold
    return threshold.rule + (
        f" {threshold.value:g}" if threshold.rule == "fixed" and threshold.value is not None else ""
    )


def _rate(cell: Cell) -> str:
    learns = bool(cell.cost.get("epochs"))
    return f"{cell.settings['training']['lr']:g}" if learns and "training" in cell.settings else ""


RULES: dict[str, Callable[[Cell], str]] = {
    "backbone": _backbone,
    "learning rate": _rate,
    "selection rule": _selection,
    "threshold rule": _threshold,
}


def _most_common(values: Iterable[str]) -> str:
    counted = Counter(value for value in values if value)
    return counted.most_common(1)[0][0] if counted else ""


def _footnotes(bench: Bench) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Numbers of the footnotes by name of the row, and the footnotes; equal ones are given once."""
    common = {name: _most_common(of(cell) for cell in bench.cells) for name, of in RULES.items()}
    notes: list[str] = []
    marked = {}
    for row in bench.rows:
        own = _notes_of(bench, row, common)
        notes += [note for note in own if note not in notes]
        marked[row.name] = tuple(sorted(notes.index(note) + 1 for note in own))
    return marked, notes


def _notes_of(bench: Bench, row: Row, common: Mapping[str, Any]) -> list[str]:
    cells = bench.of(row)
    notes = [row.note] if row.note else []
    for name, of in RULES.items():
        others = sorted({value for cell in cells if (value := of(cell)) and value != common[name]})
        notes += [f"{name.capitalize()}: {', '.join(others)}."] if others else []
    notes += [note for cell in cells if (note := _told_empty_class(cell))]
    notes += [sentence(text) for cell in cells for text in cell.evaluation.result.uses_masks]
    finished = {cell.name for cell in cells}
    missing = [name for name in bench.wanted if name not in finished]
    if missing:
        failed = {failure.cell for failure in bench.failures if failure.row.name == row.name}
        named = ", ".join(f"{name} (failed)" if name in failed else name for name in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        notes.append(f"{len(cells)} of {len(bench.wanted)} cells are finished; missing: {named}{more}.")
    return list(dict.fromkeys(notes))


def _told_empty_class(cell: Cell) -> str:
    """What a method's options say of a class without ROI, and what else they are because of it."""
    options = cell.settings.get("options") or {}
    empty = cell.settings.get("empty_class")
    if empty is None:
        return ""
    besides = [f"{name} {options[name]}" for name in WITH_EMPTY_CLASS.get(cell.row.method, {}) if name in options]
    return f"Was told that images of class {empty} have no ROI" + (f": {', '.join(besides)}." if besides else ".")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
