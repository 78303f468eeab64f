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
_GREY = "is a grey-scale image, but stains differ by colour; give the 8-bit RGB image"
_REMEDIES = {
    "CMYK": "is a CMYK image, whose inks are not the colours that a microscope saw; save it as 8-bit RGB",
    **dict.fromkeys(("P", "PA"), "is a palette image; save it as 8-bit RGB"),
    **dict.fromkeys(("L", "LA", "1"), _GREY),
    **dict.fromkeys(("I", "I;16", "RGB;16", "RGBA;16"), "is a 16-bit or 32-bit image; save it as 8-bit RGB"),
    "F": "is a floating-point image; save it as 8-bit RGB",
}


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; every failure to decode it inside the block becomes an InputError, as do several pages."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; correct the path")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if (pages := getattr(image, "n_frames", 1)) > 1:
                raise InputError(f"{path}: holds {pages} pages or frames; export the one you mean as its own file")
            yield image
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: is too large for a plain image; treat it as a slide or cut it") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: is no readable image; save it as PNG, BMP, JPEG or TIFF") from error
    except _DECODING_ERRORS as error:
        raise InputError(f"{path}: cannot be read, it may be truncated or damaged ({error}); copy it again") from error


def _mode(image: Image.Image) -> str:
    """Pillow's colour mode, with `;16` for colours of more than 8 bits, which Pillow would cut off in silence."""
    if image.mode not in ("RGB", "RGBA"):
        return "I;16" if image.mode.startswith("I;16") else image.mode
    bits = getattr(image, "tag_v2", {}).get(258, (8,))
    deep = any(";16" in str(part.args) for part in getattr(image, "tile", ())) or max(np.atleast_1d(bits)) > 8
    return f"{image.mode};16" if deep else image.mode


def _size(image: Image.Image) -> tuple[int, int]:
    """Width and height as the image is shown; Pillow itself turns TIFF, but not JPEG."""
    width, height = image.size
    turned = image.format in _LOSSY and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def _pixels(path: Path, image: Image.Image) -> NDArray[np.generic]:
    """Decode an image, turned as it is shown, without its alpha channel, which must be opaque."""
    if image.mode == "RGB" and "transparency" in image.info:
        image = image.convert("RGBA")
    pixels = np.array(ImageOps.exif_transpose(image) if image.format in _LOSSY else image)
    if image.mode == "RGBA" and pixels[..., 3].min() < 255:
        raise InputError(f"{path}: is partly transparent; save it without an alpha channel, as 8-bit RGB")
    return np.ascontiguousarray(pixels[..., :3]) if pixels.ndim == 3 else pixels


def image_size(path: Path) -> tuple[int, int]:
    """Read (width, height) in pixels from the header alone, for an image or a mask of any mode.

    Raises:
        InputError: the file is missing or its header cannot be read.
    """
    with _opened(Path(path)) as image:
        return _size(image)


def check_image(path: Path) -> tuple[int, int]:
    """Do every check of `read_image` that the header allows, without decoding pixels.

    Returns:
        (width, height) in pixels.

    Raises:
        InputError: as `read_image`, except that truncated pixels and transparency pass unseen.
    """
    with _opened(Path(path)) as image:
        return _check_header(path, image)


def _check_header(path: Path, image: Image.Image) -> tuple[int, int]:
    mode, (width, height) = _mode(image), _size(image)
    if mode not in ("RGB", "RGBA"):
        raise InputError(f"{path}: {_REMEDIES.get(mode, f'has the colour mode {mode}; save it as 8-bit RGB')}")
    if min(width, height) < SMALLEST_SIDE:
        raise InputError(
            f"{path}: is {width}x{height} px; images need at least {SMALLEST_SIDE} px on each side, "
            f"so leave it out or give it at a higher magnification"
        )
    return width, height


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
    with _opened(Path(path)) as image:
        _check_header(path, image)
        return _pixels(path, image).astype(np.uint8, copy=False)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask: every non-zero value is ROI, whether instance id, palette index, 1, 8 or 16 bits.

    Returns:
        (H, W) bool.

    Raises:
        InputError: the file is missing or unreadable, has several pages, is coloured with unequal channels,
            is floating-point, or was blurred by lossy compression, which makes background values non-zero.
    """
    with _opened(Path(path)) as image:
        mode = _mode(image)
        if mode not in ("RGB", "RGBA", "1", "L", "P", "I", "I;16"):
            raise InputError(f"{path}: cannot be a mask (colour mode {mode}); save integers in one channel")
        values = _pixels(path, image)
        channels = values.reshape(*values.shape[:2], -1)
        if (channels != channels[..., :1]).any():
            raise InputError(f"{path}: is a coloured picture, not a mask; save one channel in which 0 is background")
        values = channels[..., 0]
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
    if path.suffix.lower() != ".png":
        try:
            with tifffile.TiffFile(path) as tiff:
                if len(tiff.pages) == 1 and tiff.pages.first.dtype in (np.float16, np.float64):
                    return tiff.asarray()
        except _DECODING_ERRORS as error:
            raise InputError(f"{path}: is truncated or damaged ({error}); save it again") from error
    with _opened(path) as image:
        mode = "I;16" if (image.mode, image.format) == ("I", "PNG") else _mode(image)
        highest = {"1": 1, "F": 1, "L": 255, "I;16": 65535}.get(mode)
        if highest is None:
            raise InputError(
                f"{path}: is not an 8- or 16-bit grey or a floating-point picture (colour mode {mode}); "
                f"save the values themselves, not a coloured rendering, for instance with numpy.save"
            )
        return np.asarray(image) / np.float32(highest)


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

    A JPEG has quality 90 and all of its colour, because stains differ by it; uint16 needs a PNG.

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
