"""The table of a benchmark: ours with spread, the published numbers beside them, and every footnote."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from histoloc.benchmark.compare import Difference, best_baseline, compare
from histoloc.benchmark.notes import SPLITS, compared, footnotes, general, has_published, without_roi
from histoloc.benchmark.results import Bench
from histoloc.benchmark.rows import DATASETS, Row
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
PER_IMAGE = ("f1_plus", "f1_minus", "pxap")
PER_IMAGE_GROUP = "per image (published rule)"
KINDS = {"table1": "Table 1", "ablation": "Ablation", "methods": "Methods"}


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
        *_per_image_columns(bench),
        *_published_columns(bench),
        _difference_column(baseline, differences),
        _time_column(bench),
    ]
    marked, notes = footnotes(bench)
    lines = tuple(
        Line(row.name, row.title, row.group, marked[row.name], tuple(entry(row) for _, entry in columns))
        for row in bench.rows
    )
    said = (*general(bench), *compared(bench, baseline, differences))
    return Table(_title(bench), tuple(h for h, _ in columns), lines, said, tuple(notes))


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
    headings |= {PXAP_WITH_ROI: PXAP_WITH_ROI_HEADING} if without_roi(bench) else {}
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


def _per_image_columns(bench: Bench) -> list[Column]:
    """Nothing where no method was measured by the papers' per-image rule too."""

    def column(metric: str) -> Column:
        return Heading(METRICS[metric], PER_IMAGE_GROUP, "per image"), lambda row: number(
            spread(cell.per_image(metric) for cell in bench.of(row))
        )

    return [column(metric) for metric in PER_IMAGE] if any(cell.per_image_rule for cell in bench.cells) else []


def _published_columns(bench: Bench) -> list[Column]:
    """Nothing where no data set with published numbers is named."""
    dataset = bench.dataset
    if dataset is None or not has_published(bench):
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
