"""The table: the one CSV that lists samples, whatever data set they come from."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from histoloc.data import table_problems
from histoloc.data.csv_cells import number_in, places_in, read_cells
from histoloc.data.fingerprint import fingerprint
from histoloc.data.groups import divide, torn_groups
from histoloc.data.labels import show
from histoloc.data.sample import REGION, SPLIT_WORDS, SPLITS, Sample
from histoloc.data.table_problems import nearest, refuse
from histoloc.errors import InputError
from histoloc.places import relative_place
from histoloc.work_folder import atomic_path

REQUIRED = ("image", "label")
WRITTEN = (*REQUIRED, "mask", "split", "group")  # by `write_table`, whatever there is
WHOLE, POSITIVE = ("fold", *REGION), ("mpp", "slide_mpp")
SHARES = {"train": 0.6, "test": 0.2, "valid": 0.2}
DRAWN = (
    "no row names a split, so they were drawn: 60 % train, 20 % valid, 20 % test of each class, whole groups; the same "
    "for the same names and groups, and the column split says otherwise"
)
OPTIONAL = ("mask", "split", "group", "fold", "mpp", *REGION, "slide_mpp")


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
        has_splits: False where no row names one; then they are drawn, if there are samples enough.
    """

    path: Path
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    folds: tuple[int, ...] = ()
    fold: int | None = None
    notes: tuple[str, ...] = ()
    has_splits: bool = True

    def without_splits(self) -> "Table":
        """The same without splits that were drawn."""
        samples = tuple(replace(sample, split=None) for sample in self.samples)
        return replace(self, samples=samples, notes=tuple(note for note in self.notes if note != DRAWN))

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
    path: Path,
    *,
    fold: int | None = None,
    classes: Sequence[str] | None = None,
    columns: str = "",
    check_files: bool = True,
) -> Table:
    """Read and validate a table; nothing that is wrong in it passes, and all of it is reported at once.

    Columns: `image` and `label`; optionally `mask`, `split`, `group`, `fold` (of a row of split train: the fold in
    which it is in the validation set), `mpp`, and `x,y,width,height` together for a region of a slide. Other columns
    are ignored. Paths are relative to the table's folder; the last link is not followed, its own name counts. A label
    is one class, or several as `a|b`. Labels or groups that differ by case, spaces, `.0`, Unicode form or characters
    that cannot be seen are refused, as is what programs write for an empty cell (`nan`).

    Args:
        path: the CSV file, see `read_cells`.
        fold: turn the training rows of this fold into split valid; None leaves them in train.
        classes: the known classes in order, of which the table may lack some; by default the sorted labels of the
            table, of which split train, where it has rows, may lack none.
        columns: what the file calls its columns, as `image=path,label=diagnosis`, where not so.
        check_files: look at the header of every image and mask; False trusts the paths.

    Raises:
        InputError: lists the first 20 problems and how many more there are.
    """
    path = Path(path)
    rows = read_cells(path, REQUIRED, OPTIONAL, columns)
    problems = list(table_problems.empty_words(rows))
    rows["split"] = [SPLIT_WORDS.get(cell.casefold(), cell) for cell in rows["split"]]
    numbers = {c: [number_in(cell, whole=c in WHOLE) for cell in rows[c]] for c in (*WHOLE, *POSITIVE)}
    values = pd.DataFrame(numbers, index=rows.index, dtype=object)
    problems += table_problems.row_problems(rows, values)
    samples = _samples(path.parent, rows, values)
    folds = tuple(sorted({s.fold for s in samples if s.fold is not None}))
    if fold is not None:
        problems += table_problems.fold_problems(fold, folds, samples)
        samples = [replace(s, split="valid") if s.split == "train" and s.fold == fold else s for s in samples]
    problems += table_problems.sample_problems(samples, classes)
    if check_files:
        with ThreadPoolExecutor(8) as pool:
            problems += [problem for listed in pool.map(table_problems.file_problems, samples) for problem in listed]
    refuse(path, problems)
    notes = [] if any(rows["split"]) else _draw_splits(samples)
    known = tuple(sorted({name for s in samples for name in s.labels}) if classes is None else classes)
    notes += torn_groups(samples, with_folds=fold is None)
    if len(known) == 1:
        notes.append(f"one class only ({known[0]}): nothing can be learned of it; add images of another class")
    return Table(path.absolute(), tuple(samples), known, folds, fold, tuple(notes), any(rows["split"]))


def _draw_splits(samples: list[Sample]) -> list[str]:
    """Give samples splits, in place, by names and groups alone; tiles of a slide stay together."""
    ordered = sorted(samples, key=lambda s: s.name)
    groups = [s.group or (str(s.image) if s.x is not None else None) for s in ordered]
    try:
        splits: Any = divide([s.label for s in ordered], groups, SHARES, seed=0)
    except InputError:  # who needs splits will say that there are none
        return []
    split_of = {s.name: split for s, split in zip(ordered, splits, strict=True)}
    samples[:] = [replace(s, split=split_of[s.name]) for s in samples]
    return [DRAWN]


def _samples(folder: Path, rows: pd.DataFrame, values: pd.DataFrame) -> list[Sample]:
    """The rows as samples, with None for cells that cannot be used."""
    samples: list[Sample] = []
    place = places_in(folder)
    pairs: Any = zip(rows.to_dict("records"), values.to_dict("records"), strict=True)
    for cells, numbers in pairs:
        if not cells["image"] or "\0" in cells["image"] + cells["mask"]:
            continue
        image, mask = cells["image"], cells["mask"]
        region = [numbers[key] for key in REGION]
        suffix = "" if None in region else "@" + "_".join(map(str, region))
        samples.append(
            Sample(
                name=Path(image).as_posix() + suffix,
                image=place(image),
                label=cells["label"],
                split=cells["split"] if cells["split"] in SPLITS else None,
                mask=place(mask) if mask else None,
                group=cells["group"] or None,
                **numbers,
            )
        )
    return samples


def without_unreadable(rows: pd.DataFrame, root: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Leave out rows whose image or mask cannot be used.

    Args:
        rows: columns image, label and mask; absolute paths.
        root: the folder to which names are relative.

    Returns:
        The others, and the reason by name of each that is left out.
    """
    names = [Path(os.path.relpath(image, root)).as_posix() for image in rows["image"]]
    samples = [
        Sample(name, Path(image), label, mask=Path(mask) if mask else None)
        for name, image, label, mask in zip(names, rows["image"], rows["label"], rows["mask"], strict=True)
    ]
    with ThreadPoolExecutor(8) as pool:
        problems = dict(zip(names, pool.map(table_problems.file_problems, samples), strict=True))
    failed = {name: "; ".join(lines) for name, lines in problems.items() if lines}
    return rows[~pd.Series(names, dtype=object).isin(list(failed))].reset_index(drop=True), failed


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
    standard = [*WRITTEN, *(c for c in OPTIONAL if c in rows.columns and c not in WRITTEN)]
    table = rows.reindex(columns=[*standard, *(c for c in rows.columns if c not in standard)])
    for column in ("image", "mask"):
        files = ["" if pd.isna(cell) or cell == "" else relative_place(folder, str(cell)) for cell in table[column]]
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
