"""Student: its loss by hand, what each term trains, and training under teachers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import answer, build, noise, noise_batch
from torch import Tensor

from histoloc.errors import InputError
from histoloc.maps import place
from histoloc.methods.student import Student, sharpen
from histoloc.types import Batch, Drawn, Output


def student(**options) -> Student:
    method = build("student", **options)
    assert isinstance(method, Student)
    return method


def taught_batch(labels: list[int], height: int = 64, width: int = 64) -> Batch:
    batch = noise_batch(labels, height, width)
    return batch._replace(target=batch.image[:, :1].sigmoid())


def gradients(method: Student, term: Tensor) -> dict[str, bool]:
    """Whether a term trains the parameters of each part."""
    names, parameters = zip(*method.named_parameters(), strict=True)
    grads = torch.autograd.grad(term, parameters, allow_unused=True)
    parts: dict[str, bool] = {}
    for name, grad in zip(names, grads, strict=True):
        part = name.split(".")[0]
        parts[part] = parts.get(part, False) or (grad is not None and bool(grad.any()))
    return parts


def test_loss_by_hand():
    method = student(map_weight=2.0, class_weight=3.0, sharpness=2.0)
    method.decoder.stride = 1  # a score for each pixel
    scores = torch.tensor([[math.log(3), 0.0], [0.0, -math.log(3)]]).view(2, 1, 1, 2)  # p = 3/4 1/2, 1/2 1/4
    target = torch.tensor([[0.75, 0.5], [0.0, 1.0]]).view(2, 1, 1, 2)  # sharpened: 9/10 1/2, 0 1
    logits = torch.tensor([[math.log(4), 0.0], [0.0, 0.0]])  # of the first class 4/5, 1/2
    batch = noise_batch([0, 1], 1, 2)._replace(target=target)
    terms = method.loss(Output(logits, scores, {}), batch, 0)
    pixels = [0.9 * math.log(3 / 4) + 0.1 * math.log(1 / 4), math.log(1 / 2), math.log(1 / 2), math.log(1 / 4)]
    assert terms["map"].item() == pytest.approx(-2 * sum(pixels) / 4)
    assert terms["classification"].item() == pytest.approx(-3 * (math.log(4 / 5) + math.log(1 / 2)) / 2)


@given(st.floats(0.001, 0.999), st.floats(0.1, 5))
def test_sharpening_multiplies_the_logit(q, factor):
    got = sharpen(torch.tensor(q, dtype=torch.float64), factor)
    assert got.item() == pytest.approx(1 / (1 + math.exp(-factor * math.log(q / (1 - q)))), rel=1e-9)


def test_sharpening_keeps_the_ends_and_the_middle():
    ends = torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(sharpen(ends, 1.5), ends)
    torch.testing.assert_close(sharpen(torch.tensor([0.2, 0.7]), 1.0), torch.tensor([0.2, 0.7]))


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
def test_class_and_map_share_the_backbone_alone(classes):
    method, batch = build("student", classes=classes).train(), taught_batch([0, len(classes) - 1], 61, 83)
    assert isinstance(method, Student)
    output = method(batch.image)
    assert output.logits.shape == (2, len(classes))
    terms = method.loss(output, batch, 0)
    assert gradients(method, terms["classification"]) == {"backbone": True, "decoder": False, "head": True}
    terms = method.loss(method(batch.image), batch, 0)
    assert gradients(method, terms["map"]) == {"backbone": True, "decoder": True, "head": False}


def test_classes_come_from_the_mean_of_the_deepest_features():
    method, image = student(), noise(2, 61, 83)
    with torch.no_grad():
        deepest = method.backbone(image)
        torch.testing.assert_close(method(image).logits, method.head(deepest.mean(dim=(2, 3))))


def test_the_map_is_the_probability_of_the_priors_network():
    method, image = student(flips=1), noise(2, 61, 83)
    with torch.no_grad():
        scores = method.decoder(method.backbone.pyramid(image))
    torch.testing.assert_close(answer(method, image)[1], place(scores.sigmoid(), method.stride, (61, 83)))


def test_without_teachers_there_is_nothing_to_learn_a_map_from():
    method, batch = student(), noise_batch([0, 1])
    with pytest.raises(InputError, match="give --teachers"):
        method.loss(method(batch.image), batch, 0)


def with_drawn(batch: Batch, height: int = 64, width: int = 64) -> Batch:
    drawn = noise(2, height, width).flip(0)
    return batch._replace(drawn=Drawn(drawn, (drawn[:, :1] > 0).float()))


def test_labels_and_a_prior_train_every_part():
    method = student(average=0.9, randomise=True, drawn_weight=2.0, consistency_weight=3.0).train()
    batch = method.prepare(with_drawn(noise_batch([0, 1], 61, 83), 61, 83))
    assert batch.image.shape == (4, 3, 61, 83)
    output = method(batch.image)
    assert output.logits.shape == (4, 2)
    terms = method.loss(output, batch, 0)
    assert set(terms) == {"classification", "cross_entropy", "consistency"}
    assert batch.mask is not None
    assert batch.average is not None
    drawn = place(output.evidence[2:], method.stride, (61, 83))
    real, q = output.evidence[:2], batch.average
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(terms["cross_entropy"], 2 * entropy(drawn, batch.mask))
    expected = 3 * ((2 * q - 1).abs() * entropy(real, q, reduction="none")).mean()
    torch.testing.assert_close(terms["consistency"], expected)
    own = torch.nn.functional.cross_entropy(output.logits[:2], batch.label)
    torch.testing.assert_close(terms["classification"], own)
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (not name.startswith("average.")), name


def test_teachers_and_drawn_images_together():
    method = student(average=0.9).train()
    batch = taught_batch([0, 1])
    alone = method.prepare(batch)
    assert set(method.loss(method(alone.image), alone, 0)) == {"classification", "map"}, "the average only predicts"
    together = method.prepare(with_drawn(batch))
    terms = method.loss(method(together.image), together, 0)
    assert set(terms) == {"classification", "map", "cross_entropy", "consistency"}


def test_the_average_gives_map_and_class():
    method, image = student(average=0.9, flips=1).train(), noise(2, 64, 64)
    method.prepare(noise_batch([0, 1]))
    with torch.no_grad():
        for parameter in (method.head.bias, *method.decoder.head.parameters()):
            parameter.add_(1)
        method.prepare(noise_batch([0, 1]))
        assert method.average is not None
        made, expected = method.eval().evidence(image), method.look(method.average.module, image)
        assert torch.equal(made.logits, expected.logits)
        assert torch.equal(made.evidence, expected.evidence)
        assert not torch.equal(made.logits, method(image).logits)


@pytest.mark.parametrize(("name", "value"), [("sharpness", 0.0), ("map_weight", -1.0), ("class_weight", math.inf)])
def test_bad_options(name, value):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} {value} is wrong"):
        student(**{name: value})
