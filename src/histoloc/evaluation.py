"""A model, or a folder of anybody's heatmaps, against a table -> metrics.json and per_image.csv."""

import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from histoloc.config import plain
from histoloc.data.fingerprint import image_marks
from histoloc.data.table import Sample, Table, read_table
from histoloc.data.table_problems import refuse
from histoloc.errors import InputError
from histoloc.measurement import FLOORS, Localizes, Measured, floors_beside, heatmaps_localize, measure, model_localizes
from histoloc.methods import METHODS
from histoloc.metrics.summary import Metrics
from histoloc.model_folder import ModelConfig, empty_index, images_seen, is_shipped, read_model_config
from histoloc.options import EvaluationOptions
from histoloc.places import relative_place
from histoloc.prediction import load
from histoloc.work_folder import atomic_path, locked, read_json, write_json

# Options of which other values are another evaluation.
DECIDING = ("split", "fold", "threshold", "range", "map_class", "empty_class", "tissue")
RULES = ("f1_plus", "f1_minus", "f1_mean", "pxap")


@dataclass(frozen=True)
class Evaluation:
    """What `run_evaluation` leaves.

    Attributes:
        metrics: of the maps.
        folder: where they were written.
        lines: what to print: the numbers, those of the floors, and notes.
        failed: the reason by name of each image without a heatmap that can be used.
    """

    metrics: Metrics
    folder: Path
    lines: tuple[str, ...]
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """What is measured on what: a model (without a `config`: a folder of heatmaps), and a split of a table."""

    source: Path
    config: ModelConfig | None
    table: Table
    options: EvaluationOptions

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """Rows of the split."""
        split = self.options.split or "test"
        return self.table.samples if split == "all" else self.table.split(split)

    @property
    def empty_class(self) -> str | None:
        """The class whose images have no ROI."""
        return self.options.empty_class or (self.config.empty_class if self.config else None)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes two evaluations the same one: its numbers may only be replaced by those of itself."""
        config = self.config
        return {
            "table": self.table.path.name,
            "content": self.table.fingerprint(self.samples),
            **{name: getattr(self.options, name) for name in DECIDING},
            "weights_sha256": config.weights_sha256 if config else None,
            "map": plain({"range": config.range, "learned": config.learned, "cut": config.threshold})
            if config
            else self.options.heatmap_max,
        }


def evaluate(
    source: Path | str,
    data: Path | str,
    *,
    out: Path | str | None = None,
    progress: bool = True,
    **options: Any,
) -> Metrics:
    """Measure a model or a folder of heatmaps on one split of a table and write the results.

    Args:
        source: a run, a model folder, a shipped prior as `prior:glands`, or a folder with one heatmap per image
            (`STEM.npy|png|tif` or `STEM_map.png`, values in [0, 1] after division by 255 or 65535 for integer files),
            optionally with a `predictions.csv` (columns image and class) as `histoloc predict` writes it.
        data: the table.
        out: folder for the results; by default `evaluation/SPLIT` inside the run or folder, or, where that has another
            evaluation, a folder named by split and options beside it; another evaluation is never overwritten. A
            shipped prior needs it.
        progress: show a bar.
        options: of `EvaluationOptions`, by name, as `split="valid", threshold=0.4`.

    Returns:
        The metrics; they are also in `metrics.json`, and `per_image.csv` has a row per image.

    Raises:
        InputError: anything the user gave that cannot be used.
    """
    asked = EvaluationOptions(**options)
    evaluation = run_evaluation(Path(source), Path(data), asked, out=out, progress=progress)
    for name, reason in evaluation.failed.items():
        tqdm.write(f"failed: {name}: {reason}", file=sys.stderr)
    return evaluation.metrics


def run_evaluation(
    source: Path,
    data: Path,
    options: EvaluationOptions,
    *,
    out: Path | str | None = None,
    progress: bool = True,
) -> Evaluation:
    """As `evaluate`; also where the results are and what there is to say of them."""
    case = _case(source, data, options)
    if progress:
        tqdm.write(case.table.summary(), file=sys.stderr)
    localizes = _localizes(case)
    folder = _folder(case, out)
    started = time.perf_counter()
    failed: dict[str, str] = {}
    with locked(folder):
        shutil.rmtree(folder / "images", ignore_errors=True)  # of an earlier call
        measured = measure(
            localizes,
            case.table,
            case.samples,
            empty_class=case.empty_class,
            floors=floors_beside(case.config or ModelConfig(FLOORS[0], case.table.classes)),
            files=(folder / "images", options.maps),
            failed=failed if case.config is None else None,
            progress=progress,
        )
        if len(failed) == len(case.samples):
            refuse(source, [f"{name}: {reason}" for name, reason in failed.items()])
        about = _description(case, measured, failed)
        about["seconds"] = round(time.perf_counter() - started, 2)
        metrics, floors = _write_results(folder, case, measured, about)
    if out is None and (source / "model").is_dir() and _recorded(source) in (None, case.identity):
        keep_as_own(source, folder)  # the first one; others do not replace it
    lines = [summary_line(metrics), *floors, *(f"note: {note}" for note in about["notes"]), f"written: {folder}"]
    return Evaluation(metrics, folder, tuple(lines), failed)


def keep_as_own(run: Path, folder: Path) -> None:
    """Copy an evaluation's numbers to the top of its run: those by which the run is known."""
    for name in ("metrics.json", "per_image.csv"):
        with atomic_path(run / name) as temporary:
            shutil.copyfile(folder / name, temporary)


def summary_line(metrics: Metrics) -> str:
    """The main numbers with their 95 % intervals, and what must be known of them, in one line; a dash where undefined.

    Where some images have no ROI, PxAP over the others and the specificity follow.
    """
    names = {"cl_error": "Cl. error", "f1_plus": "F1+", "f1_minus": "F1-", "pxap": "PxAP"}
    if metrics.pxap_images_without_roi and metrics.pxap.value is not None:
        names |= {"pxap": "PxAP over all", "pxap_with_roi": "PxAP over images with ROI"}
    if metrics.specificity_without_roi.value is not None:
        names["specificity_without_roi"] = "specificity without ROI"
    of_groups = "" if metrics.groups is None else f" ({metrics.groups} group{'s' if metrics.groups > 1 else ''})"
    numbers = ", ".join(f"{name} {getattr(metrics, key)}" for key, name in names.items())
    return " ".join([f"{metrics.images} images{of_groups}: {numbers}", *(f"({note})" for note in metrics.notes)])


def _case(source: Path, data: Path, options: EvaluationOptions) -> Case:
    """Open the model's configuration and the table."""
    shipped = is_shipped(source)
    if not shipped and not source.is_dir():
        raise InputError(f"{source}: no such folder; give a run, a model folder or a folder of heatmaps")
    is_model = shipped or (source / "config.json").is_file() or (source / "model" / "config.json").is_file()
    config = read_model_config(source) if is_model else None
    # A model without classes is measured on any.
    classes, fold = ((config.classes or None) if config else None), options.fold
    if config is None and (options.range is not None or options.map_class is not None):
        raise InputError("--range and --class need a model; heatmaps are measured as they are: leave them out")
    if config is not None and options.heatmap_max is not None:
        raise InputError("--heatmap-max is for a folder of heatmaps, not for a model; leave it out")
    if config is not None and fold is None:
        # Another table than that of training may have no folds.
        trained = config.provenance.get("fold")
        known = read_table(data, classes=classes, columns=options.columns, check_files=False).folds
        fold = trained if trained in known else None
    table = read_table(data, fold=fold, classes=classes, columns=options.columns)
    empty_index(options.empty_class, table.classes, str(data))
    split = options.split or _split(source, config, table)
    if split == "all" and not table.has_splits:
        table = table.without_splits()
    return Case(source, config, table, replace(options, fold=table.fold, split=split))


def _split(source: Path, config: ModelConfig | None, table: Table) -> Literal["test", "all"]:
    """Which rows are measured where nobody says it: never those that the model learned from.

    Raises:
        InputError: the table names no splits, and the model learned from images that would be measured.
    """
    if table.has_splits:
        return "test"
    seen = frozenset() if config is None else images_seen(source)
    own = [s for s, mark in zip(table.samples, image_marks(table.samples), strict=True) if mark in seen]
    if held_out := [s.name for s in own if s.split != "train"]:
        raise InputError(
            f"{table.path}: names no splits, and the model learned from {len(own)} of its images, as {held_out[0]}; "
            "mark rows of split test in a column split"
        )
    return "test" if own else "all"


def _localizes(case: Case) -> Localizes:
    options = case.options
    if case.config is None:
        return heatmaps_localize(case.source, case.samples, case.table.classes, options.threshold, options.heatmap_max)
    empty_class = options.empty_class if case.config.classes else None  # otherwise a class of the table alone
    predictor = load(case.source, options.device, range=options.range, empty_class=empty_class)
    predictor.check(options.threshold, options.map_class)
    return model_localizes(predictor, options, per_image=True)


def _folder(case: Case, out: Path | str | None) -> Path:
    """Where the results go: a folder that has none, or those of the same evaluation.

    Raises:
        InputError: the folder that was asked for has those of another one, or none was and a shipped model is measured.
    """
    if out is not None:
        if _recorded(Path(out)) in (None, case.identity):
            return Path(out)
        raise InputError(
            f"{out}: has the evaluation of another table, model or option; choose another --out, or remove the folder"
        )
    if is_shipped(case.source):
        raise InputError(f"{case.source}: lies in histoloc itself, where no results are kept; give --out")
    name = case.options.name
    if case.config is not None and case.config.provenance.get("table") not in (None, case.table.path.name):
        name = f"{case.table.path.stem}-{name}"
    numbered = (f"{name}-{number}" for number in count(2))
    # The first evaluation of a split has the split's name, whatever it is asked for.
    places = (case.source / "evaluation" / name for name in chain((case.options.split or "test", name), numbered))
    return next(place for place in places if _recorded(place) in (None, case.identity))


def _recorded(folder: Path) -> dict[str, Any] | None:
    """The identity of the evaluation that a folder has; None where it has none, {} where it does not say."""
    try:
        record = read_json(folder / "metrics.json")
    except InputError:
        return {}
    return None if record is None else record.get("identity") or {}


def _description(case: Case, measured: Measured, failed: Mapping[str, str]) -> dict[str, Any]:
    """What was measured on what, which masks took part in choosing it, and what a reader must know."""
    config, options, images = case.config, case.options, len(case.samples) - len(failed)
    masks: list[str] = []
    rule: dict[str, Any] = {"rule": "fixed", "value": 0.5}
    if config is not None:
        rule = {"rule": config.threshold.rule, "value": config.threshold.value}
        if config.threshold.uses_masks and options.threshold is None:
            on = f" ({config.threshold.range} maps)" if config.threshold.range else ""
            masks.append(f"threshold chosen on {config.threshold.masks_used} validation masks{on}")
        if config.selection.uses_masks:
            on = " (per-image maps)" if config.learned else ""
            masks.append(f"epoch chosen on {config.selection.masks_used} validation masks{on}")
    if options.threshold is not None:
        rule = {"rule": "given", "value": options.threshold}
    notes = [f"{note} ({number} of {images} images)" for note, number in measured.counts["note"].items()]
    if failed:
        notes.append(f"{len(failed)} of {len(case.samples)} images have no heatmap that can be used: not measured")
    count = len(measured.beside.get("per_image", ()))
    if 0 < count < images:
        notes.append(
            f"the papers' per-image rule and the argmax rule are measured on the {count} of {images} images that were "
            "seen in one piece"
        )
    if measured.overruled:
        notes.append(
            f"{measured.overruled} images of the class without ROI have masks with ROI, which are not looked at: they "
            "count as images without any"
        )
    return {
        "method": config.method if config else "heatmaps",
        "supervision": list(config.supervision) if config else None,
        "run": case.source.name,
        "table": case.table.path.name,
        "split": options.split,
        "fold": case.table.fold,
        "n_images": images,
        "failed": dict(failed),
        "threshold": rule,
        "range": " and ".join(sorted(measured.counts["range"])) or None,
        "map_class": options.map_class,
        "map_classes": sorted(measured.counts["map_class"]),
        "scale": dict(sorted(measured.counts["scale"].items())),
        "selection": plain(config.selection) if config else None,
        "uses_masks": masks,
        "notes": [*case.table.notes, *notes],
        "empty_class": case.empty_class,
        "identity": case.identity,
    }


def _write_results(folder: Path, case: Case, measured: Measured, about: dict[str, Any]) -> tuple[Metrics, list[str]]:
    """Compute the metrics; write `metrics.json` and `per_image.csv`. Returns also the line on the floors."""
    result, rows = measured.metrics.compute(), measured.metrics.per_image()
    for name, keys in (("argmax", RULES[:3]), ("per_image", RULES)):
        if metrics := measured.beside.get(name):
            own = metrics.per_image().set_index("name")
            for column in ("f1_plus", "f1_minus"):
                rows[f"{name}_{column}"] = own[column].reindex(rows["name"]).to_numpy()
            of_rule = metrics.compute()
            about[f"{name}_rule"] = {key: asdict(getattr(of_rule, key)) for key in keys}
    floors = {name: measured.beside[name].compute(bootstrap=0) for name in FLOORS if name in measured.beside}
    about["floors"] = {name: {key: getattr(m, key).value for key in RULES} for name, m in floors.items()}
    samples = {sample.name: sample for sample in case.samples}
    rows["file"] = [measured.files.get(name, "") for name in rows["name"]]
    for column, kind in (("image", "image"), ("mask", "truth")):
        rows[column] = [_picture_path(folder, samples[name], measured.files.get(name), kind) for name in rows["name"]]
    lines = _floor_lines(result, floors)
    about["notes"] += lines[1:]
    with atomic_path(folder / "per_image.csv") as temporary:
        rows.to_csv(temporary, index=False)
    write_json(folder / "metrics.json", {**about, "metrics": result.to_dict(), "home": os.path.realpath(folder)})
    return result, lines[:1]


def _floor_lines(result: Metrics, floors: dict[str, Metrics]) -> list[str]:
    """One line with the floors' numbers; and a note where one of them is above the model."""
    methods = {name: METHODS[name] for name in floors}
    titles = {name: m.title + (" (per image)" if m.unit == "score" else "") for name, m in methods.items()}

    def numbers(metrics: Metrics) -> str:
        values = {"F1+": metrics.f1_plus.value, "F1-": metrics.f1_minus.value, "PxAP": metrics.pxap.value}
        return ", ".join(f"{name} {'–' if value is None else f'{value:.2f}'}" for name, value in values.items())

    if not floors or result.f1_mean.value is None:
        return []
    lines = ["beside it, learning nothing: " + "; ".join(f"{titles[n]} {numbers(m)}" for n, m in floors.items())]
    for key, title in (("f1_mean", "mean F1"), ("pxap", "PxAP")):
        own = getattr(result, key).value
        for name, metrics in floors.items():
            low = getattr(metrics, key).value
            if own is not None and low is not None and low > own:
                lines.append(f"{titles[name]}, which learns nothing, has {title} {low:.2f}, above {own:.2f}")
    return lines


def _picture_path(folder: Path, sample: Sample, stem: str | None, kind: str) -> str:
    """Where the report finds an image or its truth: its file, or what was written of a slide's region."""
    if sample.x is not None and stem is not None:
        file = Path("images") / f"{stem}_{kind}.png"
        return file.as_posix() if (folder / file).is_file() else ""
    place = sample.image if kind == "image" else sample.mask
    return "" if place is None else relative_place(folder, str(place))
