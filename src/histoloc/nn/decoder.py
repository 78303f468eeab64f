"""From features back to pixels: the decoder of a U-Net on top of any backbone."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histoloc.nn.backbone import Backbone

_WIDEST, _NARROWEST = 128, 16  # channels of the deepest block, and of the shallowest; halved from block to block
CHANNELS = 64  # of a SumDecoder where nobody says another number
_FINEST = 4  # input pixels per position up to which maps are enlarged where the backbone has no finer level


class UpBlock(nn.Module):
    """Enlarge, concatenate the skip, two 3x3 convolutions with batch normalisation and ReLU."""

    def __init__(self, channels: int, skip: int, out: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels + skip, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(B, channels, h, w) and the skip (B, skip, H, W) -> (B, out, H, W); twice the size where there is none."""
        size = (2 * x.shape[-2], 2 * x.shape[-1]) if skip is None else skip.shape[-2:]
        x = F.interpolate(x, size=size, mode="nearest")
        return self.convolutions(x if skip is None else torch.cat([x, skip], dim=1))


class UNetDecoder(nn.Module):
    """The expanding path of a U-Net (Ronneberger et al., MICCAI 2015, Fig. 1) over the levels of a backbone.

    One block per level but the deepest, of 128, 64, 32, 16 channels from deep to shallow, then a 1x1 convolution. A
    ViT has a single level and no skips: blocks without skip enlarge it to at most 4 input pixels per position.
    """

    def __init__(self, backbone: Backbone, maps: int) -> None:
        super().__init__()
        skips = [*reversed(backbone.level_channels[:-1])]
        stride = float(backbone.level_strides[0])
        while stride > _FINEST:
            skips.append(0)
            stride /= 2
        self.stride = round(stride)  # input pixels per position of the maps
        widths = [backbone.channels, *(max(_NARROWEST, _WIDEST >> i) for i in range(len(skips)))]
        self.blocks = nn.ModuleList(
            UpBlock(channels, skip, out) for (channels, out), skip in zip(pairwise(widths), skips, strict=True)
        )
        self.head = nn.Conv2d(widths[-1], maps, kernel_size=1)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """Features, finest first, as `Backbone.pyramid` gives them -> (B, maps, h, w) scores, float32."""
        *skips, x = pyramid
        for block in self.blocks:
            x = block(x, skips.pop() if skips else None)
        return self.head(x).float()


class SumDecoder(nn.Module):
    """Features of all levels, brought to as many channels, are summed from coarse to fine.

    At each level a 1x1 convolution of its features is added to the enlarged map of the level below and smoothed by a
    3x3 convolution with batch normalisation and ReLU, as in a feature pyramid network (Lin et al., CVPR 2017, Fig. 3);
    a 1x1 convolution of the finest level gives the maps. A ViT has a single level, which is not enlarged.
    """

    def __init__(self, backbone: Backbone, maps: int, channels: int = CHANNELS) -> None:
        super().__init__()
        self.stride = backbone.level_strides[0]  # input pixels per position of the maps
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, kernel_size=1) for c in backbone.level_channels)
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
            )
            for _ in backbone.level_channels
        )
        self.head = nn.Conv2d(channels, maps, kernel_size=1)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """Features, finest first, as `Backbone.pyramid` gives them -> (B, maps, h, w) scores, float32."""
        below: Tensor | None = None
        for lateral, smooth, features in [*zip(self.lateral, self.smooth, pyramid, strict=True)][::-1]:
            own = lateral(features)
            if below is not None:
                own = own + F.interpolate(below, size=own.shape[-2:], mode="bilinear", align_corners=False)
            below = smooth(own)
        return self.head(below).float()
