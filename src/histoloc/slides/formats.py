"""The files behind a slide: whole-slide formats, TIFF that OpenSlide refuses, pictures.

A source gives the sizes of its levels and decodes boxes that lie inside a level; it knows nothing of scales.
"""

from __future__ import annotations

import math
import struct
import threading
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from histoloc.data.images import check_image
from histoloc.errors import InputError

TIFF_EXTENSIONS = (".tif", ".tiff", ".btf", ".tf8")
COARSEST_MPP = 20.0  # tags that say more are of screens and printers: 72 dpi would be 353 µm/px
_CACHE_BYTES = 2**26
_LARGEST_SEGMENT = 2**28  # bytes, decoded
# The parsers do not confine themselves to OSError on damaged files.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, RuntimeError, MemoryError,
    struct.error, zlib.error, tifffile.TiffFileError,
)  # fmt: skip
_MICROMETRES = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "inch": 25400.0}

Pixels = NDArray[np.uint8]


class Source(Protocol):
    """One open file; usable by several threads at once, but not after a fork."""

    format: str
    sizes: list[tuple[int, int]]  # (width, height) of each level, finest first
    mpp: tuple[float, float] | None  # x, y at level 0, as the file has it
    properties: dict[str, str]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Decode a box inside a level, in pixels of that level: (height, width, 3) uint8 on white."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


def open_source(path: Path) -> Source:
    """Open a file with the first reader that knows it.

    Raises:
        InputError: the file is absent, truncated, damaged, or no slide.
    """
    # Some slides are folders beside a small file; the file is what is named.
    if not path.is_file():
        raise InputError(f"{path}: there is no such slide; correct the path")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty; copy it again")
    try:
        if openslide.OpenSlide.detect_format(str(path)) is not None:
            return OpenSlideSource(path)
    except openslide.OpenSlideError as error:
        raise _damaged(path, error) from error
    if path.suffix.lower() in TIFF_EXTENSIONS or _is_tiff(path):
        return _open_tiff(path)
    return PictureSource(path)


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read, it may be truncated or damaged ({error}); copy it again")


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _on_white(rgba: Pixels) -> Pixels:
    """Composite (H, W, 4) with straight alpha on white."""
    rgb = np.ascontiguousarray(rgba[..., :3])
    seen = rgba[..., 3]
    clear = seen < 255
    if clear.any():
        alpha = seen[clear, None] / 255
        rgb[clear] = np.rint(255 + (rgb[clear] - 255.0) * alpha).astype(np.uint8)
    return rgb


class OpenSlideSource:
    """A format of OpenSlide; its tile cache (32 MB) bounds the memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slide = openslide.OpenSlide(str(path))
        self.properties = dict(self._slide.properties)
        self.format = self.properties.get("openslide.vendor", "openslide")
        self.sizes = list(self._slide.level_dimensions)
        self.mpp = None
        if "openslide.mpp-x" in self.properties:
            x, y = (float(self.properties.get(f"openslide.mpp-{axis}", "nan")) for axis in "xy")
            self.mpp = (x, y)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """See `Source`; where sizes of levels are no whole fractions, right within half a pixel of level 0."""
        scale = self._slide.level_downsamples[level]
        try:
            region = self._slide.read_region((round(x * scale), round(y * scale)), level, (width, height))
        except openslide.OpenSlideError as error:
            raise _damaged(self._path, error) from error
        return _on_white(np.asarray(region))

    def close(self) -> None:
        """See `Source`."""
        self._slide.close()


def _open_tiff(path: Path) -> Source:
    try:
        file = tifffile.TiffFile(path)
        pages = [page.aspage() for page in file.pages]
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if not pages:
        raise _damaged(path, EOFError("no pages"))
    if pages[0].compression not in tifffile.TIFF.DECOMPRESSORS:
        file.close()
        return PictureSource(path)  # Pillow decodes LZW and JPEG in strips, though only whole
    try:
        return TiffSource(path, file, pages)
    except InputError:
        file.close()
        raise
    except _DAMAGE as error:
        file.close()
        raise _damaged(path, error) from error


class TiffSource:
    """TIFF in tiles or strips, interleaved or in planes, decoded piece by piece."""

    format = "tiff"

    def __init__(self, path: Path, file: tifffile.TiffFile, pages: list[tifffile.TiffPage]) -> None:
        self._path = path
        self._file = file
        self._lock = threading.Lock()  # one file position for all threads
        self._pages = self._levels(pages)
        self.sizes = [(page.imagewidth, page.imagelength) for page in self._pages]
        self.mpp = _tiff_mpp(file, self._pages[0])
        self.properties = {"tiff.ImageDescription": pages[0].description} if pages[0].description else {}
        self._check_whole()
        largest = max(math.prod(page.chunks) for page in self._pages)
        self._segment = lru_cache(max(4, _CACHE_BYTES // largest))(self._decode)

    def _levels(self, pages: list[tifffile.TiffPage]) -> list[tifffile.TiffPage]:
        """Page 0 and its reductions, finest first, among the pages and below page 0."""
        base = pages[0]
        _check_colours(self._path, base)
        below = [page.aspage() for page in base.pages] if base.pages else []
        levels = [base]
        for page in sorted([*pages[1:], *below], key=lambda page: -page.imagewidth):
            same = page.dtype == base.dtype and page.samplesperpixel == base.samplesperpixel
            if not same or page.compression not in tifffile.TIFF.DECOMPRESSORS:
                continue  # labels, thumbnails, masks
            if page.shape == base.shape:
                raise InputError(f"{self._path}: holds several pages of one size; export the one you mean as its own")
            x, y = base.imagewidth / page.imagewidth, base.imagelength / page.imagelength
            if abs(x / y - 1) < 0.01 and page.imagewidth < levels[-1].imagewidth:
                levels.append(page)
        return levels

    def _check_whole(self) -> None:
        end = self._file.filehandle.size
        for page in self._pages:
            pieces = zip(page.dataoffsets, page.databytecounts, strict=True)
            if any(offset + count > end for offset, count in pieces):
                raise InputError(f"{self._path}: is truncated, pixels lie beyond its end; copy it again")
            if math.prod(page.chunks) > _LARGEST_SEGMENT:
                raise InputError(f"{self._path}: is stored in one piece too large to decode; save it in tiles")

    def _decode(self, level: int, index: int) -> Pixels | None:
        """One tile or strip, (rows, columns, samples); None where the file left it out."""
        page = self._pages[level]
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if count == 0:
            return None
        with self._lock:
            self._file.filehandle.seek(offset)
            data = self._file.filehandle.read(count)
        tables = {"jpegtables": page.jpegtables} if page.jpegtables else {}
        segment = page.decode(data, index, **tables)[0]
        return None if segment is None else segment[0]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """See `Source`."""
        page = self._pages[level]
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        tall, wide = page.chunks[-3:-1] if planes == 1 else page.chunks[-2:]
        across = math.ceil(page.imagewidth / wide)
        per_plane = across * math.ceil(page.imagelength / tall)
        pixels = np.full((height, width, page.samplesperpixel), 255, np.uint8)
        for row in range(y // tall, (y + height - 1) // tall + 1):
            for column in range(x // wide, (x + width - 1) // wide + 1):
                for plane in range(planes):
                    segment = self._checked_segment(level, plane * per_plane + row * across + column)
                    if segment is None:
                        continue
                    top, left = row * tall, column * wide
                    y0, y1 = max(y, top), min(y + height, top + segment.shape[0])
                    x0, x1 = max(x, left), min(x + width, left + segment.shape[1])
                    channels = slice(None) if planes == 1 else slice(plane, plane + 1)
                    pixels[y0 - y : y1 - y, x0 - x : x1 - x, channels] = segment[
                        y0 - top : y1 - top, x0 - left : x1 - left
                    ]
        return _on_white(pixels) if page.samplesperpixel == 4 else pixels

    def _checked_segment(self, level: int, index: int) -> Pixels | None:
        try:
            return self._segment(level, index)
        except _DAMAGE as error:
            raise _damaged(self._path, error) from error

    def close(self) -> None:
        """See `Source`."""
        self._file.close()


def _check_colours(path: Path, page: tifffile.TiffPage) -> None:
    if page.dtype != np.uint8:
        raise InputError(f"{path}: has {page.bitspersample} bits per colour ({page.dtype}); save it as 8-bit RGB")
    if page.samplesperpixel not in (3, 4) or page.photometric not in (2, 6):
        raise InputError(f"{path}: is no colour picture (stains are told apart by colour); give it as 8-bit RGB")


def _tiff_mpp(file: tifffile.TiffFile, page: tifffile.TiffPage) -> tuple[float, float] | None:
    """Pixel size by OME, by ImageJ's unit, or by the resolution tags."""
    if file.is_ome and file.ome_metadata:
        element = ElementTree.fromstring(file.ome_metadata).find(".//{*}Pixels")
        if element is not None and "PhysicalSizeX" in element.attrib:
            return _ome_length(element, "X"), _ome_length(element, "Y")
    tags = [page.tags.valueof(name) for name in ("XResolution", "YResolution")]
    if any(not tag or 0 in tag for tag in tags):
        return None
    unit = {2: "inch", 3: "cm"}.get(int(page.tags.valueof("ResolutionUnit", default=2)), "")
    if file.is_imagej and file.imagej_metadata:
        unit = str(file.imagej_metadata.get("unit", unit)).replace("\\u00B5", "µ")
    if unit not in _MICROMETRES:
        return None
    x, y = (_MICROMETRES[unit] * tag[1] / tag[0] for tag in tags)
    return x, y


def _ome_length(element: ElementTree.Element, axis: str) -> float:
    unit = element.get(f"PhysicalSize{axis}Unit", "µm")
    return float(element.get(f"PhysicalSize{axis}", "nan")) * _MICROMETRES.get(unit, math.nan)


class PictureSource:
    """A picture of one level (PNG, JPEG, BMP, plain TIFF), decoded whole once per process."""

    def __init__(self, path: Path) -> None:
        try:
            with Image.open(path) as image:
                self.format = str(image.format).lower()
                dpi = image.info.get("dpi")
        except Image.DecompressionBombError as error:
            raise InputError(f"{path}: is too large for a picture of one piece; save it as a tiled TIFF") from error
        except _DAMAGE as error:
            raise InputError(f"{path}: is no slide or picture that can be read ({error}); give another file") from error
        self._path = path
        self.sizes = [check_image(path)]
        self.mpp = (25400 / float(dpi[0]), 25400 / float(dpi[1])) if dpi and dpi[0] > 0 and dpi[1] > 0 else None
        self.properties: dict[str, str] = {}
        self._lock = threading.Lock()
        self._pixels: Pixels | None = None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """See `Source`."""
        with self._lock:
            if self._pixels is None:
                self._pixels = self._decode()
        return self._pixels[y : y + height, x : x + width]

    def _decode(self) -> Pixels:
        try:
            with Image.open(self._path) as image:
                turned = ImageOps.exif_transpose(image) if self.format in ("jpeg", "mpo", "webp") else image
                if turned.mode == "RGBA" or "transparency" in turned.info:
                    return _on_white(np.asarray(turned.convert("RGBA")))
                return np.array(turned)
        except _DAMAGE as error:
            raise _damaged(self._path, error) from error

    def close(self) -> None:
        """See `Source`."""
        self._pixels = None


def stored_mpp(path: Path) -> float | None:
    """Micrometres per pixel that a picture or slide says of itself; None where it says none that can be right.

    Values above 20 µm/px are what programs write for screens and paper; pixels that are not square have no one value.
    """
    try:
        source = open_source(path)
    except InputError:
        return None
    try:
        x, y = source.mpp or (math.nan, math.nan)
    finally:
        source.close()
    plausible = 0 < x <= COARSEST_MPP and 0 < y <= COARSEST_MPP and max(x, y) <= 1.01 * min(x, y)
    return (x + y) / 2 if plausible else None
