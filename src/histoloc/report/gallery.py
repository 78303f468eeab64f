"""The figure of the paper: the same images for every run, beside the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from histoloc.pictures import Picture, agreement, data_uri, outline, overlay
from histoloc.report.evaluation import Evaluation, Key
from histoloc.report.read import Run, locate
from histoloc.report.tables import NOT_DEFINED

# From per_image.csv of every run, indexed by name, and the names of images without ROI: images to show and their ranks.
Select = Callable[[list[pd.DataFrame], Set[str]], list[tuple[str, str]]]

WIDTH = 420  # of a picture, pixels; fewer where there are many
MANY, VERY_MANY = 60, 140


@dataclass(frozen=True)
class Panel:
    """What one run says of one image."""

    agreement: str | None  # `data:` address; None where there is no truth; without ROI all that is marked is false
    heatmap: str | None  # `data:` address; None where no map was kept
    caption: str
    alt: str
    score: str  # F1⁺ / F1⁻ of the image, without ROI the share that is marked; empty where not defined


@dataclass(frozen=True)
class Row:
    """One image of the figure."""

    name: str
    label: str
    rank: str  # best, median, worst, or why else it is here
    image: str | None
    truth: str | None
    missing: str  # says what could not be read, empty where nothing is missing
    panels: list[Panel]


@dataclass
class Gallery:
    """The images of evaluations that may be compared, a column for each.

    Attributes:
        evaluation: its label: the split, and what is not the default.
        table: its file name.
        runs: names of the columns.
        rows: the images.
        notes: sentences about what is not shown.
        classes: of the images, where those without ROI have a gallery of their own; else empty.
        without_roi: these are the images without ROI, on which every mask is a false alarm.
    """

    evaluation: str
    table: str
    runs: list[str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    without_roi: bool = False

    @property
    def samples(self) -> str:
        """`normal samples`; empty where one gallery has all images."""
        return f"{', '.join(self.classes)} samples" if self.classes else ""


def galleries(runs: Sequence[Run]) -> list[Gallery]:
    """What `side_by_side` gives for evaluations of equal keys; those that most runs share show more images."""
    groups: dict[Key, list[tuple[Run, Evaluation]]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            groups.setdefault(evaluation.key, []).append((run, evaluation))
    ordered = sorted(groups.values(), key=len, reverse=True)  # stable: test comes before valid
    made: list[Gallery] = []
    for number, pairs in enumerate(ordered):
        per_rank = 3 if number == 0 else 1
        made += side_by_side(pairs, lambda tables, empty, each=per_rank: choose(tables[0], each, empty))
    return [gallery for gallery in made if gallery.rows or gallery.notes]


def without_roi(evaluations: Sequence[Evaluation]) -> set[str]:
    """Names of the images of classes without ROI (normal tissue).

    Such a class was named as `--empty-class`, or every image of it has a truth and no truth has ROI. An image of a
    named class whose truth has ROI nevertheless is none of them.
    """
    named = {evaluation.result.empty_class for evaluation in evaluations} - {None}
    images = pd.concat([e.images.reindex(columns=["name", "label", "true_fraction"]) for e in evaluations])
    fraction = images["true_fraction"].astype(float)
    by_class = (fraction == 0).groupby(images["label"]).all()
    empty = named | set(by_class.index[by_class]) - {""}
    return set(images.loc[images["label"].isin(empty) & ~(fraction > 0), "name"])


def choose(images: pd.DataFrame, per_rank: int, empty: Set[str] = frozenset()) -> list[tuple[str, str]]:
    """Choose images to show, at least one of each class.

    Images with ROI are ranked by the mean of F1⁺ and F1⁻, images without by the share that is marked, which is all
    false alarm.

    Args:
        images: per_image.csv of one run.
        per_rank: how many of the best, of the median and of the worst; of images without ROI as many.
        empty: names of the images without ROI.

    Returns:
        Pairs of image name and rank, best first, images without ROI before the others. Where no image has a truth:
        the first ones in the table's order, rank `no truth`.
    """
    is_empty = images["name"].isin(list(empty))
    chosen = []
    if is_empty.any():
        quiet = images[is_empty]
        chosen = list(_ranks(_ordered(quiet["name"], -quiet["roi_fraction"]), per_rank).items())
    images = images[~is_empty]
    if images.empty:
        return chosen
    ranked = _ordered(images["name"], images[["f1_plus", "f1_minus"]].mean(axis=1))
    ranks = _ranks(ranked, per_rank) if ranked else dict.fromkeys(images["name"].head(3 * per_rank), "no truth")
    label = dict(zip(images["name"], images["label"], strict=True))
    pool = ranked or images["name"].tolist()
    for wanted in sorted(set(label.values()) - {label[name] for name in ranks} - {""}):
        of_class = [name for name in pool if label[name] == wanted]
        if of_class:
            ranks[of_class[len(of_class) // 2]] = f"median of {wanted}"
    return chosen + list(ranks.items())


def _ordered(names: pd.Series, score: pd.Series) -> list[str]:
    """Names from the highest score to the lowest; those without one are left out."""
    return score.set_axis(names).dropna().sort_values(ascending=False, kind="stable").index.tolist()


def _ranks(ranked: list[str], per_rank: int) -> dict[str, str]:
    if len(ranked) <= 3 * per_rank:
        return dict.fromkeys(ranked, "") | _thirds(ranked)
    middle = (len(ranked) - per_rank) // 2
    ranks = dict.fromkeys(ranked[:per_rank], "best")
    ranks |= dict.fromkeys(ranked[middle : middle + per_rank], "median")
    return ranks | dict.fromkeys(ranked[-per_rank:], "worst")


def _thirds(ranked: list[str]) -> dict[str, str]:
    cuts = np.array_split(np.array(ranked, dtype=object), 3) if len(ranked) > 2 else [ranked, [], []]
    return {name: rank for rank, names in zip(("best", "median", "worst"), cuts, strict=True) for name in names}


def side_by_side(pairs: Sequence[tuple[Run, Evaluation]], select: Select) -> list[Gallery]:
    """Put evaluations of equal keys side by side, a column for each.

    Args:
        pairs: at least one run with its evaluation.
        select: names and ranks of the images to show, among those of which all runs kept a map.

    Returns:
        One gallery; two where images without ROI are shown besides others, theirs first.
    """
    shown = [(run, evaluation) for run, evaluation in pairs if (evaluation.images["file"] != "").any()]
    silent = [pair for pair in pairs if pair not in shown]
    first, names = pairs[0][1], Counter(run.name for run, _ in shown)
    notes = [f"{run.name} kept no maps on {own.label} and is not in the figure." for run, own in silent]
    columns = [run.name if names[run.name] == 1 else f"{run.name}, {own.label}" for run, own in shown]
    gallery = Gallery(first.label, Path(first.result.table or "").name, columns, [], notes)
    if not shown:
        return [gallery]
    evaluations = [evaluation for _, evaluation in shown]
    tables = [e.images.set_index("name", drop=False) for e in evaluations]
    everywhere = set.intersection(*(set(table.index[table["file"] != ""]) for table in tables))
    if not everywhere:
        notes.append("These runs share no image with a kept map, so that they cannot be shown side by side.")
        return [gallery]
    empty = without_roi(evaluations) & everywhere
    chosen = select([table[table.index.isin(list(everywhere))] for table in tables], empty)
    count = len(chosen) * (2 + 2 * len(shown))
    width = WIDTH if count <= MANY else 320 if count <= VERY_MANY else 220
    rows: dict[str, Row] = {}
    for name, rank in chosen:
        cells: list[pd.Series] = [table.loc[name] for table in tables]  # pyright: ignore[reportAssignmentType]
        rows[name] = _row(name, rank, evaluations, cells, width, name in empty)
    if not empty & set(rows):
        return [replace(gallery, rows=list(rows.values()))]
    parts = [
        replace(gallery, rows=[row for name, row in rows.items() if (name in empty) == quiet], without_roi=quiet)
        for quiet in (True, False)
    ]
    found = [replace(part, classes=tuple(sorted({row.label for row in part.rows}))) for part in parts if part.rows]
    return [found[0], *(replace(part, notes=[]) for part in found[1:])]


def _row(
    name: str, rank: str, evaluations: Sequence[Evaluation], cells: list[pd.Series], width: int, empty: bool
) -> Row:
    missing: list[str] = []
    image_path = next((p for e, c in zip(evaluations, cells, strict=True) if (p := locate(e, c["image"]))), None)
    mask_path = next((p for e, c in zip(evaluations, cells, strict=True) if (p := locate(e, c["mask"]))), None)
    image = _open(image_path, "RGB", width, missing, "image")
    truth = _open(mask_path, "L", None, missing, "truth") if mask_path else None
    truth_small = None
    if truth is not None:
        size = _size(image) if image is not None else _fit(_size(truth), width)
        truth_small = _shrink_mask(truth > 0, size)
    panels = [
        _panel(evaluation, cell, image, truth_small, width, missing, empty)
        for evaluation, cell in zip(evaluations, cells, strict=True)
    ]
    drawn = None if image is None or truth_small is None else data_uri(_spotlight(image, truth_small), photo=True)
    return Row(
        name=name,
        label=str(cells[0]["label"]),
        rank=rank,
        image=None if image is None else data_uri(image, photo=True),
        truth=drawn,
        missing=" ".join(dict.fromkeys(missing)),
        panels=panels,
    )


def _panel(
    evaluation: Evaluation,
    cell: pd.Series,
    image: Picture | None,
    truth: NDArray[np.bool_] | None,
    width: int,
    missing: list[str],
    empty: bool,
) -> Panel:
    folder = evaluation.folder / "images"
    roi = _open(folder / f"{cell['file']}_map.png", "L", None, missing, "ROI map")
    measured, score = _false_alarm(cell) if empty else _scores(cell)
    caption = "\n".join(filter(None, (measured, _class_said(cell))))
    if roi is None:
        return Panel(None, None, caption, "", score)
    mask = _open(folder / f"{cell['file']}_mask.png", "L", None, [], "mask")
    predicted = mask > 127 if mask is not None else None
    size = _size(image) if image is not None else _fit(_size(roi), width)
    canvas = image if image is not None else np.full((*size, 3), 235, np.uint8)
    small = np.asarray(Image.fromarray(roi).resize((size[1], size[0]), Image.Resampling.BILINEAR)) / 255
    cut = np.zeros(size, bool) if predicted is None else _shrink_mask(predicted, size)
    if predicted is None:
        missing.append("A mask was not found; its outline is not drawn.")
    heat = data_uri(overlay(canvas, small, cut), photo=True)
    compared = None
    truth = np.zeros(size, bool) if empty else truth
    if truth is not None and predicted is not None:
        compared = data_uri(agreement(canvas, cut, truth), photo=True)
    return Panel(compared, heat, caption, f"{cell['name']}: {caption}".replace("\n", "; "), score)


def _scores(cell: pd.Series) -> tuple[str, str]:
    """F1⁺ and F1⁻ of an image for its caption, and in short."""
    if not (np.isfinite(cell["f1_plus"]) or np.isfinite(cell["f1_minus"])):
        return "", ""
    plus, minus = _short(cell["f1_plus"]), _short(cell["f1_minus"])
    return f"F1⁺ {plus}, F1⁻ {minus}", f"{plus} / {minus}"


def _false_alarm(cell: pd.Series) -> tuple[str, str]:
    """The share that is marked in an image without ROI for its caption, and in short."""
    share = 100 * float(cell["roi_fraction"])
    if not np.isfinite(share):
        return "", ""
    text = "< 0.1 %" if 0 < share < 0.1 else f"{share:.1f} %"  # a few pixels are not none
    return (f"false alarm on {text}" if share else "no false alarm"), text


def _class_said(cell: pd.Series) -> str:
    predicted = str(cell["predicted"])
    if not predicted:
        return ""
    probability = cell.get(f"prob_{predicted}", np.nan)
    says = f"says {predicted}" + (f", p = {probability:.2f}" if pd.notna(probability) else "")
    return says + (" (wrong)" if cell["label"] and cell["label"] != predicted else "")


def _short(value: float) -> str:
    return f"{value:.1f}" if np.isfinite(value) else NOT_DEFINED


def _open(path: Path | None, mode: str, width: int | None, missing: list[str], what: str) -> NDArray[np.uint8] | None:
    """Read a picture, scaled down to `width`.

    What cannot be read is said in `missing`, because a report without one picture is better than no report.
    """
    if path is None:
        missing.append(f"The {what} is not named in per_image.csv.")
        return None
    try:
        with Image.open(path) as picture:
            if mode == "L":
                return np.asarray(picture if picture.mode in ("L", "P", "I", "I;16") else picture.convert("L"))
            shown = picture.convert(mode)
            if width is not None and shown.width > width:
                height, full = _fit((shown.height, shown.width), width)
                shown = shown.resize((full, height), Image.Resampling.LANCZOS)
            return np.asarray(shown)
    except (OSError, ValueError, Image.DecompressionBombError):
        missing.append(f"The {what} {path.name} could not be read.")
        return None


def _fit(size: tuple[int, int], width: int) -> tuple[int, int]:
    height, full = size
    return size if full <= width else (max(1, round(height * width / full)), width)


def _spotlight(image: Picture, mask: NDArray[np.bool_]) -> Picture:
    """Outline a mask and pale what lies outside, so that it is seen at a glance which side is meant."""
    pale = image.copy()
    pale[~mask] = (0.6 * image[~mask] + 0.4 * 255).astype(np.uint8)
    return outline(pale, mask)


def _size(picture: NDArray) -> tuple[int, int]:
    height, width = picture.shape[:2]
    return height, width


def _shrink_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Resize a mask to (height, width): a pixel belongs to it where at least half of its area does."""
    area = Image.fromarray(mask.astype(np.uint8) * 255).resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(area) >= 128
