"""Tables of the user's own slides: tiles on a grid over the tissue, labelled by slide or by annotation."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import shapely
from cyclopts import Parameter
from numpy.typing import NDArray

from histoloc.data.groups import divide
from histoloc.data.table import write_table
from histoloc.data.table_problems import refuse
from histoloc.datasets.options import TileOptions
from histoloc.datasets.patches import random_for
from histoloc.datasets.result import TableResult
from histoloc.datasets.slide_list import ListedSlide, class_without_roi, read_slides
from histoloc.errors import InputError
from histoloc.runner import JobOptions, run_jobs
from histoloc.slides.annotations import ROLES, Role, annotations_text, rasterise, read_annotations
from histoloc.slides.reader import Slide, open_slide
from histoloc.slides.tissue import share
from histoloc.slides.tissue import tissue as find_tissue
from histoloc.work_folder import locked, write_text

TISSUE_MPP = 8.0  # of the tissue mask


def slide_tiles(
    table: Path,
    *,
    out: Path,
    options: Annotated[TileOptions, Parameter(name="*")],
    jobs: Annotated[JobOptions, Parameter(name="*")] = JobOptions(),  # noqa: B008
) -> TableResult:
    """Your own slides -> a table of tiles, read from the slides on the fly; a second call does only what is missing.

    Slides that fail are listed in failed.csv with their reasons; the table is made without them, the exit code is 1.

    Tiles lie on a grid from the slide's upper left corner, where there is enough tissue. A tile gets its slide's label.
    A tile of an annotated slide gets it only if its share of ROI is at least `roi`, a tile without any ROI the class of
    the slides without annotation, and what is in between is left out. So are tiles that touch `Ignore*`, or leave
    `Region*` where there is one. Outlines that were taken become masks, in a folder .outlines beside the table.

    Sets are made of whole groups, by label and seed alone. Splits, `roi` and `per_slide` may change between calls.

    Args:
        table: CSV with the columns slide and label and, optionally, annotation (ASAP XML, GeoJSON), group (patient; by
            default the slide), mpp (of level 0, for slides that do not say it), roi_class and hole_class (in place of
            the options; `a|b`); paths are relative to it.
        out: the table to write (CSV); what is done is kept beside it, in a folder .jobs, with failed.csv.
        options: which tiles are cut.
        jobs: where slides are worked on.

    Raises:
        InputError: what is given cannot be used or is not clear, another call is at `out`, or no slide gave a tile.
    """
    table, out = Path(table), Path(out)
    slides = read_slides(table, options.columns)
    if out.absolute() in (table.absolute(), *(slide.path for slide in slides)):
        raise InputError(f"{out}: is one of the given files; choose another --out")
    empty = class_without_roi(table, slides, options.empty_class)
    splits = slide_splits(table, slides, options)
    settings = {"mpp": float(options.mpp), "size": options.size, "stride": options.stride or options.size}
    settings |= {"tissue": float(options.tissue)}
    place = out.with_name(f"{out.stem}.jobs")
    with locked(place):
        items = {slide.name: _item(slide, options) for slide in slides}
        result = run_jobs(tiles_of_slide, items, place, settings=settings, options=jobs)
        rows, excluded = _rows(slides, splits, result.results, out, options, empty)
        if not rows:
            refuse(table, [f"{name}: {reason}" for name, reason in result.failed.items()])
            raise InputError(f"{table}: no slide gave a tile, all have less ROI than asked for; give a smaller --roi")
        frame = pd.DataFrame(rows)
        write_table(out, frame.drop(columns=[c for c in ("roi", "slide_mpp") if frame[c].isna().all()]))
    warnings = [warning for value in result.results.values() for warning in value["warnings"]]
    rest = [f"{excluded} tiles with less ROI than asked for are left out"] if excluded else []
    return TableResult(out, warnings, _outline_remarks(result.results.values()) + rest, result.failed)


def _item(slide: ListedSlide, options: TileOptions) -> dict[str, Any]:
    """What the task of a slide has to know."""
    roi, holes = slide.roi_class or options.roi_class, slide.hole_class or options.hole_class
    return slide.item() if slide.annotations is None else slide.item(roi=roi, holes=holes, origin=options.origin)


def _outline_remarks(results: Collection[Mapping[str, Any]]) -> list[str]:
    """What was taken of outlines, and how many."""
    number: Counter[tuple[Role, str]] = Counter()
    for result in results:
        for role, label, count in result["outlines"]:
            number[role, label] += count
    lists = {
        text: ", ".join(f"{label or 'no class'} ({n})" for (r, label), n in sorted(number.items()) if r == role)
        for role, text in ROLES.items()
    }
    unlabelled = sum(result["unlabelled"] for result in results)
    remarks = [f"outlines, {text}: {classes}" for text, classes in lists.items() if classes]
    return remarks + ([f"{unlabelled} tiles touch Ignore* or leave Region* and are left out"] if unlabelled else [])


def _rows(
    slides: Sequence[ListedSlide],
    splits: Mapping[str, str],
    results: Mapping[str, dict[str, Any]],
    out: Path,
    options: TileOptions,
    empty: str | None,
) -> tuple[list[dict[str, Any]], int]:
    """Rows of the table, with the masks that they name, and the number of tiles left out for their share of ROI."""
    outlines = out.absolute().with_name(f"{out.stem}.outlines")
    rows: list[dict[str, Any]] = []
    excluded = 0
    for slide in (slide for slide in slides if slide.name in results):
        result = results[slide.name]
        labelled = _labelled(slide, result["tiles"], options, empty)
        excluded += len(result["tiles"]) - len(labelled)
        mask = None
        if result["mask"] is not None:
            mask = outlines / f"{quote(slide.name, safe=' ()+,=@')}.geojson"
            write_text(mask, result["mask"])
        common = _row(slide, splits[slide.name], options) | {"mask": mask, "slide_mpp": result["slide_mpp"]}
        rows += [common | tile for tile in _sample(slide, labelled, options)]
    return rows, excluded


def slide_splits(table: Path, slides: Sequence[ListedSlide], options: TileOptions) -> dict[str, str]:
    """The split of each slide of a list, whatever their order.

    Raises:
        InputError: the shares leave nothing to train on, or a class has too few slides or groups.
    """
    if options.valid + options.test >= 1:
        raise InputError(
            f"shares test {options.test:g} and valid {options.valid:g}: give shares from 0 up, together below 1"
        )
    ordered = sorted(slides, key=lambda slide: slide.name)
    groups = [None if slide.group == slide.name else slide.group for slide in ordered]
    shares = {"train": 1 - options.test - options.valid, "test": options.test, "valid": options.valid}
    try:
        splits = divide([slide.label for slide in ordered], groups, shares, options.seed)
    except InputError as error:
        raise InputError(f"{table}: {error}; add slides of other groups or set a share to 0") from error
    return {slide.name: split for slide, split in zip(ordered, splits, strict=True)}


def _labelled(
    slide: ListedSlide, tiles: list[dict[str, Any]], options: TileOptions, empty: str | None
) -> list[dict[str, Any]]:
    """The tiles with their labels, without those that have some ROI but too little."""
    full = [tile["roi"] is None or tile["roi"] >= options.roi for tile in tiles]
    pairs = zip(tiles, full, strict=True)
    return [
        tile | {"label": slide.label if is_full else empty} for tile, is_full in pairs if is_full or not tile["roi"]
    ]


def _sample(slide: ListedSlide, tiles: list[dict[str, Any]], options: TileOptions) -> list[dict[str, Any]]:
    """At most so many tiles, in order; those of fewer are among those of more."""
    if options.per_slide is None or len(tiles) <= options.per_slide:
        return tiles
    order = random_for(options.seed, "tiles", slide.name).permutation(len(tiles))
    return [tiles[index] for index in sorted(order[: options.per_slide])]


def _row(slide: ListedSlide, split: str, options: TileOptions) -> dict[str, Any]:
    """What all tiles of a slide have in common, and the columns in order."""
    size = {"width": options.size, "height": options.size}
    columns = dict.fromkeys(
        ("image", "label", "mask", "split", "group", "mpp", "x", "y", "width", "height", "tissue", "roi")
    )
    return {
        **columns,
        **size,
        "image": slide.path,
        "split": split,
        "group": slide.group,
        "mpp": options.mpp,
    }


def tiles_of_slide(item: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tiles of one slide: a task of `run_jobs`.

    Args:
        item: see `ListedSlide.item`; for a slide with annotations also `roi`, `holes` and `origin` of
            `read_annotations`.
        settings: `mpp`, `size` and `stride` in pixels of it, and the least share of `tissue`.

    Returns:
        `tiles`, row by row, each with `x` and `y` in pixels of level 0 and the shares `tissue` and `roi` (None
        without annotation); `unlabelled`, how many touch `Ignore*` or leave `Region*`; `outlines`, what was taken of
        them, and `mask`, the same as GeoJSON; `slide_mpp` where the slide does not say it; and `warnings`.

    Raises:
        InputError: the slide or its annotation cannot be read, or no tile has enough tissue.
    """
    mpp, size = settings["mpp"], settings["size"]
    with open_slide(Path(item["slide"]), mpp=item.get("slide_mpp"), option="mpp in the table") as slide:
        xs, ys, shares = _tissue_shares(slide, settings)
        annotations = None
        if item["annotations"] is not None:
            classes = {"roi": item["roi"], "holes": item["holes"], "origin": item["origin"]}
            annotations = read_annotations(Path(item["annotations"]), size=slide.size, bounds=slide.bounds, **classes)
    scale = mpp / slide.mpp
    rows, columns = np.nonzero(shares >= settings["tissue"])
    x, y, share = xs[columns], ys[rows], shares[rows, columns].round(6)
    labelled = np.ones(len(x), bool)
    if annotations is not None:
        labelled = annotations.with_label(shapely.box(x, y, x + size * scale, y + size * scale))
    tiles: list[dict[str, Any]] = []
    for place in zip(x[labelled].tolist(), y[labelled].tolist(), share[labelled].tolist(), strict=True):
        # Of the very mask that training reads, so that no tile without ROI has a pixel of it.
        roi = None if annotations is None else float(rasterise(annotations, *place[:2], size, size, scale).mean())
        tiles.append(dict(zip(("x", "y", "tissue", "roi"), (*place, roi), strict=True)))
    return {
        "tiles": tiles,
        "unlabelled": int((~labelled).sum()),
        "mask": None if annotations is None else annotations_text(annotations, slide.bounds),
        "outlines": [] if annotations is None else annotations.counts,
        "slide_mpp": slide.mpp if slide.user_mpp else None,
        "warnings": [*slide.notes, *(() if annotations is None else annotations.warnings)],
    }


def _tissue_shares(
    slide: Slide, settings: Mapping[str, Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The grid's edges along x and along y, and the share of tissue of each tile (rows, columns)."""
    mpp, size = settings["mpp"], settings["size"]
    slide.level_for(mpp)  # refuses a scale that the slide does not have, before anything is read
    scale = mpp / slide.mpp
    xs, ys = (_grid(length, size * scale, settings["stride"] * scale) for length in slide.size)
    if not xs.size or not ys.size:
        raise InputError(
            f"{slide.path}: is {slide.width / scale:.0f}x{slide.height / scale:.0f} px at {mpp:g} µm/px, smaller "
            f"than a tile of {size} px; choose a smaller --size or --mpp"
        )
    coarse = max(TISSUE_MPP, slide.mpp)
    shares = share(find_tissue(slide, coarse), coarse, xs[None], ys[:, None], size * scale, size * scale, slide)
    if shares.max() < settings["tissue"]:
        raise InputError(
            f"{slide.path}: no tile has {100 * settings['tissue']:g} % of tissue, the best has "
            f"{100 * shares.max():.1f} %; look at it with `histoloc slides tissue`"
        )
    return xs, ys, shares


def _grid(length: int, side: float, step: float) -> NDArray[np.int64]:
    """Edges of the tiles that lie in the slide, whole pixels of level 0."""
    count = max(0, int((length - side + 1e-6) // step) + 1)
    # Down, because the last tile would else leave the slide.
    return np.floor(np.arange(count) * step + 1e-6).astype(np.int64)
