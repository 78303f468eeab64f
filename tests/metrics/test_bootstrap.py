import numpy as np
import pytest

from histoloc.metrics import bootstrap as boot
from histoloc.metrics import functional as fn


def test_weights_are_resamples():
    (weights,) = boot.resampling_weights(7, 2000, seed=3)
    assert weights.shape == (2000, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert (weights == weights.round()).all()
    # Multinomial(7, 1/7): mean 1, variance 6/7.
    assert weights.mean(axis=0) == pytest.approx(np.ones(7), abs=0.1)
    assert weights.var() == pytest.approx(6 / 7, abs=0.05)


def test_blocks_and_more_replicates_change_nothing(monkeypatch):
    (whole,) = boot.resampling_weights(5, 11, seed=0)
    monkeypatch.setattr(boot, "_WEIGHTS_PER_BLOCK", 20)
    blocks = list(boot.resampling_weights(5, 11, seed=0))
    assert [len(block) for block in blocks] == [4, 4, 3]
    assert np.array_equal(np.concatenate(blocks), whole)
    assert np.array_equal(next(boot.resampling_weights(5, 3, seed=0)), whole[:3])
    assert not np.array_equal(next(boot.resampling_weights(5, 3, seed=1)), whole[:3])


def test_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    one = np.ones((400, 1))
    images = boot.Units([""] * 400)
    samples = boot.bootstrap(lambda w: {"mean": boot.weighted_ratio(w, values[:, None], one)[:, 0]}, images, 4000, 0)[
        "mean"
    ]
    low, high = boot.percentile_interval(samples)
    half = 100 * 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((100 * values.mean() - half, 100 * values.mean() + half), abs=0.06)


def test_percentiles_leave_out_the_undefined():
    assert boot.percentile_interval(np.array([np.nan, 1.0, 2.0, 3.0]), level=0.5) == (1.5, 2.5)
    assert np.isnan(boot.percentile_interval(np.array([np.nan]))).all()


def test_no_replicates():
    assert boot.bootstrap(lambda w: {"x": w[:, 0]}, boot.Units([""] * 4), 0, seed=0) == {}


def test_weighted_sums_equal_repeated_images(monkeypatch):
    monkeypatch.setattr(boot, "_IMAGES_PER_BLOCK", 2)
    random = np.random.default_rng(0)
    histograms = random.integers(0, 50, (5, 2, fn.BINS)).astype(np.int32)
    numerator, denominator = random.random((2, 5, 3))
    (weights,) = boot.resampling_weights(5, 4, seed=0)
    pooled = boot.weighted_sum(weights, histograms)
    ratio = boot.weighted_ratio(weights, numerator, denominator)
    for i, row in enumerate(weights.astype(int)):
        drawn = np.repeat(np.arange(5), row)
        assert np.array_equal(pooled[i], histograms[drawn].sum(axis=0, dtype=np.int64))
        assert ratio[i] == pytest.approx(100 * numerator[drawn].sum(axis=0) / denominator[drawn].sum(axis=0))
