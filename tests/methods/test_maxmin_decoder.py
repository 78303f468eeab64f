"""Max-min whose localizer is the network of priors, with a classifier beside it."""

import math

import pytest
import torch
from small import answer, build, maxmin, noise, noise_batch, terms
from torch import Tensor

from histoloc.errors import InputError
from histoloc.maps import place
from histoloc.methods.maxmin import MaxMin
from histoloc.types import Batch, Drawn


def decoder(**options) -> MaxMin:
    return maxmin(localizer="decoder", **options)


def trains(method: MaxMin, term: Tensor) -> set[str]:
    """The parts of the network that a term trains."""
    names, parameters = zip(*((n, p) for n, p in method.named_parameters() if p.requires_grad), strict=True)
    grads = torch.autograd.grad(term, parameters, allow_unused=True, retain_graph=True)
    return {n.split(".")[0] for n, grad in zip(names, grads, strict=True) if grad is not None and grad.any()}


def test_the_mask_is_the_probability_of_the_priors_network():
    method, prior, image = decoder(flips=1), build("prior", flips=1), noise(2, 61, 83)
    method.load_state_dict(prior.state_dict(), strict=False)
    assert method.unit == "logit"
    assert method.calibration().range == "probability"
    assert method.stride == prior.stride == 2
    with torch.no_grad():
        scores = prior(image).evidence
        output = method.evidence(image)
        torch.testing.assert_close(output.evidence, scores)
        mask = place(scores, 2, (61, 83)).sigmoid()
        torch.testing.assert_close(method(image).terms["mask"], mask)
        torch.testing.assert_close(output.logits, method.classify(method.cut(image, mask)))
    torch.testing.assert_close(answer(method, image)[1], place(scores.sigmoid(), 2, (61, 83)))


def test_parts_of_a_prior_have_its_names_and_shapes():
    own = decoder().state_dict()
    prior = {k: v for k, v in build("prior").state_dict().items() if k.split(".")[0] in ("backbone", "decoder")}
    assert prior
    assert all(own[name].shape == value.shape for name, value in prior.items())


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
def test_terms_by_hand_where_the_mask_is_half(classes):
    method = build("maxmin", classes=classes, localizer="decoder", background_weight=0.5)
    assert isinstance(method, MaxMin)
    assert method.decoder is not None
    torch.nn.init.zeros_(method.decoder.head.weight)
    torch.nn.init.zeros_(method.decoder.head.bias)  # type: ignore[arg-type]
    batch = noise_batch([0, len(classes) - 1], 61, 83)
    got = terms(method, batch)
    with torch.no_grad():
        half = method.classify(method.cut(batch.image, torch.full((2, 1, 61, 83), 0.5))).log_softmax(dim=1)
    assert got.keys() == {"foreground", "background", "size"}
    assert got["foreground"].item() == pytest.approx(-(half[0, 0] + half[1, -1]).item() / 2, rel=1e-5)
    assert got["background"].item() == pytest.approx(-0.5 * half.mean().item(), rel=1e-5)
    assert got["size"].item() == pytest.approx(2 * math.log(2) / 5, rel=1e-5)


def test_classes_train_both_networks_and_the_size_the_localizer_alone():
    method = decoder().train()
    got = terms(method, noise_batch([0, 1]))
    both = {"backbone", "decoder", "classifier", "classifier_head"}
    assert trains(method, got["foreground"]) == trains(method, got["background"]) == both
    assert trains(method, got["size"]) == {"backbone", "decoder"}
    method = decoder(background_trains="localizer").train()
    assert trains(method, terms(method, noise_batch([0, 1]))["background"]) == {"backbone", "decoder"}


def test_what_has_no_effect():
    image = noise(1, 64, 64)
    expected = answer(decoder(), image)
    for options in (
        {"slope": 3.0}, {"sigma_start": 0.2}, {"normalisation": "batch"}, {"networks": "two"}, {"localizer_weight": 0.0}
    ):  # fmt: skip
        for got, value in zip(answer(decoder(**options), image), expected, strict=True):
            assert torch.equal(got, value)


def drawn_beside(labels: list[int], height: int, width: int) -> Batch:
    drawn = noise(2, height, width).flip(0)
    batch = noise_batch(labels, height, width)
    return batch._replace(drawn=Drawn(drawn, (drawn[:, :1] > 0).float()))


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
def test_drawn_images_and_the_average_hold_the_map(classes):
    options = {**MaxMin.with_prior, "drawn_weight": 2.0, "consistency_weight": 3.0, "dropout": 0.0}
    method = build("maxmin", classes=classes, **options).train()
    assert isinstance(method, MaxMin)
    batch = method.prepare(drawn_beside([0, len(classes) - 1], 61, 83))
    assert batch.image.shape == (4, 3, 61, 83)
    output = method(batch.image)
    assert output.logits.shape == (2, len(classes)), "drawn images have no class"
    assert output.terms["mask"].shape == (2, 1, 61, 83)
    got = method.loss(output, batch, 0)
    assert got.keys() == {"foreground", "background", "size", "cross_entropy", "consistency"}
    assert batch.mask is not None
    assert batch.average is not None
    entropy, q = torch.nn.functional.binary_cross_entropy_with_logits, batch.average
    torch.testing.assert_close(got["cross_entropy"], 2 * entropy(place(output.evidence[2:], 2, (61, 83)), batch.mask))
    sure = (2 * q - 1).abs()
    torch.testing.assert_close(
        got["consistency"], 3 * (sure * entropy(output.evidence[:2], q, reduction="none")).mean()
    )
    shares = output.terms["mask"].mean(dim=(1, 2, 3))
    torch.testing.assert_close(got["size"], -(shares.log() + (1 - shares).log()).mean() / 5)
    for name in ("cross_entropy", "consistency"):
        assert trains(method, got[name]) == {"backbone", "decoder"}
    assert method.eval()(noise(2, 64, 64)).logits.shape == (2, len(classes))


def test_without_drawn_images_the_average_alone_holds_the_map():
    method, batch = decoder(average=0.9).train(), noise_batch([0, 1])
    made = method.prepare(batch)
    assert torch.equal(made.image, batch.image)
    assert made.average is not None
    with torch.no_grad():
        torch.testing.assert_close(made.average, method.views(batch.image).evidence.sigmoid())
    assert terms(method, made).keys() == {"foreground", "background", "size", "consistency"}
    plain = decoder().train()
    assert terms(plain, plain.prepare(batch)).keys() == {"foreground", "background", "size"}


def test_what_a_decoder_cannot_do():
    with pytest.raises(InputError, match="--drawn needs --localizer decoder"):
        maxmin().train().prepare(drawn_beside([0, 1], 64, 64))
    with pytest.raises(InputError, match=r"--foreground-weight 0 .*--localizer wildcat"):
        decoder(foreground_weight=0.0, background="none")
    with pytest.raises(InputError, match="--empty-class needs --localizer wildcat"):
        build("maxmin", empty_class="benign", localizer="decoder")
