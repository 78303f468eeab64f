"""Camelyon16 on disk: the official slides, annotations and reference of its releases, and the published folds."""

import csv
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from histoloc.datasets.patches import random_for
from histoloc.errors import InputError
from histoloc.slides.reader import open_slide

Part = Literal["train", "test"]
Label = Literal["normal", "tumor"]
Kind = Literal["normal", "tumor", "test"]

FOLDS = 5
FOLD_SEED = 0
# The published benchmark was made without them; the challenge withdrew some, and test_114 has no outlines.
NOT_PUBLISHED = ("normal_086", "test_049", "test_114")
SLIDE_EXTENSIONS = (".tif", ".tiff")

# Folders of the releases (GigaDB and AWS since 2018, AWS flat, the challenge's first one), below the root; case is
# ignored.
_SLIDES: dict[Kind, tuple[str, ...]] = {
    "normal": ("training/normal", "training/images", "images", "TrainingData/Train_Normal"),
    "tumor": ("training/tumor", "training/images", "images", "TrainingData/Train_Tumor"),
    "test": ("testing/images", "testing", "images", "Testset/Images"),
}
_ANNOTATIONS: dict[Kind, tuple[str, ...]] = {
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
class CamelyonSlide:
    """One slide of the challenge.

    Attributes:
        name: path relative to the root, with `/`.
        path: absolute path.
        part: of the challenge.
        label: whether it holds a metastasis.
        annotations: absolute path of its XML; None on normal slides.
        mpp: micrometres per pixel of level 0, of a slide that does not say it.
    """

    name: str
    path: Path
    part: Part
    label: Label
    annotations: Path | None = None
    mpp: float | None = None


@dataclass(frozen=True)
class CamelyonFolder:
    """What the folder holds.

    Attributes:
        slides: sorted by name.
        left_out: the reason by name of slides that the protocol or their own name excludes.
        failed: the reason by name of slides that ought to be there but cannot be used.
        without_outlines: tumour slides among the failed ones; they keep their place in the folds.
        warnings: what else there is to know.
    """

    slides: tuple[CamelyonSlide, ...]
    left_out: dict[str, str]
    failed: dict[str, str]
    without_outlines: tuple[CamelyonSlide, ...] = ()
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
    left_out: dict[str, str] = {}
    failed: dict[str, str] = {}
    slides: list[CamelyonSlide] = []
    without: list[CamelyonSlide] = []
    files: dict[Kind, dict[str, Path]] = {kind: _slide_files(root, kind) for kind in _SLIDES}
    for kind in ("normal", "tumor"):
        if not files[kind]:
            raise InputError(
                f"{root}: holds no training slides {kind}_001.tif ... (looked in {', '.join(_SLIDES[kind])}); "
                "give the folder of the challenge that holds training/ and testing/"
            )
    reference = _read_reference(root) if files["test"] else {}
    outlines: dict[Kind, dict[str, Path]] = {kind: _outline_files(root, kind) for kind in _ANNOTATIONS}
    for kind, paths in files.items():
        for stem, path in paths.items():
            name = path.relative_to(root).as_posix()
            label: Label | None = reference.get(stem) if kind == "test" else kind
            annotations = outlines[kind].get(stem) if kind != "normal" and label == "tumor" else None
            if published and stem in NOT_PUBLISHED:
                left_out[name] = "the published benchmark leaves it out"
            elif label is None:
                failed[name] = "reference.csv does not say whether it holds a tumour; complete it"
            elif label == "tumor" and annotations is None:
                without.append(CamelyonSlide(name, path, "test" if kind == "test" else "train", label))
                looked = ", ".join(_ANNOTATIONS[kind])
                failed[name] = f"it holds a tumour, but there is no {stem}.xml (looked in {looked}); add it"
            else:
                part = "test" if kind == "test" else "train"
                slides.append(CamelyonSlide(name, path, part, label, annotations))
    warnings = () if files["test"] else (f"{root}: no test slides; looked in {', '.join(_SLIDES['test'])}",)
    return CamelyonFolder(tuple(sorted(slides, key=lambda s: s.name)), left_out, failed, tuple(without), warnings)


def give_scale(slides: Iterable[CamelyonSlide], mpp: float) -> tuple[CamelyonSlide, ...]:
    """The slides, with `mpp` (micrometres per pixel of level 0) for those that do not say it; all are opened.

    Raises:
        InputError: the mpp is not positive.
    """
    if not 0 < mpp < math.inf:
        raise InputError(f"slide-mpp {mpp:g}: give a positive number of micrometres per pixel")
    return tuple(slide if _opens(slide.path) else replace(slide, mpp=mpp) for slide in slides)


def _opens(path: Path) -> bool:
    try:
        open_slide(path).close()
    except InputError:  # for want of a scale; or it is damaged, which the task that opens it with one will tell
        return False
    return True


def slide_folds(slides: Iterable[CamelyonSlide]) -> dict[str, int]:
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


def split_of(slide: CamelyonSlide, folds: dict[str, int], fold: int) -> str:
    """The split of a slide when `fold` is the validation set."""
    if slide.part == "test":
        return "test"
    return "valid" if folds[slide.name] == fold else "train"


def check_fold(slides: Iterable[CamelyonSlide], folds: dict[str, int], fold: int) -> None:
    """Refuse a fold that leaves training or validation without slides of a class."""
    slides = [slide for slide in slides if slide.part == "train"]
    for label in ("normal", "tumor"):
        there = {folds[slide.name] for slide in slides if slide.label == label}
        if len(there) < 2:
            raise InputError(f"{label}: a training and a validation set need at least 2 slides of it; add slides")
        if fold not in there:
            raise InputError(f"fold {fold}: has no {label} slide; choose one of {', '.join(map(str, sorted(there)))}")


def _resolve(root: Path, relative: str) -> Path | None:
    """The path below the root, whatever the case of its names."""
    path = root
    for word in relative.split("/"):
        same = [p for p in path.iterdir() if p.name.lower() == word.lower()] if path.is_dir() else []
        if not same:
            return None
        path = min(same, key=lambda p: (p.name != word, p.name))
    return path


def _files(root: Path, folders: Sequence[str], kind: str, extensions: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """(name of the challenge in small letters, path); masks and the like are passed over."""
    for folder in folders:
        found = _resolve(root, folder)
        for path in sorted(found.iterdir()) if found is not None and found.is_dir() else []:
            if path.suffix.lower() in extensions and re.fullmatch(rf"{kind}_\d+", path.stem.lower()):
                yield path.stem.lower(), path


def _slide_files(root: Path, kind: Kind) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for stem, path in _files(root, _SLIDES[kind], kind, SLIDE_EXTENSIONS):
        if found.setdefault(stem, path) != path:
            raise InputError(f"{path}: is the same slide as {found[stem]}; keep one")
    return found


def _outline_files(root: Path, kind: Kind) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for stem, path in _files(root, _ANNOTATIONS[kind], kind, (".xml",)):
        if found.setdefault(stem, path) != path:
            raise InputError(f"{path}: annotates the same slide as {found[stem]}; keep one")
    return found


def _read_reference(root: Path) -> dict[str, Label]:
    """Label of each test slide; rows are `test_001,Tumor,...`, with or without header and extension."""
    path = next((p for p in (_resolve(root, name) for name in _REFERENCE) if p is not None and p.is_file()), None)
    if path is None:
        raise InputError(f"{root}: has test slides but no reference.csv with their labels; looked for {_REFERENCE}")
    labels: dict[str, Label] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [[cell.strip().lower() for cell in row] for row in csv.reader(file)]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path}: is no readable CSV ({error}); copy it again") from error
    for row in rows:
        if len(row) > 1 and re.fullmatch(r"test_\d+(\.tiff?)?", row[0]):
            if row[1] not in ("normal", "tumor", "tumour"):
                raise InputError(f"{path}: {row[0]} is '{row[1]}'; expected Normal or Tumor")
            labels[row[0].split(".")[0]] = "normal" if row[1] == "normal" else "tumor"
    if not labels:
        raise InputError(f"{path}: has no row like test_001,Tumor; copy it again")
    return labels
