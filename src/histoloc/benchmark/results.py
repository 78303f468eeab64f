"""What a benchmark folder holds: its settings, its finished cells and its failures, and one tidy table of them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from histoloc.benchmark.rows import DATASETS, KINDS, Row, rows_of
from histoloc.errors import InputError
from histoloc.results import Evaluation, Result, read_evaluation
from histoloc.work_folder import read_json, read_yaml

SETTINGS_FILE, CELL_FILE, ERROR_FILE = "benchmark.json", "cell.json", "error.txt"
FORMAT = 1
WHAT_IT_COST = {
    "train_seconds": "training per cell",
    "evaluate_seconds": "evaluation per cell",
    "peak_memory_mb": "peak memory",
    "epochs": "epochs",
    "selected_epoch": "selected epoch",
    "parameters": "parameters",
    "device": "device",
}


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

    @property
    def result(self) -> Result:
        """metrics.json."""
        return self.evaluation.result

    def value(self, name: str) -> float:
        """A metric in percent (`Result.value`), or a number of WHAT_IT_COST; NaN where it is not defined."""
        value = self.cost.get(name) if name in WHAT_IT_COST else self.result.value(name)
        return math.nan if value is None else float(value)


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
    cells: list[Cell] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

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
        name = self.settings.get("published")
        if name is None:
            return dataset_of(self.table)
        return str(name) if name in DATASETS else None

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

    def spread(self, names: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Mean and sample standard deviation (n - 1) over the cells of each row, by name of the row and metric.

        Args:
            names: as for `Cell.value`; NaN takes no part.

        Returns:
            Two frames; NaN where no cell, or for the deviation fewer than two, define the metric.
        """
        index = pd.Index([cell.row.name for cell in self.cells], dtype=object)
        values = pd.DataFrame({name: [cell.value(name) for cell in self.cells] for name in names}, index, dtype=float)
        by_row, rows = values.groupby(level=0), [row.name for row in self.rows]
        return by_row.mean().reindex(rows), by_row.std().reindex(rows)


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
    file = Path(folder) / SETTINGS_FILE
    settings = read_json(file)
    if settings is None:
        raise InputError(f"{folder}: has no {SETTINGS_FILE}; name a folder that `histoloc benchmark` has written")
    if settings.get("kind") not in KINDS or settings.get("format", FORMAT) != FORMAT:
        version = f"kind {settings.get('kind')!r} of format {settings.get('format', FORMAT)!r}"
        known = f"{', '.join(KINDS)} of format {FORMAT}"
        raise InputError(f"{file}: names {version}; this histoloc reads {known}: update histoloc")
    for key in ("rows", "folds", "seeds"):
        if not isinstance(settings.get(key), list):
            raise InputError(f"{file}: `{key}` is no list; restore the file or run the benchmark into another folder")
    rows = tuple(row for row in rows_of(settings["kind"]) if row.name in settings["rows"])
    bench = Bench(Path(folder), settings, rows)
    for row, (fold, seed) in product(rows, product(settings["folds"], settings["seeds"])):
        run = bench.folder / "cells" / row.name / cell_name(fold, seed)
        if (run / CELL_FILE).is_file():
            bench.cells.append(_cell(row, fold, seed, run, bench.split))
        elif (run / ERROR_FILE).is_file():
            lines = (run / ERROR_FILE).read_text(encoding="utf-8", errors="replace").strip().split("\n")
            bench.failures.append(Failure(row, run.name, lines[-1].strip() or "unknown reason"))
    return bench


def results_frame(bench: Bench) -> pd.DataFrame:
    """One line per finished cell.

    Returns:
        Columns row, title, method, group, fold, seed; those of `histoloc.results.Result.record`: split, table, how maps
        were cut, every metric in percent with `_low` and `_high` (95 % interval), by class as `recall_<class>`, by
        other rules as `argmax_...` and `per_image_...`, and `oracle_...` values, chosen on the evaluated images
        themselves; and the cost: train_seconds, evaluate_seconds, peak_memory_mb, epochs, selected_epoch, parameters,
        device. Empty where undefined.
    """
    records = []
    for cell in bench.cells:
        names = {name: getattr(cell.row, name) for name in ("title", "method", "group")}
        about = {"row": cell.row.name, **names, "fold": cell.fold, "seed": cell.seed}
        records.append(about | cell.result.record() | {name: cell.cost.get(name) for name in WHAT_IT_COST})
    frame, about = pd.DataFrame(records), ("row", "title", "method", "group", "fold", "seed")
    numbers = [name for name in frame if name not in (*about, *WHAT_IT_COST)] or ["n_images", "image_groups"]
    integers = ["fold", "seed", "n_images", "image_groups", "epochs", "selected_epoch", "parameters"]
    return frame.reindex(columns=[*about, *numbers, *WHAT_IT_COST]).astype(dict.fromkeys(integers, "Int64"))


def _cell(row: Row, fold: int | None, seed: int, run: Path, split: str) -> Cell:
    evaluation = run / "evaluation" / split
    if not (evaluation / "metrics.json").is_file():
        raise InputError(f"{run}: {CELL_FILE} says finished, but {evaluation} has no metrics.json; remove {CELL_FILE}")
    # The training of an adapted prior has a folder of its own.
    settings = next((read_yaml(file) for file in (run / "run.yaml", run / "run" / "run.yaml") if file.is_file()), {})
    return Cell(row, fold, seed, run, read_json(run / CELL_FILE) or {}, read_evaluation(evaluation), settings)
