"""What holds for every method of the table; a new row is tested by being there."""

import dataclasses
import sys

import pytest
import torch
from small import CNN, VIT, build, glands, noise, noise_batch

from histoloc.checkpoint import ModelConfig, load_model, save_model
from histoloc.data.synthetic import CLASSES
from histoloc.files import atomic_path
from histoloc.methods import METHODS, Method
from histoloc.train import train
from histoloc.types import Batch

every_method = pytest.mark.parametrize("name", METHODS)
every_learner = pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.supervision != "none"])
every_classifier = pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.classifies])
every_backbone = pytest.mark.parametrize("backbone", [CNN, VIT])


def batch_for(method: Method, labels: list[int]) -> Batch:
    return noise_batch(labels, masks=method.supervision == "pixel")


def total(method: Method, labels: list[int]) -> torch.Tensor:
    batch = batch_for(method, labels)
    return torch.stack(list(method.loss(method(batch.image), batch, 0).values())).sum()


@every_method
def test_says_what_it_is(name):
    kind = METHODS[name]
    assert kind.title
    assert kind.paper
    assert kind.__doc__
    assert dataclasses.is_dataclass(kind.Options)
    assert kind.supervision in ("none", "image", "pixel")


@every_backbone
@pytest.mark.parametrize("size", [(64, 64), (97, 131), (50, 33)])
@every_method
def test_output_and_localization(name, size, backbone):
    method, image = build(name, backbone=backbone), noise(3, *size)
    with torch.no_grad():
        out, found = method(image), method.localize(image)
    assert out.logits.shape == (3, 2)
    assert out.logits.dtype == torch.float32
    assert out.roi.shape[:2] == (3, 1)
    assert torch.isfinite(out.logits).all()
    assert torch.isfinite(out.roi).all()
    assert found.roi.shape == (3, 1, *size)
    assert found.probabilities.shape == (3, 2)
    assert found.roi.dtype == found.probabilities.dtype == torch.float32
    assert 0 <= found.roi.min() <= found.roi.max() <= 1
    torch.testing.assert_close(found.probabilities.sum(dim=1), torch.ones(3))
    torch.testing.assert_close(found.probabilities, out.logits.softmax(dim=1))


@every_method
def test_low_precision(name):
    method = build(name)
    batch = batch_for(method, [0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        out, found = method(batch.image), method.localize(batch.image)
        terms = method.loss(out, batch, 0)
    assert found.roi.dtype == found.probabilities.dtype == torch.float32
    assert torch.isfinite(found.roi).all()
    for term in terms.values():
        assert term.dtype == torch.float32
        assert torch.isfinite(term)


@every_method
def test_one_colour_everywhere(name):
    found = build(name).localize(torch.full((2, 3, 64, 80), 0.3))
    assert torch.isfinite(found.roi).all()
    assert torch.isfinite(found.probabilities).all()


@every_method
def test_loss_terms_are_scalars(name):
    method = build(name)
    batch = batch_for(method, [0, 1, 1])
    for term in method.loss(method(batch.image), batch, 3).values():
        assert term.shape == ()
        assert torch.isfinite(term)


@every_learner
def test_loss_is_the_mean_over_images(name):
    # What makes the loss of several processes equal that of one.
    method, labels = build(name), [0, 1, 1]
    batch = batch_for(method, labels)
    whole = method.loss(method(batch.image), batch, 0)
    parts = []
    for i in range(3):
        mask = None if batch.mask is None else batch.mask[i : i + 1]
        one = batch._replace(image=batch.image[i : i + 1], label=batch.label[i : i + 1], mask=mask)
        parts.append(method.loss(method(one.image), one, 0))
    for key, value in whole.items():
        torch.testing.assert_close(value, torch.stack([part[key] for part in parts]).mean())


@every_backbone
@every_learner
def test_gradients_reach_every_parameter(name, backbone):
    method = build(name, backbone=backbone).train()
    total(method, [0, 1]).backward()
    parameters = {key: p for key, p in method.named_parameters() if p.requires_grad}
    assert parameters
    for key, parameter in parameters.items():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.any(), key


@every_method
def test_images_do_not_influence_each_other(name):
    method, image = build(name), noise(3, 64, 80)
    with torch.no_grad():
        whole, alone = method.localize(image), method.localize(image[1:2])
    torch.testing.assert_close(whole.roi[1:2], alone.roi, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.probabilities[1:2], alone.probabilities, rtol=1e-4, atol=1e-5)


@every_method
def test_localizing_changes_nothing(name):
    method, image = build(name), noise(2, 64, 64)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    with torch.no_grad():
        first, second = method.localize(image), method.localize(image)
    assert torch.equal(first.roi, second.roi)
    assert not method.training
    after = method.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@every_method
def test_saved_and_loaded_predictions_have_equal_bits(name, tmp_path):
    method, image = build(name), noise(2, 97, 131)
    method.train()
    method(noise(2, 64, 64))  # statistics of batch normalisation that are not the initial ones
    method.epoch.fill_(7)
    config = ModelConfig(name, CLASSES, method.options, method.setting.backbone)
    save_model(tmp_path, method.eval().state_dict(), config)
    loaded, _ = load_model(tmp_path)
    assert int(loaded.epoch) == 7
    with torch.no_grad():
        expected, got = method.localize(image), loaded.localize(image)
    assert torch.equal(got.roi, expected.roi)
    assert torch.equal(got.probabilities, expected.probabilities)


@every_classifier
def test_learns_eight_images_by_heart(name):
    batch, method = glands(8, 64), build(name)
    for module in method.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5  # a few steps must do for the running statistics to follow
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    method.train()
    for _ in range(30):
        optimizer.zero_grad()
        torch.stack(list(method.loss(method(batch.image), batch, 0).values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        probabilities = method.eval().localize(batch.image).probabilities
    assert torch.equal(probabilities.argmax(dim=1), batch.label)


@every_learner
def test_resumed_training_has_equal_bits(name, tiny, tmp_path, monkeypatch):
    config, written = tiny(name, epochs=2), []

    def stop_in_the_second_epoch(path):
        if path.name == "log.csv":
            written.append(path)
            if len(written) == 2:
                raise KeyboardInterrupt
        return atomic_path(path)

    with monkeypatch.context() as patch:
        # `histoloc.train` by name is the function.
        patch.setattr(sys.modules["histoloc.train"], "atomic_path", stop_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "stopped", progress=False)
    train(config, tmp_path / "stopped", resume=True, progress=False)
    train(config, tmp_path / "whole", progress=False)
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("stopped", "whole")]
    assert weights[0] == weights[1]
