"""Polygons in GeoJSON as QuPath writes and reads it; the only file that knows this format."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import shapely
from shapely import MultiPolygon, Polygon

from histoloc.errors import InputError
from histoloc.work_folder import write_text

Kind = Literal["annotation", "detection"]
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Feature:
    """A drawn shape with its class, as a file has it: it may cross itself or leave the slide.

    Attributes:
        geometry: the shape in pixels of level 0, with holes.
        label: name of the class; empty where the shape has none.
        color: red, green, blue from 0 to 255, or None.
        measurements: named numbers, all finite.
        kind: what QuPath shall take it for; detections are lighter to draw by the thousand.
        index: its number in the file that it was read from, counted from 0.
    """

    geometry: Polygon | MultiPolygon
    label: str = ""
    color: Color | None = None
    measurements: Mapping[str, float] = field(default_factory=dict)
    kind: Kind = "annotation"
    index: int | None = field(default=None, compare=False)


def write_geojson(path: Path, features: Iterable[Feature]) -> None:
    """Write a FeatureCollection that QuPath imports, one feature a line, atomically.

    Coordinates are written in full, so that `read_geojson` gives equal shapes back.

    Raises:
        InputError: the file cannot be written.
        ValueError: a measurement or a coordinate is not finite.
    """
    lines = ",\n".join(json.dumps(_as_json(feature), allow_nan=False, ensure_ascii=False) for feature in features)
    write_text(path, f'{{"type": "FeatureCollection", "features": [\n{lines}\n]}}\n')


def _as_json(feature: Feature) -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": feature.kind}
    if feature.label:
        color = {} if feature.color is None else {"color": list(feature.color)}
        properties["classification"] = {"name": feature.label, **color}
    elif feature.color is not None:
        properties["color"] = list(feature.color)
    if feature.measurements:
        properties["measurements"] = dict(feature.measurements)
    return {"type": "Feature", "geometry": shapely.geometry.mapping(feature.geometry), "properties": properties}


def read_geojson(path: Path) -> tuple[list[Feature], list[str]]:
    """Read polygons from GeoJSON: a FeatureCollection, a list of features or one feature.

    The class is `properties.classification.name`; classes derived from others (`names`) are joined by `: `, as
    QuPath shows them. Polygons and MultiPolygons are read; of measurements, the finite numbers.

    Returns:
        (features, warnings): a warning per shape that is no polygon or part with fewer than three vertices,
        which are left out.

    Raises:
        InputError: the file is absent, no JSON (cut in half, for instance), or not of this form.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such annotation file; correct the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: is no readable GeoJSON, it may be cut off ({error}); export it again") from error
    if isinstance(content, dict):
        content = content.get("features") if content.get("type") == "FeatureCollection" else [content]
    if not isinstance(content, list):
        raise InputError(f"{path}: holds no list of features; export the annotations from QuPath as GeoJSON")
    features, warnings = [], []
    for index, item in enumerate(content):
        try:
            feature = _feature(item, f"{path}, annotation {index}", warnings)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(
                f"{path}: feature {index} is not as GeoJSON wants it ({error!r}); export the annotations again"
            ) from error
        if feature is not None:
            features.append(replace(feature, index=index))
    return features, warnings


def _feature(item: dict[str, Any], where: str, warnings: list[str]) -> Feature | None:
    if item["type"] != "Feature":
        raise ValueError(f"type is {item['type']}, not Feature")
    geometry: dict[str, Any] = item["geometry"] or {"type": "nothing"}
    kind = geometry["type"]
    if kind not in ("Polygon", "MultiPolygon"):
        warnings.append(f"{where}: is a {kind}, not a polygon; left out")
        return None
    parts = [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]
    polygons = [polygon for part in parts if (polygon := _polygon(part, where, warnings)) is not None]
    if not polygons:
        return None
    properties = item.get("properties") or {}
    label, color = _classification(properties)
    return Feature(
        polygons[0] if kind == "Polygon" else MultiPolygon(polygons),
        label,
        color,
        _measurements(properties.get("measurements")),
        "detection" if properties.get("objectType") in ("detection", "cell", "tile") else "annotation",
    )


def _polygon(rings: list[list[list[float]]], where: str, warnings: list[str]) -> Polygon | None:
    """A polygon of an outline and holes; None where the outline has too few vertices."""
    points = [[(float(x), float(y)) for x, y, *_ in ring] for ring in rings]
    if any(not math.isfinite(value) for ring in points for point in ring for value in point):
        raise ValueError("a coordinate is not finite")
    usable = [len(set(ring)) >= 3 for ring in points]
    if not all(usable):
        what = "its outline" if not (usable and usable[0]) else "a hole"
        warnings.append(f"{where}: {what} has fewer than three vertices; left out")
    if not (usable and usable[0]):
        return None
    return Polygon(points[0], [ring for ring, good in zip(points[1:], usable[1:], strict=True) if good])


def _classification(properties: dict[str, Any]) -> tuple[str, Color | None]:
    given = properties.get("classification") or {}
    if isinstance(given, str):
        given = {"name": given}
    names = [given["name"]] if given.get("name") else given.get("names") or []
    color = given.get("color") or properties.get("color")
    if color is None and isinstance(packed := given.get("colorRGB"), int):  # QuPath before 0.4: signed 0xAARRGGBB
        color = [packed >> 16 & 255, packed >> 8 & 255, packed & 255]
    if color is None:
        return ": ".join(names), None
    red, green, blue = (int(value) for value in color[:3])
    return ": ".join(names), (red, green, blue)


def _measurements(given: Any) -> dict[str, float]:
    """QuPath writes an object; before 0.4 it wrote a list of names and values."""
    if isinstance(given, list):
        given = {entry["name"]: entry.get("value") for entry in given}
    return {
        str(name): value
        for name, value in (given or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
