import pytest
import torch
from small import build, noise, noise_batch

from histoloc.maps import normalise_per_image, resize
from histoloc.methods.base import class_map
from histoloc.methods.cam import Gap


def test_class_map_is_that_of_the_predicted_class():
    maps = torch.arange(12.0).view(2, 3, 1, 2)
    got = class_map(maps, torch.tensor([[0.0, 5.0, 1.0], [0.2, 0.0, 0.1]]))
    assert got.tolist() == [[[[2.0, 3.0]]], [[[6.0, 7.0]]]]


@pytest.mark.parametrize("predicted", [0, 1])
def test_roi_is_the_map_of_the_predicted_class_whatever_the_label(predicted):
    method = build("gap")
    assert isinstance(method, Gap)
    assert method.head.bias is not None
    with torch.no_grad():
        method.head.bias.copy_(torch.tensor([5.0, -5.0] if predicted == 0 else [-5.0, 5.0]))
        image = noise(2, 64, 96)
        maps = method.head(method.backbone(image))
        out, found = method(image), method.localize(image)
    assert out.logits.argmax(dim=1).tolist() == [predicted, predicted]
    torch.testing.assert_close(out.roi, maps[:, predicted : predicted + 1])
    torch.testing.assert_close(found.roi, resize(normalise_per_image(out.roi), (64, 96)))


def test_score_is_a_linear_classifier_on_averaged_features():
    method, image = build("gap"), noise(2, 64, 96)
    assert isinstance(method, Gap)
    with torch.no_grad():
        pooled = method.backbone(image).mean(dim=(2, 3))
        expected = torch.nn.functional.linear(pooled, method.head.weight[:, :, 0, 0], method.head.bias)
        torch.testing.assert_close(method(image).logits, expected)


def test_loss_is_cross_entropy():
    method, batch = build("gap"), noise_batch([0, 1, 1])
    out = method(batch.image)
    expected = -out.logits.log_softmax(dim=1)[range(3), batch.label].mean()
    terms = method.loss(out, batch, 0)
    assert list(terms) == ["classification"]
    torch.testing.assert_close(terms["classification"], expected)
