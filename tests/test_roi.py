"""From evidence to the ROI map: every range by hand, classes, the class without ROI, and where positions lie."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from histoloc.maps import class_map, largest_is_roi, place, roi, roi_at_stride
from histoloc.types import Calibration, Output

NAN = float("nan")
LEARNED = Calibration("learned", centre=(1.0, 2.0), slope=(2.0, 0.5))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def output(*images: list[list[float]], logits: list[float] | None = None) -> Output:
    """Images whose class maps are single rows, and the same class scores for all of them."""
    evidence = torch.tensor(images)[:, :, None]
    scores = torch.zeros(evidence.shape[1]) if logits is None else torch.tensor(logits)
    return Output(scores.expand(len(images), -1), evidence, {})


def values(made: Output, label: list[int], calibration: Calibration) -> list[list[float]]:
    """The ROI map at the positions, a row for each image."""
    return roi_at_stride(made, torch.tensor(label), calibration)[:, 0, 0].tolist()


def row(*numbers: float) -> list[object]:
    return [pytest.approx(list(numbers), abs=1e-6)]


def test_evidence_that_is_a_probability_is_the_map():
    made = output([[0.0, 0.25, 1.0]])
    assert values(made, [0], Calibration("probability", "probability")) == row(0, 0.25, 1)
    assert values(made, [0], Calibration("probability", "logit")) == row(0.5, sigmoid(0.25), sigmoid(1))


def test_the_learned_range_by_hand():
    made = output([[1.0, 2.0, 0.0], [2.0, 6.0, -2.0]])
    assert values(made, [0], LEARNED) == row(0.5, sigmoid(2), sigmoid(-2))
    assert values(made, [1], LEARNED) == row(0.5, sigmoid(2), sigmoid(-2))


def test_the_rule_per_image_stretches_the_map_of_the_class():
    made = output([[1.0, 2.0, 5.0], [9.0, 9.0, 9.0]], [[-4.0, 0.0, 4.0], [7.0, 3.0, 5.0]])
    assert values(made, [0, 0], Calibration("image")) == [*row(0, 0.25, 1), *row(0, 0.5, 1)]
    assert values(made, [1, 1], Calibration("image")) == [*row(0, 0, 0), *row(1, 0, 0.5)]


def test_a_methods_own_rule_gets_the_output_and_the_map_of_the_class():
    options: list[tuple[Output, Tensor, list[int]]] = []

    def rule(made: Output, map: Tensor, label: Tensor) -> Tensor:
        options.append((made, map, label.tolist()))
        return map / 10

    made = output([[1.0, 2.0], [3.0, 4.0]])
    assert values(made, [1], Calibration("image", image_map=rule)) == row(0.3, 0.4)
    assert options[0][0] is made
    assert options[0][1].tolist() == [[[[3.0, 4.0]]]]
    assert options[0][2] == [1]


def test_the_label_picks_the_map_of_each_image():
    maps = torch.arange(12.0).view(2, 3, 1, 2)
    assert class_map(maps, torch.tensor([1, 0])).tolist() == [[[[2.0, 3.0]]], [[[6.0, 7.0]]]]
    assert class_map(maps[:, :1], torch.tensor([2, 1])).tolist() == [[[[0.0, 1.0]]], [[[6.0, 7.0]]]]


def test_the_class_without_roi_gets_the_largest_of_the_others():
    made = output([[9.0, 9.0, 9.0], [0.0, 3.0, -1.0], [1.0, 2.0, -2.0]])
    assert class_map(made.evidence, torch.tensor([0]), 0).tolist() == [[[[1.0, 3.0, -1.0]]]]
    assert class_map(made.evidence, torch.tensor([2]), 0).tolist() == [[[[1.0, 2.0, -2.0]]]]
    logit = Calibration("probability", "logit", empty=0, gated=False)
    assert values(made, [0], logit) == row(sigmoid(1), sigmoid(3), sigmoid(-1))
    assert values(made, [1], logit) == row(0.5, sigmoid(3), sigmoid(-1))
    # Each class is read in its own range before they are compared: 3 is far above what is usual for class 2 alone.
    learned = Calibration("learned", centre=(0, 3, 0), slope=(1, 1, 1), empty=0, gated=False)
    assert values(made, [0], learned) == row(sigmoid(1), sigmoid(2), sigmoid(-2))


@pytest.mark.parametrize("range", ["learned", "image"])
def test_maps_are_multiplied_by_the_probability_that_there_is_roi(range):
    plain = Calibration(range, centre=(0.0,) * 3, slope=(1.0,) * 3)
    maps = [[5.0, 5.0], [0.0, 2.0], [1.0, -1.0]]
    sure, open_ = output(maps, logits=[math.log(98), 0, 0]), output(maps, logits=[0, math.log(3), 0])
    for label in (1, 2):
        (whole,) = values(sure, [label], plain)
        assert values(sure, [label], replace(plain, empty=0)) == row(*(0.04 * v for v in whole))
        assert values(open_, [label], replace(plain, empty=0)) == row(*whole), "p(empty) is 0.2"
        # Without class probabilities nothing says whether there is any.
        assert values(sure, [label], replace(plain, empty=0, gated=False)) == values(sure, [label], plain)
    logit = Calibration("probability", "logit", empty=0)
    assert values(sure, [1], logit) == row(0.04 * sigmoid(0), 0.04 * sigmoid(2))
    assert max(values(sure, [0], replace(plain, empty=0))[0]) <= 0.04


def test_one_map_for_all_classes():
    made = output([[0.0, 1.0, 2.0]])._replace(logits=torch.tensor([[math.log(3), 0.0]]))
    for label in (0, 1):
        learned = Calibration("learned", centre=(1.0,), slope=(3.0,))
        assert values(made, [label], learned) == row(sigmoid(-3), 0.5, sigmoid(3))
        assert values(made, [label], replace(learned, range="image", empty=0)) == row(0, 0.25, 0.5)


@pytest.mark.parametrize("stride", [8, 32])
def test_positions_beyond_the_image_are_cropped(stride):
    # At its centre each position says where it lies; squeezed, the far edge was 7 px off at stride 8, 31 px at 32.
    height, width = 433, 641
    rows, columns = -(-height // stride), -(-width // stride)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    for position, side, axis in ((y, height, 2), (x, width, 3)):
        evidence = ((position + 0.5) * stride / 1000)[None, None]
        calibration = Calibration("probability", "probability", stride)
        map = roi(Output(torch.zeros(1, 1), evidence, {}), torch.tensor([0]), calibration, (height, width))
        assert map.shape == (1, 1, height, width)
        last = (-(-side // stride) - 0.5) * stride  # beyond the outermost centres the map goes on as it is there
        wanted = (torch.arange(side) + 0.5).clamp(stride / 2, last)
        torch.testing.assert_close(
            1000 * map.transpose(axis, 3), wanted.expand_as(map.transpose(axis, 3)), rtol=0, atol=0.01
        )


def test_place_by_hand():
    assert place(torch.tensor([[[[0.0, 1.0]]]]), 2, (1, 3)).tolist() == [[[[0.0, 0.25, 0.75]]]]
    assert place(torch.tensor([[[[0.7]]]]), 1, (2, 3)).flatten().tolist() == pytest.approx([0.7] * 6), "one for all"


def test_nan_is_not_hidden():
    made = output([[1.0, NAN], [0.0, 0.0]], [[1.0, 2.0], [0.0, 0.0]])
    whole = roi_at_stride(made, torch.tensor([0, 0]), Calibration("image"))
    assert whole[0].isnan().all()
    assert whole[1].flatten().tolist() == [0, 1]
    learned = roi_at_stride(made, torch.tensor([0, 1]), replace(LEARNED, empty=1))
    assert learned.isnan().flatten().tolist() == [False, True, False, False]
    sunk = made._replace(logits=torch.full((2, 2), NAN))
    assert roi_at_stride(sunk, torch.tensor([0, 0]), replace(LEARNED, empty=1)).isnan().all()


def test_low_precision_and_inference_mode_change_nothing_but_digits():
    made = output([[1.0, 2.0, 5.0], [2.0, 0.0, 1.0]])
    before = made.evidence.clone()
    with torch.inference_mode():
        low = roi(made._replace(evidence=made.evidence.bfloat16()), torch.tensor([0]), LEARNED, (4, 6))
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, roi(made, torch.tensor([0]), LEARNED, (4, 6)), rtol=0, atol=0.01)
    assert torch.equal(made.evidence, before)


def test_where_the_class_has_the_largest_map():
    made = output([[2.0, 1.0, 0.0, 1.0], [1.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 2.0]])
    size = (1, 4)

    def largest(label: int, empty: int | None = None) -> list[bool]:
        return largest_is_roi(made, torch.tensor([label]), Calibration("image", empty=empty), size).flatten().tolist()

    assert largest(0) == [True, False, False, False]
    assert largest(1) == [False, True, False, False], "where all are zero, no class is the largest"
    assert largest(2) == [False, False, False, True]
    assert largest(0, empty=0) == [False, True, False, True], "any class with ROI"
    assert largest(1, empty=0) == largest(1)
