"""Where a slide has tissue: the Camelyon16-P512 protocol's rule, and a robust default for other slides."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage import color, filters, morphology

from histoloc.errors import InputError
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
    _check_rgb(rgb)
    mask = np.zeros(rgb.shape[:2], bool)
    width = max(1, _PIECE // max(1, rgb.shape[0]))
    pieces = [np.s_[:, left : left + width] for left in range(0, rgb.shape[1], width)]
    counts, pairs = np.zeros((3, 256), np.int64), np.zeros(2**16, np.int64)
    for piece in pieces:
        channels, _, codes = _channels(rgb[piece])
        for channel, count in zip(channels, counts, strict=True):
            count += np.bincount(channel.ravel(), minlength=256)
        pairs += np.bincount(codes.ravel(), minlength=2**16)
    saturated = _saturated(pairs)
    if saturated is None or (np.count_nonzero(counts, axis=1) < 2).any():
        return mask
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


def _saturated(pairs: NDArray[np.int64]) -> Mask | None:
    """Whether saturation is above Otsu's threshold, by 256 times the greatest channel plus the least.

    Args:
        pairs: (65536,) number of pixels of each; no array of floats is made of the picture.

    Returns:
        (65536,) bool, or None where saturation is constant.
    """
    table = _saturation_table()
    there = np.flatnonzero(pairs)
    if len(np.unique(table[there])) < 2:
        return None
    # The histogram that threshold_otsu makes of the picture itself: 256 bins over its range.
    histogram, edges = np.histogram(table[there], bins=256, weights=pairs[there])
    return table > filters.threshold_otsu(hist=(histogram, (edges[:-1] + edges[1:]) / 2))


@cache
def _saturation_table() -> NDArray[np.float64]:
    """HSV saturation by 256 times the greatest channel plus the least: it depends on nothing else; (65536,)."""
    greatest, least = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
    return color.rgb2hsv(np.stack([np.maximum(greatest, least), least, least], axis=-1))[..., 1].ravel()


@dataclass(frozen=True)
class TissueOptions:
    """What counts as tissue.

    Attributes:
        min_area_mm2: smaller pieces are dropped as dust.
        max_hole_mm2: smaller holes are filled; the default is less than a patch of 512 px at 0.25 µm/px.
        close_um: gaps up to about this width are closed, in micrometres.
    """

    min_area_mm2: float = 0.05
    max_hole_mm2: float = 0.01
    close_um: float = 40.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise InputError(f"{name.replace('_', '-')} {value:g}: give a number from 0 up")


def tissue(slide: Slide, mpp: float = 8.0, options: TissueOptions | None = None) -> Mask:
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
        options: sizes; None takes the defaults.

    Returns:
        (H, W) bool over the whole slide, of the size `slide.size_at(mpp)`; all False where there is no tissue.

    Raises:
        InputError: the slide is scanned coarser than `mpp`, or damaged.
    """
    return find_tissue(slide.thumbnail(mpp=mpp), mpp, options)


def find_tissue(rgb: NDArray[np.uint8], mpp: float, options: TissueOptions | None = None) -> Mask:
    """`tissue` of a picture: (H, W, 3) uint8 at `mpp` micrometres per pixel -> (H, W) bool."""
    _check_rgb(rgb)
    options = options or TissueOptions()
    density = _density(rgb)
    stain = density[..., 1] - np.minimum(density[..., 0], density[..., 2])
    smooth = ndimage.gaussian_filter(stain, 8.0 / mpp)
    ink = _ink(density, mpp)
    usable = (rgb.max(axis=2) > _DARKEST) & ~ink
    # Padding is pure white or black; it would only draw the threshold towards itself.
    threshold = _stain_threshold(smooth[usable & (rgb.min(axis=2) < 255)])
    # The second condition holds the edge where it is, the first one alone would widen strong tissue.
    mask = usable & (smooth > threshold) & (stain > threshold / 2)
    return _tidy(mask, ink, mpp, options)


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
    found = strong & (blue_ink | green_ink | cyan_ink | red_ink)
    found = _drop_small(found, _INK_MM2, mpp)
    return ndimage.distance_transform_edt(~found) <= _INK_FRINGE_UM / mpp if found.any() else found


def _stain_threshold(stain: NDArray[np.float32]) -> float:
    if stain.size == 0 or stain.min() == stain.max():
        return _STAIN_FLOOR
    # Without clipping, a few dense nuclei would stretch the histogram's bins.
    otsu = filters.threshold_otsu(np.clip(stain, -0.1, 0.5))
    return float(np.clip(otsu, _STAIN_FLOOR, _STAIN_CEILING))


def _tidy(mask: Mask, ink: Mask, mpp: float, options: TissueOptions) -> Mask:
    """Drop specks, close gaps, fill holes; ink stays out."""
    radius = round(options.close_um / 2 / mpp)
    mask = _drop_small(mask, min(options.min_area_mm2, 0.002), mpp)  # before closing joins dust to tissue
    if radius > 0:
        padded = np.pad(mask, radius)  # or the picture's edge would eat what touches it
        mask = ndimage.binary_closing(padded, morphology.disk(radius))[radius:-radius, radius:-radius]
    mask = ~_drop_small(~mask, options.max_hole_mm2, mpp) & ~ink
    return _drop_small(mask, options.min_area_mm2, mpp)


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
    expected = [side * slide.mpp / mask_mpp for side in (slide.height, slide.width)]
    # A level within 1 % of the scale was read as it is; the mask's own size then says the scale better.
    for got, wanted in zip((rows, columns), expected, strict=True):
        if abs(got - wanted) > 1 + 0.011 * wanted:
            raise ValueError(f"a mask of {columns}x{rows} px is not that of {slide} at {mask_mpp:g} µm/px")
    x0, y0, wide, high = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in (x, y, width, height)))
    if (wide <= 0).any() or (high <= 0).any():
        raise ValueError("a region is empty; give widths and heights above 0")
    integral = np.zeros((rows + 1, columns + 1))
    integral[1:, 1:] = mask.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    left, right = (np.clip(edge * columns / slide.width, 0, columns) for edge in (x0, x0 + wide))
    top, bottom = (np.clip(edge * rows / slide.height, 0, rows) for edge in (y0, y0 + high))

    def below(row: NDArray[np.float64], column: NDArray[np.float64]) -> NDArray[np.float64]:
        # Between its nodes the integral of a mask constant per pixel is bilinear.
        nodes = np.stack([np.ravel(row), np.ravel(column)])
        return ndimage.map_coordinates(integral, nodes, order=1, mode="nearest").reshape(np.shape(row))

    inside = below(bottom, right) - below(top, right) - below(bottom, left) + below(top, left)
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


def _check_rgb(rgb: NDArray[np.uint8]) -> None:
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"rgb must be (H, W, 3) uint8, not {rgb.shape} {rgb.dtype}")
