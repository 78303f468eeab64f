"""One slide as a task of `run_jobs`: tiles, evidence, map and answer; killed, it goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from histoloc.errors import InputError
from histoloc.prediction import Predictor, load
from histoloc.slide_maps.evidence_file import EvidenceFile
from histoloc.slide_maps.grid import TileGrid, tile_grid
from histoloc.slide_maps.infer import Spent, choose_precision, gather, probe
from histoloc.slide_maps.outputs import Found, write_outputs
from histoloc.slide_maps.settings import TISSUE_MPP, WORK, Means, Settings
from histoloc.slides.reader import Slide, open_slide
from histoloc.slides.tissue import tissue as find_tissue
from histoloc.work_folder import locked, write_json


def predict_slide(item: Mapping[str, Any], settings: Mapping[str, Any], *, means: Means, out: str) -> dict[str, Any]:
    """Predict one slide and write what `histoloc slides predict` leaves in its folder.

    The evidence of its tiles is kept in `out/NAME/work` until all is written, so that a call that was killed goes on.

    Args:
        item: `slide`, its path; `mark`, by which its content is known; `slide_mpp`, the µm/px of its level 0 or None;
            `name`, of the folder in `out` that is written.
        settings: of `Settings`.
        means: device, batch size, reading threads.
        out: the out folder.

    Returns:
        What is written to slide.json.

    Raises:
        InputError: slide or model cannot be read or do not fit each other, there is no tissue, a file cannot be
            written, or another call is at this slide.
    """
    folder = Path(out) / item["name"]
    with locked(folder):
        # First: what is there is of an earlier call, and would not belong to what comes.
        (folder / "slide.json").unlink(missing_ok=True)
        for left in folder.glob(".*.part*"):  # of a process that was killed
            left.unlink()
        return _predicted(item, Settings(**settings), means, folder)


def _predicted(item: Mapping[str, Any], asked: Settings, means: Means, folder: Path) -> dict[str, Any]:
    started = time.perf_counter()
    with _open(Path(item["slide"]), item["slide_mpp"]) as slide:
        # Before the model is there, because looking for tissue takes memory that it gives back.
        tissue = _tissue(slide) if asked.tissue else None
        predictor = opened_model(asked, means.device)
        maps, own = probe(predictor, asked.tile)
        precision = choose_precision(asked.precision, predictor.device)
        grid = _grid(slide, asked, tissue, asked.cell or own)
        store = EvidenceFile(
            folder / WORK,
            _fingerprint(item, asked, grid, f"{predictor.device.type} {precision}"),
            len(grid.positions),
            len(predictor.config.classes),
            maps,
            grid.side,
        )
        spent = gather(slide, grid, predictor, store, means, precision=precision)
        told = write_outputs(Found(slide, grid, tissue, predictor, store, asked, folder), item["name"])
    told["cost"] = _cost(spent, time.perf_counter() - started) | {
        "tiles": len(grid.positions),
        "device": str(predictor.device),
        "precision": precision,
    }
    # Last, because it is what says that the folder is complete.
    write_json(folder / "slide.json", told)
    shutil.rmtree(folder / WORK)
    return told


@lru_cache(maxsize=1)
def opened_model(asked: Settings, device: str) -> Predictor:
    """The model, opened once per process.

    Raises:
        InputError: as `load`, or the model has changed since the call began.
    """
    predictor = load(Path(asked.model), device, range=asked.range, empty_class=asked.empty_class)
    if predictor.config.weights_sha256 != asked.weights_sha256:
        raise InputError(f"{asked.model}: has changed since this was begun; choose another --out for the new model")
    return predictor


def _open(path: Path, slide_mpp: float | None) -> Slide:
    """Open a slide; one that does not say its scale, or none that can be right, has that of the user."""
    try:
        return open_slide(path, option="--slide-mpp")
    except InputError:
        if slide_mpp is None:
            raise
        return open_slide(path, mpp=slide_mpp, option="--slide-mpp")


def _tissue(slide: Slide) -> NDArray[np.bool_]:
    mask = find_tissue(slide, max(TISSUE_MPP, slide.mpp))
    if not mask.any():
        raise InputError(f"{slide.path}: no tissue was found; look at `histoloc slides tissue`, or give --no-tissue")
    return mask


def _grid(slide: Slide, asked: Settings, tissue: NDArray[np.bool_] | None, cell: int) -> TileGrid:
    return tile_grid(
        slide, asked.mpp, asked.tile, asked.overlap, cell, mask=tissue, mask_mpp=max(TISSUE_MPP, slide.mpp)
    )


def _fingerprint(item: Mapping[str, Any], asked: Settings, grid: TileGrid, arithmetic: str) -> str:
    """Of all that the evidence depends on; another device or precision would mix other roundings into one map."""
    digest = hashlib.sha256(json.dumps([dict(item), vars(asked), grid.cell, arithmetic], sort_keys=True).encode())
    digest.update(np.ascontiguousarray(grid.positions).tobytes())
    return digest.hexdigest()


def _cost(spent: Spent, seconds: float) -> dict[str, Any]:
    """What this call took; tiles of an earlier one, that was killed, are not in it."""
    return {
        "seconds": round(seconds, 2),
        "tiles_per_second": round(spent.tiles / spent.seconds, 2) if spent.tiles else None,
        "waiting_share": round(spent.waiting / spent.seconds, 4) if spent.tiles else None,
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }


def peak_memory_mb() -> float:
    """Greatest resident memory of this process so far, in MB (10^6 bytes)."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
