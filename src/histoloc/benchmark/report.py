"""The page and the files of a benchmark: results.csv, tables in three formats, report.html."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from histoloc.benchmark import markup
from histoloc.benchmark.charts import forest, scatter, sensitivity
from histoloc.benchmark.compare import Difference, best_baseline, compare, mean_f1, resampled
from histoloc.benchmark.notes import SPLITS
from histoloc.benchmark.results import Bench, Cell, is_bench, read_bench, write_results
from histoloc.benchmark.rows import Row
from histoloc.benchmark.tables import KINDS, Table, benchmark_table, duration, interval, signed, spread
from histoloc.errors import InputError
from histoloc.report.gallery import Gallery, side_by_side
from histoloc.report.html import agreement_colours, flatten, template, write_report
from histoloc.report.read import Run
from histoloc.report.tables import NOT_DEFINED, percent
from histoloc.work_folder import write_text

IMAGES = 6  # of the figure
COST_HEADINGS = (
    "training per cell",
    "evaluation per cell",
    "peak memory",
    "epochs",
    "selected epoch",
    "parameters",
    "device",
)


@dataclass(frozen=True)
class PixelMatrix:
    """Pixels of one row, in percent of the true class: rows predicted, columns true, background before ROI."""

    title: str
    cells: list[list[float]]


def report(
    paths: Sequence[Path], out: Path | None = None, *, title: str | None = None, images: Sequence[str] = ()
) -> Path:
    """Write the page that fits what is given: runs side by side, or a benchmark.

    Args:
        paths: runs and evaluation folders, or one benchmark folder.
        out: the page; by default report.html here, and for a benchmark inside its folder.
        title: headline.
        images: names (or file names) of the images in a benchmark's figure, instead of its own choice.

    Raises:
        InputError: runs and benchmarks are mixed, or what is given cannot be read.
    """
    benches = [path for path in paths if is_bench(path)]
    if not benches:
        if images:
            raise InputError("--images chooses the figure of a benchmark, and these are runs; leave it out")
        return write_report(paths, out or Path("report.html"), title=title)
    if len(paths) > 1:
        raise InputError(
            f"{benches[0]}: is a benchmark and has a report of its own; name it alone, or name its runs "
            f"({benches[0] / 'cells'}/ROW/CELL) with the others"
        )
    return write_benchmark_report(benches[0], out, title=title, images=images)


def write_benchmark_report(
    bench: Path, out: Path | None = None, *, title: str | None = None, images: Sequence[str] = ()
) -> Path:
    """Write results.csv, tables.md, tables.html, tables.tex and report.html into a benchmark's folder.

    An unfinished benchmark is reported as far as it is: the page says how many cells are done and which failed.

    Args:
        bench: the folder.
        out: the page, where not `bench/report.html`.
        title: its headline.
        images: of the figure, by name or file name, in this order; by default easy and hard ones of each class.

    Returns:
        The page.

    Raises:
        InputError: the folder is no benchmark, a file of it is broken, or something cannot be written.
    """
    found = read_bench(Path(bench))
    table = benchmark_table(found)
    write_results(found, found.folder / "results.csv")
    write_text(found.folder / "tables.md", markup.to_markdown(table))
    write_text(found.folder / "tables.html", markup.to_html_page(table))
    write_text(found.folder / "tables.tex", markup.to_latex(table))
    page = Path(out) if out is not None else found.folder / "report.html"
    write_text(page, render(found, table, title=title, images=images))
    return page


def render(bench: Bench, table: Table, *, title: str | None = None, images: Sequence[str] = ()) -> str:
    """The page as HTML text."""
    baseline = best_baseline(bench)
    differences = compare(bench, baseline)
    galleries, shown = figure(bench, images)
    return template("benchmark.html.j2").render(
        title=title or table.title,
        introduction=_introduction(bench),
        finding=_finding(bench, baseline, differences),
        done=_done(bench),
        failures=bench.failures,
        table=Markup(markup.to_html(table)),
        finished=bool(bench.cells),
        baseline=baseline,
        resampled=resampled(differences, {row.name: row.title for row in bench.rows}),
        scatter=scatter(bench),
        forest=forest(bench.rows, differences),
        compared=_compared(bench, differences),
        matrices=pixel_matrices(bench),
        sensitivity=sensitivity(bench),
        galleries=galleries,
        shown=shown,
        colours=agreement_colours(),
        cost_headings=COST_HEADINGS,
        costs=[(row.title, _cost(cells)) for row in bench.rows if (cells := bench.of(row))],
        total=duration(sum(float(cell.cost.get("train_seconds") or 0) for cell in bench.cells)),
        settings=_settings(bench),
    )


def pixel_matrices(bench: Bench) -> list[PixelMatrix]:
    """The pixel confusion matrix of every row: the mean over its cells of the pooled matrices."""
    made = []
    for row in bench.rows:
        found = [getattr(cell.evaluation.result.metrics, "pixel_confusion", None) for cell in bench.of(row)]
        known = [np.array(matrix, dtype=float) for matrix in found if matrix]
        if known and not np.isnan(mean := np.mean(known, axis=0)).all():
            made.append(PixelMatrix(row.title, mean.tolist()))
    return made


def figure(bench: Bench, images: Sequence[str] = ()) -> tuple[list[Gallery], str]:
    """The figures of the paper: the same images for every method, from the cell that most rows have finished.

    Args:
        bench: the benchmark.
        images: the ones to show; by default those of `choose_images`.

    Returns:
        The galleries, none while nothing is finished, two where a class has no ROI; and which cell it is, in words.
    """
    counted = Counter((cell.fold, cell.seed) for cell in bench.cells)
    if not counted:
        return [], ""
    chosen = counted.most_common(1)[0][0]  # of equally many the first
    pairs = [
        (Run(cell.row.title, cell.folder), cell.evaluation)
        for cell in bench.cells
        if (cell.fold, cell.seed) == chosen and not cell.evaluation.images.empty
    ]
    if not pairs:
        return [], ""
    galleries = side_by_side(pairs, partial(named_images, wanted=images) if images else choose_images)
    absent = [row.title for row in bench.rows if row.title not in {run.name for run, _ in pairs}]
    if absent:
        galleries[0].notes.append(
            f"{', '.join(absent)}: this cell is not finished, so that the figure leaves them out."
        )
    fold, seed = chosen
    return galleries, f"seed {seed}" if fold is None else f"fold {fold}, seed {seed}"


def choose_images(
    tables: list[pd.DataFrame], empty: Set[str] = frozenset(), count: int = IMAGES
) -> list[tuple[str, str]]:
    """Choose images that no single method is favoured by.

    Args:
        tables: per_image.csv of every method, with the same images, indexed by name.
        empty: names of the images without ROI.
        count: how many at most, of every class alike, but at least one of each.

    Returns:
        Image name and rank, from the easiest to the hardest of each class: evenly spaced in the order of the mean
        over methods of the mean of F1⁺ and F1⁻; images without ROI in that of the share that is not marked.
    """
    scores = pd.concat([_scores(table, empty) for table in tables], axis=1).mean(axis=1)
    first = tables[0]
    classes = sorted(first["label"].unique())
    each = max(1, count // len(classes))
    chosen = []
    for label in classes:
        ranked = scores[first.index[first["label"] == label]].sort_values(ascending=False, kind="stable").index
        places = np.linspace(0, len(ranked) - 1, min(each, len(ranked))).round().astype(int)
        names = {0: "easiest", len(ranked) - 1: "hardest"} if len(places) > 1 else {}
        chosen += [(str(ranked[place]), names.get(int(place), "middle")) for place in places]
    return chosen


def _scores(table: pd.DataFrame, empty: Set[str]) -> pd.Series:
    f1 = table[["f1_plus", "f1_minus"]].mean(axis=1)
    quiet = table.index.isin(list(empty))
    return f1.where(~quiet, 100 * (1 - table["roi_fraction"])) if quiet.any() else f1


def named_images(
    tables: list[pd.DataFrame], empty: Set[str] = frozenset(), *, wanted: Sequence[str]
) -> list[tuple[str, str]]:
    """The images asked for, by name or by file name with or without its suffix.

    Raises:
        InputError: there is no such image of which every method kept a map.
    """
    names = [str(name) for name in tables[0].index if all(name in table.index for table in tables[1:])]
    chosen = []
    for text in wanted:
        found = [name for name in names if text in (name, Path(name).name, Path(name).stem)]
        if len(found) != 1:
            why = "several images are called so" if found else "no image of this name has a map in all rows"
            raise InputError(f"--images {text}: {why}; give names of the column `name` of per_image.csv")
        chosen.append((found[0], ""))
    return chosen


def _introduction(bench: Bench) -> str:
    paper = "" if bench.settings["kind"] == "methods" else " of the paper"
    split = SPLITS.get(bench.split, bench.split)
    tail = f"{len(bench.rows)} methods, {_many(bench, 'folds')} and {_many(bench, 'seeds')}"
    return (
        f"{KINDS[bench.settings['kind']]}{paper} on {bench.table}: {tail}; every number is measured on the "
        f"{split} split, by the same evaluation for every method."
    )


def _many(bench: Bench, key: str) -> str:
    values = bench.settings[key]
    if values == [None]:
        return "no folds"
    noun = key if len(values) != 1 else key.removesuffix("s")
    return f"{len(values)} {noun} ({', '.join(map(str, values))})"


def _finding(bench: Bench, baseline: Row | None, differences: Mapping[str, Mapping[str, Difference | None]]) -> str:
    """The best method in one sentence; bounds take no part."""
    scores = {row.name: mean_f1(bench.of(row)) for row in bench.rows if row.group != "bound"}
    known = [row for row in bench.rows if not math.isnan(scores.get(row.name, math.nan))]
    if not known:
        return ""
    best = max(known, key=lambda row: scores[row.name])
    said = f"{best.title} has the highest mean F1, {percent(scores[best.name])} %"
    floor = _floor(bench, [scores[row.name] for row in known])
    found = differences.get(best.name, {}).get("f1_mean")
    if baseline is None or found is None:
        return f"{said}.{floor}"
    clear = "" if found.low > 0 or found.high < 0 else ", which includes no difference"
    spread = f"95 % interval {interval(found)}{clear}" if interval(found) else "no interval: too few images or groups"
    return (
        f"{said}: {signed(found.value)} points against {baseline.title} on the images that both have ({spread}).{floor}"
    )


def _floor(bench: Bench, learned: Sequence[float]) -> str:
    """What learned nothing and is nevertheless as good as methods that did: whoever reads the table must know."""
    unlearned = [row for row in bench.rows if row.learns_from == "nothing"]
    scores = {row.title: mean_f1(bench.of(row)) for row in unlearned}
    known = {title: score for title, score in scores.items() if not math.isnan(score)}
    if not known:
        return ""
    title = max(known, key=known.__getitem__)
    reached = sum(known[title] >= score for score in learned)
    if not reached:
        return ""
    return (
        f" {title}, which learns nothing, has {percent(known[title])} % and is at least as good as {reached} of the "
        f"{len(learned)} methods that learn from labels."
    )


def _done(bench: Bench) -> str:
    wanted = len(bench.rows) * len(bench.wanted)
    if len(bench.cells) == wanted:
        return f"All {wanted} cells are finished."
    failed = f", {len(bench.failures)} failed" if bench.failures else ""
    return f"Unfinished: {len(bench.cells)} of {wanted} cells are done{failed}. Numbers may still change."


def _compared(bench: Bench, differences: Mapping[str, Mapping[str, Difference | None]]) -> list[tuple[str, list[str]]]:
    """For every row the differences in mean F1, F1⁺ and F1⁻, the share of resamples above 0, and the images."""
    lines = []
    for row in bench.rows:
        found = differences.get(row.name)
        if not found or (mean := found["f1_mean"]) is None:
            continue
        texts = [NOT_DEFINED if d is None else f"{signed(d.value)} {interval(d)}".strip() for d in found.values()]
        above = NOT_DEFINED if math.isnan(mean.above) else f"{100 * mean.above:.1f} %"
        lines.append((row.title, [*texts, above, str(mean.n)]))
    return lines


def _cost(cells: Sequence[Cell]) -> list[str]:
    def mean(name: str) -> float:
        values = [cell.cost.get(name) for cell in cells]
        return spread(float(value) for value in values if value is not None).mean

    def text(name: str, form: str, scale: float = 1) -> str:
        value = mean(name)
        return NOT_DEFINED if math.isnan(value) else format(value / scale, form)

    memory, parameters = text("peak_memory_mb", ",.0f"), text("parameters", ".2f", 1e6)
    return [
        duration(mean("train_seconds")),
        duration(mean("evaluate_seconds")),
        memory if memory == NOT_DEFINED else f"{memory} MB",
        text("epochs", ".0f"),
        text("selected_epoch", ".1f"),
        parameters if parameters == NOT_DEFINED else f"{parameters} M",
        ", ".join(sorted({str(cell.cost.get("device") or NOT_DEFINED) for cell in cells})),
    ]


def _settings(bench: Bench) -> list[tuple[str, list[tuple[str, Any]]]]:
    """The benchmark's own settings, then run.yaml of every row's first cell."""
    made = [("Benchmark (benchmark.json)", flatten(bench.settings))]
    for row in bench.rows:
        cells = bench.of(row)
        if cells and cells[0].settings:
            made.append((f"{row.title}, {cells[0].name} (run.yaml)", flatten(cells[0].settings)))
    return made
