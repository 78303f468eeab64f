"""Percentile bootstrap over images.

An image is drawn with replacement as a whole: a resample is a row of weights, how often each image was
drawn, so a metric of sums over images becomes `weights @ sums` for all resamples at once. Images are taken as
independent; where they are not (several from one patient, patches of one slide) intervals are too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from histoloc.metrics.functional import BINS, Floats, pxap, ratio

_WEIGHTS_PER_BLOCK = 2**24  # 128 MiB of float64
_IMAGES_PER_BLOCK = 2048  # 33 MB of histograms as float64


def resampling_weights(images: int, replicates: int, seed: int) -> Iterator[Floats]:
    """Draw multinomial bootstrap weights, in blocks that fit memory.

    Args:
        images: N, the number of images.
        replicates: R, the number of resamples.
        seed: the weights are a function of (images, seed), and more replicates begin with the same rows.

    Yields:
        (r, N) float64 with whole numbers; every row sums to N; the r of all blocks sum to R.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, _WEIGHTS_PER_BLOCK // max(images, 1))
    for start in range(0, replicates, rows):
        block = np.empty((min(rows, replicates - start), images))
        for row in block:
            row[:] = np.bincount(generator.integers(images, size=images), minlength=images)
        yield block


def bootstrap(
    statistics: Callable[[Floats], Mapping[str, Floats]], images: int, replicates: int, seed: int
) -> dict[str, Floats]:
    """Evaluate statistics on resamples of the images.

    Args:
        statistics: maps weights (r, N) to named arrays (r,); weights of one give the point estimates.
        images: N.
        replicates: R; 0 gives an empty dictionary.
        seed: of the resampling.

    Returns:
        For every name, (R,) values.
    """
    blocks = [statistics(weights) for weights in resampling_weights(images, replicates, seed)]
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


def weighted_pxap(weights: Floats, histograms: NDArray[np.int32]) -> Floats:
    """PxAP of weighted images.

    Args:
        weights: (R, N) whole numbers.
        histograms: (N, 2, 1001), one per image.

    Returns:
        (R,) in percent, NaN where no image drawn has ROI.
    """
    pooled = np.zeros((len(weights), 2 * BINS))
    for start in range(0, len(histograms), _IMAGES_PER_BLOCK):  # never all of them as float64
        block = histograms[start : start + _IMAGES_PER_BLOCK].reshape(-1, 2 * BINS)
        pooled += weights[:, start : start + len(block)] @ block.astype(np.float64)
    return pxap(pooled.reshape(-1, 2, BINS))
