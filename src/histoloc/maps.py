"""Pure functions on maps: normalise, resize, threshold, regions.

Tensors have shape (B, 1, H, W); arrays have shape (H, W).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from torch import Tensor

from histoloc.errors import InputError

# A range below this share of the largest magnitude is float32 rounding (resizing a constant makes some).
_RELATIVE_RANGE = 1e-6
# Below this the slope 1/range, or its square in a second derivative, would overflow float32.
_ABSOLUTE_RANGE = 1e-18


def normalise_per_image(map: Tensor) -> Tensor:
    """Stretch every image's map to [0, 1]: u = (m - min) / (max - min), min and max over that image alone.

    An image whose map is constant up to rounding becomes all zeros with zero gradient: it shows no evidence.
    NaN stays NaN, so that a diverged network is noticed.

    Args:
        map: (B, 1, H, W), any floating type and range.

    Returns:
        (B, 1, H, W) in [0, 1]; float32 for lower precisions, else the input's type. Differentiable, through
        min and max too.
    """
    return _min_max(map, tuple(range(1, map.ndim)))


def normalise_batch(map: Tensor) -> Tensor:
    """Stretch a batch of maps to [0, 1] with one min and max for the whole batch.

    The published GlaS runs did this (min-max over the batch tensor), so an image's map depends on its
    neighbours; it exists to compare with them. Otherwise as `normalise_per_image`.

    Args:
        map: (B, 1, H, W), any floating type and range.

    Returns:
        (B, 1, H, W) in [0, 1]; all zeros when the whole batch is constant.
    """
    return _min_max(map, tuple(range(map.ndim)))


def _min_max(map: Tensor, dims: tuple[int, ...]) -> Tensor:
    map = _at_least_float32(map)
    low, high = map.amin(dims, keepdim=True), map.amax(dims, keepdim=True)
    spread = high - low
    magnitude = torch.maximum(low.abs(), high.abs())
    constant = (spread <= _RELATIVE_RANGE * magnitude) | (spread <= _ABSOLUTE_RANGE)  # False for NaN
    # The inner `where` keeps 1/0 out of the backward pass, where the outer one would turn it into NaN.
    stretched = (map - low) / torch.where(constant, torch.ones_like(spread), spread)
    return torch.where(constant, torch.zeros_like(stretched), stretched)


def resize(map: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps bilinearly with half-pixel centres, the geometry by which images are resized.

    Args:
        map: (B, C, h, w), any floating type.
        size: (H, W) wanted, in pixels.

    Returns:
        (B, C, H, W); float32 for lower precisions, else the input's type. Values stay in the input's range up
        to one rounding step.
    """
    map = _at_least_float32(map)
    if tuple(map.shape[-2:]) == tuple(size):
        return map
    return F.interpolate(map, size=tuple(size), mode="bilinear", align_corners=False)


def _at_least_float32(map: Tensor) -> Tensor:
    return map.float() if map.dtype in (torch.float16, torch.bfloat16) else map


def otsu_threshold(map: NDArray[np.floating]) -> float:
    """Otsu's threshold of one map (256 bins), which needs no mask; the ROI is `map >= threshold`.

    A map that is constant has no two classes to separate; it gets 0.5, the default threshold, so that "no
    evidence anywhere" (all zeros) gives an empty ROI and "everywhere" (all ones) a full one.

    Args:
        map: (H, W), values in [0, 1].

    Returns:
        The threshold, in [0, 1].

    Raises:
        InputError: the map is empty or holds NaN or infinite values.
    """
    values = np.asarray(map, dtype=np.float32)
    if values.size == 0 or not np.isfinite(values).all():
        raise InputError("Otsu's threshold needs a map of finite values; this one is empty or has NaN or inf")
    if float(values.max()) - float(values.min()) <= _RELATIVE_RANGE:
        return 0.5
    return float(threshold_otsu(values))


class Regions(NamedTuple):
    """The connected regions of a mask."""

    labels: NDArray[np.int32]  # (H, W): 0 outside, 1..n in the regions, numbered in reading order
    areas: NDArray[np.int64]  # (n,) pixels of regions 1..n


def regions(mask: NDArray[np.bool_], min_area: int = 0) -> Regions:
    """Find the connected regions of a mask; pixels that touch at a corner are connected.

    Args:
        mask: (H, W) bool.
        min_area: regions of fewer pixels are dropped and the others renumbered.

    Returns:
        The label image and the regions' areas in pixels.
    """
    labels = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, structure=np.ones((3, 3), dtype=int), output=labels)
    areas = np.bincount(labels.ravel(), minlength=1)
    keep = areas >= min_area
    keep[0] = False
    renumbered = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return Regions(renumbered[labels], areas[keep].astype(np.int64))
