"""Lists of Camelyon16 patches by file name, as they were published, read back to rebuild the exact benchmark."""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from histoloc.datasets.camelyon16.names import PatchName, parse_patch_name, slide_key
from histoloc.errors import InputError

_SPLITS = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}


class PublishedPatch(NamedTuple):
    """A row of a list: the patch's name, and the split that the list or the name of its file says, or None."""

    name: PatchName
    split: str | None


@dataclass(frozen=True)
class PublishedList:
    """What a list holds.

    Attributes:
        patches: by name of the slide, of the slides that are there, in the order of the list.
        unknown: number of patches by slide (as their names have it) of slides that are not there.
        repeated: number of rows that name a patch again.
    """

    patches: dict[str, list[PublishedPatch]]
    unknown: dict[str, int]
    repeated: int


def read_published(path: Path, slides: Iterable[str]) -> PublishedList:
    """Read a list of patches, or a folder of lists.

    Rows are `patch,mask or empty,normal|tumor` without a header, where folders before the file names do not matter;
    or a table with the columns `name` and optionally `split`, as patches.csv has them. A list whose name begins with
    train, valid or test tells the split of its rows.

    Args:
        path: a CSV file, or a folder of CSV files that are named by split.
        slides: names of the slides that are there.

    Raises:
        InputError: no list there, a name is not of the published form, contradicts the class beside it, or is in two
            splits; or no patch is of a slide that is there.
    """
    path = Path(path).absolute()
    files = sorted(file for file in path.rglob("*.csv") if _split_of_file(file)) if path.is_dir() else [path]
    if not files or not path.exists():
        raise InputError(f"{path}: there is no list of patches; give a CSV file, or a folder of train*, valid*, test*")
    keys = {slide_key(slide): slide for slide in slides}
    patches: dict[str, list[PublishedPatch]] = defaultdict(list)
    unknown: Counter[str] = Counter()
    splits: dict[PatchName, str | None] = {}
    repeated = 0
    for file in files:
        for name, split in _read_list(file):
            if name in splits:
                if splits[name] != split:
                    raise InputError(f"{file}: {name} is in two splits ({splits[name]}, {split}); give one fold")
                repeated += 1
                continue
            splits[name] = split
            slide = _slide_of(name.slide, keys)
            if slide is None:
                unknown[name.slide] += 1
            else:
                patches[slide].append(PublishedPatch(name, split))
    if not patches:
        reason = f"its slides ({next(iter(unknown))}, ...) are not there" if unknown else "it is empty"
        raise InputError(f"{path}: names no patch of any slide; {reason}")
    return PublishedList(dict(sorted(patches.items())), dict(sorted(unknown.items())), repeated)


def _split_of_file(path: Path) -> str | None:
    return next((split for prefix, split in _SPLITS.items() if path.name.lower().startswith(prefix)), None)


def _read_list(path: Path) -> Iterator[PublishedPatch]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if any(row)]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path}: is no readable CSV ({error}); copy it again") from error
    if rows and "name" in rows[0]:
        for row in rows[1:]:
            cells = dict(zip(rows[0], row, strict=False))
            yield PublishedPatch(parse_patch_name(cells.get("name", "")), _SPLITS.get(cells.get("split", "")))
        return
    for row in rows:
        patch = parse_patch_name(row[0])
        if (label := row[2] if len(row) > 2 else "") not in ("", patch.label):
            raise InputError(f"{path}: {patch} is listed as '{label}', but named '{patch.label}'; correct it")
        if not patch.is_mask:
            yield PublishedPatch(patch, _split_of_file(path))


def _slide_of(key: str, slides: dict[str, str]) -> str | None:
    """The slide of a patch by its whole path, or, where lists were made below another root, by its file name."""
    if key in slides:
        return slides[key]
    files = {name: slide_key(name.rsplit("/", 1)[-1]) for name in slides.values()}
    same = [name for name, file in files.items() if key == file or key.endswith(f"-{file}")]
    return same[0] if len(same) == 1 else None
