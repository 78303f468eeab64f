import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sklearn

from histoloc.errors import InputError
from histoloc.metrics import functional as fn

MASKS = arrays(bool, (6, 7))


def images(count: int = 4, size: tuple[int, int] = (20, 30), seed: int = 0):
    random = np.random.default_rng(seed)
    truth = [random.random(size) < share for share in np.linspace(0.2, 0.8, count)]
    roi = [np.clip(0.3 * t + random.random(size), 0, 1).astype(np.float32) for t in truth]
    return roi, truth


# --- masks ---


def test_counts_and_dice_by_hand_2x2():
    pred, true = np.array([[1, 1], [0, 0]], dtype=bool), np.array([[1, 0], [0, 0]], dtype=bool)
    counts = fn.pixel_counts(pred, true)
    assert [int(n) for n in counts] == [1, 1, 2, 0]
    assert fn.dice(pred, true) == pytest.approx(200 / 3)
    assert fn.dice(~pred, ~true) == pytest.approx(80)


def test_dice_by_hand_3x3():
    pred = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=bool)
    true = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=bool)
    assert fn.dice(pred, true) == pytest.approx(100 * 4 / 7)
    assert fn.dice(~pred, ~true) == pytest.approx(100 * 8 / 11)


def test_undefined_dice():
    none, some = np.zeros((3, 3), dtype=bool), np.eye(3, dtype=bool)
    assert np.isnan(fn.dice(some, none))
    assert np.isnan(fn.dice(none, none))
    assert fn.dice(none, some) == 0
    counts = fn.pixel_counts(none, none)
    assert np.isnan(fn.f1_plus(counts))
    assert float(fn.f1_minus(counts)) == 100
    assert np.isnan(fn.f1_minus(fn.pixel_counts(some, ~none)))


def test_dice_against_scikit_learn():
    _, truth = images()
    pred = np.random.default_rng(1).random(truth[0].shape) < 0.5
    for true in truth:
        counts = fn.pixel_counts(pred, true)
        y, z = true.ravel(), pred.ravel()
        assert float(fn.f1_plus(counts)) == pytest.approx(100 * float(sklearn.f1_score(y, z)))
        assert float(fn.f1_minus(counts)) == pytest.approx(100 * float(sklearn.f1_score(y, z, pos_label=0)))
        assert sklearn.confusion_matrix(y, z).ravel().tolist() == [counts.tn, counts.fp, counts.fn, counts.tp]


@settings(max_examples=50, deadline=None)
@given(MASKS, MASKS)
def test_invariances(pred, true):
    counts = fn.pixel_counts(pred, true)
    inverted = fn.pixel_counts(~pred, ~true)
    np.testing.assert_equal(fn.f1_plus(inverted), fn.f1_minus(counts))
    np.testing.assert_equal(fn.f1_minus(inverted), fn.f1_plus(counts))
    assert inverted == counts.complement()
    assert fn.pixel_counts(pred[::-1, ::-1], true[::-1, ::-1]) == counts
    assert sum(counts) == true.size


def test_integer_masks_mean_not_zero():
    assert fn.dice(np.array([[0, 255]], dtype=np.uint8), np.array([[0, 3]])) == 100


@pytest.mark.parametrize(
    ("pred", "message"),
    [
        (np.zeros((2, 3), dtype=bool), "one size"),
        (np.zeros((2, 2)), "bool or integers"),
        (np.zeros((2, 2, 1), dtype=bool), "bool or integers"),
        (np.zeros((0, 2), dtype=bool), "bool or integers"),
    ],
)
def test_masks_that_do_not_fit(pred, message):
    with pytest.raises(InputError, match=message):
        fn.pixel_counts(pred, np.zeros((2, 2), dtype=bool))


# --- maps ---


def test_every_edge_begins_its_bin():
    histogram = fn.map_histogram(fn.EDGES[None], np.ones((1, fn.BINS), dtype=bool))
    assert (histogram[1] == 1).all()
    assert not histogram[0].any()


def test_just_below_every_edge_is_the_bin_before():
    below = np.nextafter(fn.EDGES[1:], np.float32(0))[None]
    histogram = fn.map_histogram(below, np.zeros(below.shape, dtype=bool))
    assert histogram[0].tolist() == [1] * 1000 + [0]


def test_histogram_against_numpy():
    roi, truth = images(1, (200, 300))
    got = fn.map_histogram(roi[0], truth[0])
    edges = np.append(fn.EDGES, np.float32(2))
    assert np.array_equal(got[0], np.histogram(roi[0][~truth[0]], edges)[0])
    assert np.array_equal(got[1], np.histogram(roi[0][truth[0]], edges)[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions(dtype):
    roi = np.array([[0.0, 0.5, 1.0]], dtype=dtype)
    assert fn.map_histogram(roi, np.ones((1, 3), dtype=bool))[1].nonzero()[0].tolist() == [0, 500, 1000]


def test_rounding_is_clipped_and_more_is_refused():
    true = np.ones((1, 2), dtype=bool)
    histogram = fn.map_histogram(np.array([[-1e-7, 1 + 1e-7]], dtype=np.float32), true)
    assert histogram[1].nonzero()[0].tolist() == [0, 1000]
    for bad, message in [
        ([[0, 1.01]], "0 to 1.01"),
        ([[-0.5, 1]], "-0.5"),
        ([[0, np.nan]], "NaN"),
        ([[0, np.inf]], "inf"),
    ]:
        with pytest.raises(InputError, match=message):
            fn.map_histogram(np.array(bad, dtype=np.float32), true)


def test_pxap_by_hand():
    roi = np.array([[0.9, 0.8, 0.3, 0.1]], dtype=np.float32)
    true = np.array([[True, False, True, False]])
    assert float(fn.pxap(fn.map_histogram(roi, true))) == pytest.approx(100 * (1 * 0.5 + 2 / 3 * 0.5))


@pytest.mark.parametrize("constant", [0.0, 0.3, 0.9995, 1.0])
def test_pxap_of_a_constant_map_is_the_prevalence(constant):
    _, truth = images()
    pooled = sum(fn.map_histogram(np.full(t.shape, constant, dtype=np.float32), t).astype(int) for t in truth)
    assert float(fn.pxap(np.asarray(pooled))) == pytest.approx(100 * np.mean(truth))


def test_pxap_of_perfect_and_absent():
    _, truth = images(1)
    assert float(fn.pxap(fn.map_histogram(truth[0].astype(np.float32), truth[0]))) == 100
    nothing = np.zeros_like(truth[0])
    assert np.isnan(fn.pxap(fn.map_histogram(truth[0].astype(np.float32), nothing)))


def test_pxap_on_the_grid_against_scikit_learn():
    random = np.random.default_rng(0)
    truth = random.random((3, 20, 30)) < 0.3
    roi = fn.EDGES[np.clip(random.integers(0, 900, truth.shape) + 200 * truth, 0, 1000)]
    histograms = np.stack([fn.map_histogram(m, t) for m, t in zip(roi, truth, strict=True)])
    expected = 100 * sklearn.average_precision_score(truth.ravel(), roi.ravel())
    assert float(fn.pxap(histograms.sum(axis=0))) == pytest.approx(expected, abs=1e-10)
    each = [100 * sklearn.average_precision_score(t.ravel(), m.ravel()) for m, t in zip(roi, truth, strict=True)]
    assert fn.pxap(histograms) == pytest.approx(each)


def test_counts_at_thresholds_equal_counts_of_cut_maps():
    roi, truth = images(2)
    counts = fn.counts_at_thresholds(np.stack([fn.map_histogram(m, t) for m, t in zip(roi, truth, strict=True)]))
    assert counts.tp.shape == (2, 101)
    for i in range(2):
        for j, threshold in enumerate(fn.CURVE_THRESHOLDS.tolist()):
            expected = fn.pixel_counts(roi[i] >= threshold, truth[i])
            assert [int(c[i, j]) for c in counts] == [int(c) for c in expected]
