"""Stain: what colour alone tells of the ROI, a floor that nothing was trained for."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from skimage.color import hed_from_rgb
from torch import Tensor

from histoloc.bounds import NotNegative
from histoloc.methods.base import Method, Supervision
from histoloc.types import Batch, Output

_DARKEST = 1e-6  # transmitted light below which scikit-image's rgb2hed counts no further


@dataclass(frozen=True)
class StainOptions:
    """Options of the stain contrast.

    Attributes:
        stain: which contrast: blue-red (the blue channel minus the red one) or haematoxylin (its amount by colour
            deconvolution).
        sigma: standard deviation of the Gaussian that smooths the contrast, in pixels of the image as the network
            would see it (after --small-side); 0 = no smoothing.
    """

    stain: Literal["blue-red", "haematoxylin"] = "blue-red"
    sigma: NotNegative = 6.0


class Stain(Method):
    """A stain contrast, smoothed and stretched to [0, 1] per image; nothing is learned and no class predicted.

    With transmitted light r, g, b in [0, 1] the contrast c of a pixel is

        c = b - r                                                   blue-red
        c = max(0, (log [r g b] / log 1e-6) · h)                    haematoxylin

    where h is the first column of the inverse of the stains' optical densities (Ruifrok and Johnston, 2001), the unit
    being that of scikit-image's rgb2hed. The evidence is c convolved with a Gaussian, the image mirrored at its edges.
    A learned method that does not exceed this row has found the nuclei, not the class.
    """

    title: ClassVar[str] = "Stain"
    paper: ClassVar[str] = "Ruifrok and Johnston, Quantification of histochemical staining, AQCH 23:291-299, 2001"
    options: StainOptions
    supervision: ClassVar[frozenset[Supervision]] = frozenset()
    classifies: ClassVar[bool] = False

    def forward(self, image: Tensor) -> Output:
        """The smoothed contrast at every pixel; equal class scores."""
        scores = torch.zeros(len(image), len(self.setting.classes), device=image.device)
        with torch.autocast(image.device.type, enabled=False):  # differences of colours need all digits
            image = image.float()
            mean, std = (image.new_tensor(v).view(1, 3, 1, 1) for v in (self.setting.mean, self.setting.std))
            rgb = (image * std + mean).clamp(0, 1)
            contrast = rgb[:, 2:] - rgb[:, :1] if self.options.stain == "blue-red" else haematoxylin(rgb)
            return Output(scores, smooth(contrast, self.options.sigma), {})

    def loss(self, output: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Nothing is learned."""
        return {}


def haematoxylin(rgb: Tensor) -> Tensor:
    """Amount of haematoxylin, as the first channel of scikit-image's rgb2hed: (B, 3, H, W) -> (B, 1, H, W) >= 0."""
    density = rgb.clamp(min=_DARKEST).log() / math.log(_DARKEST)
    column = density.new_tensor(hed_from_rgb[:, 0]).view(1, 3, 1, 1)
    return (density * column).sum(dim=1, keepdim=True).clamp(min=0)


def smooth(map: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing, the map mirrored at its edges as often as needed, so that any size and sigma will do.

    Args:
        map: (B, 1, H, W).
        sigma: standard deviation in pixels, >= 0; the kernel ends at 4 sigma.

    Returns:
        (B, 1, H, W), the same as scipy.ndimage.gaussian_filter.
    """
    radius = math.floor(4 * sigma + 0.5)
    if radius == 0:
        return map
    offsets = torch.arange(-radius, radius + 1, dtype=map.dtype, device=map.device)
    kernel = torch.softmax(-0.5 * (offsets / sigma) ** 2, dim=0)
    rows, columns = (_mirrored(side, radius, map.device) for side in map.shape[-2:])
    map = F.conv2d(map.index_select(2, rows), kernel.view(1, 1, -1, 1))
    return F.conv2d(map.index_select(3, columns), kernel.view(1, 1, 1, -1))


def _mirrored(side: int, radius: int, device: torch.device) -> Tensor:
    """Indices -radius .. side + radius of an axis, mirrored at its ends with the end pixels repeated."""
    index = torch.arange(-radius, side + radius, device=device) % (2 * side)
    return torch.where(index < side, index, 2 * side - 1 - index)
