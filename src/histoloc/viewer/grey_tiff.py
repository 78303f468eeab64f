"""Maps stored as grey pyramidal TIFF, decoded piece by piece."""

from __future__ import annotations

import struct
import threading
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from histoloc.errors import InputError
from histoloc.viewer.tiles import reduced

Grey = NDArray[np.uint8]  # (H, W)

_DAMAGE = (tifffile.TiffFileError, OSError, ValueError, IndexError, KeyError, zlib.error, struct.error, RuntimeError)
_SEGMENTS = 64  # decoded pieces that are kept, 16 MB where they are 512 pixels square
_LARGEST = 2**24  # pixels of a piece


class GreyTiff:
    """An open map; several threads may read it at once.

    Args:
        path: TIFF of 8-bit grey, whose smaller levels are SubIFDs or pages of their own.

    Attributes:
        width: of the finest level in pixels.
        height: of the finest level in pixels.

    Raises:
        InputError: the file is absent, damaged, or no grey map.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._file = tifffile.TiffFile(path)
        except _DAMAGE as error:
            raise self._damaged(error) from error
        try:
            self._levels = self._find_levels()
            self.width, self.height = self._levels[0].imagewidth, self._levels[0].imagelength
        except InputError:
            self._file.close()
            raise
        except _DAMAGE as error:
            self._file.close()
            raise self._damaged(error) from error
        self._segment = lru_cache(_SEGMENTS)(self._decode)

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def read(self, x: int, y: int, width: int, height: int, factor: int) -> Grey:
        """Read a box of the map reduced by a power of two.

        The stored level that is just finer is read, and its pixels are averaged where it is not near enough.

        Args:
            x: left edge in reduced pixels, inside the map.
            y: top edge in reduced pixels.
            width: in reduced pixels.
            height: in reduced pixels.
            factor: pixels of the map per reduced pixel.

        Returns:
            (height, width) uint8; what a level misses at its edge by rounding repeats its last row and column.

        Raises:
            InputError: damaged pixels.
        """
        number, stored = 0, 1
        for i, page in enumerate(self._levels):
            size = round(self.width / page.imagewidth)
            if stored < size <= factor and factor % size == 0:
                number, stored = i, size
        try:
            return _padded(
                reduced(lambda *box: self._box(number, *box), (x, y, width, height), factor // stored), width, height
            )
        except InputError:
            raise
        except _DAMAGE as error:
            raise self._damaged(error) from error

    def _find_levels(self) -> list[tifffile.TiffPage]:
        first = self._file.pages.first
        pages = [first, *(level.aspage() for level in first.pages or ())]
        pages += [page.aspage() for page in list(self._file.pages)[1:]]
        if first.dtype != np.uint8 or first.ndim != 2:
            raise InputError(f"{self._path}: is no map of 8-bit grey; predict this slide again")
        levels = [page for page in pages if self._is_level(first, page)]
        for page in levels:
            if page.tilewidth * page.tilelength > _LARGEST or (not page.is_tiled and page.size > _LARGEST):
                raise InputError(f"{self._path}: is not stored in tiles; predict this slide again")
        return sorted(levels, key=lambda page: -page.imagewidth)

    @staticmethod
    def _is_level(first: tifffile.TiffPage, page: tifffile.TiffPage) -> bool:
        """The first page reduced by a whole number, whether its size was rounded up or down."""
        if page.dtype != np.uint8 or page.ndim != 2 or 0 in page.shape:
            return False
        factor = max(1, round(first.imagewidth / page.imagewidth))
        return all(abs(long / factor - short) < 1 for long, short in zip(first.shape, page.shape, strict=True))

    def _box(self, number: int, x: int, y: int, width: int, height: int) -> Grey:
        """A box of a stored level, cut off where the level ends but never empty."""
        page = self._levels[number]
        x, y = min(x, page.imagewidth - 1), min(y, page.imagelength - 1)
        x1, y1 = min(x + width, page.imagewidth), min(y + height, page.imagelength)
        if not page.is_tiled:
            return self._segment(number, -1)[y:y1, x:x1]
        across, down = page.tilewidth, page.tilelength
        columns = -(-page.imagewidth // across)
        box = np.zeros((y1 - y, x1 - x), np.uint8)
        for row in range(y // down, (y1 - 1) // down + 1):
            for column in range(x // across, (x1 - 1) // across + 1):
                top, left = row * down, column * across
                part = self._segment(number, row * columns + column)
                part = part[max(y - top, 0) : y1 - top, max(x - left, 0) : x1 - left]
                i, j = max(top - y, 0), max(left - x, 0)
                box[i : i + part.shape[0], j : j + part.shape[1]] = part
        return box

    def _decode(self, number: int, index: int) -> Grey:
        page = self._levels[number]
        with self._lock:
            if index < 0:
                return page.asarray()
            handle = self._file.filehandle
            handle.seek(page.dataoffsets[index])
            count = page.databytecounts[index]
            data = handle.read(count) if count else b""
        if not data:
            return np.zeros((page.tilelength, page.tilewidth), np.uint8)
        segment = page.decode(data, index)[0]
        if segment is None:
            return np.zeros((page.tilelength, page.tilewidth), np.uint8)
        return np.asarray(segment).reshape(segment.shape[-3:-1])

    def _damaged(self, error: Exception) -> InputError:
        reason = " ".join(str(error).split())
        return InputError(f"{self._path}: cannot be read ({reason}); predict this slide again")


def _padded(box: Grey, width: int, height: int) -> Grey:
    missing = (height - box.shape[0], width - box.shape[1])
    return np.pad(box, ((0, missing[0]), (0, missing[1])), mode="edge") if any(missing) else box
