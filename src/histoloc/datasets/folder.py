"""Tables of the user's own images: one folder per class, optionally a parallel folder of masks."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from histoloc.bounds import PartBelowOne, Positive, Whole
from histoloc.data.groups import divide, groups_by_pattern, torn_names
from histoloc.data.images import IMAGE_EXTENSIONS
from histoloc.data.labels import group_problems, label_problems
from histoloc.data.sample import SPLIT_WORDS, Split
from histoloc.data.table import without_unreadable, write_table
from histoloc.data.table_problems import LISTED_PROBLEMS, refuse
from histoloc.datasets.mask_names import IMAGE_FOLDERS, MASK_FOLDERS, image_name, key, pair
from histoloc.datasets.result import TableResult
from histoloc.errors import InputError
from histoloc.inputs import is_foreign


@dataclass(frozen=True)
class _Class:
    """A class folder: its split, where folders are splits, its images, masks beside them, masks in a folder of it."""

    split: Split | None
    folder: Path
    images: list[Path]
    beside: list[Path]
    masks: list[Path]


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
        mpp: micrometres per pixel of the images.
        group: keep patients or slides together: a regular expression that is searched for in each image's path below
            root; its first group, or all that it matches, is the patient or slide. Splits are made of whole groups.

    Returns:
        The table, with warnings of masks without an image, and of patients or slides on both sides of a split.

    Raises:
        InputError: there is no folder, or what it holds is not as above.
    """
    root, masks = Path(root).absolute(), None if masks is None else Path(masks).absolute()
    _check_arguments(root, masks, test, valid, seed, mpp)
    root, masks = (root, masks) if masks else _inside(root)
    classes = _classes(root, masks)
    images, lone = _masks(root, masks, classes)
    rows, failed = _rows(root, classes, images)
    paths = [_name(Path(image), root) for image in rows["image"]]
    rows["group"] = "" if group is None else _group_names(paths, group, root)
    if (splits := {c.split for c in classes}) & {None, "train"} and "valid" not in splits:
        _divide(rows, {"test": test, "valid": valid} if None in splits else {"valid": valid}, seed, root)
    write_table(out, rows if mpp is None else rows.assign(mpp=float(mpp)))
    torn = [] if group else torn_names(paths, list(rows["label"]), list(rows["split"]))
    return TableResult(out, [*torn, *_lone(lone, masks or root)], _ignored(classes), failed)


def _divide(rows: pd.DataFrame, shares: Mapping[str, float], seed: int, root: Path) -> None:
    """Move a share of each class from train to other splits, in place."""
    pool = rows[rows["split"] == "train"]
    whole = {"train": 1 - sum(shares.values()), **shares}
    try:
        rows.loc[pool.index, "split"] = divide(list(pool["label"]), list(pool["group"]), whole, seed)
    except InputError as error:
        more = "images of other groups" if pool["group"].any() else "images"
        raise InputError(f"{root}: {error}; add {more} or set a share to 0") from error


def _lone(masks: Sequence[Path], folder: Path) -> Iterator[str]:
    """A warning of masks without an image."""
    if masks:
        listed = [f"  {os.path.relpath(p, folder)}" for p in masks[:LISTED_PROBLEMS]]
        more = [f"  ... and {len(masks) - LISTED_PROBLEMS} more"] * (len(masks) > LISTED_PROBLEMS)
        yield "\n".join([f"{len(masks)} mask(s) belong to no image:", *listed, *more])


def _ignored(classes: Sequence[_Class]) -> list[str]:
    """A remark on files in class folders that are no images."""
    places = {image.parent for c in classes for image in c.images}
    others = Counter(p.suffix.lower() or p.name for place in places for p in _files(place))
    kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(others.items()) if suffix not in IMAGE_EXTENSIONS)
    return [f"files that are no images, and ignored: {kinds}"] if kinds else []


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
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_foreign(p.name))


def _files(folder: Path) -> list[Path]:
    """All but what systems leave there; a link whose file is absent is one, which fails by name."""
    return sorted(p for p in folder.iterdir() if not p.is_dir() and not is_foreign(p.name))


def _image_files(folder: Path) -> list[Path]:
    return [p for p in _files(folder) if p.suffix.lower() in IMAGE_EXTENSIONS]


def _inside(root: Path) -> tuple[Path, Path | None]:
    """Root itself; or its folders of images and of masks, where it holds these two alone."""
    top = _sub_folders(root)
    images, masks = ([p for p in top if key(p.name) in names] for names in (IMAGE_FOLDERS, MASK_FOLDERS))
    return (images[0], masks[0]) if len(images) == len(masks) == 1 and len(top) == 2 else (root, None)


def _class_folders(root: Path, masks: Path | None) -> list[tuple[Split | None, Path]]:
    """(split or None, class folder) in a fixed order."""
    top: list[tuple[Split | None, Path]] = [
        (SPLIT_WORDS.get(p.name.lower()), p) for p in _sub_folders(root) if p != masks
    ]
    splits = Counter(split for split, _ in top if split)
    if splits and (others := [p.name for split, p in top if not split]):
        raise InputError(f"{root}: holds folders of splits and others ({', '.join(others)}); keep splits or classes")
    if doubled := [split for split, number in splits.items() if number > 1]:
        raise InputError(f"{root}: holds two folders for the split {doubled[0]}; keep one")
    folders: list[tuple[Split | None, Path]] = []
    for split, part in top:
        folders.extend((split, p) for p in (_sub_folders(part) if split else [part]))
    classes = sorted({p.name for _, p in folders})
    if not classes:
        raise InputError(f"{root}: holds no class folders; put the images of each class into a folder of its own")
    if len(classes) == 1:
        raise InputError(f"{root}: holds one class only ({classes[0]}); learning needs at least two class folders")
    return folders


def _classes(root: Path, masks: Path | None) -> list[_Class]:
    classes = [_class_of(split, folder, masks, root) for split, folder in _class_folders(root, masks)]
    refuse(root, [*_label_problems(classes), *_untrained(classes)])
    return classes


def _class_of(split: Split | None, folder: Path, masks: Path | None, root: Path) -> _Class:
    """The images and the masks of a class folder, which may have folders for them."""
    parts: dict[bool, list[Path]] = {False: [], True: []}
    for sub in _sub_folders(folder):
        if key(sub.name) not in (*IMAGE_FOLDERS, *MASK_FOLDERS):
            raise InputError(
                f"{folder}: holds the folder {sub.name}, but images lie directly in their class folder, or in its "
                "folders image and mask; move them up, or write the table by hand"
            )
        parts[key(sub.name) in MASK_FOLDERS].append(sub)
    files, inside = _image_files(folder), [p for sub in parts[False] for p in _image_files(sub)]
    if len(parts[True]) > 1 or len(parts[False]) > 1 or (files and inside):
        names = ", ".join(p.name for p in (*files[:1], *parts[False], *parts[True]))
        raise InputError(f"{folder}: holds {names}, so that images or masks lie in two places; keep one")
    files = files or inside
    stems = {key(p.stem) for p in files}
    named = [p for p in files if (name := image_name(p.stem)) and (masks == root or name in stems)]
    if named and masks != root:
        raise InputError(
            f"{named[0]}: looks like a mask among the images; name this folder as that of the masks too, "
            f"or move the {len(named)} mask(s) out of it"
        )
    images = [p for p in files if p not in set(named)]
    if not images:
        raise InputError(f"{folder}: the class folder holds no images ({', '.join(IMAGE_EXTENSIONS)}); add some")
    return _Class(split, folder, images, named, [p for sub in parts[True] for p in _image_files(sub)])


def _label_problems(classes: Sequence[_Class]) -> Iterator[str]:
    images = Counter(c.folder.name for c in classes for _ in c.images)
    for name in sorted(images):
        if name != name.strip() and name.strip() in images:
            yield f"the folders '{name}' and '{name.strip()}' differ by spaces at the end alone; rename or merge them"
    for problem in label_problems(images, unit="image(s)"):
        yield f"the folder of {problem}"


def _untrained(classes: Sequence[_Class]) -> Iterator[str]:
    trained = {c.folder.name for c in classes if c.split in ("train", None)}
    for name in sorted({c.folder.name for c in classes} - trained) if trained else ():
        yield f"the class {name} is not under train; add its folder there, or remove it"


def _masks(root: Path, masks: Path | None, classes: Sequence[_Class]) -> tuple[dict[Path, list[Path]], list[Path]]:
    """The images of each mask, and the masks that belong to none."""
    pools = [(c.masks, c.images, False) for c in classes] + [(c.beside, c.images, True) for c in classes]
    if masks is not None and masks != root:
        own: dict[Path, list[Path]] = defaultdict(list)
        for c in classes:
            # As the images, without splits, or in one heap.
            places = (c.folder.relative_to(root), Path(c.folder.name), Path())
            for place in dict.fromkeys(filter(None, (_parallel(masks, place) for place in places))):
                own[place] += c.images
        pools += [(_image_files(place), images, False) for place, images in own.items()]
    images, lone = pair(pools)
    if masks is not None and not images:
        example = classes[0].images[0].relative_to(root).with_suffix(".png")
        raise InputError(f"{masks}: no mask there belongs to any image; name masks as the images: {example}")
    if masks is not None and masks != root:
        files = [p for p in sorted(masks.rglob("*")) if p.suffix.lower() in IMAGE_EXTENSIONS]
        listed = {mask for pool in pools for mask in pool[0]}
        lone += [p for p in files if p not in listed and not is_foreign(p.name)]
    return images, lone


def _parallel(masks: Path, place: Path) -> Path | None:
    """The folder of masks whose name is that of a class, whatever its case and Unicode form."""
    for part in place.parts:
        alike = [p for p in _sub_folders(masks) if key(p.name) == key(part)]
        if not alike:
            return None
        masks = next((p for p in alike if p.name == part), alike[0])
    return masks


def _rows(
    root: Path, classes: Sequence[_Class], images: Mapping[Path, list[Path]]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """One row per image, without folders of splits all of them in train; and why images have none."""
    own: dict[Path, list[Path]] = defaultdict(list)
    failed: dict[str, str] = {}
    for mask, several in images.items():
        for image in several:
            own[image].append(mask)
            if len(several) > 1:
                others = " or ".join(_name(p, root) for p in several)
                failed[_name(image, root)] = f"its mask {mask.name} may belong to {others}; rename images"
    for image, masks in own.items():
        if len(masks) > 1:
            names = ", ".join(p.name for p in masks)
            failed[_name(image, root)] = f"has several masks ({names}); keep one, or merge them into one"
    rows = [
        (str(image), c.folder.name, str(next(iter(own.get(image, ())), "")), c.split or "train", "")
        for c in classes
        for image in c.images
        if _name(image, root) not in failed
    ]
    table, unreadable = without_unreadable(
        pd.DataFrame(rows, columns=["image", "label", "mask", "split", "group"]), root
    )
    failed |= unreadable
    if lost := sorted({c.folder.name for c in classes} - set(table["label"])):
        refuse(root, [f"no image of class {lost[0]} can be used", *(f"{name}: {why}" for name, why in failed.items())])
    return table, failed


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _group_names(paths: list[str], pattern: str, root: Path) -> list[str]:
    groups = groups_by_pattern(paths, pattern)
    problems = [
        f"{path}: --group '{pattern}' does not match it; rename it or widen the expression"
        for path, group in zip(paths, groups, strict=True)
        if group is None
    ]
    refuse(root, [*problems, *group_problems(Counter(filter(None, groups)), unit="image(s)")])
    return [str(group) for group in groups]
