"""GlaS (Warwick-QU), colon glands: the official folder as a table.

Sirinukunwattana et al., "Gland segmentation in colon histology images: The GlaS challenge contest", Medical
Image Analysis 35, 2017. 165 images, 20x, 0.620 micrometres per pixel; instance masks of the glands; the class
is the grade, benign or malignant.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from histoloc.bounds import Count, Whole
from histoloc.data.groups import divide
from histoloc.data.table import write_table
from histoloc.datasets.result import TableResult
from histoloc.errors import InputError

MPP = 0.62
CLASSES = ("benign", "malignant")
PARTS = {"train": 85, "testA": 60, "testB": 20}
EXTENSIONS = (".bmp", ".png")
TEST_SHARE = 0.3
TEST_WEIGHT = 10.0  # how much more a misfit of the test set counts than one of a fold

# Validation sets of the five folds, as numbers of train_N. Image-level: patients are shared between them.
# Published as file lists with Rony et al., "Deep weakly-supervised learning methods for classification and
# localization in histology images: a survey", MELBA 2023.
FOLDS: tuple[tuple[int, ...], ...] = (
    (2, 5, 12, 18, 24, 26, 36, 38, 51, 52, 54, 63, 65, 68, 72, 74, 77, 83),
    (7, 9, 14, 16, 30, 33, 42, 46, 48, 50, 55, 59, 61, 69, 73, 75, 76, 82),
    (1, 8, 11, 19, 25, 31, 32, 34, 37, 43, 44, 47, 57, 58, 62, 64, 70, 80),
    (3, 4, 6, 17, 20, 21, 22, 27, 28, 40, 41, 53, 56, 60, 71, 78, 79, 81),
    (10, 13, 15, 23, 29, 35, 39, 45, 49, 66, 67, 84, 85),
)


def glas_table(
    root: Path, *, out: Path, split: Literal["official", "patient"] = "official", seed: Whole = 0, folds: Count = 5
) -> TableResult:
    """The GlaS challenge's folder -> a table with the published folds, or with patient-disjoint splits.

    The official split keeps testA and testB as test and cuts train into the five published folds; images of one
    patient lie on both sides of it. The split by patient puts all images of a patient into the test set (about 30 %
    of images) or one fold; sets are balanced by class as well as whole patients allow. The group is the patient.

    Args:
        root: the folder that holds train_1.bmp ... and Grade.csv, or its parent.
        out: the table to write (CSV).
        split: official = train/test of the challenge and the five published folds (patients are shared between them);
            patient = no patient on two sides.
        seed: of the patient split.
        folds: number of folds of the patient split.

    Returns:
        The table, with warnings on absent images and on the shares that were reached.

    Raises:
        InputError: no GlaS folder, a part of an official split is absent (a whole one is a warning), an image
            without annotation or without row in Grade.csv, or patients that cannot be cut into so many folds.
    """
    if split not in ("official", "patient"):
        raise InputError(f"split '{split}': GlaS has no such split; write official or patient")
    if split == "official" and folds != len(FOLDS):
        raise InputError(f"{folds} folds: the official split has {len(FOLDS)}; take these or split 'patient'")
    if folds < 2 or seed < 0:
        raise InputError(f"{folds} folds, seed {seed}: give at least 2 folds and a seed from 0 up")
    folder = _find_folder(Path(root).absolute())
    rows, warnings = _list_images(folder)
    if split == "official":
        folds_of = {f"train_{number}": str(fold) for fold, numbers in enumerate(FOLDS) for number in numbers}
        rows["fold"] = rows["name"].map(folds_of).fillna("")
    else:
        rows["fold"], remark = _folds_by_patient(folder, rows, seed, folds)
        warnings.append(remark)
    rows["split"] = np.where(rows["fold"] == "", "test", "train")
    write_table(out, rows.drop(columns="name"))
    return TableResult(out, warnings)


def _find_folder(root: Path) -> Path:
    """The folder that holds the images: `root` or its only sub-folder that looks like it."""
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder; correct the path")
    signs = ("Grade.csv", *(f"{part}_1{extension}" for part in PARTS for extension in EXTENSIONS))
    folders = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
    alike = [p for p in folders if any((p / sign).is_file() for sign in signs)]
    if not alike:
        raise InputError(
            f"{root}: holds no GlaS images (Grade.csv, train_1.bmp, ...), nor does a folder in it; unpack "
            f"the official archive and give its folder"
        )
    if len(alike) > 1 and root not in alike:
        raise InputError(f"{root}: {len(alike)} folders in it look like GlaS; give one: {alike[0]}")
    return alike[0]


def _read_grades(path: Path) -> pd.DataFrame:
    """Patient (`group`) and label of each image; cells carry stray blanks, and there are further columns."""
    if not path.is_file():
        raise InputError(f"{path}: is absent; copy it from the official archive, it holds the classes")
    columns = ["name", "group", "label"]
    try:
        rows = pd.read_csv(
            path, header=0, names=columns, usecols=range(3), dtype=str, skip_blank_lines=False, encoding="utf-8-sig"
        )
    except ValueError as error:  # no UTF-8, no CSV, or empty
        raise InputError(f"{path}: is no readable CSV ({error}); copy it from the official archive") from error
    grades = rows.fillna("").apply(lambda column: column.str.strip())
    grades = grades[(grades != "").any(axis=1)]
    grades["label"] = grades["label"].str.lower()
    foreign = ~grades["label"].isin(CLASSES) | (grades["group"] == "")
    for wrong, problem in (
        (foreign, "is not `name, patient, benign or malignant`"),
        (grades["name"].duplicated(), "names an image again"),
    ):
        if wrong.any():
            raise InputError(f"{path}: line {grades.index[wrong][0] + 2} {problem}; copy the official file")
    return grades.set_index("name")


def _list_images(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """The images that are there, in the order train, testA, testB, and a warning of absent splits."""
    names = [(part, f"{part}_{i}") for part, number in PARTS.items() for i in range(1, number + 1)]
    files = [(part, name, _find_file(folder, name), _find_file(folder, f"{name}_anno")) for part, name in names]
    table = pd.DataFrame(files, columns=["part", "name", "image", "mask"])
    table = table.join(_read_grades(folder / "Grade.csv"), on="name")
    absent = [part for part in PARTS if table.loc[table["part"] == part, "image"].isna().all()]
    table = table[~table["part"].isin(absent)]
    if table.empty:
        raise InputError(f"{folder}: holds none of the GlaS images; copy them from the official archive")
    problems = []
    things = {"image": "image(s) of {}", "mask": "annotation(s) of {}", "label": "row(s) of {} in Grade.csv"}
    for part, rows in table.groupby("part", sort=False):
        for column, what in things.items():
            if lacking := list(rows.loc[rows[column].isna(), "name"]):
                examples = ", ".join([*lacking[:5], *["..."] * (len(lacking) > 5)])
                problems.append(f"{len(lacking)} {what.format(part)} missing ({examples})")
    if problems:
        raise InputError(f"{folder}: {'; '.join(problems)}; copy them from the official archive")
    parts = " and ".join(f"{part} ({PARTS[part]})" for part in absent)
    verb = "is" if len(absent) == 1 else "are"
    warning = f"{len(table)} of {sum(PARTS.values())} images: {parts} {verb} absent"
    return table.assign(mpp=MPP, patient=table["group"]).drop(columns=["part"]), [warning] if absent else []


def _find_file(folder: Path, stem: str) -> Path | None:
    return next((p for e in EXTENSIONS if (p := folder / (stem + e)).is_file()), None)


def _folds_by_patient(folder: Path, rows: pd.DataFrame, seed: int, folds: int) -> tuple[pd.Series, str]:
    """Fold of each image (empty = test), a patient's images together, and a remark on the shares."""
    names = [str(fold) for fold in range(folds)]
    shares = {"test": TEST_SHARE, **dict.fromkeys(names, (1 - TEST_SHARE) / folds)}
    # One patient has a third of the malignant training images and would fill the test set alone, but for the weight.
    try:
        sets = divide(list(rows["label"]), list(rows["patient"]), shares, seed, {"test": TEST_WEIGHT})
    except InputError as error:
        raise InputError(f"{folder}: {error}; ask for fewer folds") from error
    where = pd.Series(sets, index=rows.index)
    sizes = pd.crosstab(where, rows["label"])
    listed = {name: "+".join(map(str, sizes.loc[name])) for name in shares}
    patients = list(where.groupby(rows["patient"]).first())
    return where.replace("test", ""), (
        f"split by patient (benign+malignant images): test {listed.pop('test')}, which is "
        f"{(where == 'test').mean():.0%} of the images and {patients.count('test')} of {len(patients)} "
        f"patients; validation sets of the folds {', '.join(listed.values())}"
    )
