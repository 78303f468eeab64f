"""Tiles through the network, while the next ones are being read, and the file that keeps their evidence."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from histoloc.errors import InputError
from histoloc.maps import place
from histoloc.slides.grid import TileGrid, tile_grid
from histoloc.slides.reader import Slide
from histoloc.slides.tissue import tissue as find_tissue

Pixels = NDArray[np.uint8]
Evidence = tuple[NDArray[np.float32], NDArray[np.float32]]  # probabilities (B, K), evidence (B, C, n, n)

TISSUE_MPP = 8.0  # of the tissue mask
OVERLAP = 0.25  # share of a tile that its neighbour sees too
_FINEST_CELL = 4  # working pixels
_AHEAD = 2  # batches, or tiles for each reader, that are read ahead at most


class Network(NamedTuple):
    """A model as it is needed here.

    Attributes:
        evidence: tiles of one size, each (H, W, 3) uint8 -> class probabilities (B, K) and evidence (B, C, h, w).
        stride: pixels of a tile per position of its evidence.
        batch: tiles that it is given at a time.
    """

    evidence: Callable[[Sequence[Pixels]], Evidence]
    stride: int
    batch: int

    def probe(self, tile: int) -> tuple[int, int]:
        """What the model gives for a tile of this side in pixels.

        Returns:
            The number of maps, and working pixels per position of the evidence: at least 4, and the nearest divisor of
            the tile where the network's stride does not divide it.
        """
        with _enough_memory(1, tile):
            _, values = self.evidence([np.full((tile, tile, 3), 255, np.uint8)])
        cell = max(_FINEST_CELL, tile / values.shape[-1])
        divisors = [side for side in range(_FINEST_CELL, tile + 1) if tile % side == 0]
        return values.shape[1], min(divisors, key=lambda side: abs(np.log(side / cell)))


def evidence_of_tiles(
    slide: Slide, grid: TileGrid, network: Network, first: int = 0, readers: int | None = None
) -> Generator[Evidence, None, None]:
    """What a network says of the tiles of a grid, batch by batch, brought to the cells of the map.

    Args:
        slide: where tiles are read.
        grid: which tiles.
        network: the model.
        first: the tile to begin with. Of a multiple of the batch, the batches are those of a call that began with 0.
        readers: threads that read tiles; None for half as many as there are cores, at most 8.

    Raises:
        InputError: damaged pixels, or too little memory for a batch.
    """
    readers = readers or max(1, min(8, (os.cpu_count() or 2) // 2))
    tiles = _read_ahead(slide, grid, first, readers, _AHEAD * max(network.batch, readers))
    with closing(tiles):  # no thread reads on when the slide is closed
        while batch := list(islice(tiles, network.batch)):
            with _enough_memory(len(batch), grid.tile):
                probabilities, values = network.evidence(batch)
            yield probabilities, on_cells(values, network.stride, grid.tile, grid.side)


def _read_ahead(slide: Slide, grid: TileGrid, first: int, readers: int, most: int) -> Generator[Pixels, None, None]:
    """Tiles in the grid's order; at most `most` of them wait."""
    pending: deque[Future[Pixels]] = deque()
    pool = ThreadPoolExecutor(readers)
    try:
        for x, y in grid.positions[first:] * grid.downsample:
            pending.append(pool.submit(slide.read, x, y, grid.tile, grid.tile, grid.mpp))
            if len(pending) > most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def on_cells(values: NDArray[np.float32], stride: int, tile: int, side: int) -> NDArray[np.float32]:
    """Bring evidence from the network's positions to the map's cells: by area means, or bilinearly where it is coarser.

    Args:
        values: (B, C, h, w); position i begins at pixel i x stride, and the last one may reach beyond the tile.
        stride: pixels per position.
        tile: side of the tile in pixels.
        side: cells of a tile.

    Returns:
        (B, C, side, side).
    """
    if values.shape[-2:] == (side, side) and stride * side == tile:
        return values
    positions = torch.from_numpy(np.ascontiguousarray(values))
    if stride * values.shape[-1] != tile:
        positions = place(positions, stride, (tile, tile))
    if min(positions.shape[-2:]) >= side:
        return functional.adaptive_avg_pool2d(positions, side).numpy()
    return functional.interpolate(positions, size=(side, side), mode="bilinear", align_corners=False).numpy()


@contextmanager
def _enough_memory(batch: int, tile: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # PyTorch has no class of its own for want of memory on a CPU
        out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not out_of_memory:
            raise
        remedy = "--batch or --tile" if batch > 1 else "--tile"
        raise InputError(
            f"there is not enough memory for {batch} tiles of {tile} px at a time; choose a smaller {remedy}"
        ) from error


class EvidenceFile:
    """Class probabilities and evidence of tiles: records of one size, appended in the order of the grid.

    A record is little-endian float32: K probabilities, then C x side x side of evidence. The file's name says whose
    the records are; a torn one at its end, and those of an incomplete batch, are made again. One process at a time
    may write.

    Args:
        folder: where the file lies; it is made when absent, and emptied of what is of another fingerprint.
        fingerprint: of everything that the records depend on: slide, model, grid.
        tiles: how many records there will be.
        batch: that the network is given at a time.
        shape: K, C and side.

    Attributes:
        done: how many tiles are complete.

    """

    def __init__(self, folder: Path, fingerprint: str, tiles: int, batch: int, shape: tuple[int, int, int]) -> None:
        classes, self.maps, side = shape
        self.path = folder / f"evidence-{fingerprint}.bin"
        self._record = np.dtype([("probabilities", "<f4", (classes,)), ("evidence", "<f4", (self.maps, side, side))])
        folder.mkdir(parents=True, exist_ok=True)
        others = [file for file in folder.glob("*.bin") if file != self.path]
        if any(file.stat().st_size for file in others):
            text = f"note: {folder}: was begun on another device, in another precision or of another slide file"
            print(f"{text}; its tiles are made again", file=sys.stderr)
        for file in others:
            file.unlink()
        with self.path.open("ab") as file:
            complete = file.tell() // self._record.itemsize
            self.count = complete if complete == tiles else complete // batch * batch
            file.truncate(self.count * self._record.itemsize)

    def append(self, probabilities: NDArray[np.floating], evidence: NDArray[np.floating]) -> None:
        """Write the records of the next tiles through to the system: killed afterwards, none of them is lost.

        Args:
            probabilities: (b, K) float32.
            evidence: (b, C, side, side) float32, any range.

        Raises:
            InputError: a value is not finite.
        """
        if not (np.isfinite(probabilities).all() and np.isfinite(evidence).all()):
            raise InputError(
                f"{self.path}: the model's values are not finite for tiles from {self.count} on; copy its folder "
                f"again, or give --precision float32"
            )
        records = np.empty(len(evidence), self._record)
        records["probabilities"], records["evidence"] = probabilities, evidence
        with self.path.open("ab") as file:
            file.write(records.tobytes())
        self.count += len(evidence)

    def probabilities(self) -> NDArray[np.float32]:
        """(done, K) class probabilities."""
        step = 256  # records, so that the evidence beside them takes little memory
        starts = range(0, max(1, self.count), step)
        parts = [self._read(start, start + step)["probabilities"].copy() for start in starts]
        return np.concatenate(parts)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Evidence of the tiles from `start` to `stop`: (stop - start, C, side, side); read, not mapped into memory."""
        return self._read(start, stop)["evidence"]

    def _read(self, start: int, stop: int) -> NDArray[np.void]:
        return np.fromfile(self.path, self._record, stop - start, offset=start * self._record.itemsize)


class ArraySource:
    """Pixels (H, W, 3) uint8 as an open file; see `histoloc.slides.formats.Source`."""

    format = "array"

    def __init__(self, pixels: Pixels, mpp: float) -> None:
        self.pixels = pixels
        self.sizes = [(pixels.shape[1], pixels.shape[0])]
        self.mpp: tuple[float, float] | None = (mpp, mpp)
        self.properties: dict[str, str] = {}

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """See `Source`."""
        return self.pixels[y : y + height, x : x + width]

    def close(self) -> None:
        """Nothing is open."""


def evidence_of_image(
    network: Network, pixels: Pixels, mpp: float, working_mpp: float, tile: int, *, tissue: bool
) -> tuple[TileGrid, NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_] | None]:
    """Cut an image into the tiles that its slide would have, and ask a network about each.

    Args:
        network: the model.
        pixels: (H, W, 3) uint8.
        mpp: of the pixels.
        working_mpp: µm/px at which the network looks.
        tile: side of a tile in pixels of that scale.
        tissue: look at tissue alone, as on slides; where there is none, at the whole image.

    Returns:
        The grid of N tiles; their class probabilities (N, K); their evidence (N, C, n, n) on the cells of the map; and
        the tissue, (h, w) bool over the image, None where all of it was looked at.
    """
    slide = Slide(Path("image"), mpp, opened=lambda _: ArraySource(pixels, mpp))
    at = max(TISSUE_MPP, slide.mpp)
    mask = find_tissue(slide, at) if tissue else None
    if mask is not None and not mask.any():
        mask = None
    grid = tile_grid(slide, working_mpp, tile, OVERLAP, network.probe(tile)[1], mask, at)
    probabilities, evidence = zip(*evidence_of_tiles(slide, grid, network), strict=True)
    return grid, np.concatenate(probabilities), np.concatenate(evidence), mask
