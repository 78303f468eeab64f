"""What flows between the rooms; shapes are stated here once.

B images in a batch, K classes, C = K or 1 maps, H x W pixels of the image given to the network, h x w positions of a
feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Unit = Literal["probability", "logit", "score"]
Range = Literal["probability", "learned", "image"]
Origin = Literal["bounds", "level0"]  # where coordinates on a slide begin: at what was scanned, at the whole level


class Drawn(NamedTuple):
    """Drawn images beside the real ones of a batch, as many as those."""

    image: Tensor  # (B, 3, H, W) float32, normalised
    mask: Tensor  # (B, 1, H, W) float32 in {0, 1}


class Batch(NamedTuple):
    """A batch as a method sees it."""

    image: Tensor  # (B, 3, H, W) float32, normalised
    label: Tensor  # (B,) int64, index of the image's class, the first one where it has several
    mask: Tensor | None  # (B, 1, H, W) float32 in {0, 1}; only for methods that learn from masks, real or drawn
    names: tuple[str, ...]  # B image names, for messages
    labels: Tensor | None = None  # (B, K) bool, all classes of each image; None where each has one
    target: Tensor | None = None  # (B, 1, H, W) float32 in [0, 1]: what `Method.targets` made, moved with the image
    drawn: Drawn | None = None  # where a table of drawn images was given
    average: Tensor | None = (
        None  # (B, 1, h, w) in [0, 1]: what the average of the weights says of the images as they are
    )


class Output(NamedTuple):
    """What a network says of a batch."""

    logits: Tensor  # (B, K) float32, the scores by which the image is classified; K = 0 for a prior
    evidence: Tensor  # (B, C, h, w) float32, evidence for the ROI at the network's own stride
    terms: dict[str, Tensor]  # what this method's loss needs besides


def tier(supervision: Collection[str]) -> str:
    """What tables call that from which a model learned: `labels only`, `labels + cue + masks`, `learns nothing`, ...

    Args:
        supervision: of its method, its prior and its teachers: any of image, cue, synthetic, pixel.
    """
    names = {"image": "labels", "cue": "cue", "synthetic": "synthetic prior", "pixel": "masks"}
    text = " + ".join(name for key, name in names.items() if key in supervision)
    if text == "labels":
        return "labels only"
    if "synthetic" in supervision and "pixel" not in supervision:
        return f"{text} (no human masks)"
    return text or "learns nothing"


@dataclass(frozen=True)
class Calibration:
    """What turns a method's evidence into a ROI map; `maps.roi` applies it.

    Attributes:
        range: `probability` (evidence is one already), `learned` (an affine map and a sigmoid, learned on training
            images without masks) or `image` (per-image rule of the papers, which depends on the whole image).
        unit: of the evidence.
        stride: input pixels per position of the evidence.
        centre: (C,) evidence at which the ROI map is 0.5; for `learned`.
        slope: (C,) factors > 0 on the distance from the centre; for `learned`.
        empty: index of the class whose images have no ROI, or None.
        gated: whether the class probabilities mean anything, so that p(empty) can say that there is no ROI.
        image_map: the per-image rule: (output, values (B, 1, h, w), label (B,)) -> (B, 1, h, w) in [0, 1]; for `image`.
    """

    range: Range
    unit: Unit = "score"
    stride: int = 1
    centre: tuple[float, ...] = ()
    slope: tuple[float, ...] = ()
    empty: int | None = None
    gated: bool = True
    image_map: Callable[[Output, Tensor, Tensor], Tensor] | None = None


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
        argmax_mask: (H, W) bool, where a class with ROI that was predicted has the largest of the class maps: the rule
            by which the published CAM rows were cut. None where the method has no map per class, or in tiles.
        map_class: the class whose map `roi` is; None where the method has one map for all.
        range: how evidence became the map; None where somebody else made it.
        scale: how the image was brought to the network.
        notes: what a reader of the result must know, one sentence each.
        image_roi: (H, W) float32, the map by the per-image rule of the papers, where it was asked for beside `roi`.
    """

    classes: tuple[str, ...]
    probabilities: NDArray[np.float32] | None
    roi: NDArray[np.float32]
    mask: NDArray[np.bool_]
    threshold: float
    mpp: float | None = None
    argmax_mask: NDArray[np.bool_] | None = None
    map_class: str | None = None
    range: Range | None = None
    scale: str = "as it is"
    notes: tuple[str, ...] = ()
    image_roi: NDArray[np.float32] | None = None

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
