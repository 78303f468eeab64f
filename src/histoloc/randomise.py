"""Strong randomisation of colours, sharpness and glass: what a network must not rely on when it learns from drawings.

Every function takes images (B, 3, H, W) in [0, 1], changes each by numbers of its own, and returns images in [0, 1].
Random numbers come from torch's global generators.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

JITTER = 0.5  # largest relative change of brightness, contrast and saturation
CHANNEL_GAIN, MIXING, OFFSET, GAMMA = 0.08, 0.15, 0.1, 0.3
NOISE = 0.05  # largest standard deviation
_GREY = (0.3, 0.59, 0.11)
_GLASS = (0.95, 0.94, 0.95)
_SHARPNESS = 25.0  # of the edge between tissue and glass; half the image's width is 1


def strong(image: Tensor) -> Tensor:
    """Other stains, another scanner: colours are mixed, and half of the images are blurred, half are noisy.

    Brightness, contrast and saturation by +-50 %, gains of channels by +-8 %; then with x's mean m over the image's
    pixels, A = 1 + 0.15 N (3 x 3), b = 0.1 N (3) and g = exp(0.3 N), N standard normal

        x <- (m + A (x - m) + b)^g

    """
    image = image * _factor(image, JITTER)
    image = _about(image, image.mean(dim=(1, 2, 3), keepdim=True), _factor(image, JITTER))
    grey = (image * image.new_tensor(_GREY).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    image = _about(image, grey, _factor(image, JITTER))
    image = (image * _factor(image, CHANNEL_GAIN, channels=3)).clamp(0, 1)
    mixing = torch.eye(3, device=image.device) + MIXING * torch.randn(len(image), 3, 3, device=image.device)
    mean = image.mean(dim=(2, 3), keepdim=True)
    offset = OFFSET * torch.randn(len(image), 3, 1, 1, device=image.device)
    image = torch.einsum("bij,bjhw->bihw", mixing, image - mean) + mean + offset
    image = image.clamp(1e-3, 1) ** torch.exp(GAMMA * torch.randn(len(image), 1, 1, 1, device=image.device))
    blurred = F.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    image = torch.where(_coin(image, 0.5), blurred, image)
    strength = NOISE * torch.rand(len(image), 1, 1, 1, device=image.device) * _coin(image, 0.5)
    return (image + strength * torch.randn_like(image)).clamp(0, 1)


def glass(image: Tensor, mask: Tensor, share: float = 1 / 3) -> tuple[Tensor, Tensor]:
    """In a share of the images a wavy region from one side is empty glass, where the mask becomes 0.

    Args:
        image: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W).
        share: the probability that an image has glass.

    Returns:
        Image and mask.
    """
    count, size = len(image), image.shape[-2:]
    # Between pixels a smooth random field; its waves are of another length in every image.
    grids = torch.randint(3, 7, (count,)).tolist()
    waves = [F.interpolate(torch.randn(1, 1, k, k), size=size, mode="bicubic", align_corners=False) for k in grids]
    y, x = torch.meshgrid(torch.linspace(-1, 1, size[0]), torch.linspace(-1, 1, size[1]), indexing="ij")
    angle, depth, shade = (torch.rand(3, count, 1, 1, 1)).unbind()
    edge = 2 * (y * torch.sin(2 * math.pi * angle) + x * torch.cos(2 * math.pi * angle)) - (0.8 + 1.2 * depth)
    amount = torch.sigmoid(_SHARPNESS * (0.5 * torch.cat(waves) + edge)) * (torch.rand(count, 1, 1, 1) < share)
    amount, shade = amount.to(image.device), shade.to(image.device)
    white = image.new_tensor(_GLASS).view(1, 3, 1, 1) - 0.04 * shade
    return image * (1 - amount) + white * amount, mask * (amount < 0.5)


def _factor(image: Tensor, most: float, channels: int = 1) -> Tensor:
    """1 +- at most `most`, of each image (and channel)."""
    return 1 + most * (2 * torch.rand(len(image), channels, 1, 1, device=image.device) - 1)


def _about(image: Tensor, centre: Tensor, factor: Tensor) -> Tensor:
    return centre + factor * (image - centre)


def _coin(image: Tensor, share: float) -> Tensor:
    return torch.rand(len(image), 1, 1, 1, device=image.device) < share
