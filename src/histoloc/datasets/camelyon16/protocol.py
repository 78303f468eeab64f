"""The Camelyon16-P512 protocol on one slide: scan it, draw from it, write its patches; each a task of `run_jobs`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from histoloc.data.images import write_mask, write_picture
from histoloc.datasets.patches import (
    MIN_TISSUE,
    P0,
    P1,
    Box,
    Candidate,
    annotation_boxes,
    draw_normals,
    normal_candidates,
    random_for,
    scan_boxes,
)
from histoloc.errors import InputError
from histoloc.slides.annotations import Annotations, rasterise, read_annotations
from histoloc.slides.reader import NEAR, Slide, open_slide
from histoloc.slides.tissue import protocol_tissue

Protocol = Literal["tmi", "own"]


@dataclass(frozen=True)
class Sampling:
    """What is sampled, the same for all slides.

    Attributes:
        protocol: `tmi` as published: vertices rounded, outlines drawn along, holes ignored; `own`: a pixel is tumour
            if its centre is, and holes are no tumour.
        size: side of a patch in pixels of the working scale.
        stride: pixels from patch to patch; None for the size.
        mpp: working scale in micrometres per pixel; None for level 0 of each slide, whatever its scale.
        p0: smallest share of tumour, in (0, 1].
        p1: up to it all patches are kept, in [p0, 1].
        tissue: smallest share of tissue, in [0, 1].
        coarse: normal patches are searched on the slide reduced by 2^coarse.
    """

    protocol: Protocol = "tmi"
    size: int = 512
    stride: int | None = None
    mpp: float | None = None
    p0: float = P0
    p1: float = P1
    tissue: float = MIN_TISSUE
    coarse: int = 6

    def __post_init__(self) -> None:
        if self.protocol not in ("tmi", "own"):
            raise InputError(f"protocol {self.protocol}: there is no such protocol; write tmi or own")
        if self.size < 32 or self.step < 1:
            raise InputError(f"size {self.size}, stride {self.step}: give a size from 32 and a stride from 1")
        if self.mpp is not None and not 0 < self.mpp < math.inf:
            raise InputError(f"mpp {self.mpp:g}: give a positive number of micrometres per pixel")
        if not (0 < self.p0 <= self.p1 <= 1 and 0 <= self.tissue <= 1):
            raise InputError(
                f"p0 {self.p0:g}, p1 {self.p1:g}, tissue {self.tissue:g}: give shares with 0 < p0 <= p1 <= 1 and "
                f"tissue from 0 to 1"
            )
        if not 0 <= self.coarse <= 12:
            raise InputError(f"coarse {self.coarse}: give a level from 0 to 12")

    @property
    def step(self) -> int:
        """Pixels from patch to patch."""
        return self.size if self.stride is None else self.stride


class View:
    """A slide in whole pixels of the working scale.

    Attributes:
        mpp: the working scale, micrometres per pixel.
        downsample: pixels of level 0 per pixel of the working scale.
        size: (width, height) in pixels of the working scale; a fraction of a pixel at the edge is left out.
    """

    def __init__(self, slide: Slide, mpp: float | None) -> None:
        """Look at an open slide at `mpp`, or at its level 0."""
        self.slide = slide
        self.mpp = slide.mpp if mpp is None else mpp
        self.downsample = self.mpp / slide.mpp
        self.size = (math.floor(slide.width / self.downsample), math.floor(slide.height / self.downsample))

    def level0(self, position: float) -> int:
        """The nearest pixel of level 0."""
        return round(position * self.downsample)

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Pixels of a box of the working scale: (height, width, 3)."""
        return self.slide.read(self.level0(box.left), self.level0(box.top), box.width, box.height, self.mpp)

    def draw(self, annotations: Annotations, box: Box, protocol: Protocol) -> NDArray[np.bool_]:
        """Tumour of a box of the working scale: (height, width)."""
        x, y = self.level0(box.left), self.level0(box.top)
        return draw_tumour(annotations, x, y, box.width, box.height, self.downsample, protocol)

    def coarse_tissue(self, coarse: int) -> tuple[NDArray[np.bool_], float]:
        """Tissue of the whole slide reduced by 2^coarse, and the pixels of the working scale per pixel of it."""
        mpp = self.mpp * 2**coarse
        level = self.slide.levels[self.slide.level_for(mpp)]
        # A level near enough is read as it is, and its own scale is then the exact one.
        exact = level.downsample / self.downsample if abs(level.mpp / mpp - 1) <= NEAR else float(2**coarse)
        return protocol_tissue(self.slide.thumbnail(mpp=mpp)), exact


def read_outlines(path: Path, size: tuple[int, int], protocol: Protocol) -> Annotations:
    """Annotations of a slide of `size`; under `tmi` with their vertices rounded to whole pixels."""
    return read_annotations(path, size=size, rounded=protocol == "tmi")


def draw_tumour(
    annotations: Annotations, x: int, y: int, width: int, height: int, downsample: float, protocol: Protocol
) -> NDArray[np.bool_]:
    """Tumour of a region as the protocol has it; arguments as `rasterise`."""
    published = protocol == "tmi"
    return rasterise(
        annotations, x, y, width, height, downsample, holes="ignore" if published else "subtract", outlined=published
    )


def _open(item: Mapping[str, Any]) -> Slide:
    """Open the slide of an item; its `slide_mpp`, where it has one, is the scale of level 0."""
    return open_slide(Path(item["slide"]), mpp=item.get("slide_mpp"), option="--slide-mpp")


def scan_slide(item: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Find all tumour patches of a slide, before calibration.

    Each strip is read whole, because its tissue is judged by thresholds of its own; one is in memory at a time: about
    7 bytes per pixel, 150 MB for one of 512 x 40,000 pixels.

    Args:
        item: `slide` and `annotations`, paths; for a slide that does not say its scale also `slide_mpp`, the
            micrometres per pixel of level 0. So in the other tasks.
        settings: of `Sampling`.

    Returns:
        patches ([region, row, patch, x, y, tissue, tumour] each, x and y in pixels of level 0), mpp, downsample,
        repeated (patches at the same place as an earlier one, found from overlapping boxes and left out), warnings.

    Raises:
        InputError: slide or annotations cannot be read.
    """
    sampling = Sampling(**settings)
    with _open(item) as slide:
        view = View(slide, sampling.mpp)
        annotations = read_outlines(Path(item["annotations"]), slide.size, sampling.protocol)

        def masks(strip: Box) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
            tumour = view.draw(annotations, strip, sampling.protocol)
            # Without tumour no tissue makes a patch, and reading is what takes the time.
            return (protocol_tissue(view.read(strip)), tumour) if tumour.any() else (tumour, tumour)

        found = list(
            scan_boxes(
                annotation_boxes(annotations.bounds() / view.downsample),
                masks,
                sampling.size,
                sampling.size,
                view.size,
                step=(sampling.step, sampling.step),
                min_tissue=sampling.tissue,
                p0=sampling.p0,
            )
        )
        places: dict[tuple[int, int], list[float]] = {}
        for patch in found:
            x, y = view.level0(patch.x), view.level0(patch.y)
            places.setdefault((x, y), [patch.region, patch.row, patch.patch, x, y, patch.tissue, patch.tumour])
    return {
        "patches": list(places.values()),
        "mpp": view.mpp,
        "downsample": view.downsample,
        "repeated": len(found) - len(places),
        "warnings": list(annotations.warnings),
    }


def draw_slide(item: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Draw normal patches of a slide without tumour.

    Args:
        item: `slide`, its path; `name`, which seeds the draw; `seed`; `wanted`, the number of patches.
        settings: of `Sampling`.

    Returns:
        patches ([x, y, tissue] each, x and y in pixels of level 0, in the order drawn; fewer than `wanted` where the
        slide has no more), candidates (number of cells of the coarse grid), mpp, downsample.

    Raises:
        InputError: the slide cannot be read.
    """
    sampling = Sampling(**settings)
    side = sampling.size
    with _open(item) as slide:
        view = View(slide, sampling.mpp)
        tissue, downsample = view.coarse_tissue(sampling.coarse)
        candidates = normal_candidates(
            tissue,
            downsample,
            view.size,
            (side, side),
            step=(sampling.step, sampling.step),
            min_tissue=sampling.tissue,
        )

        def accept(cell: Candidate) -> float | None:
            found = float(protocol_tissue(view.read(Box(cell.x, cell.y, cell.x + side, cell.y + side))).mean())
            return found if found >= sampling.tissue else None

        drawn = draw_normals(candidates, item["wanted"], accept, random_for(item["seed"], "normal", item["name"]))
    return {
        "patches": [[view.level0(cell.x), view.level0(cell.y), cell.tissue] for cell in drawn],
        "candidates": len(candidates),
        "mpp": view.mpp,
        "downsample": view.downsample,
    }


def look_at_slide(item: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Open a slide, and its annotations where it has some, to see that patches of a list can be taken from it.

    Args:
        item: `slide` and `annotations` (or None), paths; `right` and `bottom`, where the last patch ends in pixels
            of level 0.
        settings: of `Sampling`.

    Returns:
        mpp, downsample and warnings, as `scan_slide`.

    Raises:
        InputError: slide or annotations cannot be read, or a patch leaves the slide.
    """
    sampling = Sampling(**settings)
    with _open(item) as slide:
        view = View(slide, sampling.mpp)
        if item["right"] > slide.width or item["bottom"] > slide.height:
            raise InputError(
                f"{slide.path}: patches of the list end at {item['right']}, {item['bottom']}, but the slide at "
                f"{slide.width}, {slide.height}; give the slides that the list was made from"
            )
        warnings: tuple[str, ...] = ()
        if item["annotations"] is not None:
            warnings = read_outlines(Path(item["annotations"]), slide.size, sampling.protocol).warnings
    return {"mpp": view.mpp, "downsample": view.downsample, "warnings": list(warnings)}


def write_slide(item: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write masks, and patches where asked for, of one slide.

    Args:
        item: `slide` and `annotations` (or None), paths; `patches`, for each: the file of the patch or None, the
            file of the mask or None, x, y (pixels of level 0), width, height (pixels of the working scale).
        settings: of `Sampling`.

    Returns:
        written, the number of files.

    Raises:
        InputError: slide or annotations cannot be read, or a file cannot be written.
    """
    sampling = Sampling(**settings)
    written = 0
    with _open(item) as slide:
        view = View(slide, sampling.mpp)
        annotations = None
        if item["annotations"] is not None:
            annotations = read_outlines(Path(item["annotations"]), slide.size, sampling.protocol)
        for patch, mask, x, y, width, height in item["patches"]:
            if patch is not None:
                write_picture(Path(patch), slide.read(x, y, width, height, view.mpp))
                written += 1
            if mask is not None and annotations is not None:
                drawn = draw_tumour(annotations, x, y, width, height, view.downsample, sampling.protocol)
                write_mask(Path(mask), drawn)
                written += 1
    return {"written": written}
