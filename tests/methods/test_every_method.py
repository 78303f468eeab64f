"""What holds for every method of the table; a new row is tested by being there."""

import dataclasses
import re
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small import CNN, VIT, answer, build, glands, noise, noise_batch, resume_and_compare
from torch import Tensor

from histoloc.data.transforms import HALF, InputConfig
from histoloc.datasets.synthetic.dataset import CLASSES
from histoloc.errors import InputError
from histoloc.maps import roi_at_stride
from histoloc.methods import METHODS, Method
from histoloc.methods.base import Supervision
from histoloc.model_folder import ModelConfig, load_model, save_model
from histoloc.prediction import Predictor
from histoloc.types import Batch, Output, Unit

every_method = pytest.mark.parametrize("name", METHODS)
every_learner = pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.supervision])
# Where a row takes over how another one is trained, one of them will do.
TRAININGS = [
    name
    for name, m in METHODS.items()
    if m.supervision
    and not any(
        (m.forward, m.loss, m.prepare) == (o.forward, o.loss, o.prepare) for o in METHODS.values() if o in m.__mro__[1:]
    )
]
every_training = pytest.mark.parametrize("name", TRAININGS)
every_classifier = pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.classifies])
every_backbone = pytest.mark.parametrize("backbone", [CNN, VIT])


def batch_for(method: Method, labels: list[int]) -> Batch:
    batch = noise_batch(labels, masks=bool({"pixel", "synthetic"} & method.supervision))
    return with_target(method, batch)


def with_target(method: Method, batch: Batch) -> Batch:
    """Of a method that learns from others' maps, or from those that its images give it."""
    needed = method.taught or type(method).first_targets is not Method.first_targets
    return batch._replace(target=batch.image[:, :1].sigmoid()) if needed else batch


def one_of(batch: Batch, index: int) -> Batch:
    parts: list[Any] = [value if value is None else value[index : index + 1] for value in batch]
    return Batch(*parts)


def losses(method: Method, batch: Batch, epoch: int = 0) -> dict[str, Tensor]:
    return method.loss(method(batch.image), batch, epoch)


def evidence(method: Method, image: Tensor) -> Output:
    with torch.no_grad():
        return method.evidence(image)


def assert_near(got: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest magnitude."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * scale)


@every_method
def test_says_what_it_is(name):
    kind, method = METHODS[name], build(name)
    assert kind.title
    assert kind.paper
    assert kind.__doc__
    assert dataclasses.is_dataclass(kind.Options)
    assert kind.supervision <= set(get_args(Supervision))
    assert method.unit in get_args(Unit)
    assert method.stages == kind.stages_for(method.options) >= 1
    assert method.multiple % method.stride == 0
    assert isinstance(method.in_tiles, str)
    assert kind.supervision or not list(method.parameters())
    batch = batch_for(method, [0, 1])
    assert method.targets(batch.image) is None, "of the first stage"
    assert method.prepare(batch) is batch
    assert method.continued(noise(1, 33, 50)).shape[-2] % method.multiple == 0


@every_method
def test_calibration(name):
    method = build(name, empty_class=CLASSES[1], **METHODS[name].with_empty_class)
    usual = method.calibration(None, (0.5,), (2.0,))
    assert usual.range == ("learned" if method.unit == "score" else "probability")
    assert (usual.unit, usual.stride, usual.centre, usual.slope) == (method.unit, method.stride, (0.5,), (2.0,))
    assert (usual.empty, usual.gated) == (1, method.classifies), "without probabilities nothing says that there is none"
    assert method.calibration("image").range == "image"
    if method.unit == "score":
        message = f"--range probability: the evidence of {method.title} is no probability; leave --range out"
        with pytest.raises(InputError, match=re.escape(message)):
            method.calibration("probability")
    else:
        with pytest.raises(InputError, match=f"--range learned: the evidence of {method.title} is a probability"):
            method.calibration("learned", (0.0,), (1.0,))
    with pytest.raises(InputError, match=r"--empty-class 'x' is not a class of the table; choose one of \['benign'"):
        build(name, empty_class="x")


@every_backbone
@every_method
def test_output_evidence_and_map(name, backbone):
    method = build(name, backbone=backbone)
    for size in ((64, 64), (97, 131), (50, 33)):
        image = noise(3, *size)
        with torch.no_grad():
            made, trained = method.evidence(image), method(image)
        least = [-(-side // method.stride) for side in size]
        most = [-(-side // method.multiple) * method.multiple // method.stride for side in size]
        for out in (made, trained):
            assert out.logits.shape == (3, 2)
            assert out.logits.dtype == out.evidence.dtype == torch.float32
            assert torch.isfinite(out.logits).all()
            assert torch.isfinite(out.evidence).all()
            images, maps, *positions = out.evidence.shape
            assert images == 3
            assert maps in (1, 2)
            assert positions == [1, 1] or all(a <= p <= b for a, p, b in zip(least, positions, most, strict=True))
            assert method.unit != "probability" or 0 <= out.evidence.min() <= out.evidence.max() <= 1
        torch.testing.assert_close(made.logits, trained.logits)
        assert made.evidence.shape[1] == trained.evidence.shape[1]
        probabilities, roi = answer(method, image)
        assert roi.shape == (3, 1, *size)
        assert roi.dtype == probabilities.dtype == torch.float32
        assert 0 <= roi.min() <= roi.max() <= 1


@every_method
def test_low_precision_is_near(name):
    method = build(name)
    batch = batch_for(method, [0, 1])
    exact = evidence(method, batch.image)
    with torch.autocast("cpu", torch.bfloat16):
        low, (probabilities, roi) = evidence(method, batch.image), answer(method, batch.image)
        terms = losses(method, batch)
    assert low.logits.dtype == low.evidence.dtype == roi.dtype == torch.float32
    assert torch.isfinite(low.evidence).all()
    assert torch.isfinite(roi).all()
    torch.testing.assert_close(probabilities, exact.logits.softmax(dim=1), rtol=0, atol=0.05)
    for term in terms.values():
        assert term.dtype == torch.float32
        assert torch.isfinite(term)


@every_method
def test_one_colour_everywhere(name):
    method, image = build(name), torch.full((2, 3, 64, 80), 0.3)
    assert torch.isfinite(evidence(method, image).evidence).all()
    for values in answer(method, image):
        assert torch.isfinite(values).all()


@pytest.mark.parametrize("range", ["learned", "image"])
@every_classifier
def test_an_image_that_is_surely_without_roi_has_an_empty_map(name, range):
    method = build(name, empty_class=CLASSES[0], **METHODS[name].with_empty_class)
    made = evidence(method, noise(2, 64, 96))
    maps = made.evidence.shape[1]
    own = ((made.evidence.min().item(),) * maps, (1.0,) * maps)
    calibration = method.calibration(range, *own) if method.unit == "score" else method.calibration()
    label = torch.tensor([1, 1])
    with_roi = roi_at_stride(made, label, dataclasses.replace(calibration, gated=False))
    assert with_roi.max() >= 0.5
    for index in (0, 1):
        for normal, share in ((6.0, 2 * 0.0024726), (0.0, 1.0), (-6.0, 1.0)):
            sure = made._replace(logits=torch.tensor([[normal, 0.0]]).expand(2, 2))
            roi = roi_at_stride(sure, torch.full((2,), index), calibration)
            torch.testing.assert_close(roi, share * with_roi, rtol=1e-3, atol=1e-6)
            assert roi.max() < 0.05 or normal < 6


@every_learner
def test_loss_terms_are_means_over_images(name):
    # What makes the loss of several processes equal that of one.
    method = build(name)
    one_each = batch_for(method, [0, 1, 1])
    several = one_each._replace(labels=torch.tensor([[True, False], [True, True], [False, True]]))
    for batch in (one_each, several):
        whole = losses(method, batch, epoch=3)
        parts = [losses(method, one_of(batch, i), epoch=3) for i in (0, 1, 2)]
        assert whole
        for key, value in whole.items():
            assert value.shape == ()
            assert torch.isfinite(value)
            torch.testing.assert_close(value, torch.stack([part[key] for part in parts]).mean())


@every_backbone
@every_training
def test_gradients_reach_every_parameter(name, backbone):
    method = build(name, backbone=backbone).train()
    torch.stack(list(losses(method, batch_for(method, [0, 1])).values())).sum().backward()
    parameters = {key: p for key, p in method.named_parameters() if p.requires_grad}
    assert parameters
    for key, parameter in parameters.items():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.any(), key


@every_method
def test_evidence_is_that_of_the_image_alone_and_asking_changes_nothing(name):
    method, image = build(name), noise(4, 64, 80)
    image[0] *= 5  # a neighbour of another range
    before = {key: value.clone() for key, value in method.state_dict().items()}
    whole, again, alone = evidence(method, image), evidence(method, image), evidence(method, image[2:3])
    assert_near(whole.evidence[2:3], alone.evidence)
    assert_near(whole.logits[2:3], alone.logits)
    assert_near(answer(method, image)[1][2:3], answer(method, image[2:3])[1])
    assert torch.equal(whole.evidence, again.evidence)
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
    for got, expected in zip(answer(loaded, image), answer(method, image), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", [name for name in TRAININGS if METHODS[name].classifies])
def test_learns_eight_images_by_heart(name):
    batch, method = glands(8, 64), build(name)
    batch = with_target(method, batch)
    for module in method.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5  # a few steps must do for the running statistics to follow
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    method.train()
    for _ in range(30):
        optimizer.zero_grad()
        torch.stack(list(losses(method, batch).values())).sum().backward()
        optimizer.step()
    assert torch.equal(evidence(method.eval(), batch.image).logits.argmax(dim=1), batch.label)


@every_training
def test_resumed_training_has_equal_bits(name, tiny, gap_run, tmp_path, monkeypatch):
    config = tiny(name, epochs=2, backbone=CNN)
    if METHODS[name].taught:
        config = dataclasses.replace(config, teachers=(gap_run,))

    resume_and_compare(config, tmp_path, monkeypatch)


# --- where evidence lies in the image: as prediction asks for it, continued to whole positions ---

MANY = tuple("abcdefgh")  # of so many class maps one at least is not cut off by a ReLU
HEIGHT, WIDTH = 145, 203
MARKS = [(72, 100), (HEIGHT - 9, WIDTH - 9), (9, 9), (HEIGHT - 9, 60), (40, WIDTH - 9)]  # the middle and the edges


def predictor(name: str, backbone: str, stride: int) -> Predictor:
    method = build(name, backbone=backbone, stride=stride, classes=MANY)
    seen = InputConfig(small_side=0, crop=32, mean=HALF, std=HALF)
    return Predictor(method, ModelConfig(name, MANY, method.options, method.setting.backbone, seen))


def scene(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(100, 156, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("backbone", "stride"), [(CNN, 8), (VIT, 0)])
@every_method
def test_evidence_changes_where_the_image_does(name, backbone, stride):
    model, plain = predictor(name, backbone, stride), scene(HEIGHT, WIDTH)
    marked = []
    for y, x in MARKS:
        marked.append(plain.copy())
        marked[-1][y - 8 : y + 8, x - 8 : x + 8] = (60, 20, 100)
    _, maps = model.evidence([plain, *marked])
    if maps.shape[-2:] == (1, 1):  # one value for the whole image
        return
    assert maps.shape[-2:] == (-(-HEIGHT // model.stride), -(-WIDTH // model.stride))
    changes = np.abs(maps[1:] - maps[0]).sum(axis=1)
    for (y, x), change in zip(MARKS, changes, strict=True):
        most = np.where(change >= change.max() / 2, change, 0)
        rows, columns = ((axis + 0.5) * model.stride for axis in np.indices(most.shape))
        centre = (np.average(rows, weights=most), np.average(columns, weights=most))
        assert centre == pytest.approx((y, x), abs=max(8, model.stride) + 4)


@pytest.mark.parametrize("backbone", [CNN, "tf_efficientnet_lite0"])
def test_positions_do_not_depend_on_the_images_size(backbone):
    # Where the padding of a network depends on whether a side is even (as TensorFlow's "same"), they once did.
    model, whole = predictor("gap", backbone, 8), scene(256, 320)
    _, expected = model.evidence([whole])
    for height, width in ((HEIGHT, WIDTH), (150, 198)):
        _, part = model.evidence([whole[:height, :width]])
        np.testing.assert_allclose(part[..., 2:9, 2:9], expected[..., 2:9, 2:9], rtol=0, atol=1e-5)
