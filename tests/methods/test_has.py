"""What is hidden, with what, and that whole images are seen at test time."""

import pytest
import torch
from small import build, noise, noise_batch

from histoloc.errors import InputError
from histoloc.methods.has import HideAndSeek, hide


def test_patches_are_hidden_whole_and_with_zero():
    torch.manual_seed(0)
    image = noise(2, 10, 13)
    hidden = hide(image, (4,), 0.5)
    same = (hidden == image).all(dim=1)
    assert torch.equal(hidden, image * same[:, None]), "the rest is zero, the mean after normalisation"
    # 3 x 4 patches, the last ones cut off: rows 4 + 4 + 2, columns 4 + 4 + 4 + 1.
    patches = same[:, ::4, ::4]
    assert torch.equal(same, patches.repeat_interleave(4, 1)[:, :10].repeat_interleave(4, 2)[:, :, :13])
    assert not torch.equal(patches[0], patches[1]), "each image is drawn by itself"


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (0.25, 0.25), (0.5, 0.5), (1.0, 1.0)])
def test_share_of_hidden_patches(probability, share):
    torch.manual_seed(0)
    hidden = hide(torch.ones(8, 3, 128, 128), (4,), probability) == 0  # 8192 patches: 0.5 % is one deviation
    assert hidden.float().mean() == pytest.approx(share, abs=0.02)


def test_each_image_has_patches_of_one_side():
    # With every second pixel of a row as its own patch, neighbours differ; with one patch for all, none do.
    torch.manual_seed(0)
    hidden = hide(torch.ones(64, 3, 16, 16), (1, 16), 0.5)[:, 0]
    plain = (hidden == hidden[:, :1, :1]).all(dim=(1, 2))
    assert 16 <= plain.sum() <= 48


def test_only_training_images_are_hidden():
    method, batch = build("has", patches=(8,)), noise_batch([0, 1])
    assert isinstance(method, HideAndSeek)
    assert method.prepare(batch) is batch
    torch.manual_seed(3)
    prepared = method.train().prepare(batch)
    torch.manual_seed(3)
    assert torch.equal(prepared.image, hide(batch.image, (8,), 0.5))
    assert prepared._replace(image=batch.image) == batch


def test_the_network_is_that_of_gap():
    method, gap, image = build("has"), build("gap"), noise(2, 64, 96)
    with torch.no_grad():
        assert torch.equal(method.evidence(image).evidence, gap.evidence(image).evidence)


@pytest.mark.parametrize(
    ("name", "value"), [("patches", (0,)), ("patches", ()), ("hidden", 1.5), ("hidden", float("nan"))]
)
def test_wrong_options_are_named(name, value):
    with pytest.raises(InputError, match=f"--{name} .* is wrong"):
        build("has", **{name: value})
