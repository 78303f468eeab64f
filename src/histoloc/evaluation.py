"""A model, or a folder of anybody's heatmaps, against a table -> metrics.json and per_image.csv."""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from histoloc.config import plain
from histoloc.data.table import Sample, Table, read_table
from histoloc.errors import InputError
from histoloc.heatmaps import heatmaps
from histoloc.measure import Measured, measure, model_localizes
from histoloc.metrics.summary import Metrics
from histoloc.model_folder import ModelConfig, empty_index, read_model_config
from histoloc.options import EvaluationOptions
from histoloc.prediction import load
from histoloc.work_folder import atomic_path, locked, write_json

# Options of which other values are another evaluation.
DECIDING = ("split", "fold", "threshold", "range", "map_class", "empty_class", "tissue")
RULES = ("f1_plus", "f1_minus", "f1_mean", "pxap")


@dataclass(frozen=True)
class Evaluated:
    """What `run_evaluation` leaves.

    Attributes:
        metrics: of the maps.
        folder: where they were written.
        lines: what to print: the numbers, those of the floors, and notes.
    """

    metrics: Metrics
    folder: Path
    lines: tuple[str, ...]


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
        source: a run, a model folder, or a folder with one heatmap per image (`STEM.npy|png|tif` or `STEM_map.png`,
            values in [0, 1] after division by 255 or 65535 for integer files), optionally with a `predictions.csv`
            (columns image and class) as `histoloc predict` writes it.
        data: the table.
        out: folder for the results; by default `evaluation/SPLIT` inside the run or folder, or, where that has another
            evaluation, a folder named by split and options beside it; another evaluation is never overwritten.
        progress: show a bar.
        options: of `EvaluationOptions`, by name, as `split="valid", threshold=0.4`.

    Returns:
        The metrics; they are also in `metrics.json`, and `per_image.csv` has a row per image.

    Raises:
        InputError: anything the user gave that cannot be used.
    """
    return run_evaluation(Path(source), Path(data), EvaluationOptions(**options), out=out, progress=progress).metrics


def run_evaluation(
    source: Path,
    data: Path,
    asked: EvaluationOptions,
    *,
    out: Path | str | None = None,
    progress: bool = True,
) -> Evaluated:
    """As `evaluate`; also where the results are and what there is to say of them."""
    config = _config(source)
    table = _table(data, asked, config)
    samples = table.split(asked.split)
    if progress:
        tqdm.write(table.summary(), file=sys.stderr)
    asked = dataclasses.replace(asked, fold=table.fold)
    empty_index(asked.empty_class, table.classes, str(data))
    identity = _identity(table, samples, asked, config)
    if config is None:
        localizes = heatmaps(source, samples, table.classes, asked.threshold)
    else:
        predictor = load(source, asked.device, range=asked.range, empty_class=asked.empty_class)
        predictor.check(asked.threshold, asked.map_class)
        localizes = model_localizes(predictor, asked.threshold, asked.map_class, per_image=True, tissue=asked.tissue)
    empty_class = asked.empty_class or (config.empty_class if config else None)
    folder = _folder(source, out, asked, identity, config)
    started = time.perf_counter()
    with locked(folder):
        shutil.rmtree(folder / "images", ignore_errors=True)  # of an earlier call
        measured = measure(
            localizes,
            table,
            samples,
            keep=folder / "images",
            maps=asked.maps,
            empty_class=empty_class,
            floors=config or ModelConfig("heatmaps", table.classes),
            progress=progress,
        )
        about = _description(source, table, samples, asked, config, measured) | {
            "empty_class": empty_class,
            "identity": identity,
            "seconds": round(time.perf_counter() - started, 2),
        }
        result, floors = _write_results(folder, measured, samples, about)
    if out is None and (source / "model").is_dir() and _recorded(source) in (None, identity):
        keep_as_own(source, folder)  # the first one; others do not replace it
    lines = [summary_line(result), *floors, *(f"note: {note}" for note in about["notes"]), f"written: {folder}"]
    return Evaluated(result, folder, tuple(lines))


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


def _config(source: Path) -> ModelConfig | None:
    """Of a model; None of a folder of heatmaps."""
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; give a run, a model folder or a folder of heatmaps")
    is_model = (source / "config.json").is_file() or (source / "model" / "config.json").is_file()
    return read_model_config(source) if is_model else None


def _table(data: Path, asked: EvaluationOptions, config: ModelConfig | None) -> Table:
    fold = asked.fold
    if config is None:
        if asked.range is not None or asked.map_class is not None:
            raise InputError("--range and --class need a model; heatmaps are measured as they are: leave them out")
        return read_table(data, fold=fold)
    if fold is None:
        # Another table than that of training may have no folds.
        trained = config.provenance.get("fold")
        fold = trained if trained in read_table(data, classes=config.classes, check_files=False).folds else None
    return read_table(data, fold=fold, classes=config.classes)


def _identity(
    table: Table, samples: Sequence[Sample], asked: EvaluationOptions, config: ModelConfig | None
) -> dict[str, Any]:
    """What makes two evaluations the same one: its numbers may only be replaced by those of itself."""
    return {
        "table": table.path.name,
        "content": table.fingerprint(samples),
        **{name: getattr(asked, name) for name in DECIDING},
        "weights_sha256": config.weights_sha256 if config else None,
        "map": plain({"range": config.range, "learned": config.learned, "cut": config.threshold}) if config else None,
    }


def _folder(
    source: Path, out: Path | str | None, asked: EvaluationOptions, identity: dict[str, Any], config: ModelConfig | None
) -> Path:
    """Where the results go: a folder that has none, or those of the same evaluation.

    Raises:
        InputError: the folder that was asked for has those of another one.
    """
    if out is not None:
        if _recorded(Path(out)) in (None, identity):
            return Path(out)
        raise InputError(
            f"{out}: has the evaluation of another table, model or option; choose another --out, or remove the folder"
        )
    name = asked.name
    if config is not None and config.provenance.get("table") not in (None, identity["table"]):
        name = f"{Path(identity['table']).stem}-{name}"
    numbered = (f"{name}-{number}" for number in count(2))
    # The first evaluation of a split has the split's name, whatever it is asked for.
    places = (source / "evaluation" / name for name in chain((asked.split, name), numbered))
    return next(place for place in places if _recorded(place) in (None, identity))


def _recorded(folder: Path) -> dict[str, Any] | None:
    """The identity of the evaluation that a folder has; None where it has none, {} where it does not say."""
    file = folder / "metrics.json"
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("identity") or {}
    except (OSError, ValueError, AttributeError):
        return {}


def _description(
    source: Path,
    table: Table,
    samples: Sequence[Sample],
    asked: EvaluationOptions,
    config: ModelConfig | None,
    measured: Measured,
) -> dict[str, Any]:
    """What was measured on what, which masks took part in choosing it, and what a reader must know."""
    masks: list[str] = []
    rule: dict[str, Any] = {"rule": "fixed", "value": 0.5}
    if config is not None:
        rule = {"rule": config.threshold.rule, "value": config.threshold.value}
        if config.threshold.uses_masks and asked.threshold is None:
            on = f" ({config.threshold.range} maps)" if config.threshold.range else ""
            masks.append(f"threshold chosen on {config.threshold.masks_used} validation masks{on}")
        if config.selection.uses_masks:
            on = " (per-image maps)" if config.learned else ""
            masks.append(f"epoch chosen on {config.selection.masks_used} validation masks{on}")
    if asked.threshold is not None:
        rule = {"rule": "given", "value": asked.threshold}
    whole = len(measured.per_image)
    notes = [f"{note} ({count} of {len(samples)} images)" for note, count in measured.notes.items()]
    if 0 < whole < len(samples):
        notes.append(
            f"the papers' per-image rule and the argmax rule are measured on the {whole} of {len(samples)} images that "
            "were seen in one piece"
        )
    if measured.overruled:
        notes.append(
            f"{measured.overruled} images of the class without ROI have masks with ROI, which are not looked at: they "
            "count as images without any"
        )
    return {
        "method": config.method if config else "heatmaps",
        "run": source.name,
        "table": table.path.name,
        "split": asked.split,
        "fold": table.fold,
        "n_images": len(samples),
        "threshold": rule,
        "range": " and ".join(sorted(measured.ranges)) or None,
        "map_class": asked.map_class,
        "map_classes": sorted(measured.map_classes),
        "scale": dict(sorted(measured.scales.items())),
        "selection": plain(config.selection) if config else None,
        "uses_masks": masks,
        "notes": [*table.notes, *notes],
    }


def _write_results(
    folder: Path, measured: Measured, samples: Sequence[Sample], about: dict[str, Any]
) -> tuple[Metrics, list[str]]:
    """Compute the metrics; write `metrics.json` and `per_image.csv`. Returns also the lines on the floors."""
    result = measured.metrics.compute()
    rows = measured.metrics.per_image()
    for name, metrics in (("argmax", measured.argmax), ("per_image", measured.per_image)):
        if len(metrics):
            own = metrics.per_image().set_index("name")
            for column in ("f1_plus", "f1_minus"):
                rows[f"{name}_{column}"] = own[column].reindex(rows["name"]).to_numpy()
            found = metrics.compute()
            names = RULES if name == "per_image" else RULES[:3]
            about |= {f"{name}_rule": {key: dataclasses.asdict(getattr(found, key)) for key in names}}
    floors = {name: metrics.compute(bootstrap=0) for name, metrics in measured.floors.items() if len(metrics)}
    about["floors"] = {name: {key: getattr(m, key).value for key in RULES} for name, m in floors.items()}
    by_name = {sample.name: sample for sample in samples}
    rows["file"] = [measured.files.get(name, "") for name in rows["name"]]
    rows["image"] = [_shown(folder, measured, by_name[name], "image") for name in rows["name"]]
    rows["mask"] = [_shown(folder, measured, by_name[name], "truth") for name in rows["name"]]
    lines = _floor_lines(result, floors)
    about["notes"] = [*about["notes"], *lines[1:]]
    with atomic_path(folder / "per_image.csv") as temporary:
        rows.to_csv(temporary, index=False)
    write_json(folder / "metrics.json", {**about, "metrics": result.to_dict()})
    return result, lines[:1]


def _floor_lines(result: Metrics, floors: dict[str, Metrics]) -> list[str]:
    """One line with the floors' numbers; and a note where one of them is above the model."""
    titles = {"allones": "All-ones", "stain": "Stain (per image)"}

    def shown(metrics: Metrics) -> str:
        values = {"F1+": metrics.f1_plus.value, "F1-": metrics.f1_minus.value, "PxAP": metrics.pxap.value}
        return ", ".join(f"{name} {'–' if value is None else f'{value:.2f}'}" for name, value in values.items())

    if not floors or result.f1_mean.value is None:
        return []
    lines = ["beside it, learning nothing: " + "; ".join(f"{titles[n]} {shown(m)}" for n, m in floors.items())]
    for key, what in (("f1_mean", "mean F1"), ("pxap", "PxAP")):
        own = getattr(result, key).value
        for name, metrics in floors.items():
            low = getattr(metrics, key).value
            if own is not None and low is not None and low > own:
                lines.append(f"{titles[name]}, which learns nothing, has {what} {low:.2f}, above {own:.2f}")
    return lines


def _shown(folder: Path, measured: Measured, sample: Sample, what: Literal["image", "truth"]) -> str:
    """Where the report finds an image or its truth: its file, or what was kept of a slide's region."""
    kept = measured.files.get(sample.name)
    if sample.x is not None and kept is not None:
        file = Path("images") / f"{kept}_{what}.png"
        return file.as_posix() if (folder / file).is_file() else ""
    path = sample.image if what == "image" else sample.mask
    return str(path or "")
