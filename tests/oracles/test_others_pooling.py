"""Our poolings against those of SciPy and PyTorch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp
from torch import nn

from histoloc.methods.cam import Cam
from histoloc.methods.deepmil import DeepMil, DeepMilOptions
from histoloc.model_folder import ModelConfig, build_method
from histoloc.nn.backbone import BackboneConfig
from histoloc.nn.pooling import lse_score

BACKBONE = BackboneConfig("test_efficientnet", 0, weights="none")


@pytest.mark.parametrize("r", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("magnitude", [1.0, 1e4])
def test_lse_is_scipys(r, magnitude):
    maps = magnitude * np.random.default_rng(0).normal(size=(2, 3, 7, 5))
    expected = logsumexp(r * maps, axis=(2, 3), b=1 / 35) / r
    np.testing.assert_allclose(lse_score(torch.from_numpy(maps), r).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(
        lse_score(torch.from_numpy(maps).float(), r).numpy(), expected, rtol=1e-5, atol=1e-6 * magnitude
    )


@pytest.mark.parametrize(("name", "layer"), [("gap", nn.AdaptiveAvgPool2d(1)), ("maxpool", nn.AdaptiveMaxPool2d(1))])
def test_mean_and_maximum_are_pytorchs(name, layer):
    torch.manual_seed(0)
    method = build_method(ModelConfig(name, ("a", "b"), backbone=BACKBONE), load_backbone=True).eval()
    assert isinstance(method, Cam)
    maps = torch.randn(2, 3, 7, 5)
    torch.testing.assert_close(method.pool(maps), layer(maps)[:, :, 0, 0])


@pytest.mark.parametrize("gated", [False, True])
def test_deepmil_is_pytorchs_attention(gated):
    """With w_k as queries, the hidden units as keys and the features as values, dot-product attention is Eq. 7 to 9."""
    torch.manual_seed(0)
    config = ModelConfig("deepmil", ("a", "b", "c"), DeepMilOptions(gated=gated), BACKBONE)
    method = build_method(config, load_backbone=True).eval()
    assert isinstance(method, DeepMil)
    image = torch.randn(2, 3, 128, 160)
    with torch.no_grad():
        out, features = method(image), method.backbone(image)
        values = features.flatten(2).mT
        keys = as_linear(method.attention.hidden)(values).tanh()
        if method.attention.gate is not None:
            keys = keys * as_linear(method.attention.gate)(values).sigmoid()
        queries = method.attention.energy.weight[:, :, 0, 0].expand(2, -1, -1)
        z = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
        every_score = as_linear(method.head)(z)  # of each class's z by each class's classifier
    torch.testing.assert_close(out.logits, every_score.diagonal(dim1=1, dim2=2))


def as_linear(layer: nn.Conv2d) -> nn.Linear:
    linear = nn.Linear(layer.in_channels, layer.out_channels)
    assert layer.bias is not None
    linear.load_state_dict({"weight": layer.weight.detach()[:, :, 0, 0], "bias": layer.bias.detach()})
    return linear
