"""What pathologists drew on a slide: ASAP's XML and QuPath's GeoJSON, and its mask at any region and scale."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
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
from histoloc.slides.geojson import Feature, read_features, read_geojson

Mask = NDArray[np.bool_]
Holes = Literal["subtract", "ignore"]

CAMELYON_ROI = ("Tumor", "_0", "_1")
CAMELYON_HOLES = ("_2",)


@dataclass(frozen=True)
class Region:
    """One annotation.

    Attributes:
        polygon: valid, inside the slide, in pixels of level 0.
        feature: the shape as the file has it (rounded where that was asked for), with its class.
        hole: whether the shape is cut out of the ROI instead of being added to it.
    """

    polygon: Polygon | MultiPolygon
    feature: Feature
    hole: bool = False


@dataclass(frozen=True)
class Annotations:
    """The annotations of one slide.

    Attributes:
        regions: in the order of the file.
        warnings: what was left out, repaired or clipped, each naming the file and the index of the annotation.
    """

    regions: tuple[Region, ...]
    warnings: tuple[str, ...] = ()

    @cached_property
    def tree(self) -> STRtree:
        """Index of the regions by where they are."""
        return STRtree([region.polygon for region in self.regions])

    def bounds(self) -> NDArray[np.float64]:
        """Bounding boxes (left, top, right, bottom) of the regions that are ROI: (N, 4), pixels of level 0."""
        return shapely.bounds([region.polygon for region in self.regions if not region.hole]).reshape(-1, 4)


def read_annotations(
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    roi: Collection[str] | None = None,
    holes: Collection[str] | None = None,
    rounded: bool = False,
) -> Annotations:
    """Read the annotations of a slide from ASAP XML (`.xml`) or GeoJSON (`.geojson`, `.json`).

    Splines are polygons of their control points. Polygons that cross themselves are repaired, those that leave the
    slide are clipped; the warnings name them and what is left out.

    Args:
        path: of the file.
        size: (width, height) of the slide in pixels of level 0; None clips nothing.
        roi: the classes (in XML: groups) that are ROI. By default, in XML those of Camelyon, `Tumor`, `_0` and
            `_1`; in GeoJSON every class that is no hole, and shapes without a class.
        holes: the classes that are cut out of the ROI; by default `_2` in XML and none in GeoJSON.
        rounded: round vertices to whole pixels, as the published Camelyon16 patches were made.

    Raises:
        InputError: the file is absent, cut in half, of another format, or nothing in it is ROI.
    """
    kind = path.suffix.lower()
    if kind not in (".xml", ".geojson", ".json"):
        raise InputError(f"{path}: annotations are ASAP XML (.xml) or GeoJSON (.geojson, .json); export one of these")
    features, warnings = _read_asap(path) if kind == ".xml" else read_geojson(path)
    if kind == ".xml":
        roi, holes = CAMELYON_ROI if roi is None else roi, CAMELYON_HOLES if holes is None else holes
    holes = () if holes is None else holes
    unknown: Counter[str] = Counter()
    regions: list[Region] = []
    for feature in features:
        if feature.label not in holes and roi is not None and feature.label not in roi:
            unknown[feature.label] += 1
            continue
        if rounded:
            feature = replace(feature, geometry=shapely.transform(feature.geometry, np.rint))
        polygon = _cleaned(feature.geometry, size, f"{path}, annotation {feature.index}", warnings)
        if polygon is not None:
            regions.append(Region(polygon, feature, feature.label in holes))
    known = ", ".join((*(roi or ()), *holes))
    labels = ", ".join(f"'{label}' ({count})" for label, count in unknown.items())
    if unknown:
        warnings.append(f"{path}: annotations of unknown classes are left out: {labels}; known are {known}")
    if all(region.hole for region in regions):
        holds = f"it has {labels}, known are {known}" if unknown else "; ".join(warnings) or "it is empty"
        raise InputError(f"{path}: holds no annotation of a ROI ({holds}); give no annotations for a slide without ROI")
    return Annotations(tuple(regions), tuple(warnings))


def _read_asap(path: Path) -> tuple[list[Feature], list[str]]:
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such annotation file; correct the path") from error
    except (ElementTree.ParseError, LookupError, ValueError, OSError) as error:
        raise InputError(f"{path}: is no readable XML, it may be cut off ({error}); copy or export it again") from error
    elements = root.findall("Annotations/Annotation")
    if not elements:
        raise InputError(f"{path}: holds no annotations as ASAP writes them; export them from ASAP, or as GeoJSON")

    def parts(element: ElementTree.Element) -> tuple[Any, dict[str, Any]]:
        corners = sorted(element.findall("Coordinates/Coordinate"), key=lambda c: float(c.get("Order", 0)))
        points = [(float(c.attrib["X"]), float(c.attrib["Y"])) for c in corners]
        return [[points]], {"label": element.get("PartOfGroup", "")}

    return read_features(path, elements, parts)


def _cleaned(
    geometry: Polygon | MultiPolygon, size: tuple[int, int] | None, where: str, warnings: list[str]
) -> Polygon | MultiPolygon | None:
    """A valid polygon within the slide; None where nothing of an area is left."""
    cleaned: shapely.Geometry = geometry
    if not cleaned.is_valid:
        warnings.append(f"{where}: is no valid polygon ({shapely.is_valid_reason(cleaned)}); repaired")
        cleaned = shapely.make_valid(cleaned)
    if size is not None and not shapely.box(0, 0, *size).covers(cleaned):
        warnings.append(f"{where}: leaves the slide of {size[0]}x{size[1]} px; clipped")
        cleaned = cleaned.intersection(shapely.box(0, 0, *size))
    parts = shapely.get_parts(shapely.get_parts(cleaned))
    polygons = list(parts[shapely.area(parts) > 0])  # repairing and clipping may leave lines and points behind
    if not polygons:
        warnings.append(f"{where}: has no area on the slide; left out")
        return None
    return polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)


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
        return _draw_outlined([region for region in touching if not region.hole], (x, y), (width, height), downsample)
    mask = np.zeros((height, width), bool)
    for region in sorted(touching, key=lambda region: region.hole):
        if holes == "subtract":
            _fill(mask, _rings(region.polygon, with_holes=True), (x, y), downsample, value=not region.hole)
        elif not region.hole:
            # Without the holes between them, outlines may lie in one another; together they would cancel.
            for ring in _rings(region.polygon, with_holes=False):
                _fill(mask, [ring], (x, y), downsample, value=True)
    return mask


def _rings(geometry: Polygon | MultiPolygon, *, with_holes: bool) -> list[NDArray[np.float64]]:
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
