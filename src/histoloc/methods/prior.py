"""Prior: where structures of a kind lie in any image, learned from drawn images and their masks alone."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from histoloc.bounds import Count, PartBelowOne, Positive, Scales
from histoloc.errors import InputError
from histoloc.methods.base import Setting, Supervision
from histoloc.methods.mean_teacher import MeanTeacher
from histoloc.nn.average import Average
from histoloc.nn.backbone import BackboneConfig, build_backbone
from histoloc.nn.decoder import SumDecoder
from histoloc.types import Batch, Output, Unit


@dataclass(frozen=True)
class PriorOptions:
    """Options of a prior.

    Attributes:
        channels: of the decoder.
        flips: how many mirror images of an image are averaged: 1, 2 or 4.
        scales: enlargements of an image whose maps are averaged.
        structure_weight: of the structure's pixels in the cross-entropy, where those of the background have 1. As many
            times as there is more background in the drawn images, it makes 0.5 the cut at which both are as likely in
            an image that is half structure.
        randomise: strong randomisation of colours and sharpness in training, and glass in a third of the drawn images;
            it takes the place of --brightness, --contrast, --saturation and --hue.
        average: predict with a running average of the weights that keeps this share of itself in each step, 0 for none.
            It also teaches where real images are seen beside drawn ones (--drawn).
    """

    channels: Count = 64
    flips: Count = 2
    scales: Scales = (1.0,)
    structure_weight: Positive = 1.0
    randomise: bool = True
    average: PartBelowOne = 0.0


class Prior(MeanTeacher):
    """A backbone with a decoder that learned from drawn images where structures of a kind lie.

    Cross-entropy of the probability p against the drawn mask m, mean over all pixels:

        min mean(-w m log p - (1 - m) log(1 - p)),  w the weight of the structure

    Where real images are seen beside drawn ones, neither their labels nor their masks are: they are randomised, and
    p learns from what the average of the weights says of them as they are, q, by how sure that is (mean teacher,
    Tarvainen and Valpola, NeurIPS 2017):

        ... + mean(|2 q - 1| (-q log p - (1 - q) log(1 - p)))

    It has no classes. Training on rendered tissue alone follows SYNTA (Communications Medicine 2025, muscle fibres) and
    Hou et al. (CVPR 2019, nuclei).
    """

    title: ClassVar[str] = "Prior"
    paper: ClassVar[str] = "histoloc; drawn tissue as in SYNTA, Communications Medicine 2025"
    options: PriorOptions
    supervision: ClassVar[frozenset[Supervision]] = frozenset({"synthetic"})
    classifies: ClassVar[bool] = False
    unit: Unit = "logit"
    default_backbone: ClassVar[BackboneConfig] = BackboneConfig(stride=16)

    def __init__(self, setting: Setting, options: PriorOptions) -> None:
        super().__init__(setting, options)
        self.backbone = build_backbone(setting.backbone)
        self.decoder = SumDecoder(self.backbone, maps=1, channels=options.channels)
        self.average = Average(self.network(), options.average) if options.average else None

    def forward(self, image: Tensor) -> Output:
        """The structure's score before its sigmoid, at the decoder's stride; no class scores, or equal ones."""
        return self.look(self, image)

    def prepare(self, batch: Batch) -> Batch:
        """As every mean teacher, which real images need here."""
        if self.average is None and batch.drawn is not None:
            raise InputError("a prior learns from real images beside drawn ones by --average, as 0.99; give it")
        return super().prepare(batch)

    def loss(self, output: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy against the masks, at their size; against the average, at the size of the evidence."""
        if batch.mask is None:
            raise InputError("a prior learns from drawn masks and this batch has none; fill the table's mask column")
        return self.map_losses(output.evidence, batch)

    def evidence(self, image: Tensor) -> Output:
        """The mean of the scores of mirror images and scales, by the average of the weights where there is one."""
        return self.views(image)
