"""What pathologists drew on a slide: ASAP's XML and QuPath's GeoJSON, and its mask at any region and scale."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from shapely import MultiPolygon, Polygon, STRtree

from histoloc.errors import InputError
from histoloc.slides.geojson import Feature, geojson_text, read_features, read_geojson, read_limited
from histoloc.types import Origin

Mask = NDArray[np.bool_]
Holes = Literal["subtract", "ignore"]
Role = Literal["roi", "hole", "ignore", "limit"]

CAMELYON_ROI = ("_0", "_1", "metastases", "metastasis", "tumor", "tumour")  # side by side in one file
_ROLES: dict[str, Role] = {
    "ignore*": "ignore", "region*": "limit", **dict.fromkeys(("_2", "exclusion", "normal"), "hole")
}  # fmt: skip
ROLES: dict[Role, str] = {
    "roi": "ROI", "hole": "cut out", "ignore": "cut out and without a label", "limit": "where tiles are taken"
}  # fmt: skip
_MOST_CROSSINGS = 5000  # of the outlines of a file with themselves: a second of repairs


@dataclass(frozen=True)
class Region:
    """One annotation.

    Attributes:
        polygon: valid, inside the slide, in pixels of level 0.
        feature: the shape as the file has it (moved to the slide's level 0 and rounded where that was asked for), with
            its class.
        role: roi; hole, what is cut out of it; ignore, what is cut out and has no label either; limit, where tiles are
            taken.
    """

    polygon: Polygon | MultiPolygon
    feature: Feature
    role: Role = "roi"


@dataclass(frozen=True)
class Annotations:
    """The annotations of one slide.

    Attributes:
        regions: in the order of the file.
        warnings: what was left out, repaired or clipped, each naming the file and the index of the annotation.
    """

    regions: tuple[Region, ...]
    warnings: tuple[str, ...] = ()

    @property
    def counts(self) -> list[tuple[Role, str, int]]:
        """What was taken for what: (role, class, how many)."""
        numbers: Counter[tuple[Role, str]] = Counter((region.role, region.feature.label) for region in self.regions)
        return [(*key, number) for key, number in numbers.items()]

    @cached_property
    def tree(self) -> STRtree:
        """Index of the regions by where they are."""
        return STRtree([region.polygon for region in self.regions])

    def bounds(self) -> NDArray[np.float64]:
        """Bounding boxes (left, top, right, bottom) of the regions that are ROI: (N, 4), pixels of level 0."""
        return shapely.bounds([region.polygon for region in self.regions if region.role == "roi"]).reshape(-1, 4)

    def with_label(self, boxes: NDArray[np.object_]) -> NDArray[np.bool_]:
        """Which of (N,) boxes in pixels of level 0 lie where tiles are taken, and touch nothing that has no label."""
        union = {role: shapely.union_all([r.polygon for r in self.regions if r.role == role]) for role in ROLES}
        within = np.full(len(boxes), union["limit"].is_empty) | shapely.covers(union["limit"], boxes)
        return within & (shapely.area(shapely.intersection(union["ignore"], boxes)) == 0)


def read_annotations(
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    bounds: tuple[int, int] = (0, 0),
    origin: Origin | None = None,
    roi: Collection[str] = (),
    holes: Collection[str] = (),
    rounded: bool = False,
) -> Annotations:
    """Read the annotations of a slide from ASAP XML (`.xml`) or GeoJSON (`.geojson`, `.json`).

    Classes (in XML: groups) are compared without regard to case. Without `roi`, every class is ROI but holes (`_2`,
    `normal`, `Exclusion`), `Ignore*` (cut out), `Region*` (where tiles are taken), other names that end with `*`, and
    shapes without a class around others. Of several classes left, unless they are Camelyon's, the ROI must be named.

    Splines are polygons of their control points. Polygons that cross themselves are repaired, those that leave the
    slide are clipped; the warnings name them and what is left out.

    Args:
        path: of the file.
        size: (width, height) of the slide in pixels of level 0; None clips nothing.
        bounds: `Slide.bounds`, what is the pixel 0, 0 where `origin` is `bounds`.
        origin: where coordinates begin; by default `bounds` in GeoJSON, as QuPath has it, and `level0` in XML.
        roi: the classes that are ROI; all others that are no holes are then left out.
        holes: further classes that are cut out of the ROI.
        rounded: round vertices to whole pixels, as the published Camelyon16 patches were made.

    Raises:
        InputError: the file is absent, damaged, too large, of another format, nothing in it is ROI, or it is unclear.
    """
    features, warnings = _features(path)
    begins = origin or ("level0" if path.suffix.lower() == ".xml" else "bounds")
    features = [_moved(feature, bounds if begins == "bounds" else (0, 0), rounded) for feature in features]
    shapes = _cleaned(path, features, size, warnings)
    roles = _roles(path, shapes, roi, holes)
    parents = _parents([shape for shape in shapes if roles[shape[0].label]], roi)
    regions = [
        Region(polygon, feature, role)
        for feature, polygon in shapes
        if (role := roles[feature.label]) and feature.index not in parents
    ]
    if not any(region.role == "roi" for region in regions):
        raise InputError(
            f"{path}: holds no outline of a ROI on the slide, of these: {_listed(f.label for f in features)}; name "
            "classes that are ROI by --roi-class, or give no annotation for a slide without ROI"
        )
    rest = Counter(f.label for f, _ in shapes) - Counter(region.feature.label for region in regions)
    warnings += [f"{path}: left out, as no ROI: {_listed(rest.elements())}"] if rest else []
    return Annotations(tuple(regions), tuple(warnings))


def _features(path: Path) -> tuple[list[Feature], list[str]]:
    kind = path.suffix.lower()
    if kind not in (".xml", ".geojson", ".json"):
        raise InputError(f"{path}: annotations are ASAP XML (.xml) or GeoJSON (.geojson, .json); export one of these")
    return _read_asap(path) if kind == ".xml" else read_geojson(path)


def _moved(feature: Feature, by: tuple[int, int], rounded: bool) -> Feature:
    if by == (0, 0) and not rounded:
        return feature
    return replace(
        feature, geometry=shapely.transform(feature.geometry, lambda p: np.rint(p + by) if rounded else p + by)
    )


def annotations_text(annotations: Annotations, bounds: tuple[int, int]) -> str:
    """What is ROI and what is cut out of it as GeoJSON, which `read_annotations` reads so without any option."""
    shapes = [(region.role, region.polygon) for region in annotations.regions if region.role != "limit"]
    moved = [(role, shapely.transform(polygon, lambda points: points - bounds)) for role, polygon in shapes]
    return geojson_text(Feature(polygon, "ROI" if role == "roi" else "Exclusion") for role, polygon in moved)


def _listed(labels: Iterable[str]) -> str:
    return ", ".join(f"{label or 'no class'} ({count})" for label, count in Counter(labels).items()) or "none"


def _roles(
    path: Path, shapes: Sequence[tuple[Feature, Any]], roi: Collection[str], holes: Collection[str]
) -> dict[str, Role | None]:
    """What each class of a file is; see `read_annotations`."""
    wanted, cut = ({name.strip().casefold() for name in names} for names in (roi, holes))
    if both := wanted & cut:
        raise InputError(f"the class {min(both)} is named as ROI and as a hole; name it once")
    labels = dict.fromkeys(feature.label for feature, _ in shapes)
    roles: dict[str, Role | None] = {label: _role(label.strip().casefold(), wanted, cut) for label in labels}
    labels = [feature.label for feature, _ in shapes if feature.label and roles[feature.label] == "roi"]
    names = {label.strip().casefold() for label in labels}
    if not wanted and len(names) > 1 and not names <= set(CAMELYON_ROI):
        raise InputError(
            f"{path}: has outlines of {_listed(labels)}, and which of them are ROI is not clear; name these by "
            "--roi-class, what is cut out of them by --hole-class, or in the columns roi_class and hole_class"
        )
    return roles


def _role(name: str, wanted: Collection[str], cut: Collection[str]) -> Role | None:
    if name in wanted:
        return "roi"
    if name in cut:
        return "hole"
    return _ROLES[name] if name in _ROLES else None if wanted or name.endswith("*") else "roi"


def _parents(shapes: Sequence[tuple[Feature, Polygon | MultiPolygon]], roi: Collection[str]) -> set[int | None]:
    """Indices of the shapes without a class that lie around shapes with one."""
    classified = [polygon for feature, polygon in shapes if feature.label]
    if not classified or "" in roi:
        return set()
    points = STRtree([polygon.representative_point() for polygon in classified])
    return {f.index for f, polygon in shapes if not f.label and len(points.query(polygon, predicate="intersects"))}


def _read_asap(path: Path) -> tuple[list[Feature], list[str]]:
    try:
        root = ElementTree.fromstring(read_limited(path))
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise InputError(f"{path}: is no readable XML, it may be cut off ({error}); copy or export it again") from error
    elements = root.findall("Annotations/Annotation")
    if not elements:
        raise InputError(f"{path}: holds no annotations as ASAP writes them; export them from ASAP, or as GeoJSON")

    def parts(element: ElementTree.Element) -> tuple[Any, dict[str, Any]]:
        corners = sorted(element.findall("Coordinates/Coordinate"), key=lambda c: float(c.get("Order", 0)))
        points = [(float(corner.attrib["X"]), float(corner.attrib["Y"])) for corner in corners]
        group = element.get("PartOfGroup", "None")
        has_area = element.get("Type", "Polygon") in ("Polygon", "Spline", "Rectangle")
        return [[points]] if has_area else [], {"label": "" if group == "None" else group}

    return read_features(path, elements, parts)


def _cleaned(
    path: Path, features: Sequence[Feature], size: tuple[int, int] | None, warnings: list[str]
) -> list[tuple[Feature, Polygon | MultiPolygon]]:
    """Each with a valid polygon within the slide; without those of which nothing of an area is left."""
    shapes: list[tuple[Feature, Polygon | MultiPolygon]] = []
    slide = None if size is None else shapely.box(0, 0, *size)
    damaged = [feature.geometry for feature in features if not feature.geometry.is_valid]
    if _crossings(damaged) > _MOST_CROSSINGS:
        raise InputError(f"{path}: its outlines cross themselves more than {_MOST_CROSSINGS:,} times; draw them again")
    for feature in features:
        geometry: shapely.Geometry = feature.geometry
        where = f"{path}, annotation {feature.index}"
        if not geometry.is_valid:
            warnings.append(f"{where}: is no valid polygon ({shapely.is_valid_reason(geometry)}); repaired")
            geometry = shapely.make_valid(geometry, method="structure", keep_collapsed=False)
        if slide is not None and not slide.covers(geometry):
            warnings.append(f"{where}: leaves the slide of {slide.bounds[2]:.0f}x{slide.bounds[3]:.0f} px; clipped")
            geometry = geometry.intersection(slide)
        parts = shapely.get_parts(shapely.get_parts(geometry))
        polygons = list(parts[shapely.area(parts) > 0])  # repairing and clipping may leave lines and points behind
        if polygons:
            shapes.append((feature, polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)))
        else:
            warnings.append(f"{where}: has no area on the slide; left out")
    return shapes


def _crossings(geometries: Sequence[shapely.Geometry]) -> int:
    """How often their edges cross or touch others of the same shape, counted until it is too often."""
    number = 0
    for geometry in geometries:
        points, ring = shapely.get_coordinates(shapely.get_rings(geometry), return_index=True)
        edges = np.stack([points[:-1], points[1:]], axis=1)[
            (ring[1:] == ring[:-1]) & (points[1:] != points[:-1]).any(1)
        ]
        lines = np.atleast_1d(np.asarray(shapely.linestrings(edges)))
        tree, step = STRtree(lines), max(20, 500_000 // max(1, len(lines)))
        for first in range(0, len(lines), step):
            some = lines[first : first + step]
            number += tree.query(some, predicate="intersects").shape[1] - 3 * len(some)  # itself and its neighbours
            if number > 2 * _MOST_CROSSINGS:  # each pair is met twice
                return number // 2
    return number // 2


def rasterise(
    annotations: Annotations,
    x: float,
    y: float,
    width: int,
    height: int,
    downsample: float = 1.0,
    *,
    holes: Holes = "subtract",
    outlined: bool = False,
) -> Mask:
    """Draw the mask of a region of the slide at any scale; only polygons that touch the region are looked at.

    A pixel is ROI if its centre is inside a polygon of the ROI and, with `holes="subtract"`, in none that is cut
    out. What a region shows does not depend on where the region begins.

    Args:
        annotations: of the slide.
        x: left edge of the region in pixels of level 0.
        y: top edge.
        width: width of the mask in its own pixels.
        height: height of the mask in its own pixels.
        downsample: pixels of level 0 per pixel of the mask.
        holes: whether holes, drawn as such or inside a polygon, are cut out, or ignored as in the published
            Camelyon16 masks.
        outlined: draw as the published Camelyon16 masks were, with `holes="ignore"`: polygons of whole pixels, filled
            together with their outline. Edges of ten thousands of pixels may differ by a pixel between regions.

    Returns:
        (height, width) bool.
    """
    if width < 1 or height < 1 or not 0 < downsample < math.inf:
        raise ValueError(f"cannot draw {width} x {height} pixels at the downsample {downsample}")
    if outlined and holes == "subtract":
        raise ValueError("outlined polygons grow by their outline, holes too: use holes='ignore'")
    right, bottom = x + width * downsample, y + height * downsample
    # One pixel more on each side, because an outline covers the pixel right and below of its vertices.
    area = shapely.box(x - downsample, y - downsample, right + downsample, bottom + downsample)
    touching = [annotations.regions[i] for i in sorted(annotations.tree.query(area))]
    if outlined:
        return _draw_outlined([r for r in touching if r.role == "roi"], (x, y), (width, height), downsample)
    mask = np.zeros((height, width), bool)
    for region in sorted((r for r in touching if r.role != "limit"), key=lambda region: region.role != "roi"):
        if holes == "subtract":
            _fill(mask, _rings(region.polygon), (x, y), downsample, value=region.role == "roi")
        elif region.role == "roi":
            # Without the holes between them, outlines may lie in one another; together they would cancel.
            for ring in _rings(region.polygon, with_holes=False):
                _fill(mask, [ring], (x, y), downsample, value=True)
    return mask


def _rings(geometry: Polygon | MultiPolygon, *, with_holes: bool = True) -> list[NDArray[np.float64]]:
    rings = [ring for p in shapely.get_parts(geometry) for ring in (p.exterior, *(p.interiors if with_holes else ()))]
    return [shapely.get_coordinates(ring) for ring in rings]


def _draw_outlined(
    regions: Sequence[Region], origin: tuple[float, float], size: tuple[int, int], downsample: float
) -> Mask:
    # With a margin, because Pillow rounds halves away from 0: what is cut off at 0 would depend on the region.
    image = Image.new("1", (size[0] + 2, size[1] + 2))
    draw = ImageDraw.Draw(image)
    for region in regions:
        for ring in _rings(region.feature.geometry, with_holes=False):
            # Pillow cuts fractions off towards zero, which would shift what lies left and above of the region.
            points = np.floor((ring - origin) / downsample).astype(int) + 1
            draw.polygon([(int(u), int(v)) for u, v in points[:-1]], fill=1, outline=1)
    return np.array(image, dtype=bool)[1:-1, 1:-1]


def _fill(
    mask: Mask, rings: Sequence[NDArray[np.float64]], origin: tuple[float, float], downsample: float, *, value: bool
) -> None:
    """Set the pixels whose centre is inside by the even-odd rule.

    Every edge flips all pixels of a row to the right of where it crosses the row's centre line. Libraries either
    draw the outline along, which makes tumours larger and holes smaller, or test every pixel against every edge.
    """
    (x, y), (height, width) = origin, mask.shape
    start = np.concatenate([ring[:-1] for ring in rings])
    end = np.concatenate([ring[1:] for ring in rings])
    # Rows whose centre line y + (row + 0.5) * downsample is in [upper, lower): a shared vertex counts once.
    first = _first_centre(np.minimum(start[:, 1], end[:, 1]), y, downsample, height)
    last = _first_centre(np.maximum(start[:, 1], end[:, 1]), y, downsample, height)
    left, right = _first_centre(np.array([start[:, 0].min(), start[:, 0].max()]), x, downsample, width)
    top, bottom = first.min(), last.max()
    if left == right or top == bottom:
        return
    count = last - first
    edge = np.repeat(np.arange(len(start)), count)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    crossing = x0 + (y + (row + 0.5) * downsample - y0) * (x1 - x0) / (y1 - y0)
    column = np.clip(_first_centre(crossing, x, downsample, width), left, right)
    flips = np.zeros((bottom - top, right - left + 1), np.uint8)
    np.bitwise_xor.at(flips, (row - top, column - left), 1)
    inside = np.bitwise_xor.accumulate(flips[:, :-1], axis=1).view(bool)
    mask[top:bottom, left:right][inside] = value


def _first_centre(coordinate: NDArray[np.float64], origin: float, downsample: float, length: int) -> NDArray[np.int_]:
    """The first pixel whose centre is not before a coordinate; `length` where there is none."""
    return np.clip(np.ceil((coordinate - origin) / downsample - 0.5), 0, length).astype(int)
