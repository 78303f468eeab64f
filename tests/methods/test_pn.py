import math

import pytest
import torch
from small import answer, build, noise, noise_batch
from torch import Tensor

from histoloc.datasets.synthetic.dataset import CLASSES
from histoloc.errors import InputError
from histoloc.losses import log_barrier
from histoloc.methods.pn import Pn
from histoloc.types import Batch, Output

SIDE = 64


def discs(count: int) -> tuple[Batch, Tensor]:
    """Discs with stripes that lie (class 0) or stand (class 1), 15 to 35 % of an image of noise, and their masks."""
    random = torch.Generator().manual_seed(0)
    image = torch.randn(count, 3, SIDE, SIDE, generator=random)
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    label, masks = torch.arange(count) % 2, []
    for i in range(count):
        radius = 14 + 8 * torch.rand(1, generator=random).item()
        y, x = (22 + 20 * torch.rand(2, generator=random)).tolist()
        disc = (row - y) ** 2 + (column - x) ** 2 < radius**2
        stripes = ((row if label[i] == 0 else column) % 4 < 2) * 4.0 - 2
        image[i] = torch.where(disc, stripes + 0.3 * image[i], image[i])
        masks.append(disc[None])
    return Batch(image, label, None, tuple(f"{i}.png" for i in range(count))), torch.stack(masks)


def loss_of(method, sizes: list[list[float]], labels: list[int], epoch: int = 0) -> dict[str, float]:
    out = Output(torch.zeros(len(labels), 2), torch.zeros(len(labels), 1, 1, 1), {"sizes": torch.tensor(sizes)})
    return {key: value.item() for key, value in method.loss(out, noise_batch(labels), epoch).items()}


def test_quadratic_penalty_by_hand():
    method = build("pn", lower=0.2, upper=0.6, weight=2.0)
    sizes = [[0.1, 0.3], [0.05, 0.9], [0.4, 0.0]]  # too small, too large, right
    terms = loss_of(method, sizes, [0, 1, 0])
    assert terms["present"] == pytest.approx(2 * (0.1**2 + 0.3**2 + 0) / 3)
    assert terms["absent"] == pytest.approx(2 * (0.3**2 + 0.05**2 + 0) / 3)


def test_an_upper_bound_of_one_is_none():
    for penalty in ("quadratic", "barrier"):
        method = build("pn", lower=0.2, upper=1.0, penalty=penalty, weight=1.0)
        small, large = (loss_of(method, [[size, 0.0]], [0])["present"] for size in (0.9, 0.99))
        assert large <= small


@pytest.mark.parametrize(("epoch", "t"), [(0, 5.0), (1, 5.5), (2, 6.05), (50, 7.0)])
def test_barrier_by_hand_and_its_schedule(epoch, t):
    method = build("pn", lower=0.2, upper=0.6, penalty="barrier", weight=3.0, barrier_factor=1.1, barrier_cap=7.0)
    terms = loss_of(method, [[0.3, 0.1]], [0], epoch)
    assert terms["present"] == pytest.approx(-3 * (math.log(0.1) + math.log(0.3)) / t, rel=1e-5)
    assert terms["absent"] == pytest.approx(3 * log_barrier(torch.tensor(0.1), t).item(), rel=1e-5)


def test_a_class_without_roi_is_empty_in_all_images():
    method = build("pn", lower=0.2, weight=1.0, empty_class=CLASSES[0])
    terms = loss_of(method, [[0.4, 0.3], [0.1, 0.3]], [0, 1])
    assert terms["present"] == pytest.approx(0)
    assert terms["absent"] == pytest.approx((0.4**2 + 0.3**2 + 0.1**2) / 2)


def test_of_an_image_of_several_classes_each_has_the_present_size():
    method = build("pn", lower=0.2, weight=1.0, classes=("a", "b", "c"), empty_class="c")
    batch = noise_batch([0, 1])._replace(labels=torch.tensor([[True, True, False], [False, True, True]]))
    sizes = torch.tensor([[0.1, 0.3, 0.4], [0.05, 0.15, 0.0]])
    terms = method.loss(Output(torch.zeros(2, 3), torch.zeros(2, 1, 1, 1), {"sizes": sizes}), batch, 0)
    assert terms["present"].item() == pytest.approx((0.1**2 + 0.05**2) / 2)
    assert terms["absent"].item() == pytest.approx((0.4**2 + 0.05**2) / 2)


@pytest.mark.parametrize("penalty", ["quadratic", "barrier"])
def test_gradient_of_the_penalties(penalty):
    method, batch = build("pn", penalty=penalty), noise_batch([0, 1, 1])
    sizes = torch.tensor([[0.1, 0.3], [0.02, 0.7], [0.4, 0.3]], dtype=torch.float64, requires_grad=True)

    def total(sizes: Tensor) -> Tensor:
        return torch.stack(list(method.loss(Output(sizes, sizes, {"sizes": sizes}), batch, 3).values())).sum()

    assert torch.autograd.gradcheck(total, sizes)


def test_map_is_what_is_not_background_and_not_stretched():
    method = build("pn")
    assert isinstance(method, Pn)
    assert method.head.bias is not None
    torch.nn.init.zeros_(method.head.weight)
    with torch.no_grad():
        method.head.bias.copy_(torch.tensor([1.0, 2.0, 5.0]).log())  # p = 1/8, 2/8, background 5/8
        out = method(noise(2, 50, 33))
    probabilities, roi = answer(method, noise(2, 50, 33))
    torch.testing.assert_close(roi, torch.full((2, 1, 50, 33), 3 / 8))
    torch.testing.assert_close(out.terms["sizes"], torch.tensor([[1 / 8, 2 / 8]]).expand(2, 2))
    assert torch.equal(probabilities, torch.full((2, 2), 0.5))


@pytest.mark.parametrize(("penalty", "steps"), [("quadratic", 40), ("barrier", 30)])
def test_sizes_hold_after_training(penalty, steps):
    weight = 10.0 if penalty == "quadratic" else 1.0
    method, (batch, mask) = build("pn", stride=8, penalty=penalty, weight=weight, lower=0.2, upper=0.6), discs(8)
    for module in method.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5  # a few steps must do for the running statistics to follow
    optimizer = torch.optim.SGD(method.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    method.train()
    for step in range(steps):
        optimizer.zero_grad()
        torch.stack(list(method.loss(method(batch.image), batch, step).values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        sizes = method.eval()(batch.image).terms["sizes"]
    result = answer(method, batch.image)[1] >= 0.5
    present, absent = sizes[range(8), batch.label], sizes[range(8), 1 - batch.label]
    assert present.min() >= 0.2 - 0.02
    assert present.max() <= 0.6 + 0.02
    assert absent.max() < 0.02
    # The size says nothing of the place; that the disc has the class does: better than marking everything.
    dice = (2 * (result & mask).sum((1, 2, 3)) / (result.sum((1, 2, 3)) + mask.sum((1, 2, 3)))).mean()
    everywhere = (2 * mask.sum((1, 2, 3)) / (SIDE**2 + mask.sum((1, 2, 3)))).mean()
    assert dice > everywhere + 0.1


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"lower": 0.6, "upper": 0.3}, "--lower"),
        ({"lower": -0.1}, "--lower"),
        ({"upper": 1.1}, "--upper"),
        ({"lower": math.nan}, "--lower"),
        ({"weight": 0.0}, "--weight"),
        ({"barrier_start": 0.0}, "--barrier-start"),
    ],
)
def test_wrong_options_name_the_flag(options, flag):
    with pytest.raises(InputError, match=flag):
        build("pn", **options)
