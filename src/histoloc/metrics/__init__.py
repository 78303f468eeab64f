"""What is measured, and how: pure functions, a collector of images, and intervals."""

from histoloc.metrics.accumulate import LocalizationMetrics
from histoloc.metrics.functional import dice, map_histogram, pixel_counts, pxap
from histoloc.metrics.summary import Estimate, Metrics

__all__ = ["Estimate", "LocalizationMetrics", "Metrics", "dice", "map_histogram", "pixel_counts", "pxap"]
