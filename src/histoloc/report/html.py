"""The page itself: what was read is put into report.html.j2, with every picture inside the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from histoloc import pictures
from histoloc.report.charts import confusion, curves, matrices, thresholds
from histoloc.report.gallery import galleries
from histoloc.report.rows import COLUMNS, exceeded_by_floors, resampling, runs_table
from histoloc.report.tables import headings, to_html
from histoloc.results import Run, read_runs
from histoloc.work_folder import write_text


def write_report(paths: Sequence[Path], out: Path, *, title: str | None = None) -> Path:
    """Write one HTML page that needs nothing but itself: no network, no script, no other file.

    Args:
        paths: run folders, or evaluation folders; other things are skipped, and the page says so.
        out: the file to write; its folder is made when absent.
        title: headline; by default the runs' names.

    Returns:
        `out`.

    Raises:
        InputError: a path does not exist or holds a broken file, none is a run, or `out` cannot be written.
    """
    runs, skipped = read_runs(paths)
    write_text(Path(out), render(runs, skipped, title=title))
    return Path(out)


def render(runs: Sequence[Run], skipped: Sequence[str] = (), *, title: str | None = None) -> str:
    """The page as HTML text.

    Args:
        runs: what `read_runs` returned.
        skipped: sentences about paths that are no run.
        title: headline; by default the runs' names.
    """
    pairs = [(run, evaluation) for run in runs for evaluation in run.evaluations]
    results_of = {f"{run.name}, {evaluation.name}": evaluation.result for run, evaluation in pairs}
    names = [run.name for run in runs]
    results = {name: [of] for name, of in results_of.items()}
    return template("report.html.j2").render(
        title=title or f"Localization report: {', '.join(names[:4])}{' and others' if len(names) > 4 else ''}",
        runs=runs,
        classes=next((of.metrics.classes for of in results_of.values() if of.metrics.classes), []),
        skipped=skipped,
        table=to_html(runs_table(runs)) if results_of else "",
        columns=headings(list(results_of.values()), COLUMNS),
        tiers=any(of.tier for of in results_of.values()),
        labels=not results_of or any("image" in (of.supervision or ("image",)) for of in results_of.values()),
        floors=any(of.floors for of in results_of.values()),
        resampling=resampling(runs),
        exceeded={name: notes for name, of in results_of.items() if (notes := exceeded_by_floors(of))},
        galleries=galleries(runs),
        curves=curves(runs),
        confusion=matrices(confusion(results)),
        thresholds=thresholds(results),
        settings=[(f"{run.name}: {heading}", pairs) for run in runs for heading, pairs in _settings(run)],
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
    colours = {"tp": pictures.TRUE_POSITIVE, "fp": pictures.FALSE_POSITIVE, "fn": pictures.FALSE_NEGATIVE}
    environment.globals["colours"] = {name: Markup("rgb({},{},{})").format(*colour) for name, colour in colours.items()}
    environment.globals["heat_scale"] = pictures.data_uri(pictures.heat_scale(), photo=False)
    return environment.get_template(name)


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as pairs of dotted name and value; lists are joined by commas."""
    if isinstance(value, dict) and value:
        return [
            pair for key, part in value.items() for pair in flatten(part, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, list | tuple) and not any(isinstance(part, dict | list) for part in value):
        return [(prefix, ", ".join(map(str, value)) or "none")]
    return [(prefix, "none" if value is None or value == {} else str(value))]


def _settings(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Sections of (name, value) pairs: run.yaml, the model folder, each evaluation."""
    sections = {"training (run.yaml)": run.settings, "model (model/config.json)": run.model}
    for evaluation in run.evaluations:
        stated = evaluation.result.model_dump(exclude={"metrics", "numbers", "floors"}, exclude_none=True)
        sections[f"evaluation on {evaluation.name}"] = stated
    return [(heading, flatten(values)) for heading, values in sections.items() if values]
