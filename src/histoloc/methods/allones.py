"""All-ones: the whole image is the ROI, the lower bound of Table 1."""

from typing import ClassVar

import torch
from torch import Tensor

from histoloc.methods.base import Method, Supervision
from histoloc.types import Batch, Output, Unit


class AllOnes(Method):
    """Predicts ROI everywhere; its F1⁺ is the mean of 2p/(1+p) over images, p being the ROI's share of the image."""

    title: ClassVar[str] = "All-ones"
    paper: ClassVar[str] = "lower bound in Belharbi et al., TMI 2022, Table I"
    supervision: ClassVar[frozenset[Supervision]] = frozenset()
    classifies: ClassVar[bool] = False
    unit: Unit = "probability"

    def forward(self, image: Tensor) -> Output:
        """A map of ones and equal class scores."""
        scores = torch.zeros(len(image), len(self.setting.classes), device=image.device)
        return Output(scores, torch.ones(len(image), 1, 1, 1, device=image.device), {})

    def loss(self, output: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Nothing is learned."""
        return {}
