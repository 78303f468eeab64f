"""What flows between the rooms; shapes are stated here once.

B images in a batch, K classes, H x W pixels of the image given to the network, h x w positions of a feature map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class Batch(NamedTuple):
    """A batch as a method sees it."""

    image: Tensor  # (B, 3, H, W) float32, normalised
    label: Tensor  # (B,) int64, index into the classes
    mask: Tensor | None  # (B, 1, H, W) float32 in {0, 1}; given only to methods with supervision = "pixel"
    names: tuple[str, ...]  # B image names, for messages


class Output(NamedTuple):
    """What a method's forward pass returns."""

    logits: Tensor  # (B, K) the scores by which the image is classified
    roi: Tensor  # (B, 1, h, w) evidence for the ROI, at the network's own stride
    terms: dict[str, Tensor]  # what this method's loss needs besides


class Evidence(NamedTuple):
    """What a method says of a batch before any map is stretched to its image's own range.

    Values of different images can be compared, and so those of neighbouring tiles of a slide.
    """

    probabilities: Tensor  # (B, K) float32, rows sum to one
    values: Tensor  # (B, C, h, w) float32, at the network's own stride; C = K where each class has a map, else 1


class BatchLocalization(NamedTuple):
    """What a method says of a batch, at the size of the images it was given."""

    probabilities: Tensor  # (B, K) float32, rows sum to one
    roi: Tensor  # (B, 1, H, W) float32 in [0, 1]
    class_maps: Tensor | None = None  # (B, K, H, W) one map per class, of methods that have them; any range


@dataclass(frozen=True, eq=False)
class Localization:
    """What a model says of one image, at the image's own resolution.

    Attributes:
        classes: names of the K classes, in the order of `probabilities`.
        probabilities: (K,) float32, sums to one; None where the method has no classifier.
        roi: (H, W) float32 in [0, 1], the ROI map.
        mask: (H, W) bool, `roi >= threshold`.
        threshold: the value the map was cut at.
        mpp: micrometres per pixel of the image, or None where unknown.
        argmax_mask: (H, W) bool, where the predicted class has the largest of the class maps: the rule by which the
            published CAM rows were cut. None where the method has no map per class.
    """

    classes: tuple[str, ...]
    probabilities: NDArray[np.float32] | None
    roi: NDArray[np.float32]
    mask: NDArray[np.bool_]
    threshold: float
    mpp: float | None = None
    argmax_mask: NDArray[np.bool_] | None = None

    @property
    def label(self) -> str | None:
        """The most probable class, or None where the method has no classifier."""
        return None if self.probabilities is None else self.classes[int(self.probabilities.argmax())]

    @property
    def roi_fraction(self) -> float:
        """Share of the image's pixels inside the mask, in [0, 1]."""
        return float(self.mask.mean())

    @property
    def roi_mm2(self) -> float | None:
        """Area of the mask in mm², or None where the image's mpp is unknown."""
        return None if self.mpp is None else float(self.mask.sum()) * (self.mpp / 1000) ** 2
