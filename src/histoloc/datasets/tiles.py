"""Tables of the user's own slides: tiles on a grid over the tissue, labelled by slide or by annotation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histoloc.data.table import read_table, write_table
from histoloc.datasets.own_slides import OwnSlide, class_without_roi, labels_by_group, read_slides, split_groups
from histoloc.datasets.patches import random_for
from histoloc.errors import InputError
from histoloc.runner import run_jobs
from histoloc.slides.annotations import rasterise, read_annotations
from histoloc.slides.reader import Slide, open_slide
from histoloc.slides.tissue import share
from histoloc.slides.tissue import tissue as find_tissue
from histoloc.work_folder import locked

TISSUE_MPP = 8.0  # of the tissue mask


@dataclass(frozen=True)
class SlideTiles:
    """What `slide_tiles` made.

    Attributes:
        out: the table that was written.
        tiles: number of its rows.
        left_out: number of tiles with some ROI, but less than was asked for.
        failed: the reason by name of each slide that gave no tiles.
        warnings: of the annotations that were read.
    """

    out: Path
    tiles: int
    left_out: int
    failed: dict[str, str]
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """Tiles by split and label, what was left out, and what to know of numbers from the table.

        Raises:
            InputError: the table cannot be trained on, for want of a class in the split train.
        """
        table = read_table(self.out, check_files=False)
        lines = [table.summary(), *(f"warning: {note}" for note in table.notes)]
        if self.left_out:
            lines.append(f"{self.left_out} tiles with less ROI than asked for are left out")
        return "\n".join(lines)


def slide_tiles(
    table: Path,
    out: Path,
    *,
    mpp: float,
    size: int = 512,
    stride: int | None = None,
    tissue: float = 0.5,
    roi: float = 0.5,
    empty_class: str | None = None,
    valid: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    per_slide: int | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    memory_gb: float = 1.0,
    progress: bool = True,
) -> SlideTiles:
    """Cut slides into tiles and write them as a table of regions; no pixels are stored.

    Tiles lie on a grid that begins at the slide's upper left corner; those with enough tissue are kept, by the robust
    rule of `slides.tissue` at 8 µm/px. A tile gets its slide's label. Where the table has annotations, a tile of an
    annotated slide gets it only if its share of ROI is at least `roi`, a tile without any ROI gets the class of the
    slides without annotation, and what is in between is left out.

    Sets are made of whole groups, by label and seed alone (see `split_groups`), so that a slide that fails moves no
    other. What is done is kept in the folder `OUT-STEM.jobs` beside `out`, with the failures in its `failed.csv`; a
    second call opens only slides that failed or changed. Splits, `roi` and `per_slide` may change between calls.

    Args:
        table: CSV with the columns slide, label and, optionally, annotation (ASAP XML or GeoJSON), group (patient;
            by default the slide) and mpp (of level 0, for slides that do not say it). Paths are relative to it.
        out: the table to write; besides the standard columns it has `tissue` and, with annotations, `roi`, the
            shares of the tile, and `slide_mpp` where the given table has mpp.
        mpp: scale of the tiles in micrometres per pixel.
        size: side of a tile in pixels of `mpp`.
        stride: from tile to tile in pixels of `mpp`; None for `size`.
        tissue: least share of tissue, in [0, 1].
        roi: least share of ROI for the label of an annotated slide, in (0, 1].
        empty_class: class of tiles without ROI; None for that of the slides without annotation.
        valid: share of groups for the split valid, in [0, 1).
        test: share of groups for the split test, likewise.
        seed: of splits and draws.
        per_slide: keep at most so many tiles of a slide, drawn at random; None keeps all.
        workers: as `run_jobs` has it, as the next three.
        scheduler: address of a Dask scheduler.
        memory_gb: limit of each worker process.
        progress: show a bar.

    Raises:
        InputError: the table or a number cannot be used, the earlier call had another grid, another call is at the same
            `out`, no slide gave a tile, or the class of tiles without ROI is not clear.
    """
    table, out = Path(table), Path(out)
    _check_numbers(mpp, size, stride, tissue, roi, per_slide, seed)
    slides = read_slides(table)
    if out.absolute() in (table.absolute(), *(s.path for s in slides)):
        raise InputError(f"{out}: is one of the given files; choose another --out")
    empty = class_without_roi(table, slides, empty_class)
    splits = split_groups(labels_by_group(slides), valid=valid, test=test, seed=seed)
    jobs = out.with_name(f"{out.stem}.jobs")
    with locked(jobs):
        result = run_jobs(
            tiles_of_slide,
            {slide.name: _item(slide) for slide in slides},
            jobs,
            settings={"mpp": float(mpp), "size": size, "stride": stride or size, "tissue": float(tissue)},
            workers=workers,
            scheduler=scheduler,
            memory_gb=memory_gb,
            progress=progress,
        )
        rows: list[dict[str, Any]] = []
        left_out = 0
        for slide in slides:
            found = result.done.get(slide.name, {"tiles": []})["tiles"]
            labelled = [
                (tile, label) for tile in found if (label := _label(slide, tile["roi"], roi, empty)) is not None
            ]
            left_out += len(found) - len(labelled)
            for index in _drawn(len(labelled), per_slide, seed, slide.name):
                tile, label = labelled[index]
                rows.append(_row(slide, tile, label, splits[slide.group], mpp, size))
        if not rows:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(result.failed.items())[:3])
            raise InputError(f"{table}: no slide gave a tile ({reasons or 'all have less ROI than asked for'})")
        frame = pd.DataFrame(rows)
        write_table(out, frame.drop(columns=[c for c in ("roi", "slide_mpp") if frame[c].isna().all()]))
    warnings = tuple(warning for done in result.done.values() for warning in done["warnings"])
    return SlideTiles(out, len(rows), left_out, result.failed, warnings)


def _check_numbers(
    mpp: float, size: int, stride: int | None, tissue: float, roi: float, per_slide: int | None, seed: int
) -> None:
    if not 0 < mpp < float("inf"):
        raise InputError(f"mpp {mpp:g}: give a positive number of micrometres per pixel")
    for name, value in (("size", size), ("stride", stride), ("per-slide", per_slide)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: give a whole number from 1 up")
    if not 0 <= tissue <= 1:
        raise InputError(f"tissue {tissue:g}: give a share from 0 to 1")
    if not 0 < roi <= 1:
        raise InputError(f"roi {roi:g}: give a share above 0, up to 1")
    if seed < 0:
        raise InputError(f"seed {seed}: give a whole number from 0 up")


def _item(slide: OwnSlide) -> dict[str, Any]:
    """What the tiles of a slide depend on besides the settings; a file that was repaired is another file."""
    files = [slide.path] if slide.annotation is None else [slide.path, slide.annotation]
    return {
        "slide": str(slide.path),
        "annotation": None if slide.annotation is None else str(slide.annotation),
        "mpp": slide.mpp,
        "files": [[file.stat().st_size, file.stat().st_mtime_ns] for file in files],
    }


def tiles_of_slide(item: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tiles of one slide: a task of `run_jobs`.

    Args:
        item: `slide`, `annotation` (or None) and `mpp` (or None, to take the file's).
        settings: `mpp`, `size` and `stride` in pixels of it, and the least share of `tissue`.

    Returns:
        `tiles`, row by row, each with `x` and `y` in pixels of level 0 and the shares `tissue` and `roi` (None
        without annotation), and `warnings`.

    Raises:
        InputError: the slide or its annotation cannot be read, or no tile has enough tissue.
    """
    mpp, size = settings["mpp"], settings["size"]
    with open_slide(Path(item["slide"]), mpp=item["mpp"], option="mpp in the table") as slide:
        slide.level_for(mpp)  # refuses a scale that the slide does not have, before anything is read
        scale = mpp / slide.mpp
        xs, ys = (_grid(length, size * scale, settings["stride"] * scale) for length in slide.size)
        if not xs.size or not ys.size:
            raise InputError(
                f"{slide.path}: is {slide.width / scale:.0f}x{slide.height / scale:.0f} px at {mpp:g} µm/px, smaller "
                f"than a tile of {size} px; choose a smaller --size or --mpp"
            )
        shares = _tissue_shares(slide, xs, ys, size * scale)
        chosen = np.argwhere(shares >= settings["tissue"])
        if not len(chosen):
            raise InputError(
                f"{slide.path}: no tile has {100 * settings['tissue']:g} % of tissue, the best has "
                f"{100 * shares.max():.1f} %; look at it with `histoloc slides tissue`"
            )
        corners = [(int(xs[column]), int(ys[row])) for row, column in chosen]
        rois, warnings = _roi_shares(slide, item["annotation"], corners, size, scale)
    tiles = [
        {"x": x, "y": y, "tissue": round(float(shares[row, column]), 6), "roi": roi}
        for (x, y), (row, column), roi in zip(corners, chosen, rois, strict=True)
    ]
    return {"tiles": tiles, "warnings": warnings}


def _grid(length: int, side: float, step: float) -> NDArray[np.int64]:
    """Edges of the tiles that lie in the slide, whole pixels of level 0."""
    count = max(0, int((length - side + 1e-6) // step) + 1)
    # Down, because the last tile would else leave the slide.
    return np.floor(np.arange(count) * step + 1e-6).astype(np.int64)


def _tissue_shares(slide: Slide, xs: NDArray[np.int64], ys: NDArray[np.int64], side: float) -> NDArray[np.float64]:
    at = max(TISSUE_MPP, slide.mpp)
    return share(find_tissue(slide, at), at, xs[None, :], ys[:, None], side, side, slide)


def _roi_shares(
    slide: Slide, annotation: str | None, corners: Sequence[tuple[int, int]], size: int, scale: float
) -> tuple[Sequence[float | None], list[str]]:
    """Shares of the very masks that training reads, so that none without ROI has a pixel of it."""
    if annotation is None:
        return [None] * len(corners), []
    annotations = read_annotations(Path(annotation), size=slide.size)
    shares = [float(rasterise(annotations, x, y, size, size, scale).mean()) for x, y in corners]
    return shares, list(annotations.warnings)


def _label(slide: OwnSlide, found: float | None, roi: float, empty: str | None) -> str | None:
    """The label of a tile, or None where it has some ROI but too little."""
    if found is None or found >= roi:
        return slide.label
    return empty if found == 0 else None


def _drawn(count: int, per_slide: int | None, seed: int, name: str) -> Sequence[int]:
    """Indices of at most so many tiles, in order; those of fewer are among those of more."""
    if per_slide is None or count <= per_slide:
        return range(count)
    return sorted(int(index) for index in random_for(seed, "tiles", name).permutation(count)[:per_slide])


def _row(slide: OwnSlide, tile: Mapping[str, Any], label: str, split: str, mpp: float, size: int) -> dict[str, Any]:
    return {
        "image": str(slide.path),
        "label": label,
        "mask": None if slide.annotation is None else str(slide.annotation),
        "split": split,
        "group": slide.group,
        "mpp": mpp,
        "x": tile["x"],
        "y": tile["y"],
        "width": size,
        "height": size,
        "tissue": tile["tissue"],
        "roi": tile["roi"],
        "slide_mpp": slide.mpp,
    }
