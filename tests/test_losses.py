import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from histoloc import losses
from histoloc.types import Batch

UNCERTAINTIES = [losses.negative_entropy, losses.uniform_cross_entropy]
sharpness = st.floats(0.8, 50)
few = settings(max_examples=50, deadline=None)


def grad(value: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), at)[0]


def labelled(*sets: set[int], classes: int = 3) -> Batch:
    """A batch of images that have these classes; the first of each is its label."""
    labels = torch.tensor([[k in own for k in range(classes)] for own in sets])
    label = torch.tensor([min(own) for own in sets])
    return Batch(torch.zeros(len(sets), 3, 1, 1), label, None, ("",) * len(sets), labels)


def test_classification_by_one_label_is_pytorchs():
    logits = 5 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    batch = labelled({2}, {0}, {1}, {0})._replace(labels=None)
    own = torch.nn.functional.cross_entropy
    assert torch.equal(losses.classification(logits, batch), own(logits, batch.label))
    assert torch.equal(losses.classification(logits, batch, each=True), own(logits, batch.label, reduction="none"))


def test_classification_by_label_sets_is_the_mean_over_an_images_classes():
    logits = torch.tensor([[math.log(2), math.log(3), math.log(5)]] * 3, dtype=torch.float64, requires_grad=True)
    batch = labelled({1}, {0, 2}, {0, 1, 2})  # p = 1/5, 3/10, 1/2
    each = losses.classification(logits, batch, each=True)
    expected = [-math.log(0.3), -math.log(0.2 * 0.5) / 2, -math.log(0.2 * 0.3 * 0.5) / 3]
    assert each.tolist() == pytest.approx(expected)
    assert losses.classification(logits, batch).item() == pytest.approx(sum(expected) / 3)
    # The gradient is p less the class's share.
    torch.testing.assert_close(grad(each, logits)[1], torch.tensor([0.2 - 0.5, 0.3, 0.5 - 0.5], dtype=torch.float64))


def test_label_sets_of_one_class_are_labels():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    batch = labelled({2}, {0}, {1}, {0})
    torch.testing.assert_close(
        losses.classification(logits, batch), losses.classification(logits, batch._replace(labels=None))
    )


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_uniform_scores_reach_the_minimum(classes):
    scores = torch.full((2, classes), 3.7, dtype=torch.float64)
    expected = torch.full((2,), math.log(classes), dtype=torch.float64)
    torch.testing.assert_close(losses.negative_entropy(scores), -expected)
    torch.testing.assert_close(losses.uniform_cross_entropy(scores), expected)


def test_uncertainty_by_hand():
    scores = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)  # p = 3/4, 1/4
    assert losses.negative_entropy(scores).item() == pytest.approx(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert losses.uniform_cross_entropy(scores).item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_certainty_of_1e4_has_its_limit_and_finite_gradients(dtype):
    scores = torch.tensor([[1e4, 0.0], [0.0, -1e4]], dtype=dtype, requires_grad=True)
    top = scores.detach().float().abs().amax(dim=1)
    entropy, surrogate = losses.negative_entropy(scores), losses.uniform_cross_entropy(scores)
    assert entropy.dtype == surrogate.dtype == torch.float32
    assert torch.equal(entropy, torch.zeros(2))
    torch.testing.assert_close(surrogate, top / 2)
    # EEM no longer pulls at a certain classifier; SEM pulls with its full strength (p - 1/K).
    assert torch.equal(grad(entropy, scores).float(), torch.zeros(2, 2))
    assert torch.equal(grad(surrogate, scores).float(), torch.tensor([[0.5, -0.5], [0.5, -0.5]]))


@few
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6), st.floats(-100, 100))
def test_bounds_and_shift(values, shift):
    scores, limit = torch.tensor([values], dtype=torch.float64), math.log(len(values))
    entropy, surrogate = losses.negative_entropy(scores).item(), losses.uniform_cross_entropy(scores).item()
    assert -limit - 1e-9 <= entropy <= 0
    assert surrogate >= limit - 1e-9
    assert losses.negative_entropy(scores + shift).item() == pytest.approx(entropy, abs=1e-9)
    assert losses.uniform_cross_entropy(scores + shift).item() == pytest.approx(surrogate, abs=1e-9)


@few
@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3), st.lists(st.floats(-20, 20), min_size=3, max_size=3))
def test_surrogate_is_convex(first, second):
    a, b = torch.tensor([first], dtype=torch.float64), torch.tensor([second], dtype=torch.float64)
    ends = (losses.uniform_cross_entropy(a) + losses.uniform_cross_entropy(b)).item()
    assert 2 * losses.uniform_cross_entropy((a + b) / 2).item() <= ends + 1e-9


@pytest.mark.parametrize("loss", UNCERTAINTIES)
def test_uncertainty_gradient(loss):
    scores = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(loss, scores)


@pytest.mark.parametrize("t", [1.0, 5.0, 10.0])
def test_barrier_gradient_on_both_sides(t):
    z = torch.tensor([-2.0, -1.01 / t**2, -0.99 / t**2, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: losses.log_barrier(z, t), z)


def test_barrier_by_hand():
    z = torch.tensor([-1.0, -0.5, -0.04, 0.0, 1.0], dtype=torch.float64)
    log5 = math.log(5)
    expected = [0.0, math.log(2) / 5, 2 * log5 / 5, 2 * log5 / 5 + 0.2, 5 + 2 * log5 / 5 + 0.2]
    torch.testing.assert_close(losses.log_barrier(z, 5.0), torch.tensor(expected, dtype=torch.float64))


@few
@given(sharpness)
def test_barrier_is_smooth_where_its_parts_meet(t):
    edge, step = -1 / t**2, 1e-9 / t**2
    z = torch.tensor([edge - step, edge + step], dtype=torch.float64, requires_grad=True)
    value = losses.log_barrier(z, t)
    slope = grad(value, z)
    assert value[0].item() == pytest.approx(2 * math.log(t) / t, abs=1e-7)
    assert value[1].item() == pytest.approx(value[0].item(), abs=1e-7)
    assert slope[0].item() == pytest.approx(t, rel=1e-6)
    assert slope[1].item() == pytest.approx(t, rel=1e-6)


@few
@given(st.floats(-3, 3), st.floats(-3, 3), sharpness)
def test_barrier_is_convex_and_increasing(a, b, t):
    low, middle, high = (
        losses.log_barrier(torch.tensor(v, dtype=torch.float64), t).item() for v in (a, (a + b) / 2, b)
    )
    assert 2 * middle <= low + high + 1e-9
    assert (high - low) * (b - a) >= -1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_barrier_is_finite_everywhere(dtype):
    z = torch.tensor([-1e30, -1.0, -1e-30, 0.0, 1e4], dtype=dtype, requires_grad=True)
    value = losses.log_barrier(z, 10.0)
    assert value.dtype == torch.float32
    assert torch.isfinite(value).all()
    assert torch.isfinite(grad(value, z)).all()


@pytest.mark.parametrize("t", [1.5, 5.0, 6.1, 10.0])
def test_size_is_smallest_for_half_the_image(t):
    half = torch.zeros(1, 1, 4, 6, dtype=torch.float64)
    half[..., :3] = 1
    assert losses.absolute_size(half, t).item() == pytest.approx(2 / t * math.log(2))
    shares = np.linspace(0, 1, 101)
    sizes = losses.absolute_size(torch.tensor(shares).view(-1, 1, 1, 1).expand(-1, 1, 4, 6), t)
    assert int(sizes.argmin()) == 50
    torch.testing.assert_close(sizes, sizes.flip(0))  # ROI and background count alike
    assert (sizes[:51].diff() < 0).all()


def test_size_by_hand_and_independent_of_image_size():
    for side in (2, 16):
        mask = torch.full((1, 1, side, side), 0.2, dtype=torch.float64)
        got = losses.absolute_size(mask, 5.0).item()
        assert got == pytest.approx(-(math.log(0.2) + math.log(0.8)) / 5)


def test_size_of_empty_and_full_masks_pulls_back_with_slope_t():
    mask = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)]).requires_grad_()
    value = losses.absolute_size(mask, 5.0)
    slope = grad(value, mask).sum(dim=(1, 2, 3))
    # The vanished region's barrier has slope t; the full region's own adds the slope 1/t of its log.
    torch.testing.assert_close(slope, torch.tensor([-5.0 + 0.2, 5.0 - 0.2]))


def test_size_is_one_value_per_image():
    mask = torch.rand(3, 1, 8, 9, generator=torch.Generator().manual_seed(0))
    whole = losses.absolute_size(mask, 5.0)
    assert whole.shape == (3,)
    torch.testing.assert_close(whole, torch.cat([losses.absolute_size(m[None], 5.0) for m in mask]))


def test_foreground_size_by_hand_and_its_pull_on_an_empty_mask():
    mask = torch.full((1, 1, 4, 5), 0.3, dtype=torch.float64)
    assert losses.foreground_size(mask, 5.0).item() == pytest.approx(-math.log(0.3) / 5)
    assert losses.foreground_size(torch.ones(1, 1, 4, 5), 5.0).item() == pytest.approx(0)
    empty = torch.zeros(1, 1, 4, 5, requires_grad=True)
    torch.testing.assert_close(grad(losses.foreground_size(empty, 5.0), empty).sum(), torch.tensor(-5.0))


def test_empty_map_by_hand():
    scores = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64).view(1, 1, 1, 2)
    assert losses.empty_map(scores).item() == pytest.approx((math.log(2) + math.log(4)) / 2)  # -log(1 - sigmoid)
    target = torch.zeros(2, 1, 3, 5)
    random = torch.randn(2, 1, 3, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(random, target, reduction="none").mean((1, 2, 3))
    torch.testing.assert_close(losses.empty_map(random), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_empty_map_is_finite(dtype):
    scores = torch.tensor([-1e4, 1e4], dtype=dtype).view(2, 1, 1, 1).requires_grad_()
    value = losses.empty_map(scores)
    assert value.tolist() == [0.0, scores[1].item()]
    assert grad(value, scores).flatten().tolist() == [0.0, 1.0]


def test_quadratic_penalty_by_hand():
    z = torch.tensor([-2.0, 0.0, 0.1, 3.0], dtype=torch.float64, requires_grad=True)
    value = losses.quadratic_penalty(z)
    torch.testing.assert_close(value, torch.tensor([0.0, 0.0, 0.01, 9.0], dtype=torch.float64))
    torch.testing.assert_close(grad(value, z), torch.tensor([0.0, 0.0, 0.2, 6.0], dtype=torch.float64))
    assert torch.autograd.gradcheck(losses.quadratic_penalty, z)


def test_soft_dice_by_hand():
    p = torch.tensor([[0.5, 1.0, 0.25, 0.0], [0.5, 0.5, 0.0, 0.0]], dtype=torch.float64).view(2, 1, 2, 2)
    m = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64).view(2, 1, 2, 2)
    expected = [1 - (2 * 1.5 + 1) / (1.75 + 2 + 1), 1 - 1 / (1 + 1)]
    torch.testing.assert_close(losses.soft_dice(p, m), torch.tensor(expected, dtype=torch.float64))


def test_soft_dice_is_zero_for_the_truth_and_one_minus_f1_for_large_masks():
    truth = torch.zeros(3, 1, 100, 100)
    truth[1, :, :40], truth[2] = 1, 1
    assert losses.soft_dice(truth, truth).tolist() == [0.0, 0.0, 0.0]
    result = torch.zeros(1, 1, 100, 100)
    result[..., 20:60, :] = 1  # half of it right
    assert losses.soft_dice(result, truth[1:2]).item() == pytest.approx(0.5, abs=1e-4)


def test_soft_dice_gradient():
    random = torch.Generator().manual_seed(0)
    p = torch.rand(2, 1, 3, 4, dtype=torch.float64, generator=random, requires_grad=True)
    mask = (torch.rand(2, 1, 3, 4, generator=random) > 0.5).double()
    mask[1] = 0
    assert torch.autograd.gradcheck(lambda p: losses.soft_dice(p, mask), p)


def test_soft_dice_of_bfloat16_counts_every_pixel():
    ones = torch.ones(1, 1, 64, 65, dtype=torch.bfloat16)
    assert losses.soft_dice(ones, ones).dtype == torch.float32
    assert losses.soft_dice(ones, ones).item() == 0
