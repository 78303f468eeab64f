import pytest
import torch
from small import build, noise, noise_batch
from torch import nn

from histoloc.errors import InputError
from histoloc.methods.base import Classifier
from histoloc.methods.cam import Cam, Gap, Wildcat
from histoloc.nn.pooling import wildcat_score

FAMILY = ["gap", "maxpool", "lse", "wildcat"]
every_member = pytest.mark.parametrize("name", FAMILY)


def member(name: str, **options) -> Classifier:
    method = build(name, **options)
    assert isinstance(method, Classifier)
    return method


POOLINGS = {
    "gap": lambda m: m.mean(dim=(2, 3)),
    "maxpool": lambda m: m.flatten(2).sort(dim=2).values[..., -1],
    "lse": lambda m: (10 * m.double()).exp().mean(dim=(2, 3)).log().float() / 10,
    "wildcat": lambda m: wildcat_score(m, kmax=0.1, kmin=0.1, alpha=0.6),
}


@every_member
def test_score_is_the_pooled_map(name):
    with torch.no_grad():
        out = member(name)(noise(2, 256, 320))
    assert out.evidence.shape[2:] == (8, 10)  # enough positions for a tenth of them to be several
    torch.testing.assert_close(out.logits, POOLINGS[name](out.evidence))


def test_gap_is_a_linear_classifier_on_averaged_features():
    method, image = build("gap"), noise(2, 64, 96)
    assert isinstance(method, Gap)
    with torch.no_grad():
        pooled = method.backbone(image).mean(dim=(2, 3))
        expected = nn.functional.linear(pooled, method.head.weight[:, :, 0, 0], method.head.bias)
        torch.testing.assert_close(method(image).logits, expected)


def test_poolings_share_their_parameters_and_are_ordered():
    # The same weights: mean <= LSE <= maximum, for every class of every image.
    image = noise(3, 96, 96)
    mean, smooth, highest = (member(name) for name in ("gap", "lse", "maxpool"))
    assert isinstance(mean, Cam)
    for other in (smooth, highest):
        other.load_state_dict(mean.state_dict())
    with torch.no_grad():
        scores = [method(image).logits for method in (mean, smooth, highest)]
        close = [build("lse", r=r).eval() for r in (1e-3, 1e5)]
        for method in close:
            method.load_state_dict(mean.state_dict())
        low, high = (method(image).logits for method in close)
    assert (scores[0] < scores[1]).all()
    assert (scores[1] < scores[2]).all()
    torch.testing.assert_close(low, scores[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(high, scores[2], rtol=0, atol=1e-3)


def test_gap_keeps_the_names_of_its_parameters():
    names = {key.split(".")[0] for key, _ in build("gap").named_parameters()}
    assert names == {"backbone", "head"}


@pytest.mark.parametrize("changed", [{"alpha": 0.0}, {"kmin": 0.0}])
def test_wildcat_lowest_activations_count(changed):
    image = noise(2, 256, 256)
    with torch.no_grad():
        whole, without = member("wildcat")(image), member("wildcat", **changed)(image)
    lowest = whole.evidence.flatten(2).sort(dim=2).values[..., :6].mean(dim=2)  # 6 = a tenth of 64
    torch.testing.assert_close(whole.logits - without.logits, 0.6 * lowest)
    assert (lowest.abs() > 1e-3).all()


def test_wildcat_options_reach_the_head():
    method = member("wildcat", modalities=3, kmax=2, kmin=1, alpha=0.2, dropout=0.4)
    assert isinstance(method, Wildcat)
    head = method.head
    assert head.options is method.options
    assert head.maps.out_channels == 6


@every_member
def test_loss_is_cross_entropy(name):
    method, batch = build(name), noise_batch([0, 1, 1])
    out = method(batch.image)
    expected = -out.logits.log_softmax(dim=1)[range(3), batch.label].mean()
    terms = method.loss(out, batch, 0)
    assert list(terms) == ["classification"]
    torch.testing.assert_close(terms["classification"], expected)


@pytest.mark.parametrize(
    ("name", "options", "flag"),
    [
        ("lse", {"r": 0.0}, "--r"),
        ("lse", {"r": float("nan")}, "--r"),
        ("lse", {"r": float("inf")}, "--r"),
        ("wildcat", {"kmax": 0.0}, "--kmax"),
        ("wildcat", {"kmin": -1.0}, "--kmin"),
        ("wildcat", {"modalities": 0}, "--modalities"),
        ("wildcat", {"alpha": float("nan")}, "--alpha"),
        ("wildcat", {"dropout": 1.0}, "--dropout"),
        ("deepmil", {"width": 0}, "--width"),
    ],
)
def test_wrong_options_are_named(name, options, flag):
    with pytest.raises(InputError, match=flag):
        build(name, **options)
