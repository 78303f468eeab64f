"""From the evidence of a slide's tiles to its map, and from the map to all that is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from histoloc.data.images import write_picture
from histoloc.map_class import map_class_of, named_class
from histoloc.prediction import Predictor
from histoloc.slide_maps.answer import (
    OF_ALL_TILES,
    OF_NO_CLASSIFIER,
    OF_TOP_TILES,
    slide_probabilities,
    uncertainty,
)
from histoloc.slide_maps.evidence_file import EvidenceFile
from histoloc.slide_maps.grid import TileGrid
from histoloc.slide_maps.outlines import ROI_COLOR, Outline, find_outlines, in_roi, write_regions
from histoloc.slide_maps.overview import overview
from histoloc.slide_maps.pyramid import read_level, write_ome_tiff
from histoloc.slide_maps.settings import WORK, Settings
from histoloc.slide_maps.stitch import Band, DiskMap, Tiles, gaussian_window, stitch_bands, tissue_rows, write_map
from histoloc.slides.reader import Slide
from histoloc.work_folder import atomic_path

FORMAT = 1  # of slide.json
_PICTURE = 1600  # longer side of the overview's thumbnails, pixels
_BAND = 512  # rows of the map looked at at a time

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """What is known of a slide when its tiles are predicted.

    Attributes:
        slide: open.
        grid: its tiles.
        tissue: (H, W) bool over the slide, or None where all of it was looked at.
        predictor: the model.
        store: evidence of all tiles.
        asked: the settings.
        folder: to write into.
    """

    slide: Slide
    grid: TileGrid
    tissue: Mask | None
    predictor: Predictor
    store: EvidenceFile
    asked: Settings
    folder: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the model."""
        return self.predictor.config.classes

    @property
    def empty(self) -> int | None:
        """Index of the class without ROI."""
        return self.predictor.calibration.empty


def write_outputs(found: Found, name: str) -> dict[str, Any]:
    """Write the maps, outlines, table of tiles and picture of a slide.

    Args:
        found: what is known of it.
        name: of the slide.

    Returns:
        What slide.json holds, but for the cost.

    Raises:
        InputError: a file cannot be written.
    """
    grid, folder = found.grid, found.folder
    p = found.store.probabilities()
    classifies = found.predictor.method.classifies
    of_slide = slide_probabilities(p, grid.tissue, found.empty) if classifies else None
    shown = None if of_slide is None else int(of_slide.argmax())
    label = map_label(found, shown)
    cells = grid.mpp * grid.cell
    window = gaussian_window(grid.side)
    roi = write_map(
        folder / WORK / "map.raw", _on_tissue(found, _roi(found, p, label), window), (grid.rows, grid.columns)
    )
    write_ome_tiff(folder / "map.ome.tif", roi.read, roi.shape, cells, name="ROI")
    if classifies:
        entropy = uncertainty(p)
        doubt = write_map(
            folder / WORK / "uncertainty.raw", _on_tissue(found, _constant(entropy, grid.side), window), roi.shape
        )
        write_ome_tiff(folder / "uncertainty.ome.tif", doubt.read, roi.shape, cells, name="uncertainty")
    threshold = choose_threshold(found, roi)
    outlines = find_outlines(
        roi.read,
        roi.shape,
        threshold,
        grid.cell * grid.downsample,
        cells,
        size=(found.slide.width, found.slide.height),
        min_area_mm2=found.asked.min_area_mm2,
    )
    roi_class = map_class_of(found.classes, label, found.store.maps, found.empty)
    write_regions(folder / "regions.geojson", outlines, roi_class or "ROI", ROI_COLOR)
    _write_tiles(folder / "tiles.csv", found, p if classifies else None)
    told = _told(found, name, of_slide, roi_class)
    told["roi"] = _areas(found, roi, threshold, outlines)
    told["map"] = {
        "file": "map.ome.tif", "mpp": cells, "width": grid.columns, "height": grid.rows, "threshold": threshold,
    }  # fmt: skip
    told["uncertainty"] = {"file": "uncertainty.ome.tif"} if classifies else None
    told["regions"], told["overview"] = "regions.geojson", "overview.png"
    if of_slide is None:
        told["score"] = told["roi"]["share"]
    small, reduced = read_level(folder / "map.ome.tif", _PICTURE)
    scale = reduced * grid.cell * grid.downsample
    picture = overview(found.slide, small, scale, outlines, title=_title(told), threshold=threshold, max_side=_PICTURE)
    write_picture(folder / "overview.png", picture)
    return told


def map_label(found: Found, predicted: int | None) -> int:
    """Index of the class whose map every tile gets: the one that was asked for, else that of the whole slide."""
    asked = found.asked.map_class
    if asked is not None:
        return named_class(asked, found.classes, found.store.maps, found.empty)
    return 0 if predicted is None else predicted


def choose_threshold(found: Found, roi: DiskMap) -> float:
    """Where the map is cut: as asked, as the model folder says, or by Otsu's rule over the tissue of the slide."""
    fixed = found.predictor.threshold(found.asked.threshold)
    if fixed is not None:
        return fixed
    counts = np.zeros(256, np.int64)
    for first, rows in _rows(roi):
        counts += np.bincount(rows[tissue_rows(found.grid, found.tissue, first, len(rows))], minlength=256)
    levels = np.flatnonzero(counts)
    if len(levels) < 2:
        return 0.5
    return float(threshold_otsu(hist=(counts, np.arange(256)))) / 255


def _on_tissue(found: Found, tiles: Tiles, window: NDArray[np.float32]) -> Iterator[Band]:
    """Bands of the map, 0 where there is no tissue."""
    for band in stitch_bands(found.grid, tiles, window):
        tissue = tissue_rows(found.grid, found.tissue, band.first_row, len(band.values))
        yield band._replace(values=np.where(tissue, band.values, np.float32(0)))


def _roi(found: Found, probabilities: NDArray[np.float32], label: int) -> Tiles:
    def tiles(indices: NDArray[np.int64]) -> NDArray[np.float32]:
        evidence = found.store.read(indices)
        return found.predictor.roi_of_tiles(probabilities[indices], evidence, label, found.predictor.calibration)

    return tiles


def _constant(values: NDArray[np.float32], side: int) -> Tiles:
    return lambda indices: np.broadcast_to(values[indices][:, None, None], (len(indices), side, side))


def _rows(roi: DiskMap) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for first in range(0, roi.rows, _BAND):
        yield first, roi.read(first, min(first + _BAND, roi.rows))


def _areas(found: Found, roi: DiskMap, threshold: float, outlines: list[Outline]) -> dict[str, Any]:
    """Areas in mm² of tissue and of what is cut from the map; cells count whole, regions with an outline only."""
    cell = (found.grid.mpp * found.grid.cell / 1000) ** 2
    inside = tissue = 0
    for first, rows in _rows(roi):
        inside += int(in_roi(rows, threshold).sum())
        tissue += int(tissue_rows(found.grid, found.tissue, first, len(rows)).sum())
    # Where there are only regions without an outline, how large they are is not known.
    largest = round(outlines[0].area_mm2, 6) if outlines else (None if inside else 0.0)
    return {
        "mm2": round(inside * cell, 6),
        "tissue_mm2": round(tissue * cell, 6),
        "share": inside / tissue if tissue else 0.0,
        "regions": len(outlines),
        "largest_mm2": largest,
    }


def _told(
    found: Found,
    name: str,
    of_slide: NDArray[np.float64] | None,
    roi_class: str | None,
) -> dict[str, Any]:
    slide, config = found.slide, found.predictor.config
    if of_slide is None:
        label, probabilities, score, rule = None, None, 0.0, OF_NO_CLASSIFIER
    else:
        label = found.classes[int(of_slide.argmax())]
        probabilities = {c: float(p) for c, p in zip(found.classes, of_slide, strict=True)}
        score = float(of_slide.max()) if found.empty is None else float(1 - of_slide[found.empty])
        rule = OF_ALL_TILES if found.empty is None else OF_TOP_TILES
    return {
        "format": FORMAT,
        "name": name,
        "slide": str(slide.path),
        "slide_mpp": slide.mpp if slide.mpp_given else None,
        "width": slide.width,
        "height": slide.height,
        "mpp": slide.mpp,
        "class": label,
        "probabilities": probabilities,
        "roi_class": roi_class,
        "score": score,
        "aggregation": rule,
        "calibration": {
            "range": found.predictor.calibration.range,
            "centre": list(found.predictor.calibration.centre),
            "slope": list(found.predictor.calibration.slope),
        },
        "notes": _notes(found),
        "settings": vars(found.asked),
        "model": {
            "method": config.method,
            "title": found.predictor.method.title,
            "classes": list(config.classes),
            "weights_sha256": config.weights_sha256,
            "provenance": config.provenance,
        },
        "histoloc": version("histoloc"),
    }


def _notes(found: Found) -> list[str]:
    """What a reader of the map must know."""
    notes = []
    method = found.predictor.method
    if method.in_tiles:
        notes.append(f"{method.title} on a slide: {method.in_tiles}")
    if found.empty is None and found.store.maps > 1 and found.asked.map_class is None:
        notes.append(
            "no class is named as having no ROI, so each map is that of the class which the slide was given; name it "
            "by --empty-class where there is one, or choose a class by --class"
        )
    return notes


def _title(told: dict[str, Any]) -> list[str]:
    areas = told["roi"]
    label = told["class"]
    said = [told["name"] if label is None else f"{told['name']}: {label}, p = {told['probabilities'][label]:.2f}"]
    said.append(
        f"{told['model']['title']}: ROI {areas['mm2']:.3g} mm² of {areas['tissue_mm2']:.3g} mm² tissue "
        f"({100 * areas['share']:.1f} %)"
    )
    regions = "1 region" if areas["regions"] == 1 else f"{areas['regions']} regions"
    said.append(f"{regions} of {told['settings']['min_area_mm2']:g} mm² or more")
    return said


def _write_tiles(path: Path, found: Found, p: NDArray[np.float32] | None) -> None:
    """A row per tile: where it lies in pixels of level 0, its tissue, its class probabilities."""
    corners = found.grid.positions * found.grid.downsample
    columns: dict[str, Any] = {
        "x": corners[:, 0].round(1),
        "y": corners[:, 1].round(1),
        "size": round(found.grid.tile * found.grid.downsample, 1),
        "tissue": found.grid.tissue.round(4),
    }
    if p is not None:
        columns |= {f"prob_{name}": p[:, index].round(6) for index, name in enumerate(found.classes)}
    with atomic_path(path) as temporary:
        pd.DataFrame(columns).to_csv(temporary, index=False, lineterminator="\n")
