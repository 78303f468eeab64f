"""What is wrong with the rows of a table: one sentence each, so that all of it is reported at once."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import pandas as pd

from histoloc.data.images import check_image, image_size
from histoloc.data.labels import EMPTY_WORDS, show
from histoloc.errors import InputError

if TYPE_CHECKING:
    from histoloc.data.table import Sample

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
REGION = ("x", "y", "width", "height")
LISTED_PROBLEMS = 20


def empty_words(rows: pd.DataFrame) -> Iterator[str]:
    """Cells with 'nan' and the like, which are taken out of the rows; label and group are looked at elsewhere."""
    for column in ("mask", "split", "fold", *REGION):
        if column in rows:
            words = rows[column].isin(list(EMPTY_WORDS))
            for word, number in rows.loc[words, column].value_counts(sort=False).items():
                yield f"{column} '{word}' ({number} row(s)) is what programs write for an empty cell; leave it empty"
            rows.loc[words, column] = ""


def row_problems(cells: dict[str, str]) -> Iterator[str]:
    """What is wrong with the cells of one row, by themselves."""
    for column in ("image", "mask"):
        if "\0" in cells[column]:
            yield f"the cell {column} holds a zero byte; write the path anew"
    if not cells["image"]:
        yield "the cell image is empty; name a file or delete the row"
    if not cells["label"]:
        yield "the cell label is empty; name the class"
    if cells["split"] and cells["split"] not in SPLITS:
        yield f"unknown split '{show(cells['split'])}'; {nearest(cells['split'], SPLITS)}"
    for column in ("mpp", "slide_mpp"):
        if (mpp := cells.get(column)) and positive(mpp) is None:
            yield f"{column} '{mpp}' is no positive number; give micrometres per pixel or leave it empty"
    if fold := cells.get("fold"):
        if whole(fold) is None:
            yield f"fold '{fold}' is no whole number from 0 up"
        elif cells["split"] != "train":
            yield "only rows of split train have a fold; leave the cell empty"
    region = {key: cells.get(key, "") for key in REGION}
    if any(region.values()):
        if not all(region.values()):
            yield "x, y, width and height come together; fill all four or none"
        elif any(whole(value) is None for value in region.values()):
            yield "x, y, width and height are whole numbers from 0 up"
        elif not whole(region["width"]) or not whole(region["height"]):
            yield "width and height of a region are at least 1"


def whole(cell: str) -> int | None:
    """The whole number in a cell, also as `1.0`, which pandas writes in a column with empty cells; None for others."""
    match = re.fullmatch(r"([0-9]{1,15})(\.0*)?", cell)
    return int(match[1]) if match else None


def positive(cell: str) -> float | None:
    """The positive number in a cell, or None."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def nearest(word: str, known: Sequence[str]) -> str:
    """A remedy for a word that is not known."""
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.3)
    return f"did you mean '{near[0]}'?" if near else f"write one of {', '.join(known)}"


def duplicates(samples: Sequence["Sample"]) -> Iterator[str]:
    """Images or regions that are listed twice."""
    seen: dict[tuple[object, ...], str] = {}
    for s in samples:
        key = (s.image, s.x, s.y, s.width, s.height)
        if key in seen:
            same = "" if seen[key] == s.name else f", which is the same file as {seen[key]}"
            yield f"{s.name}{same}: is listed twice; delete one of the rows"
        seen.setdefault(key, s.name)


def unknown_classes(classes: Mapping[str, int], known: Sequence[str]) -> Iterator[str]:
    """Classes that are not among the known ones."""
    for name in sorted(classes.keys() - set(known)):
        yield f"unknown class '{show(name)}' in {classes[name]} row(s); {nearest(name, known)}"


def classes_without_samples(samples: Sequence["Sample"], classes: Sequence[str]) -> Iterator[str]:
    """Classes that cannot be learned, for want of rows in the split train, if that has any."""
    there = {label for s in samples if s.split == "train" for label in s.labels}
    if there:
        for label in classes:
            if label not in there:
                yield f"class '{label}' has no samples in the split train; add some or leave the class out"


def fold_problems(fold: int, offered: Sequence[int], samples: Sequence["Sample"]) -> Iterator[str]:
    """Why a fold cannot become the validation set."""
    if not offered:
        yield f"fold {fold} was asked for, but there is no fold in the table; leave the fold out"
    elif fold not in offered:
        yield f"there is no fold {fold}; the folds are {', '.join(map(str, offered))}"
    if offered and any(s.split == "valid" for s in samples):
        yield "there are rows of split valid besides the folds; leave the fold out, or empty the column fold"


def file_problems(sample: "Sample") -> list[str]:
    """Look at the headers of image and mask; a region's slide is only looked for, its reader checks it."""
    try:
        return list(_file_problems(sample))
    except OSError as error:  # such as a name that is too long
        return [f"{sample.name[:100]}: image or mask cannot be looked at ({error.strerror}); correct the paths"]


def _file_problems(sample: "Sample") -> Iterator[str]:
    size = None
    try:
        if sample.x is None:
            size = check_image(sample.image)
        elif not sample.image.exists():
            yield f"{sample.image}: there is no such file; correct the path"
    except InputError as error:
        yield str(error)
    if sample.mask is None:
        return
    if sample.x is not None and sample.mask.suffix.lower() in (".xml", ".geojson", ".json"):
        if not sample.mask.is_file():
            yield f"{sample.mask}: there is no such file; correct the path"
        return
    try:
        mask_size = image_size(sample.mask)
    except InputError as error:
        yield f"mask of {sample.name}: {error}"
        return
    if size is not None and mask_size != size:
        yield (
            f"{sample.mask}: the mask is {mask_size[0]}x{mask_size[1]} px but its image {sample.name} is "
            f"{size[0]}x{size[1]} px; give the mask of this image"
        )


def report(path: Path, problems: Sequence[str]) -> str:
    """A message with the first 20 problems and how many more there are."""
    if len(problems) == 1:
        return f"{path}: {problems[0]}"
    lines = [f"{path}: {len(problems)} problems:", *(f"  {p}" for p in problems[:LISTED_PROBLEMS])]
    if len(problems) > LISTED_PROBLEMS:
        lines.append(f"  ... and {len(problems) - LISTED_PROBLEMS} more")
    return "\n".join(lines)
