"""Which patches of a slide are sampled: the published protocol of Camelyon16-P512 as pure functions.

Nothing here reads a slide; masks come in, coordinates go out. Every draw is a function of the seed and of names, so
that neither the number of workers nor the order in which slides are done changes anything.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BIN = 0.05
# What the published sampling kept with p0 <= p <= p1, and how many it drew from p > p1. The text calls it 1 %, but
# the published code draws far more, so comparable data sets reproduce the counts.
PUBLISHED_CALIBRATION = {"train": (10_089, 6_514), "test": (4_823, 3_009)}

Mask = NDArray[np.bool_]
Random = np.random.Generator


class Box(NamedTuple):
    """A rectangle of whole pixels; right and bottom are outside."""

    left: int
    top: int
    right: int
    bottom: int


class Patch(NamedTuple):
    """A patch that the scan of an annotation's box found.

    Attributes:
        region: number of the box, from 0.
        row: number of the strip within the box, from 0; strips without patches count.
        patch: number of the patch within its strip, from 0.
        x: left edge in pixels.
        y: top edge in pixels.
        tissue: share of tissue, in [0, 1].
        tumour: share of tumour, in [0, 1].
    """

    region: int
    row: int
    patch: int
    x: int
    y: int
    tissue: float
    tumour: float


class Candidate(NamedTuple):
    """A cell of the grid on a normal slide: its left and top edge in pixels, and its share of tissue, in [0, 1]."""

    x: int
    y: int
    tissue: float


def random_for(seed: int, *names: str) -> Random:
    """A generator that depends on the seed and on names (of the slide, of the step) and on nothing else.

    Args:
        seed: whole number from 0 up.
        names: in order; ("a", "b") and ("ab",) differ.
    """
    words = [word for name in names for word in (len(name.encode()), *name.encode())]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))


def annotation_boxes(bounds: NDArray[np.floating]) -> list[Box]:
    """Bounding boxes of annotations, without those that lie within another; of equal ones the first is kept.

    The published code also drops a box whose horizontal extent alone lies within another's, which loses tumours.

    Args:
        bounds: (N, 4), left, top, right, bottom of each annotation in pixels.

    Returns:
        The boxes that are kept, in the order of the annotations.
    """
    bounds = np.asarray(bounds, float).reshape(-1, 4)
    corners = np.concatenate([np.floor(bounds[:, :2]), np.ceil(bounds[:, 2:])], axis=1).astype(int)
    inside = (corners[:, None, :2] >= corners[None, :, :2]).all(-1)
    inside &= (corners[:, None, 2:] <= corners[None, :, 2:]).all(-1)  # [i, j]: i lies within j
    index = np.arange(len(corners))
    dropped = (inside & (~inside.T | (index[None, :] < index[:, None]))).any(axis=1)
    return [Box(*map(int, corner)) for corner in corners[~dropped]]


def scan_strip(
    tissue: Mask, tumour: Mask, width: int, step: int, *, min_tissue: float, p0: float
) -> list[tuple[int, float, float]]:
    """Find the patches of one strip.

    From one patch left of the first column with tumour, a window moves right by single pixels to the first place
    where it has enough tissue and enough tumour; from there on it moves by `step`, and every place with enough of
    both is a patch.

    Args:
        tissue: (H, W), the strip's tissue.
        tumour: (H, W), the strip's tumour.
        width: of a patch in pixels; its height is H.
        step: pixels from one window to the next after the first patch.
        min_tissue: smallest share of tissue.
        p0: smallest share of tumour.

    Returns:
        (x, share of tissue, share of tumour) of every patch from left to right, x counted from the strip's edge.
    """
    columns = tumour.any(axis=0)
    if not columns.any() or tumour.shape[1] < width:
        return []
    shares = [_window_shares(mask, width) for mask in (tissue, tumour)]
    enough = (shares[0] >= min_tissue) & (shares[1] >= p0)
    enough[: max(int(columns.argmax()) - width, 0)] = False
    places = np.arange(int(enough.argmax()), len(enough), step)
    return [(int(x), float(shares[0][x]), float(shares[1][x])) for x in places[enough[places]]]


def _window_shares(mask: Mask, width: int) -> NDArray[np.float64]:
    """Share of True in the window of full height that begins at each column: (W - width + 1,)."""
    total = np.concatenate([[0], np.cumsum(np.count_nonzero(mask, axis=0))])
    return (total[width:] - total[:-width]) / (mask.shape[0] * width)


def scan_boxes(
    boxes: Sequence[Box],
    masks: Callable[[Box], tuple[Mask, Mask]],
    size: int,
    slide: tuple[int, int],
    *,
    step: int,
    min_tissue: float,
    p0: float,
) -> Iterator[Patch]:
    """Find all tumour patches of a slide, one strip in memory at a time.

    Each box is widened by a patch to the left, right and below and by half a patch above, within the slide, and cut
    into strips of a patch's height; what is left below is too low for a patch.

    Args:
        boxes: of the annotations, as `annotation_boxes` gives them.
        masks: gives (tissue, tumour) of a strip, both of the strip's (height, width).
        size: side of a patch in pixels.
        slide: (width, height) of the slide.
        step: pixels from patch to patch, to the right and down.
        min_tissue: smallest share of tissue.
        p0: smallest share of tumour.
    """
    for region, box in enumerate(boxes):
        left, right = max(box.left - size, 0), min(box.right + size, slide[0])
        top, bottom = max(box.top - size // 2, 0), min(box.bottom + size, slide[1])
        if right - left < size:
            continue
        for row, y in enumerate(range(top, bottom - size + 1, step)):
            places = scan_strip(*masks(Box(left, y, right, y + size)), size, step, min_tissue=min_tissue, p0=p0)
            for patch, (x, *shares) in enumerate(places):
                yield Patch(region, row, patch, left + x, y, *shares)


def calibration_size(count: int, split: str) -> int:
    """How many patches with p > p1 go with `count` patches of p0 <= p <= p1, in the published proportion.

    Args:
        count: number of patches with p0 <= p <= p1; for the whole of Camelyon16 the published counts come out.
        split: `train` or `test`, whose published proportions differ.
    """
    low, high = PUBLISHED_CALIBRATION[split]
    return round(count * high / low)


def calibrate(shares: Mapping[str, float], count: int, rng: Random, *, p0: float, p1: float) -> set[str]:
    """Choose patches such that those full of tumour do not outweigh the others.

    All with p0 <= p <= p1 are kept. From those with p > p1 one is drawn at a time: first a bin of [p1, 1] among those
    that have patches left, each as likely as the other, then a patch in it; none is drawn twice. A bin is 0.05 wide,
    the last one includes p = 1.

    Args:
        shares: share of tumour p of each patch by its name; the choice does not depend on their order.
        count: number of patches with p > p1 to draw; where there are fewer, all are taken.
        rng: as `random_for` gives it.
        p0: patches below it are left out.
        p1: up to it all are kept.

    Returns:
        Names of the chosen patches.
    """
    large = sorted(name for name, share in shares.items() if share > p1)
    # Rounded, because 0.6 lies on the border of two bins only up to the last digit.
    bins = np.floor(np.round((np.array([shares[name] for name in large]) - p1) / BIN, 9)).astype(int)
    last = max(int(np.ceil(round((1 - p1) / BIN, 9))) - 1, 0)
    remainder = [list(rng.permutation(np.flatnonzero(np.minimum(bins, last) == k))) for k in range(last + 1)]
    names = {name for name, share in shares.items() if p0 <= share <= p1}
    for _ in range(min(count, len(large))):
        nonempty = [members for members in remainder if members]
        names.add(large[nonempty[rng.integers(len(nonempty))].pop()])
    return names


def normal_candidates(
    tissue: Mask, downsample: float, slide: tuple[int, int], size: int, *, step: int, min_tissue: float
) -> list[Candidate]:
    """Cells of the grid of patches that have enough tissue, as far as a coarse picture of the slide shows it.

    Args:
        tissue: (H, W), tissue of the whole slide at a coarse level.
        downsample: pixels of the slide per pixel of `tissue`.
        slide: (width, height) of the slide in pixels; only cells entirely in it are candidates.
        size: side of a patch in pixels.
        step: pixels from cell to cell, to the right and down.
        min_tissue: smallest share of tissue.

    Returns:
        The candidates, row by row.
    """
    xs, ys = (np.arange(0, length - size + 1, step) for length in slide)
    integral = np.pad(np.cumsum(np.cumsum(tissue, axis=0, dtype=np.int64), axis=1), ((1, 0), (1, 0)))
    x0, x1 = _coarse(xs, size, downsample, tissue.shape[1])
    y0, y1 = (edge[:, None] for edge in _coarse(ys, size, downsample, tissue.shape[0]))
    count = integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
    share = count / ((y1 - y0) * (x1 - x0))
    return [Candidate(int(xs[j]), int(ys[i]), float(share[i, j])) for i, j in np.argwhere(share >= min_tissue)]


def _coarse(
    edges: NDArray[np.int_], size: int, downsample: float, length: int
) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """First and end pixel of cells at the coarse level: the nearest whole pixels, at least one."""
    first = np.clip(np.rint(edges / downsample).astype(int), 0, length - 1)
    return first, np.clip(np.rint((edges + size) / downsample).astype(int), first + 1, length)


def draw_normals(
    candidates: Sequence[Candidate], count: int, share: Callable[[Candidate], float], min_tissue: float, rng: Random
) -> list[Candidate]:
    """Draw normal patches without repetition; each is looked at again at full resolution before it counts.

    Args:
        candidates: cells of the slide's grid, in any order.
        count: number of patches; fewer come back where the slide has no more.
        share: gives the share of tissue of a cell at full resolution.
        min_tissue: smallest such share.
        rng: as `random_for` gives it for the slide.

    Returns:
        The patches in the order drawn, with that share. Those of a smaller `count` are the first of those of a
        larger one.
    """
    ordered = sorted(candidates)
    cells = (ordered[index]._replace(tissue=share(ordered[index])) for index in rng.permutation(len(ordered)))
    return list(islice((cell for cell in cells if cell.tissue >= min_tissue), count))


def equal_numbers(total: int, available: Mapping[str, int]) -> dict[str, int]:
    """Share out patches equally among slides, the remainder to the first by name.

    Args:
        total: number of patches.
        available: how many patches each slide can give; what one lacks rolls on to the next by name, and from
            the last to the first.

    Returns:
        Number of patches of each slide, sorted by name; they add up to less than `total` only where all slides
        together have no more.
    """
    names = sorted(available)
    each, short = divmod(total, len(names)) if names else (0, 0)
    numbers = dict.fromkeys(names, each)
    for name in [*names, *names]:  # the second round is for what the last slides lacked
        possible = min(numbers[name] + short, available[name])
        short += numbers[name] - possible
        numbers[name] = possible
    return numbers
