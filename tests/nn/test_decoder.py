import pytest
import torch
from torch import nn

from histoloc.nn.backbone import BackboneConfig, build_backbone, embedded_weights
from histoloc.nn.decoder import UNetDecoder, UpBlock


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "stride", "strides", "channels"),
    [
        ("tf_efficientnet_lite0", 0, [2, 4, 8, 16, 32], [16, 24, 40, 112, 320]),
        ("tf_efficientnet_lite0", 8, [2, 4, 8], [16, 24, 40]),
        ("resnet18", 0, [2, 4, 8, 16, 32], [64, 64, 128, 256, 512]),
        ("test_convnext", 0, [4, 8, 16, 32], [24, 32, 48, 64]),
        ("test_vit", 0, [16], [64]),
    ],
)
def test_one_level_per_stride(name, stride, strides, channels):
    backbone = build_backbone(BackboneConfig(name, stride, weights="none")).eval()
    with torch.no_grad():
        maps, last = backbone.pyramid(noise(2, 3, 64, 96)), backbone(noise(2, 3, 64, 96))
    assert backbone.level_strides == strides
    assert [m.shape for m in maps] == [(2, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]
    torch.testing.assert_close(maps[-1], last)


def test_dilated_stages_are_one_level():
    backbone = build_backbone(BackboneConfig("tf_efficientnet_lite0", 8, True, weights="none")).eval()
    with torch.no_grad():
        maps = backbone.pyramid(noise(1, 3, 64, 64))
    assert [m.shape[1:] for m in maps] == [(16, 32, 32), (24, 16, 16), (320, 8, 8)]


def test_a_pyramid_needs_no_other_weights():
    source = torch.load(embedded_weights("tf_efficientnet_lite0"), weights_only=True)
    state = build_backbone(BackboneConfig(stride=0)).state_dict()
    assert torch.equal(state["model.conv_stem.weight"], source["_conv_stem.weight"])


@pytest.mark.parametrize(
    ("name", "size", "widths", "expected"),
    [
        ("test_efficientnet", (97, 131), [128, 64, 32, 16], (49, 66)),
        ("test_convnext", (97, 131), [128, 64, 32], (24, 32)),
        ("test_vit", (97, 131), [128, 64], (28, 36)),  # 7 x 9 tokens, enlarged twice
    ],
)
def test_decoder_reaches_the_finest_level(name, size, widths, expected):
    backbone = build_backbone(BackboneConfig(name, 0, weights="none")).eval()
    decoder = UNetDecoder(backbone, maps=3).eval()
    assert [c.out_channels for c in decoder.modules() if isinstance(c, nn.Conv2d)][:-1:2] == widths
    with torch.no_grad():
        assert decoder(backbone.pyramid(noise(2, 3, *size))).shape == (2, 3, *expected)


def test_one_fine_level_is_mapped_directly():
    backbone = build_backbone(BackboneConfig("test_efficientnet", 2, weights="none"))
    decoder = UNetDecoder(backbone, maps=1)
    assert len(decoder.blocks) == 0
    assert decoder(backbone.pyramid(noise(1, 3, 64, 64))).shape == (1, 1, 32, 32)


def test_every_level_is_used():
    backbone = build_backbone(BackboneConfig("test_efficientnet", 0, weights="none")).eval()
    decoder = UNetDecoder(backbone, maps=1).eval()
    maps = [m.detach().requires_grad_() for m in backbone.pyramid(noise(1, 3, 64, 64))]
    for gradient in torch.autograd.grad(decoder(list(maps)).square().sum(), maps):
        assert gradient.any()


def test_block_concatenates_what_it_enlarged_with_the_skip():
    block = UpBlock(2, 1, 3).eval()
    seen: list[torch.Tensor] = []
    block.convolutions.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x, skip = torch.arange(8.0).view(1, 2, 2, 2), torch.full((1, 1, 4, 4), 9.0)
    assert block(x, skip).shape == (1, 3, 4, 4)
    assert seen[0][0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert torch.equal(seen[0][:, 2:], skip)
