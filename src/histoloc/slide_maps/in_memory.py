"""An image in memory as a slide of one level, and what a model says of its tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histoloc.slide_maps.grid import TileGrid, tile_grid
from histoloc.slide_maps.infer import GivesEvidence, gather, probe
from histoloc.slide_maps.settings import TISSUE_MPP, Means
from histoloc.slides.reader import Slide
from histoloc.slides.tissue import tissue as find_tissue

OVERLAP = 0.25  # share of a tile that its neighbour sees too, as on slides


class ArraySource:
    """Pixels (H, W, 3) uint8 as an open file; see `histoloc.slides.formats.Source`."""

    format = "array"

    def __init__(self, pixels: NDArray[np.uint8], mpp: float) -> None:
        self.pixels = pixels
        self.sizes = [(pixels.shape[1], pixels.shape[0])]
        self.mpp: tuple[float, float] | None = (mpp, mpp)
        self.properties: dict[str, str] = {}

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """See `Source`."""
        return self.pixels[y : y + height, x : x + width]

    def close(self) -> None:
        """Nothing is open."""


class TileStore:
    """Class probabilities and evidence of tiles in memory, as `EvidenceFile` keeps them on disk."""

    def __init__(self) -> None:
        self._probabilities: list[NDArray[np.float32]] = []
        self._evidence: list[NDArray[np.float32]] = []

    @property
    def done(self) -> int:
        """How many tiles are known."""
        return sum(map(len, self._evidence))

    def done_in_batches(self, batch: int) -> int:
        """How many tiles lie in complete batches."""
        return self.done

    def truncate(self, number: int) -> None:
        """Nothing was left torn."""

    def append(self, probabilities: NDArray[np.floating], evidence: NDArray[np.floating]) -> None:
        """Take the next tiles: (b, K) and (b, C, n, n)."""
        self._probabilities.append(probabilities.astype(np.float32))
        self._evidence.append(evidence.astype(np.float32))

    def probabilities(self) -> NDArray[np.float32]:
        """(N, K) of all tiles."""
        return np.concatenate(self._probabilities)

    def read(self, indices: NDArray[np.integer]) -> NDArray[np.float32]:
        """Evidence (len(indices), C, n, n) of some tiles."""
        if len(self._evidence) > 1:
            self._evidence = [np.concatenate(self._evidence)]
        return self._evidence[0][indices]


def look_at_tiles(
    network: GivesEvidence, pixels: NDArray[np.uint8], mpp: float, seen: float, tile: int, *, tissue: bool
) -> tuple[TileGrid, TileStore, NDArray[np.bool_] | None]:
    """Cut an image into the tiles that its slide would have, and ask a network about each.

    Args:
        network: the model.
        pixels: (H, W, 3) uint8.
        mpp: of the pixels.
        seen: µm/px at which the network looks.
        tile: side of a tile in pixels of that scale.
        tissue: look at tissue alone, as on slides; where there is none, at the whole image.

    Returns:
        The grid, class probabilities and evidence of its tiles, and the tissue mask (h, w) bool over the image.
    """
    slide = Slide(Path("image"), mpp, opened=lambda _: ArraySource(pixels, mpp))
    at = max(TISSUE_MPP, slide.mpp)
    mask = find_tissue(slide, at) if tissue else None
    if mask is not None and not mask.any():
        mask = None
    _, cell = probe(network, tile)
    grid = tile_grid(slide, seen, tile, OVERLAP, cell, mask=mask, mask_mpp=at)
    store = TileStore()
    gather(slide, grid, network, store, Means(), precision="float32")
    return grid, store, mask
