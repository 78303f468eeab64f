"""Hide-and-Seek: GAP on training images of which random patches are hidden."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from histoloc.bounds import Count, Share
from histoloc.methods.cam import Gap
from histoloc.types import Batch


@dataclass(frozen=True)
class HideAndSeekOptions:
    """Options of Hide-and-Seek.

    Attributes:
        patches: sides of the square patches in pixels of the network's input; each image of a batch is divided into
            patches of one of them, drawn at random.
        hidden: probability with which a patch is hidden.
    """

    patches: Annotated[tuple[Count, ...], Field(min_length=1)] = (16, 32, 44, 56)
    hidden: Share = 0.5


class HideAndSeek(Gap):
    """Hide-and-Seek (Singh and Lee, ICCV 2017, Section 3.1).

    The network and loss of GAP. In training every image is divided into a grid of patches with side S, each of which
    is hidden with probability p, anew in every epoch: where the most discriminative part is hidden, the network must
    find others. At test time it sees whole images.

    Hidden pixels v get the mean of the training data, zero after normalisation, because then a filter's expected
    response Σ_i w_i x_i is the same in training as at test time (Eq. 2 to 4):

        E[Σ_i w_i x_i] = Σ_i w_i μ   if v = μ

    The ROI map is the map of the predicted class. Hidden patches are constant; a backbone that normalises each position
    by itself (LayerNorm after a convolution) needs trained weights, as its gradient there is otherwise huge.
    """

    title: ClassVar[str] = "Hide-and-Seek"
    paper: ClassVar[str] = "Singh and Lee, Hide-and-Seek: forcing a network to be meticulous, ICCV 2017"
    options: HideAndSeekOptions

    def prepare(self, batch: Batch) -> Batch:
        """Hide patches of the training images; in eval mode nothing."""
        if not self.training:
            return batch
        return batch._replace(image=hide(batch.image, self.options.patches, self.options.hidden))


def hide(image: Tensor, sides: tuple[int, ...], probability: float) -> Tensor:
    """Set random patches to zero; drawn on the CPU, so that every device hides the same.

    Args:
        image: (B, 3, H, W), normalised.
        sides: of patches in pixels, one of which is drawn for each image; the last row and column of patches may be
            cut off by the image's edge.
        probability: with which a patch is hidden, in [0, 1].

    Returns:
        (B, 3, H, W).
    """
    height, width = image.shape[-2:]
    grids = []
    for _ in image:
        side = sides[int(torch.randint(len(sides), ()))]
        hidden = torch.rand(-(-height // side), -(-width // side)) < probability
        grids.append(hidden.repeat_interleave(side, 0).repeat_interleave(side, 1)[:height, :width])
    return image.masked_fill(torch.stack(grids)[:, None].to(image.device), 0)
