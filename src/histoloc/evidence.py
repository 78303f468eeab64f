"""The range of a method's evidence, learned once from training images, so that tiles of a slide can be compared."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from histoloc.checkpoint import EvidenceRange, load_model, read_model_config, save_model
from histoloc.data.pixels import read_pixels
from histoloc.data.table import Sample, Table
from histoloc.predict import Predictor

MOST_IMAGES = 200


class GivesEvidence(Protocol):
    """What `learn_range` needs of a `Predictor`."""

    def evidence(self, tiles: Sequence[NDArray[np.uint8]], /) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Class probabilities (B, K) and evidence (B, C, h, w) of images of one size."""
        ...


class Extent(NamedTuple):
    """Of each of an image's C maps of evidence."""

    least: NDArray[np.float64]  # (C,)
    mean: NDArray[np.float64]  # (C,)
    most: NDArray[np.float64]  # (C,)


def learn_range(
    predictor: GivesEvidence, samples: Sequence[Sample], classes: Sequence[str], *, progress: bool = False
) -> EvidenceRange | None:
    """Learn where evidence begins and where it is complete, from images and their labels; no mask is looked at.

    Where each class c has a map, that of images of other classes shows what is no evidence of c: low is the median of
    their maps' means. Images of class c show it somewhere: high is the median of their maps' maxima. A map that all
    classes share has no images without evidence: low is the median of the images' minima, high that of their maxima.

    Args:
        predictor: gives the evidence.
        samples: training samples; at most 200 are looked at, evenly spaced.
        classes: names of the classes in the order of the maps.
        progress: show a bar.

    Returns:
        The range; None, with the reason said aloud, where some high is not above its low or a class has no images.

    Raises:
        InputError: an image cannot be read.
    """
    chosen = evenly(samples, MOST_IMAGES)
    extents: list[Extent] = []
    for sample in tqdm(chosen, "range of evidence", disable=not progress, leave=False):
        maps = predictor.evidence([read_pixels(sample)])[1][0].astype(np.float64)
        flat = maps.reshape(len(maps), -1)
        extents.append(Extent(flat.min(axis=1), flat.mean(axis=1), flat.max(axis=1)))
    if not extents:
        return _no_range("there are no training images")
    least, mean, most = (np.stack(part) for part in zip(*extents, strict=True))
    if least.shape[1] == 1:
        low, high = np.median(least, axis=0), np.median(most, axis=0)
    else:
        own = np.array([[sample.label == name for name in classes] for sample in chosen])
        if alone := [name for name, count in zip(classes, own.sum(axis=0), strict=True) if count in (0, len(own))]:
            return _no_range(f"images of {alone[0]} or of any other class are absent")
        low = np.array([np.median(mean[~is_own, c]) for c, is_own in enumerate(own.T)])
        high = np.array([np.median(most[is_own, c]) for c, is_own in enumerate(own.T)])
    # False for NaN too.
    wide = np.isfinite(low) & np.isfinite(high) & (high > low)
    if len(wide) == 1 and not wide[0]:
        return _no_range("the training images show the same evidence everywhere")
    if not wide.all():
        flat = [name for name, is_wide in zip(classes, wide, strict=True) if not is_wide]
        return _no_range(f"images of {', '.join(flat)} show no more evidence of it than others")
    return EvidenceRange(tuple(low.tolist()), tuple(high.tolist()), len(chosen))


def keep_range(
    model: Path, table: Table, device: torch.device | str = "cpu", *, progress: bool = False
) -> EvidenceRange | None:
    """Learn the range of a model's evidence from the training split of a table, and write it into the model folder.

    Nothing is done where the method needs no range or the folder has one already.

    Args:
        model: the model folder, which is rewritten.
        table: its training images are looked at.
        device: where to compute.
        progress: show a bar.

    Returns:
        What the folder says now.
    """
    if (known := read_model_config(model).evidence_range) is not None:
        return known
    # The weights on disk, so that a resumed run learns the same bits.
    method, config = load_model(model)
    if method.evidence_is_roi:
        return None
    # Not table.split, which insists on samples: methods that learn nothing are trained without.
    samples = [sample for sample in table.samples if sample.split == "train"]
    found = learn_range(Predictor(method, config, device), samples, config.classes, progress=progress)
    if found is not None:
        save_model(model, method.state_dict(), dataclasses.replace(config, evidence_range=found))
    return found


def evenly(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` of the samples, evenly spaced, the first and the last among them."""
    if len(samples) <= count:
        return list(samples)
    return [samples[i] for i in np.linspace(0, len(samples) - 1, count).round().astype(int)]


def _no_range(reason: str) -> None:
    tqdm.write(
        f"note: no range of evidence was learned: {reason}; on a slide the slide's own range is taken", sys.stderr
    )
