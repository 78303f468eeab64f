"""The Camelyon16-P512 protocol on one slide: scan it, draw from it, write its patches; each a task of `run_jobs`."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histoloc.data.images import write_mask, write_picture
from histoloc.datasets import patches
from histoloc.datasets.options import Sampling
from histoloc.errors import InputError
from histoloc.slides.annotations import CAMELYON_ROI, Annotations, rasterise, read_annotations
from histoloc.slides.reader import NEAR, Slide, open_slide
from histoloc.slides.tissue import protocol_tissue


@dataclass(frozen=True)
class View:
    """A slide in whole pixels of the working scale.

    Attributes:
        slide: the open slide.
        sampling: what is sampled.
        annotations: of its tumour; none on normal slides.
        mpp: the working scale, micrometres per pixel.
        downsample: pixels of level 0 per pixel of the working scale.
    """

    slide: Slide
    sampling: Sampling
    annotations: Annotations
    mpp: float
    downsample: float

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of the working scale; a fraction of a pixel at the edge is left out."""
        return math.floor(self.slide.width / self.downsample), math.floor(self.slide.height / self.downsample)

    def level0(self, x: float, y: float) -> tuple[int, int]:
        """The nearest pixel of level 0."""
        return round(x * self.downsample), round(y * self.downsample)

    def tissue(self, x: int, y: int, width: int, height: int) -> NDArray[np.bool_]:
        """Tissue of a region by its own thresholds, (height, width); x and y are pixels of level 0."""
        return protocol_tissue(self.slide.read(x, y, width, height, self.mpp))

    def tumour(self, x: int, y: int, width: int, height: int) -> NDArray[np.bool_]:
        """Tumour of a region as the protocol has it, (height, width); x and y are pixels of level 0."""
        published = self.sampling.protocol == "tmi"
        holes = "ignore" if published else "subtract"
        return rasterise(self.annotations, x, y, width, height, self.downsample, holes=holes, outlined=published)

    def result(self, **more: Any) -> dict[str, Any]:
        """What every task gives, and more."""
        return {"mpp": self.mpp, "downsample": self.downsample, "warnings": list(self.annotations.warnings), **more}


@contextmanager
def _view(item: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[View]:
    """Open the slide of an item, and its annotations; under `tmi` with their vertices rounded to whole pixels."""
    sampling, annotations = Sampling(**settings), Annotations(())
    with open_slide(Path(item["slide"]), mpp=item.get("slide_mpp"), option="--slide-mpp") as slide:
        if (path := item.get("annotations")) is not None:
            published = sampling.protocol == "tmi"
            annotations = read_annotations(Path(path), size=slide.size, roi=CAMELYON_ROI, rounded=published)
        mpp = slide.mpp if sampling.mpp is None else sampling.mpp
        yield View(slide, sampling, annotations, mpp, mpp / slide.mpp)


def scan_slide(item: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Find all tumour patches of a slide, before calibration.

    Each strip is read whole, because its tissue is judged by thresholds of its own; one is in memory at a time: about
    7 bytes per pixel, 150 MB for one of 512 x 40,000 pixels.

    Args:
        item: of a slide with annotations, see `ListedSlide.item`. So in the other tasks.
        settings: of `Sampling`.

    Returns:
        patches ([region, row, patch, x, y, tissue, tumour] each, x and y in pixels of level 0), mpp, downsample,
        repeated (patches at the same place as an earlier one, found from overlapping boxes and left out), warnings.

    Raises:
        InputError: slide or annotations cannot be read.
    """
    with _view(item, settings) as view:
        sampling = view.sampling

        def masks(strip: patches.Box) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
            region = (*view.level0(strip.left, strip.top), strip.right - strip.left, strip.bottom - strip.top)
            tumour = view.tumour(*region)
            # Without tumour no tissue makes a patch, and reading is what takes the time.
            return (view.tissue(*region), tumour) if tumour.any() else (tumour, tumour)

        boxes = patches.annotation_boxes(view.annotations.bounds() / view.downsample)
        limits = {"min_tissue": sampling.tissue, "p0": sampling.p0}
        scanned = list(patches.scan_boxes(boxes, masks, sampling.size, view.size, step=sampling.step, **limits))
        places: dict[tuple[int, int], list[float]] = {}
        for patch in scanned:
            place = view.level0(patch.x, patch.y)
            places.setdefault(place, [*patch[:3], *place, patch.tissue, patch.tumour])
        return view.result(patches=list(places.values()), repeated=len(scanned) - len(places))


def draw_slide(item: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Draw normal patches of a slide without tumour.

    Args:
        item: also `name`, which seeds the draw; `seed`; `wanted`, the number of patches.
        settings: of `Sampling`.

    Returns:
        patches ([x, y, tissue] each, x and y in pixels of level 0, in the order drawn; fewer than `wanted` where the
        slide has no more), mpp, downsample.

    Raises:
        InputError: the slide cannot be read.
    """
    with _view(item, settings) as view:
        sampling, size = view.sampling, view.sampling.size
        mpp = view.mpp * 2**sampling.coarse
        level = view.slide.levels[view.slide.level_for(mpp)]
        # A level near enough is read as it is, and its own scale is then the exact one.
        near = abs(level.mpp / mpp - 1) <= NEAR
        coarse = level.downsample / view.downsample if near else float(2**sampling.coarse)
        tissue = protocol_tissue(view.slide.thumbnail(mpp=mpp))
        cells = patches.normal_candidates(
            tissue, coarse, view.size, size, step=sampling.step, min_tissue=sampling.tissue
        )

        def share(cell: patches.Candidate) -> float:
            return float(view.tissue(*view.level0(cell.x, cell.y), size, size).mean())

        rng = patches.random_for(item["seed"], "normal", item["name"])
        sample = patches.draw_normals(cells, item["wanted"], share, sampling.tissue, rng)
        return view.result(patches=[[*view.level0(cell.x, cell.y), cell.tissue] for cell in sample])


def check_slide(item: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Open a slide, and its annotations where it has some, to see that patches of a list can be taken from it.

    Args:
        item: also `right` and `bottom`, where the last patch ends in pixels of level 0.
        settings: of `Sampling`.

    Returns:
        mpp, downsample and warnings.

    Raises:
        InputError: slide or annotations cannot be read, or a patch leaves the slide.
    """
    with _view(item, settings) as view:
        slide = view.slide
        if item["right"] > slide.width or item["bottom"] > slide.height:
            raise InputError(
                f"{slide.path}: patches of the list end at {item['right']}, {item['bottom']}, but the slide at "
                f"{slide.width}, {slide.height}; give the slides that the list was made from"
            )
        return view.result()


def write_slide(item: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write masks, and patches where asked for, of one slide.

    Args:
        item: also `patches`, for each: the file of the patch or None, the file of the mask or None, x, y (pixels of
            level 0), width, height (pixels of the working scale).
        settings: of `Sampling`.

    Returns:
        mpp, downsample and warnings.

    Raises:
        InputError: slide or annotations cannot be read, or a file cannot be written.
    """
    with _view(item, settings) as view:
        for patch, mask, x, y, width, height in item["patches"]:
            if patch is not None:
                write_picture(Path(patch), view.slide.read(x, y, width, height, view.mpp))
            if mask is not None:
                write_mask(Path(mask), view.tumour(x, y, width, height))
        return view.result()
