"""What is learned after training: the range of evidence, without masks, and where asked for the threshold, by masks."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from histoloc.config import ThresholdRule
from histoloc.data.pixels import read_pixels, sample_mpp
from histoloc.data.table import Sample, Table
from histoloc.errors import InputError
from histoloc.maps import class_map, roi_at_stride
from histoloc.measurement import measure, model_localizes
from histoloc.model_folder import LearnedRange, Threshold, load_model, save_model
from histoloc.options import MapOptions
from histoloc.prediction import Predictor
from histoloc.progress import Bar
from histoloc.scale import training_scale
from histoloc.types import Output

MOST_IMAGES = 200
_QUANTILES = np.linspace(0, 1, 1001)


class ImageEvidence(NamedTuple):
    """What one training image shows of a class.

    Attributes:
        quantiles: (1001,) of the evidence for the class, equally spaced.
        share: of the image that is ROI by the per-image rule, in [0, 1].
    """

    quantiles: NDArray[np.float64]
    share: float


def learn_range(predictor: Predictor, samples: Sequence[Sample], *, progress: bool = False) -> LearnedRange:
    """Learn an affine map per class of evidence, by labels and by quantiles; no mask is looked at.

    Of each class c (of all images where classes share a map) the images with the label c are looked at. By the papers'
    rule, stretched in every image, a share s of them is ROI. The map is sigmoid(w (e - m)), where m is the 1 - s
    quantile of their evidence, so that the same share is ROI in all images together, and w = 2 log 3 / (q75 - q25): at
    half of the quartiles' distance from m the map is 0.25 and 0.75.

    Args:
        predictor: the trained method.
        samples: training samples; at most 200 of them, evenly spaced within their classes, are looked at.
        progress: show a bar.

    Raises:
        InputError: an image cannot be read.
    """
    classes, empty = predictor.config.classes, predictor.calibration.empty
    by_class: dict[int, list[ImageEvidence]] = {}
    images = of_every_class(samples, MOST_IMAGES)
    for sample in Bar(images, "range of evidence", disable=not progress, leave=False):
        own = {classes.index(name) for name in sample.labels if name in classes} - {empty}
        output = predictor.output_of(read_pixels(sample), sample_mpp(sample))
        maps = output.evidence.shape[1]
        for c in range(maps):
            own_evidence = by_class.setdefault(c, [])
            if c in own or (maps == 1 and own):
                own_evidence.append(_image_evidence(predictor, output, c))
    for c in [c for c in by_class if not by_class[c] and len(by_class) > 1 and c != empty]:
        _note(f"class {classes[c]} has no training images; the range of its maps is that of the other classes")
    every = [one for others in by_class.values() for one in others]
    fitted = [_fit(own or every) for own in by_class.values()]
    centre, slope, share = zip(*fitted, strict=True) if fitted else ((0.0,), (1.0,), (0.0,))
    return LearnedRange(tuple(centre), tuple(slope), tuple(share), len(images))


def calibrate(
    model: Path,
    table: Table,
    threshold: ThresholdRule = "fixed",
    device: torch.device | str = "cpu",
    *,
    progress: bool = False,
) -> None:
    """Learn the range of a model from the training images of a table, and choose its threshold where that is asked for.

    Both are written into the model folder; what it has already is left as it is. A folder of histoloc 0.1 also gets the
    scale of its training images.

    Args:
        model: the model folder, which is rewritten.
        table: its training images are looked at, without their masks; for `valid` also its validation split.
        threshold: `valid` cuts the maps where the mean of F1⁺ and F1⁻ on the validation masks is highest; of 0, 0.01,
            ..., 1, and of equal ones the lowest.
        device: where to compute.
        progress: show a bar.

    Raises:
        InputError: the validation masks hold no ROI, or nothing else.
    """
    # The weights on disk, so that a resumed run learns from the same ones.
    method, config = load_model(model)
    begun = config
    if config.learned is None and config.extent is None:
        scaled, _ = training_scale(config, table)
        if scaled.input == config.input:  # otherwise these weights saw images at other scales
            config = scaled
    if config.learned is None and method.unit == "score":
        # Not table.split, which insists on samples: methods that learn nothing are trained without.
        samples = [sample for sample in table.samples if sample.split == "train"]
        if samples:
            predictor = Predictor(method, config, device, range="image")
            config = replace(config, learned=learn_range(predictor, samples, progress=progress))
        else:
            _note("no range of evidence was learned: the table has no training images; predictions need --range image")
    # After the range: it is chosen on the maps that it will cut.
    if threshold == "valid" and config.threshold.rule != "valid":
        config = replace(config, threshold=best_threshold(Predictor(method, config, device), table))
    if config != begun:
        save_model(model, method.state_dict(), config)


def share_shift(before: Predictor, after: Predictor, samples: Sequence[Sample]) -> float:
    """What to add to the scores of a model, so that the same share of pixels is ROI as by another one.

    Args:
        before: the other one, whose evidence is a logit, as that of `after`.
        after: the model.
        samples: at most 200 of them, evenly spaced, are looked at, without labels and masks; each counts alike.

    Raises:
        InputError: an image cannot be read.
    """
    shares, values = [], []
    for sample in evenly(samples, MOST_IMAGES):
        pixels, mpp = read_pixels(sample), sample_mpp(sample)
        shares.append(float((before.output_of(pixels, mpp).evidence >= 0).float().mean()))
        values.append(np.quantile(after.output_of(pixels, mpp).evidence.double().cpu().numpy(), _QUANTILES))
    return -float(np.quantile(np.concatenate(values), 1 - np.mean(shares)))


def best_threshold(predictor: Predictor, table: Table) -> Threshold:
    """Where the mean of F1⁺ and F1⁻ on the validation masks is highest; see `calibrate`."""
    samples, localizes = table.split("valid"), model_localizes(predictor, MapOptions(threshold=0.5))
    metrics = measure(localizes, table, samples, empty_class=predictor.config.empty_class).metrics
    best = metrics.compute(bootstrap=0).oracle_threshold.value
    if best is None:
        raise InputError(
            f"{table.path}: --threshold valid needs both ROI and background in the masks of split 'valid'; correct the "
            "masks, or evaluate the model as it is, cut at 0.5"
        )
    masks = sum(sample.mask is not None for sample in samples)
    return Threshold("valid", best, masks, predictor.calibration.range)


def of_every_class(samples: Sequence[Sample], count: int) -> list[Sample]:
    """About `count` of the samples, evenly spaced within each class, so that rare classes are looked at too."""
    labels = sorted({sample.label for sample in samples})
    if len(samples) <= count or not labels:
        return list(samples)
    share = max(1, count // len(labels))
    return [one for label in labels for one in evenly([s for s in samples if s.label == label], share)]


def evenly(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` of the samples, evenly spaced, the first and the last among them."""
    if len(samples) <= count:
        return list(samples)
    return [samples[i] for i in np.linspace(0, len(samples) - 1, count).round().astype(int)]


def _image_evidence(predictor: Predictor, output: Output, c: int) -> ImageEvidence:
    """What an image shows of class c."""
    label = torch.tensor([c])
    values = class_map(output.evidence, label)[0].double().cpu().numpy()
    share = float((roi_at_stride(output, label, replace(predictor.calibration, empty=None)) >= 0.5).float().mean())
    return ImageEvidence(np.quantile(values, _QUANTILES), share)


def _note(text: str) -> None:
    tqdm.write(f"note: {text}", sys.stderr)


def _fit(images: Sequence[ImageEvidence]) -> tuple[float, float, float]:
    """Centre, slope and share of ROI of images that count alike."""
    if not images:
        return 0.0, 1.0, 0.0
    values = np.sort(np.concatenate([image.quantiles for image in images]))
    share = float(np.mean([image.share for image in images]))
    centre = float(np.quantile(values, 1 - share))
    beyond, within = np.mean(values >= centre) - share, share - np.mean(values > centre)
    spread = _spread(values)
    if beyond > within:
        # Equal evidence over much of the images, as the zeros of a ReLU: without it the share is nearer.
        higher = values[values > centre]
        centre = float((centre + higher[0]) / 2) if higher.size else centre + spread
    return centre, 2 * math.log(3) / spread, share


def _spread(values: NDArray[np.float64]) -> float:
    """Distance of the quartiles, or of wider quantiles where these are equal; 1 where all values are."""
    for tail in (0.25, 0.1, 0.02, 0.0):
        low, high = np.quantile(values, (tail, 1 - tail))
        if high > low:
            return float(high - low)
    return 1.0
