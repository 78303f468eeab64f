"""Reading what training and evaluation left behind: run folders and evaluation folders."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pydantic import ValidationError

from histoloc.errors import InputError
from histoloc.report.evaluation import SPLITS, Evaluation, tell_apart
from histoloc.report.metrics_file import MetricsFile

log = logging.getLogger(__name__)

TEXT_COLUMNS = ("name", "label", "group", "predicted", "file", "image", "mask")
NUMBER_COLUMNS = ("correct", "f1_plus", "f1_minus", "roi_fraction", "true_fraction", "threshold")


@dataclass(frozen=True, eq=False)
class Run:
    """What one row of the report is made of.

    Attributes:
        name: unique among the runs of a report.
        folder: where it was read.
        settings: run.yaml, or an empty mapping for a plain evaluation folder.
        log: log.csv, one row per epoch, or None.
        model: model/config.json, or an empty mapping.
        evaluations: test, valid and train of the run's own table first, then those of others; labels are unique.
    """

    name: str
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    log: pd.DataFrame | None = None
    model: dict[str, Any] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()

    @property
    def method(self) -> str:
        """Name of the method, `–` where nobody wrote it down."""
        named = (evaluation.result.method for evaluation in self.evaluations)
        return str(self.settings.get("method") or next(filter(None, named), None) or "–")

    @property
    def selected_epoch(self) -> float | None:
        """The epoch whose weights were kept: model/config.json, else the last `selected` row of log.csv."""
        epoch = _mapping(self.model.get("selection")).get("epoch")
        if isinstance(epoch, int | float):
            return epoch
        if self.log is None or "selected" not in self.log:
            return None
        chosen = self.log.loc[self.log["selected"] == 1, "epoch"]
        return None if chosen.empty else float(chosen.iloc[-1])

    @property
    def weights(self) -> str | None:
        """SHA-256 of the weights as they are now; None where nobody wrote it down."""
        return self.model.get("weights_sha256") or None

    @property
    def published(self) -> dict[str, Any]:
        """Published numbers that the recipe names: `source`, and percentages under the metrics' names."""
        return _mapping(self.settings.get("published"))


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Read every run or evaluation folder among `paths`.

    Args:
        paths: run folders (run.yaml) or evaluation folders (metrics.json). Other things are skipped.

    Returns:
        The runs, with unique names, and one sentence for each path that was skipped.

    Raises:
        InputError: a path does not exist, a file of a run is broken, or no path is a run.
    """
    found: list[Run] = []
    skipped: list[str] = []
    for path in [Path(path) for path in paths]:
        if not path.exists():
            raise InputError(f"{path}: does not exist; name a run folder that `histoloc train` has written")
        if (path / "run.yaml").is_file() or (path / "metrics.json").is_file():
            found.append(read_run(path))
        else:
            skipped.append(f"{path} was skipped: it has neither run.yaml nor metrics.json.")
            log.warning(skipped[-1])
    if not found:
        raise InputError(
            "no run to report: none of the paths given is a folder with run.yaml or metrics.json; "
            "name at least one folder written by `histoloc train` or `histoloc evaluate`"
        )
    evaluations = tell_apart([run.evaluations for run in found], [run.weights for run in found])
    named = [replace(run, evaluations=own) for run, own in zip(found, evaluations, strict=True)]
    return _distinct(named), skipped


def read_run(folder: Path) -> Run:
    """Read a run folder, or an evaluation folder by itself.

    Raises:
        InputError: a file in it is broken; the message names it.
    """
    files = sorted((folder / "evaluation").glob("*/metrics.json"))
    if not files and (folder / "metrics.json").is_file():
        files = [folder / "metrics.json"]
    settings, config, log_file = folder / "run.yaml", folder / "model" / "config.json", folder / "log.csv"
    run = Run(
        name=folder.resolve().name,
        folder=folder,
        settings=_read_mapping(settings) if settings.is_file() else {},
        log=_read_log(log_file) if log_file.is_file() else None,
        model=_read_mapping(config) if config.is_file() else {},
    )
    found = sorted((read_evaluation(file.parent) for file in files), key=lambda evaluation: _order(run, evaluation))
    (evaluations,) = tell_apart([found], [run.weights])
    return replace(run, evaluations=evaluations)


def read_evaluation(folder: Path) -> Evaluation:
    """Read metrics.json and, where present, per_image.csv of an evaluation folder.

    Raises:
        InputError: a file is not what the evaluation writes; the message names file and field.
    """
    path = folder / "metrics.json"
    try:
        result = MetricsFile.model_validate(_read_mapping(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: `{where}`: {first['msg']}; run `histoloc evaluate` again") from error
    table = folder / "per_image.csv"
    images = _read_per_image(table) if table.is_file() else pd.DataFrame({c: [] for c in TEXT_COLUMNS})
    return Evaluation(folder, result, images)


def locate(evaluation: Evaluation, path: str) -> Path | None:
    """The file that a cell of per_image.csv names (relative to the evaluation folder), None where empty."""
    return evaluation.folder / path if path else None


def _order(run: Run, evaluation: Evaluation) -> tuple[bool, int, str, int, str]:
    """The run's own table first, in it test, valid and train, of each split the defaults first."""
    table, split = _mapping(run.model.get("provenance")).get("table"), evaluation.result.split or ""
    other = table is not None and evaluation.result.table not in (None, table)
    place = SPLITS.index(split) if split in SPLITS else len(SPLITS)
    folder = evaluation.folder.name
    return other, place, evaluation.label, len(folder), folder  # test-2 before test-10


def _read_mapping(path: Path) -> dict[str, Any]:
    """A JSON or YAML file that holds a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({reason}); restore it or leave this run out") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no mapping of names to values; restore it or leave this run out")
    return value


def _read_csv(path: Path, required: Sequence[str], **options: Any) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as CSV ({reason}); restore it or leave this run out") from error
    if missing := [name for name in required if name not in frame]:
        raise InputError(f"{path}: column `{missing[0]}` is missing; restore it or leave this run out")
    return frame


def _numeric(path: Path, frame: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    for column in columns:
        try:
            cells = [math.nan if cell == "" else float(cell) for cell in frame[column]]
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path}: column `{column}` holds something that is no number ({error}); correct the cell"
            ) from error
        frame[column] = pd.Series(cells, index=frame.index, dtype=float)
    return frame


def _read_log(path: Path) -> pd.DataFrame:
    frame = _read_csv(path, ["epoch"])
    return _numeric(path, frame, [c for c in map(str, frame.columns) if "/" in c or c in ("epoch", "selected")])


def _read_per_image(path: Path) -> pd.DataFrame:
    # Read as text first: a class may be called "NA", a file "1e5".
    frame = _read_csv(path, ["name"], dtype=str, keep_default_na=False)
    for column in TEXT_COLUMNS:
        if column not in frame:
            frame[column] = ""
    frame["correct"] = frame["correct"].replace({"True": "1", "False": "0"}) if "correct" in frame else ""
    for column in NUMBER_COLUMNS:
        if column not in frame:
            frame[column] = ""
    probabilities = [column for column in map(str, frame.columns) if column.startswith("prob_")]
    if frame["name"].duplicated().any():
        name = frame.loc[frame["name"].duplicated(), "name"].iloc[0]
        raise InputError(f"{path}: image `{name}` is listed twice; keep one row for each image")
    return _numeric(path, frame, (*NUMBER_COLUMNS, *probabilities))


def _distinct(runs: Sequence[Run]) -> list[Run]:
    """Give runs of equal folder name their parent's name too, then a number."""

    def repeated(names: list[str]) -> set[str]:
        return {name for name in names if names.count(name) > 1}

    twice = repeated([run.name for run in runs])
    named = [
        replace(run, name=f"{run.folder.resolve().parent.name}/{run.name}") if run.name in twice else run
        for run in runs
    ]
    twice = repeated([run.name for run in named])
    return [
        replace(run, name=f"{run.name} ({number})") if run.name in twice else run for number, run in enumerate(named, 1)
    ]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
