"""The table of metrics: one tidy frame, and the same numbers as Markdown or HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from histoloc.report.read import Evaluation, Run

# name in metrics.json -> heading; classification error is the only one where less is better
METRICS = {
    "cl_error": "Cl. error",
    "f1_plus": "F1⁺",
    "f1_minus": "F1⁻",
    "f1_mean": "mean F1",
    "pxap": "PxAP",
    "tpr": "TPR",
    "tnr": "TNR",
}
SPECIFICITY = "specificity_without_roi"  # shown only where a class is named that has no ROI
PXAP_WITH_ROI, PXAP_WITH_ROI_HEADING = "pxap_with_roi", "PxAP, images with ROI"  # only where it differs from `pxap`
CLASSIFICATION = {"balanced_accuracy": "balanced accuracy", "auc": "AUC", "kappa": "kappa"}  # shown where defined
LESS_IS_BETTER = frozenset({"cl_error"})
NOT_DEFINED = "–"
_ROW = ["run", "method", "table", "split", "n_images", "threshold_rule", "threshold"]


@dataclass(frozen=True)
class TableRow:
    """One evaluation of one run as the table shows it; `cells` holds one mapping for each of `headings`."""

    run: str
    method: str
    table: str
    split: str
    n_images: int
    threshold: str
    cells: list[dict[str, Any]]
    notes: list[int]  # 1-based numbers of the footnotes
    published: str  # where the published numbers come from, empty where there are none


def headings(runs: Sequence[Run]) -> dict[str, str]:
    """Headings by name of the metric: those of METRICS, and others where they say something.

    PxAP over the images with ROI where the pool of PxAP has others, the specificity where a class is named without
    ROI, and of CLASSIFICATION what an evaluation defines.
    """
    results = [evaluation.result for run in runs for evaluation in run.evaluations]
    empty = sorted({result.empty_class for result in results if result.empty_class is not None})
    metrics = [result.metrics for result in results]
    shown = {name for name in CLASSIFICATION if any(m.value(name) is not None for m in metrics)}
    if any(m.pools_without_roi for m in metrics):
        shown.add(PXAP_WITH_ROI)
    if empty:
        shown.add(SPECIFICITY)
    return {name: heading for name, heading in _all_headings(empty).items() if name in METRICS or name in shown}


def _all_headings(empty_classes: Sequence[str] = ()) -> dict[str, str]:
    """Headings of all metrics in the order of the table."""
    made: dict[str, str] = {}
    for name, heading in METRICS.items():
        made[name] = heading
        made |= CLASSIFICATION if name == "cl_error" else {}
        made |= {PXAP_WITH_ROI: PXAP_WITH_ROI_HEADING} if name == "pxap" else {}
    return made | {SPECIFICITY: specificity_heading(empty_classes)}


def specificity_heading(empty_classes: Sequence[str]) -> str:
    """`specificity on normal images`; without the names of classes `specificity without ROI`."""
    return f"specificity on {' or '.join(empty_classes)} images" if empty_classes else "specificity without ROI"


def results_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Every metric of every evaluation, tidy: one row per run, split and metric.

    Args:
        runs: what `histoloc.report.read_runs` returned.

    Returns:
        Columns run, method, table, split, n_images, threshold_rule, threshold, metric, value, low, high, n,
        published, best. `value`, `low`, `high` (95 % interval) and `published` are percentages, NaN
        where undefined. `best` marks the best value, at the decimals shown, among runs evaluated on
        the same table and split; nothing is best among fewer than two. The metrics are those of `headings`.
    """
    records = []
    names = headings(runs)
    for run in runs:
        for evaluation in run.evaluations:
            result = evaluation.result
            for name in names:
                metric = getattr(result.metrics, name)
                record = {
                    "run": run.name,
                    "method": run.method,
                    "table": result.table or "",
                    "split": evaluation.split,
                    "n_images": result.n_images,
                    "threshold_rule": result.threshold.rule,
                    "threshold": _number(result.threshold.value),
                    "metric": name,
                    "published": _number(run.published.get(name)),
                }
                for field in ("value", "low", "high", "n"):
                    record[field] = _number(getattr(metric, field, None))
                records.append(record)
    columns = [*_ROW, "metric", "value", "low", "high", "n", "published"]
    frame = pd.DataFrame.from_records(records, columns=columns)
    frame["best"] = _best(frame)
    return frame


def percent(value: float | None) -> str:
    """A percentage with two decimals, `–` where it is not defined."""
    return NOT_DEFINED if value is None or math.isnan(value) else f"{value:.2f}"


def interval(low: float, high: float) -> str:
    """A 95 % interval in percent with one decimal, empty where it is not defined."""
    return "" if math.isnan(low) or math.isnan(high) else f"{low:.1f} to {high:.1f}"


def to_markdown(frame: pd.DataFrame) -> str:
    """The results as a Markdown table: values in percent, 95 % interval in brackets, the best in bold.

    Args:
        frame: what `results_frame` returned.
    """
    shown = _headings_of(frame)
    lines = [
        "| " + " | ".join(["Run", "Split", "n", *(f"{heading} (%)" for heading in shown)]) + " |",
        "|---|---|" + "---:|" * (len(shown) + 1),
    ]
    for (run, _, split, n_images), group in _by_row(frame):
        cells = []
        for row in group.to_dict("records"):
            value, spread = percent(row["value"]), interval(row["low"], row["high"])
            cells.append((f"**{value}**" if row["best"] else value) + (f" ({spread})" if spread else ""))
        lines.append("| " + " | ".join([_cell(run), _cell(split), str(n_images), *cells]) + " |")
    return "\n".join(lines) + "\n"


def to_html(frame: pd.DataFrame) -> str:
    """The results as a plain HTML table (class `results`), with the numbers of `to_markdown`.

    Args:
        frame: what `results_frame` returned.
    """
    head = "".join(f'<th scope="col">{name} (%)</th>' for name in _headings_of(frame))
    lines = [
        '<table class="results"><thead><tr><th scope="col">Run</th><th scope="col">Split</th>'
        f'<th scope="col">n</th>{head}</tr></thead><tbody>'
    ]
    for (run, _, split, n_images), group in _by_row(frame):
        cells = ""
        for row in group.to_dict("records"):
            value, spread = percent(row["value"]), interval(row["low"], row["high"])
            value = f"<b>{value}</b>" if row["best"] else value
            cells += f"<td>{value}" + (f"<small>{spread}</small>" if spread else "") + "</td>"
        title = f'<th scope="row">{escape(str(run))}</th><td>{escape(str(split))}</td><td>{n_images}</td>'
        lines.append(f"<tr>{title}{cells}</tr>")
    return "\n".join([*lines, "</tbody></table>"])


def table_rows(runs: Sequence[Run]) -> tuple[list[TableRow], list[str]]:
    """Rows of the report's table and the footnotes that they refer to.

    A footnote names every use of masks: to select the epoch, to set the threshold, by the evaluation itself,
    and every number chosen on the evaluated split (an oracle); and what intervals and PxAP are computed over. Equal
    footnotes are given once.
    """
    frame = results_frame(runs)
    notes: list[str] = []
    rows = []
    for run in runs:
        for evaluation in run.evaluations:
            own = frame[
                (frame["run"] == run.name)
                & (frame["table"] == (evaluation.result.table or ""))
                & (frame["split"] == evaluation.split)
            ]
            mine = [*mask_notes(run, evaluation), *pool_notes(evaluation)]
            notes += [note for note in mine if note not in notes]
            rows.append(
                TableRow(
                    run=run.name,
                    method=run.method,
                    table=Path(evaluation.result.table or "").name,
                    split=evaluation.split,
                    n_images=evaluation.result.n_images,
                    threshold=describe_threshold(evaluation),
                    cells=own.to_dict("records"),  # pyright: ignore[reportArgumentType]
                    notes=[notes.index(note) + 1 for note in mine],
                    published=published_source(run, evaluation) if own["published"].notna().any() else "",
                )
            )
    return rows, notes


def mask_notes(run: Run, evaluation: Evaluation) -> list[str]:
    """One sentence for each use of masks that made or chose the numbers of an evaluation."""
    notes = [sentence(text) for text in evaluation.result.uses_masks]
    selection, threshold = run.model.get("selection") or {}, run.model.get("threshold") or {}
    # The evaluation knows best; the model folder is asked only where the evaluation noted nothing.
    if not notes and selection.get("uses_masks"):
        count = selection.get("masks_used") or "an unknown number of"
        notes.append(f"The epoch was chosen on {count} masks (rule {selection.get('rule', 'unknown')}).")
    same_rule = threshold.get("rule") == evaluation.result.threshold.rule
    if not evaluation.result.uses_masks and same_rule and threshold.get("masks_used"):
        notes.append(f"The threshold was chosen on {threshold['masks_used']} masks.")
    oracles = evaluation.result.metrics.oracles.items()
    if known := [text for name, value in oracles if (text := _oracle(name, value))]:
        notes.append(
            f"Oracle on {evaluation.split}, chosen on the evaluated images themselves and therefore no fair "
            f"result, for {run.name}: {', '.join(known)}."
        )
    return list(dict.fromkeys(notes))


def pool_notes(evaluation: Evaluation) -> list[str]:
    """What the intervals resample where it is not single images, and which images PxAP pools where not all have ROI."""
    metrics = evaluation.result.metrics
    notes = [sentence(text) for text in metrics.notes]
    if metrics.resampled == "groups":
        notes.insert(0, f"Intervals: bootstrap over {metrics.groups} groups, all images of a group together.")
    if metrics.pools_without_roi:
        without = f"{metrics.pxap_images_without_roi} of them without ROI (all their pixels are background)"
        notes.append(f"PxAP pools the pixels of all images whose truth is known, {without}.")
    return notes


def resampling(runs: Sequence[Run]) -> str:
    """What the intervals of a table resample, as the end of `95 % bootstrap interval over`."""
    by = {evaluation.result.metrics.resampled for run in runs for evaluation in run.evaluations}
    if by == {"groups"}:
        return "groups of images (patients, slides; see the footnotes)"
    return "images" + (", or over groups of images (patients, slides) where a footnote says so" if len(by) > 1 else "")


def published_source(run: Run, evaluation: Evaluation) -> str:
    """Where the published numbers come from, with a warning where they were measured on another split."""
    source = str(run.published.get("source") or run.settings.get("recipe") or "published")
    split = str(run.published.get("split") or "test")
    if split == evaluation.result.split:
        return source
    return f"{source}; measured on the {split} split, ours on {evaluation.split}: not directly comparable"


def describe_threshold(evaluation: Evaluation) -> str:
    """The threshold's value and rule in words."""
    threshold = evaluation.result.threshold
    value = "per image" if threshold.value is None else f"{threshold.value:.3g}"
    return f"{value} ({threshold.rule})"


def _oracle(name: str, value: Any) -> str:
    """One oracle number in words, empty where it is not defined."""
    key = name.removeprefix("oracle").strip("_")
    number = value.get("value") if isinstance(value, dict) else value
    if not isinstance(number, int | float):
        return ""
    return f"{METRICS[key]} {percent(number)} %" if key in METRICS else f"{key.replace('_', ' ')} {number:.3g}"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _best(frame: pd.DataFrame) -> pd.Series:
    shown = frame["value"].round(2)
    shown = shown.where(frame["metric"].isin(LESS_IS_BETTER), -shown)
    groups = shown.groupby([frame["table"], frame["split"], frame["metric"]])
    return (shown == groups.transform("min")) & (groups.transform("count") > 1)


def _headings_of(frame: pd.DataFrame) -> list[str]:
    return [heading for name, heading in _all_headings().items() if name in METRICS or name in set(frame["metric"])]


def _by_row(frame: pd.DataFrame) -> Any:
    return frame.groupby(["run", "table", "split", "n_images"], sort=False)


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|")


def sentence(text: str) -> str:
    """A note as a sentence: with a capital letter and a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
