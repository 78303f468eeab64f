"""Tiles and outlines of entries, as bytes that a browser understands.

Tiles are those of a deep zoom: 256 pixels square, each level half of the one above it. Level 0 is the whole picture in
one tile; the finest level is the picture at its own resolution. Several threads may make tiles at once; memory stays
bounded, since only the pictures used last are open.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from histoloc.data.images import read_image, read_map, read_mask
from histoloc.errors import InputError
from histoloc.slides.geojson import Feature, geojson_text
from histoloc.slides.reader import Slide, open_slide
from histoloc.slides.regions import find_outlines
from histoloc.types import Origin
from histoloc.viewer.catalog import Entry, Layer, file_state

TILE = 256
LAYERS = ("picture", "map", "uncertainty")
JPEG_QUALITY = 85
OPEN_FILES = 8  # of each kind
SMALLEST_OUTLINE = 4  # pixels; what is smaller cannot be seen
_LARGEST_JSON = 2**28

Grey = NDArray[np.uint8]
Box = tuple[int, int, int, int, int]  # see `tile_box`


def finest_level(width: int, height: int) -> int:
    """Number of the level at the picture's own resolution."""
    return max(0, math.ceil(math.log2(max(width, height) / TILE)))


def tile_box(width: int, height: int, level: int, column: int, row: int) -> Box | None:
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


def render_tile(entry: Entry, layer: str, level: int, column: int, row: int) -> bytes | None:
    """One tile: JPEG of the picture, grey PNG (0 to 255 for 0 to 1) of a map.

    Returns:
        None where the entry has no such layer, or the layer no such tile.

    Raises:
        InputError: the file has moved, is damaged or is another one than was predicted on.
    """
    source = {"picture": entry, "map": entry.map, "uncertainty": entry.uncertainty}[layer]
    box = tile_box(source.width, source.height, level, column, row) if source and source.width else None
    if source is None or box is None:
        return None
    buffer = io.BytesIO()
    if isinstance(source, Entry):
        _picture(source, box).save(buffer, "JPEG", quality=JPEG_QUALITY)
    else:
        read = _pyramid if entry.kind == "slide" else _grey
        _cut(read(source.file, file_state(source.file)), source.file, source, box).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def outlines(file: Path | None, label: str, layer: Layer | None = None) -> bytes | None:
    """Outlines as GeoJSON, in pixels of level 0.

    Args:
        file: GeoJSON, which is passed on, or a mask, whose connected parts of 4 pixels and more are outlined.
        label: name of the outlines' class.
        layer: the map that says how probable each part of a mask is.

    Returns:
        None where there is no file.

    Raises:
        InputError: the file cannot be read.
    """
    if file is None:
        return None
    if file.suffix != ".geojson":
        values = _grey(layer.file, file_state(layer.file))[0] if layer else None
        return geojson_text(mask_outlines(read_mask(file), label, values)).encode()
    try:
        if file.stat().st_size > _LARGEST_JSON:
            raise InputError(f"{file}: is larger than 256 MB; simplify the outlines more when predicting")
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); predict this slide again") from error


def mask_outlines(mask: NDArray[np.bool_], label: str, values: Grey | None = None) -> list[Feature]:
    """Polygons around the connected parts of a mask, along the edges of its pixels.

    Args:
        mask: (H, W) bool.
        label: name of their class.
        values: (H, W) uint8, the map in 0 to 255 of which a part's mean is its probability.

    Returns:
        In pixels, the corner of the first pixel at (0, 0). Parts of fewer than 4 pixels are left out.
    """
    known = values is not None and values.shape == mask.shape
    inside = np.maximum(values, 1) if values is not None and known else np.uint8(255)
    grey = np.where(mask, inside, np.uint8(0))  # 0 is outside
    # Cells of 1 mm², so that an area is a number of pixels.
    parts = find_outlines([grey], 0.0, 1.0, 1000.0, min_area_mm2=SMALLEST_OUTLINE, simplify_cells=0.0)
    return [
        Feature(
            part.geometry,
            label,
            measurements={"Area px": part.area_mm2, **({"Probability": part.probability} if known else {})},
        )
        for part in parts
    ]


def _picture(entry: Entry, box: Box) -> Image.Image:
    path = entry.picture
    assert path is not None  # it has a size
    if entry.kind == "image":
        return _cut(_image(path, file_state(path)), path, entry, box)
    slide = _slide(path, entry.user_mpp, entry.origin, file_state(path))
    _check_size(path, slide.size, entry)
    x, y, width, height, factor = box
    return Image.fromarray(slide.read(x * factor, y * factor, width, height, slide.mpp * factor))


def _cut(levels: list[Any], path: Path, size: Entry | Layer, box: Box) -> Image.Image:
    """A tile of a picture of which level i has every 2^i-th pixel; of what is coarser, means of squares."""
    _check_size(path, levels[0].shape[1::-1], size)
    x, y, width, height, factor = box
    index = min(factor.bit_length(), len(levels)) - 1
    rest = factor >> index
    try:
        pixels = levels[index][y * rest : (y + height) * rest, x * rest : (x + width) * rest]
    except Exception as error:  # on damaged files parsers raise whatever comes
        raise _damaged(path, error) from error
    return Image.fromarray(np.asarray(pixels)).reduce(rest)


def _check_size(path: Path, size: tuple[int, int], entry: Entry | Layer) -> None:
    if size != (entry.width, entry.height):
        raise InputError(
            f"{path}: has {size[0]}x{size[1]} pixels, but had {entry.width}x{entry.height} when it was predicted; "
            "bring that file back, or predict or evaluate again"
        )


# Of an open file that has to go nobody needs to know: it is closed when its last reader lets it go.
@lru_cache(OPEN_FILES)
def _slide(path: Path, mpp: float | None, origin: Origin, _: tuple[int, ...]) -> Slide:
    return open_slide(path, mpp=mpp, origin=origin)


@lru_cache(OPEN_FILES)
def _image(path: Path, _: tuple[int, ...]) -> list[Grey]:
    return [read_image(path)]


@lru_cache(OPEN_FILES)
def _grey(path: Path, _: tuple[int, ...]) -> list[Grey]:
    return [np.rint(read_map(path) * np.float32(255)).astype(np.uint8)]


@lru_cache(OPEN_FILES)
def _pyramid(path: Path, _: tuple[int, ...]) -> list[zarr.Array]:
    """Levels of a slide's map; a tile is decoded when it is asked for."""
    try:
        series = tifffile.TiffFile(path).series[0]
        stores = [series.aszarr(level=i) for i in range(len(series.levels))]
        levels = [zarr.open_array(store, mode="r") for store in stores]
    except Exception as error:  # on damaged files parsers raise whatever comes
        raise _damaged(path, error) from error
    if any(level.dtype != np.uint8 or level.ndim != 2 or max(level.chunks) > 2**12 for level in levels):
        raise InputError(f"{path}: is no map of 8-bit grey in tiles; predict this slide again")
    return levels


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read ({' '.join(str(error).split())}); predict this slide again")
