"""Collecting images one by one, in any number of processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from histoloc.errors import InputError
from histoloc.metrics import functional as fn
from histoloc.metrics.functional import Mask
from histoloc.metrics.summary import COUNTS, UNKNOWN, Metrics, Split

State = dict[str, NDArray]


@dataclass(frozen=True)
class _Row:
    """What is kept of one image; counts are -1 where unknown."""

    labels: tuple[int, ...]
    group: str
    probabilities: NDArray[np.float64] | None
    pixels: int = UNKNOWN
    pred: int = UNKNOWN
    true: int = UNKNOWN
    tp: int = UNKNOWN
    histogram: NDArray[np.int32] | None = None

    def same(self, other: _Row) -> bool:
        return all(
            np.array_equal(getattr(self, field.name), getattr(other, field.name)) for field in dataclasses.fields(self)
        )


class LocalizationMetrics:
    """Collects images and computes `Metrics`; parts from several processes are merged.

    About 8 kB are kept per image with map and mask, whatever its size (125 MB for the 15,664 images of
    Camelyon16's test set): a histogram of its map's values, from which PxAP and all thresholds follow
    exactly, image by image, as the bootstrap needs them.

    Args:
        classes: the K class names, in the order of label indices and probabilities.

    Example:
        >>> import numpy as np
        >>> metrics = LocalizationMetrics(["benign", "malignant"])
        >>> roi = np.array([[0.9, 0.8], [0.2, 0.1]], dtype=np.float32)
        >>> truth = np.array([[True, False], [False, False]])
        >>> metrics.update("a.png", 0, [0.7, 0.3], roi, roi >= 0.5, truth)
        >>> round(metrics.compute().f1_plus.value, 2)
        66.67
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._rows: dict[str, _Row] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def update(
        self,
        name: str,
        label_index: int | Sequence[int],
        probabilities: ArrayLike | None = None,
        roi_map: NDArray[np.floating] | None = None,
        mask_pred: Mask | None = None,
        mask_true: Mask | None = None,
        group: str | None = None,
    ) -> None:
        """Add one image.

        Args:
            name: the image's name; every image once.
            label_index: its true class, 0 to K - 1, or several of them, each of which is right: the image counts as
                of the predicted class where that is one of them, and else as of the first.
            probabilities: (K,) predicted, sums to one; None where the method has no classifier.
            roi_map: (H, W) in [0, 1], for PxAP and the threshold curve.
            mask_pred: (H, W) bool, for everything at the chosen threshold.
            mask_true: (H, W) bool; all False for an image known to have no ROI, None where unknown.
            group: the patient or slide that the image is of, whose images are resampled together; None or empty
                where unknown.

        Raises:
            InputError: the name was given before, or an argument does not fit the above.
        """
        if name in self._rows:
            raise InputError(f"{name}: evaluated twice; list every image once")
        try:
            labels = self._checked_labels(label_index)
            checked = None if probabilities is None else self._checked(probabilities)
            histogram, counts = _measured(roi_map, mask_pred, mask_true)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        self._rows[name] = _Row(labels, group or "", checked, histogram=histogram, **counts)

    def _checked_labels(self, label: int | Sequence[int]) -> tuple[int, ...]:
        first, *others = [int(index) for index in np.atleast_1d(label)] or [-1]
        labels = (first, *sorted({*others} - {first}))
        wrong = [index for index in labels if not 0 <= index < len(self.classes)]
        if wrong:
            raise InputError(f"label index {wrong[0]} is none of the {len(self.classes)} classes")
        return labels

    def _checked(self, probabilities: ArrayLike) -> NDArray[np.float64]:
        values = np.asarray(probabilities, dtype=np.float64)
        # Half precision sums to one within a few thousandths.
        if values.shape != (len(self.classes),) or not (values.min() >= 0 and abs(values.sum() - 1) < 1e-2):
            raise InputError(f"needs {len(self.classes)} probabilities that sum to one, not {values.tolist()}")
        return values

    def state(self) -> State:
        """Everything collected, as plain arrays with one row per image, ordered by name.

        Returns:
            `classes` (K,), `name` (N,), `label` (N,: the first of the image's classes), `labels` (N, K: which classes
            are right), `group` (N,; empty where unknown), `probabilities` (N, K; NaN where none), `counts` (N, 4:
            pixels, predicted, true and correctly predicted ROI pixels; -1 where unknown), `has_histogram`
            (N,) and `histogram` (n, 2, 1001) for the n images that have one.
        """
        names = sorted(self._rows)
        rows = [self._rows[name] for name in names]
        nothing, classes = np.full(len(self.classes), np.nan), range(len(self.classes))
        histograms = [row.histogram for row in rows if row.histogram is not None]
        return {
            "classes": np.array(self.classes, dtype=str),
            "name": np.array(names, dtype=str),
            "label": np.array([row.labels[0] for row in rows], dtype=np.int64),
            "labels": np.array([[k in row.labels for k in classes] for row in rows], dtype=bool).reshape(
                len(rows), len(classes)
            ),
            "group": np.array([row.group for row in rows], dtype=str),
            "probabilities": np.array(
                [nothing if row.probabilities is None else row.probabilities for row in rows],
                dtype=np.float64,
            ).reshape(len(rows), len(self.classes)),
            "counts": np.array([[getattr(row, key) for key in COUNTS] for row in rows], dtype=np.int64).reshape(
                len(rows), len(COUNTS)
            ),
            "has_histogram": np.array([row.histogram is not None for row in rows], dtype=bool),
            "histogram": np.array(histograms, dtype=np.int32).reshape(len(histograms), 2, fn.BINS),
        }

    def merge(self, state: Mapping[str, NDArray]) -> None:
        """Add the images of another process's `state()`; the order of merging does not matter.

        An image that both have (samplers pad the last batch) counts once.

        Raises:
            InputError: the classes differ, or one image has two different results, labels or groups.
        """
        if tuple(state["classes"].tolist()) != self.classes:
            raise InputError(f"results for classes {state['classes'].tolist()} and {list(self.classes)} do not add up")
        histograms = iter(state["histogram"])
        for i, name in enumerate(state["name"].tolist()):
            probabilities = state["probabilities"][i]
            row = _Row(
                self._checked_labels([int(state["label"][i]), *np.flatnonzero(state["labels"][i]).tolist()]),
                str(state["group"][i]),
                None if np.isnan(probabilities).any() else probabilities,
                histogram=next(histograms) if state["has_histogram"][i] else None,
                **dict(zip(COUNTS, state["counts"][i].tolist(), strict=True)),
            )
            if name in self._rows and not self._rows[name].same(row):
                raise InputError(f"{name}: two processes give different results for it; list every image once")
            self._rows[name] = row

    def compute(self, bootstrap: int = 1000, seed: int = 0) -> Metrics:
        """Compute all metrics of the images collected.

        Args:
            bootstrap: number of resamples for the intervals; 0 leaves the intervals out.
            seed: of the resampling.

        Raises:
            InputError: there are no images.
        """
        if not self._rows:
            raise InputError("no image was evaluated, so there is nothing to measure; check the table and its split")
        return Split(self.state()).metrics(bootstrap, seed)

    def per_image(self) -> pd.DataFrame:
        """One row per image, ordered by name.

        Returns:
            Columns `name`, `label` (`a|b` where several classes are right), `group` where any image has one,
            `predicted`, `prob_<class>` ..., `correct`, `f1_plus` and `f1_minus` (percent), `roi_fraction` and
            `true_fraction` (0 to 1); missing where unknown or undefined.
        """
        split = Split(self.state())
        state, named = split.state, split.named
        names = np.array([*self.classes, None], dtype=object)  # index -1: no prediction
        labels = ["|".join(self.classes[k] for k in self._rows[name].labels) for name in state["name"].tolist()]
        groups = [group or None for group in state["group"].tolist()]
        return pd.DataFrame(
            {"name": state["name"].astype(object), "label": labels}
            | ({"group": groups} if split.units.grouped else {})
            | {"predicted": names[named.predicted]}
            | {f"prob_{name}": state["probabilities"][:, k] for k, name in enumerate(self.classes)}
            | {"correct": pd.Series(named.correct, dtype="boolean").where(named.known)}
            | {"f1_plus": split.f1_plus, "f1_minus": split.f1_minus}
            | {"roi_fraction": split.fraction("pred"), "true_fraction": split.fraction("true")}
        )


def _measured(
    roi_map: NDArray[np.floating] | None, mask_pred: Mask | None, mask_true: Mask | None
) -> tuple[NDArray[np.int32] | None, dict[str, int]]:
    """Histogram of a map and counts of pixels, as far as there are map and masks."""
    counts: dict[str, int] = {}
    if mask_true is not None:
        mask_true = fn.as_mask(mask_true, "true mask")
        counts |= {"pixels": mask_true.size, "true": int(mask_true.sum())}
    if mask_pred is not None:
        mask_pred = fn.as_mask(mask_pred, "predicted mask")
        counts |= {"pixels": mask_pred.size, "pred": int(mask_pred.sum())}
        if mask_true is not None:
            counts["tp"] = int(fn.pixel_counts(mask_pred, mask_true).tp)
    histogram = None
    if roi_map is not None:
        roi_map = np.asarray(roi_map, dtype=np.float32)
        for mask in (mask_true, mask_pred):
            if mask is not None:
                fn.same_size(roi_map, mask)
        if mask_true is not None:
            histogram = fn.map_histogram(roi_map, mask_true)
        else:
            fn.check_unit_range(roi_map)
    return histogram, counts
