"""What is asked of a model on slides: settings that change the result, and means that do not."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

from histoloc.errors import InputError
from histoloc.slide_maps.grid import SMALLEST_TILE
from histoloc.types import Range

WORK = "work"  # in the folder of a slide, for as long as it is not done
TILE_STEP = 16  # working pixels; sides of tiles are multiples of it
TISSUE_MPP = 8.0  # of the tissue mask
Precision = Literal["auto", "float32", "bf16"]


@dataclass(frozen=True)
class Settings:
    """What decides the result, the same for all slides of a folder.

    Attributes:
        model: the model folder, absolute.
        weights_sha256: of its weights, so that another model of that name is noticed.
        mpp: working scale in micrometres per pixel, at which tiles are read.
        tile: side of a tile in pixels of the working scale, a multiple of 16.
        overlap: share of a tile that its neighbour sees too, in [0, 0.9].
        cell: side of a pixel of the map in pixels of the working scale; 0 for the network's own stride, from 4.
        threshold: where the map is cut, in [0, 1]; None for what the model folder says.
        empty_class: name of the class without ROI (normal tissue), or None.
        range: how evidence becomes a map in [0, 1]: probability or learned; None for the model's own.
        map_class: the class whose map is made; None for the slide's own.
        tissue: look at tissue alone; otherwise at the whole slide.
        min_area_mm2: smaller regions get no outline.
        precision: of the network; auto is bf16 on a GPU that has it, float32 elsewhere.
    """

    model: str
    weights_sha256: str
    mpp: float
    tile: int = 512
    overlap: float = 0.25
    cell: int = 0
    threshold: float | None = None
    empty_class: str | None = None
    range: Range | None = None
    map_class: str | None = None
    tissue: bool = True
    min_area_mm2: float = 0.001
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.mpp < math.inf:
            raise InputError(f"--mpp {self.mpp:g}: give a positive number of micrometres per pixel")
        if self.tile < SMALLEST_TILE or self.tile % TILE_STEP:
            # Of a prime number of pixels, for one, nothing but the whole tile could be a cell of the map.
            nearest = max(SMALLEST_TILE, round(self.tile / TILE_STEP) * TILE_STEP)
            raise InputError(
                f"--tile {self.tile}: give a multiple of {TILE_STEP} from {SMALLEST_TILE} up, as {nearest}"
            )
        if self.range == "image":
            raise InputError(
                "--range image: stretches every image to its own least and greatest evidence, so that each tile of a "
                "slide would show ROI and no two could be compared; leave --range out"
            )
        if not 0 <= self.overlap <= 0.9:
            raise InputError(f"--overlap {self.overlap:g}: give the share of a tile's side, from 0 to 0.9")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold:g}: give a number from 0 to 1")
        if not 0 <= self.min_area_mm2 < math.inf:
            raise InputError(f"--min-area {self.min_area_mm2:g}: give an area in mm² from 0 up")


@dataclass(frozen=True)
class Means:
    """What the work is done with; the result does not depend on it, but for rounding.

    Attributes:
        device: auto, cpu, cuda, cuda:1, mps.
        batch: tiles at a time, from 1; None for 2 on a CPU, whose caches hold no more, and 16 elsewhere.
        readers: threads that read tiles; None for half as many as there are cores, at most 8.
        progress: show a bar over the tiles of each slide.
    """

    device: str = "auto"
    batch: int | None = None
    readers: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        for name, number in (("--batch", self.batch), ("--readers", self.readers)):
            if number is not None and number < 1:
                raise InputError(f"{name} {number}: give a whole number from 1")

    def batch_on(self, device: str) -> int:
        """Tiles at a time on a kind of device, such as cpu or cuda."""
        return self.batch or (2 if device == "cpu" else 16)

    @property
    def threads(self) -> int:
        """How many of them read tiles."""
        return self.readers or max(1, min(8, (os.cpu_count() or 2) // 2))
