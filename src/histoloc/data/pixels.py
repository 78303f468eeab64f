"""The pixels and the truth of a sample: an image file with its mask, or a region of a slide with its outlines."""

import os
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histoloc.data.images import image_size, read_image, read_mask
from histoloc.data.sample import OUTLINES, Sample
from histoloc.errors import InputError
from histoloc.slides.annotations import Annotations, rasterise, read_annotations
from histoloc.slides.reader import Slide, open_slide, stored_mpp

_OPEN_SLIDES = 8  # per process


def read_pixels(sample: Sample) -> NDArray[np.uint8]:
    """Read a sample's pixels.

    A region's `x` and `y` are pixels of level 0, its `width` and `height` pixels of the sample's `mpp`, at which it is
    read; without an `mpp`, of level 0.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: the file cannot be read, the slide does not have that scale, or the region leaves the slide.
    """
    if sample.x is None:
        return read_image(sample.image)
    slide, x, y, width, height, mpp = _region(sample)
    return slide.read(x, y, width, height, mpp)


def sample_size(sample: Sample) -> tuple[int, int]:
    """(H, W) in pixels of a sample, as `read_pixels` gives it; no pixels are decoded.

    Raises:
        InputError: the image is missing or its header cannot be read.
    """
    if sample.width is not None and sample.height is not None:
        return sample.height, sample.width
    width, height = image_size(sample.image)
    return height, width


def sample_mpp(sample: Sample) -> float | None:
    """Micrometres per pixel of a sample, as `read_pixels` gives it: of the table, else of the file; None where unknown.

    Raises:
        InputError: the slide of a region cannot be read.
    """
    if sample.mpp is not None:
        return sample.mpp
    if sample.x is not None:
        return _slide(sample.image, sample.slide_mpp, os.getpid()).mpp
    return _stored(sample.image, sample.image.stat().st_mtime_ns) if sample.image.is_file() else None


@lru_cache(maxsize=1 << 16)
def _stored(path: Path, changed: int) -> float | None:
    return stored_mpp(path)


def read_truth(sample: Sample) -> NDArray[np.bool_] | None:
    """Read a sample's ROI mask, or draw it from the slide's outlines (ASAP XML, GeoJSON); None where there is none.

    A mask file of a region has the region's own pixels.

    Returns:
        (H, W) bool.

    Raises:
        InputError: mask or outlines cannot be read.
    """
    if sample.mask is None:
        return None
    if sample.mask.suffix.lower() not in OUTLINES:
        return read_mask(sample.mask)
    slide, x, y, width, height, mpp = _region(sample)
    return rasterise(_outlines(sample.mask, slide.size, slide.bounds), x, y, width, height, mpp / slide.mpp)


def _region(sample: Sample) -> tuple[Slide, int, int, int, int, float]:
    x, y, width, height = sample.x, sample.y, sample.width, sample.height
    if x is None or y is None or width is None or height is None:
        raise InputError(f"{sample.name}: outlines need a region of a slide; fill the columns x, y, width and height")
    slide = _slide(sample.image, sample.slide_mpp, os.getpid())
    mpp = slide.mpp if sample.mpp is None else sample.mpp
    right, bottom = x + width * mpp / slide.mpp, y + height * mpp / slide.mpp
    if right > slide.width + 1 or bottom > slide.height + 1:
        raise InputError(
            f"{sample.name}: the region ends at {right:.0f}, {bottom:.0f} and the slide at {slide.width}, "
            f"{slide.height} (pixels of level 0); correct the table"
        )
    return slide, x, y, width, height, mpp


@lru_cache(maxsize=_OPEN_SLIDES)
def _slide(path: Path, mpp: float | None, process: int) -> Slide:
    slide = open_slide(path, mpp=mpp, option="slide_mpp in the table")
    for note in slide.notes:
        print(f"note: {note}", file=sys.stderr)
    return slide


@lru_cache(maxsize=_OPEN_SLIDES)
def _outlines(path: Path, size: tuple[int, int], bounds: tuple[int, int]) -> Annotations:
    return read_annotations(path, size=size, bounds=bounds)
