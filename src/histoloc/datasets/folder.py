"""Tables of the user's own images: one folder per class, optionally a parallel folder of masks."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histoloc.bounds import PartBelowOne, Positive, Whole
from histoloc.data.groups import divide_groups, groups_by_pattern, torn_names
from histoloc.data.images import IMAGE_EXTENSIONS
from histoloc.data.labels import group_problems, label_problems
from histoloc.data.table import write_table
from histoloc.data.table_problems import refuse
from histoloc.datasets.result import TableResult
from histoloc.errors import InputError

MASK_SUFFIXES = ("_mask", "_anno")
_SPLIT_FOLDERS = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}


def folder_table(
    root: Path,
    *,
    out: Path,
    masks: Path | None = None,
    test: PartBelowOne = 0.2,
    valid: PartBelowOne = 0.2,
    seed: Whole = 0,
    mpp: Positive | None = None,
    group: str | None = None,
) -> TableResult:
    """One folder of images per class -> a table.

    Each class is shuffled on its own and cut into test, valid and train, so that the shares hold within every class;
    the result depends on file names and seed alone. Folders of splits (train, valid or val, test) that hold the class
    folders are kept as they are, and only a validation set that is absent is cut from train. Hidden entries, and files
    that are no images, are ignored.

    Args:
        root: holds one folder per class, or train/valid/test folders that hold them; a folder `a|b` holds images of
            both classes.
        out: the table to write (CSV).
        masks: parallel folder of masks, used only to evaluate: the mask of NAME.EXT is called NAME, NAME_mask or
            NAME_anno, with any image extension. It may be root itself. Images without a mask stay.
        test: share of images for the test split, stratified by class; at least one image unless 0.
        valid: share of images for the validation split, likewise.
        seed: of the random splits.
        mpp: micrometres per pixel of the images, for areas in mm².
        group: keep patients or slides together: a regular expression that is searched for in each image's path below
            root; its first group, or all that it matches, is the patient or slide. Splits are made of whole groups.

    Returns:
        The table, with a warning where file names look like patients or slides on both sides of a split.

    Raises:
        InputError: there is no folder, or what it holds is not as above.
    """
    root, masks = Path(root).absolute(), None if masks is None else Path(masks).absolute()
    _check_arguments(root, masks, test, valid, seed, mpp)
    folders = _class_folders(root, masks)
    rows = _list_rows(root, masks, folders)
    paths = [Path(image).relative_to(root).as_posix() for image in rows["image"]]
    if group is not None:
        rows["group"] = _group_names(paths, group, root)
    splits = {split for split, _ in folders}
    if splits & {None, "train"} and "valid" not in splits:
        divide = _divide if group is None else _divide_groups
        divide(rows, {"test": test, "valid": valid} if None in splits else {"valid": valid}, seed, root)
    write_table(out, rows if mpp is None else rows.assign(mpp=float(mpp)))
    return TableResult(out, [] if group else torn_names(paths, list(rows["label"]), list(rows["split"])))


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


def _image_files(folder: Path) -> list[Path]:
    images = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_EXTENSIONS and not p.name.startswith("."))
    return sorted(p for p in images if p.is_file())


def _class_folders(root: Path, masks: Path | None) -> list[tuple[str | None, Path]]:
    """(split or None, class folder) in a fixed order."""
    top = [(_SPLIT_FOLDERS.get(p.name.lower()), p) for p in _sub_folders(root) if p != masks]
    splits = Counter(split for split, _ in top if split)
    if splits and (others := [p.name for split, p in top if not split]):
        raise InputError(f"{root}: holds folders of splits and others ({', '.join(others)}); keep splits or classes")
    if doubled := [split for split, number in splits.items() if number > 1]:
        raise InputError(f"{root}: holds two folders for the split {doubled[0]}; keep one")
    folders = [(split, p) for split, part in top for p in (_sub_folders(part) if split else [part])]
    classes = sorted({p.name for _, p in folders})
    if not classes:
        raise InputError(f"{root}: holds no class folders; put the images of each class into a folder of its own")
    if len(classes) == 1:
        raise InputError(f"{root}: holds one class only ({classes[0]}); learning needs at least two class folders")
    refuse(root, _label_problems([p for _, p in folders]))
    trained = {p.name for split, p in folders if split == "train"}
    if "train" in splits and (absent := [name for name in classes if name not in trained]):
        raise InputError(f"{root}: the class {absent[0]} is not under train; add its folder there, or remove it")
    return folders


def _label_problems(folders: list[Path]) -> Iterator[str]:
    images = Counter(folder.name for folder in folders for _ in _image_files(folder))
    for name in sorted(images):
        if name != name.strip() and name.strip() in images:
            yield f"the folders '{name}' and '{name.strip()}' differ by spaces at the end alone; rename or merge them"
    for problem in label_problems(images, unit="image(s)"):
        yield f"the folder of {problem}"


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
    images = sorted(set(files) - set(masks))
    if not images:
        raise InputError(f"{folder}: the class folder holds no images ({', '.join(IMAGE_EXTENSIONS)}); add some")
    return images


def _masks_by_image(folder: Path, images: list[Path], *, suffixes: Sequence[str]) -> dict[Path, Path]:
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for p in _image_files(folder) if folder.is_dir() else []:
        by_stem[p.stem].append(p)
    masks: dict[Path, Path] = {}
    for image in images:
        candidates = [p for suffix in suffixes for p in by_stem.get(image.stem + suffix, [])]
        if len(candidates) > 1:
            names = ", ".join(p.name for p in candidates)
            raise InputError(f"{folder}: several masks for the image {image.name} ({names}); keep one")
        masks.update((image, p) for p in candidates)
    return masks


def _list_rows(root: Path, masks: Path | None, folders: list[tuple[str | None, Path]]) -> pd.DataFrame:
    """One row per image; without folders of splits all of them are in train."""
    rows: list[tuple[str, str, str, str, str]] = []
    # Masks that lie beside the images must carry a suffix.
    suffixes = MASK_SUFFIXES if masks == root else ("", *MASK_SUFFIXES)
    for split, folder in folders:
        images = _images(folder, masks_inside=masks == root)
        own = _masks_by_image(masks / folder.relative_to(root), images, suffixes=suffixes) if masks else {}
        rows += [(str(p), folder.name, str(own.get(p, "")), split or "train", "") for p in images]
    table = pd.DataFrame(rows, columns=["image", "label", "mask", "split", "group"])
    if masks is not None and not table["mask"].any():
        example = Path(rows[0][0]).relative_to(root).with_suffix(".png")
        raise InputError(f"{masks}: no mask there belongs to any image; name masks as the images: {example}")
    return table


def _divide(rows: pd.DataFrame, shares: Mapping[str, float], seed: int, root: Path) -> None:
    """Move a random share of each class from train to other splits, in place."""
    for label, pool in rows[rows["split"] == "train"].groupby("label"):
        # The class name seeds as well, so that a class more or less leaves the others as they were.
        order = pool.index[np.random.default_rng([seed, *str(label).encode()]).permutation(len(pool))]
        sizes = {split: max(1, round(share * len(pool))) for split, share in shares.items() if share}
        if sum(sizes.values()) >= len(pool):
            raise InputError(
                f"{root}: the class {label} has too few images ({len(pool)}) to be cut into train and "
                f"{', '.join(sizes)}; add images or set a share to 0"
            )
        for split, size in sizes.items():
            rows.loc[order[:size], "split"] = split
            order = order[size:]


def _group_names(paths: list[str], pattern: str, root: Path) -> list[str]:
    groups = groups_by_pattern(paths, pattern)
    problems = [
        f"{path}: --group '{pattern}' does not match it; rename it or widen the expression"
        for path, group in zip(paths, groups, strict=True)
        if group is None
    ]
    refuse(root, [*problems, *group_problems(Counter(filter(None, groups)), unit="image(s)")])
    return [str(group) for group in groups]


def _divide_groups(rows: pd.DataFrame, shares: Mapping[str, float], seed: int, root: Path) -> None:
    """Move whole groups from train to other splits, in place."""
    pool = rows[rows["split"] == "train"]
    whole = {"train": 1 - sum(shares.values()), **shares}
    try:
        splits = divide_groups(list(pool["group"]), list(pool["label"]), whole, seed)
    except InputError as error:
        raise InputError(f"{root}: {error}; add images of other groups or set a share to 0") from error
    rows.loc[pool.index, "split"] = pool["group"].map(splits)
