"""The page itself: what was read is put into report.html.j2, with every picture inside the file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from histoloc import pictures
from histoloc.report.charts import curves, run_colours, threshold_sensitivity
from histoloc.report.gallery import galleries
from histoloc.report.metrics_file import Metric
from histoloc.report.read import Run, read_runs
from histoloc.report.rows import exceeded_by_floors, resampling, table_rows
from histoloc.report.tables import headings, interval, percent
from histoloc.work_folder import write_text


@dataclass(frozen=True)
class ConfusionCell:
    """One cell of a confusion matrix, with its share of the true class (row) in [0, 1]."""

    count: str
    share: float
    correct: bool


@dataclass(frozen=True)
class Confusion:
    """The confusion matrices of one evaluation: images by class, and pixels by ROI and background."""

    run: str
    evaluation: str
    classes: list[str]
    cells: list[list[ConfusionCell]]
    pixels: list[list[ConfusionCell]]
    intervals: list[str]  # 95 % interval of TPR and of TNR


def write_report(runs: Sequence[Path], out: Path, *, title: str | None = None) -> Path:
    """Write one HTML page that needs nothing but itself: no network, no script, no other file.

    Args:
        runs: run folders, or evaluation folders; other things are skipped, and the page says so.
        out: the file to write; its folder is made when absent.
        title: headline; by default the runs' names.

    Returns:
        `out`.

    Raises:
        InputError: a path does not exist or holds a broken file, none is a run, or `out` cannot be written.
    """
    found, skipped = read_runs(runs)
    write_text(Path(out), render(found, skipped, title=title))
    return Path(out)


def render(runs: Sequence[Run], skipped: Sequence[str] = (), *, title: str | None = None) -> str:
    """The page as HTML text.

    Args:
        runs: what `read_runs` returned.
        skipped: sentences about paths that are no run.
        title: headline; by default the runs' names.
    """
    rows, notes = table_rows(runs)
    return template("report.html.j2").render(
        title=title or _default_title(runs),
        introduction=_introduction(runs),
        skipped=skipped,
        metrics=headings(runs),
        resampling=resampling(runs),
        interval=interval,
        rows=rows,
        several_tables=len({row.table for row in rows}) > 1,
        notes=notes,
        exceeded=_exceeded(runs),
        without=[run.name for run in runs if not run.evaluations],
        galleries=galleries(runs),
        colours=agreement_colours(),
        heat_scale=pictures.data_uri(pictures.heat_scale(), photo=False),
        curves=curves(runs),
        run_colours=run_colours(runs),
        confusions=_confusions(runs),
        sensitivity=threshold_sensitivity(runs),
        settings=[(run.name, _settings(run)) for run in runs],
    )


def template(name: str) -> Template:
    """A template of this folder; what is put into it is escaped, and an unknown name is an error."""
    environment = Environment(
        loader=PackageLoader("histoloc.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent}
    return environment.get_template(name)


def agreement_colours() -> dict[str, Markup]:
    """The colours of `pictures.agreement` in CSS: tp, fp, fn."""
    named = {"tp": pictures.TRUE_POSITIVE, "fp": pictures.FALSE_POSITIVE, "fn": pictures.FALSE_NEGATIVE}
    return {name: Markup("rgb({},{},{})").format(*colour) for name, colour in named.items()}


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as pairs of dotted name and value; lists are joined by commas."""
    if isinstance(value, dict) and value:
        pairs = []
        for key, part in value.items():
            pairs += flatten(part, f"{prefix}.{key}" if prefix else str(key))
        return pairs
    if isinstance(value, list | tuple) and not any(isinstance(part, dict | list) for part in value):
        return [(prefix, ", ".join(map(str, value)) or "none")]
    return [(prefix, "none" if value is None or value == {} else str(value))]


def _default_title(runs: Sequence[Run]) -> str:
    names = [run.name for run in runs]
    return f"Localization report: {', '.join(names[:4])}" + (" and others" if len(names) > 4 else "")


def _introduction(runs: Sequence[Run]) -> str:
    """What is shown, in words for a pathologist."""
    classes = next((e.result.metrics.classes for r in runs for e in r.evaluations if e.result.metrics.classes), [])
    named = f" ({_and(classes)})" if classes else ""
    who = "One computer model was" if len(runs) == 1 else f"{len(runs)} computer models were"
    them = "it names" if len(runs) == 1 else "each of them names"
    return (
        f"{who} asked two questions about every image: which class{named}, and where in the image is the "
        "tissue that shows it, the region of interest (ROI). Unless a footnote says otherwise, training used "
        "one label for each whole image and no outlines. "
        f"This page shows how often {them} the right class, and how "
        "well the region that it marks agrees with the region that experts outlined."
    )


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _exceeded(runs: Sequence[Run]) -> list[str]:
    """One sentence for each evaluation that a method without learning exceeds."""
    found = [(run, evaluation, exceeded_by_floors(evaluation)) for run in runs for evaluation in run.evaluations]
    return [f"{run.name}, {evaluation.name}: {' '.join(said)}" for run, evaluation, said in found if said]


def _confusions(runs: Sequence[Run]) -> list[Confusion]:
    made = []
    for run in runs:
        for evaluation in run.evaluations:
            metrics = evaluation.result.metrics
            matrix = metrics.confusion or []
            classes = metrics.classes or [str(number) for number in range(len(matrix))]
            if not matrix and metrics.tpr is None and metrics.tnr is None:
                continue
            pixels = [_pixel_row(metrics.tpr, 0), _pixel_row(metrics.tnr, 1)]
            made.append(
                Confusion(
                    run=run.name,
                    evaluation=evaluation.name,
                    classes=classes,
                    cells=[_count_row(row, number) for number, row in enumerate(matrix)],
                    pixels=pixels if any(pixels) else [],
                    intervals=[_interval(metrics.tpr), _interval(metrics.tnr)],
                )
            )
    return made


def _count_row(counts: Iterable[int], own: int) -> list[ConfusionCell]:
    counts = list(counts)
    total = max(1, sum(counts))
    return [ConfusionCell(str(n), n / total, column == own) for column, n in enumerate(counts)]


def _pixel_row(metric: Metric | None, own: int) -> list[ConfusionCell]:
    if metric is None or metric.value is None:
        return []
    shares = [100 - metric.value, 100 - metric.value]
    shares[own] = metric.value
    return [ConfusionCell(f"{percent(s)} %", s / 100, column == own) for column, s in enumerate(shares)]


def _interval(metric: Metric | None) -> str:
    if metric is None or metric.low is None or metric.high is None:
        return ""
    return interval(metric.low, metric.high)


def _settings(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Sections of (name, value) pairs: run.yaml, the model folder, each evaluation."""
    sections = [("Training (run.yaml)", flatten(run.settings))] if run.settings else []
    if run.model:
        sections.append(("Model (model/config.json)", flatten(run.model)))
    for evaluation in run.evaluations:
        stated = evaluation.result.model_dump(exclude={"metrics", "per_image_rule", "floors"}, exclude_none=True)
        sections.append((f"Evaluation on {evaluation.name}", flatten(stated)))
    return sections
