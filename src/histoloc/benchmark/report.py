"""The page and the files of a benchmark: results.csv, tables in three formats, report.html."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from histoloc.benchmark.compare import METRICS as COMPARED
from histoloc.benchmark.compare import Differences, best_baseline, compare, resampled
from histoloc.benchmark.results import Bench, is_bench, read_bench, results_frame
from histoloc.benchmark.rows import TIERS, Row
from histoloc.benchmark.tables import (
    KINDS,
    SPLITS,
    benchmark_table,
    costs_table,
    difference,
    differences_table,
    duration,
)
from histoloc.benchmark.tiers import over_seeds, tier_of, tiers_table
from histoloc.errors import InputError
from histoloc.report.charts import COLOURS, confusion, forest, matrices, scatter, thresholds
from histoloc.report.gallery import Gallery, side_by_side
from histoloc.report.html import flatten, template, write_report
from histoloc.report.tables import METRICS, Table, percent, to_html, to_latex, to_markdown
from histoloc.work_folder import write_text

IMAGES = 6  # of the figure
GROUPS = {"bound": ("bound", "#777777"), "baseline": ("baseline", COLOURS[0]), "ours": ("max-min", COLOURS[1])}


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
    folder: Path, out: Path | None = None, *, title: str | None = None, images: Sequence[str] = ()
) -> Path:
    """Write results.csv, tables.md, tables.html, tables.tex and report.html into a benchmark's folder.

    An unfinished benchmark is reported as far as it is: the page says how many cells are done and which failed.

    Args:
        folder: of the benchmark.
        out: the page, where not `folder/report.html`.
        title: its headline.
        images: of the figure, by name or file name, in this order; by default easy and hard ones of each class.

    Returns:
        The page.

    Raises:
        InputError: the folder is no benchmark, a file of it is broken, or something cannot be written.
    """
    bench = read_bench(Path(folder))
    table = tiers_table(bench) if bench.settings["kind"] == "maps" else benchmark_table(bench)
    write_text(bench.folder / "results.csv", results_frame(bench).to_csv(index=False))
    write_text(bench.folder / "tables.md", to_markdown(table))
    write_text(bench.folder / "tables.html", template("page.html.j2").render(title=table.title, table=to_html(table)))
    write_text(bench.folder / "tables.tex", to_latex(table))
    page = Path(out) if out is not None else bench.folder / "report.html"
    write_text(page, render(bench, table, title=title, images=images))
    return page


def render(bench: Bench, table: Table, *, title: str | None = None, images: Sequence[str] = ()) -> str:
    """The page as HTML text."""
    baseline = best_baseline(bench)
    differences = compare(bench, baseline)
    results = {row.title: [cell.result for cell in bench.of(row)] for row in bench.rows}
    settings = [("Benchmark (benchmark.json)", flatten(bench.settings))]
    for cell in {cell.row.name: cell for cell in reversed(bench.cells)}.values():  # the first one of each row
        settings.insert(1, (f"{cell.row.title}, {cell.name} (run.yaml)", flatten(cell.settings)))
    return template("benchmark.html.j2").render(
        title=title or table.title,
        bench=bench,
        kind=KINDS[bench.settings["kind"]],
        split=SPLITS.get(bench.split, bench.split),
        finding=(_best_of_tiers if bench.settings["kind"] == "maps" else _finding)(bench, baseline, differences),
        table=to_html(table),
        baseline=baseline,
        resampled=resampled(differences, {row.name: row.title for row in bench.rows}),
        scatter=scatter(_points(bench)),
        forest=_forest(bench, differences),
        compared=to_html(differences_table(bench, differences)),
        confusion=matrices(confusion(results)),
        thresholds=thresholds(results),
        galleries=figure(bench, images),
        costs=to_html(costs_table(bench)),
        total=duration(sum(float(cell.cost.get("train_seconds") or 0) for cell in bench.cells)),
        settings=settings,
    )


def figure(bench: Bench, images: Sequence[str] = ()) -> list[Gallery]:
    """The figures of the paper: the same images for every method, from the cell that most rows have finished.

    Args:
        bench: the benchmark.
        images: the ones to show; by default easy and hard ones of each class.

    Returns:
        None while nothing is finished, two where a class has no ROI.
    """
    counted = Counter((cell.fold, cell.seed) for cell in bench.cells)
    fold, seed = max(counted, key=counted.__getitem__, default=(None, None))  # of equally many the first
    cells = [cell for cell in bench.cells if (cell.fold, cell.seed) == (fold, seed) and len(cell.evaluation.images)]
    if not cells:
        return []
    columns = [(cell.row.title, cell.evaluation) for cell in cells]
    title = f"seed {seed}" if fold is None else f"fold {fold}, seed {seed}"
    galleries = side_by_side(title, columns, count=IMAGES, images=images)
    absent = [row.title for row in bench.rows if row.title not in dict(columns)]
    if absent:
        note = f"{', '.join(absent)}: this cell is not finished, so that the figure leaves them out."
        galleries[0].notes.append(note)
    return galleries


def _points(bench: Bench) -> pd.DataFrame:
    mean, std = bench.spread(["f1_plus", "f1_minus"])
    kinds = [_kind(bench, row) for row in bench.rows]
    points = mean.join(std.add_suffix("_std")).assign(kind=[k for k, _ in kinds], colour=[c for _, c in kinds])
    return points.set_axis([row.title for row in bench.rows])


def _forest(bench: Bench, differences: Differences) -> Markup | None:
    rows = [row for row in bench.rows if any(differences.get(row.name, {}).values())]
    lines = [(row.title, _kind(bench, row)[1], differences[row.name]) for row in rows]
    return forest(lines, {name: f"Δ {METRICS[name]}, percentage points" for name in reversed(COMPARED)})


def _kind(bench: Bench, row: Row) -> tuple[str, str]:
    """What a row is called in charts, and its colour."""
    if bench.settings["kind"] != "maps":
        return GROUPS[row.group]
    tier = tier_of(bench, row)
    return TIERS[tier], ("#777777", *COLOURS)[list(TIERS).index(tier)]


def _best_of_tiers(bench: Bench, baseline: Row | None, differences: Differences) -> str:
    """The best method of each tier in a sentence."""
    scores = over_seeds(bench, ["f1_mean"])[0]["f1_mean"].dropna()
    parts = []
    for tier, name in TIERS.items():
        rows = [row for row in bench.rows if row.name in scores and tier_of(bench, row) == tier]
        if rows:
            best = max(rows, key=lambda row: scores[row.name])
            delta = differences.get(best.name, {}).get("f1_mean")
            against = "" if delta is None or baseline is None else f" ({difference(delta).text} to {baseline.title})"
            parts.append(f"{name.lower()}: {best.title}, {percent(scores[best.name])} %{against}")
    return f"Highest mean F1 by what was learned from: {'; '.join(parts)}." if parts else ""


def _finding(bench: Bench, baseline: Row | None, differences: Differences) -> str:
    """The best method in one sentence, and in another what learns nothing and is as good; bounds take no part."""
    scores = bench.spread(["f1_mean"])[0]["f1_mean"].dropna()
    rows = {row.name: row for row in bench.rows if row.name in scores}
    learned = scores[[name for name, row in rows.items() if row.group != "bound"]]
    floors = scores[[name for name, row in rows.items() if row.learns_from == "nothing"]]
    if learned.empty:
        return ""
    best = str(learned.idxmax())
    text = f"{rows[best].title} has the highest mean F1, {percent(learned[best])} %"
    delta = differences.get(best, {}).get("f1_mean")
    if baseline is not None and delta is not None:
        value, spread, _ = difference(delta)
        clear = "" if delta.low > 0 or delta.high < 0 else ", which includes no difference"
        spread = f"95 % interval {spread}{clear}" if spread else "no interval: too few images or groups"
        text += f": {value} points against {baseline.title} on the images that both have ({spread})"
    if floors.empty or not (reached := int((learned <= floors.max()).sum())):
        return f"{text}."
    return (
        f"{text}. {rows[str(floors.idxmax())].title}, which learns nothing, has {percent(floors.max())} % and is at "
        f"least as good as {reached} of the {len(learned)} methods that learn from labels."
    )
