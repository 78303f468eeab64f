"""Outlines of what a map calls ROI, exact to the cell, from maps of any size."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely import Polygon

from histoloc.errors import InputError
from histoloc.slides.geojson import Color, Feature, write_geojson

Rows = Callable[[int, int], NDArray[np.uint8]]

ROI_COLOR: Color = (230, 120, 0)
_AREA_KEPT = 0.1  # share of its area by which simplifying may change an outline


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


def in_roi(values: NDArray[np.uint8], threshold: float) -> NDArray[np.bool_]:
    """Which cells are ROI: `values / 255 >= threshold`, except 0, which also stands for outside the tissue.

    Args:
        values: of the map, uint8 of any shape.
        threshold: in [0, 1].

    Returns:
        bool of the same shape.

    Raises:
        InputError: the threshold is outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"--threshold {threshold} must lie within [0, 1]")
    lowest = int(np.argmax(np.arange(256) / 255 >= threshold))
    return values >= max(1, lowest)


def find_outlines(
    rows: Rows,
    shape: tuple[int, int],
    threshold: float,
    scale: float,
    cell_mpp: float,
    *,
    size: tuple[float, float] | None = None,
    min_area_mm2: float = 0.0,
    simplify_cells: float = 1.0,
    block: int = 1024,
) -> list[Outline]:
    """Outline the regions of a map: cells that share an edge belong together, cells that share a corner do not.

    The map is read in bands; memory grows with the length of the outlines, not with the map. Before they are
    simplified, outlines follow the cells' edges exactly.

    Args:
        rows: `rows(first, end)` gives those rows of the map, (end - first, W) uint8 for 0 to 1.
        shape: (H, W) of the map in cells.
        threshold: of `in_roi`, in [0, 1].
        scale: pixels of level 0 per cell.
        cell_mpp: micrometres per cell.
        size: (width, height) of the slide in pixels of level 0, beyond which the last cells may reach: outlines end
            there.
        min_area_mm2: smaller regions are left out.
        simplify_cells: about how far, in cells, an outline may move when it is simplified; 0 leaves it exact. So
            stays an outline whose area would change by more than a tenth (specks of a few cells).
        block: about block x block cells are looked at at a time.

    Returns:
        The regions, largest first; those of one size from top to bottom, then from left to right.

    Raises:
        InputError: the threshold is outside [0, 1].
    """
    if not (0 < scale < math.inf and 0 < cell_mpp < math.inf):
        raise ValueError(f"a cell of {scale} px and {cell_mpp} µm is none")
    cell_mm2 = (cell_mpp / 1000) ** 2
    traced = _Regions(math.ceil(round(min_area_mm2 / cell_mm2, 6)))
    for mask, values in _bands(rows, shape, threshold, block):
        traced.add(mask, values)
    polygons, cells, means = traced.finish()
    limit = (np.inf, np.inf) if size is None else size
    exact = shapely.transform(polygons, lambda points: np.minimum(points * scale, limit))
    left, top = shapely.bounds(exact).reshape(-1, 4)[:, :2].T
    drawn = _simplified(exact, simplify_cells * scale)
    order = np.lexsort((left, top, -cells))
    return [Outline(drawn.item(i), float(cells[i] * cell_mm2), float(means[i] / 255)) for i in order]


def _bands(
    rows: Rows, shape: tuple[int, int], threshold: float, block: int
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.uint8]]]:
    tall = max(1, min(block, block * block // shape[1]))
    for first in range(0, shape[0], tall):
        values = rows(first, min(first + tall, shape[0]))
        yield in_roi(values, threshold), values
    # A last row of nothing closes what reaches the lower edge.
    yield np.zeros((1, shape[1]), bool), np.zeros((1, shape[1]), np.uint8)


def _simplified(exact: NDArray[np.object_], tolerance: float) -> NDArray[np.object_]:
    """Simplified polygons; exact where simplifying would break one or change its area much."""
    if not tolerance:
        return exact
    simple = shapely.simplify(exact, tolerance, preserve_topology=True)
    area = shapely.area(exact)
    kept = shapely.is_valid(simple) & (np.abs(shapely.area(simple) - area) <= _AREA_KEPT * area)
    return np.where(kept, simple, exact)


class _Regions:
    """Regions traced band by band.

    A corner is where the outline turns, at a vertex of the grid. Along each grid line corners come in pairs, the
    two ends of a straight edge, so that all outlines follow from the sorted corners alone. Where two cells meet by
    their corners only, a vertex has two corners, told apart by which edges they end: `after_x` is set for the one
    whose edge goes to the right, `after_y` for the one whose edge goes down.
    """

    def __init__(self, min_cells: int) -> None:
        self._min_cells = min_cells
        self._first = 0  # row of the band
        self._above: NDArray[np.int64] = np.zeros(0, np.int64)  # labels of the last row before the band
        self._labels = 1  # the next label; 0 is the background
        self._counts: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
        self._sums: list[NDArray[np.float64]] = [np.zeros(1)]
        self._joined: list[NDArray[np.int64]] = []  # (2, n) labels of one region
        self._corners: list[NDArray[np.int64]] = []  # (3, n): y, x, label
        self._touching: list[NDArray[np.int64]] = []  # (6, n): see `_trace`

    def add(self, mask: NDArray[np.bool_], values: NDArray[np.uint8]) -> None:
        """Take the next rows."""
        local, found = ndimage.label(mask)
        counts = np.bincount(local.ravel(), minlength=found + 1)[1:]
        self._counts.append(counts)
        sums = np.bincount(local.ravel(), values.ravel().astype(np.float64), minlength=found + 1)
        self._sums.append(sums[1:].astype(np.float64))
        labels = np.where(mask, local.astype(np.int64) + (self._labels - 1), 0)
        above = self._above if self._first else np.zeros(mask.shape[1], np.int64)
        both = (above > 0) & (labels[0] > 0)
        self._joined.append(np.unique(np.stack([above[both], labels[0][both]]), axis=1))
        self._trace(np.pad(np.concatenate([above[None], labels]), [(0, 0), (1, 1)]), counts, found)
        self._above = labels[-1]
        self._labels += found
        self._first += len(mask)

    def _trace(self, labels: NDArray[np.int64], counts: NDArray[np.int64], found: int) -> None:
        """Note the corners of a band, below the row above it and with a column of background at either side."""
        inside = labels > 0
        a, b, c, d = inside[:-1, :-1], inside[:-1, 1:], inside[1:, :-1], inside[1:, 1:]
        small = np.zeros(self._labels + found, bool)
        # What touches no edge of the band is complete: specks are forgotten here, so that noise takes no memory.
        small[self._labels :] = counts < self._min_cells
        small[labels[[0, 1, -1]].ravel()] = False
        y, x = np.nonzero(a ^ b ^ c ^ d)
        label = labels[:-1, :-1][y, x]
        for other in (labels[:-1, 1:], labels[1:, :-1], labels[1:, 1:]):
            label = np.maximum(label, other[y, x])
        kept = ~small[label]
        self._corners.append(np.stack([y[kept] + self._first, x[kept], label[kept]]))
        y, x = np.nonzero((a == d) & (b == c) & (a != b))
        falling = a[y, x]
        left = np.where(falling, labels[y, x], labels[y + 1, x])
        right = np.where(falling, labels[y + 1, x + 1], labels[y, x + 1])
        for mine, other, side in ((left, right, 0), (right, left, 1)):
            kept = ~small[mine]
            noted = np.stack([y + self._first, x, mine, other, falling, np.full_like(y, side)])
            self._touching.append(noted[:, kept].astype(np.int64))

    def finish(self) -> tuple[NDArray[np.object_], NDArray[np.int64], NDArray[np.float64]]:
        """Polygons in cells, and of each the number of cells and the mean value."""
        pairs = np.concatenate(self._joined, axis=1)
        graph = coo_array((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), shape=(self._labels, self._labels))
        regions, found = connected_components(graph, directed=False)
        region_of = found.astype(np.int64)
        counts = np.bincount(region_of, np.concatenate(self._counts), minlength=regions).astype(np.int64)
        sums = np.bincount(region_of, np.concatenate(self._sums), minlength=regions).astype(np.float64)
        y, x, label = np.concatenate(self._corners, axis=1)
        turns = np.zeros_like(y)
        corners = np.stack([y, x, region_of[label], turns, turns])
        corners = np.concatenate([corners, self._resolved(region_of)], axis=1)
        corners = corners[:, counts[corners[2]] >= self._min_cells]
        if not corners.size:
            return np.zeros(0, object), counts[:0], sums[:0]
        polygons, region = _polygons(corners)
        return polygons, counts[region], sums[region] / counts[region]

    def _resolved(self, region_of: NDArray[np.int64]) -> NDArray[np.int64]:
        """Two corners for each vertex where cells touch by their corners: (5, n) as `_polygons` takes them.

        Cells of two regions part there. Cells of one region, which are joined elsewhere, join: what they enclose
        becomes a hole that touches the outline, where an outline that touches itself would be no valid polygon.
        """
        y, x, mine, other, falling, side = np.concatenate(self._touching, axis=1)
        region = region_of[mine]
        one = region == region_of[other]
        # A corner's edges go left or right and up or down. Of the cells' own corners, the left one's edge goes left;
        # it goes up where that cell is the upper one. Joined, it is the background's corners that count.
        after_y = np.where(falling == 1, side, 1 - side)
        after_y = np.where(one, 1 - after_y, after_y)
        return np.stack([y, x, region, side, after_y])


def _polygons(corners: NDArray[np.int64]) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Polygons from corners (5, n): y, x, region, after_x, after_y; and the region of each."""
    y, x, region, after_x, after_y = corners
    along_x = _partners(np.lexsort((after_x, x, y)))
    along_y = _partners(np.lexsort((after_y, y, x)))
    order, starts = _rings(along_x, along_y)
    points = np.stack([x[order], y[order]], axis=1).astype(np.float64)
    owner = region[order[starts[:-1]]]
    nexts = np.arange(1, len(order) + 1)
    nexts[starts[1:] - 1] = starts[:-1]
    area = np.abs(np.add.reduceat(points[:, 0] * points[nexts, 1] - points[nexts, 0] * points[:, 1], starts[:-1]))
    # The outline comes first, then its holes: all lie within it, so that its area is the largest.
    sorted_rings = np.lexsort((-area, owner))
    lengths = np.diff(starts)[sorted_rings] + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    begin = np.repeat(starts[:-1][sorted_rings], lengths)
    closed = points[begin + within % np.repeat(lengths - 1, lengths)]
    regions, firsts = np.unique(owner[sorted_rings], return_index=True)
    polygons = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, closed, (offsets, np.append(firsts, len(sorted_rings)))
    )
    return shapely.orient_polygons(polygons), regions


def _partners(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The other end of each corner's edge, where sorted corners come in pairs."""
    partner = np.empty_like(order)
    partner[order[::2]], partner[order[1::2]] = order[1::2], order[::2]
    return partner


def _rings(along_x: NDArray[np.int64], along_y: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Follow edges in turn along x and y until all corners are used: corners in order, and where rings start."""
    # Buffers, since arrays are slow to index one by one, and lists of numbers are large.
    to_x, to_y, used = along_x.data, along_y.data, bytearray(len(along_x))
    order, starts = array("q"), array("q", [0])
    for start in range(len(used)):
        if used[start]:
            continue
        corner = start
        while not used[corner]:
            after = to_x[corner]
            used[corner] = used[after] = 1
            order.append(corner)
            order.append(after)
            corner = to_y[after]
        starts.append(len(order))
    return np.array(order), np.array(starts)


def write_regions(path: Path, outlines: Sequence[Outline], label: str, color: Color = ROI_COLOR) -> None:
    """Write outlines as detections that QuPath imports; none gives an empty collection.

    Args:
        path: the file, `.geojson`.
        outlines: of `find_outlines`.
        label: the class they get.
        color: red, green, blue of the class, from 0 to 255.

    Raises:
        InputError: the file cannot be written.
    """
    features: Iterable[Feature] = (
        Feature(
            outline.geometry,
            label,
            color,
            {"Probability": outline.probability, "Area mm^2": outline.area_mm2},
            kind="detection",
        )
        for outline in outlines
    )
    write_geojson(path, features)
