"""What every method is: the contract of the house plan."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histoloc.bounds import check_options
from histoloc.errors import InputError
from histoloc.losses import classification
from histoloc.maps import normalise_per_image
from histoloc.nn.backbone import Backbone, BackboneConfig, build_backbone
from histoloc.types import Batch, Calibration, Output, Range, Unit

Supervision = Literal["image", "cue", "synthetic", "pixel"]


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
        empty_class: index of the class whose images have no ROI (normal tissue), or None.
    """

    classes: tuple[str, ...]
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    empty_class: int | None = None


class Method(nn.Module, ABC):
    """A network with its loss and its evidence for the ROI.

    Attributes:
        title: the name that tables print.
        paper: where the method was published.
        Options: frozen dataclass with the method's own options, as the annotation of `options` names it; the command
            line and the docs derive from it.
        supervision: what the method learns from: image (labels), pixel (masks), cue (a rule about images), synthetic
            (drawn images with masks); nothing is learned where it is empty.
        classifies: whether the class scores mean anything.
        default_backbone: the feature extractor where the user names none.
        default_training: how it is trained where the user says nothing else, as keys of TrainingConfig.
        with_empty_class: options that it needs besides where a class has no ROI.
        taught: whether it learns from other models' maps, as `batch.target`.
        with_prior: options that it needs besides where it begins with a prior.
        highest_lr: learning rate above which it does not learn.
        unit: of the evidence: a probability, the logit of one, or a score that needs a range to be read.
        empty_class: index of the class whose images have no ROI, or None.
        epoch: number of the epoch that is being (or was last) trained, a buffer, so that schedules that act at test
            time (max-min's sigma) travel with the weights.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    Options: ClassVar[type[Any]] = NoOptions
    supervision: ClassVar[frozenset[Supervision]] = frozenset({"image"})
    classifies: ClassVar[bool] = True
    default_backbone: ClassVar[BackboneConfig] = BackboneConfig()
    default_training: ClassVar[Mapping[str, Any]] = {}
    with_empty_class: ClassVar[Mapping[str, Any]] = {}
    with_prior: ClassVar[Mapping[str, Any]] = {}
    taught: ClassVar[bool] = False
    highest_lr: ClassVar[float] = math.inf
    unit: Unit = "score"
    epoch: Tensor

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.Options = inspect.get_annotations(cls).get("options", cls.Options)

    def __init__(self, setting: Setting, options: Any) -> None:
        super().__init__()
        check_options(options)
        self.setting, self.options = setting, options
        self.empty_class = setting.empty_class
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    @classmethod
    def learns_from(cls, options: Any) -> frozenset[Supervision]:
        """Its supervision, and what an option adds to it."""
        return cls.supervision

    @classmethod
    def stages_for(cls, options: Any) -> int:
        """How many trainings follow each other, each of `--epochs` epochs with its own schedule and selected epoch."""
        return 1

    @property
    def stages(self) -> int:
        """Number of stages of this very network."""
        return self.stages_for(self.options)

    @property
    def extractor(self) -> Backbone | None:
        """The backbone whose positions are those of the evidence; None where there is no network."""
        return getattr(self, "backbone", None)

    @property
    def stride(self) -> int:
        """Input pixels per position of the evidence."""
        return self.extractor.stride if self.extractor else 1

    @property
    def multiple(self) -> int:
        """Sides of the input that are multiples of this have whole positions at every level of the network."""
        return max(self.extractor.level_strides) if self.extractor else 1

    def continued(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) continued beyond the right and lower edge to multiples of `multiple`, by edge pixels.

        Otherwise a network's positions may depend on the size of its input: padding by TensorFlow's rule moves them by
        up to `stride` - 1 pixels where a side is odd.
        """
        height, width = image.shape[-2:]
        return F.pad(image, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")

    @property
    def in_tiles(self) -> str:
        """Why a tile's map is not a part of the whole image's."""
        return ""

    @abstractmethod
    def forward(self, image: Tensor) -> Output:
        """Images (B, 3, H, W) -> scores, evidence and what the loss needs; every learned pass is in here."""

    @abstractmethod
    def loss(self, output: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Named, already weighted scalar terms; their sum is minimised.

        Every term is a mean over all B images of the batch (also where only some of them contribute), so that the
        mean over processes equals the loss of the global batch.
        """

    def evidence(self, image: Tensor) -> Output:
        """Images (B, 3, H, W) -> class scores, and evidence that can be compared between images and tiles.

        By default the forward pass. An image's evidence does not depend on the other images of the batch.
        """
        return self(image)

    def image_map(self, output: Output, values: Tensor, label: Tensor) -> Tensor:
        """The per-image rule of the paper: evidence of one class (B, 1, h, w) -> map in [0, 1], of each image alone.

        By default u = (e - min) / (max - min). `label` (B,) is the class whose evidence the values are.
        """
        return normalise_per_image(values)

    def calibration(
        self, range: Range | None = None, centre: tuple[float, ...] = (), slope: tuple[float, ...] = ()
    ) -> Calibration:
        """How this method's evidence becomes a ROI map.

        Args:
            range: None for `probability` where the evidence is one, else `learned`.
            centre: (C,) of the learned range.
            slope: (C,) of the learned range.

        Raises:
            InputError: `probability` of evidence that is none, or `learned` of evidence that is one.
        """
        usual: Range = "learned" if self.unit == "score" else "probability"
        if range not in (None, "image", usual):
            what = "no probability" if usual == "learned" else "a probability"
            raise InputError(f"--range {range}: the evidence of {self.title} is {what}; leave --range out")
        own = (self.unit, self.stride, centre, slope, self.empty_class, self.classifies, self.image_map)
        return Calibration(range or usual, *own)

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

    def first_targets(self, image: Callable[[int], Tensor], labels: Tensor) -> list[Tensor] | None:
        """What the first stage learns from, by all training images, or None where it needs nothing.

        Args:
            image: gives training image 0, 1, ..., N - 1: (3, H, W), whole and normalised, without augmentation, on the
                device to compute on.
            labels: (N, K) bool, on the CPU.

        Returns:
            (1, H, W) in [0, 1] of each image, which comes back as `batch.target`.
        """
        return None

    def targets(self, image: Tensor) -> Tensor | None:
        """What the coming stage learns from: (B, 3, H, W) -> (B, 1, H, W) in [0, 1], or None where it needs nothing.

        Called between stages, in eval mode, once for every training image, whole and without augmentation. The result
        moves with the image through the augmentation of the stage and comes back as `batch.target`.
        """
        return None

    def prepare(self, batch: Batch) -> Batch:
        """Change a training batch before the forward pass, as by `batch.target`; by default nothing.

        Random numbers come from torch's global generators, which training seeds by (seed, epoch, step, process).
        """
        return batch


class Classifier(Method):
    """A method with one backbone that learns from the cross-entropy of the images' classes."""

    def __init__(self, setting: Setting, options: Any) -> None:
        super().__init__(setting, options)
        self.backbone = build_backbone(setting.backbone)

    def loss(self, output: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy of the image's class."""
        return {"classification": classification(output.logits, batch)}
