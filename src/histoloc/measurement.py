"""Samples in, metrics out: of whatever localizes in them, and of what must be exceeded."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histoloc.data.csv_cells import read_cells
from histoloc.data.images import image_size, read_map, stored_map, write_map, write_mask, write_picture
from histoloc.data.pixels import read_pixels, read_truth, sample_mpp
from histoloc.data.table import Sample, Table
from histoloc.errors import InputError
from histoloc.inputs import PREDICTIONS, name_tails, same_name
from histoloc.methods import METHODS
from histoloc.metrics.accumulate import LocalizationMetrics
from histoloc.model_folder import ModelConfig, build_method
from histoloc.options import MapOptions
from histoloc.prediction import Predictor
from histoloc.progress import Bar
from histoloc.types import Localization

Pixels = Callable[[], NDArray[np.uint8]]  # reads those of a sample
Localizes = Callable[[Sample, Pixels], Localization]  # a model, or a folder of heatmaps
Mask = NDArray[np.bool_]
MAP_SUFFIXES = (".npy", ".png", ".tif", ".tiff")
FLOORS = [name for name, method in METHODS.items() if not method.supervision]  # they learn nothing


@dataclass
class Measured:
    """What `measure` collects.

    Attributes:
        metrics: of the maps, cut at the threshold.
        beside: `argmax`, of the masks by the largest class map, the rule of the published CAM rows; `per_image`, of the
            maps by the papers' per-image rule; and of the floors, by name, on images with a mask. One is absent where
            there is nothing to measure.
        counts: of how many images it is said: `range` and `scale`, how evidence became maps; `map_class`, whose maps
            were made; `note`, what the user must know.
        files: the stem under which a sample's map is kept, by sample name.
        overruled: images of the class without ROI whose mask has ROI.
    """

    metrics: LocalizationMetrics
    beside: dict[str, LocalizationMetrics] = field(default_factory=dict)
    counts: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    files: dict[str, str] = field(default_factory=dict)
    overruled: int = 0


def measure(
    localizes: Localizes,
    table: Table,
    samples: Sequence[Sample],
    *,
    empty_class: str | None = None,
    floors: Mapping[str, Localizes] | None = None,
    files: tuple[Path, int] | None = None,
    failed: dict[str, str] | None = None,
    progress: bool = False,
) -> Measured:
    """Localize in every sample and collect the metrics.

    Args:
        localizes: what is measured.
        table: where the class numbers come from.
        samples: those of it that are measured.
        empty_class: images of this class have no ROI, whatever their mask says.
        floors: what is measured beside it.
        files: a folder, and of how many samples, evenly spaced, it gets `<stem>_map.png` and `<stem>_mask.png`.
        failed: gets the reason by name of each sample in which nothing could be localized, instead of an error.
        progress: show a bar.

    Raises:
        InputError: a file cannot be used; mask and image differ in size.
    """
    measured = Measured(LocalizationMetrics(table.classes))
    folder, most = files or (Path(), 0)
    picture_rows = {int(i) for i in np.linspace(0, len(samples) - 1, min(most, len(samples))).round()}
    for i, sample in enumerate(Bar(samples, "evaluating", disable=not progress)):
        pixels = cache(partial(read_pixels, sample))
        try:
            result = localizes(sample, pixels)
        except InputError as error:
            if failed is None:
                raise
            failed[sample.name] = str(error)
            continue
        truth = _truth(sample, result.mask.shape, empty_class, measured)
        results = {"": result}
        if truth is not None:
            results |= {name: floor(sample, pixels) for name, floor in (floors or {}).items()}
        _add(measured, table, sample, results, truth)
        if i in picture_rows:
            measured.files[sample.name] = stem = f"{i:05d}_{sample.image.stem}"
            write_map(folder / f"{stem}_map.png", result.roi)
            write_mask(folder / f"{stem}_mask.png", result.mask)
            if sample.x is not None:
                _keep_region(folder / stem, pixels(), truth)
    return measured


def _keep_region(stem: Path, pixels: NDArray[np.uint8], truth: Mask | None) -> None:
    """Write what the report needs of a slide's region, which is no file."""
    write_picture(stem.with_name(f"{stem.name}_image.png"), pixels)
    if truth is not None:
        write_mask(stem.with_name(f"{stem.name}_truth.png"), truth)


def model_localizes(model: Predictor, options: MapOptions = MapOptions(), *, per_image: bool = False) -> Localizes:  # noqa: B008
    """A model as something that localizes in samples; `per_image` adds the map by the papers' rule."""
    return lambda sample, pixels: model.predict(
        pixels(),
        mpp=sample_mpp(sample),
        threshold=options.threshold,
        map_class=options.map_class,
        per_image=per_image,
        tissue=options.tissue,
    )


def floors_beside(config: ModelConfig) -> dict[str, Localizes]:
    """All-ones, and the stain contrast stretched in every image, as the model of `config` would see the images."""
    floors: dict[str, Localizes] = {}
    for name in FLOORS:
        # Without an extent: in one piece, and not on tissue alone.
        own = ModelConfig(name, config.classes, input=config.input, mpp=config.mpp)
        method = build_method(own, load_backbone=False).eval()
        floor = Predictor(method, own, range="image" if method.unit == "score" else None)
        floors[name] = model_localizes(floor, MapOptions(threshold=0.5))
    return floors


def heatmaps_localize(
    folder: Path,
    samples: Sequence[Sample],
    classes: tuple[str, ...],
    threshold: float | None = None,
    highest: float | None = None,
) -> Localizes:
    """A folder of heatmaps as something that localizes in samples; `highest` is the whole number that means 1.

    The heatmap of `a/b/NAME.png` is `a/b/NAME.npy`, `b/NAME.npy` or `NAME.npy`, the first that is there, whatever the
    case and Unicode form; also NAME_map, and .png or .tif. It raises InputError for a sample without one, with several,
    or with one that is another's too, and where `predictions.csv` does not name its class.

    Raises:
        InputError: no sample has a heatmap, `predictions.csv` cannot be read, or the heatmaps leave open which number
            means 1.
    """
    files = {sample.name: heatmaps for sample, heatmaps in zip(samples, _heatmaps(folder, samples), strict=True)}
    owners: dict[Path, list[str]] = defaultdict(list)
    for name, heatmaps in files.items():
        for heatmap in heatmaps:
            owners[heatmap].append(name)
    if not owners:
        raise InputError(
            f"{folder}: has no heatmap for any of {len(samples)} images; name them as the images ("
            f"{', '.join(Path(samples[0].name).stem + suffix for suffix in MAP_SUFFIXES)})"
        )
    if highest is None:
        _check_depth(folder, owners)
    labels = _predicted_classes(folder / PREDICTIONS, samples)
    level = 0.5 if threshold is None else threshold

    def localizes(sample: Sample, pixels: Pixels) -> Localization:
        file = _only(files[sample.name], folder, sample, owners)
        roi = read_map(file, highest)
        width, height = image_size(sample.image)
        if roi.shape != (height, width):
            raise InputError(
                f"{file}: has {roi.shape[1]}x{roi.shape[0]} pixels, its image {width}x{height}; "
                "resize the heatmap to the image"
            )
        one_hot = None if labels is None else _one_hot(labels.get(sample.name), classes)
        return Localization(classes, one_hot, roi, roi >= level, level, sample.mpp)

    return localizes


def _add(
    measured: Measured, table: Table, sample: Sample, results: Mapping[str, Localization], truth: Mask | None
) -> None:
    """Add a sample to the metrics of the model (by the name "") and of the floors."""

    def update(name: str, *parts: NDArray | None) -> None:
        metrics = measured.beside.setdefault(name, LocalizationMetrics(table.classes)) if name else measured.metrics
        metrics.update(sample.name, table.label_indices(sample), *parts, mask_true=truth, group=sample.group)

    for name, result in results.items():
        update(name, None if name else result.probabilities, result.roi, result.mask)
    result = results[""]
    if result.argmax_mask is not None:
        update("argmax", None, None, result.argmax_mask)
    if result.image_roi is not None:
        update("per_image", None, result.image_roi, result.image_roi >= 0.5)
    measured.counts["note"].update(result.notes)
    scale = result.scale if result.range else None
    for what, value in (("range", result.range), ("scale", scale), ("map_class", result.map_class)):
        if value is not None:
            measured.counts[what][value] += 1


def _truth(sample: Sample, shape: tuple[int, ...], empty_class: str | None, measured: Measured) -> Mask | None:
    """The truth of a sample, or None where it is unknown."""
    mask = read_truth(sample)
    if mask is not None and mask.shape != shape:
        raise InputError(
            f"{sample.mask}: has {mask.shape[1]}x{mask.shape[0]} pixels, its image {shape[1]}x{shape[0]}; "
            "give the mask at the image's resolution"
        )
    if empty_class is None or sample.labels != (empty_class,):
        return mask
    measured.overruled += int(mask is not None and mask.any())
    return np.zeros(shape, dtype=bool)


def _one_hot(label: str | None, classes: tuple[str, ...]) -> NDArray[np.float32]:
    if label not in classes:
        fault = "no row" if label is None else f"class {label!r}"
        raise InputError(f"{PREDICTIONS}: has {fault} for it; give it one of {', '.join(classes)}")
    return np.eye(len(classes), dtype=np.float32)[classes.index(label)]


def _only(files: list[Path], folder: Path, sample: Sample, owners: Mapping[Path, list[str]]) -> Path:
    """The one heatmap of a sample."""
    if not files:
        raise InputError(f"there is no heatmap in {folder.name}; add it")
    if len(files) > 1:
        raise InputError(f"{files[0]}: there is also {files[1].name} for the same image; keep one heatmap per image")
    for other in owners[files[0]]:
        if other != sample.name:
            raise InputError(f"{files[0]}: is also the heatmap of {other}; give each image its own")
    return files[0]


def _heatmaps(folder: Path, samples: Sequence[Sample]) -> Iterator[list[Path]]:
    """The heatmaps of each sample."""
    by_key: dict[str, list[str]] = defaultdict(list)
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        by_key[same_name(name)].append(name)
    for sample in samples:
        for tail in name_tails(sample.name):
            ends = [f"{tail}{end}{suffix}" for suffix in MAP_SUFFIXES for end in ("", "_map")]
            names = [name for end in ends for name in by_key.get(same_name(end), ())]
            if names:
                yield [folder / name for name in ([name for name in names if name.startswith(tail)] or names)]
                break
        else:
            yield []


def _check_depth(folder: Path, files: Iterable[Path]) -> None:
    """Refuse heatmaps of whole numbers that may have fewer bits than their files."""
    largest: defaultdict[int, int] = defaultdict(int)
    for file in files:
        with suppress(InputError):  # it is said when the heatmap is measured
            values, bits = stored_map(file)
            largest[bits] = max(largest[bits], int(values.max())) if bits else 0
    for bits, number in largest.items():
        if 0 < number < 2 ** (bits - 1):
            full, fewer = 2**bits - 1, number if bits == 8 else 2 ** number.bit_length() - 1
            raise InputError(
                f"{folder}: the highest number in its {bits}-bit heatmaps is {number}, which may mean "
                f"{number / full:.2g} or about 1; give --heatmap-max {full} for the former, or the number that "
                f"means 1, as --heatmap-max {fewer}"
            )


def _predicted_classes(path: Path, samples: Sequence[Sample]) -> dict[str, str] | None:
    """Class by sample name from a `predictions.csv`; None where there is no such file, or it names no class."""
    if not path.is_file():
        return None
    rows = read_cells(path, ("image", "class"), ())
    if not any(rows["class"]):
        return None
    by_tail: dict[str, set[str]] = defaultdict(set)
    for image, label in zip(rows["image"], rows["class"], strict=True):
        for tail in name_tails(image):
            by_tail[tail].add(label)
    classes: dict[str, str] = {}
    for sample in samples:
        # Of equal names in several folders the longest common end of the paths says which.
        labels = next((by_tail[tail] for tail in name_tails(sample.name) if tail in by_tail), set())
        if len(labels) == 1:
            classes[sample.name] = next(iter(labels))
    return classes
