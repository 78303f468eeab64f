"""Which mask belongs to which image, by their names."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from histoloc.inputs import same_name

IMAGE_FOLDERS = ("image", "images", "img", "imgs")
MASK_FOLDERS = (
    *("mask", "masks", "label", "labels", "anno", "annos", "annotation", "annotations"),
    *("seg", "segmentation", "segmentations", "gt", "groundtruth", "ground_truth", "ground truth"),
)
_WORDS = "|".join(sorted(MASK_FOLDERS, key=len, reverse=True))
_NAMED = re.compile(rf"(?:{_WORDS})[-_. ]+(?P<after>.+)|(?P<before>.+?)[-_. ]+(?:{_WORDS})[\W_]*\d*\W*")
_IMAGE = re.compile(r"(.+?)[-_. ]+(?:image|img)")


def key(name: str) -> str:
    """The name in one Unicode form and case."""
    return same_name(name).strip()


def image_name(mask: str) -> str | None:
    """What the name of a mask without suffix says of its image, as `key`; None where it has no word for masks."""
    match = _NAMED.fullmatch(key(mask))
    return match and (match["after"] or match["before"])


def pair(
    pools: Iterable[tuple[Sequence[Path], Sequence[Path], bool]],
) -> tuple[dict[Path, list[Path]], list[Path]]:
    """Find the image of each mask.

    A mask is called as its image, with a word for masks before or behind it, and a number; or, where half of the masks
    have it, with any other ending. Case and Unicode form do not matter where they leave one image.

    Args:
        pools: masks, the images to which they may belong, and whether they must have a word for masks.

    Returns:
        The images of each mask, several where its name fits several; and the masks that fit none.
    """
    images: dict[Path, list[Path]] = {}
    endings: dict[Path, str] = {}
    for masks, candidates, with_word in pools:
        by_key = _by_key(candidates)
        for mask in masks:
            stem = key(mask.stem)
            names = [*([] if with_word else [stem]), image_name(mask.stem) or ""]
            images[mask] = next((_nearest(mask, by_key[name]) for name in names if name in by_key), [])
            ends = [i for i in range(len(stem) - 1, 0, -1) if not stem[i].isalnum() and stem[:i] in by_key]
            if ends and not images[mask] and not with_word:
                images[mask], endings[mask] = _nearest(mask, by_key[stem[: ends[0]]]), stem[ends[0] :]
    common = {ending for ending, number in Counter(endings.values()).items() if 2 * number >= len(images)}
    images |= {mask: [] for mask, ending in endings.items() if ending not in common}
    return {mask: own for mask, own in images.items() if own}, [mask for mask, own in images.items() if not own]


def _by_key(images: Sequence[Path]) -> dict[str, list[Path]]:
    by_key: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        stem = key(image.stem)
        by_key[stem].append(image)
        if match := _IMAGE.fullmatch(stem):
            by_key[match[1]].append(image)
    return dict(by_key)


def _nearest(mask: Path, images: list[Path]) -> list[Path]:
    """Of images whose names differ by case or Unicode form, those that are written as the mask."""
    return [p for p in images if mask.stem.startswith(p.stem) or mask.stem.endswith(p.stem)] or images
