"""From a decoded image to the network's input: one deterministic half, shared by all, and one random half."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from histoloc.errors import InputError


@dataclass(frozen=True)
class InputConfig:
    """How images reach the network; the defaults are those of the paper for GlaS.

    Attributes:
        small_side: images are resized so that their shorter side has this many pixels, aspect kept; 0 = not resized.
        crop: side of the square random crop in training, pixels, at most small_side.
        brightness: largest relative change of brightness in training.
        contrast: largest relative change of contrast.
        saturation: largest relative change of saturation.
        hue: largest shift of hue, in turns of the colour circle (at most 0.5).
        horizontal_flip: probability of a left-right flip.
        vertical_flip: probability of a top-bottom flip.
        quarter_turns: also rotate by a random multiple of 90 degrees.
        mean: channel means subtracted from values in [0, 1].
        std: channel standard deviations divided by.
    """

    small_side: int = 432
    crop: int = 416
    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.05
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.5
    quarter_turns: bool = False
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.crop < 32 or (self.small_side and self.crop > self.small_side):
            raise InputError(
                f"--crop {self.crop} must be at least 32 and at most --small-side {self.small_side}; "
                "an image smaller than the crop cannot be cropped"
            )
        # Written so that NaN fails too.
        if not (all(s > 0 for s in self.std) and all(-math.inf < m < math.inf for m in self.mean)):
            raise InputError("--std must be above 0 and --mean finite; correct them")
        if not (all(0 <= j < math.inf for j in (self.brightness, self.contrast, self.saturation))):
            raise InputError("--brightness, --contrast and --saturation must be at least 0; correct them")
        if not (0 <= self.hue <= 0.5 and 0 <= self.horizontal_flip <= 1 and 0 <= self.vertical_flip <= 1):
            raise InputError(
                "--hue must be within [0, 0.5], --horizontal-flip and --vertical-flip within [0, 1]; correct them"
            )


def resize_small_side(pixels: Tensor, small_side: int, *, nearest: bool = False) -> Tensor:
    """Resize (C, H, W) so that the shorter side is `small_side` (0 = as it is); bilinear with antialiasing."""
    if not small_side or min(pixels.shape[-2:]) == small_side:
        return pixels
    mode = v2.InterpolationMode.NEAREST_EXACT if nearest else v2.InterpolationMode.BILINEAR
    return tvf.resize(pixels, [small_side], interpolation=mode, antialias=not nearest)


def load_tensor(image: NDArray[np.uint8], config: InputConfig) -> Tensor:
    """Decoded image (H, W, 3) uint8 -> resized (3, h, w) uint8: the part of the way that can be cached."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    return resize_small_side(pixels, config.small_side).contiguous()


def normalise(pixels: Tensor, config: InputConfig) -> Tensor:
    """(3, h, w) uint8 -> float32, normalised."""
    return tvf.normalize(tvf.to_dtype(pixels, torch.float32, scale=True), list(config.mean), list(config.std))


class Augment:
    """The random half of training: crop, colour jitter, flips; image and mask move together."""

    def __init__(self, config: InputConfig) -> None:
        self.config = config
        steps: list[torch.nn.Module] = [v2.RandomCrop(config.crop)]
        if any((config.brightness, config.contrast, config.saturation, config.hue)):
            steps.append(v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue))
        steps += [
            v2.RandomHorizontalFlip(config.horizontal_flip),
            v2.RandomVerticalFlip(config.vertical_flip),
        ]
        self.steps = v2.Compose(steps)

    def __call__(self, pixels: Tensor, mask: Tensor | None, seed: int) -> tuple[Tensor, Tensor | None]:
        """Transform one image, and its mask if there is one, as a function of the seed alone.

        Args:
            pixels: (3, h, w) uint8.
            mask: (1, h, w) uint8 in {0, 1}, or None.
            seed: any non-negative integer below 2**63.

        Returns:
            (3, crop, crop) float32 normalised, and (1, crop, crop) float32 or None.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts = [tv_tensors.Image(pixels)] + ([] if mask is None else [tv_tensors.Mask(mask)])
            parts = list(self.steps(*parts)) if mask is not None else [self.steps(*parts)]
            turns = int(torch.randint(4, ())) if self.config.quarter_turns else 0
        plain = [torch.rot90(p.as_subclass(Tensor), turns, dims=(-2, -1)) for p in parts]
        return normalise(plain[0], self.config), None if mask is None else plain[1].float()
