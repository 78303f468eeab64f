"""Cross-fit: its classifiers against scikit-learn, what they say of pictures made for it, what it learned from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import Ridge
from small import CNN, VIT, build, resume_and_compare
from torch import Tensor

from histoloc.config import run_config
from histoloc.methods.crossfit import CrossFit, divided, in_favour, ridge
from histoloc.methods.cues import nuclei_around_lumens, standardised
from histoloc.model_folder import read_model_config
from histoloc.training import train
from histoloc.types import Output

PURPLE, PINK, WHITE = (0.45, 0.25, 0.6), (0.9, 0.65, 0.8), (0.97, 0.97, 0.97)


def crossfit(**options) -> CrossFit:
    method = build("crossfit", **options)
    assert isinstance(method, CrossFit)
    return method


def one_hot(labels: list[int], classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), classes).bool()


def halves(count: int, classes: int, height: int, width: int) -> tuple[list[Tensor], Tensor]:
    """Images in [-1, 1] whose left half has the class's texture, stripes of its own width, and whose right is noise."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for index in range(count):
        image = 0.1 * torch.randn(3, height, width, generator=generator)
        stripes = torch.arange(width // 2) // (2 + 3 * (index % classes)) % 2
        image[:, :, : width // 2] += 2.0 * stripes - 1
        images.append(image.clamp(-1, 1))
    return images, one_hot([index % classes for index in range(count)], classes)


@given(st.integers(0, 1000), st.floats(0.01, 10))
def test_coefficients_are_those_of_scikit_learn(seed, weight):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(20, 6)), np.eye(3)[rng.integers(0, 3, 20)]
    variance = ((x - x.mean(axis=0)) ** 2).mean()
    expected = Ridge(alpha=20 * weight * variance).fit(x, y).coef_.T  # its squared error is a sum
    got = ridge(torch.from_numpy(x), torch.from_numpy(y).bool(), weight)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)


def test_features_that_are_all_alike_say_nothing():
    assert not ridge(torch.ones(4, 3), one_hot([0, 1, 0, 1], 2), 1.0).any()


def test_every_class_is_spread_over_all_parts():
    labels = one_hot([0, 0, 0, 0, 0, 0, 1, 1, 1, 1], 2)
    assert divided(labels, 3).tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert divided(labels[[6, 0, 7, 1]], 2).tolist() == [0, 0, 1, 1]


def test_own_coefficients_against_the_mean_of_the_others():
    weights = torch.tensor([[1.0, 4.0, 7.0], [2.0, 0.0, 0.0]])
    assert in_favour(weights, torch.tensor([True, False, False])).tolist() == [1 - 5.5, 2.0]
    assert in_favour(weights, torch.tensor([False, True, True])).tolist() == [4.5, -2.0]
    assert in_favour(weights, torch.tensor([True, True, True])).tolist() == [4.0, pytest.approx(2 / 3)]


@pytest.mark.parametrize("backbone", [CNN, VIT])
@pytest.mark.parametrize(("classes", "size"), [(("a", "b"), (64, 96)), (("a", "b", "c"), (67, 93))])
def test_targets_are_of_the_images_size_and_the_same_for_every_seed(classes, size, backbone):
    method, (images, labels) = build("crossfit", backbone=backbone, classes=classes), halves(9, len(classes), *size)
    assert isinstance(method, CrossFit)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with torch.no_grad():
        first = method.first_targets(images.__getitem__, labels)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    for parameter in method.backbone.parameters():  # as where training is resumed
        parameter.data.zero_()
    with torch.no_grad():
        second = method.first_targets(images.__getitem__, labels)
    for one, other in zip(first, second, strict=True):
        assert one.shape == (1, *size)
        assert torch.equal(one, other)
        assert 0 <= float(one.min()) < 0.5 < float(one.max()) <= 1


def test_what_tells_the_class_is_found():
    with pytest.MonkeyPatch.context() as patch:
        # Random features: mean brightness, and contrast of stripes at two distances.
        patch.setattr("histoloc.methods.crossfit.build_backbone", lambda config: Stripes())
        method, (images, labels) = crossfit(), halves(10, 2, 64, 128)
        targets = torch.stack(method.first_targets(images.__getitem__, labels))
    left, right = targets[..., 8:56].mean(dim=(1, 2, 3)), targets[..., 72:120].mean(dim=(1, 2, 3))
    assert (left > 0.6).all()
    assert (right < 0.4).all()


class Stripes(torch.nn.Module):
    """A backbone of one level: how much pixels differ from those 2 and 5 to the right, in cells of 8 x 8."""

    levels, level_strides = (0,), (8,)

    def pyramid(self, image: Tensor) -> list[Tensor]:
        differences = [(image - image.roll(-shift, dims=3)).abs().mean(dim=1, keepdim=True) for shift in (2, 5)]
        return [torch.nn.functional.avg_pool2d(torch.cat(differences, dim=1), 8)]


def test_images_of_the_class_without_roi_have_an_empty_target():
    method, (images, labels) = build("crossfit", classes=("a", "b"), empty_class="a"), halves(6, 2, 64, 64)
    targets = method.first_targets(images.__getitem__, labels)
    assert targets is not None
    assert [bool(target.any()) for target in targets] == [False, True] * 3


def test_one_map_for_each_image_by_the_papers_rule():
    method, values = crossfit(steepness=2.0), torch.tensor([[0.0, 2.0], [5.0, 5.0]]).view(2, 1, 1, 2)
    got = method.image_map(Output(values, values, {}), values, torch.tensor([0, 1]))
    assert got.flatten().tolist() == pytest.approx([1 / (1 + np.exp(2)), 1 / (1 + np.exp(-2)), 0.5, 0.5])


def tissue(height: int, width: int) -> Tensor:
    """Pink tissue with a ring of purple around a white lumen at the left, and a large white hole at the right."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height / 2, x - width / 4)
    image = np.full((height, width, 3), PINK)
    image[distance < 16], image[distance < 9] = PURPLE, WHITE
    image[:, 3 * width // 4 :] = WHITE
    return torch.from_numpy(image).float().permute(2, 0, 1)


def test_nuclei_around_a_lumen_stand_out():
    rgb = tissue(120, 241)
    cue = nuclei_around_lumens(rgb)[0, 0]
    assert cue.shape == (120, 241)
    # The hole has 120 x 61 = 7,320 px and is a lumen by size; the ring has nuclei as well.
    assert cue[60, 60 - 12] > cue[60, 190] > cue[10, 120]
    inside = torch.from_numpy(ndimage.binary_dilation((rgb.amin(dim=0) > 0.9).numpy()))
    assert float(cue[~inside].max()) == float(cue.max())


def test_what_a_ring_encloses_is_filled_to_the_rings_lowest_point():
    ring = np.full((60, 60, 3), PINK)
    distance = np.hypot(*(np.mgrid[:60, :60] - 29.5))
    ring[(distance > 14) & (distance < 20)] = PURPLE
    cue = nuclei_around_lumens(torch.from_numpy(ring).float().permute(2, 0, 1))[0, 0]
    around = cue[(distance > 16) & (distance < 18)]
    assert cue[30, 30] > cue[2, 2] + 1
    assert float(cue[distance < 5].max() - cue[distance < 5].min()) < 1e-6
    assert float(around.min()) - 0.2 < cue[30, 30] <= float(around.max())


@pytest.mark.parametrize("colour", [PINK, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)])
def test_an_image_of_one_colour_has_no_cue(colour):
    assert not nuclei_around_lumens(torch.tensor(colour).view(3, 1, 1).expand(3, 33, 41)).any()


def test_standardised_has_mean_zero_and_deviation_one():
    z = standardised(torch.tensor([[1.0, 3.0], [2.0, 2.0]]).view(2, 1, 1, 2))
    assert z.flatten().tolist() == [-1, 1, 0, 0]


def test_the_cue_changes_the_target_by_its_weight():
    images = [2 * tissue(64, 96) - 1 for _ in range(4)]
    labels = one_hot([0, 1, 0, 1], 2)
    plain, none, much = (
        torch.stack(crossfit(**o).first_targets(images.__getitem__, labels))
        for o in ({}, {"cue": "lumens", "cue_weight": 0.0}, {"cue": "lumens", "cue_weight": 1e6})
    )
    torch.testing.assert_close(none, plain, atol=1e-5, rtol=0)
    expected = torch.sigmoid(2 * standardised(nuclei_around_lumens(tissue(64, 96))))
    torch.testing.assert_close(much[0], expected[0].to(much.dtype), atol=1e-4, rtol=0)


def config_of(folder: Path, **options):
    rng = np.random.default_rng(0)
    rows = []
    for index in range(6):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        rows.append({"image": f"{index}.png", "label": "ab"[index % 2], "split": "valid" if index > 3 else "train"})
    table = folder / "table.csv"
    pd.DataFrame(rows).assign(mask="", group="").to_csv(table, index=False)
    values = {"method": "crossfit", "data": str(table), "options": options, "backbone": {"backbone": CNN}}
    values["backbone"] |= {"weights": "none", "stride": 0}
    values |= {"input": {"small_side": 0, "crop": 32}, "training": {"epochs": 2, "batch": 2, "workers": 0}}
    return run_config(values, "test")


def test_training_is_resumed_to_the_same_bits(tmp_path, monkeypatch):
    resume_and_compare(config_of(tmp_path), tmp_path, monkeypatch)


def test_the_model_says_that_it_learned_from_a_cue(tmp_path):
    config = config_of(tmp_path)
    assert (config.training.optimizer, config.training.schedule, config.training.epochs) == ("adamw", "one-cycle", 2)
    train(config, tmp_path / "labels", progress=False)
    assert read_model_config(tmp_path / "labels").supervision == ("image",)
    options = replace(config.options, cue="lumens")
    train(replace(config, options=options), tmp_path / "cue", progress=False)
    assert read_model_config(tmp_path / "cue").supervision == ("cue", "image")
