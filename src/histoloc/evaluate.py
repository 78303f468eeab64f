"""A model, or a folder of anybody's heatmaps, against a table -> metrics.json and per_image.csv."""

import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from histoloc.checkpoint import ModelConfig, read_model_config
from histoloc.config import plain
from histoloc.data.pixels import read_pixels, read_truth
from histoloc.data.table import Sample, Table, read_table
from histoloc.errors import InputError
from histoloc.files import atomic_path, write_json
from histoloc.images import image_size, read_map, write_map, write_mask, write_picture
from histoloc.metrics.accumulate import LocalizationMetrics
from histoloc.metrics.summary import Metrics
from histoloc.predict import Predictor, load
from histoloc.types import Localization

MAP_SUFFIXES = (".npy", ".png", ".tif", ".tiff")


class Localizes(Protocol):
    """Anything that says of a sample where its ROI is: a model, or a folder of heatmaps."""

    def __call__(self, sample: Sample) -> Localization:
        """Localize in one sample."""
        ...


class Measured(NamedTuple):
    """What `measure` found.

    Attributes:
        metrics: of the maps, cut at the threshold.
        files: the stem under which a sample's map was kept, by sample name.
        argmax: of the masks that the largest class map gives, the rule of the published CAM rows; empty where the
            method has no map per class.
    """

    metrics: LocalizationMetrics
    files: dict[str, str]
    argmax: LocalizationMetrics


def evaluate(
    source: Path,
    data: Path,
    *,
    split: str = "test",
    fold: int | None = None,
    threshold: float | None = None,
    out: Path | None = None,
    maps: int = 200,
    empty_class: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Metrics:
    """Measure a model or a folder of heatmaps on one split of a table and write the results.

    Args:
        source: a run, a model folder, or a folder with one heatmap per image (`STEM.npy|png|tif` or `STEM_map.png`,
            values in [0, 1] after division by 255 or 65535 for integer files), optionally with a `predictions.csv`
            (columns image and class) as `histoloc predict` writes it.
        data: the table.
        split: train, valid or test.
        fold: which fold is `valid`; by default the one that the model was trained with, where the table has it.
        threshold: cut the maps here instead of at the model's threshold (0.5 for heatmaps).
        out: folder for the results; by default `evaluation/<split>` inside the run or folder.
        maps: of so many images, evenly spaced in the table, maps and masks are kept for the report.
        empty_class: images of this class have no ROI (normal tissue), also without a mask file; by default the option
            of this name that the model was trained with.
        device: where to compute.
        progress: show a bar.

    Returns:
        The metrics; they are also in `metrics.json`, and `per_image.csv` has a row per image.

    Raises:
        InputError: anything the user gave that cannot be used.
    """
    is_model = (source / "config.json").is_file() or (source / "model" / "config.json").is_file()
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; give a run, a model folder or a folder of heatmaps")
    config = read_model_config(source) if is_model else None
    if config is not None and fold is None:
        # Another table than that of training may have no folds.
        trained = config.provenance.get("fold")
        fold = trained if trained in read_table(data, classes=config.classes, check_files=False).folds else None
    table = read_table(data, fold=fold, classes=config.classes if config else None)
    samples = table.split(split)
    localizes = _model(source, device, threshold) if config else heatmaps(source, samples, table.classes, threshold)
    if empty_class is not None and empty_class not in table.classes:
        raise InputError(f"--empty-class {empty_class!r} is not a class of {data}; choose one of {list(table.classes)}")
    empty_class = empty_class or (getattr(config.options, "empty_class", None) if config else None)
    folder = out or (source / "evaluation" / split)
    started = time.perf_counter()
    measured = measure(
        localizes,
        table,
        samples,
        keep=folder / "images",
        maps=maps,
        empty_class=empty_class,
        progress=progress,
    )
    description = describe(source, table, split, samples, config, threshold) | {
        "empty_class": empty_class,
        "seconds": round(time.perf_counter() - started, 2),
    }
    result = write_results(folder, measured, samples, description)
    if out is None and config is not None and (source / "model").is_dir():
        for name in ("metrics.json", "per_image.csv"):
            with atomic_path(source / name) as temporary:
                shutil.copyfile(folder / name, temporary)
    return result


def measure(
    localizes: Localizes,
    table: Table,
    samples: Sequence[Sample],
    *,
    keep: Path | None = None,
    maps: int = 0,
    empty_class: str | None = None,
    progress: bool = False,
) -> Measured:
    """Localize in every sample and collect the metrics.

    Args:
        localizes: what is measured.
        table: where the class numbers come from.
        samples: of the table.
        keep: folder for maps and masks of `maps` evenly spaced samples, as `<stem>_map.png` and `<stem>_mask.png`.
        maps: how many.
        empty_class: images of this class have no ROI, with or without a mask file.
        progress: show a bar.

    Returns:
        The metrics, those of the argmax rule, and which maps were kept.
    """
    metrics, argmax = LocalizationMetrics(table.classes), LocalizationMetrics(table.classes)
    kept = {int(i) for i in np.linspace(0, len(samples) - 1, min(maps, len(samples))).round()} if keep else set()
    files: dict[str, str] = {}
    for i, sample in enumerate(tqdm(samples, "evaluating", disable=not progress)):
        found = localizes(sample)
        truth = true_mask(sample, found.mask.shape, empty_class)
        label, group = table.label_index(sample), sample.group
        metrics.update(sample.name, label, found.probabilities, found.roi, found.mask, truth, group)
        if found.argmax_mask is not None:
            argmax.update(sample.name, label, mask_pred=found.argmax_mask, mask_true=truth, group=group)
        if keep is not None and i in kept:
            files[sample.name] = stem = f"{i:05d}_{sample.image.stem}"
            write_map(keep / f"{stem}_map.png", found.roi)
            write_mask(keep / f"{stem}_mask.png", found.mask)
            if sample.x is not None:
                write_region(keep / stem, read_pixels(sample), truth)
    return Measured(metrics, files, argmax)


def write_region(stem: Path, pixels: NDArray[np.uint8], truth: NDArray[np.bool_] | None) -> None:
    """Keep what the report shows of a slide's region: `STEM_image.png` and `STEM_truth.png`."""
    write_picture(stem.with_name(f"{stem.name}_image.png"), pixels)
    if truth is not None:
        write_mask(stem.with_name(f"{stem.name}_truth.png"), truth)


def true_mask(sample: Sample, shape: tuple[int, ...], empty_class: str | None) -> NDArray[np.bool_] | None:
    """The truth of a sample, or None where it is unknown.

    Raises:
        InputError: mask and image differ in size.
    """
    if sample.mask is None:
        return np.zeros(shape, dtype=bool) if empty_class is not None and sample.label == empty_class else None
    mask = read_truth(sample)
    assert mask is not None
    if mask.shape != shape:
        raise InputError(
            f"{sample.mask}: has {mask.shape[1]}x{mask.shape[0]} pixels, its image {shape[1]}x{shape[0]}; "
            "give the mask at the image's resolution"
        )
    return mask


def model_localizes(predictor: Predictor, threshold: float | None = None) -> Localizes:
    """A model as something that localizes in samples."""
    return lambda sample: predictor.predict(read_pixels(sample), mpp=sample.mpp, threshold=threshold)


def heatmaps(
    folder: Path, samples: Sequence[Sample], classes: tuple[str, ...], threshold: float | None = None
) -> Localizes:
    """A folder of heatmaps as something that localizes in samples.

    Raises:
        InputError: an image has no heatmap or several, two images would share one, `predictions.csv` does not name the
            class of every image, or the threshold is outside [0, 1].
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"--threshold {threshold} must lie within [0, 1]")
    owner: dict[str, str] = {}
    for sample in samples:
        if (other := owner.setdefault(sample.image.stem, sample.name)) != sample.name:
            raise InputError(
                f"{folder}: {other} and {sample.name} would share the heatmap {sample.image.stem}; "
                "give the images different names"
            )
    named = {sample.name: _heatmap_file(folder, sample) for sample in samples}
    absent = [name for name, file in named.items() if file is None]
    if absent:
        raise InputError(
            f"{folder}: no heatmap for {len(absent)} of {len(samples)} images, first {absent[0]} (looked for its stem "
            f"with {', '.join(MAP_SUFFIXES)}); add them"
        )
    labels = _predicted_classes(folder / "predictions.csv", samples, classes)
    cut = 0.5 if threshold is None else threshold

    def localizes(sample: Sample) -> Localization:
        file = named[sample.name]
        assert file is not None
        roi = read_map(file)
        width, height = image_size(sample.image)
        if roi.shape != (height, width):
            raise InputError(
                f"{file}: has {roi.shape[1]}x{roi.shape[0]} pixels, its image {width}x{height}; "
                "resize the heatmap to the image"
            )
        label = labels.get(sample.name)
        one_hot = None if label is None else np.eye(len(classes), dtype=np.float32)[classes.index(label)]
        return Localization(classes, one_hot, roi, roi >= cut, cut, sample.mpp)

    return localizes


def describe(
    source: Path,
    table: Table,
    split: str,
    samples: Sequence[Sample],
    config: ModelConfig | None,
    threshold: float | None,
) -> dict[str, Any]:
    """What was measured on what, and which masks took part in choosing it."""
    notes: list[str] = []
    rule: dict[str, Any] = {"rule": "fixed", "value": 0.5}
    if config is not None:
        rule = {"rule": config.threshold.rule, "value": config.threshold.value}
        if config.threshold.uses_masks and threshold is None:
            notes.append(f"threshold chosen on {config.threshold.masks_used} validation masks")
        if config.selection.uses_masks:
            notes.append(f"epoch chosen on {config.selection.masks_used} validation masks")
    if threshold is not None:
        rule = {"rule": "given", "value": threshold}
    return {
        "method": config.method if config else "heatmaps",
        "run": source.name,
        "table": table.path.name,
        "split": split,
        "fold": table.fold,
        "n_images": len(samples),
        "threshold": rule,
        "selection": plain(config.selection) if config else None,
        "uses_masks": notes,
    }


def write_results(
    folder: Path,
    measured: Measured,
    samples: Sequence[Sample],
    description: dict[str, Any],
) -> Metrics:
    """Compute the metrics; write `metrics.json` and `per_image.csv`."""
    result = measured.metrics.compute()
    rows = measured.metrics.per_image()
    if len(measured.argmax):
        by_argmax = measured.argmax.per_image()  # both are ordered by name
        rows["argmax_f1_plus"], rows["argmax_f1_minus"] = by_argmax["f1_plus"], by_argmax["f1_minus"]
        found = measured.argmax.compute()
        names = ("f1_plus", "f1_minus", "f1_mean")
        description |= {"argmax_rule": {name: dataclasses.asdict(getattr(found, name)) for name in names}}
    by_name = {sample.name: sample for sample in samples}
    rows["file"] = [measured.files.get(name, "") for name in rows["name"]]
    rows["image"] = [_shown(folder, measured, by_name[name], "image") for name in rows["name"]]
    rows["mask"] = [_shown(folder, measured, by_name[name], "truth") for name in rows["name"]]
    with atomic_path(folder / "per_image.csv") as temporary:
        rows.to_csv(temporary, index=False)
    write_json(folder / "metrics.json", {**description, "metrics": result.to_dict()})
    return result


def _shown(folder: Path, measured: Measured, sample: Sample, what: Literal["image", "truth"]) -> str:
    """Where the report finds an image or its truth: its file, or what was kept of a slide's region."""
    kept = measured.files.get(sample.name)
    if sample.x is not None and kept is not None:
        file = Path("images") / f"{kept}_{what}.png"
        return file.as_posix() if (folder / file).is_file() else ""
    path = sample.image if what == "image" else sample.mask
    return str(path or "")


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


def _model(source: Path, device: str, threshold: float | None) -> Localizes:
    return model_localizes(load(source, device), threshold)


def _heatmap_file(folder: Path, sample: Sample) -> Path | None:
    stem = sample.image.stem
    found = [
        file
        for suffix in MAP_SUFFIXES
        for file in (folder / f"{stem}{suffix}", folder / f"{stem}_map{suffix}")
        if file.is_file()
    ]
    if len(found) > 1:
        raise InputError(f"{found[0]}: there is also {found[1].name} for the same image; keep one heatmap per image")
    return found[0] if found else None


def _predicted_classes(path: Path, samples: Sequence[Sample], classes: tuple[str, ...]) -> dict[str, str]:
    """Class by sample name from a `predictions.csv`; nothing where there is no such file."""
    if not path.is_file():
        return {}
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as CSV ({reason}); correct or remove the file") from error
    if not {"image", "class"} <= set(rows.columns):
        raise InputError(f"{path}: needs the columns image and class; add them or remove the file")
    by_stem = {Path(image).stem: label for image, label in zip(rows["image"], rows["class"], strict=True)}
    if not any(by_stem.values()):
        return {}
    result: dict[str, str] = {}
    for sample in samples:
        label = by_stem.get(sample.image.stem)
        if label not in classes:
            said = "no row" if label is None else f"class {label!r}"
            raise InputError(f"{path}: {sample.image.name} has {said}; give it one of {', '.join(classes)}")
        result[sample.name] = label
    return result
