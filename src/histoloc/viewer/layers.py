"""Tiles and outlines of the catalog's entries, as bytes that a browser understands."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histoloc.data.images import read_image, read_map, read_mask
from histoloc.errors import InputError
from histoloc.slides.reader import Slide, open_slide
from histoloc.viewer.entries import Entry, MapLayer, state_of
from histoloc.viewer.grey_tiff import GreyTiff
from histoloc.viewer.outlines import mask_outlines
from histoloc.viewer.shelf import OpenFiles, Shelf
from histoloc.viewer.tiles import reduced, tile_box

Layer = Literal["picture", "map", "uncertainty"]
LAYERS: dict[str, tuple[Layer, str]] = {  # by the last part of an address
    "picture": ("picture", "image/jpeg"),
    "map": ("map", "image/png"),
    "uncertainty": ("uncertainty", "image/png"),
}
JPEG_QUALITY = 85
OPEN_SLIDES, OPEN_MAPS = 8, 16
TILE_BYTES, PICTURE_BYTES = 2**26, 2**28
_LARGEST_JSON = 2**28


class NoTile(LookupError):
    """There is no tile of this layer, level and position."""


class Layers:
    """Reads tiles; several threads may do so at once, and the memory stays bounded."""

    def __init__(self) -> None:
        self._slides: OpenFiles[Slide] = OpenFiles(OPEN_SLIDES)
        self._maps: OpenFiles[GreyTiff] = OpenFiles(OPEN_MAPS)
        self._tiles: Shelf[bytes] = Shelf(TILE_BYTES, len)
        self._pictures: Shelf[NDArray[np.uint8]] = Shelf(PICTURE_BYTES, lambda pixels: pixels.nbytes)

    def close(self) -> None:
        """Release all files."""
        self._slides.close()
        self._maps.close()

    def tile(self, entry: Entry, layer: Layer, level: int, column: int, row: int) -> bytes:
        """One tile: JPEG of the picture, grey PNG (0 to 255 for 0 to 1) of a map.

        Raises:
            NoTile: the entry has no such layer, or the layer no such tile.
            InputError: the file has moved, is damaged or is another one than was predicted on.
        """
        source = entry if layer == "picture" else _map_of(entry, layer)
        if source is None or not source.width:
            raise NoTile
        box = tile_box(source.width, source.height, level, column, row)
        if box is None:
            raise NoTile
        return self._tiles.get((entry.key, layer, level, column, row), lambda: self._encoded(entry, layer, box))

    def outlines(self, entry: Entry) -> bytes:
        """GeoJSON of a model's outlines, in pixels of level 0.

        Raises:
            NoTile: there are none.
            InputError: the file cannot be read.
        """
        if entry.regions is not None:
            return _json_file(entry.regions)
        if entry.mask is None:
            raise NoTile
        mask, values = read_mask(entry.mask), self._grey(entry.map.file) if entry.map else None
        return _dumped(mask_outlines(mask, entry.label or "ROI", values))

    def truth(self, entry: Entry) -> bytes:
        """GeoJSON of the outlines that a person drew.

        Raises:
            NoTile: there are none.
            InputError: the file cannot be read.
        """
        if entry.truth is None:
            raise NoTile
        return _dumped(mask_outlines(read_mask(entry.truth), "truth"))

    def _encoded(self, entry: Entry, layer: Layer, box: tuple[int, int, int, int, int]) -> bytes:
        buffer = io.BytesIO()
        if layer == "picture":
            pixels = self._slide(entry, box) if entry.kind == "slide" else self._image(entry, box)
            Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
        else:
            found = _map_of(entry, layer)
            assert found is not None
            Image.fromarray(self._map(entry, found, box)).save(buffer, "PNG", compress_level=3)
        return buffer.getvalue()

    def _slide(self, entry: Entry, box: tuple[int, int, int, int, int]) -> NDArray[np.uint8]:
        x, y, width, height, factor = box
        key = (entry.picture, entry.given_mpp, state_of(entry.picture))
        with self._slides.lend(key, lambda: open_slide(entry.picture, mpp=entry.given_mpp)) as slide:
            if slide.size != (entry.width, entry.height):
                raise InputError(
                    f"{entry.picture}: has {slide.width}x{slide.height} pixels, the slide that was predicted on "
                    f"{entry.width}x{entry.height}; bring that one back or predict again"
                )
            return slide.read(x * factor, y * factor, width, height, slide.mpp * factor)

    def _image(self, entry: Entry, box: tuple[int, int, int, int, int]) -> NDArray[np.uint8]:
        key = (entry.picture, state_of(entry.picture))
        return _cut(self._pictures.get(key, lambda: read_image(entry.picture)), entry.picture, entry, box)

    def _map(self, entry: Entry, found: MapLayer, box: tuple[int, int, int, int, int]) -> NDArray[np.uint8]:
        x, y, width, height, factor = box
        if entry.kind == "image":
            return _cut(self._grey(found.file), found.file, found, box)
        with self._maps.lend((found.file, state_of(found.file)), lambda: GreyTiff(found.file)) as tiff:
            if (tiff.width, tiff.height) != (found.width, found.height):
                raise InputError(f"{found.file}: has another size than slide.json says; predict this slide again")
            return tiff.read(x, y, width, height, factor)

    def _grey(self, file: Path) -> NDArray[np.uint8]:
        return self._pictures.get(
            (file, state_of(file)), lambda: np.rint(read_map(file) * np.float32(255)).astype(np.uint8)
        )


def _map_of(entry: Entry, layer: Layer) -> MapLayer | None:
    return entry.map if layer == "map" else entry.uncertainty


def _cut(
    pixels: NDArray[np.uint8], file: Path, size: Entry | MapLayer, box: tuple[int, int, int, int, int]
) -> NDArray[np.uint8]:
    """A tile of a picture that lies in memory."""
    if pixels.shape[:2] != (size.height, size.width):
        raise InputError(
            f"{file}: has {pixels.shape[1]}x{pixels.shape[0]} pixels, its image {size.width}x{size.height}; "
            "evaluate again"
        )
    x, y, width, height, factor = box
    return reduced(lambda x, y, w, h: pixels[y : y + h, x : x + w], (x, y, width, height), factor)


def _json_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise InputError(f"{path}: is larger than 256 MB; simplify the outlines more when predicting")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); predict this slide again") from error


def _dumped(value: object) -> bytes:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
