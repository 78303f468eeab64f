"""Reading and writing images, masks and ROI maps."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histoloc.data.decoder import INVERTED, Opened, colour_mode, decode, open_picture, shown_size, tiff_tag
from histoloc.errors import InputError
from histoloc.work_folder import atomic_path

IMAGE_EXTENSIONS = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")
SMALLEST_SIDE = 32
JPEG_QUALITY = 90
_ROUNDING = 1e-5  # so far may values of a map lie outside [0, 1]
_LOSSY = ("JPEG", "MPO", "WEBP", "jpeg", "tiff_jpeg", "webp")  # formats, and compressions of TIFF
_GREY = "is a grey-scale image, but stains differ by colour; give the 8-bit RGB image"
_REMEDIES = {
    "CMYK": "is a CMYK image, whose inks are not the colours that a microscope saw; save it as 8-bit RGB",
    **dict.fromkeys(("P", "PA"), "is a palette image; save it as 8-bit RGB"),
    **dict.fromkeys(("L", "LA", "1"), _GREY),
    **dict.fromkeys(("I", "I;16", "RGB;16", "RGBA;16"), "is a 16-bit or 32-bit image; save it as 8-bit RGB"),
    **dict.fromkeys(("F", "array"), "holds floating-point or 64-bit numbers; save it as 8-bit RGB"),
}


class _Channel(NamedTuple):
    """The one channel of a mask or map as it is stored, upright."""

    values: NDArray[Any]  # (H, W); of a palette the indices
    bits: int  # of a value
    lossy: bool = False
    opaque: NDArray[np.bool_] | None = None  # (H, W)
    palette: NDArray[np.int_] | None = None  # (colours, 3)


def image_size(path: Path) -> tuple[int, int]:
    """Read (width, height) in pixels from the header alone, for an image or a mask of any mode.

    Raises:
        InputError: the file is missing or its header cannot be read.
    """
    path = Path(path)
    with open_picture(path) as file:
        return shown_size(path, file)


def check_image(path: Path) -> tuple[int, int]:
    """Do every check of `read_image` that the header allows, without decoding pixels.

    Returns:
        (width, height) in pixels.

    Raises:
        InputError: as `read_image`, except that truncated pixels and transparency pass unseen.
    """
    path = Path(path)
    with open_picture(path) as file:
        _check_header(path, file)
        return shown_size(path, file)


def _check_header(path: Path, file: Opened) -> Image.Image:
    mode, (width, height) = colour_mode(file), shown_size(path, file)
    if isinstance(file, np.ndarray) or mode not in ("RGB", "RGBA"):
        raise InputError(f"{path}: {_REMEDIES.get(mode, f'has the colour mode {mode}; save it as 8-bit RGB')}")
    if min(width, height) < SMALLEST_SIDE:
        raise InputError(
            f"{path}: is {width}x{height} px; images need at least {SMALLEST_SIDE} px on each side, "
            f"so leave it out or give it at a higher magnification"
        )
    return file


def read_image(path: Path, *, on_white: bool = False) -> NDArray[np.uint8]:
    """Read an 8-bit RGB image.

    A fully opaque alpha channel is dropped, and the orientation that a camera noted is applied. Nothing else
    is converted: a conversion that changes what the network sees is the user's to make.

    Args:
        path: the file.
        on_white: put what is transparent on white, as slides are read, instead of refusing it.

    Returns:
        (H, W, 3) uint8.

    Raises:
        InputError: the file is missing, unreadable, truncated, CMYK, 16-bit, palette, grey-scale, partly
            transparent, smaller than 32 px on a side, larger than 2²⁶ pixels, or has several pages.
    """
    path = Path(path)
    with open_picture(path) as file:
        image = _check_header(path, file)
        pixels = decode(image.convert("RGBA") if "transparency" in image.info else image).astype(np.uint8, copy=False)
    if pixels.shape[2] == 4 and pixels[..., 3].min() < 255 and not on_white:
        raise InputError(f"{path}: is partly transparent; save it without an alpha channel, as 8-bit RGB")
    return blend_on_white(pixels)


def blend_on_white(pixels: NDArray[np.uint8], *, premultiplied: bool = False) -> NDArray[np.uint8]:
    """Composite (H, W, 4) pixels on white; (H, W, 3) are returned as they are."""
    if pixels.shape[2] == 3:
        return np.ascontiguousarray(pixels)
    rgb = np.ascontiguousarray(pixels[..., :3])
    clear = pixels[..., 3] < 255
    if clear.any():
        alpha = pixels[clear, 3:] / 255
        colours = rgb[clear] + 255 * (1 - alpha) if premultiplied else 255 + (rgb[clear] - 255.0) * alpha
        rgb[clear] = np.rint(colours).clip(0, 255).astype(np.uint8)
    return rgb


def _read_channel(path: Path) -> _Channel:
    """Decode the one channel of a mask or map."""
    with open_picture(path) as file:
        _check_channel(path, file)
        if isinstance(file, Image.Image):
            return _decode_channel(path, file)
        return _Channel(np.array(file), 8 * file.itemsize)


def check_mask(path: Path) -> tuple[int, int]:
    """Do the checks of `read_mask` that the header allows; (width, height) in pixels.

    Raises:
        InputError: as `read_mask`, except that what only pixels show passes unseen.
    """
    path = Path(path)
    with open_picture(path) as file:
        _check_channel(path, file)
        return shown_size(path, file)


def _check_channel(path: Path, file: Opened) -> None:
    mode = colour_mode(file)
    if mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "F", "array"):
        raise InputError(f"{path}: has the colour mode {mode}; save numbers in one channel")
    if isinstance(file, np.ndarray) and file.ndim != 2:
        raise InputError(f"{path}: has the shape {file.shape}, not (height, width); save one map or mask")
    if isinstance(file, Image.Image) and tiff_tag(file, 262, 1) == 0 and tiff_tag(file, 258, 0) > 1:
        raise InputError(f"{path}: {INVERTED}")


def _decode_channel(path: Path, image: Image.Image) -> _Channel:
    """As `_read_channel`, with the types that Pillow changes as the file has them; equal colours are one channel."""
    mode, bits, kind = colour_mode(image), tiff_tag(image, 258, 0), tiff_tag(image, 339, 1)
    lossy = image.format in _LOSSY or image.info.get("compression") in _LOSSY
    key, values, opaque = image.info.get("transparency"), decode(image), None
    if mode in ("LA", "RGBA"):
        values, opaque = values[..., :-1], values[..., -1] == 255
    elif key is not None:
        opaque = values != key if mode == "I;16" else decode(image.convert("RGBA"))[..., 3] == 255
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise InputError(f"{path}: is a coloured picture; save numbers in one channel, in which 0 is background")
        values = values[..., 0]
    stored = {"I;16": np.uint16, "L": np.int8 if kind == 2 else np.uint8, "I": np.uint32 if kind == 1 else np.int32}
    values = values.astype(stored.get(mode, values.dtype), copy=False)
    palette = np.reshape(image.getpalette() or (), (-1, 3)) if mode == "P" else None
    return _Channel(values, bits if mode == "I;16" and bits else 8 * values.itemsize, lossy, opaque, palette)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask: every non-zero value is ROI, whether instance id, palette index, 1, 8 or 16 bits.

    Returns:
        (H, W) bool.

    Raises:
        InputError: the file is missing or unreadable, has several pages or unequal colours, or leaves open what is
            background: it has fractions, negative values, soft edges, an inverted table, a palette in which 0 is not
            the darkest grey, or transparency that is not where its values are 0.
    """
    values, bits, lossy, opaque, palette = _read_channel(Path(path))
    roi, top = values != 0, 2**bits - 1
    problem = ""
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values == np.rint(values))).all():
        problem = "holds fractions, as a heatmap does"
    elif values.min() < 0:
        problem = f"holds {values.min():g}, which may be background or a place without a label"
    elif opaque is not None and not opaque.all() and (opaque != roi).any():
        problem = "background may be what is 0 or what is transparent, and these differ"
    elif palette is not None and _is_light_first(values, palette):
        problem = "background may be what is 0 or what its palette shows as black, and these differ"
    elif palette is None and values.dtype.kind == "u" and (lossy or top in values) and (roi & (values < top)).any():
        why = "lossy compression" if lossy else "soft edges"
        problem = f"values between 0 and {top} may be {why} (ROI from {top // 2 + 1} up) or classes (ROI from 1 up)"
    if problem:
        raise InputError(f"{path}: {problem}; save it as PNG with two values, 0 for background and 255 for ROI")
    return roi


def _is_light_first(values: NDArray[Any], palette: NDArray[np.int_]) -> bool:
    """Whether the darkest colour of a mask is a grey that does not belong to 0."""
    indices = np.union1d(values, 0)
    colours = palette[indices[indices < len(palette)]]
    if not len(colours):  # of a damaged palette
        return True
    darkest = colours[colours.sum(axis=1).argmin()]
    return bool((darkest != colours[0]).any()) and np.ptp(darkest) == 0


def read_map(path: Path, highest: float | None = None) -> NDArray[np.float32]:
    """Read a ROI map (heatmap) by anybody: `.npy`, or a grey picture without loss (PNG, TIFF).

    Args:
        path: the file.
        highest: the whole number that means 1; by default 255 in unsigned numbers of 8 bits, 65535 in those of 16, and
            1 in others. Floating-point numbers are taken as they are.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        InputError: the file is missing or unreadable, is not two-dimensional, or holds a value that is not
            finite or outside [0, 1].
    """
    values, bits = stored_map(path)
    if values.dtype.kind in "iu":
        values = np.divide(values, highest or (2**bits - 1 if bits else 1))
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds NaN or infinite values; replace them by values between 0 and 1")
    low, high = values.min(), values.max()
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise InputError(f"{path}: holds values from {low:g} to {high:g}; scale the heatmap to [0, 1]")
    return np.clip(values, 0, 1).astype(np.float32)


def stored_map(path: Path) -> tuple[NDArray[Any], int]:
    """Numbers of a map as they are stored, and, of unsigned ones, their bits where these are 8 to 16; otherwise 0.

    Raises:
        InputError: the file is missing, unreadable, or no map.
    """
    values, bits, lossy, opaque, palette = _read_channel(Path(path))
    if lossy or palette is not None or not (opaque is None or opaque.all()):
        raise InputError(
            f"{path}: has lossy compression, a palette or transparency, so that its numbers are not those of the map; "
            "save the numbers themselves, for instance with numpy.save"
        )
    return values, bits if values.dtype.kind == "u" and bits <= 16 else 0


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
