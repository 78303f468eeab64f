"""The figure of the paper: the same images for every run or method, beside the truth."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from histoloc.data.images import read_image, read_map, read_mask
from histoloc.errors import InputError
from histoloc.pictures import agreement, data_uri, outline, overlay
from histoloc.report.tables import NOT_DEFINED
from histoloc.results import Evaluation, Run

T = TypeVar("T")

WIDTH, MANY, NARROW = 420, 4, 220  # of a picture in pixels; from more columns than MANY on NARROW


@dataclass(frozen=True)
class Panel:
    """One run on one image."""

    agreement: str | None  # `data:` address; None where there is no truth; without ROI all that is marked is false
    heatmap: str | None  # `data:` address; None where no map was kept
    score: str  # F1⁺ and F1⁻ of the image, without ROI the share that is marked; empty where not defined
    prediction: str  # the predicted class


@dataclass(frozen=True)
class FigureRow:
    """One image of the figure."""

    name: str
    label: str
    rank: str  # easiest, middle, hardest; empty where `--images` names it
    image: str | None
    truth: str | None
    missing: str  # sentences about what could not be read; else empty
    panels: list[Panel]


@dataclass(frozen=True)
class Gallery:
    """The images of evaluations that may be compared, a column for each.

    Attributes:
        title: what was evaluated.
        runs: names of the columns.
        rows: the images.
        notes: sentences about what is not shown.
        classes: of the images, where those without ROI have a gallery of their own; else empty.
        without_roi: these are the images without ROI, on which every mask is a false alarm.
    """

    title: str
    runs: list[str]
    rows: list[FigureRow]
    notes: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    without_roi: bool = False


def galleries(runs: Sequence[Run]) -> list[Gallery]:
    """What `side_by_side` gives for evaluations of equal keys; those that most runs share show more images."""
    groups: dict[tuple, list[tuple[Run, Evaluation]]] = defaultdict(list)
    for run in runs:
        for evaluation in run.evaluations:
            groups[evaluation.key].append((run, evaluation))
    result: list[Gallery] = []
    for number, pairs in enumerate(sorted(groups.values(), key=len, reverse=True)):  # stable: test before valid
        names, evaluation = Counter(run.name for run, _ in pairs), pairs[0][1]
        columns = [(run.name if names[run.name] == 1 else f"{run.name}, {own.label}", own) for run, own in pairs]
        table = Path(evaluation.result.table or "").name
        title = f"{evaluation.label} of {table}" if table else evaluation.label
        result += side_by_side(title, columns, count=9 if number == 0 else 3)
    return result


def side_by_side(
    title: str, columns: Sequence[tuple[str, Evaluation]], *, count: int = 9, images: Sequence[str] = ()
) -> list[Gallery]:
    """Put evaluations of equal keys side by side.

    Args:
        title: what was evaluated.
        columns: name and evaluation of each.
        count: how many images, see `choose`, among those of which all kept a map.
        images: these instead, by name, or by file name with or without its suffix.

    Returns:
        One gallery; two where images without ROI are shown besides others, theirs first.

    Raises:
        InputError: there is no image as wanted of which every run kept a map.
    """
    silent = [name for name, own in columns if not (own.images["file"] != "").any()]
    runs = [(name, own) for name, own in columns if name not in silent]
    notes = [f"{name} kept no maps on {columns[0][1].label} and is not in the figure." for name in silent]
    gallery = Gallery(title, [name for name, _ in runs], [], notes)
    if not runs:
        return [gallery]
    tables = [own.images[own.images["file"] != ""].set_index("name", drop=False) for _, own in runs]
    everywhere = [str(name) for name in tables[0].index if all(name in table.index for table in tables)]
    if not everywhere:
        notes.append("These runs share no image with a kept map, so that they cannot be shown side by side.")
        return [gallery]
    tables = [table.loc[everywhere] for table in tables]
    empty = without_roi([own for _, own in runs]) & set(everywhere)
    ranks = dict.fromkeys(select_images(everywhere, images), "") if images else choose(tables, empty, count)
    records: list[Any] = [table.to_dict("index") for table in tables]
    parts = []
    for quiet in (True, False):
        pairs = {name: [(e, of[name]) for (_, e), of in zip(runs, records, strict=True)] for name in ranks}
        rows = [_figure_row(pairs[name], rank, quiet) for name, rank in ranks.items() if (name in empty) == quiet]
        classes = tuple(sorted({row.label for row in rows})) if empty & set(ranks) else ()
        if rows:
            parts.append(replace(gallery, rows=rows, without_roi=quiet, classes=classes, notes=[] if parts else notes))
    return parts


def without_roi(evaluations: Iterable[Evaluation]) -> set[str]:
    """Names of the images of classes without ROI (normal tissue).

    Such a class was named as `--empty-class`, or every image of it has a truth and no truth has ROI. An image of a
    named class whose truth has ROI nevertheless is none of them.
    """
    evaluations = list(evaluations)
    classes = {evaluation.result.empty_class for evaluation in evaluations} - {None}
    images = pd.concat([evaluation.images for evaluation in evaluations])
    by_class = (images["true_fraction"] == 0).groupby(images["label"]).all()
    empty = classes | set(by_class.index[by_class]) - {""}
    return set(images.loc[images["label"].isin(empty) & ~(images["true_fraction"] > 0), "name"])


def choose(tables: Sequence[pd.DataFrame], empty: Set[str], count: int) -> dict[str, str]:
    """Choose images that no single run is favoured by.

    Args:
        tables: per_image.csv of every run, with the same images, indexed by name.
        empty: names of the images without ROI.
        count: how many at most, of every class alike, but at least one of each.

    Returns:
        Rank by image name, from the easiest to the hardest of each class: evenly spaced in the order of the mean
        over runs of the mean of F1⁺ and F1⁻; images without ROI in that of the share that is not marked. Where no
        image has a truth in the table's order, rank `no truth`.
    """
    labels = tables[0]["label"]
    quiet = labels.index.isin(list(empty))
    each = [t[["f1_plus", "f1_minus"]].mean(axis=1).where(~quiet, 100 * (1 - t["roi_fraction"])) for t in tables]
    scores = pd.concat(each, axis=1).mean(axis=1).sort_values(ascending=False, kind="stable")
    known = scores.dropna().index
    names = pd.Series(labels if known.empty else labels[known])
    ranks = {}
    for _, of in names.groupby(names):
        places = np.linspace(0, len(of) - 1, min(max(1, count // names.nunique()), len(of))).round().astype(int)
        extremes = {0: "easiest", len(of) - 1: "hardest"} if len(places) > 1 else {}
        for place in places.tolist():
            ranks[str(of.index[place])] = "no truth" if known.empty else extremes.get(place, "middle")
    return ranks


def select_images(names: Sequence[str], texts: Sequence[str]) -> list[str]:
    """The images of `--images`, by name or by file name with or without its suffix.

    Raises:
        InputError: there is no such image, or there are several.
    """
    images = []
    for text in texts:
        fits = [name for name in names if text in (name, Path(name).name, Path(name).stem)]
        if len(fits) != 1:
            why = "several images are called so" if fits else "no image of this name has a map in all rows"
            raise InputError(f"--images {text}: {why}; give names of the column `name` of per_image.csv")
        images += fits
    return images


def _figure_row(cells: Sequence[tuple[Evaluation, dict[str, Any]]], rank: str, quiet: bool) -> FigureRow:
    """One image: its picture and truth from the first run that names them, and a panel of every run."""
    missing: list[str] = []
    paths = {c: next(filter(None, (own.file(cell[c]) for own, cell in cells)), None) for c in ("image", "mask")}
    image = _open(read_image, paths["image"], missing, "image")
    truth = _open(read_mask, paths["mask"], missing, "truth") if paths["mask"] else None
    files = [own.folder / "images" / cell["file"] for own, cell in cells]
    maps = [_open(read_map, file.with_name(f"{file.name}_map.png"), missing, "ROI map") for file in files]
    masks = [_open(read_mask, file.with_name(f"{file.name}_mask.png"), missing, "mask") for file in files]
    height, width = next((p.shape[:2] for p in (image, truth, *maps) if p is not None), (1, 1))
    columns = min(width, WIDTH if len(cells) <= MANY else NARROW)
    size = columns, max(1, round(height * columns / width))
    canvas = np.full((size[1], size[0], 3), 235, np.uint8)
    if image is not None:
        canvas = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    area = None if truth is None else _shrink(truth, size)
    true = np.zeros(canvas.shape[:2], bool) if quiet else area
    panels = []
    for (_, cell), roi, mask in zip(cells, maps, masks, strict=True):
        agrees = heatmap = None
        cut = np.zeros(canvas.shape[:2], bool) if mask is None else _shrink(mask, size)
        if roi is not None:
            values = np.asarray(Image.fromarray(roi).resize(size, Image.Resampling.BILINEAR))
            heatmap = data_uri(overlay(canvas, values, cut), photo=True)
            agrees = None if true is None or mask is None else data_uri(agreement(canvas, cut, true), photo=True)
        panels.append(Panel(agrees, heatmap, _score(cell, quiet), _prediction(cell)))
    spotlight = None
    if image is not None and area is not None:  # what lies outside is pale
        pale = np.where(area[..., None], canvas, 0.6 * canvas + 0.4 * 255).astype(np.uint8)
        spotlight = data_uri(outline(pale, area), photo=True)
    picture = None if image is None else data_uri(canvas, photo=True)
    first = cells[0][1]
    return FigureRow(first["name"], first["label"], rank, picture, spotlight, " ".join(dict.fromkeys(missing)), panels)


def _score(cell: dict[str, Any], quiet: bool) -> str:
    """F1⁺ and F1⁻ of an image; without ROI the share that is marked."""
    if quiet:
        share = 100 * cell["roi_fraction"]
        if share == 0 or np.isnan(share):
            return "no false alarm" if share == 0 else ""
        return f"false alarm on {'< 0.1' if share < 0.1 else f'{share:.1f}'} %"  # a few pixels are not none
    plus, minus = (NOT_DEFINED if np.isnan(v) else f"{v:.1f}" for v in (cell["f1_plus"], cell["f1_minus"]))
    return "" if plus == minus == NOT_DEFINED else f"F1⁺ {plus}, F1⁻ {minus}"


def _prediction(cell: dict[str, Any]) -> str:
    """The predicted class and how sure it is."""
    predicted = cell["predicted"]
    probability = cell.get(f"prob_{predicted}", math.nan)
    sure = "" if math.isnan(probability) else f", p = {probability:.2f}"
    wrong = " (wrong)" if cell["label"] and cell["label"] != predicted else ""
    return f"says {predicted}{sure}{wrong}" if predicted else ""


def _open(read: Callable[[Path], T], path: Path | None, missing: list[str], what: str) -> T | None:
    """Read a picture.

    A file that cannot be read adds a sentence to `missing`: a report without one picture is better than none.
    """
    if path is None:
        missing.append(f"The {what} is not named in per_image.csv.")
        return None
    try:
        return read(path)
    except InputError:
        missing.append(f"The {what} {path.name} could not be read.")
        return None


def _shrink(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Resize a mask to (width, height): a pixel belongs to it where at least half of its area does."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) >= 128
