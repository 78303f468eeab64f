from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from histoloc.data.transforms import (
    Augment,
    InputConfig,
    bring_to_scale,
    load_tensor,
    normalise,
    resample_to,
)
from histoloc.errors import InputError

PLAIN: dict[str, Any] = {
    "brightness": 0,
    "contrast": 0,
    "saturation": 0,
    "hue": 0,
    "horizontal_flip": 0,
    "vertical_flip": 0,
}


def picture(height: int, width: int) -> torch.Tensor:
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "expected"), [((522, 775), (432, 641)), ((775, 522), (641, 432)), ((100, 100), (432, 432))]
)
def test_small_side_and_aspect(size, expected):
    assert tuple(bring_to_scale(picture(*size), InputConfig(), None).shape[-2:]) == expected


def test_resizing_nothing_returns_the_image_itself():
    image = picture(64, 80)
    assert bring_to_scale(image, InputConfig(small_side=64, crop=32), None) is image
    assert bring_to_scale(image, InputConfig(small_side=0), None) is image


def test_nearest_makes_no_new_labels():
    mask = (picture(50, 70)[:1] > 200).to(torch.uint8)
    resized = bring_to_scale(mask, InputConfig(small_side=133, crop=32), None, nearest=True)
    assert resized.shape[-2] == 133
    assert set(resized.unique().tolist()) == {0, 1}
    assert resized.float().mean().item() == pytest.approx(mask.float().mean().item(), abs=0.02)


def test_resizing_averages_when_it_shrinks():
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 200
    assert (resample_to(stripes, (16, 16)).float() - 100).abs().max() <= 10  # without antialiasing: 0 or 200


def test_resampling_by_a_factor_and_to_a_size():
    image, config = picture(40, 60), InputConfig(crop=32, mpp=1.0)
    assert tuple(bring_to_scale(image, config, 0.5).shape) == (3, 20, 30)
    assert tuple(bring_to_scale(image, config, 0.001, nearest=True).shape) == (3, 1, 1), "at least one pixel"
    assert bring_to_scale(image, config, 1.009) is image, "within one percent nothing is resampled"
    assert tuple(resample_to(image, (33, 20)).shape) == (3, 33, 20)
    assert resample_to(image, (40, 60)) is image


def test_images_are_brought_to_a_scale_or_to_a_side():
    image = picture(40, 60)
    by_scale, by_side = InputConfig(small_side=32, crop=32, mpp=0.5), InputConfig(small_side=32, crop=32)
    assert tuple(bring_to_scale(image, by_scale, 1.0).shape) == (3, 80, 120)
    assert tuple(bring_to_scale(image, by_scale, 0.25).shape) == (3, 20, 30)
    for mpp in (None, 1.0):
        assert tuple(bring_to_scale(image, by_side, mpp).shape) == (3, 32, 48)
    mask = (image[:1] > 200).to(torch.uint8)
    assert set(bring_to_scale(mask, by_scale, 1.0, nearest=True).unique().tolist()) == {0, 1}
    with pytest.raises(InputError, match=r"looks at 0\.5 µm/px and this image's scale is unknown; fill the table"):
        bring_to_scale(image, by_scale, None)


def test_load_tensor_keeps_pixels():
    image = picture(40, 60).permute(1, 2, 0).numpy()
    got = load_tensor(image[:, ::-1], InputConfig(small_side=0, crop=32))
    assert got.dtype == torch.uint8
    assert got.is_contiguous()
    np.testing.assert_array_equal(got.permute(1, 2, 0).numpy(), image[:, ::-1])


def test_normalise_by_hand():
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(3, 1, 1)
    got = normalise(pixels, InputConfig(mean=(0.5, 0.5, 0.1), std=(0.5, 0.25, 0.1)))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.flatten(), torch.tensor([-1.0, 2.0, 1.0]))


def test_plain_crop_has_the_exact_values():
    config = InputConfig(small_side=0, crop=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), **PLAIN)
    pixels = picture(40, 48)
    got, _ = Augment(config)(pixels, None, seed=3)
    mean, std = torch.tensor(config.mean).view(3, 1, 1), torch.tensor(config.std).view(3, 1, 1)
    whole = (pixels.float() / 255 - mean) / std
    places = [
        (top, left)
        for top in range(9)
        for left in range(17)
        if torch.allclose(got, whole[:, top : top + 32, left : left + 32], atol=1e-6)
    ]
    assert len(places) == 1


def test_crop_reaches_every_place():
    augment, pixels = Augment(InputConfig(small_side=0, crop=32, **PLAIN)), torch.zeros(3, 34, 34, dtype=torch.uint8)
    pixels[:] = torch.arange(34 * 34).view(34, 34) // 5
    firsts = {augment(pixels, None, seed)[0][0, 0, 0].item() for seed in range(100)}
    assert len(firsts) == len({float(pixels[0, top, left]) for top in range(3) for left in range(3)})


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), top=st.integers(0, 47), left=st.integers(0, 63), turns=st.booleans())
def test_image_and_mask_move_together(seed, top, left, turns):
    pixels, masks = torch.zeros(3, 48, 64, dtype=torch.uint8), torch.zeros(2, 48, 64, dtype=torch.uint8)
    pixels[:, top, left], masks[0, top, left], masks[1, top, left] = 255, 1, 200
    flips: dict[str, Any] = PLAIN | {"horizontal_flip": 0.5, "vertical_flip": 0.5}
    image, moved = Augment(InputConfig(small_side=0, crop=40, quarter_turns=turns, **flips))(pixels, masks, seed)
    assert moved is not None
    assert moved.dtype == torch.float32
    assert image.shape == (3, 40, 40)
    torch.testing.assert_close(moved, torch.tensor([1.0, 200.0]).view(2, 1, 1) * (image[:1] / 2 + 0.5))


def test_colours_change_and_masks_do_not():
    pixels, mask = picture(48, 48), (picture(48, 48)[:1] > 128).to(torch.uint8)
    coloured = Augment(InputConfig(small_side=0, crop=48, horizontal_flip=0, vertical_flip=0))(pixels, mask, 1)
    plain = Augment(InputConfig(small_side=0, crop=48, **PLAIN))(pixels, mask, 1)
    assert coloured[1] is not None
    assert plain[1] is not None
    assert (coloured[0] - plain[0]).abs().mean() > 0.02
    assert torch.equal(coloured[1], plain[1])
    assert torch.equal(plain[1], mask.float())


@pytest.mark.parametrize("option", ["horizontal_flip", "vertical_flip"])
def test_flips(option):
    pixels = picture(32, 32)
    flipped: dict[str, Any] = PLAIN | {option: 1.0}
    got = Augment(InputConfig(small_side=0, crop=32, **flipped))(pixels, None, 0)[0]
    expected = pixels.flip(-1 if option == "horizontal_flip" else -2)
    assert torch.equal(got, normalise(expected, InputConfig()))


def test_quarter_turns_reach_all_four():
    pixels, augment = picture(32, 32), Augment(InputConfig(small_side=0, crop=32, quarter_turns=True, **PLAIN))
    expected = [normalise(torch.rot90(pixels, k, (-2, -1)), InputConfig()) for k in range(4)]
    result = {next(k for k in range(4) if torch.equal(augment(pixels, None, s)[0], expected[k])) for s in range(40)}
    assert result == {0, 1, 2, 3}


def test_zoom_enlarges_a_part_of_image_and_mask():
    pixels, mask = picture(48, 64), (picture(48, 64)[:1] > 128).to(torch.uint8)
    augment = Augment(InputConfig(small_side=0, crop=32, zoom=(2, 2), **PLAIN))
    places = {(top, left) for top in range(33) for left in range(49)}
    found = set()
    for seed in range(3):
        image, moved = augment(pixels, mask, seed)
        assert moved is not None
        parts = {p: mask[:, p[0] : p[0] + 16, p[1] : p[1] + 16].float() for p in places}
        (place,) = (p for p in places if torch.equal(parts[p].repeat_interleave(2, 1).repeat_interleave(2, 2), moved))
        top, left = place
        expected = resample_to(pixels[:, top : top + 16, left : left + 16], (32, 32))
        assert torch.equal(image, normalise(expected, InputConfig()))
        found.add(place)
    assert len(found) > 1


def test_zoom_is_uniform_and_never_shows_more_than_there_is():
    ramp = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64)
    augment = Augment(InputConfig(small_side=0, crop=32, zoom=(0.25, 4), **PLAIN))
    images = [augment(ramp, None, seed)[0] for seed in range(200)]
    sides = np.array([float((i[0, 0, 31] - i[0, 0, 0]) / 2 * 255) / 31 * 32 for i in images])  # pixels across
    assert sides.max() == pytest.approx(64, abs=2)
    assert sides.min() == pytest.approx(8, abs=1)
    assert np.mean(sides > 60) == pytest.approx((0.5 - 0.25) / 3.75, abs=0.06), "the whole image below a factor of 1/2"
    assert np.mean(sides < 16) == pytest.approx((4 - 2) / 3.75, abs=0.1), "half of the crop's side above a factor of 2"


def test_augmentation_is_a_function_of_the_seed():
    augment, pixels, mask = Augment(InputConfig(small_side=0, crop=32)), picture(48, 64), picture(48, 64)[:1] // 128
    first = augment(pixels, mask, 5)
    torch.manual_seed(99)
    augment(pixels, mask, 6)
    again = Augment(InputConfig(small_side=0, crop=32))(pixels, mask, 5)
    assert torch.equal(first[0], again[0])
    assert first[1] is not None
    assert again[1] is not None
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], augment(pixels, mask, 6)[0])


def test_mask_does_not_change_the_image():
    augment, pixels = Augment(InputConfig(small_side=0, crop=32)), picture(48, 64)
    assert torch.equal(augment(pixels, None, 5)[0], augment(pixels, picture(48, 64)[:1] // 128, 5)[0])


def test_augmentation_leaves_global_randomness_and_its_input_alone():
    pixels = picture(48, 64)
    before, state, numpy_state = pixels.clone(), torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    Augment(InputConfig(small_side=0, crop=32))(pixels, None, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert str(np.random.get_state()) == numpy_state  # noqa: NPY002
    assert torch.equal(pixels, before)


def test_jitter_is_torchvisions():
    # The order of random draws is torchvision's own; a release that changes it changes every training run.
    config, pixels = InputConfig(small_side=0, crop=32), picture(40, 40)
    steps = v2.Compose(
        [v2.RandomCrop(32), v2.ColorJitter(0.5, 0.5, 0.5, 0.05), v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        expected = normalise(steps(pixels), config)
    assert torch.equal(Augment(config)(pixels, None, 11)[0], expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": 16}, "--crop 16 is wrong .must be at least 32"),
        ({"crop": 433}, "at most --small-side 432"),
        ({"std": (0.5, 0.0, 0.5)}, "--std .* is wrong .must be above 0"),
        ({"hue": 0.6}, "--hue 0.6 is wrong .must be at most 0.5"),
        ({"hue": -0.1}, "--hue -0.1 is wrong .must be at least 0"),
        ({"brightness": -0.1}, "--brightness"),
        ({"contrast": float("nan")}, "--contrast"),
        ({"horizontal_flip": 1.5}, "--horizontal-flip"),
        ({"small_side": -1}, "--small-side"),
        ({"zoom": (1.5, 1.0)}, "--zoom .1.5, 1.0. is wrong .must have the smaller number first"),
        ({"zoom": (0.0, float("nan"))}, "--zoom"),
        ({"mean": (float("nan"), 0.5, 0.5)}, "--mean"),
    ],
)
def test_options_out_of_range(values, message):
    with pytest.raises(InputError, match=message):
        InputConfig(**values)


def test_crop_without_resizing_has_no_upper_bound():
    assert InputConfig(small_side=0, crop=2000).crop == 2000
