"""Pure functions on maps: evidence to ROI map, normalise, resize, threshold.

Tensors have shape (B, 1, H, W); arrays have shape (H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage.filters import threshold_otsu
from torch import Tensor

from histoloc.errors import InputError
from histoloc.types import Calibration, Output

# A range below this share of the largest magnitude is float32 rounding (resizing a constant makes some).
_RELATIVE_RANGE = 1e-6
# Below this the slope 1/range, or its square in a second derivative, would overflow float32.
_ABSOLUTE_RANGE = 1e-18


def roi(output: Output, label: Tensor, calibration: Calibration, size: tuple[int, int]) -> Tensor:
    """Evidence to ROI map: the only way from one to the other, for images, tiles of slides and figures.

    The evidence of the class `label` becomes a value in [0, 1] at each position by the calibration's range:

        probability   p = e, or sigmoid(e) where the unit is a logit
        learned       p = sigmoid(slope (e - centre))
        image         p = the method's rule of the papers, per image: (e - min) / (max - min) for most

    Where `label` is the class without ROI, the map is that of the other class: the largest of the others at each
    position. With a class without ROI the map is multiplied by min(1, 2 (1 - p(empty))), where the method has class
    probabilities: it stays where ROI is more likely than none, and fades to nothing where the image surely has none.

    Args:
        output: of a network: logits (B, K), evidence (B, C, h, w).
        label: (B,) int64, the class whose map is wanted; without effect where C = 1.
        calibration: range, unit and stride of the evidence, and the class without ROI.
        size: (H, W) of the network's input in pixels; positions that lie beyond it (the stride does not divide the
            size) are cropped, not squeezed in.

    Returns:
        (B, 1, H, W) float32 in [0, 1]; NaN where the evidence is NaN.
    """
    return place(roi_at_stride(output, label, calibration), calibration.stride, size).clamp(0, 1)


def roi_at_stride(output: Output, label: Tensor, calibration: Calibration) -> Tensor:
    """As `roi`, at the positions of the evidence: (B, 1, h, w)."""
    evidence = output.evidence.float()
    if calibration.range == "learned":
        centre, slope = (evidence.new_tensor(v).view(1, -1, 1, 1) for v in (calibration.centre, calibration.slope))
        evidence = (slope * (evidence - centre)).sigmoid()
    elif calibration.range == "probability" and calibration.unit == "logit":
        evidence = evidence.sigmoid()
    values = class_map(evidence, label, calibration.empty)
    if calibration.range == "image":
        rule = calibration.image_map
        values = normalise_per_image(values) if rule is None else rule(output, values, label)
    if calibration.empty is not None and calibration.gated:
        roi_probability = 1 - output.logits.float().softmax(dim=1)[:, calibration.empty]
        values = values * (2 * roi_probability).clamp(max=1).view(-1, 1, 1, 1)
    return values.clamp(0, 1)


def class_map(maps: Tensor, label: Tensor, empty: int | None = None) -> Tensor:
    """The map of a class: (B, C, h, w), (B,) -> (B, 1, h, w); the largest of the others for the class without ROI."""
    if maps.shape[1] == 1:
        return maps
    own = maps.gather(1, label.view(-1, 1, 1, 1).expand(-1, 1, *maps.shape[-2:]))
    if empty is None:
        return own
    others = [c for c in range(maps.shape[1]) if c != empty]
    return torch.where((label == empty).view(-1, 1, 1, 1), maps[:, others].amax(dim=1, keepdim=True), own)


def largest_is_roi(output: Output, label: Tensor, calibration: Calibration, size: tuple[int, int]) -> Tensor:
    """Where the class `label` has the largest class map, alone: the rule by which published CAM rows were cut.

    Where maps tie (all are zero), no class has the largest. Where `label` is the class without ROI, any other class
    counts.

    Returns:
        (B, H, W) bool.
    """
    maps = place(output.evidence.float(), calibration.stride, size)
    own = class_map(maps, label, calibration.empty)
    ours = F.one_hot(label, maps.shape[1]).bool()
    if calibration.empty is not None:
        ours ^= (label == calibration.empty)[:, None]  # of the class without ROI: all others
    return own[:, 0] > maps.masked_fill(ours[..., None, None], -torch.inf).amax(dim=1)


def place(map: Tensor, stride: int, size: Sequence[int]) -> Tensor:
    """Bring values at the network's positions to the pixels of its input: position i covers `stride` pixels.

    Args:
        map: (B, C, h, w).
        stride: input pixels per position.
        size: (H, W) of the input; what lies beyond it is cropped.

    Returns:
        (B, C, H, W), bilinear between the positions' centres.
    """
    covered = (max(map.shape[-2] * stride, size[0]), max(map.shape[-1] * stride, size[1]))
    return resize(map, covered)[..., : size[0], : size[1]]


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
    map = at_least_float32(map)
    low, high = map.amin(dims, keepdim=True), map.amax(dims, keepdim=True)
    spread = high - low
    magnitude = torch.maximum(low.abs(), high.abs())
    constant = (spread <= _RELATIVE_RANGE * magnitude) | (spread <= _ABSOLUTE_RANGE)  # False for NaN
    # The inner `where` keeps 1/0 out of the backward pass, where the outer one would turn it into NaN.
    stretched = (map - low) / torch.where(constant, torch.ones_like(spread), spread)
    return torch.where(constant, torch.zeros_like(stretched), stretched)


def resize(map: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps bilinearly with half-pixel centres, the geometry by which images are resized.

    Args:
        map: (B, C, h, w), any floating type.
        size: (H, W) wanted, in pixels.

    Returns:
        (B, C, H, W); float32 for lower precisions, else the input's type. Values stay in the input's range up
        to one rounding step.
    """
    map = at_least_float32(map)
    if tuple(map.shape[-2:]) == tuple(size):
        return map
    return F.interpolate(map, size=tuple(size), mode="bilinear", align_corners=False)


def at_least_float32(map: Tensor) -> Tensor:
    """The same values in float32 where the precision is lower."""
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
