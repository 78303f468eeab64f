"""Samples in, metrics out: of whatever localizes in them, and of what must be exceeded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from histoloc.data.images import write_map, write_mask, write_picture
from histoloc.data.pixels import read_pixels, read_truth, sample_mpp
from histoloc.data.table import Sample, Table
from histoloc.errors import InputError
from histoloc.metrics.accumulate import LocalizationMetrics
from histoloc.model_folder import ModelConfig, build_method
from histoloc.prediction import Predictor
from histoloc.types import Localization

Pixels = Callable[[], NDArray[np.uint8]]
FLOORS = ("allones", "stain")  # methods that learn nothing


class Localizes(Protocol):
    """Anything that says of a sample where its ROI is: a model, or a folder of heatmaps."""

    def __call__(self, sample: Sample, pixels: Pixels) -> Localization:
        """Localize in one sample; `pixels` reads it."""
        ...


@dataclass
class Measured:
    """What `measure` collects.

    Attributes:
        metrics: of the maps, cut at the threshold.
        files: the stem under which a sample's map was kept, by sample name.
        argmax: of the masks that the largest class map gives, the rule of the published CAM rows; empty where the
            method has no map per class.
        per_image: of the maps by the papers' per-image rule; empty where the maps are made so, or need no range.
        floors: of methods that learn nothing, by name; only images with a mask.
        ranges: how evidence became maps.
        scales: how many images were brought to the network how.
        map_classes: whose maps were made.
        notes: what the user must know, by how many images it is said of.
        overruled: images of the class without ROI whose mask has ROI.
    """

    metrics: LocalizationMetrics
    argmax: LocalizationMetrics
    per_image: LocalizationMetrics
    floors: dict[str, LocalizationMetrics]
    files: dict[str, str] = field(default_factory=dict)
    ranges: set[str] = field(default_factory=set)
    scales: dict[str, int] = field(default_factory=dict)
    map_classes: set[str] = field(default_factory=set)
    notes: dict[str, int] = field(default_factory=dict)
    overruled: int = 0


def measure(
    localizes: Localizes,
    table: Table,
    samples: Sequence[Sample],
    *,
    keep: Path | None = None,
    maps: int = 0,
    empty_class: str | None = None,
    floors: ModelConfig | None = None,
    progress: bool = False,
) -> Measured:
    """Localize in every sample and collect the metrics.

    Args:
        localizes: what is measured.
        table: where the class numbers come from.
        samples: of the table.
        keep: folder for maps and masks of `maps` evenly spaced samples, as `<stem>_map.png` and `<stem>_mask.png`.
        maps: how many.
        empty_class: images of this class have no ROI, whatever their mask says.
        floors: measure the methods that learn nothing too, on images as this model sees them; None leaves them out.
        progress: show a bar.
    """
    own = partial(LocalizationMetrics, table.classes)
    beside = {name: _floor(name, floors) for name in FLOORS} if floors is not None else {}
    measured = Measured(own(), own(), own(), {name: own() for name in beside})
    kept = {int(i) for i in np.linspace(0, len(samples) - 1, min(maps, len(samples))).round()} if keep else set()
    for i, sample in enumerate(tqdm(samples, "evaluating", disable=not progress)):
        pixels = cache(partial(read_pixels, sample))
        result = localizes(sample, pixels)
        truth = _truth(sample, result.mask.shape, empty_class, measured)
        _add(measured, table, sample, result, truth)
        if truth is not None:
            for name, floor in beside.items():
                low = floor(sample, pixels)
                measured.floors[name].update(
                    sample.name, table.label_indices(sample), None, low.roi, low.mask, truth, group=sample.group
                )
        if keep is not None and i in kept:
            measured.files[sample.name] = stem = f"{i:05d}_{sample.image.stem}"
            write_map(keep / f"{stem}_map.png", result.roi)
            write_mask(keep / f"{stem}_mask.png", result.mask)
            if sample.x is not None:
                _write_region(keep / stem, pixels(), truth)
    return measured


class Predicts(Protocol):
    """Anything that can stand for a model: a `Predictor`, or an average of several."""

    def predict(
        self,
        image: NDArray[np.uint8],
        *,
        mpp: float | None = None,
        threshold: float | None = None,
        map_class: str | None = None,
        per_image: bool = False,
        tissue: bool = True,
    ) -> Localization:
        """See `Predictor.predict`."""
        ...


def model_localizes(
    model: Predicts,
    threshold: float | None = None,
    map_class: str | None = None,
    *,
    per_image: bool = False,
    tissue: bool = True,
) -> Localizes:
    """A model as something that localizes in samples; `per_image` adds the map by the papers' rule."""
    asked: dict[str, Any] = {
        "threshold": threshold, "map_class": map_class, "per_image": per_image, "tissue": tissue,
    }  # fmt: skip
    return lambda sample, pixels: model.predict(pixels(), mpp=sample_mpp(sample), **asked)


def _floor(name: str, config: ModelConfig) -> Localizes:
    """All-ones, or the stain contrast stretched in every image, as the model of `config` would see the images."""
    # Without an extent: in one piece, and not on tissue alone.
    own = ModelConfig(name, config.classes, input=config.input, mpp=config.mpp)
    method = build_method(own, load_backbone=False).eval()
    return model_localizes(Predictor(method, own, range="image" if method.unit == "score" else None), threshold=0.5)


def _add(
    measured: Measured, table: Table, sample: Sample, result: Localization, truth: NDArray[np.bool_] | None
) -> None:
    label, name, group = table.label_indices(sample), sample.name, sample.group
    measured.metrics.update(name, label, result.probabilities, result.roi, result.mask, truth, group=group)
    if result.argmax_mask is not None:
        measured.argmax.update(name, label, mask_pred=result.argmax_mask, mask_true=truth, group=group)
    if result.image_roi is not None:
        roi = result.image_roi
        measured.per_image.update(name, label, None, roi, roi >= 0.5, truth, group=group)
    if result.range is not None:
        measured.ranges.add(result.range)
        measured.scales[result.scale] = measured.scales.get(result.scale, 0) + 1
    if result.map_class is not None:
        measured.map_classes.add(result.map_class)
    for note in result.notes:
        measured.notes[note] = measured.notes.get(note, 0) + 1


def _truth(
    sample: Sample, shape: tuple[int, ...], empty_class: str | None, measured: Measured
) -> NDArray[np.bool_] | None:
    """The truth of a sample, or None where it is unknown.

    Raises:
        InputError: mask and image differ in size.
    """
    without_roi = empty_class is not None and sample.labels == (empty_class,)
    if sample.mask is None:
        return np.zeros(shape, dtype=bool) if without_roi else None
    mask = read_truth(sample)
    assert mask is not None
    if mask.shape != shape:
        raise InputError(
            f"{sample.mask}: has {mask.shape[1]}x{mask.shape[0]} pixels, its image {shape[1]}x{shape[0]}; "
            "give the mask at the image's resolution"
        )
    if without_roi and mask.any():
        measured.overruled += 1
        return np.zeros(shape, dtype=bool)
    return mask


def _write_region(stem: Path, pixels: NDArray[np.uint8], truth: NDArray[np.bool_] | None) -> None:
    """Keep what the report shows of a slide's region: `STEM_image.png` and `STEM_truth.png`."""
    write_picture(stem.with_name(f"{stem.name}_image.png"), pixels)
    if truth is not None:
        write_mask(stem.with_name(f"{stem.name}_truth.png"), truth)
