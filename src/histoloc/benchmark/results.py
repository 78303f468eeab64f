"""What a benchmark folder holds: its settings, its finished cells and its failures, and one tidy table of them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from histoloc.benchmark.rows import DATASETS, KINDS, Row, rows_of
from histoloc.errors import InputError
from histoloc.metrics.classification import BY_CLASS
from histoloc.report.evaluation import Evaluation
from histoloc.report.metrics_file import Metric
from histoloc.report.read import read_evaluation
from histoloc.work_folder import atomic_path

SETTINGS_FILE, CELL_FILE, ERROR_FILE = "benchmark.json", "cell.json", "error.txt"
FORMAT = 1
COST = (
    "train_seconds",
    "evaluate_seconds",
    "peak_memory_mb",
    "epochs",
    "selected_epoch",
    "parameters",
    "device",
)
ARGMAX = ("f1_plus", "f1_minus", "f1_mean")
PER_IMAGE = (*ARGMAX, "pxap")
_IDENTITY = ("row", "title", "method", "group", "fold", "seed", "split", "table", "n_images")
_RULES = ("threshold_rule", "threshold", "range", "selection_rule", "resampled", "image_groups")


@dataclass(frozen=True, eq=False)
class Cell:
    """One finished training and its evaluation.

    Attributes:
        row: which row of the table.
        fold: None where the table has no folds.
        seed: of the training.
        folder: its run folder.
        cost: cell.json.
        evaluation: metrics and images on the benchmark's split.
        settings: run.yaml, or an empty mapping.
    """

    row: Row
    fold: int | None
    seed: int
    folder: Path
    cost: dict[str, Any]
    evaluation: Evaluation
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """fold1-seed0, or nofold-seed0."""
        return cell_name(self.fold, self.seed)

    def value(self, metric: str) -> float:
        """A metric in percent; NaN where it is not defined."""
        estimate = getattr(self.evaluation.result.metrics, metric, None)
        found = estimate.get("value") if isinstance(estimate, dict) else getattr(estimate, "value", None)
        return math.nan if found is None else float(found)

    def argmax(self, metric: str) -> float:
        """A metric under the published CAM rule; NaN where the method has no class maps."""
        found = self.argmax_rule.get(metric) or {}
        return math.nan if found.get("value") is None else float(found["value"])

    @property
    def argmax_rule(self) -> dict[str, Any]:
        """Estimates under the published CAM rule: a pixel is ROI where the predicted class has the largest map."""
        return self.evaluation.result.argmax_rule or {}

    def per_image(self, metric: str) -> float:
        """A metric by the papers' per-image rule; NaN where it was not measured by it too."""
        found = self.per_image_rule.get(metric)
        return math.nan if found is None or found.value is None else found.value

    @property
    def per_image_rule(self) -> dict[str, Metric]:
        """Estimates where each map is stretched in its own image, or made by the method's own rule of the papers."""
        return self.evaluation.result.per_image_rule or {}


@dataclass(frozen=True)
class Failure:
    """A cell that ended with an error; `reason` is the last line of error.txt."""

    row: Row
    cell: str
    reason: str


@dataclass(frozen=True, eq=False)
class Bench:
    """A benchmark folder.

    Attributes:
        folder: where it lies.
        settings: benchmark.json.
        rows: in the table's order.
        cells: the finished ones, by row, fold and seed.
        failures: cells that ended with an error and were not repeated since.
    """

    folder: Path
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    failures: tuple[Failure, ...]

    @property
    def split(self) -> str:
        """The split that the cells are evaluated on."""
        return str(self.settings.get("split") or "valid")

    @property
    def table(self) -> str:
        """File name of the table of images, with its folder where it is a mere `table.csv`."""
        path = Path(str(self.settings.get("data", "")))
        return f"{path.parent.name}/{path.name}".lstrip("/") if path.stem == "table" else path.name

    @property
    def dataset(self) -> str | None:
        """Whose published numbers are shown, a key of DATASETS: what `--published` named, else `dataset_of`."""
        named = self.settings.get("published")
        if named is None:
            return dataset_of(self.table)
        return str(named) if named in DATASETS else None

    @property
    def empty_class(self) -> str | None:
        """The class whose images have no ROI, where one was named."""
        return self.settings.get("empty_class")

    @property
    def wanted(self) -> list[str]:
        """Names of the cells that every row has."""
        return [cell_name(f, s) for f in self.settings["folds"] for s in self.settings["seeds"]]

    def of(self, row: Row) -> list[Cell]:
        """The finished cells of a row."""
        return [cell for cell in self.cells if cell.row.name == row.name]


def cell_name(fold: int | None, seed: int) -> str:
    """Name of a cell's folder."""
    return f"{'nofold' if fold is None else f'fold{fold}'}-seed{seed}"


def dataset_of(table: str) -> str | None:
    """Glas where a table's file name says so: `glas-patient.csv` does, `glass.csv` does not.

    No other data set is told by a name: there are many tables of Camelyon16, and few are the published benchmark.
    """
    return "glas" if re.search(r"(?<![a-z0-9])glas(?![a-z0-9])", Path(table).stem.lower()) else None


def is_bench(path: Path) -> bool:
    """Whether a path is the folder of a benchmark."""
    return (Path(path) / SETTINGS_FILE).is_file()


def read_bench(folder: Path) -> Bench:
    """Read what is finished in a benchmark folder.

    Raises:
        InputError: the folder is no benchmark, or a file of it is broken; the message names it.
    """
    folder = Path(folder)
    if not is_bench(folder):
        raise InputError(f"{folder}: has no {SETTINGS_FILE}; name a folder that `histoloc benchmark` has written")
    settings = _settings(folder / SETTINGS_FILE)
    rows = tuple(row for row in rows_of(settings["kind"]) if row.name in settings["rows"])
    cells: list[Cell] = []
    failures: list[Failure] = []
    for row in rows:
        for fold in settings["folds"]:
            for seed in settings["seeds"]:
                run = folder / "cells" / row.name / cell_name(fold, seed)
                if (run / CELL_FILE).is_file():
                    cells.append(_cell(row, fold, seed, run, str(settings.get("split") or "valid")))
                elif (run / ERROR_FILE).is_file():
                    failures.append(Failure(row, run.name, _last_line(run / ERROR_FILE)))
    return Bench(folder, settings, rows, tuple(cells), tuple(failures))


def results_frame(bench: Bench) -> pd.DataFrame:
    """One line per finished cell.

    Returns:
        Columns row, title, method, group, fold, seed, split, table, n_images, threshold_rule, threshold, range,
        selection_rule; resampled (images or groups, by the intervals), image_groups (their number); every metric of
        metrics.json in percent with `_low` and `_high` (95 % interval), those by class as `recall_<class>`,
        `precision_<class>` and `class_f1_<class>`; pxap_images_without_roi; `argmax_...` for the published CAM rule;
        `per_image_...` for maps by the papers' per-image rule; `oracle_...` values, chosen on the evaluated images
        themselves; and the cost: train_seconds, evaluate_seconds, peak_memory_mb, epochs, selected_epoch, parameters,
        device. Empty where undefined.
    """
    frame = pd.DataFrame.from_records([_record(cell) for cell in bench.cells])
    first = [*_IDENTITY, *_RULES]
    metrics = [column for column in frame.columns if column not in (*first, *COST)]
    frame = frame.reindex(columns=[*first, *metrics, *COST])
    whole = ["fold", "seed", "n_images", "image_groups", "epochs", "selected_epoch", "parameters"]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def write_results(bench: Bench, path: Path) -> pd.DataFrame:
    """Write `results_frame` as CSV, atomically."""
    frame = results_frame(bench)
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False)
    return frame


def _record(cell: Cell) -> dict[str, Any]:
    result = cell.evaluation.result
    record: dict[str, Any] = {
        "row": cell.row.name,
        "title": cell.row.title,
        "method": cell.row.method,
        "group": cell.row.group,
        "fold": cell.fold,
        "seed": cell.seed,
        "split": result.split,
        "table": result.table,
        "n_images": result.n_images,
        "threshold_rule": result.threshold.rule,
        "threshold": result.threshold.value,
        "range": result.range,
        "selection_rule": (result.selection or {}).get("rule"),
        "resampled": result.metrics.resampled,
        "image_groups": result.metrics.groups,
    }
    metrics = result.metrics.model_dump()
    by_class = {key: metrics.pop(key, None) or {} for key in BY_CLASS}
    metrics |= {f"{key}_{name}": estimate for key, found in by_class.items() for name, estimate in found.items()}
    for name, estimate in metrics.items():
        record |= _columns(name, estimate)
    record["pxap_images_without_roi"] = result.metrics.pxap_images_without_roi
    none = dict.fromkeys(("value", "low", "high"))
    for name in ARGMAX:
        record |= _columns(f"argmax_{name}", cell.argmax_rule.get(name) or none)
    for name in PER_IMAGE:
        found = cell.per_image_rule.get(name)
        record |= _columns(f"per_image_{name}", none if found is None else found.model_dump())
    return record | {name: cell.cost.get(name) for name in COST}


def _columns(name: str, estimate: Any) -> dict[str, float | None]:
    """The columns of an estimate; nothing for what is no estimate (matrices, curves, counts)."""
    if not isinstance(estimate, dict) or "value" not in estimate:
        return {}
    value = {name: estimate["value"]}
    return value if name.startswith("oracle") else value | {f"{name}_{b}": estimate.get(b) for b in ("low", "high")}


def _cell(row: Row, fold: int | None, seed: int, run: Path, split: str) -> Cell:
    evaluation = run / "evaluation" / split
    if not (evaluation / "metrics.json").is_file():
        raise InputError(f"{run}: {CELL_FILE} says finished, but {evaluation} has no metrics.json; remove {CELL_FILE}")
    return Cell(row, fold, seed, run, _json(run / CELL_FILE), read_evaluation(evaluation), _yaml(run / "run.yaml"))


def _settings(path: Path) -> dict[str, Any]:
    settings = _json(path)
    if settings.get("kind") not in KINDS or settings.get("format", FORMAT) != FORMAT:
        said = f"kind {settings.get('kind')!r} of format {settings.get('format', FORMAT)!r}"
        raise InputError(
            f"{path}: names {said}; this histoloc reads {', '.join(KINDS)} of format {FORMAT}: update histoloc"
        )
    for key in ("rows", "folds", "seeds"):
        if not isinstance(settings.get(key), list):
            raise InputError(f"{path}: `{key}` is no list; restore the file or run the benchmark into another folder")
    return settings


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); restore it or run the benchmark again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no mapping of names to values; restore it or run the benchmark again")
    return value


def _yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({reason}); restore it or remove its cell") from error
    return value if isinstance(value, dict) else {}


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "unknown reason"
