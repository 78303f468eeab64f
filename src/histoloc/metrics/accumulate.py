"""Collecting images one by one, in any number of processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from histoloc.errors import InputError
from histoloc.metrics import functional as fn
from histoloc.metrics.functional import Mask
from histoloc.metrics.summary import COUNTS, UNKNOWN, Metrics, Split

State = dict[str, NDArray]
_NO_HISTOGRAM = np.zeros((0, 2, fn.BINS), dtype=np.int32)


class _Row(NamedTuple):
    """What is known of one image, as the state has it."""

    label: int
    labels: NDArray[np.bool_]  # (K,)
    group: str
    probabilities: NDArray[np.float64]  # (K,)
    counts: NDArray[np.int64]  # (4,)
    histogram: NDArray[np.int32]  # (1, 2, 1001), or (0, 2, 1001) where there is none


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
        count, indices = len(self.classes), np.atleast_1d(label_index).tolist() or [-1]
        wrong = [index for index in indices if not 0 <= index < count]
        if wrong:
            raise InputError(f"{name}: label index {wrong[0]} is none of the {count} classes; give 0 to {count - 1}")
        labels, values = np.isin(np.arange(count), indices), np.full(count, np.nan)
        if probabilities is not None:
            values = np.asarray(probabilities, dtype=np.float64)
            # Half precision sums to one within a few thousandths.
            if values.shape != (count,) or not (values.min() >= 0 and abs(values.sum() - 1) < 1e-2):
                raise InputError(f"{name}: needs {count} probabilities that sum to one, not {values.tolist()}")
        try:
            counts, histogram = _measured(roi_map, mask_pred, mask_true)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        self._rows[name] = _Row(int(indices[0]), labels, group or "", values, counts, histogram)

    def state(self) -> State:
        """Everything collected, as plain arrays with one row per image, ordered by name.

        Returns:
            `classes` (K,), `name` (N,), `label` (N,: the first of the image's classes), `labels` (N, K: which classes
            are right), `group` (N,; empty where unknown), `probabilities` (N, K; NaN where none), `counts` (N, 4:
            pixels, predicted, true and correctly predicted ROI pixels; -1 where unknown), `has_histogram`
            (N,) and `histogram` (n, 2, 1001) for the n images that have one.
        """
        rows = [self._rows[name] for name in sorted(self._rows)]
        width = len(self.classes)
        return {
            "classes": np.array(self.classes, dtype=str),
            "name": np.array(sorted(self._rows), dtype=str),
            "label": np.array([row.label for row in rows], dtype=np.int64),
            "labels": np.array([row.labels for row in rows], dtype=bool).reshape(-1, width),
            "group": np.array([row.group for row in rows], dtype=str),
            "probabilities": np.array([row.probabilities for row in rows], dtype=np.float64).reshape(-1, width),
            "counts": np.array([row.counts for row in rows], dtype=np.int64).reshape(-1, len(COUNTS)),
            "has_histogram": np.array([len(row.histogram) for row in rows], dtype=bool),
            "histogram": np.concatenate([_NO_HISTOGRAM, *(row.histogram for row in rows)]),
        }

    def merge(self, state: Mapping[str, NDArray]) -> None:
        """Add the images of another process's `state()`; the order of merging does not matter.

        An image that both have (samplers pad the last batch) counts once.

        Raises:
            InputError: the classes differ, or one image has two different results, labels or groups.
        """
        if tuple(state["classes"].tolist()) != self.classes:
            raise InputError(f"classes {state['classes'].tolist()} and {list(self.classes)} differ; use one list")
        ends = np.cumsum(state["has_histogram"])
        for i, name in enumerate(state["name"].tolist()):
            label, labels, group, probabilities, counts = (state[key][i] for key in _Row._fields[:5])
            histogram = state["histogram"][ends[i] - state["has_histogram"][i] : ends[i]]
            row = _Row(int(label), labels, str(group), probabilities, counts, histogram)
            earlier = self._rows.setdefault(name, row)
            if any(np.asarray(a).tobytes() != np.asarray(b).tobytes() for a, b in zip(earlier, row, strict=True)):
                raise InputError(f"{name}: two processes give different results for it; list every image once")

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
        state, classification = split.state, split.named
        names = np.array([*self.classes, None], dtype=object)  # index -1: no prediction
        indices = [[row.label, *np.flatnonzero(row.labels)] for _, row in sorted(self._rows.items())]
        labels = ["|".join(self.classes[k] for k in dict.fromkeys(several)) for several in indices]
        groups = [group or None for group in state["group"].tolist()]
        return pd.DataFrame(
            {"name": state["name"].astype(object), "label": labels}
            | ({"group": groups} if split.units.grouped else {})
            | {"predicted": names[classification.predicted]}
            | {f"prob_{name}": state["probabilities"][:, k] for k, name in enumerate(self.classes)}
            | {"correct": pd.Series(classification.correct, dtype="boolean").where(classification.known)}
            | {"f1_plus": split.f1_plus, "f1_minus": split.f1_minus}
            | {"roi_fraction": split.fraction("pred"), "true_fraction": split.fraction("true")}
        )


def _measured(
    roi_map: NDArray[np.floating] | None, mask_pred: Mask | None, mask_true: Mask | None
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Counts of pixels and histogram of a map, as far as there are masks and map."""
    pred = None if mask_pred is None else fn.as_mask(mask_pred, "predicted mask")
    true = None if mask_true is None else fn.as_mask(mask_true, "true mask")
    roi = None if roi_map is None else np.asarray(roi_map, dtype=np.float32)
    arrays = [array for array in (roi, pred, true) if array is not None]
    for array in arrays:
        fn.same_size(array, arrays[0])
    counts = [UNKNOWN if mask is None else np.count_nonzero(mask) for mask in (pred, true)]
    pixels = UNKNOWN if pred is None and true is None else arrays[0].size
    both = UNKNOWN if pred is None or true is None else np.count_nonzero(pred & true)
    if roi is not None and true is None:
        fn.check_unit_range(roi)
    histogram = _NO_HISTOGRAM if roi is None or true is None else fn.map_histogram(roi, true)[None]
    return np.array([pixels, *counts, both], dtype=np.int64), histogram
