"""The table: the one CSV that lists samples, whatever data set they come from."""

import difflib
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

import pandas as pd

from histoloc.errors import InputError
from histoloc.files import atomic_path
from histoloc.images import check_image, image_size

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
REQUIRED = ("image", "label", "mask", "split", "group")
REGION = ("x", "y", "width", "height")
OPTIONAL = ("fold", "mpp", *REGION, "slide_mpp")
LISTED_PROBLEMS = 20


@dataclass(frozen=True)
class Sample:
    """One image, or one region of a slide, with its class label.

    Attributes:
        name: the `image` cell as written, followed by `@x_y_width_height` for a region; unique in its table.
        image: absolute path of the image.
        label: name of the class.
        split: the set that the sample belongs to, or None where the table leaves it open.
        mask: absolute path of the ROI mask, or None.
        group: what must not be on both sides of a split (patient, slide), or None.
        x: left edge of the region in pixels of level 0; None, as the next three, for a whole image.
        y: top edge of the region.
        width: width of the region in pixels.
        height: height of the region in pixels.
        mpp: micrometres per pixel, or None where unknown.
        slide_mpp: micrometres per pixel of the slide's level 0, where the slide does not say it.
    """

    name: str
    image: Path
    label: str
    split: Split | None = None
    mask: Path | None = None
    group: str | None = None
    x: int | None = None
    y: int | None = None
    width: int | None = None
    height: int | None = None
    mpp: float | None = None
    slide_mpp: float | None = None


@dataclass(frozen=True)
class Table:
    """The samples of one CSV file, validated.

    Attributes:
        path: the CSV file.
        samples: all rows in the order of the file.
        classes: names of the classes; a label's index in them is the class index.
        folds: numbers of the folds that the file offers; empty without a column `fold`.
        fold: the fold that was made the validation set, or None.
    """

    path: Path
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    folds: tuple[int, ...] = ()
    fold: int | None = None

    def split(self, name: str) -> tuple[Sample, ...]:
        """Samples of one split, in the order of the file.

        Raises:
            InputError: there is no such split or it has no samples.
        """
        if name not in SPLITS:
            raise InputError(f"split '{name}': there is no such split; {_nearest(name, SPLITS)}")
        found = tuple(sample for sample in self.samples if sample.split == name)
        if not found:
            sizes = {s: sum(sample.split == s for sample in self.samples) for s in (*SPLITS, None)}
            there = ", ".join(f"{s or 'no split'} ({n})" for s, n in sizes.items() if n)
            remedy = "mark rows of it in the column split"
            if name == "valid" and self.folds and self.fold is None:
                remedy = f"choose a fold ({', '.join(map(str, self.folds))}) to be it"
            raise InputError(f"{self.path}: no row is of split '{name}'; there are {there}; {remedy}")
        return found

    def label_index(self, sample: Sample) -> int:
        """Index of the sample's label in `classes`."""
        return self.classes.index(sample.label)

    def counts(self) -> pd.DataFrame:
        """Number of samples: a row per split that has any (`none` for rows without), a column per class."""
        splits = pd.Series([sample.split or "none" for sample in self.samples], name="split")
        labels = pd.Series([sample.label for sample in self.samples], name="label")
        rows = [s for s in (*SPLITS, "none") if (splits == s).any()]
        return pd.crosstab(splits, labels).reindex(index=rows, columns=list(self.classes), fill_value=0)

    @staticmethod
    def has_masks(samples: Sequence[Sample]) -> bool:
        """Whether there are samples and every one of them has a mask."""
        return bool(samples) and all(sample.mask is not None for sample in samples)


def read_table(
    path: Path, *, fold: int | None = None, classes: Sequence[str] | None = None, check_files: bool = True
) -> Table:
    """Read and validate a table; nothing that is wrong in it passes, and all of it is reported at once.

    Columns: `image,label,mask,split,group`, where all cells but image and label may be empty; optionally
    `fold` (of a row of split train: the fold in which it is in the validation set), `mpp`, and
    `x,y,width,height` together for a region of a slide. Other columns are ignored. Paths are relative to the
    table's folder.

    Args:
        path: the CSV file (UTF-8, separated by commas).
        fold: turn the training rows of this fold into split valid; None leaves them in train.
        classes: the known classes in order; by default the sorted labels of the table.
        check_files: look at the header of every image and mask; False trusts the paths.

    Raises:
        InputError: lists the first 20 problems and how many more there are.
    """
    path = Path(path)
    rows = _read_csv(path)
    problems: list[str] = []
    samples, folds = _parse(path, rows, problems)
    known = tuple(sorted({s.label for s in samples if s.label}) if classes is None else classes)
    if len(set(known)) < len(known):
        raise InputError(f"classes {', '.join(known)}: a class is named twice; name each once")
    problems += _duplicates(samples)
    problems += _straddling_groups(samples, folds)
    problems += _unknown_classes(samples, known, given=classes is not None)
    offered = tuple(sorted({k for k in folds if k is not None}))
    if fold is not None:
        problems += _fold_problems(fold, offered, samples)
        samples = [
            replace(sample, split="valid") if sample.split == "train" and k == fold else sample
            for sample, k in zip(samples, folds, strict=True)
        ]
    problems += _classes_without_samples(samples, known)
    if check_files:
        with ThreadPoolExecutor(8) as pool:
            problems += [problem for found in pool.map(_file_problems, samples) for problem in found]
    if problems:
        raise InputError(_report(path, problems))
    return Table(path.absolute(), tuple(samples), known, offered, fold)


def write_table(path: Path, rows: pd.DataFrame) -> None:
    """Write a table atomically, with `image` and `mask` relative to the table's folder.

    Args:
        path: the CSV file to write.
        rows: at least the columns image and label; image and mask are absolute, or relative to the working
            directory. Absent standard columns are written empty, further columns are kept at the end.

    Raises:
        InputError: the file cannot be written.
        ValueError: the column image or label is absent.
    """
    path = Path(path)
    if not {"image", "label"} <= set(rows.columns):
        raise ValueError("a table has the columns image and label")
    folder = path.parent.resolve()
    standard = [*REQUIRED, *(c for c in OPTIONAL if c in rows.columns)]
    columns = [*standard, *(c for c in rows.columns if c not in standard)]
    cells = {
        column: [_cell(value, column, folder) for value in rows[column]] if column in rows.columns else [""] * len(rows)
        for column in columns
    }
    with atomic_path(path) as temporary:
        pd.DataFrame(cells, columns=columns).to_csv(temporary, index=False, lineterminator="\n")


def _cell(value: object, column: str, folder: Path) -> str:
    if value is None or value is pd.NA or value == "" or (isinstance(value, float) and math.isnan(value)):
        return ""
    if column in ("image", "mask"):
        return _relative(Path(str(value)), folder)
    if column in ("fold", *REGION):
        return str(int(cast(float, value)))
    return str(value)


def _relative(file: Path, folder: Path) -> str:
    absolute = file.parent.resolve() / file.name
    try:  # os.path, because the walk_up of Path.relative_to came with Python 3.12
        return Path(os.path.relpath(absolute, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return absolute.as_posix()


def _read_csv(path: Path) -> pd.DataFrame:
    """All cells as stripped strings, without blank rows; the index is the line in the file."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such table; write one with `histoloc data`")
    try:
        # header=None, because pandas would rename doubled columns and take a surplus cell for an index.
        raw = pd.read_csv(
            path, header=None, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig"
        )
    except pd.errors.EmptyDataError as error:
        raise InputError(f"{path}: the table is empty; list one image per row") from error
    except (pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: is no readable CSV ({str(error).strip()}); save it as UTF-8 CSV") from error
    raw = raw.fillna("").apply(lambda column: column.str.strip())
    columns = raw.iloc[0].tolist()
    _check_columns(path, columns)
    rows = raw.iloc[1:].set_axis(columns, axis=1).set_axis(range(2, len(raw) + 1), axis=0)
    rows = rows[(rows != "").any(axis=1)]
    if rows.empty:
        raise InputError(f"{path}: the table is empty; list one image per row")
    return rows


def _check_columns(path: Path, columns: list[str]) -> None:
    problems = []
    for column in dict.fromkeys(columns):
        if column and columns.count(column) > 1:
            problems.append(f"the column '{column}' is there twice; keep one")
        if column not in OPTIONAL and column.lower() in OPTIONAL:
            problems.append(f"the column '{column}' is to be called '{column.lower()}'")
    missing = [column for column in REQUIRED if column not in columns]
    if missing:
        hint = "; separate cells by commas, not semicolons" if any(";" in c for c in columns) else ""
        problems.append(f"missing columns: {', '.join(missing)}; the header has {', '.join(columns)}{hint}")
    if problems:
        raise InputError(_report(path, problems))


def _parse(path: Path, rows: pd.DataFrame, problems: list[str]) -> tuple[list[Sample], list[int | None]]:
    """Turn rows into samples and their folds; cells that cannot be used become problems and None."""
    folder = path.parent.resolve()
    samples: list[Sample] = []
    folds: list[int | None] = []
    for line, row in zip(rows.index, rows.to_dict("records"), strict=True):
        cells = {str(key): str(value) for key, value in row.items()}
        where = f"line {line} ({cells['image'] or 'no image'})"
        problems += [f"{where}: {problem}" for problem in _row_problems(cells)]
        if not cells["image"]:
            continue
        region = [_whole(cells.get(key, "")) for key in REGION]
        suffix = "" if None in region else "@" + "_".join(map(str, region))
        folds.append(_whole(cells.get("fold", "")))
        samples.append(
            Sample(
                name=Path(cells["image"]).as_posix() + suffix,
                image=(folder / cells["image"]).resolve(),
                label=cells["label"],
                split=cast(Split, cells["split"]) if cells["split"] in SPLITS else None,
                mask=(folder / cells["mask"]).resolve() if cells["mask"] else None,
                group=cells["group"] or None,
                **dict(zip(REGION, region, strict=True)),
                mpp=_positive(cells.get("mpp", "")),
                slide_mpp=_positive(cells.get("slide_mpp", "")),
            )
        )
    return samples, folds


def _row_problems(cells: dict[str, str]) -> Iterator[str]:
    if not cells["image"]:
        yield "the cell image is empty; name a file or delete the row"
    if not cells["label"]:
        yield "the cell label is empty; name the class"
    if cells["split"] and cells["split"] not in SPLITS:
        yield f"unknown split '{cells['split']}'; {_nearest(cells['split'], SPLITS)}"
    for column in ("mpp", "slide_mpp"):
        if (mpp := cells.get(column)) and _positive(mpp) is None:
            yield f"{column} '{mpp}' is no positive number; give micrometres per pixel or leave it empty"
    if fold := cells.get("fold"):
        if _whole(fold) is None:
            yield f"fold '{fold}' is no whole number from 0 up"
        elif cells["split"] != "train":
            yield "only rows of split train have a fold; leave the cell empty"
    region = {key: cells.get(key, "") for key in REGION}
    if any(region.values()):
        if not all(region.values()):
            yield "x, y, width and height come together; fill all four or none"
        elif any(_whole(value) is None for value in region.values()):
            yield "x, y, width and height are whole numbers from 0 up"
        elif not int(region["width"]) or not int(region["height"]):
            yield "width and height of a region are at least 1"


def _whole(cell: str) -> int | None:
    return int(cell) if cell.isascii() and cell.isdigit() else None


def _positive(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.3)
    return f"did you mean '{near[0]}'?" if near else f"write one of {', '.join(known)}"


def _duplicates(samples: list[Sample]) -> Iterator[str]:
    seen: dict[tuple[object, ...], str] = {}
    for s in samples:
        key = (s.image, s.x, s.y, s.width, s.height)
        if key in seen:
            same = "" if seen[key] == s.name else f", which is the same file as {seen[key]}"
            yield f"{s.name}{same}: is listed twice; delete one of the rows"
        seen.setdefault(key, s.name)


def _straddling_groups(samples: list[Sample], folds: list[int | None]) -> Iterator[str]:
    """Groups in more than one split, or, where a fold becomes the validation set, in more than one fold."""
    splits: dict[str, set[str]] = defaultdict(set)
    parts: dict[str, set[str]] = defaultdict(set)
    for sample, fold in zip(samples, folds, strict=True):
        if sample.group and sample.split:
            splits[sample.group].add(sample.split)
            if sample.split == "train":
                parts[sample.group].add("no fold" if fold is None else f"fold {fold}")
    for group in sorted(splits):
        if len(splits[group]) > 1:
            sides = " and ".join(s for s in SPLITS if s in splits[group])
            yield f"group '{group}' is on both sides of a split ({sides}); move it to one, or empty its cells"
        if len(parts[group]) > 1:
            sides = " and ".join(sorted(parts[group]))
            yield f"group '{group}' is in more than one fold ({sides}); move it to one, or empty its cells"


def _unknown_classes(samples: list[Sample], classes: tuple[str, ...], *, given: bool) -> Iterator[str]:
    if not given:
        return
    for label in sorted({s.label for s in samples if s.label and s.label not in classes}):
        number = sum(s.label == label for s in samples)
        yield f"unknown class '{label}' in {number} row(s); {_nearest(label, classes)}"


def _classes_without_samples(samples: list[Sample], classes: tuple[str, ...]) -> Iterator[str]:
    there = {s.label for s in samples if s.split == "train"}
    if there:
        for label in classes:
            if label not in there:
                yield f"class '{label}' has no samples in the split train; add some or leave the class out"


def _fold_problems(fold: int, offered: tuple[int, ...], samples: list[Sample]) -> Iterator[str]:
    if not offered:
        yield f"fold {fold} was asked for, but there is no fold in the table; leave the fold out"
    elif fold not in offered:
        yield f"there is no fold {fold}; the folds are {', '.join(map(str, offered))}"
    if offered and any(s.split == "valid" for s in samples):
        yield "there are rows of split valid besides the folds; leave the fold out, or empty the column fold"


def _file_problems(sample: Sample) -> list[str]:
    """Look at the headers of image and mask; a region's slide is only looked for, its reader checks it."""
    problems: list[str] = []
    size = None
    try:
        if sample.x is None:
            size = check_image(sample.image)
        elif not sample.image.exists():
            problems.append(f"{sample.image}: there is no such file; correct the path")
    except InputError as error:
        problems.append(str(error))
    if sample.mask is None:
        return problems
    if sample.x is not None and sample.mask.suffix.lower() in (".xml", ".geojson", ".json"):
        return problems if sample.mask.is_file() else [*problems, f"{sample.mask}: there is no such file"]
    try:
        mask_size = image_size(sample.mask)
    except InputError as error:
        return [*problems, f"mask of {sample.name}: {error}"]
    if size is not None and mask_size != size:
        problems.append(
            f"{sample.mask}: the mask is {mask_size[0]}x{mask_size[1]} px but its image {sample.name} is "
            f"{size[0]}x{size[1]} px; give the mask of this image"
        )
    return problems


def _report(path: Path, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"{path}: {problems[0]}"
    lines = [f"{path}: {len(problems)} problems:", *(f"  {p}" for p in problems[:LISTED_PROBLEMS])]
    if len(problems) > LISTED_PROBLEMS:
        lines.append(f"  ... and {len(problems) - LISTED_PROBLEMS} more")
    return "\n".join(lines)
