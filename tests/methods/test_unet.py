import csv
import math
from typing import Any

import pytest
import torch
from small import answer, build, glands, noise, noise_batch
from torch import Tensor

from histoloc.datasets.synthetic.dataset import CLASSES
from histoloc.errors import InputError
from histoloc.methods.unet import UNet, UNetOptions
from histoloc.model_folder import ModelConfig, build_method
from histoloc.nn.backbone import BackboneConfig
from histoloc.training import train
from histoloc.types import Output


def dice(roi: Tensor, mask: Tensor) -> float:
    """Mean Dice index of the thresholded maps."""
    result = roi >= 0.5
    both, each = (result * mask).sum((1, 2, 3)), result.sum((1, 2, 3)) + mask.sum((1, 2, 3))
    return (2 * both / each).mean().item()


def test_loss_by_hand():
    method, batch = build("unet", cross_entropy_weight=2.0, dice_weight=3.0), noise_batch([0, 1], 1, 2, masks=True)
    assert isinstance(method, UNet)
    method.decoder.stride = 1  # a score for each pixel
    mask = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).view(2, 1, 1, 2)
    scores = torch.tensor([[math.log(3), 0.0], [0.0, -math.log(3)]]).view(2, 1, 1, 2)  # p = 3/4 1/2, 1/2 1/4
    terms = method.loss(Output(torch.zeros(2, 2), scores, {}), batch._replace(mask=mask), 0)
    cross_entropy = -(math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 2) + math.log(3 / 4)) / 4
    soft = ((1 - (2 * 0.75 + 1) / (1.25 + 1 + 1)) + (1 - 1 / (0.75 + 1))) / 2
    assert terms["cross_entropy"].item() == pytest.approx(2 * cross_entropy)
    assert terms["dice"].item() == pytest.approx(3 * soft)


def test_scores_are_brought_to_the_masks_pixels_not_squeezed_into_them():
    method, batch = build("unet", dice_weight=0.0), noise_batch([0], 1, 3, masks=True)
    assert method.stride == 2
    terms = method.loss(Output(torch.zeros(1, 2), torch.tensor([[[[0.0, 4.0]]]]), {}), batch, 0)
    at_pixels = torch.tensor([0.0, 1.0, 3.0]).view(1, 1, 1, 3)  # the second position reaches beyond the image
    assert batch.mask is not None
    expected = torch.nn.functional.binary_cross_entropy_with_logits(at_pixels, batch.mask)
    torch.testing.assert_close(terms["cross_entropy"], expected)


@pytest.mark.parametrize(("off", "left"), [("cross_entropy_weight", "dice"), ("dice_weight", "cross_entropy")])
def test_a_weight_of_zero_removes_its_term(off, left):
    options: dict[str, Any] = {off: 0.0}
    method, batch = build("unet", **options), noise_batch([0, 1], masks=True)
    assert list(method.loss(method(batch.image), batch, 0)) == [left]


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (-1.0, 1.0, "--cross-entropy-weight -1.0 is wrong"),
        (1.0, math.nan, "--dice-weight nan is wrong"),
        (0.0, 0.0, "--cross-entropy-weight or --dice-weight must be above 0"),
    ],
)
def test_wrong_weights_name_the_flags(one, other, message):
    with pytest.raises(InputError, match=message):
        build("unet", cross_entropy_weight=one, dice_weight=other)


@pytest.mark.parametrize("score", [-4.0, 0.0, 4.0])
def test_map_is_the_probability_and_not_stretched(score):
    method = build("unet")
    assert isinstance(method, UNet)
    torch.nn.init.zeros_(method.decoder.head.weight)
    torch.nn.init.constant_(method.decoder.head.bias, score)  # type: ignore[arg-type]
    probabilities, roi = answer(method, noise(2, 50, 33))
    torch.testing.assert_close(roi, torch.full((2, 1, 50, 33), 1 / (1 + math.exp(-score))))
    assert torch.equal(probabilities, torch.full((2, 2), 0.5))


def test_only_the_encoder_has_the_backbones_learning_rate():
    names = [name for name, _ in build("unet").named_parameters()]
    assert all((".model." in name) == name.startswith("backbone.") for name in names)
    assert any(name.startswith("decoder.") for name in names)


def test_decoder_of_a_prior_has_the_names_and_shapes_of_its_weights():
    prior, method = build("prior").state_dict(), build("unet", decoder="sum")
    assert {k: v.shape for k, v in method.state_dict().items()} == {k: v.shape for k, v in prior.items()}
    method.load_state_dict(prior)
    with torch.no_grad():
        image = noise(2, 50, 33)
        assert torch.equal(method(image).evidence, build("prior")(image).evidence)
    assert "lateral" not in "".join(build("unet").state_dict()), "the default is U-Net's own"


def test_learns_from_masks_and_ignores_labels():
    assert UNet.supervision == {"pixel"}
    method, batch = build("unet"), noise_batch([0, 1], masks=True)
    other = batch._replace(label=1 - batch.label)
    out = method(batch.image)
    assert method.loss(out, batch, 0) == method.loss(out, other, 0)
    with pytest.raises(InputError, match="mask"):
        method.loss(out, batch._replace(mask=None), 0)


@pytest.mark.parametrize(("steps", "least"), [(12, 0.8), pytest.param(24, 0.9, marks=pytest.mark.slow)])
def test_finds_glands_it_has_not_seen(steps, least):
    # The bar of the house: a Dice index of at least 0.9 within a minute on one core.
    torch.manual_seed(0)
    config = ModelConfig("unet", CLASSES, UNetOptions(), BackboneConfig(stride=0))
    method = build_method(config, load_backbone=True).train()
    parts, unseen = [glands(8, 96, first=first, masks=True) for first in (0, 8)], glands(6, 96, first=100, masks=True)
    optimizer = torch.optim.Adam(method.parameters(), lr=2e-3)
    for step in range(steps):
        batch = parts[step % 2]
        optimizer.zero_grad()
        torch.stack(list(method.loss(method(batch.image), batch, 0).values())).sum().backward()
        optimizer.step()
    assert unseen.mask is not None
    _, roi = answer(method.eval(), unseen.image)
    assert dice(torch.ones_like(roi), unseen.mask) < 0.75
    assert dice(roi, unseen.mask) >= least


def test_trains_from_a_table_and_resumes_with_equal_bits(tiny, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop_in_the_second_epoch(self, out, batch, epoch):
        if epoch == 1:
            raise Stopped
        return loss(self, out, batch, epoch)

    config, loss = tiny("unet", backbone="test_efficientnet"), UNet.loss
    whole = train(config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(UNet, "loss", stop_in_the_second_epoch)
        with pytest.raises(Stopped):
            train(config, tmp_path / "parts", progress=False)
    parts = train(config, tmp_path / "parts", resume=True, progress=False)
    first, second = (float(row["train/dice"]) for row in csv.DictReader((whole / "log.csv").open()))
    assert second < first
    weights = "model/model.safetensors"
    assert (parts / weights).read_bytes() == (whole / weights).read_bytes()


def test_a_table_without_masks_is_refused(tiny, tiny_table, tmp_path):
    with tiny_table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["image"] = str(tiny_table.parent / row["image"])
        row["mask"] = "" if row["split"] == "train" else str(tiny_table.parent / row["mask"])
    table = tmp_path / "no_masks.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(InputError, match="has no mask, and this method learns from masks"):
        train(tiny("unet", data=table), tmp_path / "run", progress=False)
