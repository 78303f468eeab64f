"""Folders that `histoloc slides predict` writes, as entries of the viewer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from histoloc.errors import InputError
from histoloc.viewer.entries import Entry, MapLayer, entry_key, number, state_of, within


def is_predictions(folder: Path) -> bool:
    """Whether slides were predicted into this folder, or are about to be, or it is the folder of one slide."""
    if any(_slide_folders(folder)):
        return True
    try:  # other commands leave settings of theirs
        return "weights_sha256" in _read(folder / "settings.json")
    except InputError:
        return False


def prediction_title(folder: Path) -> str:
    """Title of the model that predicted, empty while there is no slide."""
    for slide in _slide_folders(folder):
        try:
            model = _mapping(_read(slide / "slide.json").get("model"))
        except InputError:
            continue
        return str(model.get("title") or model.get("method") or "")
    return ""


def read_predictions(folder: Path, model: int) -> list[Entry]:
    """One entry for each slide that is finished; a broken one becomes an entry that says so."""
    return [_entry(slide, model) for slide in _slide_folders(folder)]


def _slide_folders(folder: Path) -> Iterator[Path]:
    if (folder / "slide.json").is_file():
        yield folder.absolute()
        return
    yield from sorted(file.parent for file in folder.glob("*/slide.json"))


def _entry(folder: Path, model: int) -> Entry:
    file = folder / "slide.json"
    key = entry_key(folder.absolute(), model, *state_of(file, folder / "map.ome.tif", folder / "regions.geojson"))
    try:
        return _checked_entry(folder, model, key)
    except InputError as error:
        return Entry(key, model, folder.name, "slide", file, problem=str(error))


def _checked_entry(folder: Path, model: int, key: str) -> Entry:
    file = folder / "slide.json"
    found = _read(file)
    width, height, mpp = (number(found.get(name)) for name in ("width", "height", "mpp"))
    if not width or not height or not mpp or min(width, height, mpp) <= 0 or not isinstance(found.get("slide"), str):
        raise InputError(f"{file}: does not say slide, width, height and mpp; predict this slide again")
    slide = Path(found["slide"])
    key = entry_key(key, *state_of(slide))
    problem = "" if _is_file(slide) else f"{slide}: is not there any more; bring it back to see the tissue"
    label = found.get("class")
    return Entry(
        key=key,
        model=model,
        name=str(found.get("name") or folder.name),
        kind="slide",
        picture=slide,
        width=int(width),
        height=int(height),
        mpp=mpp,
        given_mpp=number(found.get("slide_mpp")),
        score=number(found.get("score")),
        score_of=str(found.get("roi_class") or label or "ROI of tissue"),
        label=str(label) if label is not None else None,
        probabilities={
            str(k): p for k, v in _mapping(found.get("probabilities")).items() if (p := number(v)) is not None
        },
        rule=str(found.get("aggregation") or ""),
        facts=_facts(found),
        map=_layer(folder, found.get("map"), found.get("map"), mpp),
        uncertainty=_layer(folder, found.get("uncertainty"), found.get("map"), mpp),
        regions=within(folder, found.get("regions")),
        problem=problem,
    )


def _layer(folder: Path, layer: Any, geometry: Any, mpp: float) -> MapLayer | None:
    """A map of slide.json; the uncertainty has the geometry of the map."""
    if not isinstance(layer, dict) or not isinstance(geometry, dict):
        return None
    file = within(folder, layer.get("file"))
    width, height, scale = (number(geometry.get(name)) for name in ("width", "height", "mpp"))
    if file is None or not width or not height or not scale or min(width, height, scale) <= 0:
        return None
    return MapLayer(file, int(width), int(height), scale / mpp, number(layer.get("threshold")))


def _facts(found: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    roi = _mapping(found.get("roi"))
    facts: list[tuple[str, str]] = []
    for name, key, unit in (
        ("ROI", "mm2", "mm²"),
        ("Tissue", "tissue_mm2", "mm²"),
        ("Largest region", "largest_mm2", "mm²"),
    ):
        if (value := number(roi.get(key))) is not None:
            facts.append((name, f"{value:.3g} {unit}"))
    if (share := number(roi.get("share"))) is not None:
        facts.append(("ROI of tissue", f"{100 * share:.1f} %"))
    if (regions := number(roi.get("regions"))) is not None:
        least = number(_mapping(found.get("settings")).get("min_area_mm2"))
        facts.append(("Regions", f"{regions:.0f}" + (f" of {least:g} mm² or more" if least else "")))
    return tuple(facts)


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: cannot be read ({' '.join(str(error).split())}); predict this slide again"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{file}: holds no mapping of names to values; predict this slide again")
    return value


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, a NUL byte
        return False


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
