"""Camelyon16 on disk: the official slides, annotations and reference of its releases, and the published folds."""

import csv
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from histoloc.datasets.patches import random_for
from histoloc.datasets.slide_list import ListedSlide
from histoloc.errors import InputError

FOLDS = 5
FOLD_SEED = 0
# The published benchmark was made without them; the challenge withdrew some, and test_114 has no outlines.
NOT_PUBLISHED = ("normal_086", "test_049", "test_114")
SLIDE_EXTENSIONS = (".tif", ".tiff")

# Folders of the releases (GigaDB and AWS since 2018, AWS flat, the challenge's first one), below the root; case is
# ignored.
_SLIDES: dict[str, tuple[str, ...]] = {
    "normal": ("training/normal", "training/images", "images", "TrainingData/Train_Normal"),
    "tumor": ("training/tumor", "training/images", "images", "TrainingData/Train_Tumor"),
    "test": ("testing/images", "testing", "images", "Testset/Images"),
}
_ANNOTATIONS: dict[str, tuple[str, ...]] = {
    "tumor": (
        "training/lesion_annotations", "training/annotations", "annotations", "lesion_annotations",
        "TrainingData/Ground_Truth/XML",
    ),
    "test": (
        "testing/lesion_annotations", "testing/annotations", "annotations", "lesion_annotations",
        "Testset/Ground_Truth/Annotations",
    ),
}  # fmt: skip
_REFERENCE = ("testing/reference.csv", "reference.csv", "evaluation/reference.csv", "Testset/Ground_Truth/GT.csv")


@dataclass(frozen=True)
class CamelyonFolder:
    """What the folder holds.

    Attributes:
        slides: sorted by name; the part is train or test, the label normal or tumor.
        folds: fold of each training slide by name, see `slide_folds`; tumour slides without outlines keep their place.
        exclusions: the reason by name of slides that the protocol or their own name excludes.
        failed: the reason by name of slides that ought to be there but cannot be used.
        warnings: what else there is to know.
    """

    slides: tuple[ListedSlide, ...]
    folds: dict[str, int]
    exclusions: dict[str, str]
    failed: dict[str, str]
    warnings: tuple[str, ...] = ()


def find_slides(root: Path, *, published: bool = True) -> CamelyonFolder:
    """Find the slides of Camelyon16 with their labels and annotations; no slide is opened.

    Args:
        root: the folder that holds `training` and `testing`, or `images` and `annotations`.
        published: leave out the slides that the published benchmark left out.

    Raises:
        InputError: no folder, no training slides of a class, test slides without reference.csv, or two slides of one
            name.
    """
    root = Path(root).absolute()
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder; correct the path")
    exclusions: dict[str, str] = {}
    failed: dict[str, str] = {}
    slides: list[ListedSlide] = []
    files = {kind: _files(root, folders, kind, SLIDE_EXTENSIONS) for kind, folders in _SLIDES.items()}
    for kind in ("normal", "tumor"):
        if not files[kind]:
            raise InputError(
                f"{root}: holds no training slides {kind}_001.tif ... (looked in {', '.join(_SLIDES[kind])}); "
                "give the folder of the challenge that holds training/ and testing/"
            )
    reference = _read_reference(root) if files["test"] else {}
    outlines = {kind: _files(root, folders, kind, (".xml",)) for kind, folders in _ANNOTATIONS.items()}
    for kind, paths in files.items():
        for stem, path in paths.items():
            name = path.relative_to(root).as_posix()
            label = reference.get(stem, "") if kind == "test" else kind
            annotations = outlines[kind].get(stem) if label == "tumor" else None
            slide = ListedSlide(name, path, label, annotations, part="test" if kind == "test" else "train")
            if published and stem in NOT_PUBLISHED:
                exclusions[name] = "the published benchmark leaves it out"
                continue
            slides.append(slide)
            if not label:
                failed[name] = "reference.csv does not say whether it holds a tumour; complete it"
            elif label == "tumor" and annotations is None:
                folders = ", ".join(_ANNOTATIONS[kind])
                failed[name] = f"it holds a tumour, but there is no {stem}.xml (looked in {folders}); add it"
    usable = sorted((slide for slide in slides if slide.name not in failed), key=lambda slide: slide.name)
    warnings = () if files["test"] else (f"{root}: no test slides; looked in {', '.join(_SLIDES['test'])}",)
    return CamelyonFolder(tuple(usable), slide_folds(slides), exclusions, failed, warnings)


def slide_folds(slides: Iterable[ListedSlide]) -> dict[str, int]:
    """Fold of each training slide, by name: five folds of ceil(20 %) of each class, shuffled with seed 0.

    The sizes are the published ones (32 normal and 23 tumour slides, 31 and 19 in the last fold); which slides are
    in which fold is not, because the published shuffle cannot be reproduced bit by bit.
    """
    folds: dict[str, int] = {}
    training = [slide for slide in slides if slide.part == "train"]
    for label in ("normal", "tumor"):
        names = sorted(slide.name for slide in training if slide.label == label)
        order = random_for(FOLD_SEED, "fold", label).permutation(len(names))
        size = math.ceil(len(names) / FOLDS)
        folds |= {names[index]: place // size for place, index in enumerate(order)}
    return dict(sorted(folds.items()))


def split_of(slide: ListedSlide, folds: dict[str, int], fold: int) -> str:
    """The split of a slide when `fold` is the validation set."""
    if slide.part == "test":
        return "test"
    return "valid" if folds[slide.name] == fold else "train"


def check_fold(slides: Iterable[ListedSlide], folds: dict[str, int], fold: int) -> None:
    """Refuse a fold that leaves training or validation without slides of a class."""
    slides = [slide for slide in slides if slide.part == "train"]
    for label in ("normal", "tumor"):
        numbers = {folds[slide.name] for slide in slides if slide.label == label}
        if len(numbers) < 2:
            raise InputError(f"{label}: a training and a validation set need at least 2 slides of it; add slides")
        if fold not in numbers:
            raise InputError(f"fold {fold}: has no {label} slide; choose one of {', '.join(map(str, sorted(numbers)))}")


def _resolve(root: Path, relative: str) -> Path | None:
    """The path below the root, whatever the case of its names."""
    path = root
    for word in relative.split("/"):
        same = [p for p in path.iterdir() if p.name.lower() == word.lower()] if path.is_dir() else []
        if not same:
            return None
        path = min(same, key=lambda p: (p.name != word, p.name))
    return path


def _files(root: Path, folders: Iterable[str], kind: str, extensions: Iterable[str]) -> dict[str, Path]:
    """Files by the challenge's name in small letters; masks and the like are passed over."""
    files: dict[str, Path] = {}
    for folder in folders:
        place = _resolve(root, folder)
        for path in sorted(place.iterdir()) if place is not None and place.is_dir() else []:
            stem = path.stem.lower()
            if path.suffix.lower() not in extensions or not re.fullmatch(rf"{kind}_\d+", stem):
                continue
            if files.setdefault(stem, path) != path:
                raise InputError(f"{path}: is of the same slide as {files[stem]}; keep one")
    return files


def _read_reference(root: Path) -> dict[str, str]:
    """Label of each test slide; rows are `test_001,Tumor,...`, with or without header and extension."""
    path = next((p for p in (_resolve(root, name) for name in _REFERENCE) if p is not None and p.is_file()), None)
    if path is None:
        raise InputError(f"{root}: has test slides but no reference.csv with their labels; looked for {_REFERENCE}")
    labels: dict[str, str] = {}
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").lower().splitlines()))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path}: is no readable CSV ({error}); copy it again") from error
    for row in rows:
        name, label = (cell.strip() for cell in (*row, "", "")[:2])
        if match := re.fullmatch(r"(test_\d+)(\.tiff?)?", name):
            if label not in ("normal", "tumor", "tumour"):
                raise InputError(f"{path}: {name} is '{label}'; expected Normal or Tumor")
            labels[match[1]] = "normal" if label == "normal" else "tumor"
    if not labels:
        raise InputError(f"{path}: has no row like test_001,Tumor; copy it again")
    return labels
