"""Outlines of a mask that lies in memory, as GeoJSON with the names that slides' outlines have."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import find_contours

_SMALLEST = 4  # pixels; what is smaller cannot be seen


def mask_outlines(mask: NDArray[np.bool_], label: str, values: NDArray[np.uint8] | None = None) -> dict[str, Any]:
    """Polygons around the connected parts of a mask.

    Args:
        mask: (H, W) bool.
        label: name of their class.
        values: (H, W) uint8, the map in 0 to 255 of which a part's mean is its probability.

    Returns:
        A FeatureCollection in pixels, the corner of the first pixel at (0, 0). Lines run halfway between pixels in
        and out; parts that touch at a corner are two; parts of fewer than 4 pixels are left out.
    """
    parts, _ = ndimage.label(mask)
    features = []
    for number, place in enumerate(ndimage.find_objects(parts), 1):
        part = parts[place] == number
        area = int(part.sum())
        if area < _SMALLEST:
            continue
        measurements: dict[str, float] = {"Area px": area}
        if values is not None and values.shape == mask.shape:
            measurements["Probability"] = round(float(values[place][part].mean()) / 255, 4)
        rings = _rings(part, place[1].start, place[0].start)
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": rings},
                "properties": {"classification": {"name": label}, "measurements": measurements},
            }
        )
    return {"type": "FeatureCollection", "features": features}


def _rings(part: NDArray[np.bool_], left: int, top: int) -> list[list[list[float]]]:
    """Closed rings of a part, the outer one first; pixel centres lie at halves."""
    contours = find_contours(np.pad(part, 1).astype(np.float32), 0.5, fully_connected="low")
    contours.sort(key=len, reverse=True)
    offset = np.array([left - 0.5, top - 0.5])
    return [np.round(contour[:, ::-1] + offset, 1).tolist() for contour in contours]
