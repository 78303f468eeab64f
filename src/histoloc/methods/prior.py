"""Prior: where structures of a kind lie in any image, learned from drawn images and their masks alone."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from histoloc.errors import InputError
from histoloc.maps import place
from histoloc.methods.base import Count, Method, Setting, Supervision
from histoloc.nn.backbone import BackboneConfig, build_backbone
from histoloc.nn.decoder import SumDecoder
from histoloc.types import Batch, Output, Unit


@dataclass(frozen=True)
class PriorOptions:
    """Options of a prior.

    Attributes:
        channels: of the decoder.
        flips: how many mirror images of an image are averaged: 1, 2 or 4.
    """

    channels: Count = 64
    flips: Count = 2


class Prior(Method):
    """A backbone with a decoder that learned from drawn images where structures of a kind lie.

    Cross-entropy of the probability p against the drawn mask m, mean over all pixels:

        min mean(-m log p - (1 - m) log(1 - p))

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

    def forward(self, image: Tensor) -> Output:
        """The structure's score before its sigmoid, at the decoder's stride; no class scores, or equal ones."""
        maps = self.decoder(self.backbone.pyramid(image))
        return Output(maps.new_zeros(len(image), len(self.setting.classes)), maps, {})

    def loss(self, output: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy against the masks, at their size."""
        if batch.mask is None:
            raise InputError("a prior learns from drawn masks and this batch has none; fill the table's mask column")
        scores = place(output.evidence, self.stride, batch.mask.shape[-2:])
        return {"cross_entropy": F.binary_cross_entropy_with_logits(scores, batch.mask)}

    def evidence(self, image: Tensor) -> Output:
        """The mean of the scores of mirror images."""
        axes = [(), (3,), (2,), (2, 3)][: self.options.flips]
        outputs = [self(image.flip(a)) for a in axes]
        maps = torch.stack([o.evidence.flip(a) for o, a in zip(outputs, axes, strict=True)]).mean(dim=0)
        return outputs[0]._replace(evidence=maps)

    @property
    def stride(self) -> int:
        """Of the decoder's finest maps."""
        return self.decoder.stride
