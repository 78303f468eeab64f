"""Tiles through the network, while the next ones are being read; what it says of each is kept in a file."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from tqdm import tqdm

from histoloc.errors import InputError
from histoloc.maps import place
from histoloc.slide_maps.grid import TileGrid
from histoloc.slide_maps.settings import Means
from histoloc.slides.reader import Slide

Tile = NDArray[np.uint8]

FINEST_CELL = 4  # working pixels
_AHEAD = 2  # batches, or tiles for each reader, that are read ahead at most


class GivesEvidence(Protocol):
    """A model as it is needed here; `histoloc.prediction.Predictor` is one."""

    device: torch.device

    @property
    def stride(self) -> int:
        """Pixels of a tile per position of its evidence."""
        ...

    def evidence(
        self, tiles: Sequence[Tile], *, precision: Literal["float32", "bf16"] = "float32"
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Class probabilities (B, K) and evidence (B, C, h, w) of tiles of one size."""
        ...


class KeepsTiles(Protocol):
    """Where evidence is kept: `EvidenceFile` on disk, `TileStore` in memory."""

    @property
    def done(self) -> int:
        """How many tiles are known."""
        ...

    def done_in_batches(self, batch: int) -> int:
        """How many of them lie in complete batches."""
        ...

    def truncate(self, number: int) -> None:
        """Keep the first ones only."""
        ...

    def append(self, probabilities: NDArray[np.floating], evidence: NDArray[np.floating]) -> None:
        """Take the next tiles."""
        ...


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
    slide: Slide, grid: TileGrid, predictor: GivesEvidence, store: KeepsTiles, means: Means, *, precision: str
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
            store.append(probabilities, on_cells(values, predictor.stride, grid.tile, grid.tile // grid.cell))
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


def probe(predictor: GivesEvidence, tile: int) -> tuple[int, int]:
    """What the model gives for a tile of this side in pixels.

    Returns:
        The number of maps, and working pixels per position of the evidence: at least 4, and the nearest divisor of
        the tile where the network's stride does not divide it.
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
