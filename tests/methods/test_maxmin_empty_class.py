"""Max-min where images of one class have no ROI, as normal tissue on Camelyon16."""

from typing import Any

import pytest
import torch
from small import build, noise, noise_batch
from torch import Tensor

from histoloc.maps import resize
from histoloc.methods.maxmin import MaxMin
from histoloc.types import Batch


def maxmin(**options: Any) -> MaxMin:
    method = build("maxmin", **options)
    assert isinstance(method, MaxMin)
    return method


def terms(method: MaxMin, batch: Batch) -> dict[str, Tensor]:
    return method.loss(method(batch.image), batch, 0)


EMPTY = {"empty_class": "benign", "normalisation": "none"}


@pytest.mark.parametrize("background", ["none", "sem"])
def test_images_without_roi(background):
    method = maxmin(**EMPTY, background=background)
    batch = noise_batch([0, 0])
    out = method(batch.image)
    got = method.loss(out, batch, 0)
    assert method.roi_head is not None
    assert got["foreground"].item() == got["size"].item() == 0
    if background != "none":
        assert got["background"].item() == 0
    outside = out.terms["background"].log_softmax(dim=1)[:, 0]
    no_roi = (1 - out.roi.sigmoid()).log().mean(dim=(1, 2, 3))
    torch.testing.assert_close(got["empty"], -(outside + no_roi).mean())
    torch.testing.assert_close(got["localizer"], -out.logits.log_softmax(dim=1)[:, 0].mean())


def test_images_with_roi_beside_images_without():
    method, batch = maxmin(**EMPTY), noise_batch([1, 0])
    mixed = terms(method, batch)
    with_roi = terms(method, batch._replace(image=batch.image[:1], label=batch.label[:1]))
    without = terms(method, batch._replace(image=batch.image[1:], label=batch.label[1:]))
    assert with_roi["empty"].item() == 0
    for name in ("foreground", "background", "size"):
        assert mixed[name].item() == pytest.approx(with_roi[name].item() / 2, rel=1e-4), name
    assert mixed["empty"].item() == pytest.approx(without["empty"].item() / 2, rel=1e-4)


def test_class_is_read_from_the_whole_image_where_a_class_has_no_roi():
    method, image = maxmin(**EMPTY), noise(2, 64, 64)
    with torch.no_grad():
        found, (logits, evidence, mask) = method.localize(image), method.locate(image)
    torch.testing.assert_close(found.probabilities, logits.softmax(dim=1))
    torch.testing.assert_close(mask, (10 * resize(evidence, (64, 64))).sigmoid())
    assert torch.equal(found.roi, mask)


CAMELYON = {"background": "none", "size": "foreground", "foreground_weight": 0.0, "localizer_weight": 10.0}


def test_the_authors_camelyon_loss_by_hand():
    method, batch = maxmin(**EMPTY, **CAMELYON, slope=5.0), noise_batch([1, 0])
    assert method.classifier_head is None
    out = method(batch.image)
    got = method.loss(out, batch, 0)
    assert set(got) == {"localizer", "size", "empty"}
    torch.testing.assert_close(got["localizer"], 10 * torch.nn.functional.cross_entropy(out.logits, batch.label))
    share = (5 * resize(out.roi, (64, 64)))[0].sigmoid().mean()
    torch.testing.assert_close(got["size"], -share.log() / 5 / 2)  # t = 5, one image of two has ROI
    torch.testing.assert_close(got["empty"], -(1 - out.roi[1].sigmoid()).log().mean() / 2)


def test_without_the_classifier_the_localizer_gives_the_class():
    method, image = maxmin(**CAMELYON), noise(2, 64, 64)
    with torch.no_grad():
        found, (logits, _, mask) = method.localize(image), method.locate(image)
    torch.testing.assert_close(found.probabilities, logits.softmax(dim=1))
    assert torch.equal(found.roi, mask)
