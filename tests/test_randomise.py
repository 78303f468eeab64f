"""Strong randomisation: within its bounds, of each image by itself, and nothing but colours where it must not move."""

import numpy as np
import pytest
import torch
from torch import Tensor

from histoloc import randomise
from histoloc.randomise import glass, strong


def noise(count: int, height: int = 24, width: int = 32) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_images_stay_images_and_the_seed_fixes_them():
    image, results = noise(16), []
    before = image.clone()
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(strong(image))
    assert torch.equal(image, before)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    for result in results:
        assert (result.shape, result.dtype) == (image.shape, torch.float32)
        assert 0 <= result.min() <= result.max() <= 1


def test_equal_images_become_different_ones():
    torch.manual_seed(0)
    result = strong(noise(1).expand(12, -1, -1, -1))
    assert all((result[i] - result[j]).abs().mean() > 0.01 for i in range(12) for j in range(i))


def test_one_colour_stays_one_colour_but_for_noise(monkeypatch):
    monkeypatch.setattr(randomise, "NOISE", 0)
    torch.manual_seed(0)
    colours = torch.rand(20, 3, 1, 1)
    result = strong(colours.expand(-1, -1, 9, 11))
    torch.testing.assert_close(result, result[..., :1, :1].expand_as(result))
    assert (result[..., 0, 0] - colours[..., 0, 0]).abs().mean() > 0.05


def test_without_strength_nothing_changes_but_sharpness(monkeypatch):
    for name in ("JITTER", "CHANNEL_GAIN", "MIXING", "OFFSET", "GAMMA", "NOISE"):
        monkeypatch.setattr(randomise, name, 0)
    torch.manual_seed(0)
    image = noise(40).clamp(1e-3, 1)
    result = strong(image)
    same = (result - image).abs().flatten(1).max(dim=1).values < 1e-6
    assert 10 < same.sum() < 30, "half of them"
    i = int((~same).nonzero()[0])
    torch.testing.assert_close(result[i, :, 5, 5], image[i, :, 4:7, 4:7].mean(dim=(1, 2)))
    torch.testing.assert_close(result[i, :, 0, 0], image[i, :, :2, :2].mean(dim=(1, 2)))


def test_the_noise_of_half_the_images_is_at_most_five_percent():
    torch.manual_seed(0)
    grey = torch.full((300, 3, 16, 16), 0.5)
    result = strong(grey)
    inside = (result.amin(dim=(1, 2, 3)) > 0) & (result.amax(dim=(1, 2, 3)) < 1)
    spread = result.std(dim=(2, 3)).mean(dim=1)[inside]
    assert (spread < 1e-6).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert 0.03 < spread.max() < 0.055


def test_channels_are_mixed_around_the_mean_of_the_image(monkeypatch):
    for name in ("JITTER", "CHANNEL_GAIN", "OFFSET", "GAMMA", "NOISE"):
        monkeypatch.setattr(randomise, name, 0)
    torch.manual_seed(3)
    image = 0.4 + 0.2 * noise(400, 6, 6)
    result = strong(image)
    torch.testing.assert_close(result.mean(dim=(2, 3)), image.mean(dim=(2, 3)), rtol=0, atol=0.02)
    own, mixed = (x.flatten(2) - x.flatten(2).mean(dim=2, keepdim=True) for x in (image, result))
    fitted = torch.linalg.lstsq(own.transpose(1, 2), mixed.transpose(1, 2))
    sharp = (mixed.transpose(1, 2) - own.transpose(1, 2) @ fitted.solution).abs().amax(dim=(1, 2)) < 1e-4
    assert 0.35 < sharp.float().mean() < 0.65, "the others are blurred"
    deviation = fitted.solution[sharp] - torch.eye(3)
    assert deviation.mean().item() == pytest.approx(0, abs=0.02)
    assert deviation.std().item() == pytest.approx(0.15, abs=0.01)


def test_glass_is_near_white_from_one_side_and_no_gland():
    torch.manual_seed(0)
    image, mask = 0.3 * noise(300, 32, 40), torch.ones(300, 1, 32, 40)
    result, truth = glass(image, mask)
    changed = (result - image).abs().amax(dim=(1, 2, 3)) > 0.2
    assert changed.float().mean().item() == pytest.approx(1 / 3, abs=0.08)
    assert torch.equal(result[~changed & truth.flatten(1).all(dim=1)], image[~changed & truth.flatten(1).all(dim=1)])
    empty = truth[:, 0] == 0
    assert set(truth.unique().tolist()) == {0.0, 1.0}
    inside = result.permute(0, 2, 3, 1)[empty]
    assert inside.min() > 0.45
    assert inside.median() > 0.88
    border = torch.ones(32, 40, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    for i in changed.nonzero()[:, 0]:
        assert not empty[i].any() or empty[i][border].any()
    assert 0.02 < empty[changed].float().mean() < 0.5


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_glass(share):
    torch.manual_seed(0)
    image = 0.3 * noise(50, 32, 40)
    result, truth = glass(image, torch.ones(50, 1, 32, 40), share)
    assert torch.equal(result, image) == (share == 0)
    assert np.mean([not bool(t.all()) for t in truth]) == pytest.approx(share, abs=0.2)
