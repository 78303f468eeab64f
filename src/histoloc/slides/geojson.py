"""Polygons in GeoJSON as QuPath writes and reads it; the only file that knows this format."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import shapely
from shapely import MultiPolygon, Polygon

from histoloc.errors import InputError
from histoloc.work_folder import write_text

_MOST_BYTES = 10**8  # Python's objects take ten times as much
_MOST_POLYGONS = 100_000

Kind = Literal["annotation", "detection"]
Color = tuple[int, int, int]
Ring = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Feature:
    """A drawn shape with its class, as a file has it: it may cross itself or leave the slide.

    Attributes:
        geometry: the shape in pixels of level 0, with holes.
        label: name of the class; empty where the shape has none.
        color: red, green, blue from 0 to 255, or None.
        measurements: named numbers; finite ones can be written.
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
    write_text(path, geojson_text(features))


def geojson_text(features: Iterable[Feature]) -> str:
    """What `write_geojson` writes."""
    lines = ",\n".join(json.dumps(_as_json(feature), allow_nan=False, ensure_ascii=False) for feature in features)
    return f'{{"type": "FeatureCollection", "features": [\n{lines}\n]}}\n'


def _as_json(feature: Feature) -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": feature.kind}
    color = {} if feature.color is None else {"color": list(feature.color)}
    properties |= {"classification": {"name": feature.label, **color}} if feature.label else color
    if feature.measurements:
        properties["measurements"] = dict(feature.measurements)
    return {"type": "Feature", "geometry": shapely.geometry.mapping(feature.geometry), "properties": properties}


def read_geojson(path: Path) -> tuple[list[Feature], list[str]]:
    """Read polygons from GeoJSON: a FeatureCollection, a list of features, one feature or one geometry.

    The class is `properties.classification.name`; classes derived from others (`names`) are joined by `: `, as
    QuPath shows them. Colours are not read.

    Returns:
        (features, warnings): a warning per shape that is no polygon or part with fewer than three vertices,
        which are left out.

    Raises:
        InputError: the file is absent, too large, no JSON (cut in half, for instance), or not of this form.
    """
    try:
        content = json.loads(read_limited(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no readable GeoJSON, it may be cut off ({error}); export it again") from error
    if isinstance(content, dict):
        of_one = [content] if "type" in content else None
        content = content.get("features") if content.get("type") == "FeatureCollection" else of_one
    if not isinstance(content, list):
        raise InputError(f"{path}: holds no list of features; export the annotations as GeoJSON, as QuPath does")
    return read_features(path, content, _parts)


def read_limited(path: Path) -> bytes:
    """The content of a file of outlines.

    Raises:
        InputError: it is absent, cannot be read, or is larger than 100 MB.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(
                f"{path}: is larger than {_MOST_BYTES // 10**6} MB; simplify the outlines and export again"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such annotation file; correct the path") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy it again") from error


def read_features(
    path: Path, items: Iterable[Any], parts: Callable[[Any], tuple[list[list[Ring]], dict[str, Any]]]
) -> tuple[list[Feature], list[str]]:
    """The shapes of a file of any format, and what is wrong with them.

    Args:
        path: for messages.
        items: one for each shape, as the file has it.
        parts: gives the polygons of an item, each as its outline and holes, and what else a `Feature` is made of;
            no polygon where it is another kind of shape.

    Returns:
        (features, warnings), as `read_geojson`.

    Raises:
        InputError: a shape is damaged, or there are more than 100,000 polygons.
    """
    features: list[Feature] = []
    warnings: list[str] = []
    number = 0
    for index, item in enumerate(items):
        where = f"{path}, annotation {index}"
        try:
            rings, attributes = parts(item)
            polygons = [polygon for part in rings if (polygon := _polygon(part, where, warnings)) is not None]
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)[:200]
            raise InputError(f"{where}: has no readable shape ({reason}); export the annotations again") from error
        number += len(polygons)
        if number > _MOST_POLYGONS:
            raise InputError(f"{path}: holds more than {_MOST_POLYGONS:,} polygons; export only outlines of the ROI")
        if not rings:
            warnings.append(f"{where}: is no polygon; left out")
        if polygons:
            geometry = polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)
            features.append(Feature(geometry, index=index, **attributes))
    return features, warnings


def _polygon(rings: Sequence[Ring], where: str, warnings: list[str]) -> Polygon | None:
    """A polygon of an outline and holes; None where the outline has too few vertices."""
    points = [[(float(x), float(y)) for x, y, *_ in ring] for ring in rings]
    if not all(math.isfinite(value) for ring in points for point in ring for value in point):
        raise ValueError("a coordinate is not finite")
    usable = [ring for ring in points if len(set(ring)) >= 3]
    if len(usable) < len(points):
        warnings.append(f"{where}: an outline has fewer than three vertices; left out")
    return Polygon(usable[0], usable[1:]) if usable and usable[0] is points[0] else None


def _parts(item: dict[str, Any]) -> tuple[list[list[Ring]], dict[str, Any]]:
    geometry, properties = item, {}
    if item["type"] == "Feature":
        geometry, properties = item["geometry"] or {"type": "nothing"}, item.get("properties") or {}
    entry = properties.get("classification") or {}
    if isinstance(entry, str):  # GeoPandas writes what is nested as text
        entry = json.loads(entry) if entry.startswith("{") else {"name": entry}
    numbers = properties.get("measurements")
    attributes = {
        "label": ": ".join([entry["name"]] if entry.get("name") else entry.get("names") or []),
        "measurements": numbers if isinstance(numbers, dict) else {},  # QuPath before 0.4 wrote a list
        "kind": "detection" if properties.get("objectType") in ("detection", "cell", "tile") else "annotation",
    }
    return _polygons(geometry), attributes


def _polygons(geometry: dict[str, Any]) -> list[list[Ring]]:
    match geometry["type"]:
        case "Polygon":
            return [geometry["coordinates"]]
        case "MultiPolygon":
            return geometry["coordinates"]
        case "GeometryCollection":
            return [rings for part in geometry["geometries"] for rings in _polygons(part)]
        case _:
            return []
