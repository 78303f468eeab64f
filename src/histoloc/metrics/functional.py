"""The metrics as pure functions: an image gives counts, counts add up, and a metric is computed from counts.

Nothing here keeps state. Every metric is a percentage, 0 to 100, and NaN where it is undefined.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from histoloc.errors import InputError

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_] | NDArray[np.integer]  # integers mean "not 0", as in instance masks

# 0, .001, ..., .999, 1, in float32 as the maps are: a float32 map value of 0.7 is not below the edge 0.7.
EDGES: NDArray[np.float32] = (np.arange(1001) / 1000).astype(np.float32)
BINS = len(EDGES)  # bin i holds EDGES[i] <= value < EDGES[i + 1]; the last bin holds exactly 1

_CURVE_STEP = 10
CURVE_THRESHOLDS: Floats = np.arange(0, BINS, _CURVE_STEP) / (BINS - 1)  # 0, .01, ..., 1

# Interpolation may leave [0, 1] by a rounding step; anything further out is a map that was never normalised.
_ROUNDING = 1e-6


class PixelCounts(NamedTuple):
    """Pixels by prediction and truth; integers, or arrays of one shape (images, thresholds, ...)."""

    tp: NDArray[np.int64]  # predicted ROI, truly ROI
    fp: NDArray[np.int64]  # predicted ROI, truly background
    tn: NDArray[np.int64]  # predicted background, truly background
    fn: NDArray[np.int64]  # predicted background, truly ROI

    def complement(self) -> PixelCounts:
        """The counts when background is what is looked for: both masks inverted."""
        return PixelCounts(tp=self.tn, fp=self.fn, tn=self.tp, fn=self.fp)


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """100 * numerator / denominator, NaN where the denominator is 0."""
    above, below = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    return 100.0 * np.divide(above, below, out=np.full(below.shape, np.nan), where=below != 0)


# --- pixels, at one threshold ---


def pixel_counts(pred: Mask, true: Mask) -> PixelCounts:
    """Count the pixels of one image by prediction and truth.

    Args:
        pred: (H, W) bool, the predicted ROI.
        true: (H, W) bool, the true ROI.

    Raises:
        InputError: the masks differ in size or are not masks.
    """
    pred, true = as_mask(pred, "predicted mask"), as_mask(true, "true mask")
    same_size(pred, true)
    return PixelCounts(
        *(np.array(np.count_nonzero(m)) for m in (pred & true, pred & ~true, ~(pred | true), true & ~pred))
    )


def f1_plus(counts: PixelCounts) -> Floats:
    """F1⁺, the Dice index of the ROI: 2 TP / (2 TP + FP + FN), without smoothing.

    NaN for an image whose truth has no ROI: the papers average F1⁺ over images with ROI only; a false alarm
    on an image without any is seen by F1⁻.
    """
    overlap = 2 * counts.tp
    return np.where(counts.tp + counts.fn > 0, ratio(overlap, overlap + counts.fp + counts.fn), np.nan)


def f1_minus(counts: PixelCounts) -> Floats:
    """F1⁻, the Dice index of the background; NaN for an image whose truth has no background."""
    return f1_plus(counts.complement())


def dice(pred: Mask, true: Mask) -> float:
    """Dice index of one image: F1⁺ of its masks, and F1⁻ when given both complements.

    Args:
        pred: (H, W) bool.
        true: (H, W) bool.

    Returns:
        2 |P ∩ T| / (|P| + |T|) in percent, without smoothing; NaN when `true` is empty.

    Raises:
        InputError: the masks differ in size or are not masks.

    Example:
        >>> dice(np.array([[True, True]]), np.array([[True, False]]))
        66.66666666666666
    """
    return float(f1_plus(pixel_counts(pred, true)))


# --- maps, at every threshold ---


def map_histogram(roi: NDArray[np.floating], true: Mask) -> NDArray[np.int32]:
    """Histogram the values of one map over background and over ROI pixels.

    Args:
        roi: (H, W) values in [0, 1], taken as float32; out of range by a rounding step is clipped.
        true: (H, W) bool, the true ROI.

    Returns:
        (2, 1001) counts: row 0 background, row 1 ROI; a value on an edge of `EDGES` is in the bin it begins.
        Histograms of several images add up (as int64: one image's fit int32). 8 kB whatever the image's size.

    Raises:
        InputError: sizes differ, the map is empty or too large, has NaN, or leaves [0, 1].
    """
    true = as_mask(true, "true mask")
    values = np.asarray(roi, dtype=np.float32)
    same_size(values, true)
    check_unit_range(values)
    if values.size > np.iinfo(np.int32).max:
        raise InputError("the map has more than 2³¹ pixels; evaluate it at a lower resolution or in regions")
    values = np.clip(values, 0, 1).ravel()
    # Rounding gives the bin or the one above it; one comparison with the exact edge settles which.
    index = np.rint(values * np.float32(BINS - 1)).astype(np.intp)
    index -= values < EDGES[index]
    index += true.ravel() * np.intp(BINS)
    return np.bincount(index, minlength=2 * BINS).reshape(2, BINS).astype(np.int32)


def pxap(histograms: NDArray) -> Floats:
    """PxAP, the pixel average precision: area under the precision-recall curve of pooled pixels.

    100 Σ_i precision_i (recall_i - recall_(i-1)), thresholds going down through `EDGES` (Choe et al., CVPR
    2020; the survey of Rony et al., MELBA 2023). A constant map scores the prevalence of ROI pixels.

    Args:
        histograms: (..., 2, 1001) as `map_histogram`, summed over the images of a split.

    Returns:
        (...) in percent; NaN where there is no ROI pixel.
    """
    counts = np.asarray(histograms, dtype=np.float64)
    at_least = _at_or_above(counts)
    right, called = at_least[..., 1, :], at_least.sum(axis=-2)
    precision = np.divide(right, called, out=np.zeros_like(right), where=called > 0)
    return ratio((precision * counts[..., 1, :]).sum(axis=-1), right[..., 0])


def counts_at_thresholds(histograms: NDArray) -> PixelCounts:
    """The pixel counts of `roi >= t` for every t in `CURVE_THRESHOLDS`, from histograms alone.

    Args:
        histograms: (..., 2, 1001) as `map_histogram`.

    Returns:
        Counts of shape (..., 101), equal to `pixel_counts(roi >= t, true)`.
    """
    starts = np.arange(0, BINS, _CURVE_STEP)
    at_least = _at_or_above(np.add.reduceat(histograms, starts, axis=-1, dtype=np.int64))
    fp, tp = at_least[..., 0, :], at_least[..., 1, :]
    return PixelCounts(tp=tp, fp=fp, tn=at_least[..., 0, :1] - fp, fn=at_least[..., 1, :1] - tp)


def _at_or_above(histograms: NDArray) -> NDArray:
    return np.flip(np.cumsum(np.flip(histograms, axis=-1), axis=-1), axis=-1)


# --- checks ---


def as_mask(mask: Mask, what: str) -> NDArray[np.bool_]:
    """`mask` as a bool array (H, W); integers mean "not 0". Raises InputError for anything else."""
    array: NDArray = np.asarray(mask)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "bui":
        raise InputError(f"the {what} must be an (H, W) array of bool or integers; this is {array.dtype} {array.shape}")
    return array.astype(bool, copy=False)


def same_size(first: NDArray, second: NDArray) -> None:
    """Raise InputError unless a map or mask and another one have the same height and width."""
    if first.shape != second.shape:
        raise InputError(
            f"map and masks must have one size, not {first.shape} and {second.shape} pixels; resize the map"
        )


def check_unit_range(values: NDArray[np.float32]) -> None:
    """Raise InputError unless every value of a map is in [0, 1], up to rounding, and none is NaN."""
    low, high = float(values.min()), float(values.max())
    if np.isnan(low) or np.isnan(high):
        raise InputError("the map has NaN values; replace them before evaluating")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise InputError(f"map values must be in [0, 1] but go from {low:g} to {high:g}; normalise the map")
