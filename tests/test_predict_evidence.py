"""Predictor.evidence: the preprocessing of predict, batches of one size, and maps between two constants."""

import numpy as np
import pytest
import torch

from histoloc.errors import InputError
from histoloc.maps import resize
from histoloc.predict import load


@pytest.fixture(scope="module")
def gap(gap_run):
    return load(gap_run, "cpu")


@pytest.fixture(scope="module")
def maxmin(maxmin_run):
    return load(maxmin_run, "cpu")


def tiles(count: int, height: int = 96, width: int = 128) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def test_shapes_and_types(gap, maxmin):
    for predictor, maps in ((gap, 2), (maxmin, 2)):
        probabilities, values = predictor.evidence(tiles(3))
        # 96 x 128 px become 64 x 85 by --small-side 64, and the network's stride makes 2 x 3 positions of them.
        assert probabilities.shape == (3, 2)
        assert values.shape == (3, maps, 2, 3)
        assert probabilities.dtype == values.dtype == np.float32


def test_probabilities_and_maps_are_those_of_predict(gap, maxmin):
    given = tiles(3)
    for predictor in (gap, maxmin):
        probabilities, values = predictor.evidence(given)
        for tile, own, evidence in zip(given, probabilities, values, strict=True):
            found = predictor.predict(tile)
            np.testing.assert_allclose(own, found.probabilities, atol=1e-6)
            if predictor is maxmin:  # whose own map is a mixture of all classes' maps
                continue
            chosen = evidence[own.argmax()][None, None]
            resized = resize(torch.from_numpy(chosen), (64, 85)).numpy()
            stretched = predictor.roi_of(resized, float(chosen.min()), float(chosen.max()))
            roi = resize(torch.from_numpy(stretched), tile.shape[:2])[0, 0].numpy()
            np.testing.assert_allclose(roi, found.roi, atol=1e-4)


def test_a_tile_alone_and_among_others(gap, maxmin):
    given = tiles(5)
    for predictor in (gap, maxmin):
        whole = predictor.evidence(given)
        for i, tile in enumerate(given):
            for together, alone in zip(whole, predictor.evidence([tile]), strict=True):
                np.testing.assert_allclose(together[i], alone[0], rtol=1e-5, atol=1e-5)


def test_low_precision_is_near(gap):
    exact, near = (gap.evidence(tiles(2), precision=p)[1] for p in ("float32", "bf16"))
    assert near.dtype == np.float32
    assert (exact != near).any()
    np.testing.assert_allclose(near, exact, atol=0.05 * np.abs(exact).max())


def test_the_mode_of_the_network_is_restored(gap_run):
    predictor = load(gap_run, "cpu")
    predictor.method.train()
    first = predictor.evidence(tiles(1))[1]
    assert predictor.method.training
    predictor.method.eval()
    np.testing.assert_array_equal(predictor.evidence(tiles(1))[1], first)


@pytest.mark.parametrize(
    "wrong", [[], tiles(1) + tiles(1, 64, 64), [tiles(1)[0][..., 0]], [tiles(1)[0] / 255], tiles(1, 16, 64)]
)
def test_tiles_that_are_no_batch_are_refused(gap, wrong):
    with pytest.raises(InputError):
        gap.evidence(wrong)


def test_roi_of_the_learned_range(gap):
    learned = gap.config.evidence_range
    assert learned is not None
    values = gap.evidence(tiles(2))[1]
    roi = gap.roi_of(values, learned.low, learned.high)
    low, high = (np.reshape(bound, (2, 1, 1)) for bound in (learned.low, learned.high))
    np.testing.assert_allclose(roi, np.clip((values - low) / (high - low), 0, 1), atol=1e-5)
    assert roi.dtype == np.float32
    band = np.array(values[0, 1])  # rows of one class's map, as they come from a read-only file
    band.flags.writeable = False
    np.testing.assert_array_equal(gap.roi_of(band, learned.low[1], learned.high[1]), roi[0, 1])
    np.testing.assert_array_equal(gap.roi_of(values[0], learned.low, learned.high), roi[0])


def test_all_ones_needs_no_range(allones_run):
    predictor = load(allones_run, "cpu")
    values = predictor.evidence(tiles(2))[1]
    assert predictor.method.evidence_is_roi
    np.testing.assert_array_equal(predictor.roi_of(values), np.ones((2, 1, 1, 1)))
