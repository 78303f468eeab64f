"""U-Net: learns from masks, the upper bound of Table 1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from histoloc.bounds import NotNegative
from histoloc.errors import InputError
from histoloc.losses import soft_dice
from histoloc.maps import place
from histoloc.methods.base import Method, Setting, Supervision
from histoloc.nn.backbone import BackboneConfig, build_backbone
from histoloc.nn.decoder import SumDecoder, UNetDecoder
from histoloc.types import Batch, Output, Unit


@dataclass(frozen=True)
class UNetOptions:
    """Options of U-Net.

    Attributes:
        decoder: unet, or sum: that of priors. With `--decoder sum --stride 16` the run's folder is one (`--prior`).
        cross_entropy_weight: weight of the pixels' binary cross-entropy.
        dice_weight: weight of the soft Dice loss.
    """

    decoder: Literal["unet", "sum"] = "unet"
    cross_entropy_weight: NotNegative = 1.0
    dice_weight: NotNegative = 1.0

    def __post_init__(self) -> None:
        if not self.cross_entropy_weight and not self.dice_weight:
            raise InputError("--cross-entropy-weight or --dice-weight must be above 0; correct one")


class UNet(Method):
    """U-Net (Ronneberger et al., MICCAI 2015) with any backbone as its contracting path; it learns from masks.

    Cross-entropy and soft Dice of the ROI probability p against the mask m, each per image:

        min a mean(-m log p - (1 - m) log(1 - p)) + b [1 - (2 Σ p m + 1) / (Σ p + Σ m + 1)]

    The ROI map is p itself, not stretched: an image may have no ROI. There is no classifier.
    """

    title: ClassVar[str] = "U-Net"
    paper: ClassVar[str] = "Ronneberger et al., U-Net: convolutional networks for biomedical image segmentation, 2015"
    options: UNetOptions
    supervision: ClassVar[frozenset[Supervision]] = frozenset({"pixel"})
    classifies: ClassVar[bool] = False
    unit: Unit = "logit"
    with_prior: ClassVar[Mapping[str, Any]] = {"decoder": "sum"}
    default_backbone: ClassVar[BackboneConfig] = BackboneConfig(stride=0)

    def __init__(self, setting: Setting, options: UNetOptions) -> None:
        super().__init__(setting, options)
        self.backbone = build_backbone(setting.backbone)
        self.decoder = (UNetDecoder if options.decoder == "unet" else SumDecoder)(self.backbone, maps=1)

    def forward(self, image: Tensor) -> Output:
        """The ROI's score before its sigmoid, at the decoder's stride; equal class scores."""
        maps = self.decoder(self.backbone.pyramid(image))
        return Output(maps.new_zeros(len(image), len(self.setting.classes)), maps, {})

    def loss(self, output: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy and Dice against the masks, at their size."""
        if batch.mask is None:
            raise InputError("U-Net learns from masks and this batch has none; fill the table's mask column")
        o, mask = self.options, batch.mask
        scores = place(output.evidence.float(), self.stride, mask.shape[-2:])
        losses = {}
        if o.cross_entropy_weight:
            losses["cross_entropy"] = o.cross_entropy_weight * F.binary_cross_entropy_with_logits(scores, mask)
        if o.dice_weight:
            losses["dice"] = o.dice_weight * soft_dice(scores.sigmoid(), mask).mean()
        return losses

    @property
    def stride(self) -> int:
        """Of the decoder's finest maps."""
        return self.decoder.stride
