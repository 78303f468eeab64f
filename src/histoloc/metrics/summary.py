"""The numbers of a split: every metric with its interval, from the state that `accumulate` collects."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from histoloc.metrics import functional as fn
from histoloc.metrics.bootstrap import Units, percentile_interval, weighted_ratio, weighted_sum
from histoloc.metrics.bootstrap import bootstrap as resample
from histoloc.metrics.classification import BY_CLASS, Classification
from histoloc.metrics.functional import CURVE_THRESHOLDS, Floats, PixelCounts, ratio

COUNTS = ("pixels", "pred", "true", "tp")  # the columns of a state's counts
UNKNOWN = -1

_TIE = 1e-9  # percent; matrix products may differ in the last bit between equal columns


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval over images or groups, as `Metrics.resampled` says.

    Attributes:
        value: the metric on all its images; None where undefined.
        low: lower bound; None where undefined, when no bootstrap was asked for, and where the number rests on fewer
            than two images or groups.
        high: upper bound.
        n: how many images it rests on.
        groups: of how many groups these images are; None where images were resampled.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    groups: int | None = None

    def __str__(self) -> str:
        """`66.67 [50.00, 80.00]`, without an interval where there is none, and a dash where undefined."""
        if self.value is None:
            return "–"
        bounds = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{bounds}"


@dataclass(frozen=True)
class Metrics:
    """Everything measured on one split. Percentages, 0 to 100, except counts and thresholds.

    A metric that cannot be computed (no classifier, no masks, no map) has the value None and n = 0.

    Attributes:
        images: number of images.
        resampled: what the intervals draw with replacement: images, or groups (patients, slides) with all their
            images, where the group of any image is known.
        groups: number of groups; None where images are resampled.
        notes: what a reader of the numbers must know, in sentences.
        classes: the K class names.
        cl_error: images whose predicted class is wrong.
        balanced_accuracy: mean recall of the classes that have images.
        kappa: Cohen's kappa times 100: agreement beyond chance, negative below it.
        auc: area under the ROC curve of the second of two classes; of more, the mean over the classes of each against
            the others. None where the probabilities are all 0 or 1 and so do not rank images.
        recall: by class, its images that are predicted as such.
        precision: by class, the images predicted as such that are of it.
        class_f1: by class, harmonic mean of precision and recall.
        confusion: (K, K) image counts, rows true, columns predicted.
        f1_plus: F1⁺, mean Dice of the ROI over the images that have ROI.
        f1_minus: F1⁻, mean Dice of the background over the images that have background.
        f1_mean: mean of the two numbers above; n counts the images that are in either.
        tpr: true ROI pixels that are predicted, pixels pooled over images.
        tnr: true background pixels that are predicted as such, pooled.
        pixel_confusion: 2 x 2 pooled pixels in percent of each true class; rows predicted, columns true,
            background before ROI.
        specificity_without_roi: mean over images without any ROI of the share predicted as background.
        pxap: area under the pixel precision-recall curve, pixels pooled over all images whose truth is known, also
            those without ROI, whose pixels are all background; needs no threshold.
        pxap_with_roi: the same over the images that have ROI alone.
        pxap_images_without_roi: number of images without ROI in the pool of `pxap`; 0: both are the same.
        threshold_curve: `threshold`, and `f1_plus` and `f1_minus` if the maps were cut there.
        oracle_threshold: the threshold of the curve with the best f1_mean *on these very images*. Chosen by
            their masks, so optimistic: a bound, never a result. Its interval chooses anew in every resample.
        oracle_f1_mean: f1_mean at that threshold.
        oracle_f1_plus: f1_plus at that threshold.
        oracle_f1_minus: f1_minus at that threshold.
    """

    images: int
    resampled: Literal["images", "groups"]
    groups: int | None
    notes: list[str]
    classes: list[str]
    cl_error: Estimate
    balanced_accuracy: Estimate
    kappa: Estimate
    auc: Estimate
    recall: dict[str, Estimate]
    precision: dict[str, Estimate]
    class_f1: dict[str, Estimate]
    confusion: list[list[int]]
    f1_plus: Estimate
    f1_minus: Estimate
    f1_mean: Estimate
    tpr: Estimate
    tnr: Estimate
    pixel_confusion: list[list[float | None]]
    specificity_without_roi: Estimate
    pxap: Estimate
    pxap_with_roi: Estimate
    pxap_images_without_roi: int
    threshold_curve: dict[str, list[float | None]]
    oracle_threshold: Estimate
    oracle_f1_mean: Estimate
    oracle_f1_plus: Estimate
    oracle_f1_minus: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; an estimate becomes {"value", "low", "high", "n", "groups"}."""
        return dataclasses.asdict(self)


class Split:
    """The images of a `LocalizationMetrics.state()`, and their metrics as functions of per-image weights."""

    def __init__(self, state: Mapping[str, NDArray]) -> None:
        self.state = state
        self.units = Units(state["group"])
        self.classes: list[str] = state["classes"].tolist()
        self.named = Classification(self.classes, state["label"], state["labels"], state["probabilities"])
        self.count: dict[str, NDArray[np.int64]] = dict(zip(COUNTS, state["counts"].T, strict=True))
        self.located = self.count["tp"] != UNKNOWN
        pixels, pred, true, tp = (np.where(self.located, self.count[key], 0) for key in COUNTS)
        self.pixels = PixelCounts(tp=tp, fp=pred - tp, tn=pixels - pred - true + tp, fn=true - tp)
        self.f1_plus, self.f1_minus = fn.f1_plus(self.pixels), fn.f1_minus(self.pixels)
        self._collect_sums(*self.pixels)
        self.has_histogram = state["has_histogram"]
        self.map_without_roi = self.count["true"][self.has_histogram] == 0
        curve = fn.counts_at_thresholds(state["histogram"])
        self.curves = [_mean_terms(score(curve)) for score in (fn.f1_plus, fn.f1_minus)]

    def fraction(self, key: str) -> Floats:
        """(N,) share of the image's pixels in the predicted or true ROI; NaN where unknown."""
        return np.where(self.count[key] == UNKNOWN, np.nan, self.count[key] / self.count["pixels"])

    def _collect_sums(self, tp: NDArray, fp: NDArray, tn: NDArray, fn: NDArray) -> None:
        """Write every mean and every pooled rate as one ratio of sums over images: numerator, denominator."""
        specificity = np.where(self.located & (tp + fn == 0), ratio(tn, tn + fp), np.nan)
        sums = {
            "f1_plus": _mean_terms(self.f1_plus),
            "f1_minus": _mean_terms(self.f1_minus),
            "tpr": (tp, tp + fn),
            "tnr": (tn, tn + fp),
            "specificity_without_roi": _mean_terms(specificity),
        }
        self.ratios = list(sums)
        above, below = zip(*sums.values(), strict=True)
        self.above, self.below = np.stack(above, axis=1).astype(float), np.stack(below, axis=1).astype(float)

    def statistics(self, weights: Floats) -> dict[str, Floats]:
        """Every metric for every row of `weights` (R, N), as (R,) arrays."""
        values = self.named.statistics(weights)
        values |= dict(zip(self.ratios, weighted_ratio(weights, self.above, self.below).T, strict=True))
        values["f1_mean"] = (values["f1_plus"] + values["f1_minus"]) / 2
        with_map = weights[:, self.has_histogram]
        values |= self._pxap(with_map)
        return values | self._oracle(*(weighted_ratio(with_map, *terms) for terms in self.curves))

    def _pxap(self, weights: Floats) -> dict[str, Floats]:
        histograms, without = self.state["histogram"], self.map_without_roi
        pooled = weighted_sum(weights, histograms)
        values = {"pxap": fn.pxap(pooled)}
        if not without.any():
            return values | {"pxap_with_roi": values["pxap"]}
        pooled[:, 0] -= weighted_sum(weights[:, without], histograms[without, 0])
        return values | {"pxap_with_roi": fn.pxap(pooled)}

    @staticmethod
    def _oracle(f1_plus: Floats, f1_minus: Floats) -> dict[str, Floats]:
        """The best threshold of each curve (R, 101) on the images themselves; the lowest of equal ones."""
        mean = (f1_plus + f1_minus) / 2
        score = np.where(np.isnan(mean), -np.inf, mean)
        best = (score >= score.max(axis=1, keepdims=True) - _TIE).argmax(axis=1)
        row = np.arange(len(best))
        undefined = np.isneginf(score).all(axis=1)
        values = {"threshold": CURVE_THRESHOLDS[best], "f1_mean": mean[row, best]}
        values |= {"f1_plus": f1_plus[row, best], "f1_minus": f1_minus[row, best]}
        return {f"oracle_{name}": np.where(undefined, np.nan, value) for name, value in values.items()}

    def _rests_on(self) -> dict[str, NDArray[np.bool_]]:
        """By name of the metric, (N,) which images it is computed from."""
        images = self.named.rests_on() | dict(zip(self.ratios, self.below.T > 0, strict=True))
        of_maps = ("pxap", "oracle_threshold", "oracle_f1_mean", "oracle_f1_plus", "oracle_f1_minus")
        images |= dict.fromkeys(of_maps, self.has_histogram)
        return images | {"f1_mean": self.located, "pxap_with_roi": self.has_histogram & (self.count["true"] > 0)}

    def _estimates(self, replicates: int, seed: int) -> dict[str, Estimate]:
        """The point estimates (every weight one) with their intervals."""
        points = self.statistics(np.ones((1, len(self.units.index))))
        samples = resample(self.statistics, self.units, replicates, seed)
        rests_on = self._rests_on()
        estimates = {}
        for key, (point,) in points.items():
            images = np.zeros_like(rests_on[key]) if np.isnan(point) else rests_on[key]
            units = self.units.among(images)
            interval = percentile_interval(samples[key]) if samples and units > 1 else (np.nan, np.nan)
            value, low, high = _json([point, *interval])
            groups = units if self.units.grouped else None
            estimates[key] = Estimate(value, low, high, int(np.count_nonzero(images)), groups)
        return estimates

    def metrics(self, replicates: int, seed: int) -> Metrics:
        """Everything measured, with intervals from so many resamples."""
        estimates = self._estimates(replicates, seed)
        once = np.ones((1, len(self.map_without_roi)))
        curve = [_json(weighted_ratio(once, *terms)[0]) for terms in self.curves]
        tp, fp, tn, fn = (count.sum() for count in self.pixels)
        tpr, tnr = float(ratio(tp, tp + fn)), float(ratio(tn, tn + fp))
        by_class: Any = {key: {name: estimates.pop(f"{key} {name}") for name in self.classes} for key in BY_CLASS}
        return Metrics(
            images=len(self.units.index),
            resampled="groups" if self.units.grouped else "images",
            groups=self.units.count if self.units.grouped else None,
            notes=self.units.notes(),
            classes=self.classes,
            confusion=self.named.confusion.tolist(),
            pixel_confusion=[_json([tnr, 100 - tpr]), _json([100 - tnr, tpr])],
            pxap_images_without_roi=int(np.count_nonzero(self.map_without_roi)),
            threshold_curve={"threshold": _json(CURVE_THRESHOLDS), "f1_plus": curve[0], "f1_minus": curve[1]},
            **by_class,
            **cast(Any, estimates),
        )


def _mean_terms(percent: Floats) -> tuple[Floats, Floats]:
    """Numerator and denominator per image of a mean over the images where the value is defined."""
    defined = ~np.isnan(percent)
    return np.where(defined, percent, 0) / 100, defined.astype(np.float64)


def _json(values: Iterable[float]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
