"""Metrics of the predicted class: by hand, and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from histoloc.errors import InputError
from histoloc.metrics import LocalizationMetrics, Metrics
from histoloc.metrics.classification import weighted_auc


def compute(labels, probabilities, bootstrap: int = 0) -> Metrics:
    probabilities = np.asarray(probabilities, dtype=float)
    metrics = LocalizationMetrics([f"class {k}" for k in range(probabilities.shape[1])])
    for i, (label, row) in enumerate(zip(labels, probabilities, strict=True)):
        metrics.update(f"{i:03d}", label, row)
    return metrics.compute(bootstrap=bootstrap)


def test_by_hand():
    """True 0 0 0 1 1, predicted 0 0 1 1 0; scores of class 1: .1 .4 .6 .6 .4."""
    got = compute([0, 0, 0, 1, 1], [[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.4, 0.6], [0.6, 0.4]])
    assert got.cl_error.value == pytest.approx(40)
    assert [got.recall[name].value for name in got.classes] == pytest.approx([200 / 3, 50])
    assert [got.precision[name].value for name in got.classes] == pytest.approx([200 / 3, 50])
    assert [got.class_f1[name].value for name in got.classes] == pytest.approx([200 / 3, 50])
    assert got.balanced_accuracy.value == pytest.approx((200 / 3 + 50) / 2)
    # Agreement 3/5, by chance (3 * 3 + 2 * 2) / 25.
    assert got.kappa.value == pytest.approx(100 * (0.6 - 0.52) / 0.48)
    # Of 6 pairs: .6 wins against .1 and .4 and ties with .6, .4 wins against .1 and ties with .4.
    assert got.auc.value == pytest.approx(100 * 4 / 6)
    assert [got.precision[name].n for name in got.classes] == [3, 2]
    assert [got.class_f1[name].n for name in got.classes] == [4, 3]


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_against_scikit_learn(classes):
    random = np.random.default_rng(classes)
    label = random.integers(classes, size=120)
    probabilities = random.dirichlet(np.ones(classes), 120) + 0.3 * np.eye(classes)[label]
    probabilities = np.round(probabilities, 1)  # many ties
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    got = compute(label, probabilities)
    precision, recall, f1, _ = sklearn.precision_recall_fscore_support(label, predicted)
    for ours, theirs in ((got.precision, precision), (got.recall, recall), (got.class_f1, f1)):
        assert [estimate.value for estimate in ours.values()] == pytest.approx(100 * np.asarray(theirs))
    assert got.balanced_accuracy.value == pytest.approx(100 * sklearn.balanced_accuracy_score(label, predicted))
    assert got.kappa.value == pytest.approx(100 * sklearn.cohen_kappa_score(label, predicted))
    scores = probabilities[:, 1] if classes == 2 else probabilities
    assert got.auc.value == pytest.approx(100 * float(sklearn.roc_auc_score(label, scores, multi_class="ovr")))
    assert (got.auc.n, got.kappa.n, got.balanced_accuracy.n) == (120, 120, 120)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
def test_auc_of_weighted_images_is_that_of_repeated_ones(rows):
    score, positive, weight = (np.array(column) for column in zip(*rows, strict=True))
    (got,) = weighted_auc(weight[None].astype(float), score.astype(float), positive)
    (turned,) = weighted_auc(weight[None, ::-1].astype(float), score[::-1].astype(float), positive[::-1])
    np.testing.assert_equal(turned, got)
    repeated, truth = np.repeat(score, weight), np.repeat(positive, weight)
    if len(set(truth.tolist())) == 2:
        assert got == pytest.approx(100 * float(sklearn.roc_auc_score(truth, repeated)))
    else:
        assert np.isnan(got)


def test_resamples_in_blocks_are_those_of_one(monkeypatch):
    random = np.random.default_rng(0)
    weights, scores, positive = random.integers(3, size=(5, 9)).astype(float), random.random(9), np.arange(9) % 2 == 0
    whole = weighted_auc(weights, scores, positive)
    monkeypatch.setattr("histoloc.metrics.classification._ROWS_PER_BLOCK", 2)
    assert np.array_equal(weighted_auc(weights, scores, positive), whole)


def test_a_table_of_two_of_six_classes():
    probabilities = np.full((4, 6), 0.1) + 0.4 * np.eye(6)[[2, 2, 4, 5]]
    got = compute([2, 2, 4, 4], probabilities, bootstrap=50)
    assert got.balanced_accuracy.value == 75
    # Class 2 is ranked without a fault; class 4: one of its images has the score of the others.
    assert got.auc.value == pytest.approx((100 + 75) / 2)
    assert got.recall["class 0"].value is None
    assert (got.recall["class 5"].value, got.precision["class 5"].value, got.class_f1["class 5"].value) == (None, 0, 0)
    assert got.auc.low is not None


def test_what_is_not_defined():
    certain = compute([0, 0], [[1, 0], [1, 0]])
    assert (certain.kappa.value, certain.kappa.n, certain.auc.value) == (None, 0, None)
    assert certain.balanced_accuracy.value == 100
    none = LocalizationMetrics(["a", "b"])
    none.update("x", 0)
    got = none.compute(bootstrap=20)
    assert [e.value for e in (got.auc, got.kappa, got.balanced_accuracy, got.precision["a"])] == [None] * 4


def test_class_names_without_probabilities_have_no_auc():
    got = compute([0, 1, 1], [[1, 0], [0, 1], [1, 0]])
    assert (got.auc.value, got.balanced_accuracy.value) == (None, 75)
    assert compute([0, 1, 1], [[1, 0], [0.1, 0.9], [1, 0]]).auc.value == 75


def test_intervals_hold_the_value():
    random = np.random.default_rng(3)
    label = random.integers(3, size=60)
    got = compute(label, random.dirichlet([1, 1, 1], 60) * 0.6 + 0.4 * np.eye(3)[label], bootstrap=300)
    for estimate in (got.auc, got.kappa, got.balanced_accuracy, *got.precision.values(), *got.class_f1.values()):
        low, value, high = np.array([estimate.low, estimate.value, estimate.high], dtype=float)
        assert low < value < high


# --- labels of several classes ---


def test_any_class_of_a_label_is_right():
    """Labels 0|2, 2|0, 1|2; predicted 2, 1, 0: right; wrong and of class 2; wrong and of class 1."""
    rows = [[0.1, 0.2, 0.7], [0.2, 0.6, 0.2], [0.8, 0.1, 0.1]]
    metrics = LocalizationMetrics(["a", "b", "c"])
    for name, label, row in zip("xyz", [(0, 2), [2, 0], np.array([1, 2])], rows, strict=True):
        metrics.update(name, label, row)  # pyright: ignore[reportArgumentType]
    got = metrics.compute(bootstrap=0)
    assert got.cl_error.value == pytest.approx(200 / 3)
    assert got.confusion == [[0, 0, 0], [1, 0, 0], [0, 1, 1]]
    assert (got.recall["c"].value, got.recall["c"].n, got.recall["b"].value) == (50, 2, 0)
    table = metrics.per_image()
    assert table["label"].tolist() == ["a|c", "c|a", "b|c"]
    assert table["correct"].tolist() == [True, False, False]
    again = LocalizationMetrics(["a", "b", "c"])
    again.merge(metrics.state())
    assert again.per_image().equals(table)
    assert again.state()["label"].tolist() == [0, 2, 1]


def test_an_image_is_positive_for_every_class_of_its_label():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.3, 0.4, 0.3], [0.1, 0.2, 0.7], [0.2, 0.7, 0.1]])
    labels = [(0, 1), (1,), (2,), (0,)]
    truth = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
    expected = np.mean([float(sklearn.roc_auc_score(truth[:, k], probabilities[:, k])) for k in range(3)])
    assert compute(labels, probabilities).auc.value == pytest.approx(100 * expected)


def test_one_class_as_a_number_or_alone_in_a_list():
    probabilities = [[0.2, 0.8], [0.7, 0.3]]
    assert compute([(1,), (1, 1)], probabilities) == compute([1, 1], probabilities)


@pytest.mark.parametrize(("label", "index"), [((0, 2), 2), ((), -1), (-1, -1)])
def test_labels_that_do_not_fit(label, index):
    with pytest.raises(InputError, match=f"^x: label index {index} is none of the 2 classes"):
        LocalizationMetrics(["a", "b"]).update("x", label)
