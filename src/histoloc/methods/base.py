"""What every method is: the contract of the house plan."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from histoloc.errors import InputError
from histoloc.maps import normalise_per_image, resize
from histoloc.nn.backbone import Backbone, BackboneConfig, build_backbone
from histoloc.types import Batch, BatchLocalization, Evidence, Output

Supervision = Literal["none", "image", "pixel"]


@dataclass(frozen=True)
class NoOptions:
    """A method without options."""


@dataclass(frozen=True)
class Setting:
    """What a method is told about its surroundings when it is built.

    Attributes:
        classes: names of the K classes.
        backbone: the feature extractor to use.
        mean: channel means that the images were normalised with, in [0, 1].
        std: channel standard deviations, > 0.
        make_backbone: builds the feature extractor; replaced when a model folder is opened, which has all weights.
    """

    classes: tuple[str, ...]
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    make_backbone: Callable[[BackboneConfig], Backbone] = field(default=build_backbone, repr=False)


class Method(nn.Module, ABC):
    """A network with its loss and its way to localize.

    Attributes:
        title: the name that tables print.
        paper: where the method was published.
        Options: frozen dataclass with the method's own options; the command line and the docs derive from it.
        supervision: "none" (nothing is learned), "image" (labels), or "pixel" (masks).
        classifies: whether `probabilities` mean anything.
        default_backbone: the feature extractor where the user names none.
        epoch: number of the epoch that is being (or was last) trained, a buffer, so that schedules that act at test
            time (max-min's sigma) travel with the weights.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    Options: ClassVar[type[Any]] = NoOptions
    supervision: ClassVar[Supervision] = "image"
    classifies: ClassVar[bool] = True
    default_backbone: ClassVar[BackboneConfig] = BackboneConfig()
    epoch: Tensor

    def __init__(self, setting: Setting, options: Any) -> None:
        super().__init__()
        self.setting, self.options = setting, options
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    @classmethod
    def stages_for(cls, options: Any) -> int:
        """How many trainings follow each other, each of `--epochs` epochs with its own schedule and selected epoch."""
        return 1

    @property
    def stages(self) -> int:
        """Number of stages of this very network."""
        return self.stages_for(self.options)

    @abstractmethod
    def forward(self, image: Tensor) -> Output:
        """Images (B, 3, H, W) -> scores, evidence and what the loss needs; every learned pass is in here."""

    @abstractmethod
    def loss(self, out: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Named, already weighted scalar terms; their sum is minimised.

        Every term is a mean over all B images of the batch (also where only some of them contribute), so that the
        mean over processes equals the loss of the global batch.
        """

    def enter_stage(self, stage: int) -> None:
        """Prepare to train stage 0, 1, ...: what is not trained in it gets `requires_grad` False."""

    def end_stage(self, log: Sequence[Mapping[str, float]]) -> bool:
        """Look back on a stage; called with the selected weights in place.

        Args:
            log: one row for each epoch of the stage: means of the loss terms as `train/NAME`, `valid/cl_error` in
                percent where the method classifies.

        Returns:
            Whether the next stage is worth training.
        """
        return True

    def localize(self, image: Tensor) -> BatchLocalization:
        """Images (B, 3, H, W) -> class probabilities and ROI map.

        By default the evidence of the forward pass, normalised to [0, 1] per image and brought to the image's size;
        so are the class maps, where the pass leaves them in `terms["class_maps"]` as (B, K, h, w).
        """
        out, size = self(image), (image.shape[-2], image.shape[-1])
        roi = resize(normalise_per_image(out.roi.float()), size)
        maps = out.terms.get("class_maps")
        resized = None if maps is None else resize(maps.float(), size)
        return BatchLocalization(out.logits.float().softmax(dim=1), roi.clamp(0, 1), resized)

    @property
    def evidence_is_roi(self) -> bool:
        """Whether `evidence` gives the ROI map itself, in [0, 1], so that no range is needed to read it."""
        return False

    @property
    def comparable(self) -> bool:
        """Whether evidence of two images can be compared; where not, a slide's map may have seams between tiles."""
        return True

    def evidence(self, image: Tensor) -> Evidence:
        """Images (B, 3, H, W) -> class probabilities, and evidence that is comparable between images.

        By default the class maps of the forward pass, where it leaves them in `terms["class_maps"]`, else its `roi`;
        neither is stretched. An image's evidence does not depend on the other images of the batch.
        """
        out = self(image)
        values = out.terms.get("class_maps", out.roi)
        return Evidence(out.logits.float().softmax(dim=1), values.float())

    def roi_of(self, values: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        """Evidence -> ROI map, position by position.

        Args:
            values: of `evidence`, (B, C, h, w), or a part of it of any shape where C is 1 or `low` has no dimension.
            low: evidence at and below which there is no ROI, one number or (C,).
            high: evidence at and above which there is nothing but ROI, likewise.

        Returns:
            The values' shape, in [0, 1], never falling where the values rise: (v - low) / (high - low), cut off at 0
            and 1, and 0 everywhere where high is not above low. Where `evidence_is_roi` the values as they are.
        """
        return values if self.evidence_is_roi else stretched(values, low, high)


def check_empty_class(name: str | None, classes: Sequence[str]) -> None:
    """Refuse a class without ROI that is no class.

    Raises:
        InputError: `name` is given and not among the classes.
    """
    if name is not None and name not in classes:
        raise InputError(f"--empty-class {name!r} is not a class of the table; choose one of {list(classes)}")


def stretched(values: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """Bring `low` to 0 and `high` to 1 and cut off what lies beyond: (..., C, h, w) with (C,), or anything with one."""
    if low is None or high is None:
        raise ValueError("low and high are needed: this method's evidence is not the ROI map itself")
    low, high = (bound.to(values).reshape(() if bound.numel() == 1 else (-1, 1, 1)) for bound in (low, high))
    spread = high - low
    shares = (values - low) / torch.where(spread > 0, spread, torch.ones_like(spread))
    return torch.where(spread > 0, shares.clamp(0, 1), torch.zeros_like(shares))


def class_map(maps: Tensor, logits: Tensor) -> Tensor:
    """The map of the predicted class, never of the true one: (B, K, h, w), (B, K) -> (B, 1, h, w)."""
    index = logits.argmax(dim=1).view(-1, 1, 1, 1).expand(-1, 1, *maps.shape[-2:])
    return maps.gather(1, index)
