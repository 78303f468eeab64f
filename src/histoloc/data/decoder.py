"""What a picture file holds, as it is stored: the one place that opens and decodes plain pictures."""

import logging
import lzma
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from histoloc.errors import InputError

# Without a handler its log of damaged files lands on the screen; what is wrong is said by errors.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
warnings.filterwarnings("ignore", module="PIL")  # of EXIF that is cut, of sizes that LARGEST_IMAGE refuses

LARGEST_IMAGE = 2**26  # pixels; what is decoded whole is in memory several times
INVERTED = (
    "has an inverted lookup table (TIFF's MinIsWhite): what is stored as 255 is shown as 0, and either may be meant; "
    "save it without the table, for instance as PNG"
)
# EPS and PDF are absent on purpose: Pillow would start other programs to open them.
_FORMATS = ("PNG", "BMP", "JPEG", "TIFF", "WEBP", "GIF")
_TOO_LARGE = f"has more than {LARGEST_IMAGE:,} pixels, too many for one piece; cut it, or save it as a tiled TIFF slide"
_INFLATERS = {8: zlib.decompressobj, 32946: zlib.decompressobj, 34925: lzma.LZMADecompressor}  # by compression of TIFF
_SAFE_INFLATED = 2**28  # bytes

Opened = Image.Image | NDArray[Any]


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turn whatever a parser raises on a damaged file into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: {_TOO_LARGE}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: is no readable image; save it as PNG, BMP, JPEG or TIFF") from error
    except Exception as error:  # no parser confines itself to errors of one kind
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read, it may be truncated or damaged ({reason}); copy it again") from error


@contextmanager
def open_picture(path: Path) -> Iterator[Opened]:
    """Open a file of one picture; an array where the file is one, or a TIFF of numbers that Pillow lacks.

    Every failure to decode it inside the block becomes an InputError, as do several pages and too many pixels.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; correct the path")
    with decoding(path):
        if path.suffix.lower() == ".npy":
            with np.errstate(over="ignore"):  # of a shape that cannot be; it is refused
                values = np.load(path, mmap_mode="r", allow_pickle=False)
            yield _checked(path, values)
            return
        with path.open("rb") as stream:  # of a name Pillow maps plain TIFF into memory, and turns it wrongly
            try:
                image = Image.open(stream, formats=_FORMATS)
            except UnidentifiedImageError:
                yield _checked(path, _wide_tiff(path))
                return
            if getattr(image, "is_animated", False):
                raise InputError(f"{path}: holds several pages or frames; export the one you mean as its own file")
            check_pixels(path, *image.size)
            if image.format == "TIFF":
                _check_pieces(path, image)
            yield image


def check_pixels(path: Path, width: int, height: int) -> None:
    """Refuse a picture that is too large to be decoded whole.

    Raises:
        InputError: it has more than 2²⁶ pixels.
    """
    if width * height > LARGEST_IMAGE:
        raise InputError(f"{path}: {_TOO_LARGE}")


def _check_pieces(path: Path, image: Image.Image) -> None:
    """Refuse a TIFF whose tiles are larger than a picture may be, or whose strips leave a part of it black."""
    check_pixels(path, tiff_tag(image, 322, 1), tiff_tag(image, 323, 1))
    check_planes(path, tiff_tag(image, 284, 1))
    boxes = [piece.extents or (0, 0, 0, 0) for piece in getattr(image, "tile", ())]
    if sum((right - left) * (lower - upper) for left, upper, right, lower in boxes) < image.width * image.height:
        raise InputError(f"{path}: is damaged, some of its rows are missing; copy it again")


def check_planes(path: Path, layout: object) -> None:
    """Refuse a TIFF that says in no known way how its colours lie.

    Raises:
        InputError: its PlanarConfiguration is not 1 or 2.
    """
    if layout not in (1, 2):
        raise InputError(f"{path}: does not say whether its colours lie by pixel or by plane (tag 284); save it anew")


def check_inflated(path: Path, page: tifffile.TiffPage, data: bytes) -> None:
    """Refuse a tile or strip that becomes larger than it may be, since tifffile inflates all of it.

    Raises:
        InputError: it inflates to more than 256 MB and to more than twice its size.
    """
    inflater = _INFLATERS.get(page.compression)
    if inflater is None or len(data) < _SAFE_INFLATED // 8000:  # what is smaller cannot become so large
        return
    largest = max(_SAFE_INFLATED, math.prod(page.chunks) * page.bitspersample // 4)
    if len(inflater().decompress(data, largest)) == largest:
        raise InputError(f"{path}: a tile or strip of it holds more pixels than it has room for; copy it again")


def _checked(path: Path, values: object) -> NDArray[Any]:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fbiu":
        raise InputError(f"{path}: is not one array of real numbers; save it as float32 with numpy.save")
    check_pixels(path, values.size, max(1, values.itemsize // 4))
    one = values.squeeze() if values.ndim > 2 else values
    if one.ndim not in (2, 3) or one.size == 0:
        raise InputError(f"{path}: has the shape {values.shape}, not (height, width); save one picture")
    return one


def _wide_tiff(path: Path) -> NDArray[Any]:
    """Decode a TIFF of numbers that Pillow lacks: half and double precision, 64 bits, colours of floats."""
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            check_pixels(path, max(page.size, page.nbytes // 4), len(file.pages))
            if page.tags.valueof(274, default=1) != 1:
                raise InputError(f"{path}: is not stored upright (orientation tag); save it without the tag")
            if page.photometric == 0:
                raise InputError(f"{path}: {INVERTED}")
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                file.filehandle.seek(offset)
                check_inflated(path, page, file.filehandle.read(count))
            return file.asarray()  # of several pages three or more dimensions
    except tifffile.TiffFileError as error:
        raise UnidentifiedImageError from error


def tiff_tag(image: Image.Image, number: int, default: int) -> int:
    """The first value of a TIFF's tag."""
    return int(np.atleast_1d(getattr(image, "tag_v2", {}).get(number, default))[0])


def colour_mode(file: Opened) -> str:
    """Pillow's colour mode, with `;16` for colours of more than 8 bits, which Pillow would cut off in silence."""
    if isinstance(file, np.ndarray):
        return "array"
    if file.mode not in ("RGB", "RGBA"):
        return "I;16" if file.mode.startswith("I;16") or (file.mode, file.format) == ("I", "PNG") else file.mode
    deep = any(";16" in str(part.args) for part in getattr(file, "tile", ())) or tiff_tag(file, 258, 8) > 8
    return f"{file.mode};16" if deep else file.mode


def shown_size(path: Path, file: Opened) -> tuple[int, int]:
    """Width and height as the picture is shown; of TIFF Pillow says it."""
    if isinstance(file, np.ndarray):
        return file.shape[-1], file.shape[-2]
    if file.format == "PNG" and _ends_with_text(path):
        file.load()
    width, height = file.size
    # Image.getexif, because that of PNG decodes all pixels.
    turned = file.format != "TIFF" and Image.Image.getexif(file).get(0x0112, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def _ends_with_text(path: Path) -> bool:
    """Whether EXIF or text of a PNG follows its pixels, where Pillow sees it only after decoding them."""
    pixels = False
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if pixels and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                return True
            pixels |= kind == b"IDAT"
            file.seek(length + 4, 1)
    return False


def decode(image: Image.Image) -> NDArray[Any]:
    """Pixels as the image is shown, turned by EXIF and XMP; in bands, since Pillow would hold them three times."""
    ImageOps.exif_transpose(image, in_place=True)
    line = np.asarray(image.crop((0, 0, image.width, 1)))
    pixels = np.empty((image.height, *line.shape[1:]), line.dtype)
    for y in range(0, image.height, 16):
        pixels[y : y + 16] = image.crop((0, y, image.width, min(y + 16, image.height)))
    return pixels
