"""What methods share whose map comes from a decoder: drawn images, and the average of the weights as a teacher."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histoloc.maps import place, resize
from histoloc.methods.base import Method
from histoloc.nn.average import Average
from histoloc.nn.backbone import Backbone
from histoloc.nn.decoder import SumDecoder
from histoloc.randomise import glass, strong
from histoloc.types import Batch, Output


class Network(nn.Module):
    """What localizes, and what is averaged."""

    def __init__(self, backbone: Backbone, decoder: SumDecoder) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> scores (B, 1, h, w)."""
        return self.decoder(self.backbone.pyramid(image))


class MeanTeacher(Method):
    """A method whose map comes from a backbone with a decoder, the network of priors.

    Drawn images may be seen behind the real ones; real images may be taught by the average of the weights, which sees
    them as they are while the network sees them randomised (Tarvainen and Valpola, NeurIPS 2017). Its options have
    `randomise`, `flips`, `scales` and `structure_weight`.
    """

    backbone: Backbone
    decoder: SumDecoder
    average: Average | None

    def network(self) -> nn.Module:
        """What is averaged."""
        return Network(self.backbone, self.decoder)

    def look(self, network: Any, image: Tensor) -> Output:
        """What a network with parts named as this method's says: the map's scores; no class scores, or equal ones."""
        maps = network.decoder(network.backbone.pyramid(image))
        return Output(maps.new_zeros(len(image), len(self.setting.classes)), maps, {})

    def is_taught(self, batch: Batch) -> bool:
        """Whether the average teaches the images of a batch, where there is one."""
        return batch.drawn is not None

    def prepare(self, batch: Batch) -> Batch:
        """Randomise; put drawn images behind the real ones, and keep what the average says of these as they are."""
        if not self.training:
            return batch
        says = None
        if self.average is not None:
            taught = self.is_taught(batch)
            self.average.update(self.network(), statistics=not taught)
            if taught:
                teacher = self.average.module
                self.average.follow(lambda: self.look(teacher, batch.image))
                with torch.no_grad():
                    says = self.views(batch.image).evidence.sigmoid()
        if batch.drawn is None:
            image, mask = self._randomised(batch.image, batch.mask)
            return batch._replace(image=image, mask=mask, average=says)
        drawn, mask = self._randomised(batch.drawn.image, batch.drawn.mask)
        real, _ = self._randomised(batch.image, None)
        return batch._replace(image=torch.cat([real, drawn]), mask=mask, average=says, drawn=None)

    def map_losses(
        self, scores: Tensor, batch: Batch, *, drawn: float = 1.0, average: float = 1.0
    ) -> dict[str, Tensor]:
        """Cross-entropy of drawn images against their masks, and of real ones against the average by how sure that is.

        Args:
            scores: (B, 1, h, w) of the real images, followed by those of the drawn ones.
            batch: as `prepare` made it.
            drawn: weight of the first.
            average: weight of the second.
        """
        losses = {}
        if batch.mask is not None:
            placed = place(scores[-len(batch.mask) :], self.stride, batch.mask.shape[-2:])
            weight = placed.new_tensor(self.options.structure_weight)
            losses["cross_entropy"] = drawn * F.binary_cross_entropy_with_logits(placed, batch.mask, pos_weight=weight)
        if batch.average is not None:
            q = batch.average
            each = F.binary_cross_entropy_with_logits(scores[: len(q)], q, reduction="none")
            losses["consistency"] = average * ((2 * q - 1).abs() * each).mean()
        return losses

    def views(self, image: Tensor) -> Output:
        """The mean of the scores of mirror images at several scales, by the average of the weights where there is one.

        The class scores are those of the first view.
        """
        network = self if self.average is None else self.average.module
        axes = [(), (3,), (2,), (2, 3)][: self.options.flips]
        sides = [-(-side // self.stride) for side in image.shape[-2:]]
        outputs, maps = [], []
        for scale in self.options.scales:
            size = [max(1, round(scale * side / self.multiple)) * self.multiple for side in image.shape[-2:]]
            view = image if scale == 1 else F.interpolate(image, size, mode="bilinear", antialias=True)
            for a in axes:
                outputs.append(self.look(network, view.flip(a)))
                maps.append(resize(outputs[-1].evidence.flip(a), sides))
        return outputs[0]._replace(evidence=torch.stack(maps).mean(dim=0))

    @property
    def stride(self) -> int:
        """Of the decoder's finest maps."""
        return self.decoder.stride

    def _randomised(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Normalised images with other colours, and where there is a mask with glass."""
        if not self.options.randomise:
            return image, mask
        mean, std = (image.new_tensor(v).view(1, 3, 1, 1) for v in (self.setting.mean, self.setting.std))
        image = image * std + mean
        if mask is not None:
            image, mask = glass(image, mask)
        return (strong(image) - mean) / std, mask
