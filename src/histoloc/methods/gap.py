"""GAP: class activation maps (CAM)."""

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from histoloc.methods.base import Method, Setting, class_map
from histoloc.types import Batch, Output


class Gap(Method):
    """Class activation maps by global average pooling (Zhou et al., CVPR 2016, Eq. 2).

    A 1x1 convolution makes one map per class; the class score is the map's mean, which equals a linear classifier on
    averaged features. The ROI map is the map of the predicted class.
    """

    title: ClassVar[str] = "GAP"
    paper: ClassVar[str] = "Zhou et al., Learning deep features for discriminative localization, CVPR 2016"

    def __init__(self, setting: Setting, options: Any) -> None:
        super().__init__(setting, options)
        self.backbone = setting.make_backbone(setting.backbone)
        self.head = nn.Conv2d(self.backbone.channels, len(setting.classes), kernel_size=1)

    def forward(self, image: Tensor) -> Output:
        """Scores are the means of the class maps."""
        maps = self.head(self.backbone(image)).float()
        logits = maps.mean(dim=(2, 3))
        return Output(logits, class_map(maps, logits), {})

    def loss(self, out: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy of the image's class."""
        return {"classification": F.cross_entropy(out.logits, batch.label)}
