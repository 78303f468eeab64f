"""What max-min puts in the place of what a mask takes away."""

import pytest
import torch
from small import maxmin, noise
from torch import Tensor

from histoloc.maps import resize
from histoloc.methods.maxmin import MaxMin


def shown(method: MaxMin, normalised: Tensor) -> Tensor:
    """Colours in [0, 1] as a person sees them."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (method.setting.mean, method.setting.std))
    return normalised * std + mean


@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_fills(scale):
    image = noise(2, 100, 160)
    nothing, everything = torch.zeros(2, 1, 100, 160), torch.ones(2, 1, 100, 160)
    size = (100, 160) if scale == 1 else (80, 128)
    filled = {}
    for fill in ("grey", "black", "mean", "blur"):
        method = maxmin(fill=fill, scale=scale)
        filled[fill] = method.cut(image, nothing)
        assert filled[fill].shape == (2, 3, *size)
        torch.testing.assert_close(method.cut(image, everything), resize(image, size))
    torch.testing.assert_close(filled["grey"], torch.zeros(2, 3, *size))
    torch.testing.assert_close(shown(maxmin(), filled["black"]), torch.zeros(2, 3, *size))
    mean = image.mean(dim=(2, 3), keepdim=True).expand(2, 3, *size)
    torch.testing.assert_close(filled["mean"], mean)
    assert filled["blur"].std() < 0.1 * image.std()
    torch.testing.assert_close(filled["blur"].mean(dim=(2, 3)), image.mean(dim=(2, 3)), rtol=0, atol=0.05)


def test_fills_keep_a_plain_image():
    image = torch.tensor([0.3, -0.2, 0.9]).view(1, 3, 1, 1).expand(1, 3, 96, 64)
    mask = torch.rand(1, 1, 96, 64, generator=torch.Generator().manual_seed(0))
    for fill in ("mean", "blur"):
        torch.testing.assert_close(maxmin(fill=fill, scale=1.0).cut(image, mask), image)


def test_parts_of_a_fill_add_up():
    image, mask = noise(1, 64, 64), torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for fill in ("grey", "black", "mean", "blur"):
        method = maxmin(fill=fill)
        none = method.cut(image, torch.zeros_like(mask))
        torch.testing.assert_close(
            method.cut(image, mask) + method.cut(image, 1 - mask),
            method.cut(image, torch.ones_like(mask)) + none,
            rtol=1e-4,
            atol=1e-5,
        )


def test_small_images_are_not_scaled_away():
    assert maxmin(scale=0.1).cut(noise(1, 64, 400), torch.ones(1, 1, 64, 400)).shape == (1, 3, 32, 40)
