"""Results: numbers with intervals, per image and per group, and which evaluations may be compared with each other."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from histoloc.errors import InputError
from histoloc.metrics.classification import BY_CLASS
from histoloc.places import located
from histoloc.types import tier
from histoloc.work_folder import read_json, read_yaml

log = logging.getLogger(__name__)

SPLITS = ("test", "valid", "train")
UNKNOWN_CONTENT = "content unknown"
TEXT_COLUMNS = ("name", "label", "group", "predicted", "file", "image", "mask")
NUMBER_COLUMNS = ("f1_plus", "f1_minus", "roi_fraction", "true_fraction", "threshold")
RULES = {"argmax": ("f1_plus", "f1_minus", "f1_mean"), "per_image": ("f1_plus", "f1_minus", "f1_mean", "pxap")}

Percent = Annotated[FiniteFloat, Field(ge=-100.0001, le=100.0001)]  # kappa may be negative; bounds may round up


class Metric(BaseModel):
    """One number over a split, in percent with its 95 % interval; None where it is not defined."""

    value: Percent | None = None
    low: Percent | None = None
    high: Percent | None = None
    n: int | None = None


class Metrics(BaseModel):
    """What the `metrics` part of metrics.json has besides numbers."""

    resampled: Literal["images", "groups"] = "images"  # by the intervals
    groups: int | None = None
    notes: list[str] = Field(default_factory=list)
    pxap_images_without_roi: int = 0  # in the pool of `pxap`
    confusion: list[list[int]] = Field(default_factory=list)  # (K, K) images; row: true class, column: predicted class
    classes: list[str] = Field(default_factory=list)
    # F1⁺ and F1⁻ over the thresholds in [0, 1] at which the ROI map may be cut
    threshold_curve: dict[Literal["threshold", "f1_plus", "f1_minus"], list[Percent | None]] | None = None


class Threshold(BaseModel):
    """How the ROI map was cut; `value` is None where every image has its own."""

    rule: str = "unknown"
    value: FiniteFloat | None = None


class Identity(BaseModel):
    """What an evaluation was asked for, on which content of which table; its weights are the run's own."""

    content: str | None = None  # fingerprint of the samples; None before histoloc 0.2
    threshold: FiniteFloat | None = None
    range: str | None = None
    map_class: str | None = None
    empty_class: str | None = None
    weights_sha256: str | None = None


class Result(BaseModel):
    """metrics.json as the evaluation writes it."""

    method: str | None = None
    supervision: list[str] | None = None  # from which its model learned; None where nobody wrote it down
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
    numbers: dict[str, Metric]  # also `recall_<class>`, and by other rules `argmax_...`, `per_image_...`
    floors: dict[str, dict[str, Percent | None]] = Field(default_factory=dict)  # of methods that learn nothing
    range: str | None = None  # how evidence became maps; several are joined by ` and `
    scale: dict[str, int] = Field(default_factory=dict)  # how many images were brought to the network how
    map_class: str | None = None  # whose maps were measured, where not those of the predicted class
    notes: list[str] = Field(default_factory=list)
    identity: Identity | None = None
    home: str | None = None  # where it was written
    seconds: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _gather_numbers(cls, content: Any) -> Any:
        if not isinstance(content, dict) or not isinstance(metrics := content.get("metrics"), dict):
            return content
        numbers = {name: metric for name, metric in metrics.items() if isinstance(metric, dict) and "value" in metric}
        by_class = {key: metrics.get(key) or {} for key in BY_CLASS}
        numbers |= {f"{key}_{name}": metric for key, of in by_class.items() for name, metric in of.items()}
        for rule, names in RULES.items():
            numbers_of_rule = content.get(f"{rule}_rule") or {}
            numbers |= {f"{rule}_{name}": numbers_of_rule.get(name, {}) for name in names}
        return content | {"numbers": numbers}

    @property
    def request(self) -> Identity:
        """What the evaluation was asked for; of an old one, which did not write it down, as far as it shows."""
        threshold = self.threshold.value if self.threshold.rule == "given" else None
        return self.identity or Identity(threshold=threshold)

    @property
    def tier(self) -> str:
        """What the model learned from, as tables say it; empty where nobody wrote it down."""
        return "" if self.supervision is None else tier(self.supervision)

    @property
    def pools_without_roi(self) -> bool:
        """Whether images without ROI take part in PxAP, so that it differs from PxAP over the images with ROI."""
        return self.metrics.pxap_images_without_roi > 0 and self.value("pxap") is not None

    def value(self, name: str) -> float | None:
        """One of `numbers`; None where it is not defined."""
        return self.numbers.get(name, Metric()).value

    def record(self) -> dict[str, Any]:
        """One flat line: how the maps were cut, every number, and behind it its interval (`_low`, `_high`)."""
        record: dict[str, Any] = {name: getattr(self, name) for name in ("split", "table", "n_images", "range")}
        record |= {"threshold_rule": self.threshold.rule, "threshold": self.threshold.value}
        record |= {"selection_rule": (self.selection or {}).get("rule")}
        record |= {"resampled": self.metrics.resampled, "image_groups": self.metrics.groups}
        for name, metric in self.numbers.items():
            record[name] = metric.value
            if not name.startswith("oracle"):
                record |= {f"{name}_low": metric.low, f"{name}_high": metric.high}
        return record | {"pxap_images_without_roi": self.metrics.pxap_images_without_roi}


@dataclass(eq=False)
class Evaluation:
    """One split of one table, evaluated: metrics.json, per_image.csv and the folder that they lie in.

    Attributes:
        folder: of the files.
        result: metrics.json.
        images: one row per image; the columns of per_image.csv, or no row where it is absent.
        details: what else distinguishes it from others of a report, set by `distinguish`.
        of_table: file name of its table, where a report has several.
    """

    folder: Path
    result: Result
    images: pd.DataFrame
    details: tuple[str, ...] = ()
    of_table: str = ""

    @property
    def split(self) -> str:
        """Name of the split, `all` where the table has none; with its fold where folds have other images."""
        name = self.result.split or "all"
        same_images = self.result.fold is None or name in ("test", "all")
        return name if same_images else f"{name}, fold {self.result.fold}"

    @property
    def key(self) -> tuple[str | float | None, ...]:
        """What was evaluated and how, whatever the run: only evaluations with equal keys may be compared."""
        result, request = self.result, self.result.request
        how = (request.threshold, request.range, request.map_class, result.empty_class)
        return result.table or "", request.content, self.split, *how

    @property
    def label(self) -> str:
        """The split, and what is not the default: `test, cut at 0.40, --range image`."""
        request, parts = self.result.request, [self.split]
        if request.threshold is not None:
            decimals = f"{request.threshold:.2f}"
            parts.append(f"cut at {decimals if float(decimals) == request.threshold else request.threshold}")
        parts += [] if request.range is None else [f"--range {request.range}"]
        parts += [] if request.map_class is None else [f"map of {request.map_class}"]
        parts += [] if request.empty_class is None else [f"no ROI in {request.empty_class}"]
        return ", ".join([*parts, *self.details])

    @property
    def name(self) -> str:
        """The label, with the table where a report has several."""
        return f"{self.label} of {self.of_table}" if self.of_table else self.label

    def file(self, cell: str) -> Path | None:
        """The file that a cell of per_image.csv names (relative to where the folder is or was), None where empty."""
        return self.folder / located(self.folder, self.result.home, cell) if cell else None


@dataclass(eq=False)
class Run:
    """A run folder, or an evaluation folder by itself.

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
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def method(self) -> str:
        """Name of the method, `–` where nobody wrote it down."""
        return str(self.settings.get("method") or next((e.result.method for e in self.evaluations), None) or "–")

    @property
    def selected_epoch(self) -> float | None:
        """The epoch whose weights were kept: model/config.json, else the last `selected` row of log.csv."""
        epoch = (self.model.get("selection") or {}).get("epoch")
        if epoch is not None or self.log is None or "selected" not in self.log:
            return epoch
        return self.log.loc[self.log["selected"] == 1, "epoch"].max()

    @property
    def published(self) -> dict[str, Any]:
        """Published numbers that the recipe names: `source`, and percentages under the metrics' names."""
        return self.settings.get("published") or {}


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Read every run folder (run.yaml) and evaluation folder (metrics.json) among `paths`.

    Returns:
        The runs, with unique names, and one sentence for each path that is none and was skipped.

    Raises:
        InputError: a path does not exist, a file of a run is broken, or no path is a run.
    """
    runs: list[Run] = []
    skipped: list[str] = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: does not exist; name a run folder that `histoloc train` has written")
        if (path / "run.yaml").is_file() or (path / "metrics.json").is_file():
            runs.append(read_run(path))
        else:
            skipped.append(f"{path} was skipped: it has neither run.yaml nor metrics.json.")
            log.warning(skipped[-1])
    if not runs:
        raise InputError(
            "no run to report: none of the paths given is a folder with run.yaml or metrics.json; "
            "name at least one folder written by `histoloc train` or `histoloc evaluate`"
        )
    distinguish(runs)
    for run, name in zip(runs, distinct_names([run.folder.resolve() for run in runs]), strict=True):
        run.name = name
    return runs, skipped


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Names of folders; where these are equal, with the parent's name too, then with a number."""
    names = [folder.name for folder in folders]
    names = [f"{f.parent.name}/{f.name}" if names.count(f.name) > 1 else f.name for f in folders]
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]


def read_run(folder: Path) -> Run:
    """Read a run folder, or an evaluation folder by itself.

    Raises:
        InputError: a file in it is broken; the message names it.
    """
    log_file = folder / "log.csv"
    run = Run(
        name=folder.resolve().name,
        folder=folder,
        settings=read_yaml(folder / "run.yaml") if (folder / "run.yaml").is_file() else {},
        log=_read_csv(log_file, "epoch") if log_file.is_file() else None,
        model=read_json(folder / "model" / "config.json") or {},
    )
    if run.log is not None:
        _numbers(
            log_file, run.log, [name for name in map(str, run.log) if "/" in name or name in ("epoch", "selected")]
        )
    files = sorted((folder / "evaluation").glob("*/metrics.json")) or [folder / "metrics.json"]
    run.evaluations = [read_evaluation(file.parent) for file in files if file.is_file()]
    table = (run.model.get("provenance") or {}).get("table")

    def order(evaluation: Evaluation) -> tuple[bool, int, str, int, str]:
        split, name = evaluation.result.split, evaluation.folder.name
        other = table is not None and evaluation.result.table not in (None, table)
        place = SPLITS.index(split) if split in SPLITS else len(SPLITS)
        return other, place, evaluation.label, len(name), name  # test-2 before test-10

    run.evaluations.sort(key=order)
    distinguish([run])
    return run


def read_evaluation(folder: Path) -> Evaluation:
    """Read metrics.json and, where present, per_image.csv of an evaluation folder.

    Raises:
        InputError: a file is not what the evaluation writes; the message names file and field.
    """
    path, table = folder / "metrics.json", folder / "per_image.csv"
    try:
        result = Result.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: `{where}`: {first['msg']}; run `histoloc evaluate` again") from error
    images = _read_csv(table, "name") if table.is_file() else pd.DataFrame(columns=["name"])
    repeated = images.loc[images["name"].duplicated(), "name"]
    if not repeated.empty:
        raise InputError(f"{table}: image `{repeated.iloc[0]}` is listed twice; keep one row for each image")
    absent = [name for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS) if name not in images]
    images[absent] = ""
    _numbers(table, images, [*NUMBER_COLUMNS, *(name for name in map(str, images) if name.startswith("prob_"))])
    return Evaluation(folder, result, images)


def distinguish(runs: Sequence[Run]) -> None:
    """Name what distinguishes evaluations of equal labels that may not be compared; names are then unique in a run."""
    pairs = [(run, evaluation) for run in runs for evaluation in run.evaluations]
    tables = {evaluation.result.table for _, evaluation in pairs}
    alike: dict[tuple[str | None, str], list[Result]] = defaultdict(list)
    for _, evaluation in pairs:
        evaluation.details = ()
        alike[evaluation.result.table, evaluation.label].append(evaluation.result)
    for run, evaluation in pairs:
        result, request = evaluation.result, evaluation.result.request
        others, parts = alike[result.table, evaluation.label], []
        if request.empty_class is None and result.empty_class and len({other.empty_class for other in others}) > 1:
            parts.append(f"no ROI in {result.empty_class}")
        if len({other.request.content for other in others}) > 1:
            parts.append(f"content {request.content[:8]}" if request.content else UNKNOWN_CONTENT)
        weights = run.model.get("weights_sha256")
        if weights and request.weights_sha256 and request.weights_sha256 != weights:
            parts.append("earlier weights")
        evaluation.details = tuple(parts)
        evaluation.of_table = Path(result.table or "").name if len(tables) > 1 else ""
    count = Counter((run.folder, evaluation.name) for run, evaluation in pairs)
    for run, evaluation in pairs:
        if count[run.folder, evaluation.name] > 1:
            evaluation.details = (*evaluation.details, f"in {evaluation.folder.name}")


def results_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One line per evaluation: run, method, evaluation (the split and what is not the default) and `Result.record`."""
    pairs = [(run, evaluation) for run in runs for evaluation in run.evaluations]
    names = [{"run": run.name, "method": run.method, "evaluation": evaluation.name} for run, evaluation in pairs]
    return pd.DataFrame([name | pair[1].result.record() for name, pair in zip(names, pairs, strict=True)])


def _read_csv(path: Path, required: str) -> pd.DataFrame:
    """A CSV as text: a class may be called "NA", a file "1e5"."""
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as CSV ({reason}); restore it or leave this run out") from error
    if required not in frame:
        raise InputError(f"{path}: column `{required}` is missing; restore it or leave this run out")
    return frame


def _numbers(path: Path, frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """Turn columns of text into numbers; an empty cell is NaN."""
    for column in columns:
        try:
            frame[column] = pd.to_numeric(frame[column].replace("", None)).astype(float)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path}: column `{column}` holds something that is no number ({error}); correct the cell"
            ) from error
