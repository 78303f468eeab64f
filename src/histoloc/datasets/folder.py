"""Tables of the user's own images: one folder per class, optionally a parallel folder of masks."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from histoloc.data.groups import groups_by_pattern, split_groups_of_images
from histoloc.data.images import IMAGE_EXTENSIONS
from histoloc.data.labels import group_problems, label_problems
from histoloc.data.table_problems import report
from histoloc.errors import InputError

MASK_SUFFIXES = ("_mask", "_anno")
_SPLIT_FOLDERS = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}


def folder_table(
    root: Path,
    *,
    masks: Path | None = None,
    test: float = 0.2,
    valid: float = 0.2,
    seed: int = 0,
    mpp: float | None = None,
    group: str | None = None,
) -> pd.DataFrame:
    """List a folder that has one sub-folder of images per class.

    Each class is shuffled on its own and cut into test, valid and train, so that the shares hold within every
    class. With `group`, whole groups are put into the splits, so that the shares hold as well as they can. The result
    depends on the file names and the seed alone. Where the sub-folders of `root` are called
    `train`, `test`, `valid` or `val` and hold the class folders, those splits are kept, and only a validation
    set that is absent is cut from `train`.

    Args:
        root: the folder; hidden entries and files that are no images are ignored.
        masks: a folder with the same sub-folders, in which the mask of `NAME.EXT` is called `NAME`,
            `NAME_mask` or `NAME_anno` with any image extension. It may be `root` itself. Images without a
            mask are kept.
        test: share of each class for the split test, in [0, 1); rounded, but at least one image unless 0.
        valid: share of each class for the split valid, likewise.
        seed: seed of the shuffling.
        mpp: micrometres per pixel of all images, where known.
        group: a regular expression that is searched for in the path of each image relative to `root`, with slashes;
            its first group, or all that it matches, names the patient or slide of the image.

    Returns:
        Columns image, label, mask (absolute paths; empty where there is no mask), split, group (empty without
        `group`) and, if given, mpp.

    Raises:
        InputError: no folder, fewer than two classes, classes or groups whose names cannot be told apart, a class with
            too few images or groups to be cut, images that `group` does not match, folders where images are expected,
            masks among the images, or masks that belong to no image.
    """
    root = Path(root).absolute()
    masks = None if masks is None else Path(masks).absolute()
    _check_arguments(root, masks, test, valid, seed, mpp)
    folders = _class_folders(root, masks)
    rows = _list_rows(root, masks, folders)
    if group is not None:
        _name_groups(rows, group, root)
    cut = _cut if group is None else _cut_groups
    given = {split for split, _ in folders}
    if given == {None}:
        cut(rows, {"test": test, "valid": valid}, seed, root)
    elif "train" in given and "valid" not in given:
        cut(rows, {"valid": valid}, seed, root)
    table = pd.DataFrame(rows, columns=["image", "label", "mask", "split", "group"])
    return table if mpp is None else table.assign(mpp=float(mpp))


def _check_arguments(root: Path, masks: Path | None, test: float, valid: float, seed: int, mpp: float | None) -> None:
    for folder in (root, masks):
        if folder is not None and not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder; correct the path")
    if not (0 <= test < 1 and 0 <= valid < 1 and test + valid < 1):
        raise InputError(f"shares test {test:g} and valid {valid:g}: give shares from 0 up, together below 1")
    if seed < 0:
        raise InputError(f"seed {seed}: give a whole number from 0 up")
    if mpp is not None and not 0 < mpp < float("inf"):
        raise InputError(f"mpp {mpp:g}: give a positive number of micrometres per pixel")


def _sub_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_folders(root: Path, masks: Path | None) -> list[tuple[str | None, Path]]:
    """(split or None, class folder) in a fixed order."""
    top = [p for p in _sub_folders(root) if p != masks]
    splits = [_SPLIT_FOLDERS.get(p.name.lower()) for p in top]
    if any(splits) and not all(splits):
        other = ", ".join(p.name for p, split in zip(top, splits, strict=True) if split is None)
        raise InputError(f"{root}: holds folders of splits and others ({other}); keep either splits or classes")
    doubled = sorted({split for split in splits if split and splits.count(split) > 1})
    if doubled:
        raise InputError(f"{root}: holds two folders for the split {doubled[0]}; keep one")
    folders: list[tuple[str | None, Path]]
    if any(splits):
        folders = [(split, p) for part, split in zip(top, splits, strict=True) for p in _sub_folders(part)]
    else:
        folders = [(None, p) for p in top]
    classes = sorted({p.name for _, p in folders})
    if not classes:
        raise InputError(f"{root}: holds no class folders; put the images of each class into a folder of its own")
    if len(classes) == 1:
        raise InputError(f"{root}: holds one class only ({classes[0]}); learning needs at least two class folders")
    _check_labels(root, [p for _, p in folders])
    for name in classes:
        if "train" in splits and ("train", name) not in {(split, p.name) for split, p in folders}:
            raise InputError(f"{root}: the class {name} is not under train; add its folder there, or remove it")
    return folders


def _check_labels(root: Path, folders: list[Path]) -> None:
    images: Counter[str] = Counter()
    for folder in folders:
        images[folder.name] += len(_image_files(folder))
    problems = [
        f"the folders '{name}' and '{name.strip()}' differ by spaces at the end alone; rename or merge them"
        for name in sorted(images)
        if name != name.strip() and name.strip() in images
    ]
    problems += [f"the folder of {problem}" for problem in label_problems(images, unit="image(s)")]
    if problems:
        raise InputError(report(root, problems))


def _images(folder: Path, *, masks_inside: bool) -> list[Path]:
    """The images of a class folder sorted by name, without masks lying among them."""
    if nested := _sub_folders(folder):
        raise InputError(
            f"{folder}: holds the folder {nested[0].name}, but images lie directly in their class folder; "
            f"move them up, or write the table by hand"
        )
    files = _image_files(folder)
    stems = {p.stem for p in files}
    masks = [p for p in files for s in MASK_SUFFIXES if p.stem.endswith(s) and p.stem.removesuffix(s) in stems]
    if masks and not masks_inside:
        raise InputError(
            f"{masks[0]}: looks like a mask among the images; name this folder as that of the masks too, "
            f"or move the {len(masks)} mask(s) out of it"
        )
    images = [p for p in files if p not in set(masks)]
    if not images:
        raise InputError(f"{folder}: the class folder holds no images ({', '.join(IMAGE_EXTENSIONS)}); add some")
    return images


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.iterdir()
        if p.is_file() and not p.name.startswith(".") and p.suffix.lower() in IMAGE_EXTENSIONS
    )


def _find_masks(folder: Path, images: list[Path], beside: bool) -> dict[str, Path]:
    """Masks by the stem of their image; masks that lie beside the images must carry a suffix."""
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for p in _image_files(folder) if folder.is_dir() else []:
        by_stem[p.stem].append(p)
    found: dict[str, Path] = {}
    for image in images:
        stems = [image.stem + suffix for suffix in (() if beside else ("",)) + MASK_SUFFIXES]
        candidates = [p for stem in stems for p in by_stem.get(stem, [])]
        if len(candidates) > 1:
            names = ", ".join(p.name for p in candidates)
            raise InputError(f"{folder}: several masks for the image {image.name} ({names}); keep one")
        if candidates:
            found[image.stem] = candidates[0]
    return found


def _list_rows(root: Path, masks: Path | None, folders: list[tuple[str | None, Path]]) -> list[dict[str, str]]:
    """One row per image; without folders of splits all of them are in train."""
    rows: list[dict[str, str]] = []
    for split, folder in folders:
        images = _images(folder, masks_inside=masks == root)
        found = {} if masks is None else _find_masks(masks / folder.relative_to(root), images, masks == root)
        for image in images:
            mask = str(found.get(image.stem, ""))
            rows.append(
                {
                    "image": str(image),
                    "label": folder.name,
                    "mask": mask,
                    "split": split or "train",
                    "group": "",
                }
            )
    if masks is not None and not any(row["mask"] for row in rows):
        example = Path(rows[0]["image"]).relative_to(root).with_suffix(".png")
        raise InputError(f"{masks}: no mask there belongs to any image; name masks as the images: {example}")
    return rows


def _cut(rows: list[dict[str, str]], shares: dict[str, float], seed: int, root: Path) -> None:
    """Move a random share of each class from train to other splits, in place."""
    for label in sorted({row["label"] for row in rows}):
        pool = [row for row in rows if row["label"] == label and row["split"] == "train"]
        # The class name seeds as well, so that a class more or less leaves the others as they were.
        order = np.random.default_rng([seed, *label.encode()]).permutation(len(pool))
        sizes = {split: max(1, round(share * len(pool))) if share else 0 for split, share in shares.items()}
        if sum(sizes.values()) >= len(pool):
            raise InputError(
                f"{root}: the class {label} has too few images ({len(pool)}) to be cut into train and "
                f"{', '.join(split for split, size in sizes.items() if size)}; add images or set a share to 0"
            )
        start = 0
        for split, size in sizes.items():
            for index in order[start : start + size]:
                pool[index]["split"] = split
            start += size


def _name_groups(rows: list[dict[str, str]], pattern: str, root: Path) -> None:
    """Fill the group of each row, in place."""
    paths = [Path(row["image"]).relative_to(root).as_posix() for row in rows]
    groups = groups_by_pattern(paths, pattern)
    problems = [
        f"{path}: --group '{pattern}' does not match it; rename it or widen the expression"
        for path, group in zip(paths, groups, strict=True)
        if group is None
    ]
    problems += group_problems(Counter(group for group in groups if group), unit="image(s)")
    if problems:
        raise InputError(report(root, problems))
    for row, group in zip(rows, groups, strict=True):
        row["group"] = str(group)


def _cut_groups(rows: list[dict[str, str]], shares: dict[str, float], seed: int, root: Path) -> None:
    """Move whole groups from train to other splits, in place."""
    pool = [row for row in rows if row["split"] == "train"]
    try:
        splits = split_groups_of_images([r["group"] for r in pool], [r["label"] for r in pool], shares, seed)
    except InputError as error:
        raise InputError(f"{root}: {error}") from error
    for row in pool:
        row["split"] = splits[row["group"]]
