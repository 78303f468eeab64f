"""One map from overlapping tiles, band by band, in memory that does not grow with the slide's height."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from histoloc.slides.grid import TileGrid

Tiles = Callable[[int, int], NDArray[np.floating]]

_AT_ONCE = 64  # tiles asked for at a time
_FLOOR = 1e-3  # of a weight along one axis, its greatest being 1
_CELLS = 2**20  # of a map that are read at a time


def gaussian_window(side: int, sigma_share: float = 0.125) -> NDArray[np.float32]:
    """Weights of a tile's cells: greatest at its centre, so that what it sees only half of counts least.

    The product of the same Gaussian along both axes, whose standard deviation is `sigma_share` of the side, as MONAI
    and nnU-Net have it. Along each axis a weight is at least 1/1000 of the greatest: where tiles do not overlap, the
    border has only them.

    Args:
        side: of a tile in cells, from 1 up.
        sigma_share: above 0.

    Returns:
        (side, side), in (0, 1], symmetric.
    """
    distance = np.arange(side) - (side - 1) / 2
    profile = np.maximum(np.exp(-0.5 * (distance / (sigma_share * side)) ** 2), _FLOOR)
    return np.outer(profile, profile).astype(np.float32)


def stitch(grid: TileGrid, tiles: Tiles, tissue: NDArray[np.bool_] | None) -> Iterator[NDArray[np.float32]]:
    """Weighted mean of all tiles over each cell, from top to bottom; 0 where no tile or no tissue lies.

    In memory are one row of tiles' worth of sums and weights; the values of at most 64 tiles are asked for at a time.

    Args:
        grid: of the slide; its tiles may have any gaps.
        tiles: gives the values of the tiles from one index of the grid to another: (b, n, n), with n the grid's
            `side`. What reaches beyond the map is dropped.
        tissue: (H, W) bool over the whole slide; None where all of it is looked at.

    Yields:
        The next rows, (r, columns) with r up to n; together they are the map of `grid.rows` rows.
    """
    n = grid.side
    window = gaussian_window(n).astype(np.float64)
    sums, weights = np.zeros((2, n, grid.columns + n))
    top = 0

    def finished(end: int) -> Iterator[NDArray[np.float32]]:
        """The rows above `end`, to which no more tiles come."""
        nonlocal top
        while top < end:
            r = min(end - top, n)
            complete = np.s_[:r, : grid.columns]
            marks = tissue_rows(grid, tissue, top, r) & (weights[complete] > 0)
            mean = np.zeros(marks.shape, np.float32)
            yield np.divide(sums[complete], weights[complete], out=mean, where=marks, casting="same_kind")
            for array in (sums, weights):
                array[: n - r], array[n - r :] = array[r:], 0
            top += r

    left, upper = (grid.positions // grid.cell).T
    for row in np.unique(upper):
        yield from finished(int(row))
        first, end = np.searchsorted(upper, [row, row + 1])
        for start in range(first, end, _AT_ONCE):
            stop = min(start + _AT_ONCE, end)
            for x, value in zip(left[start:stop], tiles(start, stop), strict=True):
                sums[:, x : x + n] += value * window
                weights[:, x : x + n] += window
    yield from finished(grid.rows)


def tissue_rows(grid: TileGrid, tissue: NDArray[np.bool_] | None, first: int, number: int) -> NDArray[np.bool_]:
    """Which cells of some rows of the map have tissue at their centre.

    Args:
        grid: of the slide.
        tissue: (H, W) bool over the whole slide; None where all of it is looked at.
        first: row of the map.
        number: of rows.

    Returns:
        (number, columns) bool.
    """
    if tissue is None:
        return np.ones((number, grid.columns), bool)
    rows = (np.arange(first, first + number) + 0.5) * grid.cell * tissue.shape[0] / grid.height
    columns = (np.arange(grid.columns) + 0.5) * grid.cell * tissue.shape[1] / grid.width
    i = np.clip(rows.astype(np.int64), 0, tissue.shape[0] - 1)
    j = np.clip(columns.astype(np.int64), 0, tissue.shape[1] - 1)
    return tissue[np.ix_(i, j)]


class MapFile(NamedTuple):
    """The one array on disk of which all files of a map are made: rows of bytes, and nothing else.

    It is read piece by piece and never mapped into memory.

    Attributes:
        path: the file.
        shape: (rows, columns).
    """

    path: Path
    shape: tuple[int, int]

    def bands(self, tall: int | None = None) -> Iterator[NDArray[np.uint8]]:
        """Its rows from top to bottom, `tall` at a time; by default about a million cells."""
        rows, columns = self.shape
        tall = tall or max(1, _CELLS // columns)
        with self.path.open("rb") as file:
            for _ in range(0, rows, tall):
                yield np.frombuffer(file.read(tall * columns), np.uint8).reshape(-1, columns)


def write_map(path: Path, bands: Iterable[NDArray[np.uint8]], shape: tuple[int, int]) -> MapFile:
    """Write the rows of a map of (rows, columns) bytes, from top to bottom."""
    with path.open("wb") as file:
        for band in bands:
            file.write(band.tobytes())
    return MapFile(path, shape)


def as_bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values v of a map in [0, 1] as round(255 v)."""
    return np.rint(np.clip(values, 0, 1) * 255.0).astype(np.uint8)
