"""Prior: where structures of a kind lie in any image, learned from drawn images and their masks alone."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histoloc.errors import InputError
from histoloc.maps import place
from histoloc.methods.base import Count, Dropout, Method, Setting, Supervision
from histoloc.nn.average import Average
from histoloc.nn.backbone import Backbone, BackboneConfig, build_backbone
from histoloc.nn.decoder import SumDecoder
from histoloc.randomise import glass, strong
from histoloc.types import Batch, Output, Unit


@dataclass(frozen=True)
class PriorOptions:
    """Options of a prior.

    Attributes:
        channels: of the decoder.
        flips: how many mirror images of an image are averaged: 1, 2 or 4.
        randomise: strong randomisation of colours and sharpness in training, and glass in a third of the drawn images;
            it takes the place of --brightness, --contrast, --saturation and --hue.
        average: predict with a running average of the weights that keeps this share of itself in each step, 0 for none.
            It also teaches where real images are seen beside drawn ones (--drawn).
    """

    channels: Count = 64
    flips: Count = 2
    randomise: bool = True
    average: Dropout = 0.0


class _Network(nn.Module):
    def __init__(self, backbone: Backbone, decoder: SumDecoder) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder(self.backbone.pyramid(image))


class Prior(Method):
    """A backbone with a decoder that learned from drawn images where structures of a kind lie.

    Cross-entropy of the probability p against the drawn mask m, mean over all pixels:

        min mean(-m log p - (1 - m) log(1 - p))

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
        self.average = Average(self._network(), options.average) if options.average else None

    def forward(self, image: Tensor) -> Output:
        """The structure's score before its sigmoid, at the decoder's stride; no class scores, or equal ones."""
        return self._look(self._network(), image)

    def prepare(self, batch: Batch) -> Batch:
        """Randomise; put drawn images behind the real ones, whose target the average says of them as they are."""
        if not self.training:
            return batch
        if self.average is not None:
            self.average.update(self._network(), statistics=batch.drawn is None)
        if batch.drawn is None:
            if batch.mask is None:
                return batch
            image, mask = self._randomised(batch.image, batch.mask)
            return batch._replace(image=image, mask=mask)
        if self.average is None:
            raise InputError("a prior learns from real images beside drawn ones by --average, as 0.99; give it")
        teacher = self.average.module
        self.average.follow(lambda: self._look(teacher, batch.image))
        with torch.no_grad():
            target = self.evidence(batch.image).evidence.sigmoid()
        drawn, mask = self._randomised(batch.drawn.image, batch.drawn.mask)
        real, _ = self._randomised(batch.image, None)
        return batch._replace(image=torch.cat([real, drawn]), mask=mask, target=target, drawn=None)

    def loss(self, output: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy against the masks, at their size; against the target, at the size of the evidence."""
        if batch.mask is None:
            raise InputError("a prior learns from drawn masks and this batch has none; fill the table's mask column")
        real, target = 0, batch.target
        losses = {}
        if target is not None:
            real = len(target)
            each = F.binary_cross_entropy_with_logits(output.evidence[:real], target, reduction="none")
            losses["consistency"] = ((2 * target - 1).abs() * each).mean()
        scores = place(output.evidence[real:], self.stride, batch.mask.shape[-2:])
        return {"cross_entropy": F.binary_cross_entropy_with_logits(scores, batch.mask), **losses}

    def evidence(self, image: Tensor) -> Output:
        """The mean of the scores of mirror images, by the average of the weights where there is one."""
        network = self._network() if self.average is None else self.average.module
        axes = [(), (3,), (2,), (2, 3)][: self.options.flips]
        outputs = [self._look(network, image.flip(a)) for a in axes]
        maps = torch.stack([o.evidence.flip(a) for o, a in zip(outputs, axes, strict=True)]).mean(dim=0)
        return outputs[0]._replace(evidence=maps)

    @property
    def stride(self) -> int:
        """Of the decoder's finest maps."""
        return self.decoder.stride

    def _network(self) -> nn.Module:
        """What is averaged."""
        return _Network(self.backbone, self.decoder)

    def _look(self, network: nn.Module, image: Tensor) -> Output:
        maps = network(image)
        return Output(maps.new_zeros(len(image), len(self.setting.classes)), maps, {})

    def _randomised(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Normalised images with other colours, and where there is a mask with glass."""
        if not self.options.randomise:
            return image, mask
        mean, std = (image.new_tensor(v).view(1, 3, 1, 1) for v in (self.setting.mean, self.setting.std))
        image = image * std + mean
        if mask is not None:
            image, mask = glass(image, mask)
        return (strong(image) - mean) / std, mask
