"""The table: the one CSV that lists samples, whatever data set they come from."""

import math
import os
import string
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from histoloc.data import table_problems
from histoloc.data.fingerprint import fingerprint
from histoloc.data.groups import torn_groups
from histoloc.data.labels import show
from histoloc.data.sample import REGION, SPLITS, Sample
from histoloc.data.table_problems import nearest, refuse
from histoloc.errors import InputError
from histoloc.work_folder import atomic_path

REQUIRED = ("image", "label", "mask", "split", "group")
WHOLE, POSITIVE = ("fold", *REGION), ("mpp", "slide_mpp")
OPTIONAL = ("fold", "mpp", *REGION, "slide_mpp")


@dataclass(frozen=True)
class Table:
    """The samples of one CSV file, validated.

    Attributes:
        path: the CSV file.
        samples: all rows in the order of the file.
        classes: names of the classes; a label's index in them is the class index.
        folds: numbers of the folds that the file offers; empty without a column `fold`.
        fold: the fold that was made the validation set, or None.
        notes: what to know of numbers from this table, a sentence each: groups on both sides of a split, one class.
    """

    path: Path
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    folds: tuple[int, ...] = ()
    fold: int | None = None
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> tuple[Sample, ...]:
        """Samples of one split, in the order of the file.

        Raises:
            InputError: there is no such split or it has no samples.
        """
        if name not in SPLITS:
            raise InputError(f"split '{name}': there is no such split; {nearest(name, SPLITS)}")
        samples = tuple(sample for sample in self.samples if sample.split == name)
        if not samples:
            numbers = Counter(sample.split for sample in self.samples)
            others = ", ".join(f"{s or 'no split'} ({numbers[s]})" for s in (*SPLITS, None) if numbers[s])
            remedy = "mark rows of it in the column split"
            if name == "valid" and self.folds and self.fold is None:
                remedy = f"choose a fold ({', '.join(map(str, self.folds))}) to be it"
            raise InputError(f"{self.path}: no row is of split '{name}'; there are {others}; {remedy}")
        return samples

    def label_indices(self, sample: Sample) -> tuple[int, ...]:
        """Indices of the sample's labels in `classes`, in the order of its cell."""
        return tuple(self.classes.index(label) for label in sample.labels)

    def counts(self) -> pd.DataFrame:
        """Number of samples: a row per split that has any (`none` for rows without), a column per class.

        A sample of several classes counts in each of them.
        """
        pairs = [(sample.split or "none", label) for sample in self.samples for label in sample.labels]
        splits, labels = zip(*pairs, strict=True)
        rows = [split for split in (*SPLITS, "none") if split in splits]
        counts = pd.crosstab(pd.Series(splits, name="split"), pd.Series(labels, name="label"))
        return counts.reindex(index=rows, columns=list(self.classes), fill_value=0)

    def summary(self) -> str:
        """Counts by split and class, then a line on classes, masks and groups; what a command prints at its start."""
        counts = self.counts()
        several = sum(len(sample.labels) > 1 for sample in self.samples)
        masks = sum(sample.mask is not None for sample in self.samples)
        groups = [sample.group for sample in self.samples if sample.group]
        lone = len(self.samples) - len(groups)
        facts = [
            f"{len(self.samples)} samples of {len(self.classes)} class{'es' * (len(self.classes) != 1)}",
            f"{several} of several classes" if several else "",
            f"{masks} with mask",
            f"{len(set(groups))} groups" + (f" ({lone} samples without)" if groups and lone else ""),
            f"folds {', '.join(map(str, self.folds))}" if self.folds else "",
        ]
        return f"{(counts if len(self.classes) <= 8 else counts.T).to_string()}\n{', '.join(filter(None, facts))}"

    def check_classes(self) -> None:
        """Make sure that there is something to learn: rows of split train, or all where it has none, differ in label.

        Raises:
            InputError: they do not.
        """
        train = [sample for sample in self.samples if sample.split == "train"] or self.samples
        if len({frozenset(sample.labels) for sample in train}) == 1:
            what = "class" if len(train[0].labels) == 1 else "label"
            raise InputError(
                f"{self.path}: has one {what} only ({train[0].label} in {len(train)} row(s)); learning needs at least "
                f"two: add images of another class, or correct the column label"
            )

    def fingerprint(self, samples: Sequence[Sample] | None = None) -> str:
        """SHA-256 that changes when rows or files change, in hexadecimal digits.

        It notices: rows more or less; another image cell, label, split, fold, group, region, mpp or name of the mask
        file; of each image and mask file another size or other bytes in its first or last 64 KiB; of a folder (a DICOM
        slide) other names or sizes in it. It does not notice: the order of rows, times of files, other columns, a
        changed middle of a file larger than 128 KiB, and a move of the table with all its files. The choice of a fold
        is noticed, as it changes splits.

        Args:
            samples: those to look at; None for all of the table.

        Raises:
            InputError: a file cannot be read; one that is absent is no error.
        """
        return fingerprint(self.samples if samples is None else samples)

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
    table's folder. A label is one class, or several as `a|b`. Labels or groups that differ by case, spaces, `.0`,
    Unicode form or characters that cannot be seen are refused, as is what programs write for an empty cell (`nan`).

    Args:
        path: the CSV file (UTF-8, separated by commas).
        fold: turn the training rows of this fold into split valid; None leaves them in train.
        classes: the known classes in order, of which the table may lack some; by default the sorted labels of the
            table, of which split train, where it has rows, may lack none.
        check_files: look at the header of every image and mask; False trusts the paths.

    Raises:
        InputError: lists the first 20 problems and how many more there are.
    """
    path = Path(path)
    rows = read_cells(path, REQUIRED, OPTIONAL)
    problems = list(table_problems.empty_words(rows))
    numbers = {c: [_number(cell, c in WHOLE) for cell in rows[c]] for c in (*WHOLE, *POSITIVE)}
    values = pd.DataFrame(numbers, index=rows.index, dtype=object)
    problems += table_problems.row_problems(rows, values)
    samples = _samples(path.parent.resolve(), rows, values)
    folds = tuple(sorted({s.fold for s in samples if s.fold is not None}))
    if fold is not None:
        problems += table_problems.fold_problems(fold, folds, samples)
        samples = [replace(s, split="valid") if s.split == "train" and s.fold == fold else s for s in samples]
    problems += table_problems.sample_problems(samples, classes)
    if check_files:
        with ThreadPoolExecutor(8) as pool:
            problems += [problem for listed in pool.map(table_problems.file_problems, samples) for problem in listed]
    refuse(path, problems)
    known = tuple(sorted({name for s in samples for name in s.labels}) if classes is None else classes)
    notes = torn_groups(samples, with_folds=fold is None)
    if len(known) == 1:
        notes.append(f"one class only ({known[0]}): nothing can be learned of it; add images of another class")
    return Table(path.absolute(), tuple(samples), known, folds, fold, tuple(notes))


def read_cells(path: Path, required: Sequence[str], optional: Sequence[str]) -> pd.DataFrame:
    """All cells of a CSV as stripped strings, absent columns empty, without blank rows; the index is the line.

    Raises:
        InputError: there is no such file, it is no CSV or empty, or its header is not as it must be.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such table; write one with `histoloc data`")
    try:
        # header=None, because pandas would rename doubled columns and take a surplus cell for an index.
        raw = pd.read_csv(
            path, header=None, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig"
        )
    except pd.errors.EmptyDataError:
        raw = pd.DataFrame()
    except (pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: is no readable CSV ({str(error).strip()}); save it as UTF-8 CSV") from error
    # Not other spaces: in a label or group they are refused, where they could make two of one.
    raw = raw.fillna("").apply(lambda column: column.str.strip(string.whitespace))
    raw = raw[(raw != "").any(axis=1)]
    columns = [] if raw.empty else raw.iloc[0].str.strip().tolist()
    refuse(path, table_problems.header_problems(columns, required, optional) if columns else ())
    if len(raw) < 2:
        raise InputError(f"{path}: the table is empty; list one image per row")
    rows = raw.iloc[1:].set_axis(columns, axis=1).set_axis(raw.index[1:] + 1, axis=0)
    return rows.reindex(columns=[*required, *optional], fill_value="")


def _number(cell: str, whole: bool) -> float | None:
    """The number in a cell, a positive or a whole one; None where there is none.

    A whole number may be written as `1.0`, as pandas does in a column with empty cells.
    """
    try:
        value = float(cell)
    except ValueError:
        return None
    if whole:
        return int(value) if 0 <= value < 1e15 and value.is_integer() else None
    return value if 0 < value < math.inf else None


def _samples(folder: Path, rows: pd.DataFrame, values: pd.DataFrame) -> list[Sample]:
    """The rows as samples, with None for cells that cannot be used."""
    samples: list[Sample] = []
    resolve = cache(lambda cell: (folder / cell).resolve())  # a slide has many rows
    pairs: Any = zip(rows.to_dict("records"), values.to_dict("records"), strict=True)
    for cells, numbers in pairs:
        if not cells["image"] or "\0" in cells["image"] + cells["mask"]:
            continue
        region = [numbers[key] for key in REGION]
        suffix = "" if None in region else "@" + "_".join(map(str, region))
        samples.append(
            Sample(
                name=Path(cells["image"]).as_posix() + suffix,
                image=resolve(cells["image"]),
                label=cells["label"],
                split=cells["split"] if cells["split"] in SPLITS else None,
                mask=resolve(cells["mask"]) if cells["mask"] else None,
                group=cells["group"] or None,
                **numbers,
            )
        )
    return samples


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
    table = rows.reindex(columns=[*standard, *(c for c in rows.columns if c not in standard)])
    for column in ("image", "mask"):
        files = ["" if pd.isna(cell) or cell == "" else _relative(Path(cell), folder) for cell in table[column]]
        table[column] = pd.Series(files, index=table.index, dtype=object)
    for column in set(WHOLE) & set(table.columns):
        table[column] = pd.to_numeric(table[column]).astype("Int64")
    with atomic_path(path) as temporary:
        try:
            table.to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{path}: cannot hold the name {show(error.object)[:200]}, which is no UTF-8; rename the file"
            ) from error


def _relative(file: Path, folder: Path) -> str:
    absolute = file.parent.resolve() / file.name
    try:  # os.path, because the walk_up of Path.relative_to came with Python 3.12
        return Path(os.path.relpath(absolute, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return absolute.as_posix()
