"""Maps of any size as OME-TIFF: a pyramid that QuPath, napari and OpenSlide open at the right physical size."""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

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
    metadata = _metadata(levels[0], mpp, name)
    # The reduced levels are SubIFDs, where OME, and so Bio-Formats and tifffile, look for them. OpenSlide sees
    # level 0 alone, since its directory is tiled and 8-bit. Levels in the main chain it would see as well, but
    # readers of OME would take them for further images or leave them out.
    big = math.prod(levels[0].shape) > _CLASSIC_LIMIT
    with atomic_path(path) as part, tifffile.TiffWriter(part, ome=True, bigtiff=big) as file:
        for number, level in enumerate(levels):
            file.write(
                _tiles(level),
                shape=level.shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="minisblack",
                compression="zlib",
                resolution=(1e4 / (mpp * 2**number), 1e4 / (mpp * 2**number)),
                resolutionunit="CENTIMETER",
                metadata=None if number else metadata,
                subifds=None if number else len(levels) - 1,
                subfiletype=int(number > 0),
                maxworkers=1,  # more of them would hold tiles back in memory
            )


def _metadata(whole: MapFile, mpp: float, name: str) -> dict[str, Any]:
    digest = hashlib.sha256(f"{whole.shape} {mpp!r} {name}".encode())
    for band in whole.bands():
        digest.update(band.tobytes())
    return {
        "axes": "YX",
        "Name": name,
        "Channel": {"Name": [name]},
        "PhysicalSizeX": mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp,
        "PhysicalSizeYUnit": "µm",
        "Creator": "histoloc",
        # The default is made of this machine's network address and the time.
        "UUID": str(uuid.UUID(bytes=digest.digest()[:16], version=4)),
    }


def _tiles(level: MapFile) -> Iterator[Pixels]:
    """The tiles of a level in rows, padded with 0."""
    for band in level.bands(TILE):
        padded = np.pad(band, [(0, -side % TILE) for side in band.shape])
        for left in range(0, padded.shape[1], TILE):
            yield np.ascontiguousarray(padded[:, left : left + TILE])
