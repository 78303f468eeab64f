"""ERASE: adversarial erasing mines the ROI in rounds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histoloc.errors import InputError
from histoloc.maps import normalise_per_image, resize
from histoloc.methods.base import Method, Setting, class_map
from histoloc.types import Batch, BatchLocalization, Evidence, Output


@dataclass(frozen=True)
class EraseOptions:
    """Options of ERASE.

    Attributes:
        rounds: classifiers that are trained one after the other, each for all epochs; at least 1.
        erased_share: share of the image that a round mines and erases for the next ones, in (0, 1): the positions
            with the highest activations of the predicted class.
        stop_loss: a round whose mean training cross-entropy in its last epoch stays above this many times log K found
            nothing that shows the class: its region is dropped and no further round follows. 1 is the loss of a
            classifier that knows nothing; the first round always counts.
    """

    rounds: int = 3
    erased_share: float = 0.2
    stop_loss: float = 0.9


class Round(nn.Module):
    """The classifier of one round: class maps by a 1x1 convolution, scores by their mean, as in CAM."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.backbone = setting.make_backbone(setting.backbone)
        self.head = nn.Conv2d(self.backbone.channels, len(setting.classes), kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """Class maps (B, K, h, w)."""
        return self.head(self.backbone(image)).float()


class Erase(Method):
    """Adversarial erasing (Wei et al., CVPR 2017, Algorithm 1).

    Round r trains a classifier on images from which the regions mined by rounds 0 to r - 1 are erased, so that it must
    find other evidence of the class. A round mines the share e of positions where the map A_r of the predicted class
    is highest:

        u_r = (A_r - min A_r) / (max A_r - min A_r),  q_r = the (1 - e) quantile of u_r,  E_r = [u_r >= q_r]

    The ROI map is the maximum over rounds of u_r rescaled so that 0.5 lies at q_r: cut at 0.5 it is the union of the
    mined regions. Erased pixels get the image's mean colour. Every round is a stage of training. The first round, which
    sees whole images, gives the class, in training as at test time; later rounds have no validation error of their
    own, so that with the label-based selection rules their last epoch is kept.
    """

    title: ClassVar[str] = "ERASE"
    paper: ClassVar[str] = "Wei et al., Object region mining with adversarial erasing, CVPR 2017"
    Options: ClassVar[type[Any]] = EraseOptions
    options: EraseOptions
    mined: Tensor

    def __init__(self, setting: Setting, options: EraseOptions) -> None:
        super().__init__(setting, options)
        if options.rounds < 1 or not 0 < options.erased_share < 1 or not options.stop_loss > 0:
            raise InputError(
                "--rounds must be at least 1, --erased-share within (0, 1) and --stop-loss above 0; correct them"
            )
        self.rounds = nn.ModuleList(Round(setting) for _ in range(options.rounds))
        # Rounds whose regions are fused: it travels with the weights.
        self.register_buffer("mined", torch.ones((), dtype=torch.int64))
        self.enter_stage(0)

    @classmethod
    def stages_for(cls, options: EraseOptions) -> int:
        """Every round is one."""
        return options.rounds

    def enter_stage(self, stage: int) -> None:
        """Train one round's classifier; the earlier ones only say what is erased."""
        self.mined.fill_(stage + 1)
        for index, classifier in enumerate(self.rounds):
            classifier.requires_grad_(index == stage)

    def end_stage(self, log: Sequence[Mapping[str, float]]) -> bool:
        """Drop a round that did not learn the class from what was left of the images."""
        found_something = log[-1]["train/classification"] <= self.options.stop_loss * math.log(
            len(self.setting.classes)
        )
        if not found_something and self.mined > 1:
            self.mined -= 1
        return found_something

    def train(self, mode: bool = True) -> "Erase":
        """Earlier rounds stay in eval mode: their statistics are no longer learned."""
        super().train(mode)
        for classifier in self.rounds[: int(self.mined) - 1]:
            classifier.eval()
        return self

    def forward(self, image: Tensor) -> Output:
        """Class scores of the first round, fused map of all rounds, scores of the round that is being trained."""
        logits, fused, maps = self._mined(image)
        return Output(logits, fused, {"round": maps[-1].mean(dim=(2, 3))})

    def _mined(self, image: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Class scores, fused map, and the class maps (B, K, h, w) of every round, not normalised."""
        maps = [self.rounds[0](image)]
        logits = maps[0].mean(dim=(2, 3))
        fused = mine(class_map(maps[0].detach(), logits), self.options.erased_share)
        for classifier in self.rounds[1 : int(self.mined)]:
            maps.append(classifier(self.erase(image, fused)))
            fused = torch.maximum(fused, mine(class_map(maps[-1].detach(), logits), self.options.erased_share))
        return logits, fused, maps

    def erase(self, image: Tensor, fused: Tensor) -> Tensor:
        """The image (B, 3, H, W) with its mean colour where the fused map (B, 1, h, w) is at least 0.5."""
        erased = (resize(fused, (image.shape[-2], image.shape[-1])) >= 0.5).to(image.dtype)
        return image * (1 - erased) + image.mean(dim=(2, 3), keepdim=True) * erased

    def loss(self, out: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy of the round that is being trained."""
        return {"classification": F.cross_entropy(out.terms["round"], batch.label)}

    @property
    def comparable(self) -> bool:
        """With one round; what later rounds see depends on what was erased in this very image."""
        return int(self.mined) == 1

    def evidence(self, image: Tensor) -> Evidence:
        """The class maps as the rounds give them, the largest of every position: ranks within the image are left out.

        Between a range's ends it is the sum of evidence that counts, not the share of the image that was mined.
        """
        logits, _, maps = self._mined(image)
        return Evidence(logits.softmax(dim=1), torch.stack(maps).amax(dim=0))

    def localize(self, image: Tensor) -> BatchLocalization:
        """The fused map as it is: it lies in [0, 1], and 0.5 is the border of what was mined."""
        out = self(image)
        roi = resize(out.roi, (image.shape[-2], image.shape[-1]))
        return BatchLocalization(out.logits.softmax(dim=1), roi.clamp(0, 1))


def mine(evidence: Tensor, share: float) -> Tensor:
    """Rescale each image's evidence to [0, 1] so that its highest `share` of positions lies at or above 0.5.

    Args:
        evidence: (B, 1, h, w), any range.
        share: in (0, 1).

    Returns:
        (B, 1, h, w): piecewise linear in the evidence, 0 at its minimum, 0.5 at the (1 - share) quantile, 1 at its
        maximum; all zeros where the evidence is constant.
    """
    u = normalise_per_image(evidence)
    border = torch.quantile(u.flatten(1), 1 - share, dim=1).view(-1, 1, 1, 1)
    above = 0.5 + 0.5 * (u - border) / (1 - border).clamp_min(1e-6)
    below = 0.5 * u / border.clamp_min(1e-6)
    return torch.where(u >= border, above, below) * (u.amax(dim=(1, 2, 3), keepdim=True) > 0)
