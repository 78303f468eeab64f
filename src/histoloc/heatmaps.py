"""A folder of anybody's heatmaps as something that localizes in samples."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histoloc.data.images import image_size, read_map
from histoloc.data.table import Sample
from histoloc.errors import InputError
from histoloc.measure import Localizes, Pixels
from histoloc.types import Localization

MAP_SUFFIXES = (".npy", ".png", ".tif", ".tiff")


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

    def localizes(sample: Sample, pixels: Pixels) -> Localization:
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
