"""Max-min where images of one class have no ROI, as normal tissue on Camelyon16."""

from typing import Any

import pytest
import torch
from small import answer, maxmin, noise, noise_batch, terms

from histoloc.errors import InputError
from histoloc.maps import place

EMPTY: dict[str, Any] = {"empty_class": "benign", "normalisation": "none"}


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
    no_roi = (1 - out.terms["combined"].sigmoid()).log().mean(dim=(1, 2, 3))
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
        logits, _, combined, mask = method.locate(image)
        out = method(image)
    probabilities, roi = answer(method, image)
    torch.testing.assert_close(probabilities, logits.softmax(dim=1))
    torch.testing.assert_close(out.logits, logits)
    torch.testing.assert_close(mask, (10 * place(combined, 32, (64, 64))).sigmoid())
    assert method.unit == "logit"
    there_is_roi = (2 - 2 * probabilities[:, method.empty_class]).clamp(max=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(roi, place((10 * combined).sigmoid() * there_is_roi, 32, (64, 64)))


CAMELYON = {"background": "none", "size": "foreground", "foreground_weight": 0.0, "localizer_weight": 10.0}


def test_the_authors_camelyon_loss_by_hand():
    method, batch = maxmin(**EMPTY, **CAMELYON, slope=5.0), noise_batch([1, 0])
    assert method.classifier_head is None
    out = method(batch.image)
    got = method.loss(out, batch, 0)
    assert set(got) == {"localizer", "size", "empty"}
    torch.testing.assert_close(got["localizer"], 10 * torch.nn.functional.cross_entropy(out.logits, batch.label))
    share = (5 * place(out.terms["combined"], 32, (64, 64)))[0].sigmoid().mean()
    torch.testing.assert_close(got["size"], -share.log() / 5 / 2)  # t = 5, one image of two has ROI
    torch.testing.assert_close(got["empty"], -(1 - out.terms["combined"][1].sigmoid()).log().mean() / 2)


def test_without_the_classifier_the_localizer_gives_the_class():
    method, image = maxmin(**CAMELYON), noise(2, 64, 64)
    with torch.no_grad():
        out, logits = method.evidence(image), method.locate(image)[0]
    assert torch.equal(out.logits, logits)


def test_an_image_of_several_classes_has_roi_unless_all_it_has_is_the_class_without():
    method = maxmin(empty_class="normal", normalisation="none", classes=("normal", "a", "b"))
    batch = noise_batch([0, 0])
    both = torch.tensor([[True, True, False], [True, False, False]])
    mixed = terms(method, batch._replace(labels=both))
    plain = terms(method, batch._replace(label=torch.tensor([1, 0])))
    for name in ("size", "background", "empty"):
        torch.testing.assert_close(mixed[name], plain[name])
    assert mixed["size"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalisation": "image"}, "--empty-class needs --normalisation none"),
        ({"localizer_weight": 0.0}, "--empty-class needs a --localizer-weight above 0"),
        ({"localizer_weight": 0.0, **{k: v for k, v in CAMELYON.items() if k != "localizer_weight"}}, "above 0"),
        ({"background_trains": "localizer"}, "--empty-class needs --background-trains both"),
        ({"empty_class": "normal"}, r"'normal' is not a class of the table; choose one of \['benign', 'malignant'\]"),
    ],
)
def test_what_a_class_without_roi_cannot_be_trained_with(options, message):
    with pytest.raises(InputError, match=message):
        maxmin(**{**EMPTY, **options})
