"""What is learned after training: the range of a method's evidence, from training images without masks."""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from histoloc.data.pixels import read_pixels, sample_mpp
from histoloc.data.table import Sample, Table
from histoloc.maps import class_map, roi_at_stride
from histoloc.model_folder import LearnedRange, load_model, read_model_config, save_model
from histoloc.prediction import Predictor
from histoloc.scale import training_scale

MOST_IMAGES = 200
_QUANTILES = np.linspace(0, 1, 1001)


class Look(NamedTuple):
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
    classes = predictor.config.classes
    looks: list[list[Look]] = []
    chosen = of_every_class(samples, MOST_IMAGES)
    for sample in tqdm(chosen, "range of evidence", disable=not progress, leave=False):
        own = {classes.index(name) for name in sample.labels if name in classes}
        for c, look in enumerate(_looks(predictor, sample, own)):
            looks.extend([] for _ in range(c + 1 - len(looks)))
            if look is not None:
                looks[c].append(look)
    for c, own in enumerate(looks if len(looks) > 1 else []):
        if not own and c != predictor.calibration.empty:
            tqdm.write(
                f"note: class {classes[c]} has no training images; the range of its maps is that of the other classes",
                sys.stderr,
            )
    fitted = [_fit(own or [look for others in looks for look in others]) for own in looks]
    centre, slope, share = zip(*fitted, strict=True) if fitted else ((0.0,), (1.0,), (0.0,))
    return LearnedRange(tuple(centre), tuple(slope), tuple(share), len(chosen))


def keep_range(model: Path, table: Table, device: torch.device | str = "cpu", *, progress: bool = False) -> None:
    """Learn the range of a model from the training split of a table, and write it into the model folder.

    Nothing is done where the evidence is a probability or the folder has a range already. A folder of histoloc 0.1 also
    gets the scale of its training images.

    Args:
        model: the model folder, which is rewritten.
        table: its training images are looked at.
        device: where to compute.
        progress: show a bar.
    """
    config = read_model_config(model)
    if config.learned is not None:
        return
    # The weights on disk, so that a resumed run learns from the same ones.
    method, config = load_model(model)
    if config.extent is None:
        scale = training_scale(config.input, table)
        if scale.input == config.input:  # otherwise these weights saw images at other scales
            config = dataclasses.replace(config, mpp=scale.mpp, extent=scale.extent, shorter_side=scale.shorter_side)
            save_model(model, method.state_dict(), config)
    # Not table.split, which insists on samples: methods that learn nothing are trained without.
    samples = [sample for sample in table.samples if sample.split == "train"]
    if method.unit != "score":
        return
    if not samples:
        tqdm.write(
            "note: no range of evidence was learned, because the table has no training images; predictions need "
            "--range image",
            sys.stderr,
        )
        return
    predictor = Predictor(method, config, device, range="image")
    learned = learn_range(predictor, samples, progress=progress)
    save_model(model, method.state_dict(), dataclasses.replace(config, learned=learned))


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


def _looks(predictor: Predictor, sample: Sample, own: set[int]) -> list[Look | None]:
    """What an image shows of each of the C maps; None for classes that it does not have, or that have no ROI."""
    output = predictor.output_of(read_pixels(sample), sample_mpp(sample))
    calibration = dataclasses.replace(predictor.calibration, empty=None)
    looks: list[Look | None] = []
    for c in range(output.evidence.shape[1]):
        shared = output.evidence.shape[1] == 1
        with_roi = own - {predictor.calibration.empty}
        if not with_roi if shared else c not in with_roi:
            looks.append(None)
            continue
        label = torch.tensor([c])
        values = class_map(output.evidence, label)[0].double().cpu().numpy()
        share = float((roi_at_stride(output, label, calibration) >= 0.5).float().mean())
        looks.append(Look(np.quantile(values, _QUANTILES), share))
    return looks


def _fit(looks: Sequence[Look]) -> tuple[float, float, float]:
    """Centre, slope and share of ROI of images that count alike."""
    if not looks:
        return 0.0, 1.0, 0.0
    values = np.sort(np.concatenate([look.quantiles for look in looks]))
    share = float(np.mean([look.share for look in looks]))
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
