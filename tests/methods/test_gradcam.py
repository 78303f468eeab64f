"""The Grad-CAM family: rules by hand, maps of the predicted class, noise, and layers of other methods."""

from typing import Any

import pytest
import torch
from small import VIT, answer, build, noise
from torch import Tensor

from histoloc.errors import InputError
from histoloc.maps import normalise_per_image, place
from histoloc.methods.cam import Gap
from histoloc.methods.gradcam import (
    GradCam,
    SmoothGradCamPP,
    gradcam,
    gradcampp,
    gradient_maps,
    layercam,
    smoothgradcampp,
    xgradcam,
)
from histoloc.methods.maxmin import MaxMin

FAMILY = ["gradcam", "gradcampp", "smoothgradcampp", "xgradcam", "layercam"]
RULES = [gradcam, gradcampp, xgradcam, layercam]

A = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[2.0, 0.0], [1.0, 1.0]]])[None]
G = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[-2.0, 2.0], [-2.0, -2.0]]])[None]


def member(name: str, **options: Any) -> GradCam:
    method = build(name, **options)
    assert isinstance(method, GradCam)
    return method


def test_gradcam_by_hand():
    # The mean gradients are 1 and -1.
    assert gradcam(A, G).tolist() == [[[0, 2], [2, 3]]]


def test_xgradcam_by_hand():
    # w = (2·1 + 2·4)/10 = 1 and (-4 + 0 - 2 - 2)/4 = -2
    assert xgradcam(A, G).tolist() == [[[0, 2], [1, 2]]]


def test_layercam_by_hand():
    # The second channel's only positive gradient is where its activation is 0.
    assert layercam(A, G).tolist() == [[[2, 0], [0, 8]]]


def test_gradcampp_by_hand():
    # alpha = 1/(2 + 10·2) and 1/(2 + 4·2) where g = 2, hence w = 2·2/22 and 2/10
    expected = 2 / 11 * A[:, 0] + 0.2 * A[:, 1]
    torch.testing.assert_close(gradcampp(A, G), expected)


def test_smoothgradcampp_by_hand():
    other = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, -2.0], [0.0, 0.0]]])[None]
    # First channel: at (0,0) g = 2, 1: 2.5/(2·2.5 + 10·4.5) · 1.5; at (1,1) g = 2, 0: 2/(2·2 + 10·4) · 1.
    # Second: no mean gradient is positive. The order of the copies does not matter.
    expected = (0.05 * 1.5 + 1 / 22) * A[:, 0]
    torch.testing.assert_close(smoothgradcampp(A, torch.stack([G, other])), expected)
    torch.testing.assert_close(smoothgradcampp(A, torch.stack([other, G])), expected)


def test_small_gradients_do_not_underflow():
    # g³ = 1e-60 is 0 in float32; the maps are small, not wrong: alpha -> 1/2.
    tiny = 1e-20 * G
    torch.testing.assert_close(gradcampp(A, tiny) * 1e20, 2 * A[:, 0] + A[:, 1])


@pytest.mark.parametrize("rule", RULES)
def test_silent_channels_have_no_say(rule):
    silent = torch.cat([A, torch.zeros(1, 1, 2, 2)], dim=1)
    gradients = torch.cat([G, torch.ones(1, 1, 2, 2)], dim=1)
    torch.testing.assert_close(rule(silent, gradients), rule(A, G))
    assert not rule(A, torch.zeros_like(G)).any()


@pytest.mark.parametrize(("name", "rule"), [("gradcam", gradcam), ("xgradcam", xgradcam)])
def test_evidence_is_the_positive_part_of_cam_whatever_the_size(name, rule):
    # GAP + linear: the gradient is w/N everywhere, so Grad-CAM = XGrad-CAM = ReLU(CAM)/N; the features have both signs,
    # which XGrad-CAM bears here because a constant gradient can be taken out of its sums.
    method = member(name)
    for size in ((64, 64), (128, 192)):
        image = noise(2, *size)
        with torch.no_grad():
            evidence, out, features = method.evidence(image), method(image), method.backbone(image)
        cam = out.evidence.relu()
        assert (features < 0).any()
        assert cam.any()
        torch.testing.assert_close(evidence.evidence, cam, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(evidence.logits, out.logits)
        maps = gradient_maps(method, method.backbone, image, rule=rule).maps
        torch.testing.assert_close(maps * cam[0, 0].numel(), cam, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["gradcam", "gradcampp", "xgradcam", "layercam"])
def test_evidence_does_not_depend_on_how_often_a_scene_is_repeated(name):
    method = member(name)

    class Features(torch.nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.clone()

    positive = torch.randn(1, method.backbone.channels, 4, 6, generator=torch.Generator().manual_seed(2)).relu()
    method.backbone = Features()  # type: ignore[assignment]
    with torch.no_grad():
        once, often = method.evidence(positive).evidence, method.evidence(positive.repeat(1, 1, 3, 2)).evidence
    assert once.any()
    torch.testing.assert_close(often, once.repeat(1, 1, 3, 2), rtol=1e-4, atol=1e-6)


def test_forward_is_cam():
    method, image = member("gradcam"), noise(2, 64, 64)
    with torch.no_grad():
        out, features = method(image), method.backbone(image)
        expected = torch.einsum("kc,bchw->bkhw", method.head.weight, features)
    torch.testing.assert_close(out.evidence, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.logits, expected.mean(dim=(2, 3)) + method.head.bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", ["", "blocks.1"])
@pytest.mark.parametrize("name", FAMILY)
def test_the_map_is_that_of_the_predicted_class(name, layer):
    method, image = member(name, layer=layer), noise(4, 64, 96)
    with torch.no_grad():
        method.head.bias.copy_(method.head.bias - method(image).logits.mean(dim=0))  # so that both classes occur
    probabilities, roi = answer(method, image)
    predicted = probabilities.argmax(dim=1)
    assert len(predicted.unique()) == 2
    maps = gradient_maps(method, method.layer, image, predicted, type(method).rule, method.noise(image)).maps
    assert maps.shape[-2:] == (64 // method.stride, 96 // method.stride)
    torch.testing.assert_close(roi, place(normalise_per_image(maps), method.stride, (64, 96)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "layer", "stride"),
    [
        ("test_efficientnet", "", 32),
        ("test_efficientnet", "blocks.1", 4),
        ("test_efficientnet", "blocks.2.0.bn1", 8),
        ("test_efficientnet", "conv_stem", 2),
        ("test_resnet", "layer2", 8),
        (VIT, "", 16),
        (VIT, "patch_embed.proj", 16),
    ],
)
def test_stride_is_that_of_the_layer(backbone, layer, stride):
    method = member("gradcam", backbone=backbone, layer=layer)
    assert method.stride == stride
    for height, width in ((64, 96), (97, 131)):
        maps = method.evidence(noise(1, height, width)).evidence
        assert maps.shape[-2:] == (-(-height // stride), -(-width // stride))
    assert method.multiple == (16 if backbone == VIT else 32), "whole positions at every level, not only at the layer"


@pytest.mark.parametrize("name", FAMILY)
def test_evidence_in_inference_mode(name):
    method, image = member(name), noise(2, 64, 64)
    expected = method.evidence(image)
    with torch.inference_mode():
        evidence = method.evidence(image)
    assert torch.equal(evidence.evidence, expected.evidence)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in method.parameters())
    assert not any(module._forward_hooks for module in method.modules())


def test_noise():
    method, image = member("smoothgradcampp", layer="blocks.1"), noise(3, 64, 64)
    added = method.noise(image)
    assert added is not None
    assert added.shape == (4, 1, 3, 64, 64)
    assert abs(float(added.std()) - 0.3) < 0.01
    state = torch.get_rng_state()
    first, second, alone = (method.evidence(part).evidence for part in (image, image, image[2:]))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    torch.testing.assert_close(first[2:], alone, rtol=1e-4, atol=1e-5)
    other = member("smoothgradcampp", layer="blocks.1", noise_seed=1).evidence(image).evidence
    assert (other - first).abs().max() > 1e-3 * first.max()


def test_without_noise_it_is_gradcampp():
    image = noise(2, 64, 64)
    smooth = member("smoothgradcampp", layer="blocks.1", noise=0.0).evidence(image)
    plain = member("gradcampp", layer="blocks.1").evidence(image)
    assert plain.evidence.any()
    torch.testing.assert_close(smooth.evidence, plain.evidence)


@pytest.mark.parametrize(
    ("name", "value"), [("samples", 0), ("noise", -1.0), ("noise", float("nan")), ("noise_seed", -1)]
)
def test_wrong_noise(name, value):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} {value} is wrong"):
        build("smoothgradcampp", **{name: value})


def test_wrong_layers():
    with pytest.raises(InputError, match=r"--layer 'blocks.9' is no module of test_efficientnet; .*blocks\.[0-3]"):
        build("gradcam", layer="blocks.9")
    with pytest.raises(InputError, match=r"--layer blocks: the layer Sequential runs 0 times"):
        build("gradcam", backbone=VIT, layer="blocks")
    with pytest.raises(InputError, match=r"--layer blocks.1: .* gives a tensor of shape .* not a map"):
        build("gradcam", backbone=VIT, layer="blocks.1")


def test_a_classifier_of_another_method():
    method, image = build("gap"), noise(2, 64, 64)
    assert isinstance(method, Gap)
    logits, maps = gradient_maps(method, method.backbone, image)
    assert method.head.bias is not None
    with torch.no_grad():
        out = method(image)
        cam = out.evidence - method.head.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(logits, out.logits)
    torch.testing.assert_close(maps * maps[0, 0].numel(), cam.relu())
    index = logits.argmax(dim=1)
    inner = gradient_maps(method, method.backbone.model.blocks[1], image, index, layercam).maps
    assert inner.shape == (2, 1, 16, 16)


def test_a_network_that_runs_its_encoder_several_times():
    method, image = build("maxmin"), noise(1, 64, 64)
    assert isinstance(method, MaxMin)
    with pytest.raises(InputError, match="runs 2 times"):
        gradient_maps(method, method.localizer, image)
    result = gradient_maps(lambda x: method.locate(x)[0], method.localizer, image)
    with torch.no_grad():
        torch.testing.assert_close(result.logits, method.locate(image)[0])


def test_the_smooth_rule_needs_noise():
    method, image = member("gradcam"), noise(2, 64, 64)
    with pytest.raises(InputError, match="give gradient_maps some noise"):
        gradient_maps(method, method.backbone, image, rule=smoothgradcampp)


def test_your_own_rule():
    def strength(activations: Tensor, gradients: Tensor) -> Tensor:
        return gradients.abs().amax(dim=1)

    method, image = member("gradcam"), noise(1, 64, 64)
    maps = gradient_maps(method, method.backbone, image, rule=strength).maps
    largest = method.head.weight.detach().abs().amax(dim=1) / maps[0, 0].numel()
    torch.testing.assert_close(maps, largest.view(1, -1, 1, 1).expand_as(maps))


@pytest.mark.parametrize(("name", "layer"), [("gradcam", "blocks.1"), ("gradcampp", ""), ("smoothgradcampp", "")])
def test_where_tiles_weigh_channels_by_themselves(name, layer):
    assert member(name, layer=layer).in_tiles == "channels are weighted by what each tile shows"
    assert member("gradcam").in_tiles == ""


def test_noise_is_the_same_for_every_image():
    method = build("smoothgradcampp")
    assert isinstance(method, SmoothGradCamPP)
    assert torch.equal(method.noise(noise(1, 32, 48)), method.noise(noise(5, 32, 48)))
