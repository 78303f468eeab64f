import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score

from histoloc.errors import InputError
from histoloc.evaluation import summary_line
from histoloc.metrics import LocalizationMetrics, functional

CLASSES = ("benign", "malignant", "normal")
SIZE = (16, 20)


def samples(count: int = 9) -> list[tuple]:
    """Arguments of `update`: three classes; the last image has no ROI, the first no background."""
    random = np.random.default_rng(0)
    made = []
    for i in range(count):
        truth = random.random(SIZE) < i / count
        truth = np.ones(SIZE, dtype=bool) if i == 0 else truth
        truth = np.zeros(SIZE, dtype=bool) if i == count - 1 else truth
        roi = np.clip(0.4 * truth + 0.7 * random.random(SIZE), 0, 1).astype(np.float32)
        probabilities = random.dirichlet([1, 1, 1])
        made.append((f"img_{i}.png", i % 3, probabilities, roi, roi >= 0.5, truth))
    return made


def collect(rows) -> LocalizationMetrics:
    metrics = LocalizationMetrics(CLASSES)
    for row in rows:
        metrics.update(*row)
    return metrics


def test_numbers_against_scikit_learn():
    rows = samples()
    got = collect(rows).compute(bootstrap=50)
    label = np.array([row[1] for row in rows])
    predicted = np.array([row[2].argmax() for row in rows])
    assert got.images == 9
    assert got.cl_error.value == pytest.approx(100 * np.mean(label != predicted))
    assert got.cl_error.n == 9
    assert got.confusion == confusion_matrix(label, predicted).tolist()
    for k, name in enumerate(CLASSES):
        assert got.recall[name].value == pytest.approx(100 * np.mean(predicted[label == k] == k))
        assert got.recall[name].n == 3

    plus = [100 * f1_score(t.ravel(), p.ravel()) for *_, p, t in rows if t.any()]
    minus = [100 * f1_score(t.ravel(), p.ravel(), pos_label=0) for *_, p, t in rows if not t.all()]
    assert got.f1_plus.value == pytest.approx(np.mean(plus))
    assert got.f1_minus.value == pytest.approx(np.mean(minus))
    assert got.f1_mean.value == pytest.approx((np.mean(plus) + np.mean(minus)) / 2)
    assert (got.f1_plus.n, got.f1_minus.n, got.f1_mean.n) == (8, 8, 9)

    roi, pred, true = (np.stack([row[i] for row in rows]) for i in (3, 4, 5))
    assert got.tpr.value == pytest.approx(100 * pred[true].mean())
    assert got.tnr.value == pytest.approx(100 * (~pred)[~true].mean())
    assert (got.tpr.n, got.tnr.n) == (8, 8)
    assert got.tnr.value is not None
    shares = 100 * confusion_matrix(true.ravel(), pred.ravel(), normalize="true").T
    assert np.array(got.pixel_confusion) == pytest.approx(shares)
    assert got.specificity_without_roi.value == pytest.approx(100 * (~pred[-1]).mean())
    assert got.specificity_without_roi.n == 1
    on_grid = np.floor(roi.astype(np.float64) * 1000 + 1e-4)
    assert got.pxap.value == pytest.approx(100 * average_precision_score(true.ravel(), on_grid.ravel()), abs=0.01)
    assert got.pxap.n == 9


def test_threshold_curve_and_oracle():
    got = collect(samples()).compute(bootstrap=0)
    curve = got.threshold_curve
    at = curve["threshold"].index(0.5)
    assert curve["f1_plus"][at] == pytest.approx(got.f1_plus.value)
    assert curve["f1_minus"][at] == pytest.approx(got.f1_minus.value)
    mean = (np.array(curve["f1_plus"], dtype=float) + np.array(curve["f1_minus"], dtype=float)) / 2
    assert len(mean) == 101
    assert got.oracle_threshold.value == curve["threshold"][mean.argmax()]
    assert got.oracle_f1_mean.value == pytest.approx(mean.max())
    assert got.oracle_f1_plus.value == pytest.approx(curve["f1_plus"][mean.argmax()])
    assert got.oracle_f1_minus.value == pytest.approx(curve["f1_minus"][mean.argmax()])


def test_oracle_takes_the_lowest_of_equal_thresholds():
    metrics = LocalizationMetrics(["a"])
    true = np.array([[True, False]])
    for i in range(3):
        metrics.update(f"{i}", 0, None, np.array([[0.8, 0.2]], dtype=np.float32), true, true)
    got = metrics.compute()
    assert (got.oracle_threshold.value, got.oracle_threshold.low, got.oracle_threshold.high) == (
        0.21,
        0.21,
        0.21,
    )
    assert got.oracle_f1_mean.value == 100


def test_all_ones_has_the_closed_form():
    truth = [t for *_, t in samples()]
    ones = np.ones(SIZE, dtype=np.float32)
    got = collect((f"{i}", 0, None, ones, ones >= 0.5, t) for i, t in enumerate(truth)).compute(bootstrap=20)
    p = np.array([t.mean() for t in truth if t.any()])
    assert got.f1_plus.value == pytest.approx(100 * np.mean(2 * p / (1 + p)))
    assert got.f1_minus.value == 0
    assert (got.tpr.value, got.tnr.value) == (100, 0)
    assert got.pxap.value == pytest.approx(100 * np.mean(truth))
    assert got.cl_error.value is None
    assert got.cl_error.n == 0
    assert np.sum(got.confusion) == 0


def test_intervals_hold_the_value_and_depend_on_the_seed_only():
    first, again, other = (collect(samples()).compute(bootstrap=300, seed=s).to_dict() for s in (0, 0, 1))
    assert first == again
    assert first != other
    for key in ("cl_error", "f1_plus", "f1_minus", "f1_mean", "tpr", "tnr", "pxap", "oracle_f1_mean"):
        low, value, high = (first[key][part] for part in ("low", "value", "high"))
        assert low < high, key
        assert low <= value <= high, key
        assert other[key]["value"] == value
        assert other[key]["low"] == pytest.approx(low, abs=8)
    without = collect(samples()).compute(bootstrap=0).to_dict()
    assert without["f1_plus"] == {"value": first["f1_plus"]["value"], "low": None, "high": None, "n": 8, "groups": None}


def test_numbers_stay_what_they_were():
    """Written by version 0.1: value and interval for this seed."""
    got = collect(samples()).compute(bootstrap=200, seed=5)
    recorded = {
        "cl_error": (77.77777777777779, 44.44444444444444, 100.0),
        "f1_plus": (75.6877587364962, 66.05807155465567, 85.73915026794586),
        "f1_mean": (77.10254461953863, 72.80033256413698, 80.98521362956839),
        "tnr": (73.37579617834395, 71.01265249972849, 74.86307564859715),
        "pxap": (91.00714078619167, 85.3144645340531, 95.38205482058778),
    }
    for key, numbers in recorded.items():
        estimate = getattr(got, key)
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx(numbers, rel=1e-12), key


def test_interval_is_that_of_resampled_images():
    rows = samples()
    got = collect(rows).compute(bootstrap=200, seed=5)
    random = np.random.default_rng(5)
    pxap, tpr = [], []
    for _ in range(200):
        drawn = random.integers(len(rows), size=len(rows))
        again = collect((f"{j}", *rows[i][1:]) for j, i in enumerate(drawn)).compute(bootstrap=0)
        pxap.append(again.pxap.value)
        tpr.append(again.tpr.value)
    assert (got.pxap.low, got.pxap.high) == pytest.approx(np.percentile(pxap, [2.5, 97.5]))
    assert (got.tpr.low, got.tpr.high) == pytest.approx(np.percentile(tpr, [2.5, 97.5]))


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_spread_over_processes_changes_nothing(parts):
    rows = samples()
    expected = collect(rows)
    for order in itertools.permutations(range(parts)):
        merged = LocalizationMetrics(CLASSES)
        for part in order:
            merged.merge(collect(rows[part::parts]).state())
        assert merged.compute(bootstrap=100) == expected.compute(bootstrap=100)
        assert merged.per_image().equals(expected.per_image())


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(9)), st.booleans(), st.booleans())
def test_order_and_flips_change_nothing(order, vertical, horizontal):
    rows = samples()
    flip = (slice(None, None, -1 if vertical else 1), slice(None, None, -1 if horizontal else 1))
    moved = ((*rows[i][:3], *(array[flip] for array in rows[i][3:])) for i in order)
    assert collect(moved).compute(bootstrap=10) == collect(rows).compute(bootstrap=10)


def test_images_without_roi_are_in_the_pool_of_pxap():
    """Two images by hand: with ROI precision 1 and 2/3 at recall 1/2 and 1; the other adds a false alarm at 0.8."""
    with_roi = np.array([[0.9, 0.7, 0.5, 0.1]], dtype=np.float32), np.array([[1, 0, 1, 0]], dtype=bool)
    without = np.array([[0.8, 0.2, 0.2, 0.2]], dtype=np.float32), np.zeros((1, 4), dtype=bool)
    metrics = LocalizationMetrics(CLASSES)
    for name, (roi, truth) in {"tumour": with_roi, "normal": without}.items():
        metrics.update(name, 0, None, roi, roi >= 0.5, truth)
    got = metrics.compute(bootstrap=0)
    assert got.pxap.value == pytest.approx(100 * (1 + 2 / 4) / 2)
    assert got.pxap_with_roi.value == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert (got.pxap.n, got.pxap_with_roi.n, got.pxap_images_without_roi) == (2, 1, 1)
    assert ", PxAP over all 75.00, PxAP over images with ROI 83.33, specificity without ROI 75.00" in summary_line(got)
    alone = LocalizationMetrics(CLASSES)
    alone.update("tumour", 0, None, with_roi[0], None, with_roi[1])
    assert alone.compute(bootstrap=0).pxap == got.pxap_with_roi
    assert alone.compute(bootstrap=0).pxap_images_without_roi == 0


def test_pxap_with_roi_is_that_of_the_other_images():
    rows = samples()
    everything, others = collect(rows).compute(bootstrap=0), collect(rows[:-1]).compute(bootstrap=0)
    assert everything.pxap_images_without_roi == 1
    assert everything.pxap_with_roi == others.pxap == others.pxap_with_roi
    assert everything.pxap.value != others.pxap.value


def test_complement_swaps_f1():
    rows = samples()
    got = collect(rows).compute(bootstrap=0)
    swapped = collect((*row[:3], None, ~row[4], ~row[5]) for row in rows).compute(bootstrap=0)
    assert (swapped.f1_plus, swapped.f1_minus) == (got.f1_minus, got.f1_plus)
    assert (swapped.tpr, swapped.tnr) == (got.tnr, got.tpr)


def test_merging_counts_padding_once_and_refuses_contradictions():
    rows = samples()
    metrics = collect(rows[:5])
    metrics.merge(collect(rows[4:]).state())
    assert len(metrics) == 9
    assert metrics.compute(bootstrap=0) == collect(rows).compute(bootstrap=0)
    with pytest.raises(InputError, match=r"img_0\.png"):
        metrics.merge(collect([(rows[0][0], *rows[1][1:])]).state())
    with pytest.raises(InputError, match="classes"):
        metrics.merge(LocalizationMetrics(["a", "b"]).state())


def test_state_survives_npz(tmp_path: Path):
    np.savez(tmp_path / "state.npz", **collect(samples()).state())  # pyright: ignore[reportArgumentType]
    merged = LocalizationMetrics(CLASSES)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        merged.merge(dict(state))
    assert merged.compute() == collect(samples()).compute()
    empty = LocalizationMetrics(CLASSES).state()
    merged.merge(empty)
    assert len(merged) == 9
    assert empty["histogram"].shape == (0, 2, functional.BINS)


def test_size_of_the_state():
    state = collect(samples()).state()
    assert sum(array.nbytes for array in state.values()) / len(state["name"]) < 8300


def test_images_without_masks_maps_or_classifier():
    rows = samples(3)
    metrics = LocalizationMetrics(CLASSES)
    metrics.update("label only", 0, rows[0][2])
    metrics.update("no truth", 1, rows[1][2], rows[1][3], rows[1][4])
    metrics.update("mask only", 2, None, None, rows[1][4], rows[1][5])
    metrics.update("truth only", 2, rows[2][2], None, None, rows[1][5])
    got = metrics.compute(bootstrap=10)
    assert got.cl_error.n == 3
    assert (got.f1_plus.n, got.tpr.n, got.pxap.n, got.pxap.value) == (1, 1, 0, None)
    assert got.oracle_threshold.value is None
    assert got.threshold_curve["f1_plus"] == [None] * 101
    json.dumps(got.to_dict(), allow_nan=False)
    table = metrics.per_image().set_index("name")
    missing = table.isna()
    assert table.loc["no truth", "roi_fraction"] == pytest.approx(rows[1][4].mean())
    assert missing.loc["no truth", "true_fraction"]
    assert missing.loc["no truth", "f1_plus"]
    assert missing.loc["truth only", "roi_fraction"]
    assert table.loc["truth only", "true_fraction"] == pytest.approx(rows[1][5].mean())
    assert missing.loc["mask only", "predicted"]
    assert table["correct"].isna().tolist() == [False, True, False, False]
    assert metrics.per_image().equals(_round_trip(metrics).per_image())


def _round_trip(metrics: LocalizationMetrics) -> LocalizationMetrics:
    again = LocalizationMetrics(metrics.classes)
    again.merge(metrics.state())
    return again


def test_per_image_table():
    rows = samples()
    table = collect(reversed(rows)).per_image()
    assert list(table.columns) == [
        *("name", "label", "predicted", "prob_benign", "prob_malignant", "prob_normal", "correct"),
        *("f1_plus", "f1_minus", "roi_fraction", "true_fraction"),
    ]
    assert table["name"].tolist() == [row[0] for row in rows]
    assert table["label"].tolist() == [CLASSES[row[1]] for row in rows]
    assert table["predicted"].tolist() == [CLASSES[row[2].argmax()] for row in rows]
    assert table["correct"].tolist() == [row[2].argmax() == row[1] for row in rows]
    assert table["prob_malignant"].tolist() == [row[2][1] for row in rows]
    assert table["f1_plus"].tolist()[3] == functional.dice(rows[3][4], rows[3][5])
    assert np.isnan(table["f1_plus"].tolist()[-1])
    assert np.isnan(table["f1_minus"].tolist()[0])
    assert table["true_fraction"].tolist() == [row[5].mean() for row in rows]


def test_bad_input_names_the_image():
    name, label, probabilities, roi, pred, true = samples()[3]
    half = roi[:8]
    nan = np.where(true, np.nan, roi)
    for arguments, message in [
        ((7, probabilities, roi, pred, true), "label index 7"),
        ((label, [0.5, 0.5], roi, pred, true), "3 probabilities"),
        ((label, [0.5, 0.5, 0.5], roi, pred, true), "sum to one"),
        ((label, [np.nan, 0.5, 0.5], roi, pred, true), "sum to one"),
        ((label, probabilities, half, pred, true), "one size"),
        ((label, probabilities, half, None, true), "one size"),
        ((label, probabilities, None, half >= 0.5, true), "one size"),
        ((label, probabilities, nan, pred, true), "NaN"),
        ((label, probabilities, nan, pred, None), "NaN"),
        ((label, probabilities, 255 * roi, pred, true), r"\[0, 1\]"),
        ((label, probabilities, roi, roi, true), "predicted mask"),
    ]:
        metrics = LocalizationMetrics(CLASSES)
        with pytest.raises(InputError, match=f"^{name}: .*{message}"):
            metrics.update(name, *arguments)
        assert len(metrics) == 0
    metrics = collect(samples())
    with pytest.raises(InputError, match="twice"):
        metrics.update(name, label)
    with pytest.raises(InputError, match="no image"):
        LocalizationMetrics(CLASSES).compute()
