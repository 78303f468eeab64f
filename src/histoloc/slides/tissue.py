"""Where a slide has tissue: the Camelyon16-P512 protocol's rule, and a robust default for other slides."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage import color, filters, morphology

from histoloc.pictures import outline
from histoloc.slides.reader import Slide

Mask = NDArray[np.bool_]

_PIECE = 2**19  # pixels that the protocol's rule takes at a time: what is made of them stays in the processor's cache
_BRIGHT = 200  # glass and gaps are brighter in every channel
_TINT = 16  # the channels of glass differ by less
_DARKEST = 45  # tissue is brighter in one channel at least; borders, ink and scratches are not
_STAIN_FLOOR, _STAIN_CEILING = 0.02, 0.035  # bounds of the threshold on the amount of stain, optical density
_INK_DENSITY = 0.15  # thinner colours are not judged: they may be pale tissue
_INK_MM2 = 0.01  # smaller stains of that colour are tissue or pigment
_MIN_AREA_MM2 = 0.05  # smaller pieces are dropped
_DUST_MM2 = 0.002
_MAX_HOLE_MM2 = 0.01  # smaller holes are filled; it is less than a patch of 512 px at 0.25 µm/px
_CLOSE_UM = 40.0  # gaps up to about this width are closed
_INK_FRINGE_UM = 30.0  # compression smears ink about this far


def protocol_tissue(rgb: NDArray[np.uint8], rgb_min: int = 10) -> Mask:
    """Tissue by the rule of the Camelyon16-P512 protocol.

    A pixel is tissue if not all of R, G and B are above their Otsu thresholds, its HSV saturation is above
    Otsu's, and each of R, G and B is above `rgb_min`. The thresholds are those of the given array, so a
    strip, a patch and a slide give different answers. A constant channel or saturation rejects everything.

    The array may be as wide as a slide: the thresholds come from histograms gathered piece by piece, then each piece
    is judged. Besides the mask it takes about 10 MB.

    Args:
        rgb: (H, W, 3) uint8.
        rgb_min: in [0, 255]; darker pixels are borders of the scan.

    Returns:
        (H, W) bool.
    """
    mask = np.zeros(rgb.shape[:2], bool)
    width = max(1, _PIECE // max(1, rgb.shape[0]))
    pieces = [np.s_[:, left : left + width] for left in range(0, rgb.shape[1], width)]
    counts, pairs = np.zeros((3, 256), np.int64), np.zeros(2**16, np.int64)
    for piece in pieces:
        channels, _, codes = _channels(rgb[piece])
        counts += [np.bincount(channel.ravel(), minlength=256) for channel in channels]
        pairs += np.bincount(codes.ravel(), minlength=2**16)
    saturation, seen = _saturation_table(), np.flatnonzero(pairs)
    if len(np.unique(saturation[seen])) < 2 or (np.count_nonzero(counts, axis=1) < 2).any():
        return mask
    # The histogram that threshold_otsu makes of the picture itself: 256 bins over its range.
    histogram, edges = np.histogram(saturation[seen], bins=256, weights=pairs[seen])
    saturated = saturation > filters.threshold_otsu(hist=(histogram, (edges[:-1] + edges[1:]) / 2))
    thresholds = [filters.threshold_otsu(hist=(count, np.arange(256))) for count in counts]
    for piece in pieces:
        channels, least, codes = _channels(rgb[piece])
        red, green, blue = (channel <= threshold for channel, threshold in zip(channels, thresholds, strict=True))
        mask[piece] = (red | green | blue) & (least > rgb_min) & saturated[codes]
    return mask


def _channels(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16]]:
    """The channels (3, H, W), the least of them, and 256 times the greatest plus the least."""
    channels = np.ascontiguousarray(np.moveaxis(rgb, -1, 0))
    red, green, blue = channels
    least = np.minimum(np.minimum(red, green), blue)
    greatest = np.maximum(np.maximum(red, green), blue)
    return channels, least, greatest.astype(np.uint16) * 256 + least


@cache
def _saturation_table() -> NDArray[np.float64]:
    """HSV saturation by 256 times the greatest channel plus the least: it depends on nothing else; (65536,)."""
    greatest, least = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
    return color.rgb2hsv(np.stack([np.maximum(greatest, least), least, least], axis=-1))[..., 1].ravel()


def tissue(slide: Slide, mpp: float = 8.0) -> Mask:
    """Find tissue on slides of any laboratory.

    Histological stains absorb green most: the amount of stain is the optical density of green above the lesser
    one of red and blue, measured against the slide's own glass. Grey things (glass, dust, borders, pencil, black
    ink) have none, green ink has less than none; blue and red ink are told by the ratios of their densities,
    which no thickness changes. Otsu's threshold on the amount, kept within bounds because a slide may hold
    nothing but tissue or nothing but glass, then closing, filling and dropping of specks.

    Tissue under ink is lost. Stains that leave green through (fast green, some special stains) need
    `protocol_tissue` or a mask of one's own.

    Args:
        slide: the slide.
        mpp: scale of the mask in micrometres per pixel.

    Returns:
        (H, W) bool over the whole slide, of the size `slide.size_at(mpp)`; all False where there is no tissue.

    Raises:
        InputError: the slide is scanned coarser than `mpp`, or damaged.
    """
    return find_tissue(slide.thumbnail(mpp=mpp), mpp)


def find_tissue(rgb: NDArray[np.uint8], mpp: float) -> Mask:
    """`tissue` of a picture: (H, W, 3) uint8 at `mpp` micrometres per pixel -> (H, W) bool."""
    density = _density(rgb)
    stain = density[..., 1] - np.minimum(density[..., 0], density[..., 2])
    smooth = ndimage.gaussian_filter(stain, 8.0 / mpp)
    ink = _ink(density, mpp)
    usable = (rgb.max(axis=2) > _DARKEST) & ~ink
    # Padding is pure white or black; it would only draw the threshold towards itself.
    threshold = _stain_threshold(smooth[usable & (rgb.min(axis=2) < 255)])
    # The second condition holds the edge where it is, the first one alone would widen strong tissue.
    mask = usable & (smooth > threshold) & (stain > threshold / 2)
    return _tidy(mask, ink, mpp)


def _density(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Optical density (base 10) against the glass, (H, W, 3) float32."""
    greatest, least = rgb.max(axis=2), rgb.min(axis=2)
    bright = rgb[(least > _BRIGHT) & (least < 255) & (greatest - least < _TINT)]
    enough = len(bright) > 0.01 * rgb.shape[0] * rgb.shape[1]
    # The brighter half, because thin tissue is bright as well.
    glass = np.percentile(bright, 75, axis=0) if enough else np.full(3, 255.0)
    table = -np.log10((np.arange(256)[:, None] + 1) / (glass + 1)).astype(np.float32)
    return np.stack([table[rgb[..., channel], channel] for channel in range(3)], axis=-1)


def _ink(density: NDArray[np.float32], mpp: float) -> Mask:
    """Coloured pen, with the fringe that compression gives it."""
    red, green, blue = np.moveaxis(ndimage.gaussian_filter(density, (4.0 / mpp, 4.0 / mpp, 0)), -1, 0)
    strong = density.max(axis=2) > _INK_DENSITY
    blue_ink = (red > 1.3 * green) & (red > 2 * blue)
    green_ink = (red > 1.15 * green) & (blue > 1.15 * green)
    cyan_ink = red > 1.6 * green
    red_ink = (blue > 0.75 * green) & (red < 0.3 * green)
    ink = _drop_small(strong & (blue_ink | green_ink | cyan_ink | red_ink), _INK_MM2, mpp)
    return ndimage.distance_transform_edt(~ink) <= _INK_FRINGE_UM / mpp if ink.any() else ink


def _stain_threshold(stain: NDArray[np.float32]) -> float:
    if stain.size == 0 or stain.min() == stain.max():
        return _STAIN_FLOOR
    # Without clipping, a few dense nuclei would stretch the histogram's bins.
    otsu = filters.threshold_otsu(np.clip(stain, -0.1, 0.5))
    return float(np.clip(otsu, _STAIN_FLOOR, _STAIN_CEILING))


def _tidy(mask: Mask, ink: Mask, mpp: float) -> Mask:
    """Drop specks, close gaps, fill holes; ink stays out."""
    radius = round(_CLOSE_UM / 2 / mpp)
    mask = _drop_small(mask, _DUST_MM2, mpp)  # before closing joins dust to tissue
    if radius > 0:
        padded = np.pad(mask, radius)  # or the picture's edge would eat what touches it
        mask = ndimage.binary_closing(padded, morphology.disk(radius))[radius:-radius, radius:-radius]
    mask = ~_drop_small(~mask, _MAX_HOLE_MM2, mpp) & ~ink
    return _drop_small(mask, _MIN_AREA_MM2, mpp)


def _drop_small(mask: Mask, area_mm2: float, mpp: float) -> Mask:
    """Without the connected pieces (8 neighbours) below an area."""
    labels, number = ndimage.label(mask, np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
    if number == 0:
        return mask
    keep = np.bincount(labels.ravel()) * (mpp / 1000) ** 2 >= area_mm2
    keep[0] = False
    return keep[labels]


def share(
    mask: Mask, mask_mpp: float, x: ArrayLike, y: ArrayLike, width: ArrayLike, height: ArrayLike, slide: Slide
) -> NDArray[np.float64]:
    """Tissue share of regions, exact to fractions of the mask's pixels, by one integral image for all of them.

    Args:
        mask: (H, W) bool over the whole slide.
        mask_mpp: its scale in micrometres per pixel.
        x: left edges in pixels of level 0; arrays broadcast against each other.
        y: top edges.
        width: widths in pixels of level 0, above 0.
        height: heights.
        slide: the mask's slide.

    Returns:
        Shares in [0, 1], of the broadcast shape; what lies outside the slide is no tissue.

    Raises:
        ValueError: the mask does not fit the slide at that scale, or a region is empty.
    """
    rows, columns = mask.shape
    for pixels, side in ((rows, slide.height), (columns, slide.width)):
        expected = side * slide.mpp / mask_mpp
        # A level within 1 % of the scale was read as it is; the mask's own size then says the scale better.
        if abs(pixels - expected) > 1 + 0.011 * expected:
            raise ValueError(f"a mask of {columns}x{rows} px is not that of {slide} at {mask_mpp:g} µm/px")
    x0, y0, wide, high = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in (x, y, width, height)))
    if (wide <= 0).any() or (high <= 0).any():
        raise ValueError("a region is empty; give widths and heights above 0")
    integral = np.pad(mask.cumsum(axis=0, dtype=np.float64).cumsum(axis=1), ((1, 0), (1, 0)))
    left, right = (np.clip(edge * columns / slide.width, 0, columns) for edge in (x0, x0 + wide))
    top, bottom = (np.clip(edge * rows / slide.height, 0, rows) for edge in (y0, y0 + high))
    # Between its nodes the integral of a mask constant per pixel is bilinear.
    nodes = np.stack([np.stack([bottom, top, bottom, top]), np.stack([right, right, left, left])])
    corners = ndimage.map_coordinates(integral, nodes, order=1, mode="nearest")
    inside = corners[0] - corners[1] - corners[2] + corners[3]
    area = wide * columns / slide.width * (high * rows / slide.height)
    return np.clip(inside / area, 0, 1)


def tissue_picture(slide: Slide, mask: Mask) -> NDArray[np.uint8]:
    """The slide at the mask's scale with the mask's outline, (H, W, 3) uint8, for a person to agree with.

    Args:
        slide: the slide.
        mask: (H, W) bool over the whole slide.

    Raises:
        InputError: as `Slide.read`.
    """
    rows, columns = mask.shape
    mpp = slide.mpp * max(slide.width / columns, slide.height / rows)
    return outline(slide.read(0, 0, columns, rows, mpp), mask)
