"""GAP's map against torch-cam's class activation map of the same network."""

import pytest
import torch
from torch import Tensor, nn

from histoloc.maps import roi_at_stride
from histoloc.methods.cam import Gap
from histoloc.model_folder import ModelConfig, build_method
from histoloc.nn.backbone import Backbone, BackboneConfig

methods = pytest.importorskip("torchcam.methods")


class AsClassifier(nn.Module):
    """GAP's weights in the shape torch-cam expects: features, pooling, linear layer."""

    def __init__(self, backbone: Backbone, head: nn.Conv2d) -> None:
        super().__init__()
        self.features, self.linear = backbone, nn.Linear(head.in_channels, head.out_channels)
        assert head.bias is not None
        self.linear.load_state_dict({"weight": head.weight.detach()[:, :, 0, 0], "bias": head.bias.detach()})

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(self.features(image).mean(dim=(2, 3)))


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet"])
def test_gap_is_cam(backbone):
    torch.manual_seed(0)
    config = ModelConfig("gap", ("a", "b", "c"), backbone=BackboneConfig(backbone, weights="none"))
    method = build_method(config, load_backbone=True).eval()
    assert isinstance(method, Gap)
    image = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        out = method(image)
    predicted = int(out.logits.argmax())
    other = AsClassifier(method.backbone, method.head).eval()
    with methods.CAM(other, "features", "linear", input_shape=(3, 128, 160)) as extract:
        with torch.no_grad():
            torch.testing.assert_close(other(image), out.logits)
        cam, normalised = (extract(class_idx=predicted, normalized=flag)[0][:, None] for flag in (False, True))
    assert method.head.bias is not None
    own, label = out.evidence[:, [predicted]], torch.tensor([predicted])
    torch.testing.assert_close(cam, own - method.head.bias[predicted].detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(normalised, roi_at_stride(out, label, method.calibration("image")), rtol=1e-4, atol=1e-5)
