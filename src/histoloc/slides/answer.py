"""From tiles to the slide's answer: class probabilities, and how sure it is where."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TOP_SHARE = 0.01  # of the tiles, those most certain of ROI, speak for a slide

OF_TOP_TILES = (
    "probability of ROI = mean over the 1 % of tiles (at least one) whose probability of the class without ROI is "
    "least; what is left is the class without ROI"
)
OF_ALL_TILES = "mean of the tiles' class probabilities, weighted by their share of tissue"
OF_NO_CLASSIFIER = "the method does not classify; slides are sorted by the share of their tissue that is ROI"


def slide_probabilities(
    probabilities: NDArray[np.float32], tissue: NDArray[np.floating], empty: int | None
) -> NDArray[np.float64]:
    """Class probabilities of a slide from those of its tiles.

    Where a class has no ROI (normal tissue), one small metastasis makes the slide metastatic: the tiles that are most
    certain of ROI decide. Otherwise every tile has a say, by its tissue.

    Args:
        probabilities: (N, K) of the tiles, rows sum to one; N from 1.
        tissue: (N,) share of tissue of each tile, in [0, 1].
        empty: index of the class without ROI, or None.

    Returns:
        (K,), sums to one.
    """
    p = probabilities.astype(np.float64)
    if empty is None:
        weight = np.asarray(tissue, np.float64)
        weight = weight if weight.sum() > 0 else np.ones(len(p))
        mean = (p * weight[:, None]).sum(axis=0) / weight.sum()
        return mean / mean.sum()
    most = max(1, round(TOP_SHARE * len(p)))
    order = np.argsort(p[:, empty], kind="stable")[:most]
    mean = p[order].mean(axis=0)
    return mean / mean.sum()


def uncertainty(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Entropy of class probabilities in units of the greatest possible one: (N, K) -> (N,) in [0, 1]."""
    p = probabilities.astype(np.float64)
    terms = np.where(p > 0, -p * np.log(np.where(p > 0, p, 1)), 0)
    return np.clip(terms.sum(axis=1) / np.log(p.shape[1]), 0, 1).astype(np.float32)
