"""Reading what training and evaluation left behind: run folders and evaluation folders."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from histoloc.errors import InputError

log = logging.getLogger(__name__)

Percent = Annotated[FiniteFloat, Field(ge=0, le=100.0001)]  # bounds may round up
Signed = Annotated[FiniteFloat, Field(ge=-100.0001, le=100.0001)]
TEXT_COLUMNS = ("name", "label", "group", "predicted", "file", "image", "mask")
NUMBER_COLUMNS = ("correct", "f1_plus", "f1_minus", "roi_fraction", "true_fraction", "threshold")


class Metric(BaseModel):
    """One metric over a split, in percent with its 95 % interval; None where it is not defined."""

    value: Percent | None = None
    low: Percent | None = None
    high: Percent | None = None
    n: int | None = None


class SignedMetric(Metric):
    """A metric that may be negative, times 100."""

    value: Signed | None = None
    low: Signed | None = None
    high: Signed | None = None


class ThresholdCurve(BaseModel):
    """F1⁺ and F1⁻ (percent) over the thresholds in [0, 1] at which the ROI map may be cut."""

    threshold: list[FiniteFloat]
    f1_plus: list[Percent | None]
    f1_minus: list[Percent | None]


class Metrics(BaseModel):
    """The `metrics` part of metrics.json; keys that start with `oracle_` are kept as extras."""

    model_config = ConfigDict(extra="allow")

    resampled: Literal["images", "groups"] = "images"  # by the intervals
    groups: int | None = None
    notes: list[str] = Field(default_factory=list)
    cl_error: Metric | None = None
    balanced_accuracy: Metric | None = None
    auc: Metric | None = None
    kappa: SignedMetric | None = None
    f1_plus: Metric | None = None
    f1_minus: Metric | None = None
    f1_mean: Metric | None = None
    pxap: Metric | None = None
    pxap_with_roi: Metric | None = None
    pxap_images_without_roi: int = 0  # in the pool of `pxap`
    tpr: Metric | None = None
    tnr: Metric | None = None
    specificity_without_roi: Metric | None = None
    confusion: list[list[int]] | None = None  # (K, K) images; row: true class, column: predicted class
    classes: list[str] = Field(default_factory=list)
    threshold_curve: ThresholdCurve | None = None

    @property
    def pools_without_roi(self) -> bool:
        """Whether images without ROI take part in `pxap`, so that it differs from `pxap_with_roi`."""
        return self.pxap_images_without_roi > 0 and self.value("pxap") is not None

    def value(self, name: str) -> float | None:
        """A metric by its name; None where it is not defined."""
        metric = getattr(self, name, None)
        return metric.value if isinstance(metric, Metric) else None

    @property
    def oracles(self) -> dict[str, Any]:
        """What was chosen on the evaluated split itself, by name."""
        return {key: value for key, value in (self.model_extra or {}).items() if key.startswith("oracle")}


class Threshold(BaseModel):
    """How the ROI map was cut; `value` is None where every image has its own."""

    rule: str = "unknown"
    value: FiniteFloat | None = None


class MetricsFile(BaseModel):
    """metrics.json as the evaluation writes it."""

    method: str | None = None
    run: str | None = None
    table: str | None = None
    split: str | None = None
    fold: int | None = None
    n_images: int
    threshold: Threshold = Field(default_factory=Threshold)
    selection: dict[str, Any] | None = None
    uses_masks: list[str] = Field(default_factory=list)
    empty_class: str | None = None  # its images count as images without ROI, with or without a mask file
    metrics: Metrics
    argmax_rule: dict[str, Any] | None = None  # estimates where a pixel is ROI if the predicted class's map is largest
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One split of one table, evaluated: metrics.json, per_image.csv and the folder that they lie in."""

    folder: Path
    result: MetricsFile
    images: pd.DataFrame  # one row per image; the columns of per_image.csv, or no row where it is absent

    @property
    def split(self) -> str:
        """Name of the split, `all` where the table has none; with its fold where folds have other images."""
        name = self.result.split or "all"
        same_images = self.result.fold is None or name in ("test", "all")
        return name if same_images else f"{name}, fold {self.result.fold}"

    @property
    def key(self) -> tuple[str, str]:
        """Table and split: only evaluations with equal keys may be compared."""
        return (self.result.table or "", self.split)


@dataclass(frozen=True, eq=False)
class Run:
    """What one row of the report is made of.

    Attributes:
        name: unique among the runs of a report.
        folder: where it was read.
        settings: run.yaml, or an empty mapping for a plain evaluation folder.
        log: log.csv, one row per epoch, or None.
        model: model/config.json, or an empty mapping.
        evaluations: one per evaluated split.
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
    return _distinct(found), skipped


def read_run(folder: Path) -> Run:
    """Read a run folder, or an evaluation folder by itself.

    Raises:
        InputError: a file in it is broken; the message names it.
    """
    evaluations = sorted((folder / "evaluation").glob("*/metrics.json"), key=_split_order)
    if not evaluations and (folder / "metrics.json").is_file():
        evaluations = [folder / "metrics.json"]
    settings, config, log_file = folder / "run.yaml", folder / "model" / "config.json", folder / "log.csv"
    return Run(
        name=folder.resolve().name,
        folder=folder,
        settings=_read_mapping(settings) if settings.is_file() else {},
        log=_read_log(log_file) if log_file.is_file() else None,
        model=_read_mapping(config) if config.is_file() else {},
        evaluations=tuple(read_evaluation(file.parent) for file in evaluations),
    )


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


def _split_order(file: Path) -> tuple[int, str]:
    order = ("test", "valid", "train")
    name = file.parent.name
    return (order.index(name) if name in order else len(order), name)


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
