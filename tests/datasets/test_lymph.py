"""The scene of nests in lymph nodes."""

import time
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from histoloc.data.images import read_mask
from histoloc.data.table import read_table
from histoloc.datasets.synthetic.dataset import SyntheticImage, render, scene_classes, synthetic_table
from histoloc.datasets.synthetic.lymph import NODE_CLASSES, Cells, NodeLabel, _put, lymph

COUNT = 16


@cache
def images(label: NodeLabel) -> tuple[SyntheticImage, ...]:
    return tuple(render(label, seed=5, index=i, height=128, width=192, scene="nests") for i in range(COUNT))


def test_only_tumour_has_nests_and_always_one_that_can_be_seen():
    assert scene_classes("nests") == NODE_CLASSES == ("normal", "tumour")
    assert not any(sample.instances.any() for sample in images("normal"))
    shares = [(sample.instances > 0).mean() for sample in images("tumour")]
    assert min(shares) * 128 * 192 > 100  # pixels: a cell or two
    assert min(shares) < 0.1  # from clusters
    assert max(shares) > 0.6  # to sheets


@pytest.mark.parametrize("label", NODE_CLASSES)
def test_an_image_is_a_function_of_seed_and_index(label):
    sample = images(label)[2]
    again = render(label, seed=5, index=2, height=128, width=192, scene="nests")
    assert sample.image.tobytes() == again.image.tobytes()
    assert sample.instances.tobytes() == again.instances.tobytes()
    assert (sample.image.shape, sample.image.dtype, sample.label) == ((128, 192, 3), np.uint8, label)
    np.testing.assert_array_equal(np.unique(sample.instances), np.arange(sample.instances.max() + 1))


def test_colour_alone_does_not_tell_nests():
    """Nests are lighter than what surrounds them in many images, darker in some."""
    lighter = []
    for sample in images("tumour"):
        near = np.asarray(ndimage.distance_transform_edt(sample.instances == 0))
        nest, beside = near == 0, (near > 2) & (near < 25)
        if beside.sum() > 400:
            lighter.append(sample.image[nest].mean() > sample.image[beside].mean())
    assert 0.2 < np.mean(lighter) < 0.95


def test_nuclei_have_the_size_of_their_kind():
    where = np.zeros((200, 200), dtype=bool)
    where[40:160, 40:160] = True
    cells = Cells(pitch=30, radius=6, dark=0.5, spread=0, long=0, share=1, jitter=0)
    drawn = _put(np.random.default_rng(0), where, cells) > 0.05
    labels, count = ndimage.label(drawn)
    areas = ndimage.sum_labels(drawn, labels, range(1, count + 1))
    assert count == pytest.approx(120 * 120 / (30 * 30 * 0.87), rel=0.3)
    np.testing.assert_allclose(areas, np.pi * 6**2, rtol=0.15)
    outside = np.asarray(ndimage.distance_transform_edt(~where))
    assert outside[drawn].max() <= 8


def test_drawing_is_quick():
    start = time.process_time()
    lymph(np.random.default_rng(3), "tumour", (348, 504), 14)
    assert time.process_time() - start < 2  # half a second, and slack for slow machines


def test_the_data_set_says_normal_and_tumour(tmp_path):
    table = read_table(synthetic_table(out=tmp_path, count=10, seed=3, height=64, width=64, scene="nests").table)
    assert {sample.label for sample in table.samples} == {"normal", "tumour"}
    for sample in table.samples:
        assert sample.mask is not None
        assert read_mask(sample.mask).any() == (sample.label == "tumour")
