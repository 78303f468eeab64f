"""What is written of a slide: maps of any size as pyramids that QuPath, napari and OpenSlide open, and its tiles."""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
from numpy.typing import NDArray

from histoloc.slides.grid import TileGrid
from histoloc.slides.stitch import MapFile, write_map
from histoloc.work_folder import atomic_path

Pixels = NDArray[np.uint8]

TILE = 256  # side of the tiles in pixels
_CLASSIC_LIMIT = 2**31  # bytes before compression; classic TIFF ends at 4 GB


def reductions(whole: MapFile) -> list[MapFile]:
    """A map and its smaller levels, which are written beside it in 1/3 of its bytes.

    Each level has half the pixels of the one before, means of 2 x 2 (at an odd border, of those that are there), until
    the longer side is no longer than a tile.
    """
    levels = [whole]
    while max(levels[-1].shape) > TILE:
        fine = levels[-1]
        shape = (-(-fine.shape[0] // 2), -(-fine.shape[1] // 2))
        levels.append(write_map(whole.path.with_suffix(f".{len(levels)}"), map(_halved, fine.bands(2 * TILE)), shape))
    return levels


def _halved(values: Pixels) -> Pixels:
    """Means of 2 x 2, halves to even, so that no level is brighter than the one before."""
    even = np.pad(values, [(0, side % 2) for side in values.shape], mode="edge").astype(np.uint16)
    total = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return np.rint(total / 4).astype(np.uint8)


def small_level(levels: Sequence[MapFile], max_side: int) -> tuple[Pixels, int]:
    """The finest level whose longer side is at most `max_side`, else the coarsest, and its number."""
    number = next((i for i, level in enumerate(levels) if max(level.shape) <= max_side), len(levels) - 1)
    return np.concatenate(list(levels[number].bands())), number


def write_ome_tiff(path: Path, levels: Sequence[MapFile], mpp: float, name: str) -> None:
    """Write a map as a tiled, deflated, pyramidal OME-TIFF of one 8-bit grey channel, atomically.

    Memory holds a few bands of rows. The same map gives the same file, byte for byte.

    Args:
        path: the file, `.ome.tif`.
        levels: of `reductions`.
        mpp: micrometres per pixel of the map.
        name: of image and channel, as viewers show it.

    Raises:
        InputError: the file cannot be written.
    """
    # The default identifier is made of this machine's network address and the time.
    metadata: dict[str, Any] = {"axes": "YX", "Name": name, "Channel": {"Name": [name]}, "Creator": "histoloc"}
    metadata |= {"UUID": _identifier(levels[0], mpp, name)}
    for axis in "XY":
        metadata |= {f"PhysicalSize{axis}": mpp, f"PhysicalSize{axis}Unit": "µm"}
    layout: dict[str, Any] = {"dtype": np.uint8, "tile": (TILE, TILE), "photometric": "minisblack"}
    layout |= {"compression": "zlib", "resolutionunit": "CENTIMETER"}
    layout |= {"maxworkers": 1}  # more of them would hold tiles back in memory
    big = math.prod(levels[0].shape) > _CLASSIC_LIMIT
    with atomic_path(path) as part, tifffile.TiffWriter(part, ome=True, bigtiff=big) as file:
        # The reduced levels are SubIFDs, where OME, and so Bio-Formats and tifffile, look for them. OpenSlide sees
        # level 0 alone, since its directory is tiled and 8-bit. Levels in the main chain it would see as well, but
        # readers of OME would take them for further images or leave them out.
        for number, level in enumerate(levels):
            per_cm = 1e4 / (mpp * 2**number)
            file.write(
                _tiles(level),
                shape=level.shape,
                resolution=(per_cm, per_cm),
                subfiletype=int(number > 0),
                subifds=None if number else len(levels) - 1,
                metadata=None if number else metadata,
                **layout,
            )


def _identifier(whole: MapFile, mpp: float, name: str) -> str:
    digest = hashlib.sha256(f"{whole.shape} {mpp!r} {name}".encode())
    for band in whole.bands():
        digest.update(band.tobytes())
    return str(uuid.UUID(bytes=digest.digest()[:16], version=4))


def _tiles(level: MapFile) -> Iterator[Pixels]:
    """The tiles of a level in rows, padded with 0."""
    for band in level.bands(TILE):
        padded = np.pad(band, [(0, -side % TILE) for side in band.shape])
        for left in range(0, padded.shape[1], TILE):
            yield np.ascontiguousarray(padded[:, left : left + TILE])


def write_tiles(path: Path, grid: TileGrid, probabilities: Mapping[str, NDArray[np.float32]]) -> None:
    """Write a CSV with a row per tile: where it lies in pixels of level 0, its tissue, its class probabilities."""
    x, y = (grid.positions * grid.downsample).round(1).T
    size = round(grid.tile * grid.downsample, 1)
    columns: dict[str, Any] = {"x": x, "y": y, "size": size, "tissue": grid.tissue.round(4)}
    columns |= {f"prob_{name}": values.round(6) for name, values in probabilities.items()}
    with atomic_path(path) as temporary:
        pd.DataFrame(columns).to_csv(temporary, index=False, lineterminator="\n")
