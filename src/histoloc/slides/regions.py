"""Outlines of what a map calls ROI, exact to the cell, from maps of any size."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from shapely import Polygon

from histoloc.slides.geojson import Color, Feature, write_geojson

ROI_COLOR: Color = (230, 120, 0)
_AREA_CHANGE = 0.1  # share of its area by which simplifying may change an outline

Bands = Iterable[NDArray[np.uint8]]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Outline:
    """One connected region of ROI.

    Attributes:
        geometry: valid, with holes, in pixels of level 0; simplified unless it is small.
        area_mm2: of the region's cells, before it was simplified.
        probability: mean of the map inside, in [0, 1].
    """

    geometry: Polygon
    area_mm2: float
    probability: float


def lowest_roi(threshold: float) -> int:
    """The least byte of a map that is ROI: `value / 255 >= threshold`, except 0, which also means no tissue."""
    return max(1, int(np.argmax(np.arange(256) / 255 >= threshold)))


def find_outlines(
    bands: Bands,
    threshold: float,
    scale: float,
    cell_mpp: float,
    *,
    size: tuple[float, float] = (math.inf, math.inf),
    min_area_mm2: float = 0.0,
    simplify_cells: float = 1.0,
) -> list[Outline]:
    """Outline the regions of a map: cells that share an edge belong together, cells that share a corner do not.

    Memory grows with the length of the outlines, not with the map. Before they are simplified, outlines follow the
    cells' edges exactly.

    Args:
        bands: the rows of the map from top to bottom, some at a time: (r, W) uint8 for 0 to 1.
        threshold: in [0, 1], see `lowest_roi`.
        scale: pixels of level 0 per cell.
        cell_mpp: micrometres per cell.
        size: (width, height) of the slide in pixels of level 0, beyond which the last cells may reach: outlines end
            there.
        min_area_mm2: smaller regions are left out.
        simplify_cells: about how far, in cells, an outline may move when it is simplified; 0 leaves it exact. So
            stays an outline whose area would change by more than a tenth (specks of a few cells).

    Returns:
        The regions, largest first; those of one size from top to bottom, then from left to right.
    """
    cell_mm2 = (cell_mpp / 1000) ** 2
    min_cells = math.ceil(round(min_area_mm2 / cell_mm2, 6))
    corners = _corners(bands, lowest_roi(threshold), min_cells)
    regions = _regions(corners)
    regions = regions[shapely.area(regions) >= min_cells]
    cells = shapely.area(regions)
    means = _sums(regions, corners) / cells / 255
    exact = shapely.transform(regions, lambda points: np.minimum(points[:, ::-1] * scale, size))
    polygons = _simplified(exact, simplify_cells * scale)
    left, top, _, _ = shapely.bounds(exact).reshape(-1, 4).T
    order = np.lexsort((left, top, -cells))
    return [Outline(polygons.item(i), float(cells[i] * cell_mm2), float(means[i])) for i in order]


def _simplified(exact: NDArray[np.object_], tolerance: float) -> NDArray[np.object_]:
    """Simplified polygons; exact where simplifying would break one or change its area much."""
    simple = shapely.simplify(exact, tolerance, preserve_topology=True)
    area = shapely.area(exact)
    good = shapely.is_valid(simple) & (np.abs(shapely.area(simple) - area) <= _AREA_CHANGE * area)
    return np.where(good, simple, exact)


class _Corners(NamedTuple):
    """Where outlines turn: vertices of the grid of cells, from top to bottom and from left to right.

    Attributes:
        points: (n, 2) y, x of each.
        inside: (n,) bool, whether the cell to the lower right is ROI.
        twice: (n,) bool, where two cells of ROI meet by their corners alone, so that two outlines turn.
        sums: (n,) of the map over all cells above and to the left.
    """

    points: Integers
    inside: NDArray[np.bool_]
    twice: NDArray[np.bool_]
    sums: Integers


def _corners(bands: Bands, lowest: int, min_cells: int) -> _Corners:
    rest, parts, first = iter(bands), [], 0
    start = next(rest)
    above, total = np.zeros(start.shape[1], bool), np.zeros(start.shape[1] + 1, np.int64)
    # A last row of nothing closes what reaches the lower edge.
    for values in chain([start], rest, [np.zeros_like(start[:1])]):
        mask = _without_specks(values >= lowest, min_cells)
        cells = np.pad(np.concatenate([above[None], mask]), [(0, 0), (1, 1)])
        a, b, c, d = cells[:-1, :-1], cells[:-1, 1:], cells[1:, :-1], cells[1:, 1:]
        meeting = (a == d) & (b == c) & (a != b)
        y, x = np.nonzero((a ^ b ^ c ^ d) | meeting)
        sums = np.pad(values.cumsum(axis=0, dtype=np.int64).cumsum(axis=1), [(1, 0), (1, 0)]) + total
        parts.append(_Corners(np.stack([y + first, x], axis=1), d[y, x], meeting[y, x], sums[y, x]))
        first, above, total = first + len(values), mask[-1], sums[-1]
    return _Corners(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _without_specks(mask: NDArray[np.bool_], min_cells: int) -> NDArray[np.bool_]:
    """Drop small regions that lie in the band as a whole, so that noise takes no memory."""
    labels, number = ndimage.label(mask)
    large = np.bincount(labels.ravel(), minlength=number + 1) >= min_cells
    large[labels[[0, -1]].ravel()] = True
    large[0] = False
    return large[labels]


def _regions(corners: _Corners) -> NDArray[np.object_]:
    """Polygons in y, x from the corners of their outlines; each ring begins at its uppermost corner, the left one."""
    faces = shapely.normalize(shapely.get_parts(shapely.polygonize(_lines(corners))))
    starts = shapely.get_coordinates(shapely.get_point(shapely.get_exterior_ring(faces), 0))
    return faces[corners.inside[_indices(corners, starts)]]


def _lines(corners: _Corners) -> NDArray[np.object_]:
    """Lines that part the map into faces, of ROI and of holes: outlines, cut where they touch.

    Along each line of the grid corners come in pairs, the two ends of a straight edge.
    """
    ends = np.concatenate([corners.points, corners.points[corners.twice]])
    touching = np.concatenate([corners.twice, corners.twice[corners.twice]]).tobytes()
    # Buffers, since arrays are slow to index one by one, and lists of numbers are large.
    along_x, along_y = (_partners(ends[:, 0], ends[:, 1]).data, _partners(ends[:, 1], ends[:, 0]).data)
    used, path, starts = bytearray(len(ends)), array("q"), array("q")
    for start in range(len(ends)):
        if used[start]:
            continue
        corner = start
        starts.append(len(path))
        while not used[corner]:
            after = along_x[corner]
            used[corner] = used[after] = 1
            for one in (corner, after):
                path.append(one)
                if touching[one] and one != start:
                    starts.append(len(path))
                    path.append(one)
            corner = along_y[after]
        path.append(start)
    line = np.repeat(np.arange(len(starts)), np.diff([*starts, len(path)]))
    return np.asarray(shapely.linestrings(ends[np.array(path, np.int64)].astype(np.float64), indices=line))


def _partners(line: Integers, place: Integers) -> Integers:
    """The other end of each corner's edge along one axis: its neighbour on the same line of the grid."""
    order = np.lexsort((place, line))
    partner = np.empty_like(order)
    partner[order[::2]], partner[order[1::2]] = order[1::2], order[::2]
    return partner


def _sums(regions: NDArray[np.object_], corners: _Corners) -> Integers:
    """Of the map over each region, by what is summed above and to the left of the ends of its edges along x."""
    rings, owners = shapely.get_rings(regions, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    sums = corners.sums[_indices(corners, points)]
    along_x = (points[1:, 0] == points[:-1, 0]) & (ring[1:] == ring[:-1])
    # Outlines run to the right along their upper edges, holes along their lower ones.
    return np.bincount(owners[ring[1:][along_x]], -np.diff(sums)[along_x], minlength=len(regions))


def _indices(corners: _Corners, points: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which corners some points are."""
    width = int(corners.points[:, 1].max(initial=0)) + 1
    return np.searchsorted(corners.points @ [width, 1], points.astype(np.int64) @ [width, 1])


def write_regions(path: Path, outlines: Iterable[Outline], label: str) -> None:
    """Write outlines as detections of a class that QuPath imports; none gives an empty collection.

    Raises:
        InputError: the file cannot be written.
    """
    features = (
        Feature(o.geometry, label, ROI_COLOR, {"Probability": o.probability, "Area mm^2": o.area_mm2}, "detection")
        for o in outlines
    )
    write_geojson(path, features)
