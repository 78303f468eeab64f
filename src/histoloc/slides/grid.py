"""Which tiles of a slide a model looks at, and the map's cells that they fill."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from histoloc.slides.reader import NEAR, Slide
from histoloc.slides.tissue import share

MIN_TISSUE = 0.05  # share of a tile, with which it is always looked at


@dataclass(frozen=True, eq=False)
class TileGrid:
    """Tiles of a slide and the map that they make; all lengths are pixels of the working scale.

    Cell (i, j) of the map covers working pixels [j * cell, (j + 1) * cell) x [i * cell, (i + 1) * cell); the last
    row and column of cells may reach beyond the slide by less than a cell.

    Attributes:
        tile: side of a tile, a multiple of `cell`.
        step: from tile to tile, a multiple of `cell`.
        cell: side of a pixel of the map.
        mpp: the working scale in micrometres per pixel, as it is really read (see `tile_grid`).
        downsample: pixels of level 0 per working pixel.
        width: of the slide.
        height: of the slide.
        positions: (N, 2) x, y of the upper left corners of the tiles, row by row, all multiples of `cell`.
        tissue: (N,) share of tissue of each tile, in [0, 1].
    """

    tile: int
    step: int
    cell: int
    mpp: float
    downsample: float
    width: int
    height: int
    positions: NDArray[np.int64]
    tissue: NDArray[np.float64]

    @property
    def columns(self) -> int:
        """Width of the map in cells."""
        return -(-self.width // self.cell)

    @property
    def rows(self) -> int:
        """Height of the map in cells."""
        return -(-self.height // self.cell)

    @property
    def side(self) -> int:
        """Side of a tile in cells."""
        return self.tile // self.cell


def tile_grid(
    slide: Slide,
    mpp: float,
    tile: int,
    overlap: float,
    cell: int,
    mask: NDArray[np.bool_] | None = None,
    mask_mpp: float = 8.0,
) -> TileGrid:
    """Lay tiles over a slide and keep those with tissue.

    All tiles together cover the slide; only the last ones of a row and of a column may reach beyond it. A tile is
    kept if its share of tissue is at least 5 %; of the others, the fullest first, one is kept if it holds a pixel of
    the mask (its centre) that no kept tile holds. So every pixel of tissue lies in a tile.

    The slide's size is that of `slide.size_at`. Where a level within 1 % of `mpp` is read as it is, the level's
    scale is the working scale: with `mpp` itself, tiles at the far end would be off by 1 % of the slide's width.

    Args:
        slide: an open slide.
        mpp: wanted working scale in micrometres per pixel.
        tile: side of a tile in working pixels, a multiple of `cell`.
        overlap: share of a tile's side that the next tile sees too, in [0, 0.9]; rounded so that the step is a
            multiple of `cell`, at least one.
        cell: side of the map's pixels in working pixels.
        mask: (H, W) bool, tissue over the whole slide; None keeps all tiles, with a share of 1.
        mask_mpp: its scale in micrometres per pixel.

    Returns:
        The grid; without any tiles where the mask has no tissue.

    Raises:
        InputError: the slide does not have the scale.
        ValueError: the mask does not fit the slide.
    """
    width, height = slide.size_at(mpp)
    level = slide.levels[slide.level_for(mpp)]
    near = abs(level.mpp / mpp - 1) <= NEAR
    mpp, downsample = (level.mpp, level.downsample) if near else (mpp, mpp / slide.mpp)
    step = max(cell, round(tile * (1 - overlap) / cell) * cell)
    xs, ys = (axis_starts(length, tile, step, cell) for length in (width, height))
    positions = np.stack([np.tile(xs, len(ys)), np.repeat(ys, len(xs))], axis=1)
    grid = TileGrid(tile, step, cell, mpp, downsample, width, height, positions, np.ones(len(positions)))
    if mask is None:
        return grid
    (x, y), side = positions.T * downsample, tile * downsample
    shares = share(mask, mask_mpp, x, y, side, side, slide)
    selection = _selection(mask, shares, _boxes(grid, xs, ys, slide, mask))
    return replace(grid, positions=positions[selection], tissue=shares[selection])


def axis_starts(length: int, tile: int, step: int, cell: int) -> NDArray[np.int64]:
    """Where tiles begin along one axis of a slide.

    Args:
        length: of the slide in pixels, from 1 up.
        tile: side of a tile, a multiple of `cell`.
        step: from tile to tile, a multiple of `cell`, at most `tile`.
        cell: of the map.

    Returns:
        0, step, 2 step and so on; last, the smallest multiple of `cell` from which a tile reaches the slide's end.
    """
    last = -(-max(0, length - tile) // cell) * cell
    return np.append(np.arange(0, last, step, dtype=np.int64), last)


def _boxes(
    grid: TileGrid, xs: NDArray[np.int64], ys: NDArray[np.int64], slide: Slide, mask: NDArray[np.bool_]
) -> list[tuple[slice, slice]]:
    """Pixels of the mask, as rows and columns, whose centres lie in each tile."""

    def inside(starts: NDArray[np.int64], length: int, count: int) -> list[slice]:
        scale = grid.downsample * count / length
        low, high = (np.ceil(edges * scale - 0.5).astype(np.int64) for edges in (starts, starts + grid.tile))
        high[-1] = count  # it ends the slide, whose size was rounded
        return [slice(int(a), int(b)) for a, b in zip(low, high, strict=True)]

    rows, columns = mask.shape
    return list(product(inside(ys, slide.height, rows), inside(xs, slide.width, columns)))


def _selection(
    mask: NDArray[np.bool_], shares: NDArray[np.float64], boxes: list[tuple[slice, slice]]
) -> NDArray[np.bool_]:
    selection = shares >= MIN_TISSUE
    remainder = mask.copy()
    for index in np.flatnonzero(selection):
        remainder[boxes[index]] = False
    for index in np.argsort(-shares, kind="stable"):
        if remainder[boxes[index]].any():
            selection[index] = True
            remainder[boxes[index]] = False
    return selection
