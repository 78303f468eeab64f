"""Finished cells in one text file, a line for each, from which a benchmark goes on elsewhere: no models, no maps."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from histoloc.benchmark.cells import PlannedCell, portable
from histoloc.benchmark.results import CELL_FILE, Bench
from histoloc.data.fingerprint import fingerprint
from histoloc.data.table import read_table
from histoloc.errors import InputError
from histoloc.work_folder import read_json, write_json, write_text

PLACES = ("file", "image", "mask")  # columns of per_image.csv that name files
SETTINGS = ("method", "options", "backbone", "input", "training", "empty_class")  # of run.yaml
OF_MACHINE = ("identity", "seconds", "home")  # of metrics.json


def write_cells(path: Path, cells: Sequence[PlannedCell], bench: Bench) -> None:
    """Write the finished cells of a benchmark; lines of other cells in the file stay."""
    lines, contents = {key(line): line for line in read_cells(path)}, _contents(cells)
    planned = {(cell.row.name, cell.fold, cell.seed): cell for cell in cells}
    for done in bench.cells:
        name = (done.row.name, done.fold, done.seed)
        if name in planned:
            metrics = read_json(done.evaluation.folder / "metrics.json") or {}
            metrics = {k: v for k, v in metrics.items() if k not in OF_MACHINE}
            metrics["metrics"] = {k: v for k, v in metrics["metrics"].items() if k != "threshold_curve"}
            images = done.evaluation.images.drop(columns=[*PLACES])
            images["name"] = [Path(text).name for text in images["name"]]
            lines[name] = {
                **dict(zip(("row", "fold", "seed"), name, strict=True)),
                "request": mark(planned[name], contents[done.fold]),
                "cell": done.cost,
                "run": {k: done.settings[k] for k in SETTINGS if k in done.settings},
                "metrics": metrics,
                "images": images.to_csv(index=False, float_format="%.4f"),
            }
    ordered = sorted(lines.values(), key=lambda line: json.dumps(key(line)))
    write_text(path, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in ordered))


def restore(path: Path, cells: Sequence[PlannedCell]) -> int:
    """Take finished cells from a file into their folders; returns how many.

    A cell that was asked for otherwise, or is of other images, is left out; so is one whose model another one needs
    that is not finished.
    """
    lines, contents = {key(line): line for line in read_cells(path)}, _contents(cells)
    needed: set[tuple[str, int | None, int]] = set()
    count = 0
    for cell in sorted(cells, key=lambda cell: -cell.stage):
        name = (cell.row.name, cell.fold, cell.seed)
        if cell.finished and (name not in needed or (cell.model / "model").is_dir()):
            continue
        if name not in needed and name in lines and _put(lines[name], cell, contents[cell.fold]):
            count += 1
        else:
            (cell.folder / CELL_FILE).unlink(missing_ok=True)
            needed |= {(teacher, cell.fold, cell.seed) for teacher in cell.row.teachers}
    return count


def _put(line: dict[str, Any], cell: PlannedCell, content: str) -> bool:
    """Write the files of a finished cell."""
    table = read_table(cell.config.data, fold=cell.fold, columns=cell.config.columns, check_files=False)
    samples = table.split(cell.split)
    names = {Path(sample.name).name: sample.name for sample in samples}
    images = pd.read_csv(io.StringIO(line["images"]), dtype=str, keep_default_na=False)
    if line["request"] != mark(cell, content) or sorted(images["name"]) != sorted(names) or len(names) < len(samples):
        return False
    images["name"] = [names[name] for name in images["name"]]
    evaluation = cell.folder / "evaluation" / cell.split
    cell.prepare()
    write_text(evaluation / "per_image.csv", images.to_csv(index=False))
    write_json(evaluation / "metrics.json", line["metrics"])
    write_text(cell.folder / "run.yaml", yaml.safe_dump(line["run"], sort_keys=False))
    write_json(cell.folder / CELL_FILE, line["cell"])
    return True


def mark(cell: PlannedCell, content: str) -> str:
    """What a cell was asked for and of which images, wherever its files are."""
    text = json.dumps([portable(cell.request), content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _contents(cells: Sequence[PlannedCell]) -> dict[int | None, str]:
    """By fold, a fingerprint of the table's rows and of the images and masks, wherever they are."""
    contents = {}
    for fold, run in {cell.fold: cell.config for cell in cells}.items():
        samples = read_table(run.data, fold=fold, columns=run.columns, check_files=False).samples
        contents[fold] = fingerprint([replace(sample, name=Path(sample.name).name) for sample in samples])
    return contents


def key(line: dict[str, Any]) -> tuple[str, int | None, int]:
    """Row, fold and seed."""
    return line["row"], line["fold"], line["seed"]


def read_cells(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; none where it is absent.

    Raises:
        InputError: it is no file of finished cells.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        cells = [json.loads(line) for line in lines]
        [(key(cell), cell["request"], cell["images"], cell["metrics"], cell["run"], cell["cell"]) for cell in cells]
        return cells
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--results {path}: is no file of finished cells ({type(error).__name__}: {error}); restore it or give "
            "another name"
        ) from error
