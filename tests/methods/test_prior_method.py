"""The prior: its loss by hand, what it randomises, and its mean teacher."""

from typing import Any, cast

import pytest
import torch
from small import build, noise, noise_batch
from torch import Tensor
from torch.nn import functional as F

from histoloc.errors import InputError
from histoloc.methods.prior import Prior
from histoloc.types import Batch, Drawn, Output


def prior(**options: Any) -> Prior:
    return cast(Prior, build("prior", classes=(), **options))


def pair(seed: int = 0) -> Batch:
    """Two real images without masks, beside two drawn ones."""
    drawn = noise(2, 64, 64).flip(0) + seed
    return noise_batch([0, 0])._replace(drawn=Drawn(drawn, (drawn[:, :1] > 0).float()))


def statistics(module: torch.nn.Module) -> list[Tensor]:
    return [value.clone() for name, value in module.state_dict().items() if "running_" in name]


def test_loss_is_the_cross_entropy_of_the_pixels():
    method, batch = prior(), noise_batch([0, 0], masks=True)
    output = method(batch.image)
    assert output.logits.shape == (2, 0)
    large = F.interpolate(output.evidence, scale_factor=method.stride, mode="bilinear", align_corners=False)
    p, m = large.sigmoid(), batch.mask
    assert m is not None
    expected = -(m * p.log() + (1 - m) * (1 - p).log()).mean()
    (name, value), *more = method.loss(output, batch, 0).items()
    assert (name, more) == ("cross_entropy", [])
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="fill the table's mask column"):
        method.loss(output, batch._replace(mask=None), 0)


def test_training_images_are_randomised_as_images():
    method, batch = prior().train(), noise_batch([0] * 6, masks=True)
    batch = batch._replace(image=batch.image.clamp(-1, 1))
    torch.manual_seed(0)
    made = method.prepare(batch)
    assert -1 <= made.image.min() <= made.image.max() <= 1
    assert all((made.image[i] - batch.image[i]).abs().mean() > 0.02 for i in range(6))
    assert made.mask is not None
    assert batch.mask is not None
    covered = (made.mask < batch.mask).flatten(1).any(dim=1)
    assert torch.equal(made.mask[~covered], batch.mask[~covered])
    assert 1 <= covered.sum() <= 5, "glass in a third"
    assert method.eval().prepare(batch) is batch
    plain = prior(randomise=False).train().prepare(batch)
    assert torch.equal(plain.image, batch.image)


@pytest.mark.parametrize("flips", [1, 2, 4])
def test_evidence_is_the_mean_of_mirror_images(flips):
    method, image = prior(flips=flips), noise(2, 64, 64)
    with torch.no_grad():
        made, mirrored = method.evidence(image).evidence, method.evidence(image.flip(3)).evidence.flip(3)
        alone = method(image).evidence
    assert torch.allclose(made, mirrored, atol=1e-5) == (flips > 1)
    assert torch.equal(made, alone) == (flips == 1)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0), (0.5, 1.0, 1.5)])
def test_evidence_is_the_mean_of_scales(scales, monkeypatch):
    method = prior(scales=scales)
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 96, 64)

    def look(network: Any, image: Tensor) -> Output:
        """A pixel's own value, and how wide the image is."""
        return Output(torch.zeros(1, 0), F.avg_pool2d(image[:, :1], 2) + image.shape[-1], {})

    monkeypatch.setattr(method, "look", look)
    made = method.evidence(ramp).evidence
    assert made.shape == (1, 1, 48, 32)
    expected = F.avg_pool2d(ramp[:, :1], 2) + sum(64 * scale for scale in scales) / len(scales)
    inner = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(made[inner], expected[inner], atol=1e-3, rtol=0)
    with pytest.raises(InputError, match="scales"):
        prior(scales=())


def test_the_average_predicts_and_follows():
    method, batch = prior(average=0.9).train(), noise_batch([0, 0], masks=True)
    method.prepare(batch)
    first = method.state_dict()["average.module.decoder.head.bias"].clone()
    with torch.no_grad():
        method.get_parameter("decoder.head.bias").add_(1)
    method.prepare(batch)
    torch.testing.assert_close(method.state_dict()["average.module.decoder.head.bias"], first + 0.1)
    method.eval()
    with torch.no_grad():
        shift = method(batch.image).evidence - method.evidence(batch.image).evidence
        assert method.average is not None
        expected = method.average.module(batch.image)
        expected = (expected + method.average.module(batch.image.flip(3)).flip(3)) / 2
        torch.testing.assert_close(method.evidence(batch.image).evidence, expected)
    assert shift.abs().max() > 0.5


def test_real_images_learn_from_what_the_average_says_of_them_as_they_are():
    method, batch = prior(average=0.9).train(), pair()
    made = method.prepare(batch)
    assert made.image.shape == (4, 3, 64, 64)
    assert made.drawn is None
    assert made.mask is not None
    assert made.average is not None
    with torch.no_grad():
        torch.testing.assert_close(made.average, method.evidence(batch.image).evidence.sigmoid())
    output = method(made.image)
    losses = method.loss(output, made, 0)
    z, q = output.evidence[:2], made.average
    each = -(q * z.sigmoid().log() + (1 - q) * (1 - z.sigmoid()).log())
    torch.testing.assert_close(losses["consistency"], ((2 * q - 1).abs() * each).mean(), rtol=1e-4, atol=1e-5)
    alone = made._replace(image=made.image[2:], average=None)
    expected = method.loss(output._replace(evidence=output.evidence[2:]), alone, 0)
    torch.testing.assert_close(losses["cross_entropy"], expected["cross_entropy"])
    assert not made.average.requires_grad


def test_statistics_of_the_average_are_those_of_real_images():
    method = prior(average=0.9).train()
    assert method.average is not None
    batch, others = pair(), pair(seed=3)
    method.prepare(batch)
    (first, drawn) = statistics(method.average), statistics(method.decoder)
    again = prior(average=0.9).train()
    again.prepare(batch._replace(drawn=others.drawn))
    assert again.average is not None
    for a, b in zip(first, statistics(again.average), strict=True):
        assert torch.equal(a, b), "whatever is drawn"
    method(noise(2, 64, 64) * 9)
    method.prepare(batch)
    again.prepare(batch)
    for a, b in zip(statistics(method.average), statistics(again.average), strict=True):
        assert torch.equal(a, b), "whatever the network saw"
    assert any(not torch.equal(a, b) for a, b in zip(drawn, statistics(method.decoder), strict=True))


def test_real_images_need_an_average():
    with pytest.raises(InputError, match=r"beside drawn ones by --average, as 0\.99; give it"):
        prior().train().prepare(pair())
