"""Tiles through the network, while the next ones are being read; what it says of each is kept in a file."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from tqdm import tqdm

from histoloc.errors import InputError
from histoloc.predict import Predictor
from histoloc.slide_maps.evidence_file import EvidenceFile
from histoloc.slide_maps.grid import TileGrid
from histoloc.slide_maps.settings import Means
from histoloc.slides.reader import Slide

Tile = NDArray[np.uint8]

FINEST_CELL = 4  # working pixels
_AHEAD = 2  # batches, or tiles for each reader, that are read ahead at most


class Spent(NamedTuple):
    """Where the time of one call went.

    Attributes:
        seconds: from the first tile to the last.
        waiting: seconds in which the network waited for tiles.
        tiles: that were predicted in this call; those of an earlier one are not counted.
    """

    seconds: float
    waiting: float
    tiles: int


def gather(
    slide: Slide, grid: TileGrid, predictor: Predictor, store: EvidenceFile, means: Means, *, precision: str
) -> Spent:
    """Predict the tiles that the store does not have yet.

    Batches always begin at a multiple of their size, so that a call that goes on where another was killed gives the
    network the same batches.

    Args:
        slide: where tiles are read.
        grid: which tiles.
        predictor: the model.
        store: takes class probabilities and evidence of each tile, in the grid's order.
        means: batch size, reading threads, progress bar.
        precision: float32 or bf16.

    Raises:
        InputError: damaged pixels, or a full disk.
    """
    size = means.batch_on(predictor.device.type)
    store.truncate(store.done_in_batches(size))
    first, number = store.done, len(grid.positions)
    started, waiting = time.perf_counter(), 0.0
    bar = tqdm(total=number, initial=first, unit="tile", desc=slide.path.stem, leave=False, disable=not means.progress)
    with bar, ThreadPoolExecutor(means.threads) as pool:
        tiles = _read_ahead(pool, slide, grid, first, _AHEAD * max(size, means.threads))
        while True:
            begun = time.perf_counter()
            batch = list(islice(tiles, size))
            waiting += time.perf_counter() - begun
            if not batch:
                break
            with _enough_memory(len(batch), grid.tile):
                probabilities, values = predictor.evidence(
                    batch, precision="bf16" if precision == "bf16" else "float32"
                )
            store.append(probabilities, on_cells(values, grid.tile // grid.cell))
            bar.update(len(batch))
    return Spent(time.perf_counter() - started, waiting, number - first)


def _read_ahead(pool: ThreadPoolExecutor, slide: Slide, grid: TileGrid, first: int, most: int) -> Iterator[Tile]:
    """Tiles in the grid's order; at most `most` of them wait."""
    pending: deque[Future[Tile]] = deque()
    rest = iter(grid.positions[first:])
    try:
        for x, y in islice(rest, most):
            pending.append(pool.submit(_read_tile, slide, grid, int(x), int(y)))
        while pending:
            tile = pending.popleft().result()
            for x, y in islice(rest, 1):
                pending.append(pool.submit(_read_tile, slide, grid, int(x), int(y)))
            yield tile
    finally:
        for future in pending:
            future.cancel()


def _read_tile(slide: Slide, grid: TileGrid, x: int, y: int) -> Tile:
    return slide.read(x * grid.downsample, y * grid.downsample, grid.tile, grid.tile, grid.mpp)


def on_cells(values: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Bring evidence from the network's positions to the map's cells: by area means, or bilinearly where it is coarser.

    Args:
        values: (B, C, h, w) that cover a tile evenly.
        side: cells of a tile.

    Returns:
        (B, C, side, side).
    """
    if values.shape[-2:] == (side, side):
        return values
    given = torch.from_numpy(np.ascontiguousarray(values))
    if min(values.shape[-2:]) >= side:
        return functional.adaptive_avg_pool2d(given, side).numpy()
    return functional.interpolate(given, size=(side, side), mode="bilinear", align_corners=False).numpy()


def probe(predictor: Predictor, tile: int) -> tuple[int, int]:
    """What the model gives for a tile of this side in pixels.

    Returns:
        The number of maps, and working pixels per position of the evidence: at least 4, and the nearest divisor of
        the tile where images are resized on their way to the network or its stride does not divide the tile.
    """
    with _enough_memory(1, tile):
        _, values = predictor.evidence([np.full((tile, tile, 3), 255, np.uint8)])
    wanted = max(FINEST_CELL, tile / values.shape[-1])
    divisors = [side for side in range(FINEST_CELL, tile + 1) if tile % side == 0]
    return values.shape[1], min(divisors, key=lambda side: abs(np.log(side / wanted)))


@contextmanager
def _enough_memory(batch: int, tile: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # PyTorch has no class of its own for want of memory on a CPU
        wanting = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not wanting:
            raise
        remedy = "--batch or --tile" if batch > 1 else "--tile"
        raise InputError(
            f"there is not enough memory for {batch} tiles of {tile} px at a time; choose a smaller {remedy}"
        ) from error


def choose_precision(asked: str, device: torch.device) -> str:
    """float32 or bf16; auto takes bf16 on a GPU that has it."""
    if asked != "auto":
        return asked
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def roi_of_tiles(
    predictor: Predictor,
    values: NDArray[np.float32],
    low: Sequence[float] | None,
    high: Sequence[float] | None,
    *,
    shown: int | None,
    empty: int | None,
) -> NDArray[np.float32]:
    """ROI in [0, 1] of tiles from their evidence.

    Args:
        predictor: the model, which knows how evidence becomes a map.
        values: (B, C, n, n) evidence; C maps, one for each class or one for all.
        low: (C,) evidence that counts as none; None where the evidence is the ROI already.
        high: (C,) evidence that counts as full.
        shown: the class whose map is taken, where there is one map per class and none of them is empty.
        empty: the class without ROI; the greatest of the other classes' maps is taken.

    Returns:
        (B, n, n).
    """
    roi = predictor.roi_of(values, low, high)
    if roi.shape[1] == 1:
        return roi[:, 0]
    if empty is not None:
        return np.delete(roi, empty, axis=1).max(axis=1)
    assert shown is not None
    return roi[:, shown]
