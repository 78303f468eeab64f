"""From a decoded image to the network's input: one deterministic half, shared by all, and one random half."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from histoloc.bounds import Checked, Count, Interval, NotNegative, Number, Positive, Share, Whole
from histoloc.errors import InputError

HALF = (0.5, 0.5, 0.5)
NEAR = 0.01  # scales that differ by no more are the same


@dataclass(frozen=True)
class InputConfig(Checked):
    """How images reach the network; the defaults are those of the paper for GlaS.

    Attributes:
        small_side: images are resized so that their shorter side has this many pixels, aspect kept, as in the published
            GlaS runs; 0 = not resized.
        mpp: micrometres per pixel at which the network looks: images are resampled to it, instead of small_side. By
            default that happens only where the table's images differ by more than 1.25 times in µm/px.
        crop: side of the square random crop in training, pixels, at most small_side.
        brightness: largest relative change of brightness in training.
        contrast: largest relative change of contrast.
        saturation: largest relative change of saturation.
        hue: largest shift of hue, in turns of the colour circle (at most 0.5).
        horizontal_flip: probability of a left-right flip.
        vertical_flip: probability of a top-bottom flip.
        quarter_turns: also rotate by a random multiple of 90 degrees.
        zoom: in training, images are enlarged by a random factor between these two; never is more than the whole
            image shown. Where drawn images are seen beside real ones (--drawn), they alone are enlarged.
        mean: channel means subtracted from values in [0, 1]; by default those of the backbone's own weights.
        std: channel standard deviations divided by, likewise.
    """

    small_side: Whole = 432
    mpp: Positive | None = None
    crop: Annotated[Count, Field(ge=32)] = 416
    brightness: NotNegative = 0.5
    contrast: NotNegative = 0.5
    saturation: NotNegative = 0.5
    hue: Annotated[NotNegative, Field(le=0.5)] = 0.05
    horizontal_flip: Share = 0.5
    vertical_flip: Share = 0.5
    quarter_turns: bool = False
    zoom: Interval = (1.0, 1.0)
    mean: tuple[Number, Number, Number] | None = None
    std: tuple[Positive, Positive, Positive] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mpp is None and self.small_side and self.crop > self.small_side:
            raise InputError(f"--crop {self.crop} must be at most --small-side {self.small_side}; correct one of them")


def resample_to(pixels: Tensor, size: Sequence[int], *, nearest: bool = False) -> Tensor:
    """Resize (C, H, W) to (H, W) = `size`: bilinear with antialiasing, or the nearest pixel, for masks."""
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    mode = v2.InterpolationMode.NEAREST_EXACT if nearest else v2.InterpolationMode.BILINEAR
    return tvf.resize(pixels, list(size), interpolation=mode, antialias=not nearest)


def bring_to_scale(pixels: Tensor, config: InputConfig, mpp: float | None, *, nearest: bool = False) -> Tensor:
    """Resize (C, H, W) as training images are: to the config's µm/px, or to its shorter side.

    Args:
        pixels: an image, or its mask.
        config: says which.
        mpp: of the image in µm/px; needed where the config has one. Within 1 % of that, nothing is resampled.
        nearest: take the nearest pixel, for masks, instead of a mean.

    Raises:
        InputError: the image's scale is needed and unknown.
    """
    sides = pixels.shape[-2:]
    if config.mpp is None:
        short = config.small_side or min(sides)
        return resample_to(pixels, [int(short * side / min(sides)) for side in sides], nearest=nearest)
    if mpp is None:
        raise InputError(
            f"the network looks at {config.mpp:g} µm/px and this image's scale is unknown; fill the table's column mpp"
        )
    factor = mpp / config.mpp
    near = abs(factor - 1) <= NEAR
    return resample_to(pixels, sides if near else [max(1, round(side * factor)) for side in sides], nearest=nearest)


def load_tensor(image: NDArray[np.uint8], config: InputConfig, mpp: float | None = None) -> Tensor:
    """Decoded image (H, W, 3) uint8 -> (3, h, w) uint8 at training's scale: the part of the way that can be cached."""
    return bring_to_scale(as_tensor(image), config, mpp).contiguous()


def as_tensor(image: NDArray[np.uint8]) -> Tensor:
    """Decoded image (H, W, 3) uint8 -> (3, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def normalise(pixels: Tensor, config: InputConfig) -> Tensor:
    """(3, h, w) uint8 -> float32, normalised."""
    mean, std = list(config.mean or HALF), list(config.std or HALF)
    return tvf.normalize(tvf.to_dtype(pixels, torch.float32, scale=True), mean, std)


class Augment:
    """The random half of training: zoom, crop, colour jitter, flips; image and mask move together."""

    def __init__(self, config: InputConfig) -> None:
        self.config = config
        steps: list[torch.nn.Module] = [v2.RandomCrop(config.crop)]
        jitter = (config.brightness, config.contrast, config.saturation, config.hue)
        if any(jitter):
            steps.append(v2.ColorJitter(*jitter))
        steps += [v2.RandomHorizontalFlip(config.horizontal_flip), v2.RandomVerticalFlip(config.vertical_flip)]
        self.steps = v2.Compose(steps)

    def __call__(self, pixels: Tensor, mask: Tensor | None, seed: int) -> tuple[Tensor, Tensor | None]:
        """Transform one image, and its mask if there is one, as a function of the seed alone.

        Args:
            pixels: (3, h, w) uint8.
            mask: (M, h, w) uint8, masks and targets that move with the image, or None.
            seed: any non-negative integer below 2**63.

        Returns:
            (3, crop, crop) float32 normalised, and (M, crop, crop) float32 or None.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.config.zoom != (1, 1):
                pixels, mask = self._zoomed(pixels, mask)
            image, moved = self.steps(tv_tensors.Image(pixels), None if mask is None else tv_tensors.Mask(mask))
            turns = int(torch.randint(4, ())) if self.config.quarter_turns else 0
        image, moved = (p if p is None else torch.rot90(p.as_subclass(Tensor), turns, (-2, -1)) for p in (image, moved))
        return normalise(image, self.config), None if moved is None else moved.float()

    def _zoomed(self, pixels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A random part of the image, and the same of its mask, brought to the size of the crop."""
        least, most = self.config.zoom
        factor = least + (most - least) * float(torch.rand(()))
        side = min(round(self.config.crop / factor), *pixels.shape[-2:])
        top, left = (int(torch.randint(whole - side + 1, ())) for whole in pixels.shape[-2:])
        size = (self.config.crop, self.config.crop)
        cut = [p if p is None else p[:, top : top + side, left : left + side] for p in (pixels, mask)]
        image, moved = (p if p is None else resample_to(p, size, nearest=p is not cut[0]) for p in cut)
        assert image is not None
        return image, moved
