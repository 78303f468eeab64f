"""Maps of any size as OME-TIFF: a pyramid that QuPath, napari and OpenSlide open at the right physical size."""

from __future__ import annotations

import hashlib
import math
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from histoloc.errors import InputError
from histoloc.work_folder import atomic_path

Pixels = NDArray[np.uint8]
Rows = Callable[[int, int], Pixels]

TILE = 256
_CLASSIC_LIMIT = 2**31  # bytes before compression; classic TIFF ends at 4 GB


def write_ome_tiff(
    path: Path,
    rows: Rows,
    shape: tuple[int, int],
    mpp: float,
    *,
    name: str,
    tile: int = TILE,
    levels: int | None = None,
) -> None:
    """Write a map as a tiled, deflated, pyramidal OME-TIFF of one 8-bit grey channel, atomically.

    Each level has half the pixels of the one before, means of 2 x 2 (at an odd border, of those that are there).
    Memory holds a few bands of `tile` rows; the levels wait on disk beside `path`, in 4/3 of H x W bytes that
    vanish with the process. The same map gives the same file, byte for byte.

    Args:
        path: the file, `.ome.tif`.
        rows: `rows(first, end)` gives those rows of the map, (end - first, W) uint8; called once for each band,
            from top to bottom.
        shape: (H, W) of the map in pixels.
        mpp: micrometres per pixel of the map.
        name: of image and channel, as viewers show it.
        tile: side of the tiles in pixels, a multiple of 16.
        levels: how many, with the map itself; None halves until the longer side is no longer than a tile.

    Raises:
        InputError: the file cannot be written, or mpp is no positive number.
        ValueError: an empty map, rows of another shape or type, or a tile that TIFF does not have.
    """
    if not 0 < mpp < math.inf:
        raise InputError(f"{path}: a map of {mpp} µm/px cannot be written; give the slide's --mpp")
    if min(shape) < 1 or tile < 16 or tile % 16 or (levels is not None and levels < 1):
        raise ValueError(f"cannot write {shape} pixels in {levels} levels of tiles of {tile}")
    with atomic_path(path) as part:
        _write(part, rows, shape, mpp, name, tile, _levels(shape, tile) if levels is None else levels)


def _write(part: Path, rows: Rows, shape: tuple[int, int], mpp: float, name: str, tile: int, count: int) -> None:
    with ExitStack() as scratch:
        raw = scratch.enter_context(tempfile.TemporaryFile(dir=part.parent))
        identity = _spool(rows, shape, tile, raw, f"{shape} {mpp!r} {name}")
        # The reduced levels are SubIFDs, where OME, and so Bio-Formats and tifffile, look for them. OpenSlide sees
        # level 0 alone, since its directory is tiled and 8-bit. Levels in the main chain it would see as well, but
        # readers of OME would take them for further images or leave them out.
        with tifffile.TiffWriter(part, ome=True, bigtiff=math.prod(shape) > _CLASSIC_LIMIT) as file:
            for level in range(count):
                reduced = scratch.enter_context(tempfile.TemporaryFile(dir=part.parent))
                file.write(
                    _tiles(raw, shape, tile, reduced),
                    resolution=(1e4 / (mpp * 2**level), 1e4 / (mpp * 2**level)),
                    metadata=_metadata(mpp, name, identity) if level == 0 else None,
                    subifds=count - 1 if level == 0 else None,
                    subfiletype=int(level > 0),
                    **_layout(shape, tile),
                )
                raw.close()
                raw, shape = reduced, _halved(shape)


def _levels(shape: tuple[int, int], tile: int) -> int:
    return 1 + max(0, math.ceil(math.log2(max(shape) / tile)))


def _halved(shape: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // 2), -(-shape[1] // 2)


def _spool(rows: Rows, shape: tuple[int, int], band: int, raw: IO[bytes], described: str) -> uuid.UUID:
    """Copy the map into a raw file; an identifier that follows from what it is."""
    digest = hashlib.sha256(described.encode())
    for first in range(0, shape[0], band):
        end = min(first + band, shape[0])
        values = rows(first, end)
        if values.shape != (end - first, shape[1]) or values.dtype != np.uint8:
            raise ValueError(f"rows {first} to {end} are {values.shape} {values.dtype}, not (n, {shape[1]}) uint8")
        data = values.tobytes()
        digest.update(data)
        raw.write(data)
    return uuid.UUID(bytes=digest.digest()[:16], version=4)


def _layout(shape: tuple[int, int], tile: int) -> dict[str, Any]:
    return {
        "shape": shape,
        "dtype": np.uint8,
        "tile": (tile, tile),
        "photometric": "minisblack",
        "compression": "zlib",
        "resolutionunit": "CENTIMETER",
        "maxworkers": 1,  # more of them would hold tiles back in memory
    }


def _metadata(mpp: float, name: str, identity: uuid.UUID) -> dict[str, Any]:
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
        "UUID": str(identity),
    }


def _tiles(raw: IO[bytes], shape: tuple[int, int], tile: int, reduced: IO[bytes]) -> Iterator[Pixels]:
    """The tiles of a level in rows, padded with 0; meanwhile the next level goes to `reduced`."""
    height, width = shape
    raw.seek(0)
    for first in range(0, height, tile):
        tall = min(tile, height - first)
        band = np.frombuffer(raw.read(tall * width), np.uint8).reshape(tall, width)
        reduced.write(_halve(band).tobytes())
        padded = np.zeros((tile, -(-width // tile) * tile), np.uint8)
        padded[:tall, :width] = band
        for left in range(0, width, tile):
            yield np.ascontiguousarray(padded[:, left : left + tile])


def _halve(values: Pixels) -> Pixels:
    """Means of 2 x 2, halves to even, so that no level is brighter than the one before."""
    even = np.pad(values, [(0, side % 2) for side in values.shape], mode="edge").astype(np.uint16)
    total = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return np.rint(total / 4).astype(np.uint8)


def read_level(path: Path, max_side: int) -> tuple[Pixels, int]:
    """Read the finest level of a map of `write_ome_tiff` whose longer side is at most `max_side`, else the coarsest.

    Returns:
        (values, downsample): (h, w) uint8, and how many pixels of the map one of them covers, a power of two.

    Raises:
        InputError: the file is absent or no such map.
    """
    try:
        with tifffile.TiffFile(path) as file:
            levels = file.series[0].levels
            index = next((i for i, level in enumerate(levels) if max(level.shape) <= max_side), len(levels) - 1)
            return levels[index].asarray(), 2**index
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"{path}: is no readable map ({error}); predict the slide again") from error
