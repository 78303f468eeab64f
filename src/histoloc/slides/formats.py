"""The files behind a slide: whole-slide formats, TIFF that OpenSlide refuses, pictures.

A source gives the sizes of its levels and decodes boxes that lie inside a level; it knows nothing of scales.
"""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray
from PIL import Image

from histoloc.data.decoder import check_inflated, check_planes, decoding
from histoloc.data.images import blend_on_white, check_image, read_image
from histoloc.errors import InputError

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CACHE_BYTES = 2**26
_LARGEST_SEGMENT = 2**28  # bytes, decoded
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
    with decoding(path):
        vendor = openslide.OpenSlide.detect_format(str(path))
        if vendor not in (None, "generic-tiff"):
            return OpenSlideSource(path)
        with path.open("rb") as file:
            if file.read(4) not in _TIFF_STARTS:
                return PictureSource(path)
        with tifffile.TiffFile(path) as file:
            page = file.pages.first.aspage()
            _check_page(path, page)
            turned = page.tags.valueof(274, default=1) != 1
            own = page.compression in tifffile.TIFF.DECOMPRESSORS and page.photometric == 2 and not turned
        # OpenSlide takes any fourth sample for transparency and turns each tile; Pillow decodes all, but whole.
        if vendor is not None and 0 not in page.extrasamples and not turned:
            return OpenSlideSource(path)
        return TiffSource(path) if own else PictureSource(path)


def _check_page(path: Path, page: tifffile.TiffPage) -> None:
    """Refuse what is no 8-bit RGB; OpenSlide would cut 16 bits to 8."""
    check_planes(path, page.tags.valueof(284, default=1))
    if page.dtype != np.uint8:
        raise InputError(f"{path}: has {page.bitspersample} bits per colour ({page.dtype}); save it as 8-bit RGB")
    if page.samplesperpixel < 3 or page.photometric not in (2, 6):
        raise InputError(f"{path}: is no colour picture in RGB, but stains differ by colour; give it as 8-bit RGB")


class OpenSlideSource:
    """A format of OpenSlide; its tile cache (32 MB) bounds the memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slide = openslide.OpenSlide(str(path))
        self.properties = dict(self._slide.properties)
        self.format = self.properties.get("openslide.vendor", "openslide")
        self.sizes = list(self._slide.level_dimensions)
        x, y = (float(self.properties.get(f"openslide.mpp-{axis}", "nan")) for axis in "xy")
        self.mpp = None if math.isnan(x) else (x, y)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """See `Source`; where sizes of levels are no whole fractions, right within half a pixel of level 0."""
        scale = self._slide.level_downsamples[level]
        with decoding(self._path):
            region = self._slide.read_region((round(x * scale), round(y * scale)), level, (width, height))
        return blend_on_white(np.asarray(region))

    def close(self) -> None:
        """See `Source`."""
        self._slide.close()


class TiffSource:
    """TIFF in tiles or strips, interleaved or in planes, decoded piece by piece."""

    format = "tiff"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = tifffile.TiffFile(path)
        try:
            self._lock = threading.Lock()  # one file position for all threads
            self._pages = _levels(path, self._file)
            self.sizes = [(page.imagewidth, page.imagelength) for page in self._pages]
            base = self._pages[0]
            self.mpp = _tiff_mpp(self._file, base)
            self.properties = {"tiff.ImageDescription": base.description} if base.description else {}
            largest = max(math.prod(page.chunks) for page in self._pages)
            for page in self._pages:
                if (np.add(page.dataoffsets, page.databytecounts) > self._file.filehandle.size).any():
                    raise InputError(f"{path}: is truncated, pixels lie beyond its end; copy it again")
            if largest > _LARGEST_SEGMENT:
                raise InputError(f"{path}: is stored in one piece too large to decode; save it in tiles")
            self._segment = lru_cache(max(4, _CACHE_BYTES // largest))(self._decode)
        except BaseException:
            self.close()
            raise

    def _decode(self, level: int, index: int) -> Pixels | None:
        """One tile or strip, (rows, columns, samples); None where the file left it out."""
        page = self._pages[level]
        count = page.databytecounts[index]
        if count == 0:
            return None
        with self._lock:
            self._file.filehandle.seek(page.dataoffsets[index])
            data = self._file.filehandle.read(count)
        check_inflated(self._path, page, data)
        tables = {"jpegtables": page.jpegtables} if page.jpegtables else {}
        segment = page.decode(data, index, **tables)[0]
        return None if segment is None else segment[0]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """See `Source`."""
        page = self._pages[level]
        planes, samples = (page.samplesperpixel, 1) if page.planarconfig == 2 else (1, page.samplesperpixel)
        tall, wide = page.chunks[:2]
        grid = np.arange(len(page.dataoffsets)).reshape(planes, -1, math.ceil(page.imagewidth / wide))
        rows, columns = range(y // tall, -(-(y + height) // tall)), range(x // wide, -(-(x + width) // wide))
        pixels = np.full((height, width, page.samplesperpixel), 255, np.uint8)
        for plane, row, column in product(range(planes), rows, columns):
            with decoding(self._path):
                segment = self._segment(level, int(grid[plane, row, column]))
            if segment is not None:
                top, left = max(y - row * tall, 0), max(x - column * wide, 0)
                part = segment[top : y + height - row * tall, left : x + width - column * wide]
                place = pixels[max(row * tall - y, 0) :, max(column * wide - x, 0) :, plane * samples :]
                place[: part.shape[0], : part.shape[1], :samples] = part
        kind = page.extrasamples[0] if page.extrasamples else 2  # of a fourth sample; 0 is no transparency
        return blend_on_white(pixels[..., : 4 if kind else 3], premultiplied=kind == 1)

    def close(self) -> None:
        """See `Source`."""
        self._file.close()


def _levels(path: Path, file: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """Page 0 and its reductions, finest first, among the pages and below page 0; not labels and masks."""
    if not file.pages:
        raise EOFError("no pages")
    base, *others = (file.pages[i].aspage() for i in range(len(file.pages)))  # a chain in a circle has no end
    others += [page.aspage() for page in base.pages or ()]
    alike = [page for page in others if (page.dtype, page.samplesperpixel) == (base.dtype, base.samplesperpixel)]
    alike = [page for page in alike if page.compression in tifffile.TIFF.DECOMPRESSORS]
    if any(page.shape == base.shape for page in alike):
        raise InputError(f"{path}: holds several pages of one size; export the one you mean as its own")
    smaller = [page for page in alike if page.imagewidth < base.imagewidth]
    return [base, *sorted(smaller, key=lambda page: -page.imagewidth)]


def _tiff_mpp(file: tifffile.TiffFile, page: tifffile.TiffPage) -> tuple[float, float] | None:
    """Pixel size by OME, by ImageJ's unit, or by the resolution tags."""
    if file.is_ome and file.ome_metadata:
        element = ElementTree.fromstring(file.ome_metadata).find(".//{*}Pixels")
        size = {} if element is None else {key.removeprefix("PhysicalSize"): v for key, v in element.attrib.items()}
        if "X" in size:
            units = (_MICROMETRES.get(size.get(f"{axis}Unit", "µm"), math.nan) for axis in "XY")
            x, y = (float(size.get(axis, "nan")) * unit for axis, unit in zip("XY", units, strict=True))
            return x, y
    tags = [page.tags.valueof(name) for name in ("XResolution", "YResolution")]
    unit = {2: "inch", 3: "cm"}.get(int(page.tags.valueof("ResolutionUnit", default=2)), "")
    if file.is_imagej and file.imagej_metadata:
        unit = str(file.imagej_metadata.get("unit", unit)).replace("\\u00B5", "µ")
    if unit not in _MICROMETRES or any(not tag or 0 in tag for tag in tags):
        return None
    x, y = (_MICROMETRES[unit] * tag[1] / tag[0] for tag in tags)
    return x, y


class PictureSource:
    """A picture of one level (PNG, JPEG, BMP, plain TIFF), decoded whole once per process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.sizes = [check_image(path)]
        with Image.open(path) as image:
            self.format = str(image.format).lower()
            x, y = (float(value) for value in image.info.get("dpi", (0, 0)))
        self.mpp = (25400 / x, 25400 / y) if x > 0 and y > 0 else None
        self.properties: dict[str, str] = {}
        self._lock = threading.Lock()
        self._pixels: Pixels | None = None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """See `Source`."""
        with self._lock:
            if self._pixels is None:
                self._pixels = read_image(self._path, on_white=True)
        return self._pixels[y : y + height, x : x + width]

    def close(self) -> None:
        """See `Source`."""
        self._pixels = None
