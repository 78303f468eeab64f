"""Student: one network with a sharp map, taught by the maps of other models or by a prior, and a class, by labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from histoloc.bounds import NotNegative, Positive
from histoloc.errors import InputError
from histoloc.losses import classification
from histoloc.maps import place
from histoloc.methods.base import Setting, Supervision
from histoloc.methods.mean_teacher import MeanTeacher, Network
from histoloc.methods.prior import PriorOptions
from histoloc.nn.average import Average
from histoloc.nn.backbone import Backbone, BackboneConfig, build_backbone
from histoloc.nn.decoder import SumDecoder
from histoloc.types import Batch, Output, Unit


@dataclass(frozen=True)
class StudentOptions(PriorOptions):
    """Options of a student.

    Attributes:
        average: predict with a running average of the weights that keeps this share of itself in each step, 0 for none.
            It also teaches the map where there are drawn images (--drawn) or no teachers.
        randomise: strong randomisation of colours and sharpness in training, and glass in a third of the drawn images;
            it takes the place of --brightness, --contrast, --saturation and --hue.
        class_weight: weight of the cross-entropy of the image's class.
        map_weight: weight of the cross-entropy with the teachers' map.
        drawn_weight: weight of the cross-entropy of drawn images against their masks.
        consistency_weight: weight of the cross-entropy with what the average says.
        sharpness: factor on the logit of the teachers' mean map. A mean of maps that disagree is flatter than each of
            them: 1.5 makes it about as steep again. 1 leaves it.
    """

    randomise: bool = False
    class_weight: NotNegative = 1.0
    map_weight: NotNegative = 1.0
    drawn_weight: NotNegative = 1.0
    consistency_weight: NotNegative = 1.0
    sharpness: Positive = 1.5


class _Classifier(Network):
    def __init__(self, backbone: Backbone, decoder: SumDecoder, head: nn.Linear) -> None:
        super().__init__(backbone, decoder)
        self.head = head


class Student(MeanTeacher):
    """A backbone with a decoder that learns the mean map of other models, its teachers, and the class from labels.

    With q the teachers' mean probability at a pixel, p the student's, and p̂ the class probabilities by the mean of the
    deepest features, the loss is

        min mean(-q' log p - (1 - q') log(1 - p)) + H(y, p̂),  q' = sigmoid(s log(q / (1 - q)))

    and where drawn images or no teachers are given, as for a prior,

        ... + mean(-m log p - (1 - m) log(1 - p)) + mean(|2 a - 1| (-a log p - (1 - a) log(1 - p)))

    with m the mask of a drawn image, and a what the average of the weights says of a real one. Training on the averaged
    predictions of several networks follows Hinton et al. (2015).
    """

    title: ClassVar[str] = "Student"
    paper: ClassVar[str] = "histoloc; after Hinton et al., Distilling the knowledge in a neural network, 2015"
    options: StudentOptions
    supervision: ClassVar[frozenset[Supervision]] = frozenset({"image"})
    unit: Unit = "logit"
    default_backbone: ClassVar[BackboneConfig] = BackboneConfig(stride=16)
    taught: ClassVar[bool] = True
    with_prior: ClassVar[Mapping[str, Any]] = {"average": 0.99, "randomise": True}

    def __init__(self, setting: Setting, options: StudentOptions) -> None:
        super().__init__(setting, options)
        self.backbone = build_backbone(setting.backbone)
        self.decoder = SumDecoder(self.backbone, maps=1, channels=options.channels)
        self.head = nn.Linear(self.backbone.channels, len(setting.classes))
        self.average = Average(self.network(), options.average) if options.average else None

    def forward(self, image: Tensor) -> Output:
        """Class scores from the mean of the deepest features; the ROI's score before its sigmoid."""
        return self.look(self, image)

    def network(self) -> nn.Module:
        """What is averaged: the class too."""
        return _Classifier(self.backbone, self.decoder, self.head)

    def look(self, network: Any, image: Tensor) -> Output:
        """What a network with parts named as this one's says."""
        pyramid = network.backbone.pyramid(image)
        return Output(network.head(pyramid[-1].mean(dim=(2, 3))).float(), network.decoder(pyramid), {})

    def is_taught(self, batch: Batch) -> bool:
        """Where the teachers are not all there is, and where there are none."""
        return batch.drawn is not None or batch.target is None

    def loss(self, output: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy of the class, of the map with the teachers', and what drawn images and the average add."""
        o, real = self.options, len(batch.label)
        losses = self.map_losses(output.evidence, batch, drawn=o.drawn_weight, average=o.consistency_weight)
        if batch.target is not None:
            scores = place(output.evidence[:real], self.stride, batch.target.shape[-2:])
            map = F.binary_cross_entropy_with_logits(scores, sharpen(batch.target, o.sharpness))
            losses["map"] = o.map_weight * map
        if not losses:
            raise InputError("a student's map learns from other models: give --teachers, or --prior and --average .99")
        return losses | {"classification": o.class_weight * classification(output.logits[:real], batch)}

    def evidence(self, image: Tensor) -> Output:
        """The mean of the scores of mirror images and scales, by the average of the weights where there is one."""
        return self.views(image)


def sharpen(probability: Tensor, factor: float) -> Tensor:
    """The probability whose logit is `factor` times as large; 0, .5 and 1 stay."""
    inside, outside = probability**factor, (1 - probability) ** factor
    return inside / (inside + outside)
