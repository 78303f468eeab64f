"""Percentile bootstrap over images, or over groups of images.

A unit (an image, or a patient or slide with all its images) is drawn with replacement as a whole: a resample is
a row of weights, how often each image was drawn, so a metric of sums over images becomes `weights @ sums` for all
resamples at once. Units are taken as independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from histoloc.metrics.functional import Floats, ratio

_WEIGHTS_PER_BLOCK = 2**24  # 128 MiB of float64
_IMAGES_PER_BLOCK = 2048  # 33 MB of histograms as float64


class Units:
    """What a bootstrap draws: images, or, where any image has a group, groups with all their images.

    Args:
        groups: (N,) the group of every image, empty where unknown. Among images with groups an image without one is
            a unit of its own.

    Attributes:
        index: (N,) number of every image's unit, in the order of first appearance.
        count: number of units.
        grouped: whether any image has a group.
        ungrouped: number of images without a group.
    """

    def __init__(self, groups: Sequence[str] | NDArray[np.str_]) -> None:
        names = np.asarray(groups, dtype=str).tolist()
        numbers: dict[str | int, int] = {}
        self.index = np.array([numbers.setdefault(name or i, len(numbers)) for i, name in enumerate(names)], np.intp)
        self.count = len(numbers)
        self.grouped = any(names)
        self.ungrouped = names.count("")

    def among(self, images: NDArray[np.bool_]) -> int:
        """Number of units that have an image among the chosen (N,)."""
        return len(np.unique(self.index[images]))

    def notes(self) -> list[str]:
        """What a reader of the intervals must know besides the number of groups, in sentences."""
        notes = []
        if self.grouped and self.ungrouped:
            share = f"{self.ungrouped} of {len(self.index)}"
            notes.append(f"Images without a group: {share}; each is resampled as a group of its own.")
        if self.count < 2:
            what = "All images are of one group" if self.grouped else "There is one image only"
            notes.append(f"{what}: no interval can be computed.")
        return notes


def resampling_weights(units: int, replicates: int, seed: int, width: int = 1) -> Iterator[Floats]:
    """Draw multinomial bootstrap weights, in blocks that fit memory.

    Args:
        units: U, the number of images or groups.
        replicates: R, the number of resamples.
        seed: the weights are a function of (units, seed), and more replicates begin with the same rows.
        width: how many columns the caller makes of a row, where more than U.

    Yields:
        (r, U) float64 with whole numbers; every row sums to U; the r of all blocks sum to R.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, _WEIGHTS_PER_BLOCK // max(units, width))
    for start in range(0, replicates, rows):
        block = np.empty((min(rows, replicates - start), units))
        for row in block:
            row[:] = np.bincount(generator.integers(units, size=units), minlength=units)
        yield block


def bootstrap(
    statistics: Callable[[Floats], Mapping[str, Floats]], units: Units, replicates: int, seed: int
) -> dict[str, Floats]:
    """Evaluate statistics on resamples of the units.

    Args:
        statistics: maps weights (r, N) of the images to named arrays (r,); weights of one give the point estimates.
        units: of the N images.
        replicates: R; 0 gives an empty dictionary.
        seed: of the resampling.

    Returns:
        For every name, (R,) values; nothing for fewer than two units, which say nothing of the spread.
    """
    if units.count < 2:
        return {}
    resamples = resampling_weights(units.count, replicates, seed, width=len(units.index))
    whole = units.count == len(units.index)
    blocks = [statistics(weights if whole else weights.take(units.index, axis=1)) for weights in resamples]
    return {name: np.concatenate([block[name] for block in blocks]) for name in (blocks[0] if blocks else ())}


def percentile_interval(samples: Floats, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of bootstrap samples, leaving out NaN (resamples where the metric is undefined).

    Args:
        samples: (R,).
        level: coverage wanted, in (0, 1).

    Returns:
        Lower and upper bound; both NaN when no sample is defined.
    """
    defined = samples[~np.isnan(samples)]
    if defined.size == 0:
        return float("nan"), float("nan")
    tail = 50 * (1 - level)
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)


def weighted_ratio(weights: Floats, numerator: Floats, denominator: Floats) -> Floats:
    """100 Σ w_i numerator_i / Σ w_i denominator_i: a mean over images, or a rate of pooled pixels.

    Args:
        weights: (R, N).
        numerator: (N, M) per image, 0 where undefined.
        denominator: (N, M): 1 or 0 for a mean over the images where it is defined, or counts.

    Returns:
        (R, M) in percent, NaN where the denominator is 0.
    """
    return ratio(weights @ numerator, weights @ denominator)


def weighted_sum(weights: Floats, counts: NDArray[np.int32]) -> Floats:
    """Σ w_i counts_i: the histograms of weighted images, pooled; exact, since all are whole numbers.

    Args:
        weights: (R, N) whole numbers.
        counts: (N, ...), one histogram per image.

    Returns:
        (R, ...).
    """
    flat = counts.reshape(len(counts), math.prod(counts.shape[1:]))
    total = np.zeros((len(weights), flat.shape[1]))
    for start in range(0, len(flat), _IMAGES_PER_BLOCK):  # never all of them as float64
        block = flat[start : start + _IMAGES_PER_BLOCK]
        total += weights[:, start : start + len(block)] @ block.astype(np.float64)
    return total.reshape(len(weights), *counts.shape[1:])
