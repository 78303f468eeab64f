"""A folder of anybody's heatmaps as something that localizes in samples."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histoloc.data.images import image_size, read_map
from histoloc.data.table import Sample
from histoloc.errors import InputError
from histoloc.measurement import Localizes, Pixels
from histoloc.types import Localization

MAP_SUFFIXES = (".npy", ".png", ".tif", ".tiff")


def heatmaps(
    folder: Path, samples: Sequence[Sample], classes: tuple[str, ...], threshold: float | None = None
) -> Localizes:
    """A folder of heatmaps as something that localizes in samples.

    Raises:
        InputError: an image has no heatmap or several, two images would share one, or `predictions.csv` does not name
            the class of every image.
    """
    named = _heatmap_files(folder, samples)
    labels = _predicted_classes(folder / "predictions.csv", samples, classes)
    cut = 0.5 if threshold is None else threshold

    def localizes(sample: Sample, pixels: Pixels) -> Localization:
        file = named[sample.name]
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


def _heatmap_files(folder: Path, samples: Sequence[Sample]) -> dict[str, Path]:
    """The heatmap of each sample, by its name."""
    owner: dict[str, str] = {}
    named: dict[str, list[Path]] = {}
    for sample in samples:
        stem = sample.image.stem
        if (other := owner.setdefault(stem, sample.name)) != sample.name:
            raise InputError(
                f"{folder}: {other} and {sample.name} would share the heatmap {stem}; give the images different names"
            )
        files = [folder / f"{stem}{end}{suffix}" for suffix in MAP_SUFFIXES for end in ("", "_map")]
        named[sample.name] = files = [file for file in files if file.is_file()]
        if len(files) > 1:
            raise InputError(
                f"{files[0]}: there is also {files[1].name} for the same image; keep one heatmap per image"
            )
    absent = [name for name, files in named.items() if not files]
    if absent:
        raise InputError(
            f"{folder}: no heatmap for {len(absent)} of {len(samples)} images, first {absent[0]} (looked for its stem "
            f"with {', '.join(MAP_SUFFIXES)}); add them"
        )
    return {name: files[0] for name, files in named.items()}


def _predicted_classes(path: Path, samples: Sequence[Sample], classes: tuple[str, ...]) -> dict[str, str]:
    """Class by sample name from a `predictions.csv`; nothing where there is no such file, or it names no class."""
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
    result = {sample.name: by_stem.get(sample.image.stem) for sample in samples} if any(by_stem.values()) else {}
    for name, label in result.items():
        if label not in classes:
            fault = "no row" if label is None else f"class {label!r}"
            raise InputError(f"{path}: {name} has {fault}; give it one of {', '.join(classes)}")
    return {name: label for name, label in result.items() if label is not None}
