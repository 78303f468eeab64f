"""Cut pictures into the tiles of a deep zoom: 256 pixels square, each level half of the one above it.

Level 0 is the whole picture in one tile; the finest level is the picture at its own resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

TILE = 256

Pixels = NDArray[np.uint8]  # (H, W) or (H, W, 3)


def finest_level(width: int, height: int) -> int:
    """Number of the level at the picture's own resolution."""
    return max(0, math.ceil(math.log2(max(width, height) / TILE)))


def tile_box(width: int, height: int, level: int, column: int, row: int) -> tuple[int, int, int, int, int] | None:
    """Where a tile lies in its level.

    Args:
        width: of the picture, in pixels.
        height: of the picture.
        level: from 0 to `finest_level`.
        column: of the tile, from 0.
        row: of the tile, from 0.

    Returns:
        (x, y, width, height, factor): the first four in pixels of the level, the last in pixels of the picture per
        pixel of the level. None where there is no such tile.
    """
    finest = finest_level(width, height)
    if not 0 <= level <= finest:
        return None
    factor = 1 << (finest - level)
    x, y = column * TILE, row * TILE
    across, down = math.ceil(width / factor), math.ceil(height / factor)
    if not (0 <= x < across and 0 <= y < down):
        return None
    return x, y, min(TILE, across - x), min(TILE, down - y), factor


def reduced(read: Callable[[int, int, int, int], Pixels], box: tuple[int, int, int, int], factor: int) -> Pixels:
    """Mean of squares of `factor` pixels, read in bands so that the memory stays small.

    Args:
        read: gives (x, y, width, height) of the picture, less where the picture ends.
        box: (x, y, width, height) in reduced pixels.
        factor: side of the squares.

    Returns:
        The box; squares at the picture's edge are means over what there is of them.
    """
    x, y, width, height = box
    if factor == 1:
        return read(x, y, width, height)
    rows = [_row(read(x * factor, (y + i) * factor, width * factor, factor), width, factor) for i in range(height)]
    return np.stack(rows)


def _row(pixels: Pixels, width: int, factor: int) -> Pixels:
    starts = np.arange(width) * factor
    counts = np.diff([*starts, pixels.shape[1]]) * pixels.shape[0]
    sums = np.add.reduceat(pixels.sum(axis=0, dtype=np.int64), starts, axis=0)
    mean = sums / counts.reshape(-1, *[1] * (sums.ndim - 1))
    return np.rint(mean).astype(np.uint8)
