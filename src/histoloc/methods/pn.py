"""PN: a segmentation network that is told how large each class is, and nothing else."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histoloc.bounds import Positive, Share
from histoloc.errors import InputError
from histoloc.losses import barrier_at, log_barrier, quadratic_penalty
from histoloc.methods.base import Method, Setting
from histoloc.nn.backbone import build_backbone
from histoloc.types import Batch, Output, Unit


@dataclass(frozen=True)
class PnOptions:
    """Options of PN; sizes are shares of the image, in [0, 1].

    Attributes:
        lower: least size of the present class.
        upper: largest size of the present class; 1 = no bound.
        penalty: quadratic = the squared violation, none where the bounds hold; barrier = the log-barrier, which also
            keeps away from them.
        weight: weight of the penalties; they are small numbers, squares of shares.
        barrier_start: t of the log-barrier in the first epoch.
        barrier_factor: t is multiplied by this after each epoch.
        barrier_cap: largest t.
    """

    lower: Share = 0.5
    upper: Share = 1.0
    penalty: Literal["quadratic", "barrier"] = "quadratic"
    weight: Positive = 10.0
    barrier_start: Positive = 5.0
    barrier_factor: Positive = 1.01
    barrier_cap: Positive = 10.0

    def __post_init__(self) -> None:
        if self.lower >= self.upper:
            raise InputError(f"--lower {self.lower} must be below --upper {self.upper}; correct them")


class Pn(Method):
    """Size-constrained CNN (Kervadec et al., Constrained-CNN losses, MedIA 2019, Eq. 2 and 3), from image labels.

    A fully convolutional network (backbone and 1x1 convolution) gives every position a softmax over the K classes and
    background; s_k, the size of class k, is the mean of its probability over the image. The label y says which sizes
    are allowed:

        min w [ψ(a - s_y) + ψ(s_y - b) + Σ_{k≠y} ψ(s_k)],   ψ(z) = max(0, z)²  or the log-barrier extension

    The ROI map is 1 - p(background), not stretched. There is no classifier.

    Sizes do not say which pixels, nor that a pixel be certain. Many maps satisfy the constraints, p = a everywhere
    among them, and which of them is found depends on the network's features and on the learning rate. A map that stays
    below the fixed threshold 0.5 gives an empty mask; otsu cuts it nevertheless. The barrier keeps sizes away from
    their bounds and lost no map in this way on small synthetic scenes.

    The setting of the published row PN is unknown: its code was not released and the text gives no bounds. Without
    masks, data cannot set a and b. The defaults have the least a at which p = a everywhere is not cut to nothing at
    0.5, and no b.
    """

    title: ClassVar[str] = "PN"
    paper: ClassVar[str] = "Kervadec et al., Constrained-CNN losses for weakly supervised segmentation, MedIA 2019"
    options: PnOptions
    classifies: ClassVar[bool] = False
    unit: Unit = "probability"  # 1 - p(background) needs no range

    def __init__(self, setting: Setting, options: PnOptions) -> None:
        super().__init__(setting, options)
        self.backbone = build_backbone(setting.backbone)
        self.head = nn.Conv2d(self.backbone.channels, len(setting.classes) + 1, kernel_size=1)

    def forward(self, image: Tensor) -> Output:
        """The probability of not being background, at the backbone's stride, and the classes' sizes (B, K)."""
        probability = self.head(self.backbone(image)).float().softmax(dim=1)
        maps = probability[:, :-1]
        sizes = maps.mean(dim=(2, 3))
        return Output(sizes.new_zeros(sizes.shape), maps.sum(dim=1, keepdim=True), {"sizes": sizes})

    def loss(self, output: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Penalties of the present classes' sizes and of the absent classes' sizes; no size is allowed without ROI."""
        o, sizes = self.options, output.terms["sizes"]
        present = F.one_hot(batch.label, sizes.shape[1]) if batch.labels is None else batch.labels.long()
        if self.empty_class is not None:
            present = present.index_fill(1, torch.tensor([self.empty_class], device=present.device), 0)
        inside = self._penalty(o.lower - sizes, epoch)
        if o.upper < 1:
            inside = inside + self._penalty(sizes - o.upper, epoch)
        terms = {"present": present * inside, "absent": (1 - present) * self._penalty(sizes, epoch)}
        return {name: o.weight * term.sum(dim=1).mean() for name, term in terms.items()}

    def _penalty(self, z: Tensor, epoch: int) -> Tensor:
        o = self.options
        return quadratic_penalty(z) if o.penalty == "quadratic" else log_barrier(z, barrier_at(o, epoch))
