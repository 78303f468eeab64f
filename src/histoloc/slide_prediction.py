"""One slide as an item of the runner: tiles, evidence, map and answer; killed, it goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from histoloc.data.images import write_picture
from histoloc.errors import InputError
from histoloc.options import SlideOptions
from histoloc.prediction import Predictor, load
from histoloc.progress import Bar, peak_memory
from histoloc.slides.answer import OF_ALL_TILES, OF_NO_CLASSIFIER, OF_TOP_TILES, slide_probabilities, uncertainty
from histoloc.slides.export import reductions, small_level, write_ome_tiff, write_tiles
from histoloc.slides.grid import TileGrid, tile_grid
from histoloc.slides.overview import overview
from histoloc.slides.reader import Slide, open_slide
from histoloc.slides.regions import Outline, find_outlines, lowest_roi, write_regions
from histoloc.slides.stitch import MapFile, Tiles, as_bytes, stitch, tissue_rows, write_map
from histoloc.slides.tiles import TISSUE_MPP, EvidenceFile, Network, evidence_of_tiles
from histoloc.slides.tissue import tissue as find_tissue
from histoloc.work_folder import WORK, locked, write_json

FORMAT = 1  # of slide.json
_PICTURE = 1600  # longer side of the overview's thumbnails, pixels


def predict_slide(
    item: Mapping[str, Any], settings: Mapping[str, Any], *, model: str, options: SlideOptions, out: str
) -> dict[str, Any]:
    """Predict one slide and write what `histoloc slides predict` leaves in its folder.

    The evidence of its tiles stays in `out/NAME/work` until all is written, so that a call that was killed goes on.

    Args:
        item: `slide`, its path; `mark`, by which its content is known; `slide_mpp`, the µm/px of its level 0 or None;
            `name`, of the folder in `out` that is written.
        settings: `weights_sha256` of the model, and the options on which the result depends.
        model: its folder, or the name of a shipped one.
        options: with scale, tile, class without ROI and range as they are used.
        out: the out folder.

    Returns:
        What is written to slide.json.

    Raises:
        InputError: slide or model cannot be read or do not fit each other, there is no tissue, a file cannot be
            written, or another call is at this slide.
    """
    started, folder = time.perf_counter(), Path(out) / item["name"]
    with locked(folder):
        # First: what is there is of an earlier call, and would not belong to what comes.
        (folder / "slide.json").unlink(missing_ok=True)
        path = Path(item["slide"])
        try:
            with open_slide(path, mpp=item["slide_mpp"], option="--slide-mpp", origin=options.origin) as slide:
                result = _infer(slide, item, settings, model, options, folder)
                record = _write(result, item["name"], settings)
            seconds, memory = round(time.perf_counter() - started, 2), round(peak_memory() / 1e6, 1)
            record["cost"] = result.cost | {"seconds": seconds, "peak_memory_mb": memory}
            # Last, because it is what says that the folder is complete.
            write_json(folder / "slide.json", record)
            shutil.rmtree(folder / WORK)
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be written ({error.strerror or error}); make room or repair the folder and call "
                f"again, complete tiles stay"
            ) from error
    return record


@dataclass(frozen=True)
class _Result:
    """What is known of a slide when its tiles are predicted.

    Attributes:
        slide: open.
        grid: its tiles.
        tissue: (H, W) bool over the slide, or None where all of it was looked at.
        predictor: the model.
        evidence: of all tiles.
        options: of the call.
        folder: to write into.
        cost: time and means of this call; tiles of an earlier one, that was killed, are not in it.
    """

    slide: Slide
    grid: TileGrid
    tissue: NDArray[np.bool_] | None
    predictor: Predictor
    evidence: EvidenceFile
    options: SlideOptions
    folder: Path
    cost: dict[str, Any]


def _infer(
    slide: Slide, item: Mapping[str, Any], settings: Mapping[str, Any], model: str, options: SlideOptions, folder: Path
) -> _Result:
    """Give the tiles of the slide to the network."""
    assert options.mpp is not None
    assert options.tile is not None
    # Before the model is there, because looking for tissue takes memory that it gives back.
    at = max(TISSUE_MPP, slide.mpp)
    tissue = find_tissue(slide, at) if options.tissue else None
    if tissue is not None and not tissue.any():
        raise InputError(f"{slide.path}: no tissue was found; look at `histoloc slides tissue`, or give --no-tissue")
    predictor = opened_model(model, settings["weights_sha256"], options)
    device, precision = predictor.device, _precision(options.precision, predictor.device)
    batch = options.batch or (2 if device.type == "cpu" else 16)
    network = Network(partial(predictor.evidence, precision=precision), predictor.stride, batch)
    maps, cell = network.probe(options.tile)
    grid = tile_grid(slide, options.mpp, options.tile, options.overlap, cell, tissue, at)
    number, shape = len(grid.positions), (len(predictor.config.classes), maps, grid.tile // cell)
    fingerprint = _fingerprint(item, settings, grid, f"{device.type} {precision}")
    evidence = EvidenceFile(folder / WORK, fingerprint, number, batch, shape)
    first, started = evidence.count, time.perf_counter()
    alone = options.progress and options.workers == 1 and options.scheduler is None
    bar = Bar(total=number, initial=first, unit="tile", desc=slide.path.stem, leave=False, disable=not alone)
    with bar, closing(evidence_of_tiles(slide, grid, network, first, options.readers)) as parts:
        for probabilities, values in parts:
            evidence.append(probabilities, values)
            bar.update(len(values))
    speed = round((number - first) / (time.perf_counter() - started), 2) if number > first else None
    cost = {"tiles": number, "tiles_per_second": speed, "device": str(device), "precision": precision}
    return _Result(slide, grid, tissue, predictor, evidence, options, folder, cost)


@lru_cache(maxsize=1)
def opened_model(model: str, weights_sha256: str, options: SlideOptions) -> Predictor:
    """The model, opened once per process.

    Raises:
        InputError: as `load`, or the model has changed since the call began.
    """
    predictor = load(Path(model), options.device, range=options.range, empty_class=options.empty_class)
    if predictor.config.weights_sha256 != weights_sha256:
        raise InputError(f"{model}: has changed since this was begun; choose another --out for the new model")
    return predictor


def _precision(option: str, device: torch.device) -> Literal["float32", "bf16"]:
    """Auto takes bf16 on a GPU that has it."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bf16" if option == "bf16" or (option == "auto" and has_bf16) else "float32"


def _fingerprint(item: Mapping[str, Any], settings: Mapping[str, Any], grid: TileGrid, arithmetic: str) -> str:
    """Of all that the evidence depends on; another device or precision would mix other roundings into one map."""
    digest = hashlib.sha256(json.dumps([dict(item), dict(settings), grid.cell, arithmetic], sort_keys=True).encode())
    digest.update(np.ascontiguousarray(grid.positions).tobytes())
    return digest.hexdigest()[:32]


def _write(result: _Result, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the maps, outlines, table of tiles and picture; what slide.json says, but for the cost."""
    grid, folder, evidence, predictor = result.grid, result.folder, result.evidence, result.predictor
    calibration, classes, p = predictor.calibration, predictor.config.classes, evidence.probabilities()
    map_class, of_slide = result.options.map_class, None
    label = 0 if map_class is None else predictor.class_index(map_class, evidence.maps)
    if predictor.method.classifies:
        of_slide = slide_probabilities(p, grid.tissue, calibration.empty)
        label = label if map_class else int(of_slide.argmax())

    def roi_of_tiles(start: int, stop: int) -> NDArray[np.float32]:
        return predictor.roi_of_tiles(p[start:stop], evidence.read(start, stop), label, calibration)

    def entropy_of_tiles(start: int, stop: int) -> NDArray[np.float32]:
        return np.broadcast_to(uncertainty(p[start:stop])[:, None, None], (stop - start, grid.side, grid.side))

    levels = _write_map(result, "map", "ROI", roi_of_tiles)
    if of_slide is not None:
        _write_map(result, "uncertainty", "uncertainty", entropy_of_tiles)
    counts = _histogram(result, levels[0])
    threshold = predictor.threshold(result.options.threshold)
    threshold = _otsu(counts) if threshold is None else threshold
    cell, mpp, area = grid.cell * grid.downsample, grid.cell * grid.mpp, result.options.min_area_mm2
    outlines = find_outlines(levels[0].bands(), threshold, cell, mpp, size=result.slide.size, min_area_mm2=area)
    write_regions(folder / "regions.geojson", outlines, predictor.roi_name(label, evidence.maps))
    write_tiles(folder / "tiles.csv", grid, {} if of_slide is None else dict(zip(classes, p.T, strict=True)))
    record = _record(result, name, settings, of_slide) | {
        "roi_class": predictor.map_class(label, evidence.maps),
        "roi": _areas(counts, threshold, mpp, outlines),
        "map": {
            "file": "map.ome.tif", "mpp": mpp, "width": grid.columns, "height": grid.rows, "threshold": threshold
        },
        "uncertainty": None if of_slide is None else {"file": "uncertainty.ome.tif"},
        "regions": "regions.geojson",
        "overview": "overview.png",
    }  # fmt: skip
    if of_slide is None:
        record["score"] = record["roi"]["share"]
    small, number = small_level(levels, _PICTURE)
    picture = overview(
        result.slide, small, 2**number * cell, outlines, title=_title(record), threshold=threshold, max_side=_PICTURE
    )
    write_picture(folder / "overview.png", picture)
    return record


def _write_map(result: _Result, name: str, title: str, tiles: Tiles) -> list[MapFile]:
    """Stitch a map into one array on disk, and write it as a pyramid; the array and its smaller levels."""
    grid = result.grid
    bands = map(as_bytes, stitch(grid, tiles, result.tissue))
    levels = reductions(write_map(result.folder / WORK / f"{name}.raw", bands, (grid.rows, grid.columns)))
    write_ome_tiff(result.folder / f"{name}.ome.tif", levels, grid.cell * grid.mpp, title)
    return levels


def _histogram(result: _Result, roi: MapFile) -> NDArray[np.int64]:
    """How many cells of tissue have each value of the map, (256,)."""
    counts, first = np.zeros(256, np.int64), 0
    for band in roi.bands():
        tissue = tissue_rows(result.grid, result.tissue, first, len(band))
        counts += np.bincount(band[tissue], minlength=256)
        first += len(band)
    return counts


def _otsu(counts: NDArray[np.int64]) -> float:
    if np.count_nonzero(counts) < 2:
        return 0.5
    return float(threshold_otsu(hist=(counts, np.arange(256)))) / 255


def _areas(counts: NDArray[np.int64], threshold: float, mpp: float, outlines: list[Outline]) -> dict[str, Any]:
    """Areas in mm² of tissue and of what is cut from the map; cells count whole, regions with an outline only."""
    cell, inside, tissue = (mpp / 1000) ** 2, int(counts[lowest_roi(threshold) :].sum()), int(counts.sum())
    # Where there are only regions without an outline, how large they are is not known.
    largest = round(outlines[0].area_mm2, 6) if outlines else (None if inside else 0.0)
    areas = {"mm2": round(inside * cell, 6), "tissue_mm2": round(tissue * cell, 6)}
    return areas | {"share": inside / tissue if tissue else 0.0, "regions": len(outlines), "largest_mm2": largest}


def _record(
    result: _Result, name: str, settings: Mapping[str, Any], of_slide: NDArray[np.float64] | None
) -> dict[str, Any]:
    """What slide.json says of slide, class and model."""
    slide, method = result.slide, result.predictor.method
    config, calibration = result.predictor.config, result.predictor.calibration
    label, probabilities, score, rule = None, None, 0.0, OF_NO_CLASSIFIER
    if of_slide is not None:
        label = config.classes[int(of_slide.argmax())]
        probabilities = dict(zip(config.classes, of_slide.tolist(), strict=True))
        score = float(of_slide.max() if calibration.empty is None else 1 - of_slide[calibration.empty])
        rule = OF_ALL_TILES if calibration.empty is None else OF_TOP_TILES
    notes = list(slide.notes)
    notes += [f"{method.title} on a slide: {method.in_tiles}"] if method.in_tiles else []
    if calibration.empty is None and result.options.map_class is None and result.evidence.maps > 1:
        notes.append(
            "no class is named as having no ROI, so each map is that of the class which the slide was given; name it "
            "by --empty-class where there is one, or choose a class by --class"
        )
    return {
        "format": FORMAT, "name": name, "slide": str(slide.path),
        "slide_mpp": slide.mpp if slide.user_mpp else None, "origin": result.options.origin,
        "width": slide.width, "height": slide.height, "mpp": slide.mpp,
        "class": label, "probabilities": probabilities, "score": score, "aggregation": rule,
        "calibration": {key: getattr(calibration, key) for key in ("range", "centre", "slope")},
        "notes": notes,
        "settings": dict(settings),
        "model": {
            "method": config.method, "title": method.title, "classes": list(config.classes),
            "supervision": list(config.supervision),
            "weights_sha256": config.weights_sha256, "provenance": config.provenance,
        },
        "histoloc": version("histoloc"),
    }  # fmt: skip


def _title(record: Mapping[str, Any]) -> list[str]:
    """What stands above the picture."""
    roi, label = record["roi"], record["class"]
    probability = "" if label is None else f": {label}, p = {record['probabilities'][label]:.2f}"
    of_tissue = f"{roi['mm2']:.3g} mm² of {roi['tissue_mm2']:.3g} mm² tissue ({100 * roi['share']:.1f} %)"
    regions = "1 region" if roi["regions"] == 1 else f"{roi['regions']} regions"
    return [
        f"{record['name']}{probability}",
        f"{record['model']['title']}: ROI {of_tissue}",
        f"{regions} of {record['settings']['min_area_mm2']:g} mm² or more",
    ]
