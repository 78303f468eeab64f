"""The numbers of a split: every metric with its interval, from the state that `accumulate` collects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histoloc.metrics import functional as fn
from histoloc.metrics.bootstrap import bootstrap as resample
from histoloc.metrics.bootstrap import percentile_interval, weighted_pxap, weighted_ratio
from histoloc.metrics.functional import Floats, PixelCounts

COUNTS = ("pixels", "pred", "true", "tp")  # the columns of a state's counts
UNKNOWN = -1

_TIE = 1e-9  # percent; matrix products may differ in the last bit between equal columns


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval over images.

    Attributes:
        value: the metric on the images given; None where undefined.
        low: lower bound; None where undefined or when no bootstrap was asked for.
        high: upper bound.
        n: how many images it rests on.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Metrics:
    """Everything measured on one split. Percentages, 0 to 100, except counts and thresholds.

    A metric that cannot be computed (no classifier, no masks, no map) has the value None and n = 0.

    Attributes:
        images: number of images.
        classes: the K class names.
        cl_error: images whose predicted class is wrong.
        recall: by class, its images that are predicted as such.
        confusion: (K, K) image counts, rows true, columns predicted.
        f1_plus: F1⁺, mean Dice of the ROI over the images that have ROI.
        f1_minus: F1⁻, mean Dice of the background over the images that have background.
        f1_mean: mean of the two numbers above; n counts the images that are in either.
        tpr: true ROI pixels that are predicted, pixels pooled over images.
        tnr: true background pixels that are predicted as such, pooled.
        pixel_confusion: 2 x 2 pooled pixels in percent of each true class; rows predicted, columns true,
            background before ROI.
        specificity_without_roi: mean over images without any ROI of the share predicted as background.
        pxap: area under the pooled pixel precision-recall curve; needs no threshold.
        threshold_curve: `threshold`, and `f1_plus` and `f1_minus` if the maps were cut there.
        oracle_threshold: the threshold of the curve with the best f1_mean *on these very images*. Chosen by
            their masks, so optimistic: a bound, never a result. Its interval chooses anew in every resample.
        oracle_f1_mean: f1_mean at that threshold.
        oracle_f1_plus: f1_plus at that threshold.
        oracle_f1_minus: f1_minus at that threshold.
    """

    images: int
    classes: list[str]
    cl_error: Estimate
    recall: dict[str, Estimate]
    confusion: list[list[int]]
    f1_plus: Estimate
    f1_minus: Estimate
    f1_mean: Estimate
    tpr: Estimate
    tnr: Estimate
    pixel_confusion: list[list[float | None]]
    specificity_without_roi: Estimate
    pxap: Estimate
    threshold_curve: dict[str, list[float | None]]
    oracle_threshold: Estimate
    oracle_f1_mean: Estimate
    oracle_f1_plus: Estimate
    oracle_f1_minus: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; an estimate becomes {"value", "low", "high", "n"}."""
        return dataclasses.asdict(self)


class Split:
    """The images of a `LocalizationMetrics.state()`, and their metrics as functions of per-image weights."""

    def __init__(self, state: Mapping[str, NDArray]) -> None:
        self.state = state
        self.label = state["label"]
        probabilities = state["probabilities"]
        self.classified = ~np.isnan(probabilities).any(axis=1)
        self.predicted = np.where(self.classified, np.nan_to_num(probabilities).argmax(axis=1), UNKNOWN)
        self.count: dict[str, NDArray[np.int64]] = dict(zip(COUNTS, state["counts"].T, strict=True))
        self.located = self.count["tp"] != UNKNOWN
        pixels, pred, true, tp = (np.where(self.located, self.count[key], 0) for key in COUNTS)
        self.pixels = PixelCounts(tp=tp, fp=pred - tp, tn=pixels - pred - true + tp, fn=true - tp)
        self.f1_plus, self.f1_minus = fn.f1_plus(self.pixels), fn.f1_minus(self.pixels)
        self._collect_sums()
        self.has_histogram = state["has_histogram"]
        curve = fn.counts_at_thresholds(state["histogram"])
        self.curves = [_mean_terms(score(curve)) for score in (fn.f1_plus, fn.f1_minus)]

    def fraction(self, key: str) -> Floats:
        """(N,) share of the image's pixels in the predicted or true ROI; NaN where unknown."""
        return np.where(self.count[key] == UNKNOWN, np.nan, self.count[key] / self.count["pixels"])

    def _collect_sums(self) -> None:
        """Write every mean and every pooled rate as one ratio of sums over images: numerator, denominator."""
        c = self.pixels
        background = c.tn + c.fp
        specificity = np.where(self.located & (c.tp + c.fn == 0), fn.true_negative_rate(c), np.nan)
        correct = self.predicted == self.label
        sums = {
            "cl_error": (self.classified & ~correct, self.classified),
            "f1_plus": _mean_terms(self.f1_plus),
            "f1_minus": _mean_terms(self.f1_minus),
            "tpr": (c.tp, c.tp + c.fn),
            "tnr": (c.tn, background),
            "specificity_without_roi": _mean_terms(specificity),
        }
        for k, name in enumerate(self.state["classes"].tolist()):
            of_class = self.classified & (self.label == k)
            sums[f"recall {name}"] = (of_class & correct, of_class)
        self.ratios = list(sums)
        self.above = np.stack([above for above, _ in sums.values()], axis=1).astype(np.float64)
        self.below = np.stack([below for _, below in sums.values()], axis=1).astype(np.float64)

    def statistics(self, weights: Floats) -> dict[str, Floats]:
        """Every metric for every row of `weights` (R, N), as (R,) arrays."""
        values = dict(zip(self.ratios, weighted_ratio(weights, self.above, self.below).T, strict=True))
        values["f1_mean"] = (values["f1_plus"] + values["f1_minus"]) / 2
        with_map = weights[:, self.has_histogram]
        values["pxap"] = weighted_pxap(with_map, self.state["histogram"])
        return values | self._oracle(*(weighted_ratio(with_map, *terms) for terms in self.curves))

    @staticmethod
    def _oracle(f1_plus: Floats, f1_minus: Floats) -> dict[str, Floats]:
        """The best threshold of each curve (R, 101) on the images themselves; the lowest of equal ones."""
        mean = (f1_plus + f1_minus) / 2
        score = np.where(np.isnan(mean), -np.inf, mean)
        best = (score >= score.max(axis=1, keepdims=True) - _TIE).argmax(axis=1)
        row = np.arange(len(best))
        undefined = np.isneginf(score).all(axis=1)
        values = {"threshold": fn.CURVE_THRESHOLDS[best], "f1_mean": mean[row, best]}
        values |= {"f1_plus": f1_plus[row, best], "f1_minus": f1_minus[row, best]}
        return {f"oracle_{name}": np.where(undefined, np.nan, value) for name, value in values.items()}

    def _numbers_of_images(self) -> dict[str, int]:
        """How many images every metric rests on."""
        count = dict(zip(self.ratios, np.count_nonzero(self.below, axis=0).tolist(), strict=True))
        maps = int(np.count_nonzero(self.has_histogram))
        of_maps = ("pxap", "oracle_threshold", "oracle_f1_mean", "oracle_f1_plus", "oracle_f1_minus")
        return count | {"f1_mean": int(np.count_nonzero(self.located))} | dict.fromkeys(of_maps, maps)

    def metrics(self, replicates: int, seed: int) -> Metrics:
        """The point estimates (every weight one) with their intervals."""
        images = len(self.label)
        once = np.ones((1, images))
        points, samples = self.statistics(once), resample(self.statistics, images, replicates, seed)
        n = self._numbers_of_images()
        estimates = {key: _estimate(float(value[0]), samples.get(key), n[key]) for key, value in points.items()}
        classes: list[str] = self.state["classes"].tolist()
        curve = [weighted_ratio(once[:, self.has_histogram], *terms)[0] for terms in self.curves]
        pooled = PixelCounts(*(count.sum() for count in self.pixels))
        known = self.classified
        return Metrics(
            images=images,
            classes=classes,
            recall={name: estimates.pop(f"recall {name}") for name in classes},
            confusion=fn.confusion_matrix(self.label[known], self.predicted[known], len(classes)).tolist(),
            pixel_confusion=[_json(row) for row in fn.pixel_confusion(pooled)],
            threshold_curve={
                "threshold": _json(fn.CURVE_THRESHOLDS),
                "f1_plus": _json(curve[0]),
                "f1_minus": _json(curve[1]),
            },
            **estimates,
        )


def _mean_terms(percent: Floats) -> tuple[Floats, Floats]:
    """Numerator and denominator per image of a mean over the images where the value is defined."""
    defined = ~np.isnan(percent)
    return np.where(defined, percent, 0) / 100, defined.astype(np.float64)


def _estimate(value: float, samples: Floats | None, n: int) -> Estimate:
    if np.isnan(value):
        return Estimate(None, None, None, 0)
    interval = (np.nan, np.nan) if samples is None else percentile_interval(samples)
    low, high = _json(np.array(interval))
    return Estimate(value, low, high, n)


def _json(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
