"""Evidence that is comparable between images, of every method of the table; a new row is tested by being there."""

import math

import pytest
import torch
from small import CNN, VIT, build, noise

from histoloc.maps import resize
from histoloc.methods import METHODS
from histoloc.methods.base import class_map, stretched
from histoloc.methods.deepmil import DeepMil
from histoloc.methods.erase import Erase
from histoloc.methods.gradcam import GradCam
from histoloc.methods.maxmin import MaxMin

PER_CLASS = {"gap", "maxpool", "lse", "wildcat", "gradcam", "gradcampp", "smoothgradcampp", "xgradcam", "layercam"}
PER_CLASS |= {"deepmil", "erase", "maxmin"}
IS_ROI = {"allones", "pn", "unet"}
# Deep MIL has its own zero point, and ERASE ranks positions; the others stretch each image's map.
STRETCHED = [name for name in METHODS if name not in IS_ROI | {"deepmil", "erase"}]
every_method = pytest.mark.parametrize("name", METHODS)


def assert_near(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest magnitude."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * scale)


def own_range(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return values.amin(dim=(0, 2, 3)), values.amax(dim=(0, 2, 3))


@pytest.mark.parametrize("backbone", [CNN, VIT])
@every_method
def test_shapes_and_values(name, backbone):
    method, image = build(name, backbone=backbone), noise(3, 97, 131)
    with torch.no_grad():
        found, out, probabilities = method.evidence(image), method(image), method.localize(image).probabilities
    assert found.values.shape == (3, 2 if name in PER_CLASS else 1, *out.roi.shape[2:])
    assert found.values.dtype == found.probabilities.dtype == torch.float32
    assert torch.isfinite(found.values).all()
    torch.testing.assert_close(found.probabilities, probabilities)
    assert method.evidence_is_roi == (name in IS_ROI)
    if method.evidence_is_roi:
        assert 0 <= found.values.min() <= found.values.max() <= 1
        assert method.roi_of(found.values) is found.values


@every_method
def test_an_image_alone_and_among_others_has_the_same_evidence(name):
    method, image = build(name), noise(4, 64, 80)
    image[0] *= 5  # a neighbour of another range
    with torch.no_grad():
        whole, alone = method.evidence(image), method.evidence(image[2:3])
    assert_near(whole.values[2:3], alone.values)
    assert_near(whole.probabilities[2:3], alone.probabilities)


@pytest.mark.parametrize("name", STRETCHED)
def test_an_images_own_range_gives_the_map_that_localize_gives(name):
    method, image = build(name), noise(1, 97, 131)
    with torch.no_grad():
        found, expected = method.evidence(image), method.localize(image)
        values = found.values
        if isinstance(method, MaxMin):  # which weights its maps, and normalises the mask at the image's size
            values = resize(method.locate(image)[1], (97, 131))
        elif values.shape[1] > 1:
            values = class_map(values, found.probabilities)
        roi = resize(method.roi_of(values, *own_range(values)), (97, 131))
    assert expected.roi.std() > 0.01
    torch.testing.assert_close(roi, expected.roi, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["pn", "unet", "allones"])
def test_evidence_that_is_the_roi_is_what_localize_gives(name):
    method, image = build(name), noise(2, 64, 96)
    with torch.no_grad():
        values, expected = method.evidence(image).values, method.localize(image).roi
    if name == "unet":  # which resizes the score, not the probability
        values = resize(values.logit(), (64, 96)).sigmoid()
    torch.testing.assert_close(resize(values, (64, 96)), expected, rtol=0, atol=1e-5)


@every_method
def test_the_roi_never_falls_where_evidence_rises(name):
    method = build(name)
    values = torch.linspace(0, 1, 21) if method.evidence_is_roi else torch.linspace(-3, 5, 21)
    roi = method.roi_of(values, torch.tensor(-1.0), torch.tensor(3.0))
    assert (roi.diff() >= 0).all()
    assert 0 <= roi.min() < 0.01 or name == "allones"
    assert 0.99 < roi.max() <= 1
    if not method.evidence_is_roi:
        assert (roi[values <= -1] == roi[0]).all()
        assert (roi[values >= 3] == roi[-1]).all()
        assert float(roi[10]) == pytest.approx(0.5), "half way between low and high"


@every_method
def test_one_colour_everywhere(name):
    method = build(name)
    with torch.no_grad():
        found = method.evidence(torch.full((2, 3, 64, 80), 0.3))
    assert torch.isfinite(found.values).all()
    assert torch.isfinite(found.probabilities).all()
    assert torch.isfinite(method.roi_of(found.values, *own_range(found.values))).all()


@every_method
def test_low_precision_is_near(name):
    method, image = build(name), noise(2, 64, 64)
    with torch.no_grad():
        exact = method.evidence(image)
        with torch.autocast("cpu", torch.bfloat16):
            found = method.evidence(image)
    assert found.values.dtype == found.probabilities.dtype == torch.float32
    assert torch.isfinite(found.values).all()
    torch.testing.assert_close(found.probabilities, exact.probabilities, rtol=0, atol=0.05)


@every_method
def test_evidence_changes_nothing(name):
    method, image = build(name), noise(2, 64, 64)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    with torch.no_grad():
        first, second = method.evidence(image), method.evidence(image)
    assert torch.equal(first.values, second.values)
    assert not method.training
    assert all(torch.equal(value, method.state_dict()[key]) for key, value in before.items())


def test_stretched_by_hand():
    values = torch.tensor([[-1.0, 0.0], [2.0, 9.0]]).view(1, 2, 1, 2)
    got = stretched(values, torch.tensor([-1.0, 1.0]), torch.tensor([3.0, 5.0]))
    assert got.tolist() == [[[[0.0, 0.25]], [[0.25, 1.0]]]]
    assert stretched(values[0, 0], torch.tensor([-2.0]), torch.tensor(2.0)).tolist() == [[0.25, 0.5]]
    assert not stretched(values, torch.tensor([0.0, 2.0]), torch.tensor([0.0, 1.0])).any(), "no range, no evidence"
    with pytest.raises(ValueError, match="low and high"):
        stretched(values, None, torch.tensor(1.0))


def test_a_diverged_network_is_noticed():
    assert build("gap").roi_of(torch.tensor([math.nan]), torch.tensor(0.0), torch.tensor(1.0)).isnan().all()


# --- what single methods promise ---


@pytest.mark.parametrize("name", ["gradcam", "xgradcam"])
def test_gradient_evidence_is_the_positive_part_of_cam_whatever_the_size(name):
    # GAP + linear: the gradient is w/N everywhere, so that N times the map is ReLU(CAM).
    method = build(name)
    assert isinstance(method, GradCam)
    for size in ((64, 64), (128, 192)):
        image = noise(2, *size)
        with torch.no_grad():
            found, cam = method.evidence(image).values, method(image).terms["class_maps"].relu()
        assert cam.any()
        torch.testing.assert_close(found, cam, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["gradcam", "gradcampp", "xgradcam", "layercam"])
def test_gradient_evidence_does_not_depend_on_how_often_a_scene_is_repeated(name):
    method = build(name)
    assert isinstance(method, GradCam)

    class Features(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.clone()

    positive = torch.randn(1, method.backbone.channels, 4, 6, generator=torch.Generator().manual_seed(2)).relu()
    method.backbone = Features()  # type: ignore[assignment]
    with torch.no_grad():
        once, often = method.evidence(positive).values, method.evidence(positive.repeat(1, 1, 3, 2)).values
    assert once.any()
    torch.testing.assert_close(often, once.repeat(1, 1, 3, 2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("attention", "maps"), [("class", 2), ("shared", 1)])
def test_deep_mil_evidence_is_the_attention_before_its_softmax(attention, maps):
    method, image = build("deepmil", attention=attention), noise(2, 96, 96)
    assert isinstance(method, DeepMil)
    with torch.no_grad():
        values, out = method.evidence(image).values, method(image)
    assert values.shape[1] == maps
    softmax = values.flatten(2).softmax(dim=2).view_as(values)
    torch.testing.assert_close(softmax, out.terms["attention"])


def test_erase_with_one_round_gives_the_class_maps_and_with_more_says_that_they_depend_on_the_image():
    method, image = build("erase"), noise(2, 96, 96)
    assert isinstance(method, Erase)
    with torch.no_grad():
        first = method.evidence(image).values
        assert torch.equal(first, method.rounds[0](image))
        assert method.comparable
        method.mined.fill_(2)
        fused = method.evidence(image).values
    assert not method.comparable
    assert (fused >= first).all()
    assert (fused > first).any()
    assert all(build(name).comparable for name in METHODS if name != "erase")


def test_maxmin_of_the_batch_form_gives_each_image_what_it_gets_alone():
    method, image = build("maxmin", normalisation="batch"), noise(3, 64, 64)
    image[0] *= 5
    with torch.no_grad():
        whole, alone = method.evidence(image), method.localize(image[1:2])
    assert_near(whole.probabilities[1:2], alone.probabilities)


def test_maxmin_mask_by_hand():
    method = build("maxmin", slope=5.0, sigma_start=0.15, sigma_step=0.01, sigma_cap=0.3)
    assert isinstance(method, MaxMin)
    method.epoch.fill_(5)
    got = method.roi_of(torch.tensor([0.0, 1.0, 2.0, 9.0]), torch.tensor(1.0), torch.tensor(3.0))
    expected = [1 / (1 + math.exp(-5 * (u - 0.2))) for u in (0.0, 0.0, 0.5, 1.0)]
    assert got.tolist() == pytest.approx(expected)


def test_maxmin_without_normalisation_needs_no_range():
    method, image = build("maxmin", normalisation="none"), noise(2, 64, 64)
    assert isinstance(method, MaxMin)
    with torch.no_grad():
        found, raw = method.evidence(image), method.locate(image)[1]
    assert method.evidence_is_roi
    torch.testing.assert_close(found.values, (10 * raw).sigmoid())
    assert torch.equal(method.roi_of(found.values), found.values)
