"""Which patches of a slide are sampled: the published protocol of Camelyon16-P512 as pure functions.

Nothing here reads a slide; masks come in, coordinates go out. Every draw is a function of the seed and of names, so
that neither the number of workers nor the order in which slides are done changes anything.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_TISSUE = 0.1
P0 = 0.2
P1 = 0.5
BIN = 0.05
# What the published sampling kept with p0 <= p <= p1, and how many it drew from p > p1. The text calls it 1 %, but
# the published code draws far more, so comparable data sets reproduce the counts.
PUBLISHED_CALIBRATION = {"train": (10_089, 6_514), "test": (4_823, 3_009)}

Mask = NDArray[np.bool_]


class Box(NamedTuple):
    """A rectangle of whole pixels of level 0; right and bottom are outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.bottom - self.top


class Patch(NamedTuple):
    """A patch that the scan of an annotation's box found.

    Attributes:
        region: number of the box, from 0.
        row: number of the strip within the box, from 0; strips without patches count.
        patch: number of the patch within its strip, from 0.
        x: left edge in pixels of level 0.
        y: top edge in pixels of level 0.
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
    """A cell of the grid on a normal slide.

    Attributes:
        x: left edge in pixels of level 0.
        y: top edge in pixels of level 0.
        tissue: share of tissue at the coarse level, in [0, 1].
    """

    x: int
    y: int
    tissue: float


def random_for(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on the seed and on names (of the slide, of the step) and on nothing else.

    Args:
        seed: whole number from 0 up.
        names: in order; ("a", "b") and ("ab",) differ.
    """
    words = [word for name in names for word in (len(name.encode()), *name.encode())]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))


def annotation_boxes(bounds: NDArray[np.floating], *, nested_in_x_alone: bool = False) -> list[Box]:
    """Bounding boxes of annotations, without those that lie within another; of equal ones the first is kept.

    Args:
        bounds: (N, 4), left, top, right, bottom of each annotation in pixels of level 0.
        nested_in_x_alone: drop a box whose horizontal extent lies within another's, wherever it is vertically.
            This is a fault of the published code, which loses tumours; it is here for comparison only.

    Returns:
        The boxes that are kept, in the order of the annotations.
    """
    bounds = np.asarray(bounds, float).reshape(-1, 4)
    corners = np.concatenate([np.floor(bounds[:, :2]), np.ceil(bounds[:, 2:])], axis=1).astype(int)
    low, high = ([0], [2]) if nested_in_x_alone else ([0, 1], [2, 3])
    inside = (corners[:, None, low] >= corners[None, :, low]).all(-1)
    inside &= (corners[:, None, high] <= corners[None, :, high]).all(-1)  # [i, j]: i lies within j
    index = np.arange(len(corners))
    dropped = (inside & (~inside.T | (index[None, :] < index[:, None]))).any(axis=1)
    return [Box(*map(int, corner)) for corner in corners[~dropped]]


def pad_box(box: Box, width: int, height: int, slide: tuple[int, int]) -> Box:
    """Widen a box by a patch to the left, right and below and by half a patch above, within the slide.

    Args:
        box: of an annotation.
        width: of a patch, pixels of level 0.
        height: of a patch.
        slide: (width, height) of the slide.
    """
    return Box(
        max(box.left - width, 0),
        max(box.top - height // 2, 0),
        min(box.right + width, slide[0]),
        min(box.bottom + height, slide[1]),
    )


def strips(box: Box, height: int, step: int) -> list[Box]:
    """Cut a box into strips of a patch's height, every `step` pixels; what is left below is too low for a patch."""
    return [
        Box(box.left, top, box.right, top + height) for top in range(box.top, box.bottom - height + 1, step)
    ]  # fmt: skip


def scan_strip(
    tissue: Mask, tumour: Mask, width: int, step: int, *, min_tissue: float = MIN_TISSUE, p0: float = P0
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
    begin = max(int(columns.argmax()) - width, 0)
    if not enough[begin:].any():
        return []
    first = begin + int(enough[begin:].argmax())
    places = np.arange(first, len(enough), step)
    return [(int(x), float(shares[0][x]), float(shares[1][x])) for x in places[enough[places]]]


def _window_shares(mask: Mask, width: int) -> NDArray[np.float64]:
    """Share of True in the window of full height that begins at each column: (W - width + 1,)."""
    total = np.concatenate([[0], np.cumsum(np.count_nonzero(mask, axis=0))])
    return (total[width:] - total[:-width]) / (mask.shape[0] * width)


def scan_boxes(
    boxes: Sequence[Box],
    masks: Callable[[Box], tuple[Mask, Mask]],
    width: int,
    height: int,
    slide: tuple[int, int],
    *,
    step: tuple[int, int] | None = None,
    min_tissue: float = MIN_TISSUE,
    p0: float = P0,
) -> Iterator[Patch]:
    """Find all tumour patches of a slide, one strip in memory at a time.

    Args:
        boxes: of the annotations, as `annotation_boxes` gives them.
        masks: gives (tissue, tumour) of a strip at level 0, both of the strip's (height, width).
        width: of a patch, pixels of level 0.
        height: of a patch.
        slide: (width, height) of the slide.
        step: pixels from patch to patch (right, down); by default width and height.
        min_tissue: smallest share of tissue.
        p0: smallest share of tumour.
    """
    right, down = (width, height) if step is None else step
    for region, box in enumerate(boxes):
        padded = pad_box(box, width, height, slide)
        if padded.width < width:
            continue
        for row, strip in enumerate(strips(padded, height, down)):
            found = scan_strip(*masks(strip), width, right, min_tissue=min_tissue, p0=p0)
            for patch, (x, tissue, tumour) in enumerate(found):
                yield Patch(region, row, patch, strip.left + x, strip.top, tissue, tumour)


def calibration_size(kept: int, split: str) -> int:
    """How many patches with p > p1 go with `kept` patches of p0 <= p <= p1, in the published proportion.

    Args:
        kept: number of patches with p0 <= p <= p1; for the whole of Camelyon16 the published counts come out.
        split: `train` or `test`, whose published proportions differ.
    """
    low, high = PUBLISHED_CALIBRATION[split]
    return round(kept * high / low)


def calibrate(
    names: Sequence[str],
    tumour: Sequence[float] | NDArray[np.floating],
    wanted: int,
    rng: np.random.Generator,
    *,
    p0: float = P0,
    p1: float = P1,
    width: float = BIN,
) -> Mask:
    """Choose patches such that those full of tumour do not outweigh the others.

    All with p0 <= p <= p1 are kept. From those with p > p1 one is drawn at a time: first a bin of [p1, 1] among
    those that have patches left, each as likely as the other, then a patch in it; none is drawn twice.

    Args:
        names: (N,), unique names of the patches; the choice does not depend on the order they come in.
        tumour: (N,), share of tumour p of each patch.
        wanted: number of patches with p > p1 to draw; where there are fewer, all are taken.
        rng: as `random_for` gives it.
        p0: patches below it are left out.
        p1: up to it all are kept.
        width: of a bin; the last bin includes p = 1.

    Returns:
        (N,) bool, whether a patch is chosen.
    """
    shares = np.asarray(tumour, float)
    if len(set(names)) < len(names) or shares.shape != (len(names),):
        raise ValueError("patches have unique names and one share of tumour each")
    chosen = (shares >= p0) & (shares <= p1)
    large = np.array(sorted(np.flatnonzero(shares > p1), key=lambda i: names[int(i)]), int)
    # Rounded, because 0.6 lies on the border of two bins only up to the last digit.
    bins = np.floor(np.round((shares[large] - p1) / width, 9)).astype(int)
    last = max(int(np.ceil(round((1 - p1) / width, 9))) - 1, 0)
    bins = np.minimum(bins, last)
    left = [list(rng.permutation(large[bins == k])) for k in range(last + 1)]
    for _ in range(min(wanted, len(large))):
        filled = [members for members in left if members]
        chosen[filled[rng.integers(len(filled))].pop()] = True
    return chosen


def normal_candidates(
    tissue: Mask,
    downsample: float,
    slide: tuple[int, int],
    size: tuple[int, int],
    *,
    step: tuple[int, int] | None = None,
    min_tissue: float = MIN_TISSUE,
) -> list[Candidate]:
    """Cells of the grid of patches that have enough tissue, as far as a coarse picture of the slide shows it.

    Args:
        tissue: (H, W), tissue of the whole slide at a coarse level.
        downsample: pixels of level 0 per pixel of `tissue`.
        slide: (width, height) of the slide in pixels of level 0; only cells entirely in it are candidates.
        size: (width, height) of a patch in pixels of level 0.
        step: pixels of level 0 from cell to cell (right, down); by default the size.
        min_tissue: smallest share of tissue.

    Returns:
        The candidates, row by row.
    """
    right, down = size if step is None else step
    xs = np.arange(0, slide[0] - size[0] + 1, right)
    ys = np.arange(0, slide[1] - size[1] + 1, down)
    integral = np.pad(np.cumsum(np.cumsum(tissue, axis=0, dtype=np.int64), axis=1), ((1, 0), (1, 0)))
    x0, x1 = _coarse(xs, size[0], downsample, tissue.shape[1])
    y0, y1 = (edge[:, None] for edge in _coarse(ys, size[1], downsample, tissue.shape[0]))
    count = integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
    share = count / ((y1 - y0) * (x1 - x0))
    return [Candidate(int(xs[j]), int(ys[i]), float(share[i, j])) for i, j in np.argwhere(share >= min_tissue)]


def _coarse(
    edges: NDArray[np.int_], size: int, downsample: float, length: int
) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """First and end pixel of cells at the coarse level: the nearest whole pixels, at least one."""
    first = np.clip(np.rint(edges / downsample).astype(int), 0, length - 1)
    end = np.clip(np.rint((edges + size) / downsample).astype(int), first + 1, length)
    return first, end


def draw_normals(
    candidates: Sequence[Candidate],
    wanted: int,
    accept: Callable[[Candidate], float | None],
    rng: np.random.Generator,
) -> list[Candidate]:
    """Draw normal patches without repetition; each is looked at again at full resolution before it counts.

    Args:
        candidates: cells of the slide's grid, in any order.
        wanted: number of patches; fewer come back where the slide has no more.
        accept: gives the share of tissue of a cell at level 0, or None to refuse the cell.
        rng: as `random_for` gives it for the slide.

    Returns:
        The patches in the order drawn, with the share of tissue at level 0. Those of a smaller `wanted` are the
        first of those of a larger one.
    """
    ordered = sorted(candidates)
    drawn: list[Candidate] = []
    for index in rng.permutation(len(ordered)):
        if len(drawn) >= wanted:
            break
        share = accept(ordered[index])
        if share is not None:
            drawn.append(ordered[index]._replace(tissue=share))
    return drawn


def equal_numbers(total: int, slides: Sequence[str], available: Mapping[str, int] | None = None) -> dict[str, int]:
    """Share out patches equally among slides, the remainder to the first by name.

    Args:
        total: number of patches.
        slides: names of the slides, in any order.
        available: how many patches each slide can give; what one lacks rolls on to the next by name, and from
            the last to the first. None for no limit.

    Returns:
        Number of patches of each slide, sorted by name; they add up to less than `total` only where all slides
        together have no more.
    """
    names = sorted(slides)
    if not names or len(set(names)) < len(names) or total < 0:
        raise ValueError("share out a number from 0 up among slides of different names")
    each, remainder = divmod(total, len(names))
    numbers = {name: each + (remainder if name == names[0] else 0) for name in names}
    if available is None:
        return numbers
    short = 0
    for name in [*names, *names]:  # the second round is for what the last slides lacked
        possible = min(numbers[name] + short, available[name])
        short += numbers[name] - possible
        numbers[name] = possible
    return numbers
