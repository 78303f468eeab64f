"""The scene whose best map is known."""

import numpy as np
import pytest

from histoloc.data.images import read_mask
from histoloc.data.table import read_table
from histoloc.datasets.synthetic.dataset import CLASSES, render, synthetic_table
from histoloc.datasets.synthetic.discs import PERIOD, SHARE, disc


def drawn(label, count=12):
    return [disc(np.random.default_rng([7, i]), label, 128, 160) for i in range(count)]


@pytest.mark.parametrize("label", CLASSES)
def test_one_disc_of_the_promised_size(label):
    for image, inside in drawn(label):
        assert image.shape == (128, 160, 3)
        assert image.dtype == np.uint8
        y, x = np.nonzero(inside)
        area = inside.sum()
        assert SHARE[0] - 0.02 <= area / inside.size <= SHARE[1] + 0.02
        radius = np.sqrt(area / np.pi)
        distance = np.hypot(y - y.mean(), x - x.mean())
        assert distance.max() <= radius + 1.5  # all pixels lie in one circle of that area


def dominant_period(image, inside):
    """Of the strongest wave inside the disc, in pixels."""
    grey = np.where(inside, image.mean(axis=2), 0.0)
    grey = np.where(inside, grey - grey[inside].mean(), 0.0)
    power = np.abs(np.fft.fft2(grey)) ** 2
    fy, fx = np.meshgrid(np.fft.fftfreq(grey.shape[0]), np.fft.fftfreq(grey.shape[1]), indexing="ij")
    frequency = np.hypot(fy, fx)
    power[frequency < 1 / 40] = 0
    return 1 / frequency.ravel()[power.argmax()]


@pytest.mark.parametrize("label", CLASSES)
def test_stripes_inside_tell_the_class(label):
    periods = [dominant_period(image, inside) for image, inside in drawn(label)]
    assert np.median(periods) == pytest.approx(PERIOD[label], rel=0.1)


def test_outside_and_colour_tell_nothing():
    # Same seed, other label: only the disc's pixels differ.
    for (one, inside), (other, same) in zip(drawn("benign"), drawn("malignant"), strict=True):
        assert np.array_equal(inside, same)
        assert np.array_equal(one[~inside], other[~inside])
        assert not np.array_equal(one[inside], other[inside])


def test_the_data_set_holds_discs(tmp_path):
    table = read_table(synthetic_table(out=tmp_path, count=10, seed=3, height=64, width=64, scene="disc").table)
    sample = table.samples[0]
    assert sample.mask is not None
    label = CLASSES[CLASSES.index("benign")]
    expected = render(label, seed=3, index=0, height=64, width=64, scene="disc")
    assert np.array_equal(read_mask(sample.mask), expected.instances > 0)
