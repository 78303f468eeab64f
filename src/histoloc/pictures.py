"""Pictures at the image's size: heatmap overlay, outline, agreement with the truth."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Picture = NDArray[np.uint8]  # (H, W, 3)

# After Okabe and Ito, moved apart until all four (with grey) differ under each complete colour deficiency;
# the tests hold that. They lie over the tissue in grey: over its pink and purple no three stay clear.
TRUE_POSITIVE = (0, 158, 115)  # bluish green
FALSE_POSITIVE = (230, 120, 0)  # orange
FALSE_NEGATIVE = (30, 70, 170)  # a blue darker than theirs, which tritanopes take for bluish green
HEAT = colormaps["viridis"]
HEAT_START, HEAT_FULL, HEAT_OPACITY = 0.05, 0.5, 0.65  # transparent up to START, most opaque from FULL


def overlay(image: Picture, roi: NDArray[np.floating], mask: NDArray[np.bool_]) -> Picture:
    """Blend a ROI map over its image and draw the mask's outline.

    The map is coloured by viridis (perceptually uniform, safe for colour-blind readers) and is transparent
    where it is low, so that the tissue stays visible there.

    Args:
        image: (H, W, 3) uint8 RGB.
        roi: (H, W) in [0, 1].
        mask: (H, W) bool.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: the three do not have the same height and width.
    """
    _check_size(image, roi, mask)
    picture = np.empty_like(image)
    for top in range(0, len(image), 256):  # since colours in double precision take 24 times the image
        rows = slice(top, top + 256)
        values = np.clip(roi[rows], 0, 1)
        opacity = HEAT_OPACITY * np.clip((values - HEAT_START) / (HEAT_FULL - HEAT_START), 0, 1)[..., None]
        picture[rows] = _to_uint8((1 - opacity) * image[rows] + opacity * 255 * HEAT(values)[..., :3])
    return outline(picture, mask)


def outline(image: Picture, mask: NDArray[np.bool_]) -> Picture:
    """Draw the border of a mask: a white line inside a black one, which shows on any tissue.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool; the image's own edge is no border.

    Returns:
        (H, W, 3) uint8, a copy.
    """
    _check_size(image, mask)
    width = max(1, round(min(mask.shape) / 130))
    inside = ndimage.binary_erosion(mask, iterations=width, border_value=1)
    outside = ndimage.binary_dilation(mask, iterations=width)
    picture = image.copy()
    picture[outside & ~mask] = 0
    picture[mask & ~inside] = 255
    return picture


def agreement(image: Picture, mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Picture:
    """Colour where a mask and the truth agree and where they do not, over the tissue in grey.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, predicted.
        truth: (H, W) bool.

    Returns:
        (H, W, 3) uint8: true positives bluish green, false positives orange, false negatives blue, true
        negatives left grey.
    """
    _check_size(image, mask, truth)
    luminance = image @ np.array([0.299, 0.587, 0.114])
    grey = np.repeat((90 + 0.65 * luminance)[..., None], 3, axis=2)
    coloured = grey.copy()
    marked = {TRUE_POSITIVE: mask & truth, FALSE_POSITIVE: mask & ~truth, FALSE_NEGATIVE: ~mask & truth}
    for colour, where in marked.items():
        # Multiplied, not blended: the tissue's texture survives under a saturated colour.
        coloured[where] = 0.35 * grey[where] + 0.65 * (grey[where] / 255) ** 0.5 * np.array(colour)
    return _to_uint8(coloured)


def heat_scale(width: int = 180, height: int = 14) -> Picture:
    """The colours of `overlay` from 0 (left) to 1 (right) over white, (height, width, 3) uint8."""
    ramp = np.broadcast_to(np.linspace(0, 1, width), (height, width))
    white = np.full((height, width, 3), 255, np.uint8)
    return overlay(white, ramp, np.zeros((height, width), bool))


def data_uri(picture: Picture, *, photo: bool) -> str:
    """A picture as a `data:` address: JPEG for photographs, PNG for everything with hard edges only."""
    buffer = io.BytesIO()
    kind = "jpeg" if photo else "png"  # PNG ignores the two options of JPEG
    Image.fromarray(picture).save(buffer, kind, optimize=True, quality=82, progressive=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _to_uint8(values: NDArray[np.floating]) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _check_size(image: Picture, *maps: NDArray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    for values in maps:
        if values.shape != image.shape[:2]:
            raise ValueError(f"a map of {values.shape} does not fit an image of {image.shape[:2]}")
