"""Groups of samples (patients, slides): from file names, as a whole into splits, and where splits tear them apart."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from histoloc.data.table_problems import SPLITS
from histoloc.errors import InputError

if TYPE_CHECKING:
    from histoloc.data.table import Sample

# Parts of paths that name a patient or a slide, those of patients first. Their first group, if any, is the name.
_NAMED = (
    r"TCGA-\w{2}-\w{4}",
    r"SOB_[BM]_\w+-(\d+-\w+)-",  # BreakHis: year and patient
    *(rf"(?i){word}[-_ ]?\d+" for word in ("patient", "case", "subject", "donor", "(?<![a-z])(?:pat|pt|sub|subj)")),
    r"(?i)(?:tumou?r|normal|test)_\d{3}",  # Camelyon16
    *(rf"(?i){word}[-_ ]?\d+" for word in ("slide", "specimen", "block", "(?<![a-z])(?:wsi|scan)")),
    r"(?<![A-Za-z0-9])[A-Z]{1,3}\d{2}-\d{3,6}",  # accession numbers of pathology
)
# What is left of a file's name without the number of the tile, which may be two coordinates.
_NUMBERED = (
    r"([^/]+?)[-_ ]*(?:\[|[-_ ])x[-_=]?\d+[-_, ]+y[-_=]?\d+",
    r"([^/]+?)[-_ ]+\d+[-_ ]+\d+\.\w+$",
    r"([^/]*\d[^/]*?)[-_ ]+\(?\d+\)?\.\w+$",
    r"([^/]*\d)[-_ ]?[A-Za-z]\.\w+$",
)


def groups_by_pattern(paths: Sequence[str], pattern: str) -> list[str | None]:
    """Find the group of each path by a regular expression.

    Args:
        paths: with slashes.
        pattern: is searched for; its first group, or all that it matches, is the group of the path.

    Returns:
        The groups; None where the pattern does not match or matches nothing.

    Raises:
        InputError: the pattern is no regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--group '{pattern}': is no regular expression ({error}); correct it") from error
    found = [compiled.search(path) for path in paths]
    return [(match[min(1, compiled.groups)] or "").strip() or None if match else None for match in found]


def split_groups_of_images(
    groups: Sequence[str], labels: Sequence[str], shares: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Put whole groups into train and other splits, so that the shares hold within each class as well as they can.

    Args:
        groups: the group of each image.
        labels: the label of each image.
        shares: the share of images of each other split, together below 1.
        seed: of the search.

    Returns:
        The split of each group.

    Raises:
        InputError: a class has too few groups, or no division gives every class to every split.
    """
    splits = ["train", *(split for split, share in shares.items() if share)]
    names, classes = sorted(set(groups)), sorted(set(labels))
    if len(splits) == 1:
        return dict.fromkeys(names, "train")
    counts = np.zeros((len(names), len(classes)), dtype=int)
    np.add.at(counts, (np.searchsorted(names, groups), np.searchsorted(classes, labels)), 1)
    wanted = np.array([1 - sum(shares.values()), *(shares[split] for split in splits[1:])])
    # The number of groups counts as well: one with very many images would fill a split alone.
    where = balance(np.hstack([counts, counts > 0]), wanted, np.ones(len(splits)), seed)
    for label, column in zip(classes, counts.T, strict=True):
        if any(not column[where == side].any() for side in range(len(splits))):
            raise InputError(
                f"the class {label} has too few groups ({np.count_nonzero(column)}) to be cut into "
                f"{', '.join(splits)}; add images of other groups or set a share to 0"
            )
    return {name: splits[side] for name, side in zip(names, where, strict=True)}


def balance(
    counts: NDArray[np.int_], shares: NDArray[np.floating], weights: NDArray[np.floating], seed: int
) -> NDArray[np.int_]:
    r"""Assign indivisible groups to sets so that each set gets its share of every class.

    Minimises \(\sum_{s,c} w_s (n_{sc}/n_c - \text{share}_s)^2\), plus 100 for every class that a set lacks,
    by steepest descent over moves of one group and swaps of two, from up to 100 random starts; of many groups, fewer
    starts and 20,000 random swaps.

    Args:
        counts: (G, C) number of samples of each class in each group; every class has some.
        shares: (S,) the wanted shares, positive, which sum to one.
        weights: (S,) how much a set's misfit counts.
        seed: seed of the starts.

    Returns:
        (G,) index of the set of each group.
    """
    rng = np.random.default_rng(seed)
    groups, sets = len(counts), len(shares)
    totals, every = counts.sum(axis=0), np.arange(groups)

    def cost(sizes: NDArray[np.int_]) -> NDArray[np.floating]:
        misfit = weights[:, None] * (sizes / totals - shares[:, None]) ** 2
        return (misfit + 100 * (sizes == 0)).sum(axis=(1, 2))

    best, lowest = np.zeros(groups, dtype=int), np.inf
    for _ in range(int(np.clip(2000 // groups, 2, 100))):
        if groups < 200:
            here = rng.permutation(every % sets)
            first, second = np.triu_indices(groups, k=1)
        else:
            here = rng.choice(sets, groups, p=shares)
            first, second = rng.integers(0, groups, (2, 20_000))
        # A change takes `more` samples from one set to another: a group moves, or two groups change places.
        moved, target = np.repeat(every, sets), np.tile(np.arange(sets), groups)
        more = np.concatenate([counts[moved], counts[first] - counts[second]])
        sizes = np.stack([counts[here == part].sum(axis=0) for part in range(sets)])
        height = cost(sizes[None])[0]
        while True:
            origin = np.concatenate([here[moved], here[first]])
            goal = np.concatenate([target, here[second]])
            changed = np.tile(sizes, (len(more), 1, 1))
            rows = np.arange(len(more))
            changed[rows, origin] -= more
            changed[rows, goal] += more
            costs = cost(changed)
            if costs.min() >= height - 1e-9:
                break
            index = int(costs.argmin())
            if index < len(moved):
                here[moved[index]] = goal[index]
            else:
                pair = index - len(moved)
                here[first[pair]], here[second[pair]] = goal[index], origin[index]
            sizes, height = changed[index], costs[index]
        if height < lowest - 1e-9:
            best, lowest = here, height
    return best


def torn_groups(samples: Sequence["Sample"], *, with_folds: bool) -> list[str]:
    """Say which groups are on both sides of a split or, where `with_folds`, in several folds; one sentence each."""
    splits: dict[str, set[str]] = defaultdict(set)
    folds: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        if sample.group and sample.split:
            splits[sample.group].add(sample.split)
            if sample.split == "train":
                folds[sample.group].add("no fold" if sample.fold is None else f"fold {sample.fold}")
    remedy = (
        "numbers are optimistic there, since a patient or slide is not new; keep groups apart by `histoloc data folder "
        "--group` (on folders of classes, not of splits) or `histoloc data glas --split patient`"
    )
    notes = []
    if torn := _listed(splits, SPLITS):
        seen = [
            f"{share:.0%} of the samples of {split}"
            for split, earlier in (("valid", {"train"}), ("test", {"train", "valid"}))
            if (share := _share(samples, split, {group for group, at in splits.items() if at & earlier}))
        ]
        notes.append(f"{torn} are on both sides of a split, with {' and '.join(seen)}: {remedy}")
    if with_folds and (torn := _listed(folds, sorted(set().union(*folds.values())))):
        notes.append(f"{torn} are in more than one fold: validation {remedy}")
    return notes


def _listed(sides: Mapping[str, set[str]], order: Sequence[str]) -> str:
    """How many groups are on more than one side, with three examples; empty if there are none."""
    torn = {group: at for group, at in sorted(sides.items()) if len(at) > 1}
    if not torn:
        return ""
    examples = [f"{group}: {', '.join(s for s in order if s in at)}" for group, at in islice(torn.items(), 3)]
    more = f"; and {len(torn) - 3} more" if len(torn) > 3 else ""
    return f"{len(torn)} of {len(sides)} groups ({'; '.join(examples)}{more})"


def _share(samples: Sequence["Sample"], split: str, groups: set[str]) -> float:
    inside = [sample.group in groups for sample in samples if sample.split == split]
    return sum(inside) / len(inside) if inside else 0.0


def torn_names(paths: Sequence[str], labels: Sequence[str], splits: Sequence[str]) -> list[str]:
    """Warn where file names look like patients or slides that are on both sides of a split.

    Args:
        paths: of the images, with slashes, relative to the folder of `histoloc data folder`.
        labels: their labels.
        splits: their splits.

    Returns:
        One sentence with the `--group` that keeps them apart, or none.
    """
    for pattern in (*_NAMED, *_NUMBERED):
        groups = groups_by_pattern(paths, pattern)
        images = len(groups) - groups.count(None)
        sides: dict[str, set[str]] = defaultdict(set)
        for group, split in zip(groups, splits, strict=True):
            if group is not None:
                sides[group].add(split)
        # A number alone may be anything, so it counts only where it makes few groups of many images.
        few = pattern in _NAMED or len(set(labels)) < len(sides) <= images / 2
        if few and 2 * images >= len(paths) and (torn := _listed(sides, SPLITS)):
            rest = f"; {len(paths) - images} names do not match it" if images < len(paths) else ""
            return [
                f"file names look like patients or slides, and {torn} are on both sides of a split, so that numbers "
                f"are optimistic; keep them apart by --group '{pattern}' (where the folders are splits, move images)"
                f"{rest}"
            ]
    return []
