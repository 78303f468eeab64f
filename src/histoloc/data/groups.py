"""Groups of samples (patients, slides): from file names, as a whole into splits, and where splits tear them apart."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histoloc.data.sample import SPLITS, Sample
from histoloc.errors import InputError

_Cost = Callable[[NDArray[np.int_]], NDArray[np.floating]]
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
    matches = [compiled.search(path) for path in paths]
    return [(match[min(1, compiled.groups)] or "").strip() or None if match else None for match in matches]


def divide(
    labels: Sequence[str],
    groups: Sequence[str | None],
    shares: Mapping[str, float],
    seed: int,
    weights: Mapping[str, float] | None = None,
) -> list[str]:
    """Put samples into sets, so that the shares hold within each class as well as they can.

    Whole groups, where there are any; a sample without is a group of its own. Otherwise the samples of each class are
    shuffled, and every set gets at least one.

    Args:
        labels: the label of each sample.
        groups: the group of each sample, or None; with groups the order of samples does not matter.
        shares: the share of samples of each set, of which the first gets what is left; together 1.
        seed: of the draw.
        weights: how much a misfit of a set counts, where not 1.

    Returns:
        The set of each sample.

    Raises:
        InputError: a class has too few samples or groups, or no division gives every class to every set.
    """
    sets = [name for name, share in shares.items() if share]
    if not any(groups):
        return _shuffled(labels, {name: shares[name] for name in sets}, seed)
    names = [group or f"\0{number}" for number, group in enumerate(groups)]
    counts = pd.crosstab(np.asarray(names, dtype=object), np.asarray(labels, dtype=object))
    factors = np.array([(weights or {}).get(name, 1.0) for name in sets])
    # The number of groups counts as well: one with very many images would fill a set alone.
    both = np.hstack([counts, counts > 0])
    where = balance(both, np.array([shares[name] for name in sets]), factors, seed)
    for label, column in counts.items():
        if len(set(where[column > 0])) < len(sets):
            number = (column > 0).sum()
            raise InputError(f"the class {label} has too few groups ({number}) to be cut into {', '.join(sets)}")
    set_of = {name: sets[index] for name, index in zip(counts.index, where, strict=True)}
    return [set_of[name] for name in names]


def _shuffled(labels: Sequence[str], shares: Mapping[str, float], seed: int) -> list[str]:
    rest, *others = shares
    result = [rest] * len(labels)
    for label, places in pd.Series(range(len(labels))).groupby(np.asarray(labels, dtype=object)):
        # The class name seeds as well, so that a class more or less leaves the others as they were.
        order = places.to_numpy()[np.random.default_rng([seed, *str(label).encode()]).permutation(len(places))]
        sizes = {name: max(1, round(shares[name] * len(order))) for name in others}
        if sum(sizes.values()) >= len(order):
            raise InputError(f"the class {label} has too few samples ({len(order)}) to be cut into {', '.join(shares)}")
        for name, size in sizes.items():
            for place in order[:size]:
                result[place] = name
            order = order[size:]
    return result


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
    groups, sets, totals = len(counts), len(shares), counts.sum(axis=0)

    def cost(sizes: NDArray[np.int_]) -> NDArray[np.floating]:
        misfit = weights[:, None] * (sizes / totals - shares[:, None]) ** 2
        return (misfit + 100 * (sizes == 0)).sum(axis=(1, 2))

    best, lowest = np.zeros(groups, dtype=int), np.inf
    for _ in range(int(np.clip(2000 // groups, 2, 100))):
        if groups < 200:
            where = rng.permutation(np.arange(groups) % sets)
            pairs = np.stack(np.triu_indices(groups, k=1))
        else:
            where = rng.choice(sets, groups, p=shares)
            pairs = rng.integers(0, groups, (2, 20_000))
        where, height = _descend(counts, where, pairs, sets, cost)
        if height < lowest - 1e-9:
            best, lowest = where, height
    return best


def _descend(
    counts: NDArray[np.int_], where: NDArray[np.int_], pairs: NDArray[np.int_], sets: int, cost: _Cost
) -> tuple[NDArray[np.int_], float]:
    """Swap pairs of groups, and move single ones, while the cost falls; give the sets of the groups and the cost."""
    groups, places = len(counts), np.arange(sets)
    # With an empty place in each set, the move of a group is a swap as well.
    moves = np.stack([np.repeat(np.arange(groups), sets), np.tile(groups + places, groups)])
    first, second = np.hstack([moves, pairs])
    counts = np.vstack([counts, np.zeros((sets, counts.shape[1]), dtype=int)])
    where = np.concatenate([where, places])
    more, rows = counts[first] - counts[second], np.arange(len(first))
    sizes = np.stack([counts[where == place].sum(axis=0) for place in places])
    height = float(cost(sizes[None])[0])
    while True:
        changed = np.tile(sizes, (len(rows), 1, 1))
        changed[rows, where[first]] -= more
        changed[rows, where[second]] += more
        costs = cost(changed)
        index = int(costs.argmin())
        if costs[index] >= height - 1e-9:
            return where[:groups], height
        pair = np.array([first[index], second[index]])
        where[pair] = where[pair[::-1]]
        where[groups:] = places
        sizes, height = changed[index], float(costs[index])


def torn_groups(samples: Sequence[Sample], *, with_folds: bool) -> list[str]:
    """Say which groups are on both sides of a split or, where `with_folds`, in several folds; one sentence each."""
    remedy = (
        "numbers are optimistic there, since a patient or slide is not new; keep groups apart by `histoloc data folder "
        "--group` (on folders of classes, not of splits) or `histoloc data glas --split patient`"
    )
    notes = []
    splits = _sides((sample.group, sample.split) for sample in samples)
    if torn := _torn(splits, SPLITS):
        shares = []
        for split, earlier in (("valid", {"train"}), ("test", {"train", "valid"})):
            inside = [bool(splits.get(s.group or "", set()) & earlier) for s in samples if s.split == split]
            if any(inside):
                shares.append(f"{np.mean(inside):.0%} of the samples of {split}")
        notes.append(f"{torn} are on both sides of a split, with {' and '.join(shares)}: {remedy}")
    trained = [sample for sample in samples if sample.split == "train"]
    folds = _sides((s.group, "no fold" if s.fold is None else f"fold {s.fold}") for s in trained)
    if with_folds and (torn := _torn(folds, sorted(set().union(*folds.values())))):
        notes.append(f"{torn} are in more than one fold: validation {remedy}")
    return notes


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
        sides = _sides(zip(groups, splits, strict=True))
        # A number alone may be anything, so it counts only where it makes few groups of many images.
        few = pattern in _NAMED or len(set(labels)) < len(sides) <= images / 2
        if few and 2 * images >= len(paths) and (torn := _torn(sides, SPLITS)):
            rest = f"; {len(paths) - images} names do not match it" if images < len(paths) else ""
            return [
                f"file names look like patients or slides, and {torn} are on both sides of a split, so that numbers "
                f"are optimistic; keep them apart by --group '{pattern}' (where the folders are splits, move images)"
                f"{rest}"
            ]
    return []


def _sides(pairs: Iterable[tuple[str | None, str | None]]) -> dict[str, set[str]]:
    """The splits or folds in which each group is."""
    sides: dict[str, set[str]] = defaultdict(set)
    for group, side in pairs:
        if group and side:
            sides[group].add(side)
    return sides


def _torn(sides: Mapping[str, set[str]], order: Sequence[str]) -> str:
    """How many groups are on more than one side, with three examples; empty if there are none."""
    torn = [f"{group}: {', '.join(s for s in order if s in at)}" for group, at in sorted(sides.items()) if len(at) > 1]
    more = f"; and {len(torn) - 3} more" if len(torn) > 3 else ""
    return f"{len(torn)} of {len(sides)} groups ({'; '.join(torn[:3])}{more})" if torn else ""
