"""Reading and writing images, masks and ROI maps; the only file that decodes pixels of plain images."""

import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from histoloc.errors import InputError
from histoloc.work_folder import atomic_path

# Without a handler its log of damaged files lands on the screen; what is wrong is said by errors.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

IMAGE_EXTENSIONS = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")
MAP_EXTENSIONS = (".npy", ".png", ".tif", ".tiff")
SMALLEST_SIDE = 32
JPEG_QUALITY = 90

# EPS and PDF are absent on purpose: Pillow would start other programs to open them.
_FORMATS = ("PNG", "BMP", "JPEG", "TIFF", "WEBP", "GIF")
_LOSSY = ("JPEG", "MPO", "WEBP")
# What Pillow and tifffile raise on damaged files; the parsers do not confine themselves to OSError.
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, MemoryError,
    struct.error, Image.DecompressionBombError, tifffile.TiffFileError,
)  # fmt: skip
_MODE_REMEDIES = {
    "CMYK": "is a CMYK image, whose inks are not the colours that a microscope saw; save it as 8-bit RGB",
    "P": "is a palette image; save it as 8-bit RGB",
    "PA": "is a palette image; save it as 8-bit RGB",
    "L": "is a grey-scale image, but stains are told apart by colour; give the 8-bit RGB image",
    "LA": "is a grey-scale image, but stains are told apart by colour; give the 8-bit RGB image",
    "1": "is a grey-scale image, but stains are told apart by colour; give the 8-bit RGB image",
    "F": "is a floating-point image; save it as 8-bit RGB",
    "I": "is a 16- or 32-bit image; save it as 8-bit RGB",
}


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; every failure to decode it inside the block becomes an InputError."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; correct the path")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            yield image
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: is too large for a plain image; treat it as a slide or cut it") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: is no readable image; save it as PNG, BMP, JPEG or TIFF") from error
    except _DECODING_ERRORS as error:
        raise InputError(f"{path}: cannot be read, it may be truncated or damaged ({error}); copy it again") from error


def _size(image: Image.Image) -> tuple[int, int]:
    """Width and height as the image is shown; Pillow itself turns TIFF, but not JPEG."""
    width, height = image.size
    turned = image.format in _LOSSY and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def _check_one_page(path: Path, image: Image.Image) -> None:
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise InputError(f"{path}: holds {pages} pages or frames; export the one you mean as its own file")


def _is_deep(image: Image.Image) -> bool:
    """Whether the colours have more than 8 bits, which Pillow would cut off in silence."""
    rawmodes = [str(part.args) for part in getattr(image, "tile", ())]
    bits = getattr(image, "tag_v2", {}).get(258, (8,))
    return any(";16" in rawmode for rawmode in rawmodes) or max(np.atleast_1d(bits)) > 8


def _check_header(path: Path, image: Image.Image) -> tuple[int, int]:
    """Refuse what is no single-page 8-bit RGB(A) image of at least 32 px a side; give width and height."""
    _check_one_page(path, image)
    if image.mode.startswith("I;16") or (image.mode in ("RGB", "RGBA") and _is_deep(image)):
        raise InputError(f"{path}: is a 16-bit image; save it as 8-bit RGB")
    if image.mode not in ("RGB", "RGBA"):
        remedy = _MODE_REMEDIES.get(image.mode, f"has the colour mode {image.mode}; save it as 8-bit RGB")
        raise InputError(f"{path}: {remedy}")
    width, height = _size(image)
    if min(width, height) < SMALLEST_SIDE:
        raise InputError(
            f"{path}: is {width}x{height} px; images need at least {SMALLEST_SIDE} px on each side, "
            f"so leave it out or give it at a higher magnification"
        )
    return width, height


def _rgb(path: Path, image: Image.Image) -> NDArray[np.uint8]:
    """Decode an RGB or RGBA image, turned as it is shown, without its alpha channel, which must be opaque."""
    if image.mode == "RGB" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.format in _LOSSY:
        image = ImageOps.exif_transpose(image)
    pixels = np.array(image)
    if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
        raise InputError(f"{path}: is partly transparent; save it without an alpha channel, as 8-bit RGB")
    return np.ascontiguousarray(pixels[..., :3])


def image_size(path: Path) -> tuple[int, int]:
    """Read (width, height) in pixels from the header alone, for an image or a mask of any mode.

    Raises:
        InputError: the file is missing or its header cannot be read.
    """
    path = Path(path)
    with _opened(path) as image:
        return _size(image)


def check_image(path: Path) -> tuple[int, int]:
    """Do every check of `read_image` that the header allows, without decoding pixels.

    Returns:
        (width, height) in pixels.

    Raises:
        InputError: as `read_image`, except that truncated pixels and transparency pass unseen.
    """
    path = Path(path)
    with _opened(path) as image:
        return _check_header(path, image)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an 8-bit RGB image.

    A fully opaque alpha channel is dropped, and the orientation that a camera noted is applied. Nothing else
    is converted: a conversion that changes what the network sees is the user's to make.

    Returns:
        (H, W, 3) uint8.

    Raises:
        InputError: the file is missing, unreadable, truncated, CMYK, 16-bit, palette, grey-scale, partly
            transparent, smaller than 32 px on a side, or has several pages.
    """
    path = Path(path)
    with _opened(path) as image:
        _check_header(path, image)
        return _rgb(path, image)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask: every non-zero value is ROI, whether instance id, palette index, 1, 8 or 16 bits.

    Returns:
        (H, W) bool.

    Raises:
        InputError: the file is missing or unreadable, has several pages, is coloured with unequal channels,
            is floating-point, or was blurred by lossy compression, which makes background values non-zero.
    """
    path = Path(path)
    with _opened(path) as image:
        _check_one_page(path, image)
        if image.mode in ("RGB", "RGBA") and not _is_deep(image):
            pixels = _rgb(path, image)
            if (pixels != pixels[..., :1]).any():
                raise InputError(
                    f"{path}: is a coloured picture, not a mask; save one channel in which 0 is background"
                )
            values = pixels[..., 0]
        elif image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16"):
            turned = ImageOps.exif_transpose(image) if image.format in _LOSSY else image
            values = np.asarray(turned)
        else:
            raise InputError(f"{path}: cannot be a mask (colour mode {image.mode}); save integers in one channel")
        if image.format in _LOSSY and ((values != 0) & (values != 255)).any():
            raise InputError(
                f"{path}: was saved with lossy compression, so its background is not 0 everywhere; save the mask as PNG"
            )
    return values != 0


def read_map(path: Path) -> NDArray[np.float32]:
    """Read a ROI map (heatmap) by anybody: `.npy`, 8- or 16-bit grey `.png`, integer or float `.tif`.

    Integers of 8 and 16 bits in pictures are divided by 255 and 65535; everything else is taken as it stands.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        InputError: the file is missing or unreadable, is not two-dimensional, or holds a value that is not
            finite or outside [0, 1].
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in MAP_EXTENSIONS:
        raise InputError(f"{path}: a heatmap is one of {', '.join(MAP_EXTENSIONS)}; save it as one of these")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; correct the path")
    values = _read_npy(path) if kind == ".npy" else _read_grey(path)
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(
            f"{path}: a heatmap has the two dimensions (height, width), not the shape {values.shape}; "
            f"save one map of one image"
        )
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds NaN or infinite values; replace them by values between 0 and 1")
    low, high = values.min(), values.max()
    if low < 0 or high > 1:
        raise InputError(f"{path}: holds values from {low:g} to {high:g}; scale the heatmap to [0, 1]")
    return values.astype(np.float32)


def _read_npy(path: Path) -> NDArray[np.generic]:
    try:
        values = np.load(path, allow_pickle=False)
    except _DECODING_ERRORS as error:
        raise InputError(f"{path}: is no readable array ({error}); save it with numpy.save") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fbiu":
        raise InputError(f"{path}: is not one array of real numbers; save the map as float32 with numpy.save")
    return values


def _read_grey(path: Path) -> NDArray[np.generic]:
    """Decode a one-channel picture to [0, 1]; Pillow lacks float16 and float64 TIFF, which tifffile reads."""
    if path.suffix.lower() != ".png" and (values := _read_double(path)) is not None:
        return values
    with _opened(path) as image:
        _check_one_page(path, image)
        values = np.asarray(image)
        if image.mode == "1":
            return values.astype(np.float32)
        if image.mode == "F":
            return values
        if image.mode == "L":
            return values / np.float32(255)
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
            return values / np.float32(65535)
        raise InputError(
            f"{path}: is not an 8- or 16-bit grey or a floating-point picture (colour mode {image.mode}); "
            f"save the values themselves, not a coloured rendering, for instance with numpy.save"
        )


def _read_double(path: Path) -> NDArray[np.generic] | None:
    """Read a one-page TIFF of float16 or float64; None when it is something else."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            if len(tiff.pages) != 1 or page.dtype not in (np.float16, np.float64):
                return None
            return page.asarray()
    except _DECODING_ERRORS as error:
        raise InputError(f"{path}: is truncated or damaged ({error}); save it again") from error


def write_map(path: Path, roi: NDArray[np.floating]) -> None:
    """Write a (H, W) map in [0, 1] as an 8-bit grey PNG, atomically; `read_map` gives it back within 1/510.

    Raises:
        ValueError: the map is not two-dimensional, not finite or outside [0, 1].
    """
    roi = np.asarray(roi)
    if roi.ndim != 2 or not (np.isfinite(roi).all() and roi.min() >= 0 and roi.max() <= 1):
        raise ValueError("a ROI map is a two-dimensional array of values in [0, 1]")
    write_picture(path, np.rint(roi * 255).astype(np.uint8))


def write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    """Write a (H, W) bool mask as an 8-bit grey PNG of 0 and 255, atomically."""
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError("a mask is a two-dimensional array of bool")
    write_picture(path, mask.astype(np.uint8) * np.uint8(255))


def write_picture(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16], *, compress_level: int = 6) -> None:
    """Write (H, W) or (H, W, 3) pixels atomically, as JPEG where the name ends in .jpg or .jpeg, else as PNG.

    A JPEG has quality 90 and all of its colour, because stains are told apart by it; uint16 needs a PNG.

    Args:
        path: the file.
        pixels: grey or RGB.
        compress_level: of the PNG, from 0 (none) to 9 (slow).

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        if path.suffix.lower() in (".jpg", ".jpeg"):
            Image.fromarray(pixels).save(temporary, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
        else:
            Image.fromarray(pixels).save(temporary, format="PNG", compress_level=compress_level)
