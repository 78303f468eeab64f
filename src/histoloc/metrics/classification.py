"""Classification of a split: every metric as a function of per-image weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from histoloc.metrics.functional import Floats, ratio

_ROWS_PER_BLOCK = 64  # resamples at a time

_OVERALL = ("cl_error", "balanced_accuracy", "kappa", "auc")
BY_CLASS = ("recall", "precision", "class_f1")  # metrics that every class has


class Classification:
    """The predicted and true classes of N images, and what follows from them.

    An image whose label is a set of classes is correct where the prediction is in the set. Its label then is the
    prediction, and else the first class of the set; for the ROC curve it is positive for every class of the set.

    Args:
        classes: the K class names.
        first: (N,) the first class of every image's label.
        labels: (N, K) whether a class is in the image's label.
        probabilities: (N, K), NaN where an image has none.

    Attributes:
        known: (N,) whether the image was classified.
        predicted: (N,) class index, -1 where unknown.
        correct: (N,) whether the prediction is in the image's label.
        label: (N,) the class that counts as true.
        confusion: (K, K) image counts, rows true, columns predicted.
        ranks: whether probabilities are more than a class name written as 0 and 1, so that they rank images.
    """

    def __init__(
        self,
        classes: Sequence[str],
        first: NDArray[np.int64],
        labels: NDArray[np.bool_],
        probabilities: NDArray,
    ) -> None:
        self.classes, self.labels, self.probabilities = tuple(classes), labels, probabilities
        self.known: NDArray[np.bool_] = ~np.isnan(probabilities[:, 0])
        self.predicted = np.where(self.known, np.nan_to_num(probabilities).argmax(axis=1), -1)
        self.correct = self.known & labels[np.arange(len(first)), self.predicted]
        self.label = np.where(self.correct, self.predicted, first)
        self.ranks = bool(np.isin(probabilities[self.known], (0, 1), invert=True).any())
        index = np.arange(len(classes))
        predictions = (self.predicted[:, None] == index).astype(np.float64)
        true = ((self.label[:, None] == index) & self.known[:, None]).astype(np.float64)
        self.confusion = (true.T @ predictions).astype(int)
        self._counts = np.concatenate([predictions * true, true, predictions], axis=1)  # (N, 3K)

    def statistics(self, weights: Floats) -> dict[str, Floats]:
        """Every metric for every row of `weights` (R, N), as (R,) arrays; `recall NAME` and so on by class.

        `balanced_accuracy` and `auc` are means over the classes that have images. `auc`: the area under the ROC
        curve, by the probability of the second of two classes (that of the first gives the same); of more classes,
        each against all others.
        """
        hit, true, predictions = np.split(weights @ self._counts, 3, axis=1)
        images, right = true.sum(axis=1), hit.sum(axis=1)
        by_class = ratio(hit, true), ratio(hit, predictions), ratio(2 * hit, true + predictions)
        chance = (true * predictions).sum(axis=1)  # images² times the agreement expected of independent classes
        values = {
            "cl_error": ratio(images - right, images),
            "balanced_accuracy": _mean_of_defined(by_class[0]),
            "kappa": ratio(images * right - chance, images**2 - chance),
            "auc": self._auc(weights),
        }
        for key, value in zip(BY_CLASS, by_class, strict=True):
            values |= {f"{key} {name}": value[:, k] for k, name in enumerate(self.classes)}
        return values

    def rests_on(self) -> dict[str, NDArray[np.bool_]]:
        """By name of the metric, (N,) which images it is computed from."""
        images: dict[str, NDArray[np.bool_]] = dict.fromkeys(_OVERALL, self.known)
        for k, name in enumerate(self.classes):
            true, predictions = self.known & (self.label == k), self.predicted == k
            images |= {f"recall {name}": true, f"precision {name}": predictions, f"class_f1 {name}": true | predictions}
        return images

    def _auc(self, weights: Floats) -> Floats:
        if not self.ranks:
            return np.full(len(weights), np.nan)
        columns = [1] if len(self.classes) == 2 else range(len(self.classes))
        weights, scores, labels = weights[:, self.known], self.probabilities[self.known], self.labels[self.known]
        return _mean_of_defined(np.stack([weighted_auc(weights, scores[:, k], labels[:, k]) for k in columns], axis=1))


def weighted_auc(weights: Floats, scores: Floats, positive: NDArray[np.bool_]) -> Floats:
    """Area under the ROC curve: how often a positive image has the higher score than a negative one; ties half.

    Args:
        weights: (R, N) whole numbers, how often every image counts.
        scores: (N,), N at least 1.
        positive: (N,).

    Returns:
        (R,) in percent, NaN where one of the two kinds is absent.
    """
    negatives = np.flatnonzero(~positive)
    negatives = negatives[np.argsort(scores[negatives])]
    first, last = (np.searchsorted(scores[negatives], scores[positive], side) for side in ("left", "right"))
    areas = []
    for start in range(0, len(weights), _ROWS_PER_BLOCK):
        block = weights[start : start + _ROWS_PER_BLOCK]
        above = block[:, positive]
        below = np.zeros((len(block), len(negatives) + 1))  # how many negative images come before
        np.cumsum(block[:, negatives], axis=1, out=below[:, 1:])
        wins = np.einsum("rp,rp->r", above, below[:, first] + below[:, last]) / 2
        areas.append(ratio(wins, above.sum(axis=1) * below[:, -1]))
    return np.concatenate(areas)


def _mean_of_defined(values: Floats) -> Floats:
    """(R,) means of the rows of (R, M) over what is not NaN."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1)) / 100
