"""The table of metrics: one tidy frame, and the same numbers as Markdown or HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

from histoloc.report.evaluation import Evaluation
from histoloc.report.read import Run

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
PER_IMAGE = {"per_image_f1_plus": "F1⁺ per image", "per_image_f1_minus": "F1⁻ per image"}  # shown where measured
_ROW = ["run", "method", "table", "split", "evaluation", "n_images", "threshold_rule", "threshold", "range"]


def headings(runs: Sequence[Run]) -> dict[str, str]:
    """Headings by name of the metric: those of METRICS, and others where they say something.

    PxAP over the images with ROI where the pool of PxAP has others, the specificity where a class is named without
    ROI, F1 by the papers' per-image rule where it was measured too, and of CLASSIFICATION what is defined.
    """
    results = [evaluation.result for run in runs for evaluation in run.evaluations]
    empty = sorted({result.empty_class for result in results if result.empty_class is not None})
    metrics = [result.metrics for result in results]
    shown = {name for name in CLASSIFICATION if any(m.value(name) is not None for m in metrics)}
    if any(m.pools_without_roi for m in metrics):
        shown.add(PXAP_WITH_ROI)
    if empty:
        shown.add(SPECIFICITY)
    if any(result.per_image_rule for result in results):
        shown |= set(PER_IMAGE)
    return {name: heading for name, heading in _all_headings(empty).items() if name in METRICS or name in shown}


def _all_headings(empty_classes: Sequence[str] = ()) -> dict[str, str]:
    """Headings of all metrics in the order of the table."""
    made: dict[str, str] = {}
    for name, heading in METRICS.items():
        made[name] = heading
        made |= CLASSIFICATION if name == "cl_error" else {}
        made |= {PXAP_WITH_ROI: PXAP_WITH_ROI_HEADING} if name == "pxap" else {}
    return made | {SPECIFICITY: specificity_heading(empty_classes)} | PER_IMAGE


def specificity_heading(empty_classes: Sequence[str]) -> str:
    """`specificity on normal images`; without the names of classes `specificity without ROI`."""
    return f"specificity on {' or '.join(empty_classes)} images" if empty_classes else "specificity without ROI"


def results_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Every metric of every evaluation, tidy: one row per run, evaluation and metric.

    Args:
        runs: what `histoloc.report.read_runs` returned.

    Returns:
        Columns run, method, table, split, evaluation (its name: the split and what is not the default), n_images,
        threshold_rule, threshold, range, metric, value, low, high, n, published, best. `value`, `low`, `high` (95 %
        interval) and `published` are percentages, NaN where undefined. `best` marks the best value, at the decimals
        shown, among evaluations with equal keys (table and its content, split, fold, options); nothing is best among
        fewer than two models. The metrics are those of `headings`.
    """
    names = headings(runs)
    pairs = [(run, evaluation) for run in runs for evaluation in run.evaluations]
    records: list[dict[str, Any]] = []
    keys: list[str] = []
    models: list[str] = []
    for run, evaluation in pairs:
        records += [_record(run, evaluation, name) for name in names]
        keys += [repr(evaluation.key)] * len(names)
        models += [f"{run.name}/{evaluation.result.asked.weights_sha256}"] * len(names)
    columns = [*_ROW, "metric", "value", "low", "high", "n", "published"]
    frame = pd.DataFrame.from_records(records, columns=columns)
    frame["best"] = _best(frame, pd.Series(keys, dtype=object), pd.Series(models, dtype=object))
    return frame


def _record(run: Run, evaluation: Evaluation, name: str) -> dict[str, Any]:
    """One metric of one evaluation."""
    result = evaluation.result
    rule = name.removeprefix("per_image_")
    metric = (result.per_image_rule or {}).get(rule) if name in PER_IMAGE else getattr(result.metrics, name)
    return {
        "run": run.name,
        "method": run.method,
        "table": result.table or "",
        "split": evaluation.split,
        "evaluation": evaluation.name,
        "n_images": result.n_images,
        "threshold_rule": result.threshold.rule,
        "threshold": _number(result.threshold.value),
        "range": result.range or "",
        "metric": name,
        "published": _number(run.published.get(name)),
        **{field: _number(getattr(metric, field, None)) for field in ("value", "low", "high", "n")},
    }


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
    for (run, _, evaluation, n_images), group in _by_row(frame):
        cells = []
        for row in group.to_dict("records"):
            value, spread = percent(row["value"]), interval(row["low"], row["high"])
            cells.append((f"**{value}**" if row["best"] else value) + (f" ({spread})" if spread else ""))
        lines.append("| " + " | ".join([_cell(run), _cell(evaluation), str(n_images), *cells]) + " |")
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
    for (run, _, evaluation, n_images), group in _by_row(frame):
        cells = ""
        for row in group.to_dict("records"):
            value, spread = percent(row["value"]), interval(row["low"], row["high"])
            value = f"<b>{value}</b>" if row["best"] else value
            cells += f"<td>{value}" + (f"<small>{spread}</small>" if spread else "") + "</td>"
        title = f'<th scope="row">{escape(str(run))}</th><td>{escape(str(evaluation))}</td><td>{n_images}</td>'
        lines.append(f"<tr>{title}{cells}</tr>")
    return "\n".join([*lines, "</tbody></table>"])


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _best(frame: pd.DataFrame, keys: pd.Series, models: pd.Series) -> pd.Series:
    shown = frame["value"].round(2)
    shown = shown.where(frame["metric"].isin(LESS_IS_BETTER), -shown)
    by = [keys, frame["metric"]]
    several = models.where(shown.notna()).groupby(by).transform("nunique") > 1
    return (shown == shown.groupby(by).transform("min")) & several


def _headings_of(frame: pd.DataFrame) -> list[str]:
    return [heading for name, heading in _all_headings().items() if name in METRICS or name in set(frame["metric"])]


def _by_row(frame: pd.DataFrame) -> Any:
    return frame.groupby(["run", "table", "evaluation", "n_images"], sort=False)


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|")
