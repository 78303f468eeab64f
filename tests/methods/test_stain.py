from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2hed
from small import answer, build, noise

from histoloc.data.transforms import InputConfig, load_tensor, normalise
from histoloc.datasets.synthetic.dataset import CLASSES, render
from histoloc.errors import InputError
from histoloc.methods import Method
from histoloc.methods.stain import StainOptions, haematoxylin, smooth
from histoloc.model_folder import ModelConfig, build_method

PICTURE = render("benign", seed=0, index=3, height=70, width=90)
INPUT = InputConfig(small_side=0, crop=64, mean=(0.7, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def make(**options: Any) -> Method:
    config = ModelConfig("stain", CLASSES, StainOptions(**options), input=INPUT)
    return build_method(config, load_backbone=True).eval()


def seen(image: np.ndarray) -> torch.Tensor:
    return normalise(load_tensor(image, INPUT), INPUT)[None]


def stretched(map: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((map - map.min()) / (map.max() - map.min())).float()[None, None]


def test_blue_minus_red_is_that_of_the_image_before_normalisation():
    rgb = PICTURE.image / 255.0
    expected = gaussian_filter(rgb[..., 2] - rgb[..., 0], sigma=6, mode="reflect")
    method, image = make(), seen(PICTURE.image)
    evidence = method.evidence(image).evidence[0, 0].double()
    torch.testing.assert_close(evidence, torch.from_numpy(expected), atol=1e-6, rtol=0)
    probabilities, roi = answer(method, image)
    torch.testing.assert_close(roi, stretched(expected), atol=1e-5, rtol=0)
    assert (roi.min(), roi.max()) == (0, 1)
    assert torch.equal(probabilities, torch.full((1, 2), 0.5))


def test_haematoxylin_is_scikit_images():
    extreme = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255], [0, 255, 0]]], dtype=np.uint8)
    for image in (PICTURE.image, extreme):
        rgb = torch.from_numpy(image / 255.0).permute(2, 0, 1)[None]
        torch.testing.assert_close(haematoxylin(rgb)[0, 0], torch.from_numpy(rgb2hed(image)[..., 0]))
    _, roi = answer(make(stain="haematoxylin", sigma=2.5), seen(PICTURE.image))
    expected = gaussian_filter(rgb2hed(PICTURE.image)[..., 0], sigma=2.5, mode="reflect")
    torch.testing.assert_close(roi, stretched(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(33, 50), (1, 7), (5, 3), (64, 64)])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 6.0, 30.0])
def test_smoothing_is_scipys_at_any_size(size, sigma):
    map = torch.rand(2, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = np.stack([gaussian_filter(m, sigma=sigma, mode="reflect") for m in map[:, 0].numpy()])
    torch.testing.assert_close(smooth(map, sigma)[:, 0], torch.from_numpy(expected))


def test_smoothing_keeps_the_mean_and_zero_smooths_nothing():
    map = torch.rand(1, 1, 20, 31, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(smooth(map, 4.0).mean(), map.mean())
    assert torch.equal(smooth(map, 0.0), map)


@pytest.mark.parametrize("contrast", ["blue-red", "haematoxylin"])
@pytest.mark.parametrize("grey", [-5.0, -1.0, 0.1, 0.37, 5.0])
def test_one_colour_shows_no_evidence(contrast, grey):
    _, roi = answer(make(stain=contrast), torch.full((1, 3, 61, 83), grey))
    assert torch.equal(roi, torch.zeros(1, 1, 61, 83))


def test_finds_a_blue_disc_on_pink():
    row, column = np.mgrid[:80, :80]
    disc = (row - 30) ** 2 + (column - 45) ** 2 < 20**2
    image = np.where(disc[..., None], [90, 60, 150], [230, 150, 190]).astype(np.uint8)
    for contrast in ("blue-red", "haematoxylin"):
        roi = answer(make(stain=contrast, sigma=2.0), seen(image))[1][0, 0].numpy()
        overlap = 2 * ((roi >= 0.5) & disc).sum() / ((roi >= 0.5).sum() + disc.sum())
        assert overlap > 0.97, contrast


def test_all_digits_count_under_autocast():
    method, image = build("stain"), noise(2, 40, 50)
    with torch.autocast("cpu", torch.bfloat16):
        low = method.evidence(image)
    assert torch.equal(low.evidence, method.evidence(image).evidence)


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf")])
def test_wrong_sigma_names_the_flag(sigma):
    with pytest.raises(InputError, match="--sigma"):
        make(sigma=sigma)


def test_learns_nothing():
    assert not list(build("stain").parameters())
    assert not build("stain").supervision
