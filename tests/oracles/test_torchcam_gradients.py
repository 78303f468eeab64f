"""The Grad-CAM family against torch-cam: same network, same layer, in float64 and without its epsilons."""

import pytest
import torch
from torch import Tensor, nn

from histoloc.maps import normalise_per_image
from histoloc.methods.gradcam import GradCam, gradcam, gradcampp, gradient_maps, layercam, smoothgradcampp, xgradcam
from histoloc.model_folder import ModelConfig, build_method
from histoloc.nn.backbone import BackboneConfig

theirs = pytest.importorskip("torchcam.methods")

SIZE = (3, 96, 128)
LAYERS = [
    ("test_efficientnet", ""),
    ("test_efficientnet", "blocks.1"),
    ("test_resnet", ""),
    ("test_resnet", "layer2"),
    ("test_vit", ""),
]
each_layer = pytest.mark.parametrize(("backbone", "layer"), LAYERS)


class Scores(nn.Module):
    """A method as torch-cam expects a classifier: image in, scores out."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, image: Tensor) -> Tensor:
        return self.method(image).logits


def classifier(backbone: str) -> tuple[GradCam, Tensor]:
    """Random weights, a head with large ones so that every rule has something to weigh, and three images."""
    torch.manual_seed(0)
    config = ModelConfig("gradcam", ("a", "b", "c"), backbone=BackboneConfig(backbone, stride=0, weights="none"))
    method = build_method(config, load_backbone=True).eval().double()
    assert isinstance(method, GradCam)
    nn.init.normal_(method.head.weight)
    return method, torch.randn(3, *SIZE, dtype=torch.float64)


def part(method: GradCam, layer: str) -> nn.Module:
    return method.backbone.model.get_submodule(layer) if layer else method.backbone


@each_layer
@pytest.mark.parametrize(
    ("rule", "peer", "options"),
    [(gradcam, "GradCAM", {}), (xgradcam, "XGradCAM", {"eps": 0}), (layercam, "LayerCAM", {})],
)
def test_rules(rule, peer, options, backbone, layer):
    method, image = classifier(backbone)
    classes = [2, 0, 1]
    result = gradient_maps(method, part(method, layer), image, torch.tensor(classes), rule)
    network = Scores(method)
    with getattr(theirs, peer)(network, part(method, layer), input_shape=SIZE) as extract:
        scores = network(image)
        raw = extract(classes, scores, normalized=False, retain_graph=True, **options)[0]
        stretched = extract(classes, scores, normalized=True, **options)[0]
    assert (raw > 0).any()
    torch.testing.assert_close(result.maps[:, 0], raw, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(normalise_per_image(result.maps)[:, 0], stretched, rtol=1e-4, atol=1e-4)


def paper_weights(activations: Tensor, copies: Tensor) -> Tensor:
    """The weights of Grad-CAM++ as printed, position by position, for gradients (S, B, C, h, w)."""
    weights = torch.zeros(activations.shape[:2], dtype=activations.dtype)
    for i in range(activations.shape[2]):
        for j in range(activations.shape[3]):
            g = copies[..., i, j]
            second, third = (g**2).mean(dim=0), (g**3).mean(dim=0)
            alpha = second / (2 * second + activations.sum(dim=(2, 3)) * third)
            weights += torch.where(second > 0, alpha, 0.0) * g.mean(dim=0).clamp(min=0)
    return weights


@each_layer
def test_gradcampp(backbone, layer):
    # torch-cam's GradCAMpp (0.5) divides a copy of alpha, so that its weights are sum g² relu(g); hence its activations
    # and gradients, and the paper's formula on them.
    method, image = classifier(backbone)
    classes = [2, 0, 1]
    network, target = Scores(method), part(method, layer)
    result = gradient_maps(method, target, image, torch.tensor(classes), gradcampp)
    with theirs.GradCAMpp(network, target, input_shape=SIZE) as extract:
        extract(classes, network(image))
        activations, gradients = extract.hook_a[0], extract.hook_g[0]
    expected = (paper_weights(activations, gradients[None])[:, :, None, None] * activations).sum(dim=1).relu()
    torch.testing.assert_close(result.maps[:, 0], expected, rtol=1e-9, atol=1e-12)


@each_layer
def test_smoothgradcampp(backbone, layer):
    method, image = classifier(backbone)
    network, target = Scores(method), part(method, layer)
    noise = 0.3 * torch.randn(3, 1, *SIZE, dtype=torch.float64)
    draws, copies = iter(noise), []
    with theirs.SmoothGradCAMpp(network, target, num_samples=3, input_shape=SIZE) as extract:
        extract._distrib.sample = lambda size: next(draws)
        backward = extract._backprop

        def listen(*args, **options):
            backward(*args, **options)
            copies.append(extract.hook_g[0])

        extract._backprop = listen
        network(image)
        activations = extract.hook_a[0]
        extract._get_weights(1, eps=1e-300)
    result = gradient_maps(method, target, image, torch.ones(3), smoothgradcampp, noise=noise)
    expected = (paper_weights(activations, torch.stack(copies))[:, :, None, None] * activations).sum(dim=1).relu()
    torch.testing.assert_close(result.maps[:, 0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet", "test_vit"])
@pytest.mark.parametrize("rule", [gradcampp, smoothgradcampp])
def test_plus_plus_at_the_last_layer(rule, backbone):
    # torch-cam's SmoothGradCAMpp puts sum_ab A_ab g_ab³ where the paper has (sum_ab A_ab) g_ij³: one and the same where
    # the gradient is constant. Noise changes nothing here, save the activations that torch-cam leaves in its hook.
    method, image = classifier(backbone)
    network = Scores(method)
    noise = 0.0 * torch.randn(4, 1, *SIZE, dtype=torch.float64) if rule is smoothgradcampp else None
    result = gradient_maps(method, method.backbone, image, torch.ones(3), rule, noise)
    with theirs.SmoothGradCAMpp(network, method.backbone, std=1e-12, input_shape=SIZE) as extract:
        network(image)
        raw, stretched = (extract(1, normalized=flag, eps=1e-300)[0] for flag in (False, True))
    assert (raw > 0).any()
    torch.testing.assert_close(result.maps[:, 0], raw, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(normalise_per_image(result.maps)[:, 0], stretched, rtol=1e-4, atol=1e-4)
