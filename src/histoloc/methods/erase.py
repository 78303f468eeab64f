"""ERASE: adversarial erasing mines the ROI in rounds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from histoloc.bounds import Count, Positive, ShareAboveNone
from histoloc.losses import classification
from histoloc.maps import class_map, normalise_per_image, place
from histoloc.methods.base import Method, Setting
from histoloc.nn.backbone import Backbone, build_backbone
from histoloc.types import Batch, Output

_TIE = 1e-6  # values of [0, 1] nearer than this are equal up to float32 rounding


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

    rounds: Count = 3
    erased_share: Annotated[ShareAboveNone, Field(lt=1)] = 0.2
    stop_loss: Positive = 0.9


class Round(nn.Module):
    """The classifier of one round: class maps by a 1x1 convolution, scores by their mean, as in CAM."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.backbone = build_backbone(setting.backbone)
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

    The paper's map (`--range image`) is the maximum over rounds of u_r rescaled so that 0.5 lies at q_r: cut at 0.5 it
    is the union of the mined regions. The evidence, which can be compared between images, is the largest A_r. Erased
    pixels get the image's mean colour. Every round is a stage of training; what it does not see is mined once, in the
    whole training images, when it begins. The first round, which sees whole images, gives the class, in training as at
    test time; later rounds have no validation error of their own, so that with the label-based selection rules their
    last epoch is kept.
    """

    title: ClassVar[str] = "ERASE"
    paper: ClassVar[str] = "Wei et al., Object region mining with adversarial erasing, CVPR 2017"
    options: EraseOptions
    mined: Tensor

    def __init__(self, setting: Setting, options: EraseOptions) -> None:
        super().__init__(setting, options)
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
        highest = self.options.stop_loss * math.log(len(self.setting.classes))
        learned = log[-1]["train/classification"] <= highest
        if not learned and self.mined > 1:
            self.mined -= 1
        return learned

    def train(self, mode: bool = True) -> "Erase":
        """Earlier rounds stay in eval mode: their statistics are no longer learned."""
        super().train(mode)
        for classifier in self.rounds[: int(self.mined) - 1]:
            classifier.eval()
        return self

    def forward(self, image: Tensor) -> Output:
        """In training the round of the stage, on images that `prepare` has erased; else all rounds, one by one."""
        if not self.training:
            return self._rounds(image, int(self.mined))
        maps = self.rounds[int(self.mined) - 1](image)
        logits = maps.mean(dim=(2, 3))
        return Output(logits, maps, {"round": logits})

    def _rounds(self, image: Tensor, count: int) -> Output:
        """Class scores of the first round; evidence: of every position the largest class map over the rounds.

        `terms["mined"]` is the papers' map, which ranks positions within the image: the largest over the rounds, cut at
        0.5 the union of what they mined. `terms["round"]` are the scores of the last round.
        """
        maps = [self.rounds[0](image)]
        logits = maps[0].mean(dim=(2, 3))
        mined = mine(class_map(maps[0], logits.argmax(dim=1)), self.options.erased_share)
        for classifier in self.rounds[1:count]:
            maps.append(classifier(self.erase(image, place(mined, self.stride, image.shape[-2:]))))
            mined = torch.maximum(mined, mine(class_map(maps[-1], logits.argmax(dim=1)), self.options.erased_share))
        evidence = torch.stack(maps).amax(dim=0)
        return Output(logits, evidence, {"round": maps[-1].mean(dim=(2, 3)), "mined": mined})

    def targets(self, image: Tensor) -> Tensor | None:
        """What the earlier rounds mined, 0 or 1 at every pixel."""
        earlier = int(self.mined) - 1
        if earlier < 1:
            return None
        mined = self._rounds(self.continued(image), earlier).terms["mined"]
        return (place(mined, self.stride, image.shape[-2:]) >= 0.5).float()

    def prepare(self, batch: Batch) -> Batch:
        """Erase what earlier rounds mined."""
        return batch if batch.target is None else batch._replace(image=self.erase(batch.image, batch.target))

    def erase(self, image: Tensor, mined: Tensor) -> Tensor:
        """The image (B, 3, H, W) with its mean colour where `mined` (B, 1, H, W) is at least 0.5."""
        erased = (mined >= 0.5).to(image.dtype)
        return image * (1 - erased) + image.mean(dim=(2, 3), keepdim=True) * erased

    def loss(self, output: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy of the round that is being trained."""
        return {"classification": classification(output.terms["round"], batch)}

    @property
    def extractor(self) -> Backbone:
        """Of the first round; all rounds have the same."""
        return cast(Round, self.rounds[0]).backbone

    @property
    def in_tiles(self) -> str:
        """With one round nothing is ranked."""
        return "" if int(self.mined) == 1 else "what later rounds see depends on what was mined and erased in each tile"

    def image_map(self, output: Output, values: Tensor, label: Tensor) -> Tensor:
        """The papers' map: cut at 0.5 it is what was mined, whatever class is asked for."""
        return output.terms["mined"]


def mine(evidence: Tensor, share: float) -> Tensor:
    """Rescale each image's evidence to [0, 1] so that its highest `share` of positions lies at or above 0.5.

    Where equal values straddle the border (one colour over much of the image), they are all left out: less than the
    share is mined, never more.

    Args:
        evidence: (B, 1, h, w), any range.
        share: in (0, 1).

    Returns:
        (B, 1, h, w): piecewise linear in the evidence, 0 at its minimum, 0.5 at the (1 - share) quantile, 1 at its
        maximum; all zeros where the evidence is constant.
    """
    u = normalise_per_image(evidence)
    flat = u.flatten(1)
    quantile = torch.quantile(flat, 1 - share, dim=1, keepdim=True)
    higher = flat.masked_fill(flat <= quantile + _TIE, 2.0).amin(dim=1, keepdim=True)
    tied = (flat >= quantile - _TIE).sum(dim=1, keepdim=True) > math.floor(share * (flat.shape[1] - 1)) + 1
    border = torch.where(tied, (quantile + higher) / 2, quantile).view(-1, 1, 1, 1)
    above = 0.5 + 0.5 * (u - border) / (1 - border).clamp_min(1e-6)
    below = 0.5 * u / border.clamp_min(1e-6)
    return torch.where(u >= border, above, below) * (u.amax(dim=(1, 2, 3), keepdim=True) > 0)
