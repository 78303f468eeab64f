"""Lists of Camelyon16 patches by file name, as they were published, read back to rebuild the exact benchmark."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from histoloc.datasets.camelyon16.folder import CamelyonSlide
from histoloc.datasets.camelyon16.names import PatchName, parse_patch_name, slide_key, slides_by_key
from histoloc.errors import InputError

_SPLITS = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}


@dataclass(frozen=True)
class PublishedPatch:
    """A row of a list.

    Attributes:
        name: of the patch.
        split: as the list, or the name of its file, says; None where it says nothing.
    """

    name: PatchName
    split: str | None


@dataclass(frozen=True)
class PublishedList:
    """What a list holds of the slides that are there.

    Attributes:
        patches: by name of the slide, sorted, in the order of the list.
        unknown: number of patches by slide (as their names have it) of slides that are not there.
        repeated: number of rows that name a patch again.
    """

    patches: dict[str, tuple[PublishedPatch, ...]]
    unknown: dict[str, int]
    repeated: int


def read_published(path: Path, slides: Sequence[CamelyonSlide]) -> PublishedList:
    """Read a list of patches, or a folder of lists.

    Rows are `patch,mask or empty,normal|tumor` without a header, where folders before the file names do not matter;
    or a table with the columns `name` and optionally `split`, as patches.csv has them. A list whose name begins with
    train, valid or test tells the split of its rows.

    Args:
        path: a CSV file, or a folder of CSV files that are named by split.
        slides: the slides that are there.

    Raises:
        InputError: no list there, a name is not of the published form, contradicts the class beside it, or is in two
            splits; or no patch is of a slide that is there.
    """
    path = Path(path).absolute()
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.csv") if _split_of_file(p))
    if not files or not path.exists():
        raise InputError(f"{path}: there is no list of patches; give a CSV file, or a folder of train*, valid*, test*")
    keys = slides_by_key(slide.name for slide in slides)
    patches: dict[str, list[PublishedPatch]] = defaultdict(list)
    unknown: dict[str, int] = defaultdict(int)
    splits: dict[str, str | None] = {}
    repeated = 0
    for file in files:
        for patch in _read_list(file):
            text = str(patch.name)
            if text in splits:
                if splits[text] != patch.split:
                    raise InputError(f"{file}: {text} is in two splits ({splits[text]}, {patch.split}); give one fold")
                repeated += 1
                continue
            splits[text] = patch.split
            slide = _slide_of(patch.name, keys)
            if slide is None:
                unknown[patch.name.slide] += 1
            else:
                patches[slide].append(patch)
    if not patches:
        looked = next(iter(unknown), None)
        said = f"its slides ({looked}, ...) are not there" if looked else "it is empty"
        raise InputError(f"{path}: names no patch of any slide; {said}")
    return PublishedList(
        {name: tuple(patches[name]) for name in sorted(patches)}, dict(sorted(unknown.items())), repeated
    )


def _split_of_file(path: Path) -> str | None:
    return next((split for prefix, split in _SPLITS.items() if path.name.lower().startswith(prefix)), None)


def _read_list(path: Path) -> Iterator[PublishedPatch]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path}: is no readable CSV ({error}); copy it again") from error
    header = rows[0] if rows else []
    if "name" in header:
        name, split = header.index("name"), header.index("split") if "split" in header else None
        for row in rows[1:]:
            told = _SPLITS.get(row[split]) if split is not None else None
            yield PublishedPatch(parse_patch_name(row[name]), told)
        return
    for row in rows:
        patch = parse_patch_name(row[0].strip())
        _check_row(path, patch, [cell.strip() for cell in row])
        if patch.kind != "mask":
            yield PublishedPatch(patch, _split_of_file(path))


def _check_row(path: Path, patch: PatchName, row: Sequence[str]) -> None:
    label = row[2] if len(row) > 2 else ""
    wanted = "normal" if patch.kind == "normal" else "tumor"
    if label and label != wanted:
        raise InputError(f"{path}: {patch} is listed as '{label}', but its name is that of a {wanted} patch")


def _slide_of(patch: PatchName, keys: dict[str, str]) -> str | None:
    """The slide of a patch by its whole path, or, where lists were made below another root, by its file name."""
    if patch.slide in keys:
        return keys[patch.slide]
    found = [name for name in keys.values() if _same_file(patch.slide, name)]
    return found[0] if len(found) == 1 else None


def _same_file(key: str, slide: str) -> bool:
    file = slide_key(slide.rsplit("/", 1)[-1])
    return key == file or key.endswith(f"-{file}")


def ends(patches: Iterable[PublishedPatch]) -> tuple[int, int]:
    """Where the patches of a slide end (right, bottom), pixels of level 0."""
    names = [patch.name for patch in patches]
    return max(name.x + name.width for name in names), max(name.y + name.height for name in names)
