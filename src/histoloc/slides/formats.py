"""The files behind a slide: whole-slide formats, TIFF that OpenSlide refuses, pictures.

A source gives the sizes of its levels and decodes boxes that lie inside a level; it knows nothing of scales.
"""

from __future__ import annotations

import math
import re
import threading
from contextlib import suppress
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
_MACRO = 9  # NewSubfileType of Aperio's picture of the glass
# Orientation -> whether stored rows are columns, and whether then rows and columns run backwards.
_TURNS = {
    1: (False, False, False), 2: (False, False, True), 3: (False, True, True), 4: (False, True, False),
    5: (True, False, False), 6: (True, False, True), 7: (True, True, True), 8: (True, True, False),
}  # fmt: skip
_MICROMETRES = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "inch": 25400.0}

NEAR = 0.01  # scales that differ by no more than 1 % are one
COARSEST_MPP = 20.0  # tags that say more are of screens and printers: 72 dpi would be 353 µm/px
MPP_NOTE = "histoloc.mpp"  # property: what else the file says of its scale

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
        with path.open("rb") as file:
            is_tiff = file.read(4) in _TIFF_STARTS
        if not is_tiff:
            return PictureSource(path) if vendor is None else OpenSlideSource(path)
        if vendor not in (None, "generic-tiff"):
            with suppress(EOFError, tifffile.TiffFileError), tifffile.TiffFile(path) as tiff:
                if tiff.pages.first.aspage().tags.valueof(274, default=1) != 1:
                    raise InputError(
                        f"{path}: has an orientation tag, which readers of TIFF follow and those of {vendor} slides do "
                        "not; save it upright without the tag"
                    )
            return OpenSlideSource(path)
        source = TiffSource(path)
        if vendor is not None and source.is_plain:
            quick = OpenSlideSource(path)  # decodes more, and faster; of scales and levels tifffile knows more
            common = [size for size in source.sizes if size in quick.sizes]
            if common == source.sizes or not source.is_decoded:
                quick.mpp, quick.properties = source.mpp, quick.properties | source.properties
                quick.indices, quick.sizes = [quick.sizes.index(size) for size in common], common
                source.close()
                return quick
        if source.is_decoded:
            return source
        source.close()
        return PictureSource(path, source.mpp)  # Pillow decodes LZW, JPEG and YCbCr, though only whole


class OpenSlideSource:
    """A format of OpenSlide; its tile cache (32 MB) bounds the memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slide = openslide.OpenSlide(str(path))
        self.properties = dict(self._slide.properties)
        self.format = self.properties.get("openslide.vendor", "openslide")
        self.sizes = list(self._slide.level_dimensions)
        self.indices = list(range(len(self.sizes)))
        x, y = (float(self.properties.get(f"openslide.mpp-{axis}", "nan")) for axis in "xy")
        self.mpp = None if math.isnan(x) else (x, y)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """See `Source`; where sizes of levels are no whole fractions, right within half a pixel of level 0."""
        index = self.indices[level]
        scale = self._slide.level_downsamples[index]
        with decoding(self._path):
            region = self._slide.read_region((round(x * scale), round(y * scale)), index, (width, height))
        return blend_on_white(np.asarray(region))

    def close(self) -> None:
        """See `Source`."""
        self._slide.close()


class TiffSource:
    """TIFF in tiles or strips, interleaved or in planes, decoded piece by piece and turned as its tag says.

    Attributes:
        is_plain: whether OpenSlide gives the same pixels: it turns each tile by itself, and takes any fourth sample for
            transparency.
        is_decoded: whether pieces can be decoded.
    """

    format = "tiff"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = tifffile.TiffFile(path)
        try:
            self._lock = threading.Lock()  # one file position for all threads
            self._pages = _levels(path, self._file)
            base = self._pages[0]
            self._turn = _TURNS.get(int(base.tags.valueof("Orientation", default=1)), _TURNS[1])
            self.sizes = [(page.imagewidth, page.imagelength) for page in self._pages]
            self.mpp, self.properties = _tiff_mpp(self._file, base)
            if self._turn[0]:
                self.sizes = [(height, width) for width, height in self.sizes]
                self.mpp = self.mpp and (self.mpp[1], self.mpp[0])
            self.properties |= {"tiff.ImageDescription": base.description} if base.description else {}
            self.is_plain = self._turn == _TURNS[1] and 0 not in base.extrasamples
            # Without a JPEG decoder tifffile would give Y, Cb and Cr.
            self.is_decoded = base.compression in tifffile.TIFF.DECOMPRESSORS and base.photometric == 2
            largest = max(math.prod(page.chunks) for page in self._pages)
            for page in self._pages:
                _check_places(path, page, self._file.filehandle.size)
            if self.is_decoded and largest > _LARGEST_SEGMENT:
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
        segment = page.decode(data, index)[0]
        return None if segment is None else segment[0]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """See `Source`."""
        transposed, flip_y, flip_x = self._turn
        across, down = self.sizes[level]
        x, y = across - x - width if flip_x else x, down - y - height if flip_y else y
        box = (y, x, height, width) if transposed else (x, y, width, height)
        pixels = self._read(self._pages[level], level, *box)
        pixels = pixels.swapaxes(0, 1) if transposed else pixels
        return pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]

    def _read(self, page: tifffile.TiffPage, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """A box as it is stored."""
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


def _check_places(path: Path, page: tifffile.TiffPage, size: int) -> None:
    """Refuse a page some of whose tiles or strips are nowhere in a file of `size` bytes."""
    offsets, counts = np.array(page.dataoffsets, np.int64), np.array(page.databytecounts, np.int64)
    if (offsets + counts > size).any():
        raise InputError(f"{path}: is truncated, pixels lie beyond its end; copy it again")
    if len(offsets) != math.prod(page.chunked) or (offsets[counts > 0] < len(_TIFF_STARTS[0])).any():
        raise InputError(f"{path}: is damaged, it does not say where all its pixels are; copy it again")


def _levels(path: Path, file: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """Page 0 and its reductions, finest first, among the pages and below page 0; not labels, macros and masks."""
    if not file.pages:
        raise EOFError("no pages")
    pages = [file.pages[i].aspage() for i in range(len(file.pages))]  # a chain in a circle has no end
    # Of a TIFF the largest page; the first image of OME, which keeps reductions below its page.
    base = pages[0] if file.is_ome else max(pages, key=lambda page: page.imagewidth * page.imagelength)
    others = [page for page in pages if page is not base]
    check_planes(path, base.tags.valueof(284, default=1))
    if base.dtype != np.uint8:
        raise InputError(f"{path}: has {base.bitspersample} bits per colour ({base.dtype}); save it as 8-bit RGB")
    if base.samplesperpixel < 3 or base.photometric not in (2, 6):
        raise InputError(f"{path}: is no colour picture in RGB, but stains differ by colour; give it as 8-bit RGB")
    key = (base.dtype, base.samplesperpixel, base.compression)
    if any(page.shape == base.shape and page.dtype == base.dtype for page in others):
        raise InputError(f"{path}: holds several pages of one size; export the one you mean as its own")
    others = [*([] if file.is_ome else others), *(page.aspage() for page in base.pages or ())]
    smaller = [
        page
        for page in others
        if (page.dtype, page.samplesperpixel, page.compression) == key
        and page.imagewidth < base.imagewidth
        and page.subfiletype != _MACRO
        and not re.match(r"\W*(label|macro|thumbnail)", page.description, re.IGNORECASE)
    ]
    return [base, *sorted(smaller, key=lambda page: -page.imagewidth)]


def _tiff_mpp(file: tifffile.TiffFile, page: tifffile.TiffPage) -> tuple[tuple[float, float] | None, dict[str, str]]:
    """Pixel size by OME, or else by ImageJ's unit or the resolution tags; and, as a property, where these differ."""
    tags = [page.tags.valueof(name) for name in ("XResolution", "YResolution")]
    unit = {2: "inch", 3: "cm"}.get(int(page.tags.valueof("ResolutionUnit", default=2)), "")
    if file.is_imagej and file.imagej_metadata:
        unit = str(file.imagej_metadata.get("unit", unit)).replace("\\u00B5", "µ")
    by_tags = None
    if unit in _MICROMETRES and all(tag and 0 not in tag for tag in tags):
        by_tags = (_MICROMETRES[unit] * tags[0][1] / tags[0][0], _MICROMETRES[unit] * tags[1][1] / tags[1][0])
    if file.is_ome and file.ome_metadata:
        element = ElementTree.fromstring(file.ome_metadata).find(".//{*}Pixels")
        size = {} if element is None else {key.removeprefix("PhysicalSize"): v for key, v in element.attrib.items()}
        if "X" in size:
            units = (_MICROMETRES.get(size.get(f"{axis}Unit", "µm"), math.nan) for axis in "XY")
            x, y = (float(size.get(axis, "nan")) * unit for axis, unit in zip("XY", units, strict=True))
            if x > 0 and y > 0:
                other = by_tags[0] if by_tags and max(by_tags) <= COARSEST_MPP else x
                note = {} if abs(other / x - 1) <= NEAR else {MPP_NOTE: f"{other:.4g} µm/px in its resolution tags"}
                return (x, y), note
    return by_tags, {}


class PictureSource:
    """A picture of one level (PNG, JPEG, BMP, plain TIFF), decoded whole once per process as every image is."""

    def __init__(self, path: Path, mpp: tuple[float, float] | None = None) -> None:
        self._path = path
        self.sizes = [check_image(path)]
        with Image.open(path) as image:
            self.format = str(image.format).lower()
            x, y = (float(value) for value in image.info.get("dpi", (0, 0)))
        self.mpp = mpp or ((25400 / x, 25400 / y) if x > 0 and y > 0 else None)
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
