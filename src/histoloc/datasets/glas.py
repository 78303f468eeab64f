"""GlaS (Warwick-QU), colon glands: the official folder as a table.

Sirinukunwattana et al., "Gland segmentation in colon histology images: The GlaS challenge contest", Medical
Image Analysis 35, 2017. 165 images, 20x, 0.620 micrometres per pixel; instance masks of the glands; the class
is the grade, benign or malignant.
"""

import csv
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from histoloc.data.groups import balance
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


class _Image(NamedTuple):
    """One image of the data set with what belongs to it."""

    name: str
    image: Path
    mask: Path
    label: str
    patient: str


def glas_table(
    root: Path, *, split: Literal["official", "patient"] = "official", seed: int = 0, folds: int = 5
) -> tuple[pd.DataFrame, list[str]]:
    """List the official GlaS folder.

    The official split keeps testA and testB as test and cuts train into the five published folds; images of one
    patient lie on both sides of it. The split by patient puts all images of a patient into the test set (about 30 %
    of images) or one fold; sets are balanced by class as well as whole patients allow. The group is the patient.

    Args:
        root: the folder of the images and Grade.csv, or its parent.
        split: "official" or "patient".
        seed: seed of the search for balanced sets; the official split has no chance in it.
        folds: number of folds; the official split has five.

    Returns:
        The table with the columns image, label, mask, split, group, fold (the fold whose validation set it is
        in; empty for test), mpp and patient; and warnings, one sentence each, on absent images and on shared
        patients or the shares that were reached.

    Raises:
        InputError: no GlaS folder, a part of an official split is absent (a whole one is a warning), an image
            without annotation or without row in Grade.csv, or patients that cannot be cut into so many folds.
    """
    root = Path(root).absolute()
    if split not in ("official", "patient"):
        raise InputError(f"split '{split}': GlaS has no such split; write official or patient")
    if split == "official" and folds != len(FOLDS):
        raise InputError(f"{folds} folds: the official split has {len(FOLDS)}; take these or split 'patient'")
    if folds < 2 or seed < 0:
        raise InputError(f"{folds} folds, seed {seed}: give at least 2 folds and a seed from 0 up")
    folder = _find_folder(root)
    images, warnings = _present(folder)
    parts, remark = _official(images) if split == "official" else _by_patient(folder, images, seed, folds)
    rows = [
        {
            "image": str(image.image),
            "label": image.label,
            "mask": str(image.mask),
            "split": "test" if fold is None else "train",
            "group": image.patient,
            "fold": "" if fold is None else str(fold),
            "mpp": MPP,
            "patient": image.patient,
        }
        for image, fold in zip(images, parts, strict=True)
    ]
    return pd.DataFrame(rows), [*warnings, *remark]


def _find_folder(root: Path) -> Path:
    """The folder that holds the images: `root` or its only sub-folder that looks like it."""
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder; correct the path")
    signs = ("Grade.csv", *(f"{part}_1{extension}" for part in PARTS for extension in EXTENSIONS))
    folders = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
    found = [p for p in folders if any((p / sign).is_file() for sign in signs)]
    if not found:
        raise InputError(
            f"{root}: holds no GlaS images (Grade.csv, train_1.bmp, ...), nor does a folder in it; unpack "
            f"the official archive and give its folder"
        )
    if root in found:
        return root
    if len(found) > 1:
        raise InputError(f"{root}: {len(found)} folders in it look like GlaS; give one: {found[0]}")
    return found[0]


def _read_grades(path: Path) -> dict[str, tuple[str, str]]:
    """Map names to (patient, label); cells carry stray blanks, and there are further columns."""
    if not path.is_file():
        raise InputError(f"{path}: is absent; copy it from the official archive, it holds the classes")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file)][1:]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is no readable CSV ({error}); copy it from the official archive") from error
    grades: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(lines, start=2):
        if not any(line):
            continue
        if len(line) < 3 or not line[1] or line[2].lower() not in CLASSES:
            raise InputError(
                f"{path}: line {number} is not `name, patient, benign or malignant`; copy the official file"
            )
        if line[0] in grades:
            raise InputError(f"{path}: line {number} names {line[0]} again; copy the official file")
        grades[line[0]] = (line[1], line[2].lower())
    return grades


def _present(folder: Path) -> tuple[list[_Image], list[str]]:
    """The images that are there, in the order train, testA, testB, and a warning of absent splits."""
    grades = _read_grades(folder / "Grade.csv")
    images: list[_Image] = []
    absent: list[str] = []
    problems: list[str] = []
    for part, number in PARTS.items():
        names = [f"{part}_{i}" for i in range(1, number + 1)]
        pixels = {name: _find_file(folder, name) for name in names}
        if not any(pixels.values()):
            absent.append(f"{part} ({number})")
            continue
        masks = {name: _find_file(folder, f"{name}_anno") for name in names}
        problems += _lacking(f"image(s) of {part}", [name for name in names if pixels[name] is None])
        problems += _lacking(f"annotation(s) of {part}", [f"{n}_anno" for n in names if masks[n] is None])
        problems += _lacking(f"row(s) of {part} in Grade.csv", [name for name in names if name not in grades])
        for name in names:
            if (image := pixels[name]) and (mask := masks[name]) and name in grades:
                images.append(_Image(name, image, mask, label=grades[name][1], patient=grades[name][0]))
    if problems:
        raise InputError(f"{folder}: {'; '.join(problems)}; copy them from the official archive")
    if not images:
        raise InputError(f"{folder}: holds none of the GlaS images; copy them from the official archive")
    total = sum(PARTS.values())
    verb = "is" if len(absent) == 1 else "are"
    return images, [f"{len(images)} of {total} images: {' and '.join(absent)} {verb} absent"] if absent else []


def _find_file(folder: Path, stem: str) -> Path | None:
    return next((p for e in EXTENSIONS if (p := folder / (stem + e)).is_file()), None)


def _lacking(what: str, names: list[str]) -> list[str]:
    more = ", ..." if len(names) > 5 else ""
    return [f"{len(names)} {what} missing ({', '.join(names[:5])}{more})"] if names else []


def _official(images: list[_Image]) -> tuple[list[int | None], list[str]]:
    """Fold of each image (None = test) and a remark on patients that the official sets share."""
    fold_of = {f"train_{number}": fold for fold, numbers in enumerate(FOLDS) for number in numbers}
    parts = [fold_of.get(image.name) for image in images]
    patients = sorted({image.patient for image in images})
    parts_of = {p: {f for i, f in zip(images, parts, strict=True) if i.patient == p} for p in patients}
    shared = sum(len(found) > 1 for found in parts_of.values())
    if not shared:
        return parts, []
    return parts, [
        f"the official split is by image: {shared} of {len(patients)} patients are in more than one of the "
        f"folds and the test set; the split 'patient' keeps patients apart"
    ]


def _by_patient(folder: Path, images: list[_Image], seed: int, folds: int) -> tuple[list[int | None], list[str]]:
    """Fold of each image (None = test), a patient's images together, and a remark on the shares."""
    patients = sorted({image.patient for image in images})
    counts = np.zeros((len(patients), len(CLASSES)), dtype=int)
    for image in images:
        counts[patients.index(image.patient), CLASSES.index(image.label)] += 1
    shares = np.array([TEST_SHARE] + [(1 - TEST_SHARE) / folds] * folds)
    # One patient has a third of the malignant training images and would fill the test set alone, but for the
    # weight and for balancing the number of patients as well as that of images.
    weights = np.array([TEST_WEIGHT] + [1.0] * folds)
    where = balance(np.hstack([counts, counts > 0]), shares, weights, seed)
    sizes = np.stack([counts[where == part].sum(axis=0) for part in range(len(shares))])
    if (sizes == 0).any():
        raise InputError(
            f"{folder}: the {len(patients)} patients ({(counts[:, 0] > 0).sum()} with benign, "
            f"{(counts[:, 1] > 0).sum()} with malignant images) cannot be cut into a test set and {folds} "
            f"folds that have both classes each; ask for fewer folds"
        )
    parts = [None if (part := int(where[patients.index(i.patient)])) == 0 else part - 1 for i in images]
    listed = ", ".join(f"{benign}+{malignant}" for benign, malignant in sizes[1:])
    return parts, [
        f"split by patient (benign+malignant images): test {sizes[0, 0]}+{sizes[0, 1]}, which is "
        f"{sizes[0].sum() / len(images):.0%} of the images and {(where == 0).sum()} of {len(patients)} "
        f"patients; validation sets of the folds {listed}"
    ]
